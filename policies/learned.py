"""Policy `learned`, the default: P(correct) of each strategy, learned from judged outcomes and honest about its doubt.

One logistic model per strategy on a few cheap features, with a Gaussian belief about its weights: the mean gives the
probability, the covariance its interval. Beliefs are nested. All models share a common one; models of a tier lean from
it to their own; a model with outcomes leans further. So a model that was never seen gets its tier's belief, with the
spread between the tier's models in the interval, and a few hundred outcomes of one's own move a belief as far as they
can carry it (`router/calibration/fit.py`). The weights are data: `weights/learned.json`, or a file that
`longroute calibrate fit` wrote. The choice itself is the decision rule's.

Simple on purpose: trees, neighbours and clusters were tried on the same features and were no better
(`benchmarks/lara_routing.py`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..router.core import Decision, Estimate, Features, Goal, ModelProfile, Task
from .decision_rule import choose
from .lara import Belief, as_shown, filled
from .lara import quality as lara_quality

Floats = npt.NDArray[np.float64]

VERSION = 1
TASKS: tuple[Task, ...] = ("lookup", "reasoning", "comparison", "unanswerable")
INPUTS = (
    *TASKS,  # probability of each task; they sum to 1, so there is no intercept
    *(f"{task} × length" for task in TASKS),  # times doublings of the text over 64k tokens
    "coverage",
    "top_coverage",
    "top_score",
    "margin",
    "entropy",
    "spread",
)

_EVIDENCE = INPUTS.index("coverage")  # from here on; shares of tasks come before

# Tasks that LaRA does not have are read as the one that asks for the same of a reader.
_BORROWED: Mapping[Task, Task] = {"aggregation": "comparison", "summary": "comparison", "code": "reasoning"}

# Standard deviation of P(correct) between documents that look alike to the features, measured on LaRA
# (`benchmarks/lara_routing.py`, calibration). No number of outcomes on other documents takes it away.
_BETWEEN_DOCUMENTS: Mapping[str, float] = {"full": 0.09, "rag": 0.065, "self_route": 0.09}

# Strategies nobody has outcomes for: (like which strategy, difference, standard deviation, source). Wide on purpose.
_PUBLISHED: Mapping[str, tuple[str, float, float, str]] = {
    "compressed": ("full", -0.06, 0.12, "LLMLingua-2, arXiv 2403.12968: a few points below the full prompt at 2-3x"),
    "chain_of_agents": ("full", 0.00, 0.15, "Chain-of-Agents, arXiv 2406.02818: above both on its sets"),
    "retrieve_then_reason": ("full", 0.00, 0.15, "ALR2, arXiv 2410.03227: gains with training"),
    "self_route": ("full", -0.02, 0.10, "Self-Route, arXiv 2407.16833: within 4 points of full"),
    "speculative": ("full", 0.00, 0.08, "RAPID, arXiv 2502.20330: near the target model"),
}

_SHOWS_PASSAGES = ("rag", "self_route")  # at first, at least: what they do cannot differ from full where that is all


def inputs(features: Features) -> Floats:
    """What the logistic models read, in the order of INPUTS; not yet scaled. Missing evidence is NaN."""
    shares = _task_shares(features)
    octaves = math.log2(min(max(features.document_tokens, 1_000), 1_000_000) / 64_000)
    evidence = features.evidence
    found = (
        [
            evidence.coverage,
            evidence.top_coverage,
            # Longer questions score higher for their length alone; without this, short ones would look unfindable.
            math.log1p(evidence.top_score) - 0.5 * math.log(max(features.question_tokens, 1)),
            evidence.margin,
            evidence.entropy,
            evidence.spread,
        ]
        if evidence
        else [math.nan] * 6
    )
    return np.array([*shares, *(share * octaves for share in shares), *found])


def scaled(raw: Floats, center: Floats, scale: Floats) -> Floats:
    """Inputs on the scale of training. raw: shape (..., p).

    Evidence is cut at 1.5 standard deviations: linear models go wrong where nothing was seen, such as at questions of
    two words, and within LaRA the cut made predictions better, too.
    """
    standard = np.nan_to_num((raw - center) / scale)
    standard[..., _EVIDENCE:] = np.clip(standard[..., _EVIDENCE:], -1.5, 1.5)
    return standard


def published_logit(features: Features, profile: ModelProfile, strategy: str) -> float:
    """Log odds that the published table leads to expect: where learning starts. Other strategies start at full's."""
    read = replace(features, task=dict(zip(TASKS, _task_shares(features), strict=True)))
    mean = min(max(lara_quality(read, profile, "rag" if strategy == "rag" else "full").mean, 0.02), 0.98)
    return math.log(mean / (1 - mean))


