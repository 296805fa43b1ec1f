"""What is known about models, by name: windows, prices, cache rules, tiers. Facts live in `models.json`, with dates.

Finds the profile of a name as providers, gateways and hubs write it, and reads users' own files of profiles. An
unknown model gets a cautious profile that says so. Turning prices into costs is left to `router/costs.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from .core import ModelProfile
from .errors import ConfigError

ASSUMED_WINDOW = 32_768
_OWN_FILE = Path(__file__).with_name("models.json")
_KEYS = frozenset(field.name for field in fields(ModelProfile)) - {"name"}


def profile_of(name: str, overrides: Mapping[str, ModelProfile] | None = None) -> ModelProfile:
    """The profile of a model, under the name it was asked for by.

    Providers, vendors, dates and versions around the name do not matter: `anthropic/claude-3-5-sonnet-20241022`,
    `us.anthropic.claude-3-5-sonnet-20241022-v2:0` and `claude-3.5-sonnet` are one model. The longest known name that
    the given one begins with counts; overrides go before our own data where both are equally long.
    An unknown model has tier `unknown`, no prices and a window of 32,768 tokens, which `source` calls assumed.
    """
    wanted = _words(name)
    best: tuple[int, ModelProfile | None] = (0, None)
    for profiles in (overrides or {}, _own_profiles()):
        for known, profile in profiles.items():
            words = _words(known)
            if len(words) > best[0] and _is_version_of(wanted, words):
                best = len(words), profile
    if best[1] is None:
        return ModelProfile(name, ASSUMED_WINDOW, source="assumed: the model is not known")
    return replace(best[1], name=name)


def known_models() -> tuple[str, ...]:
    """Names of the models in our own data."""
    return tuple(_own_profiles())


def load_profiles(path: str | Path) -> dict[str, ModelProfile]:
    """Profiles from a JSON file: model name -> fields of ModelProfile, of which only context_window is required.

    Raises ConfigError, naming file, model and key, for anything that is not so.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"The model file {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(f"The model file {path} is not JSON in UTF-8: {error}.") from error
    if not isinstance(data, dict) or not all(isinstance(entry, dict) for entry in data.values()):
        raise ConfigError(f"The model file {path} must hold an object: model name -> object of its properties.")
    return {name: _profile(name, entry, path) for name, entry in data.items()}


@lru_cache(maxsize=1)
def _own_profiles() -> dict[str, ModelProfile]:
    return load_profiles(_OWN_FILE)


def _profile(name: str, entry: dict[str, Any], path: Path) -> ModelProfile:
    from pydantic import TypeAdapter, ValidationError

    where = f"In {path}, model {name!r}"
    if unknown := sorted(set(entry) - _KEYS):
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}. Use some of: {', '.join(sorted(_KEYS))}.")
    try:
        profile = TypeAdapter(ModelProfile).validate_python({"name": name, **entry})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{where}: {first['loc'][0]} {entry.get(str(first['loc'][0]))!r}: {first['msg']}.") from error
    for key, value in entry.items():
        if isinstance(value, int | float) and not 0 <= value < float("inf"):
            raise ConfigError(f"{where}: {key} is {value}; it must be a number that is not negative.")
    if profile.context_window == 0:
        raise ConfigError(f"{where}: context_window is 0; give the number of tokens that the model accepts.")
    return profile


@lru_cache(maxsize=4096)
def _words(name: str) -> tuple[str, ...]:
    """Runs of letters and of digits, without the provider (`openai/`) and vendors (`us.anthropic.`) in front."""
    own_name = re.sub(r"^(?:[a-z]+\.)+", "", name.lower().rpartition("/")[2])
    return tuple(re.findall(r"[a-z]+|\d+", own_name))


def _is_version_of(wanted: tuple[str, ...], known: tuple[str, ...]) -> bool:
    """Whether what follows the known name can be a date, a revision or a variant, but not another model's number."""
    rest = wanted[len(known) :]
    return wanted[: len(known)] == known and not (rest and rest[0].isdigit() and len(rest[0]) < 3)
