"""How much the routing saved, and how sure that is. Arithmetic on records; nothing here keeps or fetches them.

**Measured**, where a share of the eligible requests is held out at random and sent as it came: the upstream's own
counts of what the routed requests took against what the held-out ones took. Assignment does not look at the request, so
the two groups differ by the routing alone, failures included.

**Estimated**, elsewhere: our count of what was sent against our count of the original, with the error of counting.
That compares with always sending everything, which nobody has tried.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from .records import Record

Floats = npt.NDArray[np.float64]

LEAST_OF_EACH = 30
"""Requests with known usage that either group needs; with fewer the saving is estimated. In simulations with heavy
tails the interval kept its promise from here on (tests/router/proxy/test_saving.py)."""

_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a request takes with routing and without.

    share: saved part of `before`, with a 95 % interval; negative where routing took more.
    before, after: mean per request, without and with routing.
    routed, holdout: requests compared. left_out: eligible ones that could not be, for want of a count or a price.
    """

    basis: Literal["measured", "estimated"]
    share: float
    interval: tuple[float, float]
    before: float
    after: float
    routed: int
    holdout: int
    left_out: int


@dataclass(frozen=True, slots=True)
class Quality:
    """Mean estimated chance of a correct answer as sent and had everything been sent; intervals as if all errors had
    one cause, which is the widest they can be. requests: for which both are known."""

    sent: float
    sent_interval: tuple[float, float] | None
    full: float
    full_interval: tuple[float, float] | None
    requests: int
    basis: str = "estimated by the policy from each question and its document; no answer was judged"


@dataclass(frozen=True, slots=True)
class Saving:
    """eligible: requests that could have been routed, held out ones among them. None means unknown."""

    eligible: int
    tokens: Comparison | None
    cost_usd: Comparison | None
    quality: Quality | None
    statement: str


def held_out(request_id: str, share: float) -> bool:
    """Whether this request belongs to the holdout: the same answer for the same id, and for any larger share."""
    digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest) < share * 2**64


def measured(records: Sequence[Record]) -> Saving:
    eligible = [record for record in records if record.eligible and not record.failed]
    tokens = _compare(eligible, _used_tokens, lambda r: _pair(r.tokens_before, r.tokens_after))
    cost = _compare(eligible, _used_dollars, lambda r: _pair(r.cost_before_usd, r.cost_after_usd))
    return Saving(len(eligible), tokens, cost, _quality(eligible), _statement(tokens))


def _compare(
    eligible: Sequence[Record],
    used: Callable[[Record], float | None],
    estimated: Callable[[Record], tuple[float, float] | None],
) -> Comparison | None:
    return _from_holdout(eligible, used) or _from_estimates(eligible, estimated)


def _from_holdout(eligible: Sequence[Record], used: Callable[[Record], float | None]) -> Comparison | None:
    routed: list[tuple[float, float]] = []
    holdout: list[tuple[float, float]] = []
    for record in eligible:
        took = used(record)
        if took is not None and record.tokens_before:
            (holdout if record.holdout else routed).append((took, record.tokens_before))
    if min(len(routed), len(holdout)) < LEAST_OF_EACH:
        return None
    against = against_holdout(np.array(routed), np.array(holdout))
    if against is None:
        return None
    before, after, (low, high) = against
    return Comparison(
        "measured",
        share=1 - after / before,
        interval=(1 - high, 1 - low),
        before=before,
        after=after,
        routed=len(routed),
        holdout=len(holdout),
        left_out=len(eligible) - len(routed) - len(holdout),
    )


