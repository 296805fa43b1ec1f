from __future__ import annotations

import math
from decimal import Decimal

from longroute.router.core import ModelProfile, Reply, Usage
from longroute.router.costs import price
from longroute.router.errors import BackendTimeout, RateLimited
from longroute.router.strategies.purse import Purse

PRICED = ModelProfile("m", 100_000, input_usd_per_mtok=Decimal(1), output_usd_per_mtok=Decimal(2))
UNKNOWN = ModelProfile("u", 100_000)


def test_what_is_kept_back_and_what_is_under_way_cannot_be_taken() -> None:
    purse = Purse(Decimal("0.010"), price)
    worst = purse.worst(PRICED, 2_000, 1_000)
    assert worst == Decimal("0.004")
    purse.keep_back(0, Decimal("0.003"))
    assert purse.take(worst) and not purse.take(worst)
    purse.settle(worst, PRICED, Reply("", Usage(1_000, 0, 0)))  # it took 0.001 only
    assert purse.take(worst)


def test_what_is_not_reported_costs_the_worst_and_a_refusal_nothing() -> None:
    purse = Purse(Decimal("0.010"), price)
    worst = Decimal("0.004")
    for outcome, left in ((Reply("x"), 6_000), (BackendTimeout("late"), 2_000), (RateLimited("later"), 2_000)):
        if purse.take(worst):
            purse.settle(worst, PRICED, outcome)
        assert math.isclose(purse.prompt_tokens_left(PRICED, 0), left)


def test_without_a_limit_everything_may_be_taken() -> None:
    purse = Purse(None, price)
    assert not purse.limited and purse.take(purse.worst(PRICED, 1e12, 1))
    assert purse.prompt_tokens_left(PRICED, 10) == math.inf


def test_unknown_prices_are_told() -> None:
    purse = Purse(Decimal(1), price)
    assert purse.take(purse.worst(UNKNOWN, 1_000, 1)) and purse.blind
    assert purse.prompt_tokens_left(UNKNOWN, 10) == math.inf
