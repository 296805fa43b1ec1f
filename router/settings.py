"""Configuration, read once at start-up from the environment and a file. Values only: no part is built here.

Order, first wins: arguments, environment (`LONGROUTE_MODEL`, ...), the file, defaults. The file is TOML: the one named
by LONGROUTE_CONFIG, else `longroute.toml` in the working directory, else `~/.config/longroute/config.toml`.
"""

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from .core import Prefer
from .errors import ConfigError

PREFIX = "LONGROUTE_"


class Settings(BaseSettings):
    """Every setting, its meaning and its default."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, populate_by_name=True)

    model: str = Field("extractive", description="Model that answers; `extractive` is embedded and needs no server.")
    base_url: str = Field(
        "https://api.openai.com/v1",
        description="OpenAI-compatible server for every model but `extractive`.",
        validation_alias=AliasChoices("LONGROUTE_BASE_URL", "base_url", "OPENAI_BASE_URL"),
    )
    api_key: SecretStr | None = Field(
        None,
        description="Key for that server; local servers often need none.",
        validation_alias=AliasChoices("LONGROUTE_API_KEY", "api_key", "OPENAI_API_KEY"),
    )
    models_file: Path | None = Field(None, description="JSON file of model profiles that add to or replace ours.")
    tokenizer: Path | None = Field(None, description="A Hugging Face tokenizer.json to count exactly with.")

    policy: str = Field(
        "learned", description="`learned`, `lara`, `fixed:STRATEGY`, or a policy file from `longroute calibrate fit`."
    )
    prefer: Prefer = Field("balanced", description="What to optimise: quality, balanced or cheap.")
    allowed: tuple[str, ...] = Field((), description="Strategies that may be chosen; empty means all.")
    max_cost_usd: Decimal | None = Field(None, ge=0, description="Hard limit on the estimated cost of one request.")
    max_latency_s: float | None = Field(None, gt=0, description="Hard limit on the estimated latency of one request.")
    min_quality: float | None = Field(None, ge=0, le=1, description="Hard limit on the estimated quality.")
    max_output_tokens: int = Field(1024, ge=1, description="Longest answer, and the room kept for it in the window.")

    rag_budget_tokens: int = Field(3000, ge=50, description="Most text that `rag` shows the model.")
    embedding_model: str = Field(
        "default",
        description="`default` is the offline MiniLM, `none` is BM25 alone, else a sentence-transformers model.",
    )

    outcomes_file: Path | None = Field(
        None, description="File to which `Router.record` appends how right answers were; holds no text."
    )

    cache_dir: Path | None = Field(None, description="Where embeddings are cached; `~/.cache/longroute` if unset.")
    cache: bool = Field(True, description="Whether to cache on disk. Document text is never stored.")
    cache_size_mb: int = Field(1024, ge=1, description="Bound on that cache.")

    timeout_s: float = Field(120.0, gt=0, description="Longest wait for one whole model call.")
    max_retries: int = Field(3, ge=0, description="Further tries of a call that failed for a passing reason.")
    max_concurrency: int = Field(16, ge=1, description="Most model calls under way at once.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        found = config_file()
        file = (TomlConfigSettingsSource(settings_cls, found),) if found else ()
        return init_settings, env_settings, *file


def load_settings(**overrides: Any) -> Settings:
    """Settings from arguments, environment and file. Raises ConfigError that names the key and where it stands."""
    _reject_unknown_environment()
    given = {key: value for key, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem, given) for problem in error.errors())) from None
    except (OSError, ValueError) as error:  # the file itself: unreadable, or not TOML
        raise ConfigError(f"Cannot read {config_file()}: {error}") from error


def config_file() -> Path | None:
    """The settings file in force, or None."""
    if named := os.environ.get(f"{PREFIX}CONFIG"):
        if not Path(named).is_file():
            raise ConfigError(f"{PREFIX}CONFIG names {named}, which is not a file.")
        return Path(named)
    usual = Path("longroute.toml"), Path.home() / ".config" / "longroute" / "config.toml"
    return next((path for path in usual if path.is_file()), None)


def default_cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "longroute"


def _reject_unknown_environment() -> None:
    """A misspelt variable would otherwise be ignored without a word."""
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields} | {f"{PREFIX}CONFIG", f"{PREFIX}DATA"}
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in known:
            raise ConfigError(f"Unknown setting {name} in the environment. Known: {', '.join(sorted(known))}.")


def _explain(problem: Any, given: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    name = key.removeprefix(PREFIX).lower()
    if name in given:
        place = "argument"
    elif f"{PREFIX}{name}".upper() in os.environ:
        place = f"environment variable {PREFIX}{name}".replace(name, name.upper())
    else:
        place = f"file {config_file()}"
    if problem["type"] == "extra_forbidden":
        return f"Unknown setting '{name}' ({place}). Known: {', '.join(Settings.model_fields)}."
    value = "" if name == "api_key" else f" = {problem['input']!r}"
    return f"Setting '{name}'{value} ({place}): {problem['msg']}."
