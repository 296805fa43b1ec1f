from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from random import Random
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.policies.decision_rule import LAMBDA, choose, dollars
from longroute.router.core import Decision, Estimate, Features, Goal, ModelProfile, Prefer
from longroute.router.errors import ContextTooLong, NoFeasibleStrategy

PROFILE = ModelProfile("some-model", 128_000, input_usd_per_mtok=Decimal("2.5"))
FEATURES = Features(110_000, 20, 0, 1024, 0.0, 1, 0.86, {"lookup": 1.0}, None, "text")
FULL = Estimate("full", 110_000, 300, cost_usd=Decimal("0.28"), latency_s=15.0, quality=0.80)
RAG = Estimate("rag", 3_200, 300, cost_usd=Decimal("0.011"), latency_s=1.5, quality=0.78)
UNKNOWN = Estimate("compressed", 30_000, 300, cost_usd=Decimal("0.08"), latency_s=5.0)


def decide(*estimates: Estimate, goal: Goal | None = None, profile: ModelProfile = PROFILE) -> Decision:
    return choose("some policy", FEATURES, profile, estimates, goal or Goal())


def by_name(decision: Decision) -> dict[str, Estimate]:
    return {estimate.strategy: estimate for estimate in decision.estimates}


def test_a_small_gain_does_not_pay_for_reading_everything_but_a_large_one_does() -> None:
    assert decide(FULL, RAG).strategy == "rag"
    assert decide(FULL, replace(RAG, quality=0.60)).strategy == "full"


def test_preferring_quality_pays_for_a_small_gain_and_preferring_cheap_saves_a_large_one() -> None:
    assert decide(FULL, RAG, goal=Goal("quality")).strategy == "full"
    assert decide(FULL, replace(RAG, quality=0.60), goal=Goal("cheap")).strategy == "rag"


def test_what_is_not_measured_counts_as_the_lower_end_of_its_interval() -> None:
    hoped = replace(UNKNOWN, quality=0.84, quality_interval=(0.60, 0.99))
    assert decide(FULL, RAG, replace(hoped, measured=True)).strategy == "compressed"
    decision = decide(FULL, RAG, replace(hoped, measured=False))
    assert decision.strategy == "rag"
    assert by_name(decision)["compressed"].quality == 0.84  # what is expected is still told as it is


def test_a_text_in_the_prompt_cache_makes_full_worth_it() -> None:
    warm = replace(FULL, cost_usd=Decimal("0.03"), cached_tokens=109_000)
    cold = replace(RAG, quality=0.77)
    assert decide(FULL, cold).strategy == "rag"
    decision = decide(warm, cold)
    assert decision.strategy == "full"
    assert any("109,000 tokens in the prompt cache" in reason for reason in decision.reasons)


@pytest.mark.parametrize("price", [None, Decimal(0)])
def test_without_a_price_prompt_tokens_stand_in_and_the_reasons_say_so(price: Decimal | None) -> None:
    profile = replace(PROFILE, input_usd_per_mtok=price)
    decision = decide(replace(FULL, cost_usd=price), replace(RAG, cost_usd=price), profile=profile)
    assert decision.strategy == "rag"
    assert "some-model has no price to compare by: rag reads 3,200 tokens against 110,000 for full (3%)." in (
        decision.reasons
    )


def test_latency_counts_where_it_is_known() -> None:
    slow = replace(RAG, strategy="slow", latency_s=500.0)
    profile = replace(PROFILE, prefill_tokens_per_s=8_000.0)
    assert decide(slow, replace(RAG, quality=0.779)).strategy == "slow"
    assert decide(slow, replace(RAG, quality=0.779), profile=profile).strategy == "rag"


def test_unknown_quality_is_chosen_only_where_no_quality_is_known() -> None:
    assert decide(FULL, UNKNOWN, goal=Goal("cheap")).strategy == "full"
    dearer = replace(UNKNOWN, strategy="chain_of_agents", cost_usd=Decimal("0.4"))
    decision = decide(dearer, UNKNOWN)
    assert decision.strategy == "compressed"
    assert any("Nothing is known of the quality" in reason for reason in decision.reasons)
    assert any("nothing is known of its quality" in reason for reason in decide(UNKNOWN).reasons)


def test_limits_override_the_preference_and_what_is_unknown_does_not_keep_them() -> None:
    assert decide(FULL, RAG, goal=Goal("quality", max_cost_usd=Decimal("0.02"))).strategy == "rag"
    assert decide(FULL, RAG, goal=Goal("quality", max_latency_s=2.0)).strategy == "rag"
    assert decide(FULL, RAG, goal=Goal("cheap", min_quality=0.79)).strategy == "full"
    unpriced = replace(FULL, strategy="unpriced", cost_usd=None, latency_s=None, quality=None)
    for limit in (Goal(max_cost_usd=Decimal(9)), Goal(max_latency_s=99.0), Goal(min_quality=0.1)):
        refused = by_name(decide(RAG, unpriced, goal=limit))["unpriced"]
        assert "unknown" in refused.infeasible


