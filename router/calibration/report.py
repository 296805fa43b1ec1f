"""What a router's decisions were worth: from outcomes, predictions and choices to the numbers of a report.

`measure` gives every number as plain JSON; `page.py` draws them. Running strategies, fitting and choosing are done
elsewhere and arrive here as arrays.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...policies.risk_controlled import Guarantee
from ..core import Prefer
from ..errors import CalibrationError
from .metrics import (
    Bin,
    Bootstrap,
    Figure,
    Floats,
    Indices,
    aiq,
    apgr,
    apgr_of_points,
    brier,
    cpt,
    ece,
    equal_mass_bins,
    equal_width_bins,
    log_loss,
    mcnemar,
    non_decreasing_hull,
    oracle,
    oracle_gap_share,
    pgr,
    regret,
    share_curve,
)
from .risk import RiskPoint

VERSION = 1

# Upper ends of the length buckets, in tokens: the lengths at which windows and LaRA's two halves divide.
_LENGTHS = (8_000, 32_000, 64_000, 128_000)
_FEW_GROUPS = 30
_REGRETTED = 10
# Prices of reading the dearest strategy's tokens once, in quality: from free to prohibitive.
_DIAL = np.concatenate([[0.0], np.geomspace(0.003, 3.0, 40), [1e6]])

Json = dict[str, Any]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """n rows, one case answered by one model each, under S strategies. NaN marks what is not known.

    ids, groups, models, tasks: length n; rows of one group share documents. lengths: shape (n,), tokens of the text.
    score, tokens, predicted: shape (n, S); score in [0, 1], input tokens, predicted P(correct) before the answer.
    intervals: shape (n, S, 2), of the predictions. cost: shape (n, S), dollars, or None where no price is known.
    chosen: for each setting of the dial the index of the strategy decided on, shape (n,).
    reasons: for each setting, n lists of reasons; may be empty. risk: what `risk.choose_threshold` returned.
    """

    strategies: Sequence[str]
    ids: Sequence[str]
    groups: Sequence[str]
    models: Sequence[str]
    tasks: Sequence[str]
    lengths: Floats
    score: Floats
    tokens: Floats
    predicted: Floats
    intervals: Floats
    chosen: Mapping[Prefer, Indices]
    cost: Floats | None = None
    reasons: Mapping[Prefer, Sequence[Sequence[str]]] = field(default_factory=dict)
    risk: tuple[Guarantee, Sequence[RiskPoint]] | None = None
    notes: Sequence[str] = ()
    title: str = "Calibration report"

    def __post_init__(self) -> None:
        n, s = len(self.ids), len(self.strategies)
        wanted: dict[str, tuple[int, ...]] = dict.fromkeys(("groups", "models", "tasks", "lengths"), (n,))
        wanted |= {"score": (n, s), "tokens": (n, s), "predicted": (n, s), "intervals": (n, s, 2)}
        given = {name: np.shape(getattr(self, name)) for name in wanted}
        if self.cost is not None:
            wanted["cost"], given["cost"] = (n, s), self.cost.shape
        for prefer, choice in self.chosen.items():
            wanted[f"chosen[{prefer}]"], given[f"chosen[{prefer}]"] = (n,), choice.shape
            if choice.size and not (choice.min() >= 0 and choice.max() < s):
                raise CalibrationError(f"chosen[{prefer}] names a strategy outside 0..{s - 1}.")
        for prefer, reasons in self.reasons.items():
            wanted[f"reasons[{prefer}]"], given[f"reasons[{prefer}]"] = (n,), (len(reasons),)
        for name, shape in wanted.items():
            if given[name] != shape:
                raise CalibrationError(
                    f"{name} has shape {given[name]}, where {n} rows and {s} strategies need {shape}."
                )
        if np.any((self.score < 0) | (self.score > 1)):
            raise CalibrationError("Scores leave [0, 1]. Divide them by the largest score possible.")


def measure(evaluation: Evaluation, *, resamples: int = 2_000, seed: int = 0) -> Json:
    """Every number of the report, JSON-serialisable and free of NaN; None stands for what is not defined.

    Only rows whose every strategy was scored are compared, so that all figures speak of the same questions.
    The best single strategy is chosen for each model in hindsight, on these rows, and kept fixed in the resamples: a
    reference that is a little too good. Raises CalibrationError where no row is complete.
    """
    e, notes = _complete(evaluation)
    boot = Bootstrap(e.groups, resamples=resamples, seed=seed)
    options = _options(e)
    everywhere = np.ones(len(e.ids), dtype=bool)
    return {
        "version": VERSION,
        "title": e.title,
        "rows": len(e.ids),
        "cases": len(set(e.ids)),
        "groups": len(set(e.groups)),
        "models": sorted(set(e.models)),
        "strategies": list(e.strategies),
        "seed": seed,
        "resamples": resamples,
        "notes": [*e.notes, *notes, *_warnings(e)],
        "overall": _slice(e, "all rows", everywhere, options, boot),
        "slices": {
            "task": [_slice(e, name, mask, options, boot) for name, mask in _by_name(e.tasks)],
            "length": [_slice(e, name, mask, options, boot) for name, mask in _by_length(e.lengths)],
            "model": [_slice(e, name, mask, options, boot) for name, mask in _by_name(e.models)],
        },
        "frontier": _frontier(e, options),
        "strong_calls": _strong_calls(e),
        "calibration": [_calibration(e, s, boot) for s in range(len(e.strategies))],
        "risk": None if e.risk is None else _risk(*e.risk),
        "regretted": _regretted(e),
    }


# ---- which rows ------------------------------------------------------------------------------------------------------


def _complete(e: Evaluation) -> tuple[Evaluation, list[str]]:
    """The part of an evaluation in which every strategy was scored on every row, and notes on what was left out."""
    known = np.isfinite(e.score) & np.isfinite(e.tokens)
    kept = np.flatnonzero(known.mean(axis=0) >= 0.5) if len(e.ids) else np.arange(0)
    place = np.full(len(e.strategies), -1)
    place[kept] = np.arange(len(kept))
    rows = known[:, kept].all(axis=1)
    for choice in e.chosen.values():
        rows &= place[choice] >= 0
    if not len(kept) or not rows.any():
        raise CalibrationError(
            f"None of {len(e.ids)} rows has a score and tokens for every strategy ({', '.join(e.strategies)}). "
            "Run the missing strategies, or report on fewer of them."
        )
    notes = [
        f"{name} is left out: it was scored on {int(known[:, s].sum())} of {len(e.ids)} rows."
        for s, name in enumerate(e.strategies)
        if place[s] < 0
    ]
    if gone := int(np.sum(~rows)):
        notes.append(f"{gone} of {len(e.ids)} rows are left out: not every strategy was scored on them.")
    taken = np.flatnonzero(rows).tolist()
    cell = np.ix_(rows, kept)
    cost = None if e.cost is None else e.cost[cell]
    if cost is not None and not (np.isfinite(cost).all() and cost.any()):
        cost = None
        notes.append("Costs are zero, or unknown on some rows: input tokens stand for them.")
    return Evaluation(
        strategies=[e.strategies[s] for s in kept.tolist()],
        ids=[e.ids[row] for row in taken],
        groups=[e.groups[row] for row in taken],
        models=[e.models[row] for row in taken],
        tasks=[e.tasks[row] or "unknown" for row in taken],
        lengths=e.lengths[taken],
        score=e.score[cell],
        tokens=e.tokens[cell],
        predicted=e.predicted[cell],
        intervals=e.intervals[cell],
        chosen={prefer: place[choice[taken]] for prefer, choice in e.chosen.items()},
        cost=cost,
        reasons={prefer: [reasons[row] for row in taken] for prefer, reasons in e.reasons.items()},
        risk=e.risk,
        notes=e.notes,
        title=e.title,
    ), notes


def _warnings(e: Evaluation) -> list[str]:
    notes = []
    if (groups := len(set(e.groups))) < _FEW_GROUPS:
        notes.append(
            f"Only {groups} group{'s' * (groups != 1)} of documents: the intervals are wide, and differences inside "
            f"them mean nothing. {_FEW_GROUPS} or more would tell."
        )
    if np.all(e.score == e.score[0, 0]):
        notes.append(f"Every answer scored {e.score[0, 0]:g}: these outcomes cannot tell the strategies apart.")
    for s, name in enumerate(e.strategies):
        if missing := int(np.sum(~np.isfinite(e.predicted[:, s]))):
            notes.append(f"The quality of {name} was not predicted on {missing} of {len(e.ids)} rows.")
    for prefer, choice in e.chosen.items():
        if len(e.strategies) > 1 and np.all(choice == choice[0]):
            notes.append(f"prefer={prefer} chose {e.strategies[choice[0]]} on every row.")
    return notes


def _spent(e: Evaluation) -> Floats:
    return e.tokens if e.cost is None else e.cost


def _by_name(names: Sequence[str]) -> list[tuple[str, Mask]]:
    given = np.asarray(names)
    return [(str(name), given == name) for name in np.unique(given)]


def _by_length(lengths: Floats) -> list[tuple[str, Mask]]:
    ends = [f"{end // 1000}k" for end in _LENGTHS]
    names = [f"under {ends[0]}", *(f"{a} to {b}" for a, b in itertools.pairwise(ends)), f"{ends[-1]} and more"]
    bucket = np.searchsorted(_LENGTHS, lengths, side="right")
    return [(names[k], bucket == k) for k in np.unique(bucket)]


# ---- what the options were worth -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Option:
    """One way to answer all rows. share: shape (n, S), how often each row is answered by each strategy."""

    kind: str
    name: str
    share: Floats

    def of(self, cells: Floats) -> Floats:
        """Expected value of cells, shape (n, S), under this option; shape (n,)."""
        expected: Floats = (self.share * cells).sum(axis=1)
        return expected


def _options(e: Evaluation) -> list[_Option]:
    """Every strategy alone, the best of them for each model, random choice, the router's settings, the oracle."""
    n, s = e.score.shape
    each = np.eye(s)
    options = [_Option("single", f"always {name}", np.tile(each[k], (n, 1))) for k, name in enumerate(e.strategies)]
    best = np.empty(n, dtype=np.int64)
    for _, mask in _by_name(e.models):
        best[mask] = np.lexsort((e.tokens[mask].mean(axis=0), -e.score[mask].mean(axis=0)))[0]
    options.append(_Option("best", "best single", each[best]))
    options.append(_Option("random", "random choice", np.full((n, s), 1 / s)))
    options += [_Option("router", prefer, each[choice]) for prefer, choice in e.chosen.items()]
    options.append(_Option("oracle", "oracle", each[oracle(e.score, _spent(e))]))
    return options


