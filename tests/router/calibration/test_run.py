from __future__ import annotations

import asyncio
import importlib.util
import json
import resource
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from longroute.router.backends.scripted import Scripted
from longroute.router.calibration.dataset import Case, Dataset, dataset
from longroute.router.calibration.outcomes import Outcome, read_outcomes
from longroute.router.calibration.partitions import run_on_ray
from longroute.router.calibration.run import Options, Summary, header_path, run
from longroute.router.core import Call, Document, Reply, Usage
from longroute.router.errors import BackendRejected, BackendUnavailable, CalibrationError, ConfigError
from longroute.router.settings import load_settings
from longroute.tests.router.fakes import Chain

SETTINGS = load_settings(embedding_model="none", cache=False, max_output_tokens=100)
OPTIONS = Options(strategies=("full", "rag"), models=("gpt-4o",))
NAMES = "Ada", "Brage", "Cleo", "Dora", "Emil"
CASES = dataset(
    [
        Case(name, f"Who lives with {name}?", (Document(f"Zoe lives with {name}."),), (name,), "lookup", "contains", "")
        for name in NAMES
    ]
)
KEYS = [(name, "gpt-4o", strategy) for name in NAMES for strategy in ("full", "rag")]


def echo(call: Call) -> Reply:
    return Reply(call.question, Usage(prompt_tokens=90, completion_tokens=10), model=call.model)


def go(
    out: Path,
    script: Callable[[Call], str | Reply] = echo,
    options: Options = OPTIONS,
    cases: Dataset = CASES,
) -> Summary:
    return asyncio.run(run(cases, SETTINGS, options, out, backend=Scripted(script)))


def keys(out: Path) -> list[tuple[str, str, str]]:
    return sorted(outcome.key for outcome in read_outcomes([out]))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results" / "outcomes.jsonl"


def test_every_case_is_answered_with_every_strategy_and_scored(out: Path) -> None:
    summary = go(out)
    assert (summary.total, summary.done, summary.left, summary.failed, summary.stopped) == (10, 10, 0, 0, "")
    assert keys(out) == KEYS
    for outcome in read_outcomes([out]):
        assert (outcome.score, outcome.status, outcome.prompt_tokens, outcome.completion_tokens) == (1.0, "ok", 90, 10)
        assert outcome.features.document_tokens > 0
        assert outcome.cost_usd == pytest.approx(90 * 2.5e-6 + 10 * 10e-6)
    assert summary.tokens == 1000
    assert float(summary.cost_usd) == pytest.approx(10 * (90 * 2.5e-6 + 10 * 10e-6))


def test_one_at_a_time_the_order_is_that_of_the_cases_and_calls_are_at_the_temperature(out: Path) -> None:
    backend = Scripted(echo)
    options = replace(OPTIONS, concurrency=1, temperature=0.25)
    asyncio.run(run(CASES, SETTINGS, options, out, backend=backend))
    assert [outcome.key for outcome in read_outcomes([out])] == KEYS
    assert {call.temperature for call in backend.calls} == {0.25}


def test_running_again_does_nothing_twice(out: Path) -> None:
    go(out)
    before = out.read_bytes()
    backend = Scripted([])
    summary = asyncio.run(run(CASES, SETTINGS, OPTIONS, out, backend=backend))
    assert (backend.calls, out.read_bytes(), summary.done) == ([], before, 10)


def test_a_limit_holds_where_every_reply_asks_for_the_whole_text(out: Path) -> None:
    text = " ".join(f"House {number} on the northern road is let to nobody." for number in range(3000))
    cases = dataset([Case("far", "Who lives in house 7?", (Document(text),), ("Ada",), "lookup", "contains", "")])

    def refuse(call: Call) -> Reply:
        shown = sum(len(message.content) for message in call.messages) // 4
        return Reply("The documents do not contain the answer.", Usage(shown, 0, 10), model=call.model)

    options = replace(OPTIONS, strategies=("self_route",))
    unlimited = go(out, refuse, options, cases).tokens
    assert unlimited > len(text) / 4, "both calls were made"
    limited = go(out.with_name("limited.jsonl"), refuse, replace(options, max_tokens=unlimited - 1), cases)
    assert limited.tokens == 0 and limited.stopped


@pytest.mark.parametrize("lost_bytes", [1, 2, 40, 10**6])
def test_a_torn_file_is_mended_and_completed(out: Path, lost_bytes: int) -> None:
    go(out)
    out.write_bytes(out.read_bytes()[:-lost_bytes])
    go(out)
    assert keys(out) == KEYS