def _task_shares(features: Features) -> list[float]:
    """LaRA's own reading of the question, but for the share that the general classifier gives to other tasks."""
    own = features.lara_task or {task: features.task.get(task, 0.0) for task in TASKS}
    total = sum(own.values()) or 1.0
    foreign = sum(features.task.get(task, 0.0) for task in _BORROWED)
    shares = {task: (1 - foreign) * own.get(task, 0.0) / total for task in TASKS}
    for task, like in _BORROWED.items():
        shares[like] += features.task.get(task, 0.0)
    return [shares[task] for task in TASKS]


def closest_level(levels: Collection[str], profile: ModelProfile) -> str | None:
    """Of `common`, `tier:NAME` and models the one that speaks for a model; None where none does."""
    name = profile.name.lower().rpartition("/")[2]
    own = [m for m in levels if re.fullmatch(rf"{re.escape(m)}(?:-instruct|-latest|-[\d-]+)*", name)]
    candidates = [*sorted(own, key=len, reverse=True), f"tier:{profile.tier}", "common"]
    return next((level for level in candidates if level in levels), None)


@dataclass(frozen=True, slots=True)
class WeightBelief:
    """Gaussian belief about the weights of one logistic model. mean: shape (p,); covariance: shape (p, p)."""

    mean: Floats
    covariance: Floats

    def predict(self, scaled: Floats, offset: float = 0.0) -> Belief:
        """P(correct) and the variance of our belief in it.

        scaled: shape (p,); offset: where the logit starts, `published_logit`. The mean over the belief is MacKay's
        approximation (1992, Neural Computation 4:720), the variance the delta method's.
        """
        logit, doubt = offset + float(scaled @ self.mean), float(scaled @ self.covariance @ scaled)
        mean = _logistic(logit / math.sqrt(1 + math.pi * doubt / 8))
        return Belief(mean, (mean * (1 - mean)) ** 2 * doubt)


