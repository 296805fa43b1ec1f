"""Bills, seconds, room in the window, and what the ledger believes a provider has cached."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.router.core import Delegated, Footprint, ModelProfile, Usage
from longroute.router.costs import (
    PromptCacheLedger,
    charge,
    estimate,
    latency,
    no_gain,
    price,
)
from longroute.router.models import known_models, profile_of

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
    written = replace(use, written_tokens=200_000)
    assert price(PRICED, written) == Decimal("1.2") + Decimal("1") + Decimal("0.2") + Decimal("2")


def test_writing_costs_the_input_price_where_there_is_no_other() -> None:
    use = Usage(prompt_tokens=1_000)
    profile = replace(PRICED, cache_write_usd_per_mtok=None)
    assert price(profile, replace(use, written_tokens=1_000)) == price(profile, use)


LONG = replace(
    PRICED,
    long_prompt_tokens=200_000,
    long_input_usd_per_mtok=Decimal(8),
    long_cached_input_usd_per_mtok=Decimal("0.8"),
    long_cache_write_usd_per_mtok=Decimal(10),
    long_output_usd_per_mtok=Decimal(30),
)


def test_a_long_prompt_makes_the_whole_call_dearer() -> None:
    assert price(LONG, Usage(200_000, 0, 1_000)) == price(PRICED, Usage(200_000, 0, 1_000))
    use = Usage(500_000, 100_000, 1_000, written_tokens=300_000)
    assert price(LONG, use) == Decimal("0.8") + Decimal("0.08") + Decimal("3") + Decimal("0.03")


def test_published_prices_of_long_prompts_are_known() -> None:
    profile = profile_of("gemini-2.5-pro")
    assert price(profile, Usage(200_000, 0, 1_000)) == Decimal("0.26")
    assert price(profile, Usage(300_000, 0, 1_000)) == Decimal("0.765")
    dearer = [profile_of(name) for name in known_models() if profile_of(name).long_prompt_tokens]
    assert {one.name for one in dearer} >= {name for name in known_models() if " above" in profile_of(name).source}
    assert len(dearer) > 5
    for one in dearer:
        assert (one.long_prompt_tokens or 0) < one.context_window
        for name in ("input_usd_per_mtok", "cached_input_usd_per_mtok", "output_usd_per_mtok"):
            short, long = getattr(one, name), getattr(one, f"long_{name}")
            assert (short is None) == (long is None) and (short is None or short < long)


def test_many_short_calls_are_no_long_prompt() -> None:
    assert price(LONG, Footprint(500_000, 0, 16_000, calls=40)) == 2
    assert price(LONG, Footprint(500_000, 0, 480_000, calls=2)) == 4


def test_an_unknown_price_of_long_prompts_is_unknown_for_these_alone() -> None:
    profile = replace(LONG, long_output_usd_per_mtok=None)
    assert price(profile, Usage(200_001, 0, 1)) is None
    assert price(profile, Usage(200_000, 0, 1)) is not None


# ---- two models ------------------------------------------------------------------------------------------------------

CHEAP = ModelProfile(
    "cheap",
    16_000,
    input_usd_per_mtok=Decimal("0.4"),
    output_usd_per_mtok=Decimal(2),
    prefill_tokens_per_s=20_000,
    decode_tokens_per_s=100,
    overhead_s=0.1,
)
READ = Footprint(100_000, 1_000, 12_000, calls=10, sequential_calls=10)
SHARED = Footprint(
    102_000, 1_200, 2_000, calls=11, sequential_calls=11, preparation_s=0.5, delegated=Delegated(CHEAP, READ)
)


def test_what_another_model_does_costs_and_takes_what_it_takes_there() -> None:
    assert price(PRICED, SHARED) == Decimal("0.04") + Decimal("0.002") + Decimal("0.008") + Decimal("0.004")
    assert latency(PRICED, SHARED) == pytest.approx(0.5 + (1 + 5 + 10) + (0.5 + 0.2 + 4))


def test_an_unknown_price_of_either_model_makes_the_cost_unknown() -> None:
    unpriced = replace(SHARED, delegated=Delegated(UNPRICED, READ))
    assert price(PRICED, unpriced) is None and latency(PRICED, unpriced) is None
    assert price(UNPRICED, SHARED) is None


def test_each_prompt_must_fit_the_window_of_its_own_model() -> None:
    assert estimate("chain_of_agents", SHARED, PRICED, max_output_tokens=1_000).feasible
    small = replace(SHARED, delegated=Delegated(replace(CHEAP, context_window=12_500), READ))
    assert "cheap accepts 12,500" in estimate("chain_of_agents", small, PRICED, max_output_tokens=1_000).infeasible
    wide = replace(SHARED, delegated=Delegated(CHEAP, replace(READ, largest_prompt_tokens=12_000)))
    assert estimate("chain_of_agents", wide, replace(PRICED, context_window=4_000), max_output_tokens=1_000).feasible


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
