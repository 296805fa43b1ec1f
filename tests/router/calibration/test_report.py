"""The numbers of a report: what they mean, what is left out, and that small or odd data never break them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longroute.policies.risk_controlled import Guarantee
from longroute.router.calibration.report import Evaluation, measure
from longroute.router.calibration.risk import RiskPoint
from longroute.router.errors import CalibrationError


def evaluation(score: Any, **changes: Any) -> Evaluation:
    """Rows of their own documents, answered with `full` (10,000 tokens), `rag` (1,000) and more strategies."""
    score = np.asarray(score, dtype=float)
    n, s = score.shape
    predicted = np.full((n, s), 0.6)
    values: dict[str, Any] = {
        "strategies": ["full", "rag", "compressed", "chain_of_agents"][:s],
        "ids": [f"case-{row}" for row in range(n)],
        "groups": [f"document-{row}" for row in range(n)],
        "models": ["small"] * n,
        "tasks": ["lookup"] * n,
        "lengths": np.full(n, 10_000.0),
        "score": score,
        "tokens": np.tile([10_000.0, 1_000.0, 5_000.0, 12_000.0][:s], (n, 1)),
        "predicted": predicted,
        "intervals": np.stack([predicted - 0.2, predicted + 0.2], axis=-1),
        "chosen": {"quality": np.zeros(n, dtype=np.int64), "cheap": np.ones(n, dtype=np.int64)},
    }
    return Evaluation(**{**values, **changes})


def options(part: Mapping[str, Any]) -> dict[str, Any]:
    return {option["name"]: option for option in part["options"]}


MIXED = [[1, 0], [1, 1], [0, 1], [1, 0], [0, 0], [1, 1], [1, 0], [0, 1], [1, 1], [1, 1]]


def test_every_option_is_measured_on_the_same_rows() -> None:
    best = np.array([0, 1, 1, 0, 1, 1, 0, 1, 1, 1])
    numbers = measure(evaluation(MIXED, chosen={"balanced": best}))
    found = options(numbers["overall"])
    assert found["always full"]["quality"]["value"] == pytest.approx(0.7)
    assert found["always rag"]["quality"]["value"] == pytest.approx(0.6)
    assert found["random choice"]["quality"]["value"] == pytest.approx(0.65)
    assert found["oracle"]["quality"]["value"] == pytest.approx(0.9)
    router = found["balanced"]
    assert router["gain"]["value"] == pytest.approx(0.2)
    assert router["gap_share"]["value"] == pytest.approx(1.0)
    assert router["regret"]["value"] == 0
    assert router["tokens"] == pytest.approx(3_700)
    assert router["token_share"] == pytest.approx(0.37)
    assert router["mcnemar"] == {"won": 2, "lost": 0, "p": 0.5}


def test_the_best_single_strategy_is_each_models_own() -> None:
    score = [[1, 0]] * 4 + [[0, 1]] * 4
    numbers = measure(evaluation(score, models=["strong"] * 4 + ["weak"] * 4))
    assert options(numbers["overall"])["best single"]["quality"]["value"] == 1.0
    weak = numbers["slices"]["model"][1]
    assert weak["name"] == "weak"
    assert options(weak)["always full"]["gain"]["value"] == -1.0


def test_a_router_that_does_as_the_best_single_gains_nothing_for_certain() -> None:
    assert options(measure(evaluation(MIXED))["overall"])["quality"]["gain"] == {"value": 0.0, "interval": None}


def test_tasks_and_lengths_are_told_apart() -> None:
    lengths = np.array([100.0, 8_000, 31_999, 32_000, 100_000, 200_000])
    numbers = measure(evaluation([[1, 0]] * 6, lengths=lengths, tasks=["lookup", "summary", ""] * 2))
    assert [(part["name"], part["rows"]) for part in numbers["slices"]["task"]] == [
        ("lookup", 2),
        ("summary", 2),
        ("unknown", 2),
    ]
    assert [(part["name"], part["rows"]) for part in numbers["slices"]["length"]] == [
        ("under 8k", 1),
        ("8k to 32k", 2),
        ("32k to 64k", 1),
        ("64k to 128k", 1),
        ("128k and more", 1),
    ]


def test_dollars_are_the_cost_where_all_are_known_and_tokens_where_not() -> None:
    cost = np.tile([0.10, 0.01], (10, 1))
    priced = measure(evaluation(MIXED, cost=cost))
    assert priced["frontier"]["unit"] == "usd"
    assert options(priced["overall"])["cheap"]["cost_usd"] == pytest.approx(0.01)
    for unknown in (np.where(np.eye(10, 2) > 0, np.nan, cost), np.zeros((10, 2))):
        numbers = measure(evaluation(MIXED, cost=unknown))
        assert numbers["frontier"]["unit"] == "tokens"
        assert any("tokens stand for them" in note for note in numbers["notes"])


def test_the_frontier_holds_the_router_at_every_price() -> None:
    predicted = np.asarray(MIXED) * 0.5 + 0.25  # knows the outcomes
    frontier = measure(evaluation(MIXED, predicted=predicted))["frontier"]
    assert frontier["router"][0] == [1_000, 0.6]  # at a prohibitive price always the cheaper
    assert max(quality for _, quality in frontier["router"]) == pytest.approx(0.9)
    assert frontier["hull"] == [[1_000, 0.6], [10_000, 0.7]]
    assert frontier["aiq"]["single"]["value"] == pytest.approx(0.65)
    assert frontier["aiq"]["router"]["value"] > 0.85


def test_the_strong_route_is_the_one_that_reads_most() -> None:
    predicted = np.asarray(MIXED) * 0.5 + 0.25
    calls = measure(evaluation(MIXED, predicted=predicted))["strong_calls"]
    assert (calls["weak"], calls["strong"]) == ("rag", "full")
    [row] = calls["rows"]
    assert row["pgr"]["quality"]["value"] == 1.0
    assert row["cpt"]["80"]["value"] < 0.1
    assert row["apgr"]["value"] > 1


def test_a_route_that_is_not_stronger_leaves_pgr_undefined_with_the_reason() -> None:
    [row] = measure(evaluation([[0, 1]] * 4))["strong_calls"]["rows"]
    assert row["apgr"] == {"value": None, "why": "the strong route is not stronger"}


def test_calibration_is_measured_for_each_strategy_where_it_was_predicted() -> None:
    predicted = np.column_stack([np.full(10, 0.7), np.full(10, np.nan)])
    numbers = measure(evaluation(MIXED, predicted=predicted))
    full, rag = numbers["calibration"]
    assert full["ece"] == pytest.approx(0)
    assert full["brier"] == pytest.approx(0.21)
    [only] = full["bins"]
    assert (only["predicted"], only["observed"], only["rows"]) == (pytest.approx(0.7), pytest.approx(0.7), 10)
    assert rag == {"strategy": "rag", "rows": 0}
    assert any("rag was not predicted on 10 of 10 rows" in note for note in numbers["notes"])


def test_the_most_regretted_are_the_surest_of_the_worst_one_for_each_case() -> None:
    n = 14
    predicted = np.column_stack([np.linspace(0.5, 0.9, n), np.full(n, 0.5)])
    made = evaluation(
        [[0.0, 1.0]] * n,
        ids=["same", "same", *(f"case-{row}" for row in range(2, n))],
        predicted=predicted,
        reasons={"quality": [(f"reason {row}",) for row in range(n)]},
    )
    regretted = measure(made)["regretted"]
    assert regretted["prefer"] == "quality"
    assert [row["id"] for row in regretted["rows"]] == [f"case-{row}" for row in range(13, 3, -1)]
    first = regretted["rows"][0]
    assert first["regret"] == 1.0
    assert first["chosen"]["strategy"] == "full"
    assert first["better"] == {"strategy": "rag", "score": 1.0, "predicted": 0.5, "interval": [0.4, 0.8]}
    assert first["reasons"] == ["reason 13"]
    assert len(measure(replace(made, ids=["same"] * n))["regretted"]["rows"]) == 1


def test_decisions_that_lost_nothing_are_not_regretted() -> None:
    assert measure(evaluation([[1, 0]] * 4))["regretted"]["rows"] == []


def test_the_guarantee_comes_with_its_assumption_and_its_curve() -> None:
    guarantee = Guarantee("difference", 0.02, 0.1, "request", 500, ("full", "rag"), ("small",), 0.04, 0.01)
    curve = [RiskPoint(0.04, 0.01, 0.7, 0.3, 0.2, 0.01), RiskPoint(0.0, 0.0, 0.7, 1.0, 1.0, 0.001)]
    risk = measure(evaluation(MIXED, risk=(guarantee, curve)))["risk"]
    assert risk["statement"] == guarantee.statement
    assert risk["assumption"] == guarantee.assumption
    assert risk["threshold"] == 0.04
    assert [point["threshold"] for point in risk["curve"]] == [0.0, 0.04]


# ---- small and odd data ----------------------------------------------------------------------------------------------


def test_rows_without_every_score_are_left_out_and_counted() -> None:
    score = np.array(MIXED, dtype=float)
    score[0, 1] = np.nan
    numbers = measure(evaluation(score))
    assert numbers["rows"] == 9
    assert "1 of 10 rows are left out: not every strategy was scored on them." in numbers["notes"]


def test_a_strategy_that_was_hardly_run_is_left_out_rather_than_the_rows() -> None:
    score = np.column_stack([np.array(MIXED, dtype=float), np.full(10, np.nan)])[:, [0, 2, 1]]
    score[0, 1] = 1.0
    chosen = {"quality": np.array([1] + [0] * 4 + [2] * 5)}
    made = evaluation(score, strategies=["full", "compressed", "rag"], chosen=chosen)
    numbers = measure(made)
    assert numbers["strategies"] == ["full", "rag"]
    assert numbers["rows"] == 9
    assert "compressed is left out: it was scored on 1 of 10 rows." in numbers["notes"]
    found = options(numbers["overall"])
    assert found["quality"]["quality"]["value"] == pytest.approx(6 / 9)


def test_no_complete_row_is_an_error_that_says_what_to_do() -> None:
    score = np.array([[1.0, np.nan], [np.nan, 0.0]])
    with pytest.raises(CalibrationError, match=r"None of 2 rows.*Run the missing strategies"):
        measure(evaluation(score))
    with pytest.raises(CalibrationError, match="None of 0 rows"):
        measure(evaluation(np.empty((0, 2))))


def test_one_class_only_gives_wide_intervals_and_says_so() -> None:
    numbers = measure(evaluation([[1, 1]] * 10))
    low, high = options(numbers["overall"])["always full"]["quality"]["interval"]
    assert low < 0.7
    assert high == 1.0
    assert any("cannot tell the strategies apart" in note for note in numbers["notes"])
    assert any("Only 10 groups of documents" in note for note in numbers["notes"])
    assert "oracle is no better" in options(numbers["overall"])["cheap"]["gap_share"]["why"]


def test_arrays_of_another_shape_are_named() -> None:
    with pytest.raises(CalibrationError, match=r"tokens has shape \(10, 3\)"):
        evaluation(MIXED, tokens=np.ones((10, 3)))
    with pytest.raises(CalibrationError, match="tasks has shape"):
        evaluation(MIXED, tasks=["lookup"])
    with pytest.raises(CalibrationError, match=r"outside 0\.\.1"):
        evaluation(MIXED, chosen={"cheap": np.full(10, 2)})
    with pytest.raises(CalibrationError, match=r"leave \[0, 1\]"):
        evaluation(np.array(MIXED) * 100)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_any_evaluation_becomes_json_without_nan_and_repeats(n: int, s: int, seed: int) -> None:
    rng = np.random.default_rng(seed)

    def holed(values: Any, share: float) -> Any:
        return np.where(rng.random(values.shape) < share, np.nan, values)

    predicted = holed(rng.random((n, s)), 0.2)
    made = evaluation(
        holed(rng.integers(0, 2, (n, s)).astype(float), 0.1),
        tokens=rng.integers(0, 3, (n, s)) * 1000.0,
        cost=holed(rng.random((n, s)), 0.02),
        predicted=predicted,
        intervals=np.stack([predicted, predicted], axis=-1),
        groups=[f"document-{k}" for k in rng.integers(0, 4, n)],
        models=[f"model-{k}" for k in rng.integers(0, 2, n)],
        chosen={"balanced": rng.integers(0, s, n)},
    )
    try:
        numbers = measure(made, resamples=50)
    except CalibrationError:
        return
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    assert measure(made, resamples=50) == numbers
    for option in numbers["overall"]["options"]:
        low, high = option["quality"]["interval"] or (0.0, 1.0)
        assert low - 1e-6 <= option["quality"]["value"] <= high + 1e-6