def _slice(e: Evaluation, name: str, mask: Mask, options: Sequence[_Option], boot: Bootstrap) -> Json:
    """Quality, tokens, regret and share of the oracle gap of every option on the rows of one mask."""
    inside = mask.astype(float)
    dearest = e.tokens[mask].mean(axis=0).max()
    best_score = e.score.max(axis=1)
    best = next(option for option in options if option.kind == "best")
    single = best.of(e.score)

    def mean(values: Floats, span: tuple[float, float]) -> Json:
        value = float(values[mask].mean())
        return {"value": _number(value), "interval": _pair(boot.ratio(values * inside, inside, span=span))}

    rows = []
    for option in options:
        score, tokens = option.of(e.score), option.of(e.tokens)[mask]
        gain = mean(score - single, (-1, 1))
        if np.array_equal(option.share[mask], best.share[mask]):
            gain["interval"] = None  # the same answers: nothing is uncertain about their difference
        row: Json = {
            "kind": option.kind,
            "name": option.name,
            "quality": mean(score, (0, 1)),
            "gain": gain,
            "regret": None if option.kind == "oracle" else mean(best_score - score, (0, 1)),
            "tokens": _number(tokens.mean()),
            "token_share": _number(tokens.mean() / dearest) if dearest else None,
            "cost_usd": None if e.cost is None else _number(option.of(e.cost)[mask].mean()),
        }
        if option.kind == "router":
            gap = oracle_gap_share(*(float(v[mask].mean()) for v in (score, single, best_score)))
            interval = boot.ratio((score - single) * inside, (best_score - single) * inside)
            row["gap_share"] = {**_figure(gap), "interval": _pair(interval)}
            test = mcnemar(score[mask], single[mask])
            row["mcnemar"] = {"won": test.won, "lost": test.lost, "p": _number(test.p)}
        rows.append(row)
    groups = len({group for group, belongs in zip(e.groups, mask, strict=True) if belongs})
    return {"name": name, "rows": int(mask.sum()), "groups": groups, "options": rows}


