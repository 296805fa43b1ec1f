from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from longroute.policies.fixed import Fixed
from longroute.router.core import Estimate, Features, Goal, ModelProfile, Policy
from longroute.router.errors import ContextTooLong, NoFeasibleStrategy

PROFILE = ModelProfile("some-model", 128_000, input_usd_per_mtok=Decimal("2.5"))
FEATURES = Features(110_000, 20, 0, 1024, 0.0, 1, 0.86, {"lookup": 1.0}, None, "text")
FULL = Estimate("full", 110_000, 300, cost_usd=Decimal("0.28"))
RAG = Estimate("rag", 3_200, 300, cost_usd=Decimal("0.011"))


def test_always_the_same_strategy_and_the_others_stay_visible() -> None:
    policy: Policy = Fixed("full")
    decision = policy.decide(FEATURES, PROFILE, [RAG, FULL], Goal("cheap"))
    assert decision.strategy == "full"
    assert decision.policy == "fixed"
    assert [estimate.strategy for estimate in decision.estimates] == ["rag", "full"]
    assert decision.estimate.quality is None
    assert "always uses full" in decision.reasons[0]


def test_a_strategy_that_is_not_allowed_raises() -> None:
    with pytest.raises(NoFeasibleStrategy, match=r"always uses 'full'.*allows only rag"):
        Fixed("full").decide(FEATURES, PROFILE, [RAG], Goal())


def test_a_strategy_that_does_not_fit_raises_even_where_another_would() -> None:
    with pytest.raises(ContextTooLong, match="exceed"):
        Fixed("full").decide(FEATURES, PROFILE, [replace(FULL, infeasible="110,000 tokens exceed 8,000."), RAG], Goal())


def test_hard_limits_hold_here_too() -> None:
    with pytest.raises(NoFeasibleStrategy, match="max_cost_usd"):
        Fixed("full").decide(FEATURES, PROFILE, [FULL, RAG], Goal(max_cost_usd=Decimal("0.1")))