def test_failures_are_outcomes_until_they_are_to_be_tried_again(out: Path) -> None:
    def refuse_ada(call: Call) -> Reply:
        if "Ada" in call.question:
            raise BackendRejected("The server refused this.", status=400)
        return echo(call)

    summary = go(out, refuse_ada)
    assert (summary.done, summary.failed) == (10, 2)
    failed = [outcome for outcome in read_outcomes([out]) if outcome.status == "failed"]
    assert {(o.case_id, o.score, o.error) for o in failed} == {
        ("Ada", 0.0, "BackendRejected: The server refused this.")
    }
    assert go(out).failed == 2
    again = go(out, options=replace(OPTIONS, retry_failed=True))
    assert (again.done, again.failed) == (10, 0)
    assert keys(out) == KEYS


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> None:
    from longroute.router import assemble

    monkeypatch.setattr(assemble, "_STRATEGIES", {**assemble._STRATEGIES, "chain": lambda parts: Chain()})


@pytest.mark.usefixtures("chain")
def test_every_call_of_a_strategy_counts_and_those_before_a_failure_too(out: Path) -> None:
    def refuse_ada(call: Call) -> Reply:
        if call.final and "Ada" in call.question:
            raise BackendRejected("The server refused this.", status=400)
        return echo(call)

    summary = go(out, refuse_ada, replace(OPTIONS, strategies=("chain",)))
    outcomes = {outcome.case_id: outcome for outcome in read_outcomes([out])}
    for name, status, calls in (("Emil", "ok", 4), ("Ada", "failed", 3)):
        taken = outcomes[name]
        assert (taken.status, taken.prompt_tokens, taken.completion_tokens) == (status, 90 * calls, 10 * calls)
        assert taken.cost_usd == pytest.approx(calls * (90 * 2.5e-6 + 10 * 10e-6))
    assert summary.tokens == 4 * 400 + 300


@pytest.mark.usefixtures("chain")
def test_a_limit_makes_room_for_every_call_of_a_plan(out: Path) -> None:
    summary = go(out, options=replace(OPTIONS, strategies=("chain",), max_tokens=1200))
    assert (summary.done, summary.tokens) == (0, 0) and "max_tokens = 1,200" in summary.stopped
    assert go(out, options=replace(OPTIONS, strategies=("chain",), max_tokens=5000)).done == 5


def test_a_text_beyond_the_window_is_a_failed_outcome_with_features(out: Path) -> None:
    long = dataset([replace(CASES.cases[0], documents=(Document("Zoe lives with Ada. " * 40_000),))])
    go(out, cases=long)
    by_strategy = {outcome.strategy: outcome for outcome in read_outcomes([out])}
    assert by_strategy["rag"].status == "ok"
    assert by_strategy["full"].status == "failed"
    assert by_strategy["full"].features.window_ratio > 1


def test_a_server_that_is_down_stops_the_run(out: Path) -> None:
    def down(call: Call) -> Reply:
        raise BackendUnavailable("Nobody is there.")

    with pytest.raises(CalibrationError, match=r"10 calls in a row failed.*Nobody is there.*--retry-failed"):
        go(out, down, replace(OPTIONS, concurrency=1))
    assert go(out, options=replace(OPTIONS, retry_failed=True)).failed == 0
    assert keys(out) == KEYS


def test_an_error_of_ours_ends_the_run_and_keeps_what_was_paid_for(out: Path) -> None:
    def break_down(call: Call) -> Reply:
        if "Cleo" in call.question:
            raise RuntimeError("a bug")
        return echo(call)

    with pytest.raises(RuntimeError, match="a bug"):
        go(out, break_down)
    assert len(keys(out)) >= 3
    go(out)
    assert keys(out) == KEYS


def test_interrupting_keeps_what_was_done(out: Path) -> None:
    async def interrupted() -> None:
        enough = asyncio.Event()

        def progress(summary: Summary) -> None:
            if summary.done >= 3:
                enough.set()

        backend = Scripted(echo, latency_s=0.01)
        options = replace(OPTIONS, concurrency=2)
        task = asyncio.create_task(run(CASES, SETTINGS, options, out, backend=backend, on_progress=progress))
        await enough.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(interrupted())
    assert 3 <= len(keys(out)) < 10
    go(out)
    assert keys(out) == KEYS


