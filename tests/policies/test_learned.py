from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from importlib import resources

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.policies.learned import INPUTS, TASKS, Learned, LearnedWeights, WeightBelief, inputs, shipped
from longroute.router import core
from longroute.router.core import Decision, Estimate, Evidence, Features, Goal, ModelProfile, Prefer, Task, Tier

PRICE = Decimal("2.5")
WIDTH = len(INPUTS)
EVIDENCE = Evidence(coverage=0.9, top_coverage=0.6, top_score=math.e - 1, margin=0.2, entropy=0.7, spread=0.1)


def features(tokens: int = 64_000, evidence: Evidence | None = EVIDENCE, **read: float) -> Features:
    """A question that both readers read as `read`."""
    shares: Mapping[Task, float] = read or {"lookup": 1.0}  # type: ignore[assignment]
    own = {task: share for task, share in shares.items() if task in TASKS}
    return Features(tokens, 20, 0, 1024, 0.0, 1, tokens / 128_000, shares, evidence, "text", lara_task=own)


def profile(name: str = "some-model", tier: Tier = "large") -> ModelProfile:
    return ModelProfile(name, 128_000, tier=tier, input_usd_per_mtok=PRICE)


def option(strategy: str, tokens: int) -> Estimate:
    return Estimate(strategy, tokens, 300, cost_usd=PRICE * tokens / 1_000_000)


def belief(logit: float = 0.0, deviation: float = 0.3) -> WeightBelief:
    mean = np.zeros(WIDTH)
    mean[: len(TASKS)] = logit
    return WeightBelief(mean, deviation**2 * np.eye(WIDTH))


def weights(**beliefs: dict[str, WeightBelief]) -> LearnedWeights:
    return LearnedWeights(np.zeros(WIDTH), np.ones(WIDTH), beliefs, {"source": "a test"})


