from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from longroute.router.assemble import Router
from longroute.router.errors import ConfigError
from longroute.router.models import load_profiles
from longroute.router.runner.cli import app
from longroute.router.runner.engine import Engine
from longroute.router.runner.generation import SamplingOptions
from longroute.router.runner.local_model import LocalModel, LocalOptions
from longroute.router.runner.model import LanguageModel
from longroute.router.runner.profile import Measured, drafted_from, measure, speed
from longroute.router.runner.tokenizer import Tokenizer
from longroute.tests.router.runner.tiny import tiny_transformer


@pytest.fixture(scope="module")
def tiny(model_folder: Path) -> LocalModel:
    return LocalModel.load(model_folder, LocalOptions("cpu"))


def test_each_length_is_measured_and_nothing_is_reused_but_for_drafts(tiny: LocalModel) -> None:
    before = tiny.engine.metrics().reused_tokens
    measured = list(measure(tiny, [64, 32], new_tokens=3))
    assert [one.prompt_tokens for one in measured] == [32, 64]
    assert all(one.prefill_tokens_per_s > 0 and one.decode_tokens_per_s > 0 for one in measured)
    summary = speed(tiny, measured)
    assert min(one.prefill_tokens_per_s for one in measured) <= summary.prefill_tokens_per_s
    assert summary.overhead_s > 0
    assert tiny.engine.metrics().reused_tokens - before < 32 + 64 + 10


def test_the_speed_up_of_drafts_follows_from_measured_times_and_the_acceptance_given() -> None:
    one = Measured(prompt_tokens=4096, new_tokens=11, prefill_s=1.0, decode_s=1.0, round_s=0.2)
    assert one.speedup(1.0) == pytest.approx(2.5)  # five tokens in the time of two steps
    assert one.speedup(0.75) == pytest.approx((1 + 0.75 + 0.75**2 + 0.75**3 + 0.75**4) / 2)
    assert one.speedup(0.0) == 1  # drafts that do not pay are not made
    assert replace(one, round_s=None).speedup(0.8) is None


@given(st.integers(1, 10**6))
def test_drafts_are_made_from_what_the_strategy_would_take(length: int) -> None:
    drafted = drafted_from(length)
    assert drafted * 8 <= max(length, 8)
    if length >= 8 * 4096:
        assert drafted == max(4096, length // 24)


def test_a_round_is_timed_and_costs_more_than_a_plain_step(tiny: LocalModel) -> None:
    before = tiny.engine.metrics()
    (one,) = measure(tiny, [64], new_tokens=3)
    after = tiny.engine.metrics()
    assert after.drafted_tokens - before.drafted_tokens >= 8
    assert one.round_s is not None
    assert one.round_s > 0


def test_a_model_that_cannot_take_back_tokens_has_no_speed_up(model_folder: Path) -> None:
    tokenizer = Tokenizer.load(model_folder)
    shape: dict[str, Any] = {"layer_types": ["conv", "full_attention"], "vocab_size": len(tokenizer.vocabulary)}
    engine = Engine(LanguageModel(tiny_transformer("lfm2", **shape)), tokenizer.decode)
    with LocalModel("tiny", tokenizer, engine, SamplingOptions()) as model:
        (one,) = measure(model, [64], new_tokens=3)
    assert one.speedup(0.8) is None


def test_lengths_that_do_not_fit_window_or_budget_are_left_out(tiny: LocalModel) -> None:
    assert [one.prompt_tokens for one in measure(tiny, [32, 8190], new_tokens=3)] == [32]
    assert [one.prompt_tokens for one in measure(tiny, [32, 4096], new_tokens=3, budget_s=0)] == [32]
    with pytest.raises(ConfigError, match="Not even the shortest"):
        speed(tiny, list(measure(tiny, [9000])))


def test_a_measured_model_has_latency_estimates(model_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "models.json"
    file.write_text('{"other": {"context_window": 10}}')
    arguments = ["profile", str(model_folder), "--out", str(file), "--length", "32", "--new-tokens", "3"]
    done = CliRunner().invoke(app, [*arguments, "--device", "cpu"], catch_exceptions=False)
    assert "tokens of text" in done.stdout
    rows = load_profiles(file)
    assert set(rows) == {"other", "tiny"}
    assert rows["tiny"].context_window == 8192
    assert (rows["tiny"].speculative_speedup or 0) >= 1
    assert "assuming that 75% of drafted tokens are kept" in rows["tiny"].source
    model = f"local:{model_folder}"
    router = Router(model=model, models_file=file, cache=False, embedding_model="none")
    decision = router.decide("Who wrote it?", ["Ada wrote it. " * 50])
    assert all(estimate.latency_s is not None and estimate.cost_usd == 0 for estimate in decision.estimates)
    unmeasured = Router(model=model, cache=False, embedding_model="none").profile_of(model)
    assert replace(unmeasured, as_of="", source="") == replace(
        router.profile_of(model),
        prefill_tokens_per_s=None,
        decode_tokens_per_s=None,
        overhead_s=None,
        speculative_speedup=None,
        as_of="",
        source="",
    )


def test_a_file_of_something_else_is_not_overwritten(model_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "models.json"
    file.write_text(json.dumps({"tiny": {"windows": 3}}))
    arguments = ["profile", str(model_folder), "--out", str(file), "--length", "32", "--new-tokens", "2"]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, ConfigError)
    assert json.loads(file.read_text()) == {"tiny": {"windows": 3}}