def test_a_full_disk_leaves_whole_lines_and_the_run_goes_on_later(out: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
        with pytest.raises(CalibrationError, match=r"Cannot write to .*File too large"):
            go(out, options=replace(OPTIONS, concurrency=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 0 < len(keys(out)) < 10
    go(out)
    assert keys(out) == KEYS


def test_the_token_limit_holds_over_runs_and_says_what_is_left(out: Path) -> None:
    # A call takes 100 tokens, and is reckoned with at most about 250.
    summary = go(out, options=replace(OPTIONS, max_tokens=500))
    assert 0 < summary.tokens <= 500
    assert summary.left > 0
    assert "max_tokens = 500" in summary.stopped
    again = go(out, options=replace(OPTIONS, max_tokens=500))
    assert again.done == summary.done
    assert go(out, options=replace(OPTIONS, max_tokens=5000)).left == 0
    assert keys(out) == KEYS


def test_the_money_limit_holds_and_needs_prices(out: Path) -> None:
    limit = Decimal("0.003")
    summary = go(out, options=replace(OPTIONS, max_cost_usd=limit))
    assert Decimal(0) < summary.cost_usd <= limit
    assert summary.left > 0
    with pytest.raises(CalibrationError, match="that of 'nobody-knows-it' is unknown"):
        go(out, options=replace(OPTIONS, models=("nobody-knows-it",), max_cost_usd=limit))


def test_the_judge_scores_and_what_it_leaves_open_is_reported(out: Path) -> None:
    def judged(call: Call) -> Reply:
        if call.purpose != "judge":
            return echo(call)
        said = {"Ada": "CORRECT", "Brage": "INCORRECT"}
        return Reply(next((word for name, word in said.items() if name in call.question), "Well..."), Usage(7, 0, 3))

    summary = go(out, judged, replace(OPTIONS, judge="gpt-4o-mini"))
    outcomes = {outcome.key: outcome for outcome in read_outcomes([out])}
    assert [outcomes[name, "gpt-4o", "rag"].score for name in NAMES] == [1.0, 0.0, 1.0, 1.0, 1.0]
    assert outcomes["Cleo", "gpt-4o", "rag"].error == "scored by contains: the judge gave no verdict"
    assert summary.unjudged == 6
    assert summary.tokens == 10 * 110


def test_a_file_made_from_something_else_is_refused(out: Path) -> None:
    go(out)
    before = out.read_bytes()
    other = dataset([replace(case, scorer="exact") for case in CASES.cases])
    with pytest.raises(CalibrationError, match=r"dataset was .*; scorers was \['contains'\] and is \['exact'\]"):
        go(out, cases=other)
    with pytest.raises(CalibrationError, match=r"temperature was 0\.0 and is 1\.0"):
        go(out, options=replace(OPTIONS, temperature=1.0))
    assert out.read_bytes() == before
    assert go(out, options=replace(OPTIONS, models=("gpt-4o", "gpt-4o-mini"))).done == 20  # more models are welcome
    header_path(out).unlink()
    with pytest.raises(CalibrationError, match="cannot be read"):
        go(out)


def test_the_side_file_holds_neither_text_nor_key(out: Path) -> None:
    settings = load_settings(embedding_model="none", cache=False, api_key="a-secret", base_url="http://user:pw@host/v1")
    asyncio.run(run(CASES, settings, OPTIONS, out, backend=Scripted(echo)))
    text = header_path(out).read_text()
    assert set(json.loads(text)) >= {"longroute", "dataset", "judge", "temperature"}
    assert not [word for word in ("a-secret", "pw@host", "Zoe") if word in text]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (replace(OPTIONS, strategies=()), CalibrationError),
        (replace(OPTIONS, models=()), CalibrationError),
        (replace(OPTIONS, concurrency=0), CalibrationError),
        (replace(OPTIONS, strategies=("magic",)), ConfigError),
    ],
)
def test_options_that_cannot_work_are_refused(out: Path, options: Options, error: type[Exception]) -> None:
    with pytest.raises(error):
        go(out, options=options)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install ray")
def test_two_workers_on_ray_find_what_one_process_finds(out: Path) -> None:
    options = replace(OPTIONS, models=("extractive",))
    asyncio.run(run(CASES, SETTINGS, options, out))
    alone = {outcome.key: _lasting(outcome) for outcome in read_outcomes([out])}
    # Half is there already, and a killed run has left a part behind.
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:5]))
    out.with_name(f"{out.name}.part-1").write_text(lines[5] + lines[6][:50])
    heard: list[Summary] = []
    summary = run_on_ray(CASES, SETTINGS, options, out, workers=2, on_progress=heard.append)
    assert (summary.done, summary.left) == (10, 0)
    assert heard[0].done == 10  # the workers did it all, and nothing was left to do after them
    assert {outcome.key: _lasting(outcome) for outcome in read_outcomes([out])} == alone
    assert len(keys(out)) == 10
    assert not list(out.parent.glob("*.part-*"))


def _lasting(outcome: Outcome) -> Outcome:
    return replace(outcome, latency_s=None)
