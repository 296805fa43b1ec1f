"""Metrics of routing and of predicted quality: pure functions of arrays. What to measure is `report.py`'s business.

n: rows (one case answered by one model with every strategy); S: strategies. Scores and predictions are in [0, 1] and
finite, costs are finite and >= 0 in any one unit. What is not defined comes back as a `Figure` without a value and
with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

_BINS = 15  # of a reliability diagram; Guo et al. (2017), arXiv 1706.04599
_LEVEL = 0.95  # of every interval


@dataclass(frozen=True, slots=True)
class Figure:
    """A number, or None and why there is none."""

    value: float | None
    why: str = ""


# ---- a weak and a strong route: RouteLLM, arXiv 2406.18665, section 3 ------------------------------------------------


def share_curve(advantage: Floats, weak: Floats, strong: Floats) -> tuple[Floats, Floats]:
    """Mean quality against the share of rows sent to the strong route, those of largest predicted advantage first.

    advantage, weak, strong: shape (n,); predicted strong - weak, and the score of either.
    Returns shares and qualities, shape (m,), from (0, always weak) to (1, always strong). Rows of equal advantage give
    one straight segment, which is what sending them in random order gives on average.
    """
    order = np.argsort(-advantage, kind="stable")
    sent = np.flatnonzero(np.append(np.diff(advantage[order]) != 0, True)) + 1
    gained = np.cumsum((strong - weak)[order])[sent - 1]
    shares = np.append(0.0, sent / len(weak))
    return shares, weak.mean() + np.append(0.0, gained / len(weak))


def pgr(quality: float, weak: float, strong: float) -> Figure:
    """Performance gap recovered: 0 is always weak, 1 always strong."""
    if strong <= weak:
        return Figure(None, "the strong route is not stronger")
    return Figure((quality - weak) / (strong - weak))


def apgr(shares: Floats, qualities: Floats) -> Figure:
    """Average PGR over the share of strong calls: the trapezoid area of RouteLLM's code. A random router has 0.5.

    shares, qualities: shape (m,), from share 0 (always weak) to share 1 (always strong), ascending.
    """
    return pgr(_area(qualities, shares), float(qualities[0]), float(qualities[-1]))


def _area(heights: Floats, at: Floats) -> float:
    """Trapezoid area; numpy renamed its own between the versions we allow."""
    return float(np.sum(np.diff(at) * (heights[1:] + heights[:-1])) / 2)


def apgr_of_points(shares: Floats, qualities: Floats, points: int = 10) -> Figure:
    """APGR as the paper writes it: mean PGR at `points` costs.

    They are the middles of equal parts of [0, 1], so that a random router has 0.5 here too.
    """
    middles = (np.arange(points) + 0.5) / points
    return pgr(float(np.interp(middles, shares, qualities).mean()), float(qualities[0]), float(qualities[-1]))


def cpt(shares: Floats, qualities: Floats, target: float) -> Figure:
    """Call-performance threshold: the smallest share of strong calls that recovers `target` (in (0, 1]) of the gap."""
    weak, strong = float(qualities[0]), float(qualities[-1])
    if strong <= weak:
        return pgr(weak, weak, strong)
    recovered = (qualities - weak) / (strong - weak)
    first = int(np.argmax(recovered >= target - 1e-12))  # the last point recovers 1, so there is one
    low, high = recovered[first - 1], recovered[first]
    return Figure(float(shares[first - 1] + (shares[first] - shares[first - 1]) * (target - low) / (high - low)))


# ---- many routes in the plane of cost and quality: RouterBench, arXiv 2403.12031, section 3 --------------------------


def non_decreasing_hull(points: Floats) -> Floats:
    """Upper convex hull of (cost, quality) points up to the best of them: what mixing them at random can reach.

    points: shape (m, 2). Returns shape (k, 2), cost and quality both strictly ascending, slopes strictly falling. To
    the right of its last point the hull is flat: more money need not be spent.
    """
    hull: list[tuple[float, float]] = []
    for cost, quality in sorted(map(tuple, points.tolist()), key=lambda point: (point[0], -point[1])):
        if hull and quality <= hull[-1][1]:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-2], (cost, quality)):
            hull.pop()
        hull.append((cost, quality))
    return np.array(hull)


def _slope(left: tuple[float, float], right: tuple[float, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])


def aiq(hull: Floats, cheapest: float, dearest: float) -> Figure:
    """Average improvement in quality: mean height of a non-decreasing hull between two costs.

    hull: shape (k, 2), from `non_decreasing_hull`. cheapest, dearest: the costs of the cheapest and the dearest single
    strategy, so that hulls of different routers are compared over one range.
    """
    if dearest <= cheapest:
        return Figure(None, "all strategies cost the same")
    costs, qualities = hull[:, 0], hull[:, 1]
    if costs[0] > cheapest + 1e-9 * dearest:
        return Figure(None, "the router has no operating point as cheap as the cheapest strategy")
    knots = np.unique(np.clip(np.append(costs, [cheapest, dearest]), cheapest, dearest))
    return Figure(_area(np.interp(knots, costs, qualities), knots) / (dearest - cheapest))


def oracle(score: Floats, cost: Floats) -> Indices:
    """Which strategy a router that knows the outcomes would choose: the best score, the cheapest of these on a tie.

    score, cost: shape (n, S). Returns shape (n,).
    """
    best = score >= score.max(axis=1, keepdims=True)
    cheapest: Indices = np.where(best, cost, np.inf).argmin(axis=1)
    return cheapest


def regret(score: Floats, chosen: Indices) -> Floats:
    """Score given away against the oracle, shape (n,), >= 0. score: shape (n, S); chosen: shape (n,)."""
    lost: Floats = score.max(axis=1) - score[np.arange(len(score)), chosen]
    return lost


def oracle_gap_share(quality: float, single: float, best: float) -> Figure:
    """Share of the way from the best single strategy to the oracle; negative where the router is worse than the single.

    Takes the place of PGR, which LaRA's pairs often leave undefined.
    """
    if best <= single:
        return Figure(None, "the oracle is no better than the best single strategy")
    return Figure((quality - single) / (best - single))


# ---- predicted quality against what came out -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bin:
    """Rows of similar prediction: how many, their mean prediction, their mean score; `rows` are their indices."""

    predicted: float
    observed: float
    rows: Indices


def equal_width_bins(predicted: Floats, score: Floats, bins: int = _BINS) -> list[Bin]:
    """Non-empty bins of width 1 / bins, ascending. predicted, score: shape (n,)."""
    return _bins(predicted, score, np.linspace(0, 1, bins + 1))


def equal_mass_bins(predicted: Floats, score: Floats, bins: int = _BINS) -> list[Bin]:
    """Non-empty bins of about n / bins rows, ascending; equal predictions stay together."""
    return _bins(predicted, score, np.unique(np.quantile(predicted, np.linspace(0, 1, bins + 1))))


def _bins(predicted: Floats, score: Floats, edges: Floats) -> list[Bin]:
    number = np.searchsorted(edges[1:-1], predicted, side="right")
    members = [np.flatnonzero(number == k) for k in np.unique(number)]
    return [Bin(float(predicted[rows].mean()), float(score[rows].mean()), rows) for rows in members]


def ece(bins: Sequence[Bin]) -> float:
    """Expected calibration error, in [0, 1]: mean distance of observed from predicted, weighted by rows.

    Depends on the bins, and is biased upwards where they hold few rows. Source: Naeini et al. (2015), AAAI.
    """
    return sum(len(b.rows) * abs(b.observed - b.predicted) for b in bins) / sum(len(b.rows) for b in bins)


def brier(predicted: Floats, score: Floats) -> float:
    """Mean squared error, in [0, 1]. Source: Brier (1950), Mon. Weather Rev. 78:1-3."""
    return float(np.mean((predicted - score) ** 2))


def log_loss(predicted: Floats, score: Floats) -> float:
    """Mean cross entropy in nats; predictions are kept 1e-6 away from 0 and 1, so it is at most 13.8."""
    p = np.clip(predicted, 1e-6, 1 - 1e-6)
    return float(-np.mean(score * np.log(p) + (1 - score) * np.log1p(-p)))


# ---- how sure --------------------------------------------------------------------------------------------------------


class Bootstrap:
    """95 % intervals by resampling whole groups of rows, since rows that share documents are not independent.

    One set of resamples serves every figure, so figures of one run are paired. The percentiles are widened for few
    groups ("expanded percentile", Hesterberg (2015), Am. Stat. 69:371-386); where every group says the same, the
    interval holds what that many groups may have missed (the exact binomial bound of n successes in n).
    """

    def __init__(self, groups: Sequence[str], *, resamples: int = 2_000, seed: int = 0) -> None:
        """groups: length n, the group of each row. Holds resamples × (number of groups) floats of four bytes."""
        names, self._group_of = np.unique(np.asarray(groups), return_inverse=True)
        self._size = len(names)
        draws = np.random.default_rng(seed).multinomial(self._size, np.full(self._size, 1 / self._size), resamples)
        self._draws = draws.astype(np.float32)

    def ratio(
        self, above: Floats, below: Floats | None = None, *, span: tuple[float, float] | None = None
    ) -> tuple[float, float] | None:
        """Interval of sum(above) / sum(below): a mean where `below` counts the rows that belong.

        above, below: shape (n,), below >= 0; None counts every row. span: the values that are possible; None where
        there are no bounds. Returns None where fewer than two groups have any weight.
        """
        weights = np.ones(len(above)) if below is None else below
        over = np.bincount(self._group_of, above, self._size)
        under = np.bincount(self._group_of, weights, self._size)
        groups = int(np.count_nonzero(under))
        if groups < 2:
            return None
        value = over.sum() / under.sum()
        if np.allclose(over, value * under, rtol=0, atol=1e-12):
            return _unvaried(float(value), groups, span)
        down = self._draws @ under
        resampled = (self._draws @ over)[down > 0] / down[down > 0]
        tail = _expanded_tail(groups)
        low, high = np.quantile(resampled, [tail, 1 - tail])
        low, high = min(low, value), max(high, value)  # a skewed statistic may leave its own percentiles
        return (float(low), float(high)) if span is None else (max(float(low), span[0]), min(float(high), span[1]))


def _unvaried(value: float, groups: int, span: tuple[float, float] | None) -> tuple[float, float] | None:
    if span is None:
        return None
    missed = 1 - ((1 - _LEVEL) / 2) ** (1 / groups)
    return value - missed * (value - span[0]), value + missed * (span[1] - value)


def _expanded_tail(groups: int) -> float:
    """Share of resamples beyond either end of the interval: 0.025 for many groups, less for few."""
    normal = NormalDist()
    z = normal.inv_cdf((1 + _LEVEL) / 2)
    freedom = groups - 1
    # Student's t by its first two corrections to the normal; Abramowitz & Stegun (1964), 26.7.5.
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return normal.cdf(-t * math.sqrt(groups / freedom))


@dataclass(frozen=True, slots=True)
class McNemar:
    """Rows that only the first, or only the second, got right; and how likely so uneven a split is by chance."""

    won: int
    lost: int
    p: float


def mcnemar(first: Floats, second: Floats) -> McNemar:
    """Exact two-sided test of two routes on the same rows; a score of at least 0.5 counts as right.

    first, second: shape (n,). Takes rows for independent. Source: McNemar (1947), Psychometrika 12:153-157.
    """
    right, other = first >= 0.5, second >= 0.5
    won, lost = int(np.sum(right & ~other)), int(np.sum(other & ~right))
    n = won + lost
    ways = term = 1
    for k in range(1, min(won, lost) + 1):
        term = term * (n - k + 1) // k
        ways += term
    return McNemar(won, lost, min(1.0, 2 * ways / 2**n))
