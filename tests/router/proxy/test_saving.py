from __future__ import annotations

import math
import uuid
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.router.core import Usage
from longroute.router.proxy.records import Record
from longroute.router.proxy.saving import LEAST_OF_EACH, Floats, against_holdout, held_out, measured


def eligible(before: int, after: int, *, used: int | None = None, holdout: bool = False) -> Record:
    """One request with a document; its price is a dollar per token."""
    return Record(
        id=uuid.uuid4().hex,
        at=0.0,
        upstream="u",
        api="chat",
        model="m",
        strategy="rag",
        eligible=True,
        holdout=holdout,
        status=200,
        tokens_before=before,
        tokens_after=after,
        token_error=0.02,
        cost_before_usd=Decimal(before),
        cost_after_usd=Decimal(after),
        usage=None if used is None else Usage(used, 0, 0, Decimal(used)),
    )


# ---- the draw --------------------------------------------------------------------------------------------------------


@given(st.uuids(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_holds_out_the_same_requests_and_more(id: uuid.UUID, share: float, other: float) -> None:
    small, large = sorted((share, other))
    assert held_out(id.hex, large) or not held_out(id.hex, small)
    assert held_out(id.hex, 1.0)
    assert not held_out(id.hex, 0.0)


def test_the_share_that_is_held_out_is_the_one_asked_for() -> None:
    held = sum(held_out(f"{number:032x}", 0.1) for number in range(20_000))
    assert abs(held / 20_000 - 0.1) < 4 * math.sqrt(0.1 * 0.9 / 20_000)


# ---- measured --------------------------------------------------------------------------------------------------------


def test_with_a_holdout_the_upstream_s_counts_are_compared() -> None:
    """Our counts are wrong by a third here; the measurement does not care."""
    routed = [eligible(10_000, 2_000, used=3_000) for _ in range(100)]
    holdout = [eligible(10_000, 10_000, used=15_000, holdout=True) for _ in range(40)]
    found = measured([*routed, *holdout]).tokens
    assert found is not None
    assert (found.basis, found.routed, found.holdout) == ("measured", 100, 40)
    assert found.share == pytest.approx(0.8)
    assert (found.before, found.after) == pytest.approx((15_000, 3_000))


def test_a_holdout_that_drew_longer_documents_does_not_exaggerate_the_saving() -> None:
    routed = [eligible(10_000, 2_000, used=2_000) for _ in range(100)]
    holdout = [eligible(40_000, 40_000, used=40_000, holdout=True) for _ in range(100)]
    found = measured([*routed, *holdout]).tokens
    assert found is not None
    assert found.before == pytest.approx(25_000)  # the mean size of all requests


@pytest.mark.parametrize("lacking", ["routed", "holdout"])
def test_too_few_of_either_kind_make_it_an_estimate(lacking: str) -> None:
    few, enough = LEAST_OF_EACH - 1, LEAST_OF_EACH
    routed = [eligible(1000, 500, used=500)] * (few if lacking == "routed" else enough)
    holdout = [eligible(1000, 1000, used=1000, holdout=True)] * (few if lacking == "holdout" else enough)
    saving = measured([*routed, *holdout])
    assert saving.tokens is not None
    assert saving.tokens.basis == "estimated"
    assert saving.statement.startswith("Estimated, not measured")


def test_requests_without_a_count_are_left_out_and_counted() -> None:
    routed = [eligible(1000, 500, used=500)] * 50 + [eligible(1000, 500)] * 3
    holdout = [eligible(1000, 1000, used=1000, holdout=True)] * 50
    found = measured([*routed, *holdout]).tokens
    assert found is not None
    assert (found.basis, found.left_out) == ("measured", 3)


def test_cost_is_what_the_upstream_charged_with_its_cache() -> None:
    """The held-out requests hit the prompt cache, so unrouted they cost a tenth of their tokens."""
    routed = [eligible(1000, 500, used=500)] * 50
    cached = replace(eligible(1000, 1000, used=1000, holdout=True), usage=Usage(1000, 1000, 0, Decimal(100)))
    saving = measured([*routed, *[cached] * 50])
    assert saving.tokens is not None and saving.cost_usd is not None
    assert saving.tokens.share == pytest.approx(0.5)
    assert saving.cost_usd.share == pytest.approx(-4.0)


def test_the_interval_covers_the_true_saving() -> None:
    """2,000 days of requests of log-normal sizes, a tenth of them held out: of the 95 % intervals at least 94 % cover
    the truth, and 93 % on days with hardly enough requests, but for three standard errors of the simulation."""
    rng = np.random.default_rng(5)
    days = 2_000

    def requests(n: int) -> tuple[Floats, Floats, Floats]:
        counted = np.exp(rng.normal(9.5, 1.2, n)).clip(4_000, 500_000)
        whole = counted * np.exp(rng.normal(0, 0.03, n))
        sent = np.where(rng.random(n) < 0.15, whole, np.minimum(whole, rng.normal(3_300, 300, n)))
        return counted, whole, sent

    _, whole, sent = requests(1_000_000)
    truth = sent.mean() / whole.mean()
    for n, promised in ((400, 0.93), (1_000, 0.94)):
        covered, widths = 0, []
        for _ in range(days):
            counted, whole, sent = requests(n)
            cut = max(n // 10, LEAST_OF_EACH)
            against = against_holdout(np.column_stack([sent, counted])[cut:], np.column_stack([whole, counted])[:cut])
            assert against is not None
            low, high = against[2]
            covered += low <= truth <= high
            widths.append(high - low)
        assert covered / days >= promised - 3 * math.sqrt(0.05 * 0.95 / days)
    assert np.mean(widths) < 0.1  # plain means of the two groups would give intervals twice as wide


# ---- estimated -------------------------------------------------------------------------------------------------------


def test_without_a_holdout_the_counts_are_compared_and_their_error_is_the_interval() -> None:
    saving = measured([eligible(9_000, 1_000), eligible(1_000, 1_000)])
    found = saving.tokens
    assert found is not None
    assert (found.basis, found.before, found.after) == ("estimated", 5_000, 1_000)
    assert found.share == pytest.approx(0.8)
    assert found.interval == pytest.approx((1 - 0.2 * 1.02 / 0.98, 1 - 0.2 * 0.98 / 1.02))
    assert "always sending everything" in saving.statement


def test_an_unknown_price_is_unknown_and_not_free() -> None:
    priced, unpriced = eligible(1000, 100), replace(eligible(1000, 900), cost_before_usd=None, cost_after_usd=None)
    found = measured([priced, unpriced]).cost_usd
    assert found is not None
    assert (found.routed, found.left_out) == (1, 1)
    assert found.share == pytest.approx(0.9)
    assert measured([unpriced]).cost_usd is None


def test_requests_that_could_not_be_routed_do_not_count() -> None:
    saving = measured([replace(eligible(1000, 1000), eligible=False)])
    assert (saving.eligible, saving.tokens, saving.cost_usd, saving.quality) == (0, None, None, None)
    assert saving.statement.startswith("No eligible request")


def test_quality_is_told_as_an_estimate() -> None:
    rag = replace(
        eligible(1000, 100),
        quality=0.6,
        quality_interval=(0.5, 0.7),
        quality_full=0.8,
        quality_full_interval=(0.7, 0.9),
    )
    full = replace(rag, quality=0.8, quality_interval=(0.7, 0.9))
    found = measured([rag, full, eligible(1000, 100)]).quality
    assert found is not None
    assert found.requests == 2
    assert (found.sent, found.full) == pytest.approx((0.7, 0.8))
    assert found.sent_interval == pytest.approx((0.6, 0.8))
    assert "no answer was judged" in found.basis


@given(
    st.lists(
        st.builds(
            eligible,
            st.integers(0, 10**6),
            st.integers(0, 10**6),
            used=st.none() | st.integers(0, 10**6),
            holdout=st.booleans(),
        ),
        max_size=40,
    ),
    st.integers(1, 4),
)
def test_any_records_give_finite_numbers_in_order(records: list[Record], times: int) -> None:
    saving = measured(records * times)
    for found in (saving.tokens, saving.cost_usd):
        if found is not None:
            low, high = found.interval
            assert all(map(math.isfinite, (low, found.share, high, found.before, found.after)))
            assert low <= found.share + 1e-9 and found.share <= high + 1e-9
            assert found.routed + found.holdout + found.left_out <= saving.eligible


def test_what_the_upstream_refused_has_saved_nothing() -> None:
    answered = eligible(1000, 500)
    saving = measured([answered, replace(eligible(9000, 10), status=429)])
    assert saving.eligible == 1
    assert saving.tokens is not None and saving.tokens.share == pytest.approx(0.5)