def against_holdout(routed: Floats, holdout: Floats) -> tuple[float, float, tuple[float, float]] | None:
    """Mean per request without and with routing, and a 95 % interval of their ratio, with / without.

    routed, holdout: shape (n, 2), n >= 2; for each request what it took, and our count of its original prompt, which
    does not depend on the draw. None where a group took nothing (an upstream that reports zeros).

    The mean without routing is a ratio estimate: what the held-out requests took per counted token, times the mean
    count of all requests. Sizes of documents vary over orders of magnitude and a holdout is small, so its plain mean
    mostly says whether a few long documents were drawn; the ratio does not depend on that, and any constant error of
    our counts cancels. The error is by the delta method rather than a bootstrap: it takes microseconds, and the
    dashboard asks every two seconds. On the logarithm, because a ratio near zero has a long upper tail.
    Source: Cochran, Sampling Techniques (3rd ed. 1977), sections 6.3 and 6.5.
    """
    n = len(routed) + len(holdout)
    size = (routed[:, 1].sum() + holdout[:, 1].sum()) / n
    after = routed[:, 0].mean()
    held_took, held_size = holdout.mean(axis=0)
    before = held_took / held_size * size
    if not (after > 0 and before > 0):
        return None
    # The pull of each request on log(after / before) = log after - log held_took + log held_size - log size.
    pull_routed = routed[:, 0] / after / len(routed) - routed[:, 1] / size / n
    pull_holdout = (holdout[:, 1] / held_size - holdout[:, 0] / held_took) / len(holdout) - holdout[:, 1] / size / n
    error = math.sqrt(sum(len(pull) * pull.var(ddof=1) for pull in (pull_routed, pull_holdout)))
    fewest = min(len(routed), len(holdout)) - 1
    reach = error * (_Z + (_Z**3 + _Z) / (4 * fewest))  # Student's t, by the first term of its expansion in 1/n
    ratio = after / before
    return float(before), float(after), (float(ratio * math.exp(-reach)), float(ratio * math.exp(reach)))


def _from_estimates(
    eligible: Sequence[Record], estimated: Callable[[Record], tuple[float, float] | None]
) -> Comparison | None:
    routed = [record for record in eligible if not record.holdout]
    known = [(*pair, record.token_error) for record in routed if (pair := estimated(record)) is not None]
    before, after = (sum(row[side] for row in known) for side in (0, 1))
    if before <= 0:
        return None
    # As if every count of the one kind were too low and every count of the other too high.
    error = sum(row[0] * row[2] for row in known) / before
    left = after / before
    return Comparison(
        "estimated",
        share=1 - left,
        interval=(1 - left * (1 + error) / max(1 - error, 1e-9), 1 - left * (1 - error) / (1 + error)),
        before=before / len(known),
        after=after / len(known),
        routed=len(known),
        holdout=0,
        left_out=len(routed) - len(known),
    )


def _quality(eligible: Sequence[Record]) -> Quality | None:
    known = [r for r in eligible if not r.holdout and r.quality is not None and r.quality_full is not None]
    if not known:
        return None
    return Quality(
        sent=float(np.mean([r.quality for r in known])),
        sent_interval=_mean_interval([r.quality_interval for r in known]),
        full=float(np.mean([r.quality_full for r in known])),
        full_interval=_mean_interval([r.quality_full_interval for r in known]),
        requests=len(known),
    )


def _mean_interval(intervals: Sequence[tuple[float, float] | None]) -> tuple[float, float] | None:
    known = [interval for interval in intervals if interval is not None]
    if len(known) < len(intervals):
        return None
    low, high = np.mean(known, axis=0)
    return float(low), float(high)


def _statement(tokens: Comparison | None) -> str:
    if tokens is None:
        return "No eligible request yet, so nothing can be said about the saving."
    if tokens.basis == "measured":
        return (
            f"Measured: {tokens.routed:,} routed requests against {tokens.holdout:,} drawn at random and left alone, "
            "by the upstream's own counts. The interval takes requests for independent of one another."
        )
    return (
        f"Estimated, not measured: our count of what was sent for {tokens.routed:,} requests against our count of "
        "always sending everything; the interval is the error of counting. A holdout share makes it measured, from "
        f"{LEAST_OF_EACH} requests of each kind on."
    )


def _used_tokens(record: Record) -> float | None:
    return record.usage.prompt_tokens if record.usage is not None else None


def _used_dollars(record: Record) -> float | None:
    usage = record.usage
    return None if usage is None or usage.cost_usd is None else float(usage.cost_usd)


def _pair(before: float | Decimal | None, after: float | Decimal | None) -> tuple[float, float] | None:
    return None if before is None or after is None else (float(before), float(after))
