from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from longroute.router.assemble import Router
from longroute.router.errors import ConfigError
from longroute.router.models import load_profiles
from longroute.router.runner.cli import app
from longroute.router.runner.local_model import LocalModel, LocalOptions
from longroute.router.runner.profile import measure, speed


@pytest.fixture(scope="module")
def tiny(model_folder: Path) -> LocalModel:
    return LocalModel.load(model_folder, LocalOptions("cpu"))


def test_each_length_is_measured_and_nothing_is_reused(tiny: LocalModel) -> None:
    before = tiny.engine.metrics().reused_tokens
    measured = list(measure(tiny, [64, 32], new_tokens=3))
    assert [one.prompt_tokens for one in measured] == [32, 64]
    assert all(one.prefill_tokens_per_s > 0 and one.decode_tokens_per_s > 0 for one in measured)
    summary = speed(tiny, measured)
    assert min(one.prefill_tokens_per_s for one in measured) <= summary.prefill_tokens_per_s
    assert summary.overhead_s > 0
    assert tiny.engine.metrics().reused_tokens - before < 10


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
