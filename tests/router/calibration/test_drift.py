from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from longroute.policies.learned import INPUTS, LearnedWeights, WeightBelief
from longroute.router.calibration.drift import FEWEST, Drift, drift
from longroute.router.calibration.fit import update
from longroute.router.calibration.outcomes import Outcome
from longroute.router.core import Evidence, Features, ModelProfile, Task

TASKS: tuple[Task, ...] = ("lookup", "reasoning", "comparison", "unanswerable")
RIGHT = {"whole": 0.75, "parts": 0.6}
Rates = Callable[[str, Features], float]


def profile_of(model: str) -> ModelProfile:
    return ModelProfile(model, context_window=100_000)


def truth(strategy: str, features: Features) -> float:
    """`parts` is better where one place holds what is asked for."""
    assert features.evidence is not None
    return RIGHT[strategy] + 0.3 * (features.evidence.top_coverage - 0.5) * (strategy == "parts")


def outcomes(
    seed: int, cases: int, *, rate: Rates = truth, spread: float = 0.0, length: float = 11.0, share: int = 1
) -> list[Outcome]:
    """Judged answers to random questions by both strategies. share: cases to a group; spread: of a group's luck."""
    draws = np.random.default_rng(seed)
    found = []
    for case in range(cases):
        if case % share == 0:
            luck = draws.normal(0, spread)
        tasks = dict(zip(TASKS, draws.dirichlet(np.ones(4)).tolist(), strict=True))
        tokens = int(math.exp(draws.normal(length, 0.5)))
        shares = draws.uniform(0, 1, 2), draws.gamma(4, 5), draws.uniform(0, 1, 2), draws.uniform(0, 0.5)
        (coverage, top_coverage), top_score, (margin, entropy), spread_ = shares
        evidence = Evidence(coverage, top_coverage, top_score, margin, entropy, spread_)
        features = Features(tokens, 10, 0, 500, 0.0, 1, tokens / 1e5, tasks, evidence, "text", lara_task=tasks)
        for strategy in RIGHT:
            right = float(draws.uniform() < rate(strategy, features) + luck)
            found.append(Outcome(f"{seed}-{case}", f"{seed}-{case // share}", "m", strategy, right, features))
    return found


def fit(fitted: list[Outcome]) -> LearnedWeights:
    """Weights that do not know where the policy's logits start, so they are a little off, which is not drift."""
    size = len(INPUTS)
    scale = np.array([1.0] * 8 + [0.3, 0.3, 0.5, 0.3, 0.3, 0.15])
    center = np.array([0.0] * 8 + [0.5, 0.5, 3.0, 0.5, 0.5, 0.25])
    weights = LearnedWeights(center, scale, {}, {})
    beliefs = {}
    for strategy in {outcome.strategy for outcome in fitted}:
        own = of(strategy, fitted)
        rows, scores = np.array([weights.scaled(o.features) for o in own]), np.array([o.score for o in own])
        beliefs[strategy] = {"common": update(WeightBelief(np.zeros(size), 0.5 * np.eye(size)), rows, scores)}
    return replace(weights, beliefs=beliefs)


def of(strategy: str, given: list[Outcome]) -> list[Outcome]:
    return [outcome for outcome in given if outcome.strategy == strategy]


def check(fitted: list[Outcome], recent: list[Outcome]) -> Drift:
    return drift(fit(fitted), fitted, recent, profile_of)


@pytest.mark.parametrize(("share", "spread"), [(1, 0.0), (4, 0.15)])
def test_draws_from_one_source_raise_few_alarms(share: int, spread: float) -> None:
    """Any alarm at all in at most 5 % of 100 checks, with three standard errors of 100 draws."""
    draws, pool = np.random.default_rng(0), of("whole", outcomes(1, 600, share=share, spread=spread))
    groups = np.array([outcome.group for outcome in pool])
    names = np.unique(groups)
    alarms = 0
    for _ in range(100):
        order = draws.permutation(names)
        cut = 48 // share, 72 // share
        fitted, recent = (
            [pool[k] for k in np.flatnonzero(np.isin(groups, part))]
            for part in (order[: cut[0]], order[cut[0] : cut[1]])
        )
        alarms += bool(check(fitted, recent).moved)
    assert alarms / 100 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 100)


def test_a_strategy_that_became_worse_is_found_and_said() -> None:
    worse = outcomes(2, 90, rate=lambda strategy, f: truth(strategy, f) - 0.3 * (strategy == "parts"))
    found = check(outcomes(1, 200), worse)
    (shift,) = found.moved
    assert (shift.kind, shift.name, shift.outcomes) == ("score", "parts", 90)
    assert shift.interval[0] < -0.3 < shift.interval[1]
    assert shift.p <= shift.adjusted < 0.05
    assert found.verdict.startswith("Refit: parts answers are right ")
    assert "less often than predicted on 90 recent outcomes" in found.verdict


def test_a_strategy_that_became_better_is_found_too() -> None:
    found = check(outcomes(1, 200), outcomes(2, 90, rate=lambda strategy, f: 0.97))
    assert {shift.name for shift in found.moved} == set(RIGHT)
    assert "more often than predicted" in found.verdict


