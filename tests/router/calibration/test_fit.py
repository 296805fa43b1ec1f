from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longroute.policies.learned import INPUTS, TASKS, Floats, Learned, LearnedWeights, WeightBelief, shipped
from longroute.router.calibration.fit import FEWEST, adapt, nested, train, update
from longroute.router.calibration.outcomes import Outcome
from longroute.router.core import Evidence, Features, ModelProfile, Tier
from longroute.router.errors import CalibrationError

TIERS: dict[str, Tier] = {"strong": "large", "stronger": "large", "weak": "small"}
TRUE_WEIGHTS = np.array([1.0, -2.0, 0.5])


def profile_of(model: str) -> ModelProfile:
    return ModelProfile(model, 128_000, tier=TIERS.get(model, "unknown"))


def some_features(rng: np.random.Generator) -> Features:
    low, high = (0.6, 0.15, 8, 0.0, 0.05, 0.0), (1.0, 0.85, 30, 0.35, 0.8, 0.35)  # where LaRA's evidence lies
    evidence = Evidence(*rng.uniform(low, high).tolist())
    shares = dict(zip(TASKS, rng.dirichlet(np.full(4, 0.3)).tolist(), strict=True))
    tokens = int(rng.uniform(8_000, 128_000))
    return Features(tokens, 20, 0, 1024, 0.0, 1, tokens / 128_000, shares, evidence, "text", lara_task=shares)


def chance(features: Features) -> float:
    """The truth of these tests: right where the words of the question stand together, and wrong where they do not."""
    assert features.evidence
    return 0.9 if features.evidence.top_coverage > 0.5 else 0.2


def drawn(
    n: int,
    *,
    seed: int = 0,
    model: str = "own-model",
    strategy: str = "rag",
    truth: Callable[[Features], float] = chance,
) -> list[Outcome]:
    rng = np.random.default_rng(seed)
    rows = [some_features(rng) for _ in range(n)]
    return [
        Outcome(f"case-{i}", f"group-{i % 7}", model, strategy, float(rng.random() < truth(f)), f)
        for i, f in enumerate(rows)
    ]


def error(weights: LearnedWeights, model: str = "own-model", strategy: str = "rag") -> float:
    """Mean absolute error of P(correct) on cases that no fit has seen."""
    policy, profile = Learned(weights), profile_of(model)
    found = []
    for outcome in drawn(300, seed=99):
        belief = policy.quality(outcome.features, profile, strategy)
        assert belief
        found.append(abs(belief.mean - chance(outcome.features)))
    return float(np.mean(found))


def mean_and_deviation(weights: LearnedWeights, outcomes: Sequence[Outcome]) -> tuple[float, float]:
    """Of P(correct), averaged over the outcomes' cases."""
    first = outcomes[0]
    beliefs = [Learned(weights).quality(o.features, profile_of(first.model), first.strategy) for o in outcomes]
    known = [belief for belief in beliefs if belief]
    assert len(known) == len(beliefs)
    return float(np.mean([b.mean for b in known])), float(np.mean([b.variance**0.5 for b in known]))


# ---- update ----------------------------------------------------------------------------------------------------------


def normal(mean: Sequence[float] | Floats, deviation: float) -> WeightBelief:
    return WeightBelief(np.array(mean, dtype=float), deviation**2 * np.eye(len(mean)))


