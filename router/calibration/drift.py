"""Drift: whether recent outcomes still look like those that the `learned` policy was fitted to. Pure.

Two things can move. The inputs: other questions, other documents. And what follows from them: answers right more or
less often than predicted, measured against how far off the predictions were on the outcomes of the fit. All of it is
tested at once, so that where nothing moved any alarm at all has probability `level` at most. Assumes that groups of
cases are independent draws. What to do about drift is left to the reader.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np

from ...policies.learned import INPUTS, Floats, Learned, LearnedWeights
from ..core import ModelProfile
from .outcomes import Outcome

FEWEST = 20  # outcomes on either side, and
FEWEST_GROUPS = 5  # groups of documents on either side, below which nothing is tested
_POWER = 0.8  # with which a shift counts as visible
_NORMAL = NormalDist()

Kind = Literal["score", "input"]


@dataclass(frozen=True, slots=True)
class Shift:
    """How far one quantity lies from where it was.

    kind: `score` is a strategy's score minus its prediction, in shares of right answers; `input` is one of the policy's
    inputs, in standard deviations.
    outcomes: recent ones that tell of it. interval: 95 %, for this quantity alone. p: two-sided; adjusted: by Holm, for
    all that was tested. visible: the smallest shift that would be found four times in five, were the spread as it is.
    """

    kind: Kind
    name: str
    outcomes: int
    size: float
    interval: tuple[float, float]
    p: float
    adjusted: float
    visible: float


@dataclass(frozen=True, slots=True)
class Drift:
    """What was tested, the least likely by chance first, and why the rest was not."""

    recent: int
    level: float
    shifts: tuple[Shift, ...]
    untold: tuple[str, ...]

    @property
    def moved(self) -> tuple[Shift, ...]:
        return tuple(shift for shift in self.shifts if shift.adjusted <= self.level)

    @property
    def verdict(self) -> str:
        """All of it in a few sentences, for a person."""
        scores = [shift for shift in self.moved if shift.kind == "score"]
        inputs = [shift for shift in self.moved if shift.kind == "input"]
        tested = [shift for shift in self.shifts if shift.kind == "score"]
        said = []
        if scores:
            said.append(f"Refit: {'; '.join(map(_in_words, scores))}.")
        if inputs:
            named = ", ".join(f"{shift.name} {shift.size:+.2f}" for shift in inputs)
            said.append(f"What is asked has changed on {self.recent:,} outcomes, in standard deviations: {named}.")
        if tested and not scores:
            least = ", ".join(
                f"{s.name} {100 * s.visible:.0f} points" if s.visible < 1 else f"{s.name} none" for s in tested
            )
            what = "The scores have not moved as far as" if inputs else "Nothing moved that"
            said.append(f"{what} {self.recent:,} outcomes could show; smallest shift that would be seen: {least}.")
        if self.untold:
            said.append(f"Cannot tell: {'; '.join(self.untold)}.")
        return " ".join(said)


def drift(
    weights: LearnedWeights,
    fitted: Sequence[Outcome],
    recent: Sequence[Outcome],
    profile_of: Callable[[str], ModelProfile],
    *,
    level: float = 0.05,
) -> Drift:
    """Recent outcomes against those of the fit. level: chance of any alarm where nothing moved, in (0, 1).

    Inputs are compared as the policy reads them, so what is missing counts as average. Scores are compared strategy by
    strategy as score minus prediction; the residuals of the fit carry the fit's own error into the comparison. Recent
    outcomes may all be of the strategy that the router chose: it chose by the features that the prediction is given.
    """
    if why := _too_few("outcomes", fitted, recent):
        return Drift(len(recent), level, (), (why,))
    compared, untold = [], []
    for strategy in sorted({outcome.strategy for outcome in recent}):
        sides = [_predictable(weights, strategy, side, profile_of) for side in (fitted, recent)]
        if why := _too_few(f"outcomes of {strategy} that the policy can predict", *sides):
            untold.append(why)
            continue
        samples = (_sample(_residuals(weights, side, profile_of), side) for side in sides)
        compared.append(_compare("score", strategy, *samples))
    rows = [np.array([weights.scaled(outcome.features) for outcome in side]) for side in (fitted, recent)]
    for column, name in enumerate(INPUTS):
        samples = (_sample(values[:, column], side) for values, side in zip(rows, (fitted, recent), strict=True))
        compared.append(_compare("input", name, *samples))
    return Drift(len(recent), level, _holm(compared, level), tuple(untold))


def _too_few(what: str, fitted: Sequence[Outcome], recent: Sequence[Outcome]) -> str:
    """Why nothing can be told; empty where something can."""
    for when, side in (("recent", recent), ("fitted", fitted)):
        groups = len({outcome.group for outcome in side})
        if len(side) < FEWEST or groups < FEWEST_GROUPS:
            had = f"{len(side)} {when} {what} on {groups} groups of documents"
            return f"{had}, and at least {FEWEST} on {FEWEST_GROUPS} are needed"
    return ""


def _predictable(
    weights: LearnedWeights, strategy: str, outcomes: Sequence[Outcome], profile_of: Callable[[str], ModelProfile]
) -> list[Outcome]:
    """Those of one strategy, on models of which the policy has learned something."""
    return [o for o in outcomes if o.strategy == strategy and weights.level(strategy, profile_of(o.model)) is not None]


def _residuals(
    weights: LearnedWeights, outcomes: Sequence[Outcome], profile_of: Callable[[str], ModelProfile]
) -> Floats:
    """Score minus prediction, shape (n,), of predictable outcomes."""
    policy = Learned(weights)
    beliefs = (policy.quality(o.features, profile_of(o.model), o.strategy) for o in outcomes)
    return np.array([o.score - belief.mean for o, belief in zip(outcomes, beliefs, strict=True) if belief])


# ---- one comparison --------------------------------------------------------------------------------------------------


class _Sample(NamedTuple):
    """A mean of n rows, their variance, the mean's own variance when whole groups are drawn, and its freedom."""

    n: int
    mean: float
    spread: float
    doubt: float
    freedom: float