def test_longer_texts_are_found_and_no_refit_is_asked_for_while_scores_hold() -> None:
    found = check(outcomes(1, 200), outcomes(2, 90, length=11.7))
    assert {shift.name for shift in found.moved} == {f"{task} × length" for task in TASKS}
    assert all(shift.size > 0.3 for shift in found.moved)
    assert found.verdict.startswith("What is asked has changed")
    assert "Refit" not in found.verdict
    assert "scores have not moved as far as 180 outcomes could show" in found.verdict


def test_where_nothing_moved_the_verdict_says_what_could_have_been_seen() -> None:
    found = check(outcomes(1, 200), outcomes(2, 20))
    assert found.moved == ()
    assert found.verdict.startswith("Nothing moved that 40 outcomes could show; smallest shift that would be seen: ")


def test_more_outcomes_show_smaller_shifts() -> None:
    few, many = (
        next(s.visible for s in check(outcomes(1, 200), outcomes(2, n)).shifts if s.name == "parts") for n in (30, 120)
    )
    assert many < few


def test_a_shift_that_counts_as_visible_is_found_about_four_times_in_five() -> None:
    """From 0.64 to 0.36, so that the scores vary as much afterwards; 40 draws, with three standard errors."""
    size, visible, found = 0.28, [], 0
    for seed in range(40):
        fitted = of("whole", outcomes(2 * seed, 90, rate=lambda strategy, f: 0.5 + size / 2))
        recent = of("whole", outcomes(2 * seed + 1, 90, rate=lambda strategy, f: 0.5 - size / 2))
        checked = check(fitted, recent)
        visible.append(next(shift.visible for shift in checked.shifts if shift.name == "whole"))
        found += any(shift.name == "whole" for shift in checked.moved)
    assert np.mean(visible) == pytest.approx(size, abs=0.01)
    assert found / 40 == pytest.approx(0.8, abs=3 * math.sqrt(0.8 * 0.2 / 40))


@pytest.mark.parametrize("cases", [0, 1, FEWEST // 2 - 1])
def test_few_outcomes_tell_nothing_and_say_so(cases: int) -> None:
    found = check(outcomes(1, 100), outcomes(2, cases))
    assert found.shifts == found.moved == ()
    assert found.verdict.startswith(f"Cannot tell: {2 * cases} recent outcomes")


def test_many_outcomes_on_few_documents_tell_nothing() -> None:
    found = check(outcomes(1, 100), outcomes(2, 80, share=20))
    assert found.verdict.startswith("Cannot tell: 160 recent outcomes on 4 groups of documents")


def test_a_strategy_with_few_outcomes_is_left_out_by_name() -> None:
    recent = [o for k, o in enumerate(outcomes(2, 60)) if o.strategy == "whole" or k < 10]
    found = check(outcomes(1, 100), recent)
    assert [shift.name for shift in found.shifts if shift.kind == "score"] == ["whole"]
    assert "Cannot tell: 5 recent outcomes of parts" in found.verdict


def test_a_strategy_that_was_never_fitted_is_left_out_by_name() -> None:
    recent = [replace(outcome, strategy="other") for outcome in outcomes(2, 60)]
    found = check(outcomes(1, 100), recent)
    assert {shift.kind for shift in found.shifts} == {"input"}
    assert found.untold[0].startswith("0 recent outcomes of other that the policy can predict")


def test_unbroken_success_is_no_alarm_where_success_is_usual() -> None:
    """Twenty right answers in a row have no variance; taken at its word, that would be certainty."""
    fitted = outcomes(1, 300, rate=lambda strategy, f: 0.95)
    recent = outcomes(2, 20, rate=lambda strategy, f: 1.0)
    assert [shift for shift in check(fitted, recent).moved if shift.kind == "score"] == []


def test_inputs_that_never_vary_are_compared_without_a_warning() -> None:
    fitted, recent = (
        [replace(o, features=replace(o.features, evidence=None)) for o in outcomes(seed, 60, rate=lambda s, f: 0.7)]
        for seed in (1, 2)
    )
    assert all(math.isfinite(shift.size) and 0 <= shift.p <= 1 for shift in check(fitted, recent).shifts)
    assert any(shift.kind == "input" for shift in check(fitted, outcomes(3, 60)).shifts)


def test_outcomes_repeated_within_a_group_count_no_more_than_one() -> None:
    """Every case three times over: the same evidence, so no smaller p-value."""
    fitted, recent = outcomes(1, 100), outcomes(2, 60, rate=lambda s, f: truth(s, f) - 0.1)
    weights = fit(fitted)
    once = {s.name: s.p for s in drift(weights, fitted, recent, profile_of).shifts}
    thrice = {s.name: s.p for s in drift(weights, fitted * 3, recent * 3, profile_of).shifts}
    assert all(thrice[name] == pytest.approx(once[name], rel=0.2) for name in once)


def test_where_no_shift_could_be_seen_the_verdict_names_none() -> None:
    """Five documents, on each of which all answers are right or all are wrong."""
    recent = [replace(o, score=float(o.group[-1] in "024")) for o in outcomes(2, 25, share=5)]
    found = check(outcomes(1, 100), recent)
    assert all(shift.visible > 1 for shift in found.shifts if shift.kind == "score")
    assert {"parts none", "whole none"} == set(found.verdict.rpartition(": ")[2].removesuffix(".").split(", "))
