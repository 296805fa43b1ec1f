"""Outcomes and a policy → the numbers of a report: what the policy would have chosen on cases it did not learn from.

Cross-fitting: cases are split by group, and each part is judged by weights adapted to the others only.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal

import numpy as np

from ...policies.learned import Learned, LearnedWeights
from ...policies.risk_controlled import FULL, Guarantee
from ..core import Decision, Estimate, Goal, ModelProfile, Policy, Prefer
from ..errors import CalibrationError
from .fit import adapt
from .metrics import Indices
from .outcomes import Outcome
from .report import Evaluation
from .risk import RiskPoint, choose_threshold

PREFER: tuple[Prefer, ...] = ("quality", "balanced", "cheap")
FOLDS = 5
ProfileOf = Callable[[str], ModelProfile]
Cell = Mapping[str, Outcome]  # strategy → outcome of one case and model


def cross_fitted(weights: LearnedWeights, outcomes: Sequence[Outcome], profile_of: ProfileOf) -> list[Policy]:
    """One policy per fold, adapted to the outcomes of every other fold. Raises CalibrationError on a single group."""
    if len({outcome.group for outcome in outcomes}) < 2:
        raise CalibrationError("All outcomes are of one group of documents: nothing is left to judge a fit on.")
    policies: list[Policy] = []
    for fold in range(FOLDS):
        others = [outcome for outcome in outcomes if fold_of(outcome.group) != fold]
        fitted = adapt(weights, others, profile_of, trained={})[0] if others else weights
        policies.append(Learned(fitted))
    return policies


def fold_of(group: str, folds: int = FOLDS) -> int:
    """By hash, so that a group stays in its fold when others come or go."""
    return int.from_bytes(hashlib.blake2b(group.encode("utf-8", "surrogatepass"), digest_size=4).digest()) % folds


def cells(outcomes: Sequence[Outcome]) -> Mapping[tuple[str, str], Cell]:
    """Outcomes by case and model, in order of first appearance; of several alike the last counts."""
    grouped: dict[tuple[str, str], dict[str, Outcome]] = defaultdict(dict)
    for outcome in outcomes:
        grouped[outcome.case_id, outcome.model][outcome.strategy] = outcome
    return grouped


def decisions(cell: Cell, policy: Policy, profile_of: ProfileOf) -> dict[Prefer, Decision]:
    """What a policy chooses among the strategies that have an outcome, at their measured tokens and cost."""
    any_outcome = next(iter(cell.values()))
    options = [
        Estimate(
            strategy,
            outcome.prompt_tokens,
            outcome.completion_tokens,
            outcome.cached_tokens,
            cost_usd=None if outcome.cost_usd is None else Decimal(str(outcome.cost_usd)),
            latency_s=outcome.latency_s,
        )
        for strategy, outcome in sorted(cell.items())
    ]
    profile = profile_of(any_outcome.model)
    return {prefer: policy.decide(any_outcome.features, profile, options, Goal(prefer)) for prefer in PREFER}


def evaluate(
    outcomes: Sequence[Outcome],
    policy_of: Callable[[str], Policy],
    profile_of: ProfileOf,
    *,
    risk: tuple[Guarantee, Sequence[RiskPoint]] | None = None,
    notes: Sequence[str] = (),
    title: str = "Calibration report",
) -> Evaluation:
    """policy_of: group → the policy that judges it, fitted without it."""
    table = cells(outcomes)
    strategies = sorted({outcome.strategy for outcome in outcomes})
    shape = len(table), len(strategies)
    score, tokens, cost, predicted = (np.full(shape, np.nan) for _ in range(4))
    intervals = np.full((*shape, 2), np.nan)
    chosen: dict[Prefer, Indices] = {prefer: np.zeros(shape[0], dtype=np.intp) for prefer in PREFER}
    reasons: dict[Prefer, list[Sequence[str]]] = {prefer: [] for prefer in PREFER}
    for row, cell in enumerate(table.values()):
        group = next(iter(cell.values())).group
        made = decisions(cell, policy_of(group), profile_of)
        for prefer, decision in made.items():
            chosen[prefer][row] = strategies.index(decision.strategy)
            reasons[prefer].append(decision.reasons)
        for estimate in made["balanced"].estimates:
            column, outcome = strategies.index(estimate.strategy), cell[estimate.strategy]
            score[row, column] = outcome.score
            tokens[row, column] = outcome.prompt_tokens
            cost[row, column] = np.nan if outcome.cost_usd is None else outcome.cost_usd
            if estimate.quality is not None and estimate.quality_interval is not None:
                predicted[row, column] = estimate.quality
                intervals[row, column] = estimate.quality_interval
    first = [next(iter(cell.values())) for cell in table.values()]
    return Evaluation(
        strategies=strategies,
        ids=[outcome.case_id for outcome in first],
        groups=[outcome.group for outcome in first],
        models=[outcome.model for outcome in first],
        tasks=[outcome.task or "unlabelled" for outcome in first],
        lengths=np.array([float(outcome.features.document_tokens) for outcome in first]),
        score=score,
        tokens=tokens,
        cost=cost,
        predicted=predicted,
        intervals=intervals,
        chosen=chosen,
        reasons=reasons,
        risk=risk,
        notes=tuple(notes),
        title=title,
    )


def guaranteed(
    policy: Policy, outcomes: Sequence[Outcome], profile_of: ProfileOf, *, epsilon: float, delta: float
) -> tuple[Guarantee, tuple[RiskPoint, ...]]:
    """How far `policy` may route away from `full`, shown on outcomes it was not fitted to.

    Cases without an outcome of `full` cannot show anything and are left out. Raises CalibrationError where none is
    left.
    """
    seen = evaluate(
        [o for cell in cells(outcomes).values() if FULL in cell for o in cell.values()],
        lambda group: policy,
        profile_of,
    )
    if not seen.ids:
        raise CalibrationError(f"No case has an outcome of {FULL}, so no loss against it can be bounded.")
    known = seen.cost is not None and bool(np.isfinite(seen.cost).all()) and bool((seen.cost > 0).all())
    cost = seen.cost if known and seen.cost is not None else seen.tokens + 1.0  # embedded models report no tokens
    missing = ~np.isfinite(seen.score)
    return choose_threshold(
        seen.predicted,
        np.where(missing, 0.0, seen.score),
        np.where(missing, np.inf, cost),
        strategies=seen.strategies,
        models=sorted(set(seen.models)),
        epsilon=epsilon,
        delta=delta,
    )