def _frontier(e: Evaluation, options: Sequence[_Option]) -> Json:
    """The plane of cost and quality: points, what mixing single strategies reaches, and the router at any price."""
    cells = _spent(e)
    points = {option.name: (option.of(cells).mean(), option.of(e.score).mean()) for option in options}
    singles = np.array([points[option.name] for option in options if option.kind == "single"])
    cheapest, dearest = float(singles[:, 0].min()), float(singles[:, 0].max())
    zero = non_decreasing_hull(singles)
    curve = _priced_choices(e, cells)
    routed = [points[option.name] for option in options if option.kind == "router"]
    router_aiq = (
        Figure(None, "no quality was predicted for some rows")
        if curve is None
        else aiq(non_decreasing_hull(np.array([*curve, *routed])), cheapest, dearest)
    )
    return {
        "unit": "tokens" if e.cost is None else "usd",
        "points": [
            {"kind": option.kind, "name": option.name, "cost": _number(x), "quality": _number(y)}
            for option in options
            for x, y in [points[option.name]]
        ],
        "hull": _table(zero),
        "router": None if curve is None else _table(curve),
        "aiq": {"router": _figure(router_aiq), "single": _figure(aiq(zero, cheapest, dearest))},
    }


def _priced_choices(e: Evaluation, cells: Floats) -> list[tuple[float, float]] | None:
    """(cost, quality) of choosing by predicted quality minus price × cost, over all prices; None without predictions.

    The unit of cost is the row's dearest strategy, as in the decision rule, whose latency and limits are left out.
    """
    predicted = np.where(np.isfinite(e.predicted), e.predicted, -np.inf)
    if not np.isfinite(predicted).any(axis=1).all():
        return None
    relative = cells / np.maximum(cells.max(axis=1, keepdims=True), 1e-12)
    rows = np.arange(len(cells))
    curve = []
    for price in _DIAL:
        choice = (predicted - price * relative).argmax(axis=1)
        curve.append((float(cells[rows, choice].mean()), float(e.score[rows, choice].mean())))
    return sorted(set(curve))