@pytest.mark.parametrize(
    ("goal", "numbers"),
    [
        (Goal(max_cost_usd=Decimal("0.001")), ("$0.28", "$0.011", "max_cost_usd = $0.001")),
        (Goal(max_latency_s=1.0), ("15.0 s", "1.5 s", "max_latency_s = 1")),
        (Goal(min_quality=0.95), ("0.80", "0.78", "min_quality = 0.95")),
    ],
)
def test_limits_that_nothing_keeps_raise_with_the_numbers_and_what_to_relax(goal: Goal, numbers: tuple[str]) -> None:
    with pytest.raises(NoFeasibleStrategy) as caught:
        decide(FULL, RAG, goal=goal)
    assert all(number in str(caught.value) for number in (*numbers, "Relax"))


def test_a_window_that_nothing_fits_raises_with_the_reasons_of_each() -> None:
    with pytest.raises(ContextTooLong, match=r"some-model.*full: 300,000 tokens exceed 128,000.*longer window"):
        decide(replace(FULL, infeasible="300,000 tokens exceed 128,000."))


def test_nothing_to_choose_from_raises() -> None:
    with pytest.raises(NoFeasibleStrategy, match="Allow at least one"):
        decide()


def test_reasons_are_few_and_name_what_is_out() -> None:
    decision = decide(replace(FULL, infeasible="300,000 tokens exceed 128,000."), RAG, UNKNOWN)
    assert 2 <= len(decision.reasons) <= 5
    assert "full is out: 300,000 tokens exceed 128,000." in decision.reasons


def test_estimates_keep_their_places_and_carry_their_utility() -> None:
    decision = decide(UNKNOWN, RAG, FULL)
    assert [estimate.strategy for estimate in decision.estimates] == ["compressed", "rag", "full"]
    assert by_name(decision)["compressed"].utility is None
    utilities = {name: e.utility for name, e in by_name(decision).items() if e.utility is not None}
    assert max(utilities, key=lambda name: utilities[name]) == decision.strategy


def test_equal_strategies_are_chosen_by_name() -> None:
    twin = replace(RAG, strategy="a_twin_of_rag")
    assert decide(RAG, twin).strategy == decide(twin, RAG).strategy == "a_twin_of_rag"


def test_money_is_shown_with_two_digits_and_no_exponent() -> None:
    assert [dollars(Decimal(x)) for x in ("0.28", "12.34", "0.0000083", "0", "1234")] == [
        "$0.28",
        "$12",
        "$0.0000083",
        "$0",
        "$1200",
    ]


# ---- properties ------------------------------------------------------------------------------------------------------


@st.composite
def some_estimates(draw: st.DrawFn) -> list[Estimate]:
    names = draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6, unique=True))
    return [
        Estimate(
            strategy=name,
            prompt_tokens=draw(st.integers(1, 500_000)),
            completion_tokens=300,
            cost_usd=Decimal(draw(st.integers(0, 10_000))) / 10_000,
            quality=draw(st.none() | st.floats(0, 1)),
            infeasible=draw(st.sampled_from(["", "", "too long"])),
        )
        for name in names
    ]


estimates_with_a_feasible_one = some_estimates().filter(lambda es: any(e.feasible for e in es))
preferences = st.sampled_from(get_args(Prefer))


@given(estimates_with_a_feasible_one, preferences)
def test_the_choice_is_never_infeasible(estimates: list[Estimate], prefer: Prefer) -> None:
    assert decide(*estimates, goal=Goal(prefer)).estimate.feasible


@given(estimates_with_a_feasible_one)
def test_caring_more_for_cost_never_raises_the_cost_of_the_choice(estimates: list[Estimate]) -> None:
    order = sorted(get_args(Prefer), key=lambda prefer: LAMBDA[prefer])
    costs = [decide(*estimates, goal=Goal(prefer)).estimate.cost_usd or Decimal(0) for prefer in order]
    assert all(cheaper <= dearer for dearer, cheaper in pairwise(costs))


@given(estimates_with_a_feasible_one, preferences, st.floats(0, 1), st.integers(0, 10**7))
def test_an_infeasible_option_more_changes_nothing(
    estimates: list[Estimate], prefer: Prefer, quality: float, tokens: int
) -> None:
    goal = Goal(prefer)
    extra = Estimate("z", tokens, 0, cost_usd=None, quality=quality, infeasible="too long")
    assert decide(*estimates, extra, goal=goal).strategy == decide(*estimates, goal=goal).strategy


@given(estimates_with_a_feasible_one, preferences, st.randoms(use_true_random=False))
def test_the_order_of_options_does_not_matter(estimates: list[Estimate], prefer: Prefer, random: Random) -> None:
    shuffled = random.sample(estimates, len(estimates))
    assert decide(*shuffled, goal=Goal(prefer)).strategy == decide(*estimates, goal=Goal(prefer)).strategy
