"""Names resolve to the right model or to none; users' files are checked key by key."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.router.core import ModelProfile
from longroute.router.errors import ConfigError
from longroute.router.models import ASSUMED_WINDOW, known_models, load_profiles, profile_of
from longroute.router.tokens import tokenizer_families


@pytest.mark.parametrize(
    ("asked", "known"),
    [
        ("gpt-4o-2024-11-20", "gpt-4o"),
        ("openai/gpt-4o", "gpt-4o"),
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("anthropic/claude-3-5-sonnet-20241022", "claude-3-5-sonnet"),
        ("us.anthropic.claude-3-5-sonnet-20241022-v2:0", "claude-3-5-sonnet"),
        ("anthropic/claude-3.5-sonnet", "claude-3-5-sonnet"),
        ("claude-sonnet-4-20250514", "claude-sonnet-4"),
        ("claude-sonnet-4-5@20250929", "claude-sonnet-4-5"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("llama3.1:8b", "llama-3.1-8b"),
        ("models/gemini-1.5-pro-002", "gemini-1.5-pro"),
        ("mistralai/Mistral-Nemo-Instruct-2407", "mistral-nemo"),
        ("Qwen/Qwen2.5-72B-Instruct", "qwen2.5-72b"),
    ],
)
def test_names_as_providers_write_them_are_one_model(asked: str, known: str) -> None:
    profile, expected = profile_of(asked), profile_of(known)
    assert profile.name == asked
    assert profile.tier != "unknown"
    assert (profile.source, profile.context_window, profile.input_usd_per_mtok, profile.tokenizer) == (
        expected.source,
        expected.context_window,
        expected.input_usd_per_mtok,
        expected.tokenizer,
    )


@pytest.mark.parametrize("asked", ["", "my-model", "gpt-4.9", "gpt-4o1", "claude-sonnet-4-9", "gpt", "ft:gpt-4o:us"])
def test_another_model_is_not_taken_for_a_known_one(asked: str) -> None:
    profile = profile_of(asked)
    assert (profile.tier, profile.context_window, profile.input_usd_per_mtok) == ("unknown", ASSUMED_WINDOW, None)
    assert "assumed" in profile.source


@given(st.sampled_from(known_models()))
def test_every_known_model_finds_itself_and_its_dated_snapshots(name: str) -> None:
    profile = profile_of(name)
    assert profile == ModelProfile(**{**_fields(profile_of(f"vendor/{name}-20260101")), "name": name})
    assert profile.tokenizer in tokenizer_families()
    assert profile.tier != "unknown"
    assert profile.as_of
    assert profile.source
    if profile.cached_input_usd_per_mtok and profile.input_usd_per_mtok:
        assert profile.cached_input_usd_per_mtok < profile.input_usd_per_mtok


def _fields(profile: ModelProfile) -> dict[str, Any]:
    return {name: getattr(profile, name) for name in ModelProfile.__dataclass_fields__}


def test_models_of_the_published_long_context_comparison_have_their_tiers() -> None:
    tiers = {
        "large": ["gpt-4o", "claude-3-5-sonnet-20241022", "gemini-1.5-pro"],
        "medium": [
            "gpt-4o-mini",
            "llama-3.3-70b",
            "llama-3.3-70b-q8",
            "qwen2.5-72b-instruct",
            "claude-3-5-haiku-20241022",
        ],
        "small": ["llama-3.1-8b", "llama-3.2-3b", "qwen2.5-7b-instruct"],
        "weak_long_context": ["mistral-nemo"],
        "extractive": ["extractive"],
    }
    assert {tier: [profile_of(name).tier for name in names] for tier, names in tiers.items()} == {
        tier: [tier] * len(names) for tier, names in tiers.items()
    }


def test_extractive_is_free_and_open_weights_have_unknown_prices() -> None:
    assert profile_of("extractive").input_usd_per_mtok == 0
    assert profile_of("llama-3.1-8b").input_usd_per_mtok is None
    assert profile_of("gpt-4o-mini").input_usd_per_mtok == Decimal("0.15")


def test_overrides_win_over_our_data_and_reach_dated_names() -> None:
    mine = {"gpt-4o": ModelProfile("gpt-4o", 9_999), "house-model": ModelProfile("house-model", 8_192)}
    assert profile_of("openai/gpt-4o-2024-11-20", mine).context_window == 9_999
    assert profile_of("gpt-4o-mini", mine).context_window == 128_000
    assert profile_of("house-model-v2", mine).context_window == 8_192


def write(folder: Path, content: object) -> Path:
    path = folder / "models.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_file_of_ones_own_needs_only_the_window(tmp_path: Path) -> None:
    path = write(
        tmp_path, {"mine": {"context_window": 4096, "input_usd_per_mtok": 0.1}, "other": {"context_window": 1}}
    )
    assert load_profiles(path) == {
        "mine": ModelProfile("mine", 4096, input_usd_per_mtok=Decimal("0.1")),
        "other": ModelProfile("other", 1),
    }


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ({"context_window": 4096, "price": 1}, "'price'"),
        ({"context_window": 4096, "input_usd_per_mtok": -1}, "input_usd_per_mtok"),
        ({"context_window": 4096, "prefill_tokens_per_s": float("nan")}, "prefill_tokens_per_s"),
        ({"context_window": 4096, "input_usd_per_mtok": "cheap"}, "input_usd_per_mtok"),
        ({"context_window": 4096, "tier": "huge"}, "tier"),
        ({"context_window": 0}, "context_window"),
        ({"context_window": -1}, "context_window"),
        ({}, "context_window"),
        ([], "object"),
    ],
)
def test_a_wrong_entry_is_refused_by_model_and_key(tmp_path: Path, entry: object, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        load_profiles(write(tmp_path, {"mine": entry}))
    assert "models.json" in str(caught.value)
    assert "mine" in str(caught.value) or entry == []


def test_a_file_that_is_missing_or_not_json_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_profiles(tmp_path / "nothing.json")
    with pytest.raises(ConfigError, match="not JSON"):
        load_profiles(write(tmp_path, "{'single': quotes}"))
