from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.policies.decision_rule import choose
from longroute.policies.lara import Lara
from longroute.policies.risk_controlled import Guarantee, RiskControlled, guarantee_from
from longroute.router.core import Decision, Estimate, Features, Goal, ModelProfile, Policy
from longroute.router.errors import ConfigError, ContextTooLong, NoFeasibleStrategy

PROFILE = ModelProfile("some-model", 128_000, input_usd_per_mtok=Decimal("2.5"))
FEATURES = Features(110_000, 20, 0, 1024, 0.0, 1, 0.86, {"lookup": 1.0}, None, "text")
FULL = Estimate("full", 110_000, 300, cost_usd=Decimal("0.28"))
RAG = Estimate("rag", 3_200, 300, cost_usd=Decimal("0.011"))
COMPRESSED = Estimate("compressed", 30_000, 300, cost_usd=Decimal("0.08"))
SHOWN = Guarantee(
    loss="difference",
    epsilon=0.02,
    delta=0.1,
    unit="request",
    n=1000,
    strategies=("full", "rag"),
    models=("some-model",),
    threshold=0.05,
    mean_loss=0.004,
)
NOTHING_SAFE = replace(SHOWN, n=100, threshold=None, mean_loss=0.01, needed=400)


class Expecting:
    """A base policy that expects given qualities and decides by the common rule."""

    def __init__(self, **qualities: float | None) -> None:
        self.qualities = qualities

    def decide(self, features: Features, profile: ModelProfile, options: Sequence[Estimate], goal: Goal) -> Decision:
        estimates = [replace(option, quality=self.qualities.get(option.strategy)) for option in options]
        return choose("expecting", features, profile, estimates, goal, ["It was expected."])


def decide(
    base: Policy,
    *options: Estimate,
    guarantee: Guarantee = SHOWN,
    goal: Goal | None = None,
    profile: ModelProfile = PROFILE,
) -> Decision:
    policy: Policy = RiskControlled(base, guarantee)
    return policy.decide(FEATURES, profile, options or (FULL, RAG), goal or Goal())


def test_the_cheapest_strategy_within_the_threshold_is_taken_and_full_beyond_it() -> None:
    assert decide(Expecting(full=0.80, rag=0.76)).strategy == "rag"
    assert decide(Expecting(full=0.80, rag=0.74)).strategy == "full"


def test_what_the_goal_prefers_does_not_move_the_threshold() -> None:
    assert decide(Expecting(full=0.80, rag=0.76), goal=Goal("quality")).strategy == "rag"
    assert decide(Expecting(full=0.80, rag=0.74), goal=Goal("cheap")).strategy == "full"


def test_a_threshold_below_zero_asks_for_better_than_full() -> None:
    careful = replace(SHOWN, threshold=-0.05)
    assert decide(Expecting(full=0.80, rag=0.82), guarantee=careful).strategy == "full"
    decision = decide(Expecting(full=0.80, rag=0.86), guarantee=careful)
    assert decision.strategy == "rag"
    assert "at least 5 points of predicted quality above full" in decision.reasons[0]


def test_the_guarantee_stands_among_the_reasons_with_its_assumption() -> None:
    for base in (Expecting(full=0.80, rag=0.79), Expecting(full=0.80, rag=0.20)):
        decision = decide(base)
        assert decision.policy == "risk_controlled"
        assert decision.reasons[1] == (
            "Routing gives up at most 2 points of quality against full on average, with 90% confidence: calibrated on "
            "1,000 requests."
        )
        assert decision.reasons[2] == SHOWN.assumption
        assert "come from the same source" in SHOWN.assumption


def test_only_calibrated_strategies_may_stand_in_for_full() -> None:
    base = Expecting(full=0.80, rag=0.60, compressed=0.80)
    assert decide(base, FULL, RAG, COMPRESSED).strategy == "full"
    covering = replace(SHOWN, strategies=("full", "rag", "compressed"))
    assert decide(base, FULL, RAG, COMPRESSED, guarantee=covering).strategy == "compressed"


def test_a_text_in_the_prompt_cache_can_make_full_the_cheapest() -> None:
    warm = replace(FULL, cost_usd=Decimal("0.01"), cached_tokens=109_000)
    assert decide(Expecting(full=0.80, rag=0.80), warm, RAG).strategy == "full"