@dataclass(frozen=True, slots=True)
class LearnedWeights:
    """Everything `learned` knows. beliefs: strategy → level → belief; a level is `common`, `tier:NAME` or a model."""

    center: Floats
    scale: Floats
    beliefs: Mapping[str, Mapping[str, WeightBelief]]
    trained: Mapping[str, Any]

    def scaled(self, features: Features) -> Floats:
        """Inputs on the scale of training; what is missing counts as average."""
        return scaled(inputs(features), self.center, self.scale)

    def level(self, strategy: str, profile: ModelProfile) -> str | None:
        """The closest level that has a belief about a strategy, for a model."""
        return closest_level(self.beliefs.get(strategy, {}), profile)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Raises KeyError, TypeError or ValueError for anything that `to_json` did not make."""
        if (row["kind"], row["version"], tuple(row["inputs"])) != ("learned", VERSION, INPUTS):
            raise ValueError("it was written by another version; run `longroute calibrate fit` again")
        width = len(INPUTS)
        beliefs = {
            strategy: {
                level: WeightBelief(_array(belief["mean"], width), _array(belief["covariance"], width, width))
                for level, belief in dict(levels).items()
            }
            for strategy, levels in dict(row["beliefs"]).items()
        }
        return cls(_array(row["center"], width), _array(row["scale"], width), beliefs, dict(row["trained"]))

    def to_json(self) -> dict[str, Any]:
        """Numbers to four significant digits: enough for beliefs, and a tenth of the size."""
        return {
            "kind": "learned",
            "version": VERSION,
            "trained": dict(self.trained),
            "inputs": list(INPUTS),
            "center": _rounded(self.center),
            "scale": _rounded(self.scale),
            "beliefs": {
                strategy: {
                    level: {"mean": _rounded(belief.mean), "covariance": _rounded(belief.covariance)}
                    for level, belief in levels.items()
                }
                for strategy, levels in self.beliefs.items()
            },
        }


class Learned:
    """Expects of each strategy what its outcomes taught, and leaves the choice to the decision rule."""

    def __init__(self, weights: LearnedWeights | None = None) -> None:
        self._weights = weights

    @property
    def weights(self) -> LearnedWeights:
        return self._weights or shipped()

    def quality(self, features: Features, profile: ModelProfile, strategy: str) -> Belief | None:
        """P(correct) of a strategy; None where neither outcomes nor publications say anything."""
        level = self.weights.level(strategy, profile)
        if level is not None:
            offset = published_logit(features, profile, strategy)
            belief = self.weights.beliefs[strategy][level].predict(self.weights.scaled(features), offset)
            return replace(belief, variance=belief.variance + _BETWEEN_DOCUMENTS.get(strategy, 0.08) ** 2)
        if strategy in _PUBLISHED:
            like, difference, deviation, _ = _PUBLISHED[strategy]
            if base := self.quality(features, profile, like):
                mean = min(max(base.mean + difference, 0.0), 1.0)
                return Belief(mean, base.variance + deviation**2)
        return None

    def decide(self, features: Features, profile: ModelProfile, options: Sequence[Estimate], goal: Goal) -> Decision:
        text_tokens = max(features.document_tokens, 1)
        passages = min((o.prompt_tokens for o in options if o.strategy in _SHOWS_PASSAGES), default=0)
        shown = min(passages / text_tokens, 1.0)
        estimates = []
        full = self.quality(features, profile, "full")
        for option in options:
            like = "rag" if option.strategy == "self_route" and _keeps_all(option, profile) else option.strategy
            belief = full if like == "full" else self.quality(features, profile, like)
            if belief is None:
                estimates.append(replace(option, basis="no outcomes and no published result"))
                continue
            if option.strategy in _SHOWS_PASSAGES and full is not None:
                belief = as_shown(full, belief, shown)
            measured = self.weights.level(like, profile) is not None
            estimates.append(filled(replace(option, measured=measured), belief, self._basis(like, profile)))
        return choose("learned", features, profile, estimates, goal, [self._reason(features, profile, estimates)])

    def _basis(self, strategy: str, profile: ModelProfile) -> str:
        level = self.weights.level(strategy, profile)
        if level is None:
            return f"published results only, not calibrated: {_PUBLISHED[strategy][3]}"
        source = self.weights.trained.get("source", "outcomes")
        if level == "common":
            return f"{source}, all models: nothing is known of {profile.name}"
        return f"{source}, " + (
            f"models of tier {level.removeprefix('tier:')}" if level.startswith("tier:") else f"outcomes of {level}"
        )

    def _reason(self, features: Features, profile: ModelProfile, estimates: Sequence[Estimate]) -> str:
        shares = dict(zip(TASKS, _task_shares(features), strict=True))
        ranked = sorted(shares.items(), key=lambda item: -item[1])
        kinds = " or ".join(f"{task} ({share:.2f})" for task, share in ranked[: 1 if ranked[0][1] >= 0.6 else 2])
        known = ", ".join(f"{e.strategy} {e.quality:.2f}" for e in estimates if e.quality is not None and e.measured)
        guessed = [e for e in estimates if not e.measured or e.quality is None]
        named = ", ".join(
            f"{e.strategy} {e.quality:.2f} counts as {e.quality_interval[0]:.2f}"
            if e.quality is not None and e.quality_interval
            else e.strategy
            for e in guessed
        )
        doubt = f" Not calibrated: {named}." if guessed else ""
        expected = f"; outcomes lead to expect {known} right" if known else ""
        return f"Asked like a {kinds} question about {features.document_tokens:,} tokens{expected}.{doubt}"


def _keeps_all(self_route: Estimate, profile: ModelProfile) -> bool:
    """Whether Self-Route is no better than rag: the whole text does not fit or is shown already, so there is no second
    call; or the reader picks sentences, which nobody measured and which gets no better by reading more."""
    return self_route.calls == 1 or profile.tier == "extractive"


def _logistic(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


def _array(values: object, *shape: int) -> Floats:
    array = np.array(values, dtype=np.float64)
    if array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"numbers of shape {shape} were expected, all finite; these have shape {array.shape}")
    return array


def _rounded(values: Floats) -> Any:
    return np.vectorize(lambda value: float(f"{value:.4g}"))(values).tolist()


@cache
def shipped() -> LearnedWeights:
    """The weights that come with longroute."""
    text = resources.files(__package__).joinpath("weights", "learned.json").read_text(encoding="utf-8")
    return LearnedWeights.from_json(json.loads(text))
