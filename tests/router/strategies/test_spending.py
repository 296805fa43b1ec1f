from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal

from longroute.router.core import ModelProfile, Reply, Usage
from longroute.router.costs import price
from longroute.router.errors import BackendTimeout, RateLimited
from longroute.router.strategies.spending import Spending

PRICED = ModelProfile("m", 100_000, input_usd_per_mtok=Decimal(1), output_usd_per_mtok=Decimal(2))
UNKNOWN = ModelProfile("u", 100_000)


def test_what_is_kept_back_and_what_is_under_way_cannot_be_taken() -> None:
    spending = Spending(Decimal("0.010"), price)
    worst = spending.worst(PRICED, 2_000, 1_000)
    assert worst == Decimal("0.004")
    spending.keep_back(0, Decimal("0.003"))
    assert spending.take(worst) and not spending.take(worst)
    spending.settle(worst, PRICED, Reply("", Usage(1_000, 0, 0)))  # it took 0.001 only
    assert spending.take(worst)


def test_what_is_not_reported_costs_the_worst_and_a_refusal_nothing() -> None:
    spending = Spending(Decimal("0.010"), price)
    worst = Decimal("0.004")
    for outcome, left in ((Reply("x"), 6_000), (BackendTimeout("late"), 2_000), (RateLimited("later"), 2_000)):
        if spending.take(worst):
            spending.settle(worst, PRICED, outcome)
        assert math.isclose(spending.prompt_tokens_left(PRICED, 0), left)


def test_a_longer_prompt_that_costs_more_is_paid_for_at_its_own_price() -> None:
    stepped = replace(
        PRICED, long_prompt_tokens=200_000, long_input_usd_per_mtok=Decimal(2), long_output_usd_per_mtok=Decimal(4)
    )
    for limit, left in (("0.1", 98_000), ("0.3", 200_000), ("1", 498_000)):
        assert math.isclose(Spending(Decimal(limit), price).prompt_tokens_left(stepped, 1_000), left)
    assert price(stepped, Usage(498_000, 0, 1_000)) == 1


def test_without_a_limit_everything_may_be_taken() -> None:
    spending = Spending(None, price)
    assert not spending.limited and spending.take(spending.worst(PRICED, 1e12, 1))
    assert spending.prompt_tokens_left(PRICED, 10) == math.inf


def test_unknown_prices_are_told() -> None:
    spending = Spending(Decimal(1), price)
    assert spending.take(spending.worst(UNKNOWN, 1_000, 1)) and spending.blind
    assert spending.prompt_tokens_left(UNKNOWN, 10) == math.inf