@pytest.mark.parametrize("qualities", [{"full": None, "rag": 0.9}, {"full": 0.9, "rag": None}])
def test_a_quality_that_nobody_predicts_is_not_close_to_any_other(qualities: dict[str, float | None]) -> None:
    assert decide(Expecting(**qualities)).strategy == "full"


def test_where_no_threshold_is_safe_full_is_taken_and_the_reasons_say_what_it_would_take() -> None:
    decision = decide(Expecting(full=0.5, rag=0.9), guarantee=NOTHING_SAFE)
    assert decision.strategy == "full"
    assert decision.reasons[0].startswith(
        "No threshold is safe: 100 requests do not show that routing gives up at most"
    )
    assert decision.reasons[0].endswith("(it came to 1.0 at the safest); collect about 300 more.")
    hopeless = decide(Expecting(full=0.5, rag=0.9), guarantee=replace(NOTHING_SAFE, needed=None))
    assert "more of the same will not do" in hopeless.reasons[0]


def test_a_model_that_was_not_calibrated_gets_full() -> None:
    decision = decide(Expecting(full=0.5, rag=0.9), profile=replace(PROFILE, name="another-model"))
    assert decision.strategy == "full"
    assert decision.reasons == ("The guarantee is for some-model, not for another-model, so full is taken.",)


@pytest.mark.parametrize(
    ("options", "goal"),
    [
        ((RAG, COMPRESSED), Goal()),
        ((replace(FULL, infeasible="110,000 tokens exceed 8,000."), RAG, COMPRESSED), Goal()),
        ((FULL, RAG, COMPRESSED), Goal(max_cost_usd=Decimal("0.1"))),
    ],
)
def test_without_full_the_base_policy_chooses_and_nothing_is_guaranteed(
    options: tuple[Estimate, ...], goal: Goal
) -> None:
    decision = decide(Expecting(full=0.9, rag=0.5, compressed=0.8), *options, goal=goal)
    assert decision.strategy == "compressed"
    assert decision.reasons[0] == (
        "full cannot be used, so nothing is guaranteed against it and policy expecting chose."
    )
    assert decision.reasons[1] == "It was expected."
    assert not any("confidence" in reason for reason in decision.reasons)


def test_hard_limits_hold_and_are_named() -> None:
    decision = decide(Expecting(full=0.9, rag=0.88), goal=Goal(min_quality=0.89))
    assert decision.strategy == "full"
    assert "rag is out: expected quality 0.88 is under min_quality = 0.89." in decision.reasons
    with pytest.raises(NoFeasibleStrategy, match="max_cost_usd"):
        decide(Expecting(full=0.9, rag=0.88), goal=Goal(max_cost_usd=Decimal("0.001")))
    with pytest.raises(ContextTooLong, match="exceed"):
        decide(Expecting(full=0.9), replace(FULL, infeasible="300,000 tokens exceed 128,000."))


def test_it_wraps_the_policy_that_ships() -> None:
    decision = decide(Lara())
    assert {estimate.strategy: estimate.quality for estimate in decision.estimates}.keys() == {"full", "rag"}
    assert decision.strategy == "rag"  # LaRA: single facts at 110k tokens are found as well by retrieval


def test_a_guarantee_survives_json_and_anything_else_is_refused() -> None:
    for guarantee in (SHOWN, NOTHING_SAFE, replace(SHOWN, loss="shortfall", delta=None)):
        assert guarantee_from(json.loads(json.dumps(asdict(guarantee)))) == guarantee
    with pytest.raises(ConfigError, match=r"strategies.*calibrate fit"):
        guarantee_from({"epsilon": 0.1})
    with pytest.raises(ConfigError, match="surprise"):
        guarantee_from({**asdict(SHOWN), "surprise": 1})


def test_a_guarantee_on_average_claims_no_confidence() -> None:
    conformal = replace(SHOWN, loss="shortfall", delta=None, unit="document")
    assert conformal.statement == (
        "Routing loses, counting no gains, at most 2 points of quality against full on average: calibrated on 1,000 "
        "documents."
    )
    assert "live documents" in conformal.assumption


@given(st.floats(0, 1), st.floats(0, 1), st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))
def test_a_larger_threshold_never_goes_back_to_full(full: float, rag: float, one: float, other: float) -> None:
    taken = [
        decide(Expecting(full=full, rag=rag), guarantee=replace(SHOWN, threshold=threshold)).strategy
        for threshold in sorted((one, other))
    ]
    assert taken != ["rag", "full"]
