"""Outcomes → weights of the `learned` policy.

One step does everything: Bayesian logistic regression from a prior belief (`update`). Training from nothing applies it
down the levels: all models, then each tier from there, then each model from its tier. Fitting to one's own outcomes
applies it once more, from what is shipped: with few outcomes the belief stays where it was, with many it follows them.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ...policies.learned import INPUTS, Floats, LearnedWeights, WeightBelief, inputs, published_logit, scaled
from ..core import ModelProfile
from ..errors import CalibrationError
from .outcomes import Outcome

# Standard deviations of logistic weights, on scaled inputs: how far a belief may lie from the one above it before
# anything was seen. Small, because learning starts from the published table; chosen by cross-validation on LaRA, where
# every looser setting routed worse.
COMMON_DEVIATION = 0.1
LEVEL_DEVIATION = 0.03  # of a tier from all models, and of a model from its tier
UNSEEN_DEVIATION = 0.35  # of a model without outcomes: what models of one tier differ by, for the interval
OWN_DEVIATION = 0.5  # of a user's documents from the public ones

FEWEST = 30  # outcomes of a strategy below which a fit is told to be thin


def update(
    prior: WeightBelief,
    rows: Floats,
    scores: Floats,
    offsets: Floats | None = None,
    *,
    weight: float = 1.0,
    steps: int = 25,
) -> WeightBelief:
    """Belief after outcomes: the mode of the posterior and its Laplace covariance.

    rows: shape (n, p), scaled inputs; scores: shape (n,), in [0, 1], soft labels allowed; offsets: shape (n,), added
    to the logit, 0 without them.
    weight: of each outcome, below 1 where several share what made them right (one case answered by many models).
    Newton's method from the prior mean. The log posterior is concave, so it converges, but only with steps halved where
    they overshoot: from a prior of 0.95, a hundred outcomes around 0.2 throw a whole step far past the mode.
    """
    precision = np.linalg.inv(prior.covariance)
    mean = prior.mean.copy()
    start = np.zeros(len(rows)) if offsets is None else offsets

    def loss(at: Floats) -> float:
        logits, moved = start + rows @ at, at - prior.mean
        return float(moved @ precision @ moved / 2 + weight * (np.logaddexp(0, logits) - scores * logits).sum())

    curvature = precision
    for _ in range(steps):
        expected = 1 / (1 + np.exp(-np.clip(start + rows @ mean, -30, 30)))
        gradient = precision @ (mean - prior.mean) + weight * rows.T @ (expected - scores)
        curvature = precision + weight * (rows * (expected * (1 - expected))[:, None]).T @ rows
        step = np.linalg.solve(curvature, gradient)
        while np.abs(step).max() >= 1e-6 and loss(mean - step) > loss(mean):
            step = step / 2
        mean = mean - step
        if np.abs(step).max() < 1e-6:
            break
    return WeightBelief(mean, np.linalg.inv(curvature))


def loosened(belief: WeightBelief, deviation: float | Floats) -> WeightBelief:
    """The belief as a prior for something alike but not equal: with a variance of its own added.

    deviation: of every weight, or of each, shape (p,).
    """
    own = np.diag(np.broadcast_to(np.square(deviation), belief.mean.shape))
    return WeightBelief(belief.mean, belief.covariance + own)


def nested(
    rows: Floats,
    scores: Floats,
    offsets: Floats,
    models: Sequence[str],
    tier_of: Mapping[str, str],
    *,
    deviation: float | Floats,
    level_deviation: float | Floats,
) -> dict[str, WeightBelief]:
    """Beliefs down the levels: `common` to all models, `tier:NAME` from there, and each model from its tier.

    rows, scores, offsets: as `update` takes them, one for each entry of models. deviation: of weights from 0, of all
    models; level_deviation: of a tier from all models, and of a model from its tier; one number, or shape (p,).
    """
    names = np.array(models)
    tiers = np.array([tier_of[model] for model in models])
    nothing = WeightBelief(np.zeros(rows.shape[1]), np.zeros((rows.shape[1], rows.shape[1])))
    common = update(loosened(nothing, deviation), rows, scores, offsets, weight=_weight(names))
    levels = {"common": common}
    for tier in sorted(set(tier_of.values())):
        of_tier = tiers == tier
        belief = update(
            loosened(common, level_deviation),
            rows[of_tier],
            scores[of_tier],
            offsets[of_tier],
            weight=_weight(names[of_tier]),
        )
        levels[f"tier:{tier}"] = belief
        for model in sorted(set(names[of_tier])):
            own = names == model
            levels[_level_name(model)] = update(loosened(belief, level_deviation), rows[own], scores[own], offsets[own])
    return levels


def train(
    outcomes: Iterable[Outcome],
    profile_of: Callable[[str], ModelProfile],
    *,
    trained: Mapping[str, object],
) -> LearnedWeights:
    """Weights from nothing but outcomes. Raises CalibrationError where there are none."""
    rows = list(outcomes)
    if not rows:
        raise CalibrationError("There are no outcomes to learn from.")
    raw = np.array([inputs(outcome.features) for outcome in rows])
    known = np.ma.masked_invalid(raw)
    center, scale = known.mean(axis=0).filled(0.0), known.std(axis=0).filled(0.0)
    tasks = slice(0, INPUTS.index("coverage"))  # shares of tasks are on one scale already
    center[tasks], scale[tasks] = 0.0, 1.0
    scale = np.where(scale > 0, scale, 1.0)
    rescaled = scaled(raw, center, scale)
    scores = np.array([outcome.score for outcome in rows])
    starts = np.array([published_logit(o.features, profile_of(o.model), o.strategy) for o in rows])
    tier_of = {model: profile_of(model).tier for model in {outcome.model for outcome in rows}}

    beliefs: dict[str, dict[str, WeightBelief]] = {}
    for strategy in sorted({outcome.strategy for outcome in rows}):
        mine = np.array([outcome.strategy == strategy for outcome in rows])
        levels = nested(
            rescaled[mine],
            scores[mine],
            starts[mine],
            [outcome.model for outcome in rows if outcome.strategy == strategy],
            tier_of,
            deviation=COMMON_DEVIATION,
            level_deviation=LEVEL_DEVIATION,
        )
        beliefs[strategy] = {
            # A tier and all models speak for a model that was not seen; a model with outcomes for itself.
            level: loosened(belief, UNSEEN_DEVIATION) if level == "common" or level.startswith("tier:") else belief
            for level, belief in levels.items()
        }
    return LearnedWeights(center, scale, beliefs, {**trained, **_described(rows)})


def adapt(
    weights: LearnedWeights,
    outcomes: Iterable[Outcome],
    profile_of: Callable[[str], ModelProfile],
    *,
    trained: Mapping[str, object],
) -> tuple[LearnedWeights, tuple[str, ...]]:
    """Weights moved towards one's own outcomes, and notes on where they are thin. Raises CalibrationError on none.

    A strategy without a belief starts from that of `full`, loosely.
    """
    rows = list(outcomes)
    if not rows:
        raise CalibrationError("There are no outcomes to fit to. Run `longroute calibrate run` first.")
    grouped: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for outcome in rows:
        grouped[outcome.strategy, _level_name(outcome.model)].append(outcome)
    beliefs = {strategy: dict(levels) for strategy, levels in weights.beliefs.items()}
    notes = []
    for (strategy, model), own in sorted(grouped.items()):
        profile = profile_of(own[0].model)
        level = weights.level(strategy, profile)
        if level is not None:
            prior = loosened(weights.beliefs[strategy][level], OWN_DEVIATION)
        else:
            like = weights.level("full", profile)
            start = weights.beliefs["full"][like].mean if like else np.zeros(len(INPUTS))
            prior = WeightBelief(start, np.eye(len(INPUTS)))
        own_rows = np.array([weights.scaled(outcome.features) for outcome in own])
        scores = np.array([outcome.score for outcome in own])
        starts = np.array([published_logit(outcome.features, profile, strategy) for outcome in own])
        beliefs.setdefault(strategy, {})[model] = update(prior, own_rows, scores, starts)
        if len(own) < FEWEST:
            notes.append(f"{strategy} on {model}: {len(own)} outcomes; below {FEWEST} the interval stays wide.")
        if len(set(scores)) == 1:
            notes.append(
                f"{strategy} on {model}: every score is {scores[0]:g}; nothing tells good cases from bad ones."
            )
    description = {**trained, "adapted_from": weights.trained.get("fingerprint", ""), **_described(rows)}
    return replace(weights, beliefs=beliefs, trained=description), tuple(notes)


def _level_name(model: str) -> str:
    return model.lower().rpartition("/")[2]


def _weight(models: Sequence[str] | np.ndarray) -> float:
    """Outcomes of several models on the same cases carry less than as many cases: the root of the number of models."""
    return 1 / math.sqrt(max(len(set(models)), 1))


def _described(rows: Sequence[Outcome]) -> dict[str, object]:
    digest = hashlib.blake2b("\n".join(sorted(map(repr, rows))).encode("utf-8", "surrogatepass"), digest_size=8)
    return {
        "fingerprint": digest.hexdigest(),
        "outcomes": len(rows),
        "cases": len({row.case_id for row in rows}),
        "groups": len({row.group for row in rows}),
    }