def decide(f: Features, p: ModelProfile, *others: str, prefer: Prefer = "balanced") -> Decision:
    options = [option("full", f.document_tokens), option("rag", min(3_000, f.document_tokens))]
    options += [option(name, f.document_tokens // 3) for name in others]
    return Learned().decide(f, p, options, Goal(prefer))


def by_name(decision: Decision) -> dict[str, Estimate]:
    return {estimate.strategy: estimate for estimate in decision.estimates}


def width(estimate: Estimate) -> float:
    assert estimate.quality_interval
    return estimate.quality_interval[1] - estimate.quality_interval[0]


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_each_input_stands_under_its_name() -> None:
    f = replace(features(256_000, lookup=0.25, comparison=0.75), question_tokens=1)
    read = dict(zip(INPUTS, inputs(f), strict=True))
    assert read == pytest.approx(
        {
            "lookup": 0.25,
            "reasoning": 0,
            "comparison": 0.75,
            "unanswerable": 0,
            "lookup × length": 0.5,  # 256k is two doublings of 64k
            "reasoning × length": 0,
            "comparison × length": 1.5,
            "unanswerable × length": 0,
            "coverage": 0.9,
            "top_coverage": 0.6,
            "top_score": 1.0,
            "margin": 0.2,
            "entropy": 0.7,
            "spread": 0.1,
        }
    )


def test_missing_evidence_is_nan_and_counts_as_average() -> None:
    f = features(evidence=None)
    found = INPUTS.index("coverage")
    assert np.isnan(inputs(f)[found:]).all()
    assert np.isfinite(inputs(f)[:found]).all()
    assert (shipped().scaled(f)[found:] == 0).all()


def test_evidence_beyond_anything_seen_counts_as_no_more_than_the_edge() -> None:
    far, farther = (features(evidence=replace(EVIDENCE, top_score=score, margin=1.0)) for score in (1e6, 1e12))
    assert shipped().scaled(far) == pytest.approx(shipped().scaled(farther))
    assert np.abs(shipped().scaled(far)).max() < 3


def test_lengths_beyond_the_trained_range_are_read_as_its_ends() -> None:
    assert inputs(features(0)) == pytest.approx(inputs(features(1_000)))
    assert inputs(features(50_000_000)) == pytest.approx(inputs(features(1_000_000)))
    assert (inputs(features(1_000)) != inputs(features(1_000_000))).any()


def shares_of(tasks: tuple[Task, ...]) -> st.SearchStrategy[dict[Task, float]]:
    parts = st.lists(st.floats(0, 1), min_size=len(tasks), max_size=len(tasks)).filter(lambda x: sum(x) > 1e-3)
    return parts.map(lambda x: {task: part / sum(x) for task, part in zip(tasks, x, strict=True)})


@given(shares_of(core.TASKS), st.one_of(st.just({}), shares_of(TASKS)))
def test_task_shares_are_probabilities_whatever_the_two_readers_say(
    general: dict[Task, float], own: dict[Task, float]
) -> None:
    shares = inputs(replace(features(), task=general, lara_task=own))[: len(TASKS)]
    assert shares.min() >= -1e-9
    assert shares.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("task", "like"), [("summary", "comparison"), ("aggregation", "comparison"), ("code", "reasoning")]
)
def test_a_task_that_lara_does_not_have_is_read_as_one_alike(task: Task, like: Task) -> None:
    f = replace(features(), task={task: 0.6, "lookup": 0.4}, lara_task={"unanswerable": 1.0})
    read = dict(zip(INPUTS, inputs(f), strict=True))
    assert (read[like], read["unanswerable"], read["lookup"]) == pytest.approx((0.6, 0.4, 0))


def test_without_lara_s_reading_the_general_one_serves() -> None:
    f = replace(features(), task={"lookup": 0.3, "unanswerable": 0.7}, lara_task={})
    assert inputs(f)[: len(TASKS)] == pytest.approx([0.3, 0, 0, 0.7])


# ---- beliefs ---------------------------------------------------------------------------------------------------------


@given(st.floats(-1e6, 1e6), st.floats(0, 1e3))
def test_a_prediction_is_a_probability(logit: float, deviation: float) -> None:
    predicted = belief(logit, deviation).predict(inputs(features()))
    assert 0 <= predicted.mean <= 1
    assert predicted.variance >= 0


@given(st.floats(-4, 4), st.floats(0.01, 3), st.floats(1.01, 10))
def test_more_doubt_means_a_wider_interval_and_a_mean_closer_to_a_half(
    logit: float, deviation: float, factor: float
) -> None:
    sure, unsure = (belief(logit, d).predict(inputs(features())) for d in (deviation, factor * deviation))
    assert unsure.variance > sure.variance
    assert abs(unsure.mean - 0.5) <= abs(sure.mean - 0.5)


def test_a_belief_that_knows_nothing_predicts_a_half() -> None:
    assert belief(5.0, 1e4).predict(inputs(features())).mean == pytest.approx(0.5, abs=1e-3)
    assert belief(5.0, 0.0).predict(inputs(features())).mean == pytest.approx(1 / (1 + math.exp(-5.0)))


@pytest.mark.parametrize(
    ("name", "tier", "level"),
    [
        ("gpt-4o", "large", "gpt-4o"),
        ("openai/GPT-4o-2024-11-20", "large", "gpt-4o"),
        ("gpt-4o-mini", "medium", "gpt-4o-mini"),
        ("gpt-4o-mini-2024-07-18", "medium", "gpt-4o-mini"),
        ("meta-llama/Llama-3.1-8B-Instruct", "small", "llama-3.1-8b"),
        ("gpt-4o-audio", "large", "tier:large"),  # another model whose name begins alike
        ("not-gpt-4o", "large", "tier:large"),
        ("new", "medium", "common"),
        ("new", "unknown", "common"),
    ],
)
def test_the_closest_level_speaks_for_a_model(name: str, tier: Tier, level: str) -> None:
    known = ("common", "tier:large", "gpt-4o", "gpt-4o-mini", "llama-3.1-8b")
    assert weights(full={each: belief() for each in known}).level("full", profile(name, tier)) == level


def test_a_dated_version_with_outcomes_of_its_own_beats_its_family() -> None:
    known = weights(full={"gpt-4o": belief(), "gpt-4o-2024-08-06": belief()})
    assert known.level("full", profile("gpt-4o-2024-08-06")) == "gpt-4o-2024-08-06"
    assert known.level("full", profile("gpt-4o-2024-05-13")) == "gpt-4o"


def test_nothing_speaks_for_a_strategy_without_beliefs() -> None:
    assert weights(full={"common": belief()}).level("rag", profile()) is None


# ---- stored ----------------------------------------------------------------------------------------------------------


def test_weights_survive_json_but_for_rounding() -> None:
    rng = np.random.default_rng(0)
    square = rng.normal(size=(WIDTH, WIDTH))
    own = LearnedWeights(
        rng.normal(size=WIDTH),
        rng.uniform(0.1, 2, WIDTH),
        {"full": {"common": WeightBelief(rng.normal(size=WIDTH), square @ square.T / WIDTH)}},
        {"source": "a test", "outcomes": 12},
    )
    back = LearnedWeights.from_json(own.to_json())
    expected, got = (Learned(w).quality(features(), profile(), "full") for w in (own, back))
    assert expected
    assert got
    assert (got.mean, got.variance) == pytest.approx((expected.mean, expected.variance), rel=2e-3)
    assert back.trained == own.trained
    assert back.to_json() == own.to_json()


@pytest.mark.parametrize("key", ["kind", "version", "inputs", "center", "scale", "beliefs", "trained"])
def test_a_row_with_a_part_missing_is_refused(key: str) -> None:
    row = weights(full={"common": belief()}).to_json()
    del row[key]
    with pytest.raises(KeyError):
        LearnedWeights.from_json(row)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kind", "fixed"),
        ("version", 0),
        ("inputs", list(reversed(INPUTS))),
        ("center", [0.0]),
        ("scale", ["wide"] * WIDTH),
        ("beliefs", ["full"]),
        ("beliefs", {"full": 3}),
        ("beliefs", {"full": {"common": {"mean": [0.0] * WIDTH}}}),
        ("beliefs", {"full": {"common": {"mean": [0.0], "covariance": [[1.0]]}}}),
        ("beliefs", {"full": {"common": {"mean": [math.nan] * WIDTH, "covariance": np.eye(WIDTH).tolist()}}}),
        ("trained", "yesterday"),
    ],
)
def test_a_row_with_a_wrong_part_is_refused(key: str, value: object) -> None:
    row = weights(full={"common": belief()}).to_json()
    with pytest.raises((KeyError, TypeError, ValueError)):
        LearnedWeights.from_json({**row, key: value})