def _strong_calls(e: Evaluation) -> Json | None:
    """PGR, APGR and CPT of the cheapest against the dearest strategy, over all rows and for each model."""
    mean_tokens = e.tokens.mean(axis=0)
    weak, strong = int(mean_tokens.argmin()), int(mean_tokens.argmax())
    if weak == strong:
        return None
    advantage = e.predicted[:, strong] - e.predicted[:, weak]
    models = _by_name(e.models)
    masks = [("all rows", np.ones(len(e.ids), dtype=bool)), *(models if len(models) > 1 else [])]
    rows = []
    for name, mask in masks:
        low, high = (float(e.score[mask, s].mean()) for s in (weak, strong))
        row: Json = {"name": name, "weak": _number(low), "strong": _number(high)}
        row["pgr"] = {
            prefer: _figure(pgr(float(e.score[mask, choice[mask]].mean()), low, high))
            for prefer, choice in e.chosen.items()
        }
        if np.isfinite(advantage[mask]).all():
            curve = share_curve(advantage[mask], e.score[mask, weak], e.score[mask, strong])
            row |= {"apgr": _figure(apgr(*curve)), "apgr_of_points": _figure(apgr_of_points(*curve))}
            row["cpt"] = {f"{percent}": _figure(cpt(*curve, percent / 100)) for percent in (20, 50, 80)}
        rows.append(row)
    return {"weak": e.strategies[weak], "strong": e.strategies[strong], "rows": rows}


# ---- what was predicted ----------------------------------------------------------------------------------------------