def logistic(n: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Rows with an intercept, and the true chance of each."""
    rng = np.random.default_rng(seed)
    rows = np.column_stack([np.ones(n), rng.normal(size=(n, len(TRUE_WEIGHTS) - 1))])
    return rows, 1 / (1 + np.exp(-rows @ TRUE_WEIGHTS))


def test_an_update_recovers_the_weights_that_made_the_data() -> None:
    rows, chances = logistic(5_000)
    scores = (np.random.default_rng(1).random(5_000) < chances).astype(float)
    after = update(normal(np.zeros(3), 3.0), rows, scores)
    assert after.mean == pytest.approx(TRUE_WEIGHTS, abs=0.15)
    doubts = np.sqrt(np.diag(after.covariance))
    assert (np.abs(after.mean - TRUE_WEIGHTS) < 4 * doubts).all()


def test_soft_labels_are_as_good_as_many_hard_ones() -> None:
    rows, chances = logistic(500)
    assert update(normal(np.zeros(3), 30.0), rows, chances).mean == pytest.approx(TRUE_WEIGHTS, abs=0.01)
    hard = update(normal(np.zeros(3), 1.0), np.repeat(rows[:20], 10, axis=0), np.tile([1.0] * 3 + [0.0] * 7, 20))
    soft = update(normal(np.zeros(3), 1.0), rows[:20], np.full(20, 0.3), weight=10)
    assert soft.mean == pytest.approx(hard.mean, abs=1e-6)
    assert soft.covariance == pytest.approx(hard.covariance, abs=1e-6)


def test_an_offset_counts_as_a_part_of_the_logit_that_needs_no_learning() -> None:
    rows, chances = logistic(400)
    with_offsets = update(normal(np.zeros(3), 0.5), rows, chances, rows @ TRUE_WEIGHTS)
    assert with_offsets.mean == pytest.approx(np.zeros(3), abs=1e-6)
    moved = update(normal(TRUE_WEIGHTS, 0.5), rows, 1 - chances)
    assert update(normal(np.zeros(3), 0.5), rows, 1 - chances, rows @ TRUE_WEIGHTS).mean == pytest.approx(
        moved.mean - TRUE_WEIGHTS, abs=1e-5
    )


def test_doubt_shrinks_as_outcomes_come_in() -> None:
    rows, chances = logistic(4_000)
    prior = normal(np.zeros(3), 1.0)
    doubts = [np.trace(update(prior, rows[:n], chances[:n]).covariance) for n in (0, 10, 100, 1_000, 4_000)]
    assert doubts == sorted(doubts, reverse=True)
    assert doubts[-1] < doubts[0] / 100


def test_without_data_the_prior_stays() -> None:
    prior = normal([1.0, -4.0, 0.0], 0.7)
    after = update(prior, np.zeros((0, 3)), np.zeros(0))
    assert after.mean == pytest.approx(prior.mean)
    assert after.covariance == pytest.approx(prior.covariance)


@settings(max_examples=40, deadline=None)
@given(st.floats(-30, 30), st.floats(0, 1), st.integers(1, 3_000), st.floats(0.1, 2))
def test_an_update_ends_at_the_mode_from_any_start(start: float, rate: float, n: int, deviation: float) -> None:
    rows, _ = logistic(n)
    scores = np.full(n, rate)
    prior = normal([start, 0.0, 0.0], deviation)
    after = update(prior, rows, scores)
    expected = 1 / (1 + np.exp(-rows @ after.mean))
    slope = (after.mean - prior.mean) / deviation**2 + rows.T @ (expected - scores)
    assert np.abs(slope).max() < 1e-3 * n + 1e-3


def test_a_confident_prior_gives_way_to_many_outcomes_that_say_otherwise() -> None:
    rows = np.ones((2_000, 1))
    scores = np.zeros(2_000)
    scores[:400] = 1
    after = update(normal([3.0], 0.7), rows, scores)
    assert 1 / (1 + np.exp(-after.mean[0])) == pytest.approx(0.2, abs=0.02)


# ---- train -----------------------------------------------------------------------------------------------------------


def trained_on(outcomes: Sequence[Outcome]) -> LearnedWeights:
    return train(outcomes, profile_of, trained={"source": "a test"})


@pytest.fixture(scope="module")
def two_models() -> list[Outcome]:
    strong = [o for s in ("full", "rag") for o in drawn(300, model="strong", strategy=s, truth=lambda f: 0.9)]
    return strong + [o for s in ("full", "rag") for o in drawn(300, model="weak", strategy=s, truth=lambda f: 0.3)]


def test_training_makes_a_belief_for_every_level(two_models: list[Outcome]) -> None:
    weights = trained_on(two_models)
    assert set(weights.beliefs) == {"full", "rag"}
    for levels in weights.beliefs.values():
        assert set(levels) == {"common", "tier:large", "tier:small", "strong", "weak"}
    assert weights.trained["outcomes"] == 1_200
    assert weights.trained["cases"] == 300
    assert weights.trained["groups"] == 7


def test_a_weight_moves_further_from_the_level_above_where_its_own_deviation_is_wider() -> None:
    rows = np.tile(np.eye(2), (200, 1))  # each row is one weight's alone
    models = ["good"] * 200 + ["bad"] * 200
    scores = np.array([0.9] * 200 + [0.1] * 200)
    levels = nested(
        rows,
        scores,
        np.zeros(400),
        models,
        {"good": "small", "bad": "small"},
        deviation=1.0,
        level_deviation=np.array([1e-4, 1.0]),
    )
    assert set(levels) == {"common", "tier:small", "good", "bad"}
    apart = levels["good"].mean - levels["bad"].mean
    assert 0 < apart[0] < apart[1] / 3
    assert levels["good"].mean[1] > 1 > -1 > levels["bad"].mean[1]


def test_a_new_model_is_expected_to_do_as_its_tier_but_with_more_doubt(two_models: list[Outcome]) -> None:
    weights = trained_on(two_models)
    features = two_models[0].features
    like: list[tuple[str, Tier]] = [("strong", "large"), ("new", "large"), ("new", "unknown")]
    seen, new, any_model = (
        Learned(weights).quality(features, ModelProfile(name, 128_000, tier=tier), "rag") for name, tier in like
    )
    assert seen
    assert new
    assert any_model
    assert seen.mean > any_model.mean
    assert abs(new.mean - seen.mean) < abs(any_model.mean - seen.mean)
    assert seen.variance < min(new.variance, any_model.variance) / 2


def test_names_of_models_are_found_again_whatever_their_case_and_provider() -> None:
    weights = trained_on(drawn(50, model="provider/Big-Model"))
    assert weights.level("rag", profile_of("big-model")) == "big-model"
    assert weights.level("rag", profile_of("Provider/Big-Model-2025-01-01")) == "big-model"


def test_training_without_any_evidence_reads_the_question_alone() -> None:
    blind = [replace(o, features=replace(o.features, evidence=None)) for o in drawn(500)]
    mean, _ = mean_and_deviation(trained_on(blind), blind)
    assert mean == pytest.approx(np.mean([o.score for o in blind]), abs=0.1)


def test_training_on_nothing_is_refused() -> None:
    with pytest.raises(CalibrationError, match="no outcomes"):
        trained_on([])


def test_training_on_more_outcomes_predicts_better() -> None:
    errors = [error(trained_on(drawn(n, seed=n))) for n in (20, 200, 2_000)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 1.5


# ---- adapt -----------------------------------------------------------------------------------------------------------


def adapted(outcomes: Sequence[Outcome]) -> LearnedWeights:
    return adapt(shipped(), outcomes, profile_of, trained={"source": "a test"})[0]


def test_the_error_falls_with_the_number_of_own_outcomes() -> None:
    own = [[error(adapted(drawn(n, seed=seed))) for seed in (1, 2)] for n in (30, 300, 2_000)]
    errors = [error(shipped()), *(sum(pair) / 2 for pair in own)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 1.5


def test_ten_outcomes_barely_move_a_belief_and_two_thousand_carry_it_along() -> None:
    def bad(n: int) -> list[Outcome]:
        return drawn(n, model="gpt-4o", truth=lambda f: 0.1)

    cases = bad(200)
    before, few, many = (
        mean_and_deviation(weights, cases)[0] for weights in (shipped(), adapted(bad(10)), adapted(bad(2_000)))
    )
    assert before > 0.4
    assert before > few > (before + 0.1) / 2
    assert many == pytest.approx(0.1, abs=0.05)


def test_ten_outcomes_as_expected_leave_the_expectation_where_it_was() -> None:
    def as_expected(features: Features) -> float:
        belief = Learned().quality(features, profile_of("gpt-4o"), "rag")
        assert belief
        return belief.mean

    cases = drawn(200, seed=7, model="gpt-4o", truth=as_expected)
    before, after = (mean_and_deviation(weights, cases)[0] for weights in (shipped(), adapted(cases[:10])))
    assert after == pytest.approx(before, abs=0.12)


def test_only_the_strategy_and_the_model_with_outcomes_move() -> None:
    weights = adapted(drawn(100, model="gpt-4o"))
    assert weights.beliefs["full"] == shipped().beliefs["full"]
    for level, belief in shipped().beliefs["rag"].items():
        assert (weights.beliefs["rag"][level] is belief) == (level != "gpt-4o")


def test_outcomes_of_one_model_under_two_providers_are_learned_together() -> None:
    both = drawn(200, model="here/own-model") + drawn(200, seed=1, model="there/Own-Model")
    alone = [replace(outcome, model="own-model") for outcome in both]
    together, expected = (adapted(rows).beliefs["rag"]["own-model"] for rows in (both, alone))
    assert together.mean == pytest.approx(expected.mean)


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_outcomes_of_one_class_are_noted_and_leave_finite_doubt(score: float) -> None:
    outcomes = drawn(60, truth=lambda f: score)
    weights, notes = adapt(shipped(), outcomes, profile_of, trained={})
    assert any(f"every score is {score:g}" in note for note in notes)
    mean, deviation = mean_and_deviation(weights, outcomes)
    assert 0 < mean < 1
    assert deviation > 0.005
    assert all(np.isfinite(b.covariance).all() for b in weights.beliefs["rag"].values())


def test_few_outcomes_are_noted_and_enough_are_not() -> None:
    notes = adapt(shipped(), drawn(10), profile_of, trained={})[1]
    assert [note for note in notes if "rag on own-model: 10 outcomes" in note]
    assert adapt(shipped(), drawn(FEWEST), profile_of, trained={})[1] == ()


def test_doubt_after_ten_outcomes_is_wider_than_after_a_thousand() -> None:
    cases = drawn(100, seed=5)
    few, many = (mean_and_deviation(adapted(drawn(n)), cases)[1] for n in (10, 1_000))
    assert few > 2 * many


def test_a_strategy_without_a_belief_starts_near_full_but_loosely() -> None:
    assert shipped().level("mystery", profile_of("gpt-4o")) is None
    drawn_one = drawn(1, model="gpt-4o", strategy="mystery")[0]
    easy = replace(drawn_one.features, task={"lookup": 1.0}, lara_task={"lookup": 1.0})
    one = [replace(drawn_one, features=easy)]
    as_full = [replace(outcome, strategy="full") for outcome in one]
    expected, _ = mean_and_deviation(shipped(), as_full)
    start, doubt = mean_and_deviation(adapted([replace(one[0], score=expected)]), one)
    _, doubt_of_full = mean_and_deviation(adapted([replace(as_full[0], score=expected)]), as_full)
    assert expected > 0.7
    assert start == pytest.approx(expected, abs=0.1)
    assert doubt > 1.5 * doubt_of_full


def test_a_strategy_without_a_belief_is_learned_for_the_model_with_outcomes() -> None:
    weights = adapted(drawn(2_000, strategy="mystery"))
    assert error(weights, strategy="mystery") < 0.15
    assert weights.level("mystery", profile_of("another-model")) is None


def test_a_fit_to_nothing_is_refused() -> None:
    with pytest.raises(CalibrationError, match="calibrate run"):
        adapted([])


def test_a_fit_is_the_same_every_time_and_in_any_order() -> None:
    outcomes = drawn(80) + drawn(80, strategy="full")
    first, again, reversed_ = (adapted(rows) for rows in (outcomes, outcomes, outcomes[::-1]))
    assert first.to_json() == again.to_json()
    assert first.trained == reversed_.trained
    for strategy in ("full", "rag"):
        mean = first.beliefs[strategy]["own-model"].mean
        assert reversed_.beliefs[strategy]["own-model"].mean == pytest.approx(mean)


def test_the_fingerprint_tells_other_outcomes_apart_and_remembers_what_was_adapted() -> None:
    outcomes = drawn(40)
    other = [replace(outcomes[0], score=1 - outcomes[0].score), *outcomes[1:]]
    assert adapted(outcomes).trained["fingerprint"] != adapted(other).trained["fingerprint"]
    assert adapted(outcomes).trained["adapted_from"] == shipped().trained["fingerprint"]


def test_missing_evidence_does_not_reach_the_weights() -> None:
    blind = [replace(o, features=replace(o.features, evidence=None)) for o in drawn(50)]
    belief = adapted(blind).beliefs["rag"]["own-model"]
    assert belief.mean.shape == (len(INPUTS),)
    assert np.isfinite(belief.mean).all()