# ---- decisions -------------------------------------------------------------------------------------------------------


def test_strategies_without_outcomes_get_a_wide_prior_and_the_reasons_say_so() -> None:
    decision = decide(features(), profile("gpt-4o"), "compressed", "chain_of_agents")
    estimates = by_name(decision)
    for name in ("compressed", "chain_of_agents"):
        assert width(estimates[name]) > 1.5 * width(estimates["full"])
        assert "not calibrated" in estimates[name].basis
    assert "Not calibrated: compressed 0.74 counts as 0." in decision.reasons[0]
    assert "Not calibrated" not in decide(features(), profile("gpt-4o")).reasons[0]


def test_a_published_prior_leans_on_what_is_known_of_the_strategy_it_resembles() -> None:
    for logit in (-1.0, 2.0):
        own = Learned(weights(full={"common": belief(logit)}))
        full, compressed = (own.quality(features(), profile(), name) for name in ("full", "compressed"))
        assert full
        assert compressed
        assert compressed.mean == pytest.approx(full.mean - 0.06)


def test_a_strategy_of_which_nothing_is_known_stays_unknown_and_is_not_chosen() -> None:
    decision = decide(features(), profile("gpt-4o"), "mystery")
    assert by_name(decision)["mystery"].quality is None
    assert decision.strategy != "mystery"
    assert Learned(weights(rag={"common": belief()})).quality(features(), profile(), "compressed") is None


def test_rag_is_as_good_as_full_where_it_shows_the_whole_text() -> None:
    small = by_name(decide(features(2_500, comparison=1.0), profile("gpt-4o")))
    assert small["rag"].quality == pytest.approx(small["full"].quality)
    large = by_name(decide(features(64_000, comparison=1.0), profile("gpt-4o")))
    assert large["rag"].quality != pytest.approx(large["full"].quality, abs=0.02)


def self_routed(f: Features, p: ModelProfile, *, calls: int, prompt_tokens: int) -> dict[str, Estimate]:
    options = [option("full", f.document_tokens), option("rag", min(3_000, f.document_tokens))]
    options.append(replace(option("self_route", prompt_tokens), calls=calls))
    return by_name(Learned().decide(f, p, options, Goal("quality")))