class _Compared(NamedTuple):
    kind: Kind
    name: str
    outcomes: int
    size: float
    error: float
    freedom: float

    @property
    def p(self) -> float:
        """Two-sided, of Student's t by Wallace's approximation (1959, Ann. Math. Stat. 30:1124)."""
        t, d = self.size / self.error, self.freedom
        return math.erfc((8 * d + 1) / (8 * d + 3) * math.sqrt(d * math.log1p(t * t / d)) / math.sqrt(2))

    def bound(self, p: float) -> float:
        """The size at which p would be this."""
        d = self.freedom
        z = _NORMAL.inv_cdf(1 - p / 2) * (8 * d + 3) / (8 * d + 1)
        return self.error * math.sqrt(d * math.expm1(z * z / d))


def _sample(values: Floats, outcomes: Sequence[Outcome]) -> _Sample:
    """values: shape (n,), one of each outcome, in at least two groups.

    Rows of one group are not independent, so groups count whole. Where a few of them hold most rows, the freedom is
    that of as many equal ones as would weigh as much (Kish's effective size).
    """
    _, group = np.unique([outcome.group for outcome in outcomes], return_inverse=True)
    sizes = np.bincount(group)
    n, g = len(values), len(sizes)
    deviations = np.bincount(group, values - values.mean())
    doubt = float(g / (g - 1) * np.sum(deviations**2) / n**2)
    return _Sample(
        n, float(values.mean()), float(values.var(ddof=1)), doubt, max(n**2 / float(np.sum(sizes**2)) - 1, 1)
    )


def _compare(kind: Kind, name: str, then: _Sample, now: _Sample) -> _Compared:
    """Welch's test, but neither mean is trusted more than the rows of both samples allow.

    Twenty right answers in a row vary not at all, yet are nothing strange where 19 in 20 were right.
    """
    spread = ((then.n - 1) * then.spread + (now.n - 1) * now.spread) / (then.n + now.n - 2)
    doubts = [max(side.doubt, spread / side.n, 1e-18) for side in (then, now)]
    freedom = sum(doubts) ** 2 / sum(v**2 / side.freedom for v, side in zip(doubts, (then, now), strict=True))
    unit = math.sqrt((then.spread + now.spread) / 2) if kind == "input" else 1.0
    if unit < 1e-9:  # constant on both sides
        unit = 1.0
    return _Compared(kind, name, now.n, (now.mean - then.mean) / unit, math.sqrt(sum(doubts)) / unit, freedom)


def _holm(compared: Sequence[_Compared], level: float) -> tuple[Shift, ...]:
    """p-values adjusted for their number, however the tests depend on one another; the smallest first.

    Source: Holm (1979), Scand. J. Stat. 6:65-70.
    """
    shifts, adjusted = [], 0.0
    for rank, one in enumerate(sorted(compared, key=lambda one: one.p)):
        adjusted = max(adjusted, min(1.0, (len(compared) - rank) * one.p))
        half = one.bound(0.05)
        visible = one.bound(level / len(compared)) + _NORMAL.inv_cdf(_POWER) * one.error
        interval = (one.size - half, one.size + half)
        shifts.append(Shift(one.kind, one.name, one.outcomes, one.size, interval, one.p, adjusted, visible))
    return tuple(shifts)


def _in_words(shift: Shift) -> str:
    points, how = abs(100 * shift.size), "less" if shift.size < 0 else "more"
    return (
        f"{shift.name} answers are right {points:.0f} points {how} often than predicted on {shift.outcomes:,} recent "
        "outcomes"
    )
