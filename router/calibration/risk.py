"""Guarantees: how far a routing rule may go before its loss is no longer shown to be small.

The rule is `policies/risk_controlled.py`'s: take the cheapest strategy predicted to be at most a threshold worse than
`full`. Two guarantees, both over independent draws from the traffic that the rule will meet:

- *Learn then Test* (Angelopoulos et al., arXiv 2110.01052): with probability at least 1 - delta over calibration sets,
  the mean loss at the chosen threshold is at most epsilon. Fixed-sequence testing, any bounded loss.
- *Conformal risk control* (arXiv 2208.02814): the expected loss of the next request is at most epsilon, on average
  over calibration sets, for losses that do not decrease from each threshold to the next cheaper one.

Pure functions of numbers; predicting the qualities is `fit.py`'s business, and must have been done on other requests.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...policies.risk_controlled import FULL, Guarantee, Loss
from ..errors import CalibrationError, MissingExtra

Floats = npt.NDArray[np.float64]

# Chosen before seeing any loss, which the guarantee needs: from "clearly better than full" to "much worse will do".
THRESHOLDS: tuple[float, ...] = tuple(round(-0.30 + 0.02 * step, 2) for step in range(31))

_MOST_TIMES = 64  # how many times the calibration set is imagined larger before more of the same is called hopeless


@dataclass(frozen=True, slots=True)
class RiskPoint:
    """What a threshold brings on the calibration set.

    mean_loss: as the guarantee counts it; quality: mean over requests; cost_share: of the cost of always-full;
    full_share: of requests that go to `full`; p_value: of "the true mean loss is over epsilon", None without a delta.
    """

    threshold: float
    mean_loss: float
    quality: float
    cost_share: float
    full_share: float
    p_value: float | None


def choose_threshold(
    predicted: Floats,
    quality: Floats,
    cost: Floats,
    *,
    strategies: Sequence[str],
    models: Sequence[str],
    epsilon: float,
    delta: float | None = 0.1,
    groups: Sequence[str] | None = None,
    loss: Loss = "difference",
    thresholds: Sequence[float] = THRESHOLDS,
) -> tuple[Guarantee, tuple[RiskPoint, ...]]:
    """The cheapest threshold shown to be safe, and the curve of all thresholds.

    predicted: shape (n_requests, n_strategies), in [0, 1], as the policy's estimates show it; by a policy that was
    fitted on other documents. NaN where nothing is predicted: never chosen.
    quality: same shape, in [0, 1]: how right each strategy's answer was. cost: same shape, >= 0, any unit; infinite
    where the strategy cannot be used. That of `full` is positive and finite.
    models: whose outcomes these are; delta: None for conformal risk control, which needs loss="shortfall".
    groups: the document (or other source) of each request, to draw the conclusion from as many documents instead of
    requests. For few sources whose requests are much alike; it takes about as many documents as it would requests.
    thresholds: from the safest to the cheapest, chosen without looking at the losses.

    The default loss is the *difference*, because its mean is what a user means by "at most two points worse than full".
    The shortfall counts no gains, so it is large even between two equally good strategies, which are right on different
    requests, and larger where scores are noisy (`benchmarks/results/risk_simulation.md`).
    Raises CalibrationError when the arrays do not match or leave their ranges.
    """
    _check(predicted, quality, cost, strategies, epsilon, delta)
    if list(thresholds) != sorted(set(thresholds)):
        raise CalibrationError("The thresholds must increase, from the safest to the cheapest.")
    if delta is None and loss == "difference":
        raise CalibrationError("Without a delta the loss must be 'shortfall': a difference can fall as routing widens.")
    # As in the policy, equally cheap strategies go to full first, then by name.
    order = sorted(range(len(strategies)), key=lambda s: (strategies[s] != FULL, strategies[s]))
    predicted, quality, cost = (array[:, order] for array in (predicted, quality, cost))
    gap = predicted[:, :1] - predicted
    gap[:, 0] = -np.inf  # full is always close enough; what is not predicted (NaN) never is
    chosen = np.stack([np.where(gap <= t, cost, np.inf).argmin(axis=1) for t in thresholds], axis=1)
    reached = np.take_along_axis(quality, chosen, axis=1)
    spent = np.take_along_axis(cost, chosen, axis=1).sum(axis=0) / cost[:, 0].sum()
    difference = quality[:, :1] - reached

    if loss == "difference":
        low, span = -1.0, 2.0
    else:
        low, span = 0.0, 1.0
        difference = np.maximum(difference, 0.0)
    unit_losses = difference if groups is None else _mean_by(groups, difference)
    scaled, limit = (unit_losses - low) / span, (epsilon - low) / span  # the tests want losses in [0, 1]
    p_values: list[float] | list[None]
    if delta is None:
        passed, needed = conformal_risk_control(scaled, limit)
        p_values = [None] * len(thresholds)
    else:
        passed, p_values = learn_then_test(scaled, limit, delta)
        needed = None if passed is not None else requests_needed(scaled[:, 0], limit, delta)
    means = unit_losses.mean(axis=0)
    guarantee = Guarantee(
        loss=loss,
        epsilon=epsilon,
        delta=delta,
        unit="request" if groups is None else "document",
        n=len(unit_losses),
        strategies=tuple(strategies),
        models=tuple(models),
        threshold=None if passed is None else float(thresholds[passed]),
        mean_loss=float(means[passed or 0]),
        needed=needed,
    )
    curve = tuple(
        RiskPoint(
            threshold=float(threshold),
            mean_loss=float(means[column]),
            quality=float(reached[:, column].mean()),
            cost_share=float(spent[column]),
            full_share=float((chosen[:, column] == 0).mean()),
            p_value=p_values[column],
        )
        for column, threshold in enumerate(thresholds)
    )
    return guarantee, curve


# ---- choosing a threshold --------------------------------------------------------------------------------------------


def learn_then_test(losses: Floats, epsilon: float, delta: float) -> tuple[int | None, list[float]]:
    """The last threshold of a fixed sequence whose mean loss is shown to be at most epsilon, and all p-values.

    losses: shape (n, n_thresholds), in [0, 1]; columns from the safest threshold to the cheapest, an order fixed
    beforehand. Testing stops at the first failure, which is what lets each test use the whole delta.
    """
    values = _p_values(losses, epsilon, delta)
    failed = np.flatnonzero(values > delta)
    passed = int(failed[0]) - 1 if failed.size else losses.shape[1] - 1
    return (None if passed < 0 else passed), values.tolist()


def conformal_risk_control(losses: Floats, epsilon: float) -> tuple[int | None, int | None]:
    """The cheapest threshold at which the next request's expected loss is at most epsilon; else how many it would take.

    losses: shape (n, n_thresholds), in [0, 1]; no row may decrease from the safest threshold to the cheapest.
    Raises CalibrationError where one does: several strategies can make a cheaper rule lose less on a request.
    Source: arXiv 2208.02814, equation 4: n / (n + 1) * mean + 1 / (n + 1) <= epsilon.
    """
    if (np.diff(losses, axis=1) < -1e-12).any():
        raise CalibrationError("The loss of some request falls as routing widens. Give a delta for Learn then Test.")
    n, means = len(losses), losses.mean(axis=0)
    safe = np.flatnonzero((n * means + 1) / (n + 1) <= epsilon + 1e-12)
    if safe.size:
        return int(safe[-1]), None
    room = epsilon - float(means[0])
    return None, math.ceil((1 - epsilon) / room - 1e-9) if room > 1e-9 else None


def requests_needed(losses: Floats, epsilon: float, delta: float) -> int | None:
    """About how many requests would show that the mean loss is at most epsilon, were they all like these.

    losses: shape (n,), in [0, 1]. Found by repeating them; None where even _MOST_TIMES as many would not do.
    """
    times = range(2, _MOST_TIMES + 1)
    enough = (k for k in times if _p_values(np.tile(losses, k)[:, None], epsilon, delta)[0] <= delta)
    return next((k * len(losses) for k in enough), None)


# ---- p-values of "the true mean loss is over epsilon", losses in [0, 1] ----------------------------------------------


def _p_values(losses: Floats, epsilon: float, delta: float) -> Floats:
    """Of each column: exact where all losses are 0 or 1, else by betting."""
    n = len(losses)
    if np.isin(losses, (0.0, 1.0)).all():
        return binomial_p_value(losses.mean(axis=0), n, epsilon)
    # Betting looks at one loss after another. In a random order that does not depend on how the rows were stored,
    # they are independent draws even from a file sorted by task, and equal sets give equal guarantees.
    stored = losses[np.lexsort(losses.T)]
    return betting_p_value(stored[np.random.default_rng(0).permutation(n)].T, epsilon, delta)


def binomial_p_value(mean_loss: Floats | float, n: int, epsilon: float) -> Floats:
    """Exact for losses that are 0 or 1: P[Bin(n, epsilon) <= n * mean_loss]."""
    return np.asarray(_scipy("stats").binom.cdf(np.round(n * np.asarray(mean_loss)), n, epsilon))


def hoeffding_p_value(mean_loss: Floats | float, n: int, epsilon: float) -> Floats:
    """Source: Hoeffding (1963), J. Am. Stat. Assoc. 58:13-30, theorem 1."""
    return np.asarray(np.exp(-2 * n * np.maximum(epsilon - np.asarray(mean_loss), 0.0) ** 2))


def hoeffding_bentkus_p_value(mean_loss: Floats | float, n: int, epsilon: float) -> Floats:
    """The smaller of Hoeffding's tighter form and Bentkus' bound, as in Learn then Test, section 3.

    Source: Bates et al., arXiv 2101.02703.
    """
    rel_entr, capped = _scipy("special").rel_entr, np.minimum(mean_loss, epsilon)
    hoeffding = np.exp(-n * (rel_entr(capped, epsilon) + rel_entr(1 - capped, 1 - epsilon)))
    # Rounded before it is rounded up: 200 * 0.02 is 4.000000000000001 on a bad day.
    most = np.ceil(np.round(n * np.asarray(mean_loss), 9))
    bentkus = math.e * _scipy("stats").binom.cdf(most, n, epsilon)
    return np.asarray(np.minimum(hoeffding, bentkus))


def betting_p_value(losses: Floats, epsilon: float, delta: float) -> Floats:
    """One over the most wealth that bets on "the mean is at most epsilon" ever reach, along the last axis.

    losses: shape (..., n), in [0, 1], in random order. Returns shape (...). Valid for any sizes of the bets that are
    fixed before the loss they are on; these aim at power at level delta. It profits from losses that vary little, as
    those of routing do (most requests lose nothing), where Hoeffding and Bentkus do not: to bound a mean difference in
    quality it takes a fraction of their requests.
    Source: Waudby-Smith and Ramdas, arXiv 2010.09686, section 4: predictable plug-in bets, one side of the hedge; the
    most wealth counts by Ville's inequality.
    """
    n = losses.shape[-1]
    seen = np.arange(1, n + 1)
    mean = (0.5 + losses.cumsum(axis=-1)) / (seen + 1)
    variance = (0.25 + ((losses - mean) ** 2).cumsum(axis=-1)) / (seen + 1)
    before = np.concatenate([np.full((*losses.shape[:-1], 1), 0.25), variance[..., :-1]], axis=-1)
    bets = np.minimum(np.sqrt(2 * math.log(1 / delta) / (n * before)), _BOLDEST / (1 - epsilon))
    log_wealth = np.log1p(bets * (epsilon - losses)).cumsum(axis=-1).max(axis=-1)
    return np.asarray(np.exp(-np.maximum(log_wealth, 0.0)))


_BOLDEST = 0.9  # of the bet that a loss of 1 would ruin


def _scipy(module: str) -> Any:
    try:
        return importlib.import_module(f"scipy.{module}")
    except ImportError as error:
        raise MissingExtra("This test needs scipy. Install it with: pip install 'longroute[calibrate]'") from error


# ---- arrays ----------------------------------------------------------------------------------------------------------


def _mean_by(groups: Sequence[str], values: Floats) -> Floats:
    """Shape (n_groups, n_columns): the mean of the rows of each group, groups in alphabetical order."""
    names, rows, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, rows, values)
    return np.asarray(sums / sizes[:, None])


def _check(
    predicted: Floats,
    quality: Floats,
    cost: Floats,
    strategies: Sequence[str],
    epsilon: float,
    delta: float | None,
) -> None:
    shape = (len(quality), len(strategies))
    for name, array in (("predicted", predicted), ("quality", quality), ("cost", cost)):
        if array.shape != shape:
            raise CalibrationError(f"{name} has shape {array.shape}; expected {shape}: requests by strategies.")
    if not len(quality):
        raise CalibrationError("There is no request to calibrate on.")
    if FULL not in strategies or len(strategies) < 2:
        raise CalibrationError(f"The strategies are {', '.join(strategies)}; give {FULL} and at least one other.")
    if not (quality.min() >= 0 and quality.max() <= 1):
        raise CalibrationError("Each strategy needs a quality in [0, 1] for each request; run the missing ones.")
    full_cost = cost[:, list(strategies).index(FULL)]
    if not ((cost >= 0).all() and (full_cost > 0).all() and np.isfinite(full_cost).all()):
        raise CalibrationError(
            f"Costs must be at least 0, and those of {FULL} positive and finite. Where a price is zero or unknown, "
            f"give tokens as the cost; leave out requests that {FULL} cannot serve."
        )
    if not 0 < epsilon < 1 or not (delta is None or 0 < delta < 1):
        raise CalibrationError(f"epsilon = {epsilon} and delta = {delta}; both must lie in (0, 1).")