def test_self_route_is_measured_and_beats_both_of_its_calls_where_answers_may_be_missing() -> None:
    estimates = self_routed(features(lookup=0.6, unanswerable=0.4), profile("gpt-4o"), calls=2, prompt_tokens=10_000)
    assert estimates["self_route"].measured
    assert "LaRA" in estimates["self_route"].basis
    for other in ("full", "rag"):
        assert (estimates["self_route"].quality or 0) > (estimates[other].quality or 1)


def test_self_route_without_a_second_call_is_rag() -> None:
    estimates = self_routed(features(comparison=1.0), profile("gpt-4o"), calls=1, prompt_tokens=3_000)
    assert estimates["self_route"].quality == estimates["rag"].quality
    assert estimates["self_route"].basis == estimates["rag"].basis


def test_self_route_by_a_reader_that_picks_sentences_is_believed_no_better_than_rag() -> None:
    estimates = self_routed(features(lookup=1.0), profile("extractive", "extractive"), calls=2, prompt_tokens=9_000)
    assert estimates["self_route"].quality == estimates["rag"].quality


def test_self_route_is_as_good_as_full_where_the_passages_are_the_whole_text() -> None:
    estimates = self_routed(features(2_500, comparison=1.0), profile("gpt-4o"), calls=2, prompt_tokens=2_500)
    assert estimates["self_route"].quality == pytest.approx(estimates["full"].quality)


def test_the_basis_says_whose_outcomes_speak() -> None:
    own = {"common": belief(), "tier:small": belief(), "qwen2.5:7b": belief()}
    policy = Learned(weights(full=own))

    def basis(name: str, tier: Tier) -> str:
        return policy.decide(features(), profile(name, tier), [option("full", 64_000)], Goal()).estimates[0].basis

    assert basis("qwen2.5:7b", "small") == "a test, outcomes of qwen2.5:7b"
    assert basis("new", "small") == "a test, models of tier small"
    assert "nothing is known of new" in basis("new", "unknown")


# ---- the weights that are shipped ------------------------------------------------------------------------------------


def test_all_shipped_weights_together_are_under_two_megabytes() -> None:
    files = [file for file in resources.files("longroute.policies").joinpath("weights").iterdir() if file.is_file()]
    assert "learned.json" in {file.name for file in files}
    assert sum(len(file.read_bytes()) for file in files) < 2_000_000


def test_shipped_covariances_are_positive_definite_after_rounding() -> None:
    for levels in shipped().beliefs.values():
        for level in levels.values():
            assert np.linalg.eigvalsh(level.covariance).min() > 0


def test_shipped_weights_say_where_they_come_from() -> None:
    assert {"source", "command", "fingerprint", "outcomes", "groups"} <= set(shipped().trained)


@pytest.mark.parametrize("model", ["gpt-4o", "claude-3-5-sonnet-20241022", "gemini-1.5-pro"])
def test_a_strong_model_reads_the_whole_of_a_shorter_text_to_compare(model: str) -> None:
    assert decide(features(32_000, comparison=1.0), profile(model), prefer="quality").strategy == "full"


@pytest.mark.parametrize("model", ["gpt-4o", "llama-3.1-8b", "some-model"])
def test_a_question_without_an_answer_goes_to_rag(model: str) -> None:
    assert decide(features(110_000, unanswerable=1.0), profile(model), prefer="quality").strategy == "rag"


@pytest.mark.parametrize("strategy", ["full", "rag"])
def test_less_is_known_of_a_model_never_seen_than_of_one_with_outcomes(strategy: str) -> None:
    own, new = (
        Learned().quality(features(reasoning=1.0), profile(name, "small"), strategy) for name in ("llama-3.1-8b", "new")
    )
    assert own
    assert new
    assert new.variance > 1.5 * own.variance


def test_shipped_estimates_are_probabilities_inside_their_intervals_for_any_tier_and_length() -> None:
    for tier in ("small", "medium", "large", "weak_long_context", "extractive", "unknown"):
        for tokens in (100, 32_000, 1_000_000):
            for estimate in decide(features(tokens, evidence=None), profile("new", tier)).estimates:
                assert estimate.quality is not None
                assert estimate.quality_interval
                low, high = estimate.quality_interval
                assert 0 <= low < estimate.quality < high <= 1
