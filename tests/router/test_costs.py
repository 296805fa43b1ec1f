"""Bills, seconds, room in the window, and what the ledger believes a provider has cached."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.router.core import Footprint, ModelProfile, Usage
from longroute.router.costs import (
    PromptCacheLedger,
    charge,
    estimate,
    latency,
    no_gain,
    price,
)

PRICED = ModelProfile(
    "priced",
    128_000,
    input_usd_per_mtok=Decimal(4),
    cached_input_usd_per_mtok=Decimal("0.4"),
    cache_write_usd_per_mtok=Decimal(5),
    output_usd_per_mtok=Decimal(20),
    cache_min_tokens=1024,
    cache_ttl_s=300,
    prefill_tokens_per_s=10_000,
    decode_tokens_per_s=50,
    overhead_s=0.5,
)
UNPRICED = ModelProfile("unpriced", 128_000)


# ---- money -----------------------------------------------------------------------------------------------------------


def test_price_adds_uncached_cached_written_and_output_tokens() -> None:
    use = Usage(prompt_tokens=1_000_000, cached_tokens=500_000, completion_tokens=100_000)
    assert price(PRICED, use) == Decimal("2") + Decimal("0.2") + Decimal("2")
    assert price(PRICED, use, written_tokens=200_000) == Decimal("1.2") + Decimal("1") + Decimal("0.2") + Decimal("2")


def test_writing_costs_the_input_price_where_there_is_no_other() -> None:
    use = Usage(prompt_tokens=1_000)
    profile = replace(PRICED, cache_write_usd_per_mtok=None)
    assert price(profile, use, written_tokens=1_000) == price(profile, use)


@pytest.mark.parametrize("missing", ["input_usd_per_mtok", "cached_input_usd_per_mtok", "output_usd_per_mtok"])
def test_an_unknown_price_makes_the_cost_unknown_only_where_it_is_needed(missing: str) -> None:
    profile = replace(PRICED, **{missing: None})  # type: ignore[arg-type]
    assert price(profile, Usage(prompt_tokens=100, cached_tokens=50, completion_tokens=10)) is None
    needless = {
        "input_usd_per_mtok": Usage(prompt_tokens=50, cached_tokens=50, completion_tokens=10),
        "cached_input_usd_per_mtok": Usage(prompt_tokens=100, completion_tokens=10),
        "output_usd_per_mtok": Usage(prompt_tokens=100, cached_tokens=50),
    }
    assert price(profile, needless[missing]) is not None


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_caching_never_costs_more_and_bills_add_up(uncached: int, cached: int, output: int) -> None:
    use = Usage(uncached + cached, cached, output)
    bill = price(PRICED, use)
    assert bill is not None
    without = price(PRICED, replace(use, cached_tokens=0))
    assert without is not None
    assert bill <= without
    assert price(PRICED, use + use) == 2 * bill


def test_charge_fills_in_the_cost_but_keeps_what_the_server_said() -> None:
    assert charge(Usage(prompt_tokens=1_000_000), PRICED).cost_usd == 4
    assert charge(Usage(prompt_tokens=1_000_000, cost_usd=Decimal(3)), PRICED).cost_usd == 3
    assert charge(Usage(prompt_tokens=1), UNPRICED).cost_usd is None


# ---- time ------------------------------------------------------------------------------------------------------------


def test_latency_is_overhead_uncached_prefill_and_decode() -> None:
    footprint = Footprint(30_000, 100, 30_000, cached_tokens=20_000, preparation_s=0.25)
    assert latency(PRICED, footprint) == pytest.approx(0.25 + 0.5 + 1.0 + 2.0)
    assert latency(UNPRICED, footprint) is None


def test_calls_side_by_side_take_the_time_of_one() -> None:
    alone = Footprint(10_000, 50, 10_000)
    four = Footprint(40_000, 200, 10_000, calls=4, sequential_calls=1)
    in_a_row = replace(four, sequential_calls=4)
    assert latency(PRICED, four) == latency(PRICED, alone)
    assert latency(PRICED, in_a_row) == pytest.approx(4 * (latency(PRICED, alone) or 0))


# ---- room ------------------------------------------------------------------------------------------------------------


def test_an_estimate_carries_tokens_cost_and_latency() -> None:
    footprint = Footprint(100_000, 500, 50_000, cached_tokens=10_000, calls=2, sequential_calls=2)
    result = estimate("rag", footprint, PRICED, max_output_tokens=1_000)
    assert (result.strategy, result.prompt_tokens, result.completion_tokens, result.cached_tokens, result.calls) == (
        "rag",
        100_000,
        500,
        10_000,
        2,
    )
    assert result.cost_usd == price(PRICED, footprint)
    assert result.latency_s == latency(PRICED, footprint)
    assert result.feasible
    assert result.quality is None


def test_a_prompt_must_fit_with_its_answer_and_the_counting_error() -> None:
    footprint = Footprint(100_000, 500, 100_000)
    assert estimate("full", footprint, PRICED, max_output_tokens=28_000).feasible
    assert not estimate("full", footprint, PRICED, max_output_tokens=28_001).feasible
    assert estimate("full", footprint, PRICED, max_output_tokens=1_000, token_error=0.27).feasible
    tight = estimate("full", footprint, PRICED, max_output_tokens=1_000, token_error=0.2701)
    assert all(number in tight.infeasible for number in ("100,000", "27%", "1,000", "128,010", "128,000", "priced"))


# ---- caching ---------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_sent_prefix_is_warm_until_its_time_is_over_and_use_renews_it() -> None:
    clock = Clock()
    ledger = PromptCacheLedger(clock)
    assert ledger.warm_tokens(PRICED, "a") == 0
    ledger.sent(PRICED, "a", 50_000)
    clock.now_s = 299
    assert ledger.warm_tokens(PRICED, "a") == 50_000
    ledger.sent(PRICED, "a", 50_000)
    clock.now_s = 299 + 299
    assert ledger.warm_tokens(PRICED, "a") == 50_000
    clock.now_s = 299 + 300
    assert ledger.warm_tokens(PRICED, "a") == 0


def test_prefixes_and_models_are_apart() -> None:
    ledger = PromptCacheLedger(Clock())
    ledger.sent(PRICED, "a", 50_000)
    assert ledger.warm_tokens(PRICED, "b") == 0
    assert ledger.warm_tokens(replace(PRICED, name="another"), "a") == 0


def test_short_prefixes_and_models_of_unknown_lifetime_are_cold() -> None:
    ledger = PromptCacheLedger(Clock())
    ledger.sent(PRICED, "short", 1_023)
    ledger.sent(UNPRICED, "long", 50_000)
    assert ledger.warm_tokens(PRICED, "short") == 0
    assert ledger.warm_tokens(UNPRICED, "long") == 0


def test_a_reported_miss_makes_a_prefix_cold_until_a_hit_is_reported() -> None:
    ledger = PromptCacheLedger(Clock())
    ledger.sent(PRICED, "a", 50_000, cached_tokens_reported=0)  # the first call cannot hit
    assert ledger.warm_tokens(PRICED, "a") == 50_000
    ledger.sent(PRICED, "a", 50_000, cached_tokens_reported=0)
    assert ledger.warm_tokens(PRICED, "a") == 0
    ledger.sent(PRICED, "a", 50_000)  # no report: nothing learned
    assert ledger.warm_tokens(PRICED, "a") == 0
    ledger.sent(PRICED, "a", 50_000, cached_tokens_reported=49_920)
    assert ledger.warm_tokens(PRICED, "a") == 49_920


def test_a_miss_is_forgotten_with_time() -> None:
    clock = Clock()
    ledger = PromptCacheLedger(clock)
    ledger.sent(PRICED, "a", 50_000)
    ledger.sent(PRICED, "a", 50_000, cached_tokens_reported=0)
    clock.now_s = 300
    ledger.sent(PRICED, "a", 50_000, cached_tokens_reported=0)
    assert ledger.warm_tokens(PRICED, "a") == 50_000


def test_the_ledger_forgets_the_least_recently_sent() -> None:
    ledger = PromptCacheLedger(Clock(), max_prefixes=2)
    for key in ("a", "b", "a", "c"):
        ledger.sent(PRICED, key, 2_000)
    assert [ledger.warm_tokens(PRICED, key) for key in "abc"] == [2_000, 0, 2_000]


def test_threads_can_share_a_ledger() -> None:
    ledger = PromptCacheLedger(max_prefixes=50)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: ledger.sent(PRICED, str(i % 100), 2_000), range(4_000)))
    assert sum(ledger.warm_tokens(PRICED, str(i)) > 0 for i in range(100)) == 50


# ---- standing in for full --------------------------------------------------------------------------------------------


def test_standing_in_for_full_pays_while_it_costs_less() -> None:
    full, short = Footprint(60_000, 150, 60_000), Footprint(20_000, 150, 20_000, preparation_s=1.0)
    assert no_gain(short, full, PRICED) == ""
    cached = replace(full, cached_tokens=59_000)
    assert "59,000 tokens in the prompt cache" in no_gain(short, cached, PRICED)
    assert no_gain(full, full, PRICED)


def test_where_tokens_are_free_time_decides() -> None:
    free = replace(
        PRICED, input_usd_per_mtok=Decimal(0), cached_input_usd_per_mtok=Decimal(0), output_usd_per_mtok=Decimal(0)
    )
    full, short = Footprint(60_000, 150, 60_000), Footprint(20_000, 150, 20_000)
    assert no_gain(replace(short, preparation_s=3.9), full, free) == ""  # reading 40,000 tokens takes 4 s
    assert "4.1 s" in no_gain(replace(short, preparation_s=4.1), full, free)


def test_where_nothing_is_known_tokens_decide() -> None:
    full, short = Footprint(60_000, 150, 60_000), Footprint(20_000, 150, 20_000, preparation_s=60)
    assert no_gain(short, full, UNPRICED) == ""
    assert no_gain(short, replace(full, cached_tokens=50_000), UNPRICED)