def _calibration(e: Evaluation, s: int, boot: Bootstrap) -> Json:
    """Predicted against observed quality of one strategy, on the rows where it was predicted."""
    known = np.isfinite(e.predicted[:, s])
    numbers: Json = {"strategy": e.strategies[s], "rows": int(known.sum())}
    if not known.any():
        return numbers
    predicted, score = np.clip(e.predicted[known, s], 0, 1), e.score[known, s]
    bins = equal_width_bins(predicted, score)
    where = np.flatnonzero(known)

    def interval(b: Bin) -> list[float] | None:
        inside = np.zeros(len(known))
        inside[where[b.rows]] = 1
        return _pair(boot.ratio(e.score[:, s] * inside, inside, span=(0, 1)))

    widths = e.intervals[known, s, 1] - e.intervals[known, s, 0]
    return numbers | {
        "ece": _number(ece(bins)),
        "ece_adaptive": _number(ece(equal_mass_bins(predicted, score))),
        "brier": _number(brier(predicted, score)),
        "log_loss": _number(log_loss(predicted, score)),
        "interval_width": _number(widths.mean()),
        "bins": [
            {
                "predicted": _number(b.predicted),
                "observed": _number(b.observed),
                "rows": len(b.rows),
                "interval": interval(b),
            }
            for b in bins
        ],
    }


def _risk(guarantee: Guarantee, curve: Sequence[RiskPoint]) -> Json:
    return {
        "statement": guarantee.statement,
        "assumption": guarantee.assumption,
        "epsilon": _number(guarantee.epsilon),
        "threshold": None if guarantee.threshold is None else _number(guarantee.threshold),
        "curve": [
            {
                "threshold": _number(point.threshold),
                "mean_loss": _number(point.mean_loss),
                "cost_share": _number(point.cost_share),
            }
            for point in sorted(curve, key=lambda point: point.threshold)
        ],
    }


def _regretted(e: Evaluation) -> Json | None:
    """The decisions that gave away most, one for each case, where the dial asks most for quality.

    On a tie first the one that was surest of itself, since it has most to teach.
    """
    if not e.chosen:
        return None
    prefer = "quality" if "quality" in e.chosen else next(iter(e.chosen))
    choice = e.chosen[prefer]
    rows = np.arange(len(e.ids))
    better = oracle(e.score, _spent(e))
    lost = regret(e.score, choice)
    surprise = np.nan_to_num(e.predicted[rows, choice] - e.predicted[rows, better])
    listed: dict[str, Json] = {}
    for row in np.lexsort((-surprise, -lost)).tolist():
        if lost[row] <= 0 or len(listed) == _REGRETTED:
            break
        if e.ids[row] in listed:
            continue
        listed[e.ids[row]] = {
            "id": e.ids[row],
            "model": e.models[row],
            "task": e.tasks[row],
            "length": _number(e.lengths[row]),
            "regret": _number(lost[row]),
            "chosen": _taken(e, row, choice[row]),
            "better": _taken(e, row, better[row]),
            "reasons": list(e.reasons[prefer][row]) if prefer in e.reasons else [],
        }
    return {"prefer": prefer, "rows": list(listed.values())}


def _taken(e: Evaluation, row: int, s: int) -> Json:
    low, high = e.intervals[row, s]
    return {
        "strategy": e.strategies[s],
        "score": _number(e.score[row, s]),
        "predicted": _number(e.predicted[row, s]),
        "interval": _pair((low, high)),
    }


# ---- as JSON ---------------------------------------------------------------------------------------------------------


def _number(value: float) -> float | None:
    """Six decimals are more than any of these figures deserves, and what JSON cannot say is None."""
    return round(float(value), 6) if math.isfinite(value) else None


def _pair(interval: tuple[float, float] | None) -> list[float] | None:
    if interval is None or not all(map(math.isfinite, interval)):
        return None
    return [round(float(end), 6) for end in interval]


def _figure(figure: Figure) -> Json:
    return {"value": None if figure.value is None else _number(figure.value), "why": figure.why}


def _table(points: Floats | list[tuple[float, float]]) -> list[list[float | None]]:
    return [[_number(x), _number(y)] for x, y in points]
