"""Whether an answer from retrieved passages should be kept, or the whole text be read as well: Self-Route's verdict.

Self-Route (arXiv 2407.16833) reads the whole text wherever the passages' answer is a refusal. On LaRA that costs three
points against never doing so, because it undoes right refusals: what the passages do not hold is often not there at
all. So a refusal is one sign among others here. From the features of the request and the signs of the reply come two
probabilities, that this reply is right and that an answer from the whole text would be; the whole text is read where
the difference is worth its price, by the same dial as every decision (`decision_rule.py`). What the reply has cost is
spent already and counts no more.

A refusal is right about as often as questions have no answer, and in LaRA a quarter of them have none, by design. Where
yours nearly always have one, refusals are believed too much; the odds that the question's reader gives take that into
account as far as it can tell.

Logistic models with the nested beliefs of `learned.py`, trained on LaRA's published answers (`benchmarks/self_route.py`
measures them, `benchmarks/lara_routing.py --fit` writes them).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib import resources
from typing import Any, Self

import numpy as np

from ..router.core import Estimate, Features, Goal, ModelProfile
from .decision_rule import LAMBDA, dollars, prices
from .learned import INPUTS, TASKS, Floats, closest_level, inputs, published_logit, scaled
from .reply import Signs

VERSION = 1
REPLY_INPUTS = (
    "refused",
    "refused × odds",  # of the question being unanswerable
    *(f"{sign} × {task}" for sign in ("refused late", "answered", "length") for task in TASKS),
    "overlap",
    "grounded",
)
ALL_INPUTS = (*INPUTS, *REPLY_INPUTS)

# Typical replies of LaRA's models, (mean, standard deviation): logarithm of words + 1; share of terms in the passages.
_LOG_WORDS = (3.5, 1.2)
_GROUNDED = (0.65, 0.27)
_FURTHEST = 2.0  # standard deviations; beyond it nothing was seen
_LEAST_SHARE = 0.005  # of a task; no reader of questions is surer than that

_RAG_TOKENS, _SHORTEST_TOKENS = 3_000, 32_000  # LaRA's passages, and its shortest texts


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with a reply to passages.

    kept: P(the reply is right); whole: P(an answer from the whole text is right).
    reason: for a person to read, with both.
    """

    escalate: bool
    kept: float
    whole: float
    reason: str


def reply_inputs(shares: Floats, signs: Signs) -> Floats:
    """What a reply adds to what the policy reads, in the order of REPLY_INPUTS. shares: of TASKS, shape (4,).

    Whether a refusal is right hangs on the odds that there was nothing to find, so their logarithm is what counts: a
    share of 0.01 says something else than one of 0.1.
    """
    unanswerable = min(max(float(shares[TASKS.index("unanswerable")]), _LEAST_SHARE), 1 - _LEAST_SHARE)
    odds = math.log(unanswerable / (1 - unanswerable)) / 2  # halved: on the scale of the other inputs
    length = _standard(math.log1p(signs.words), _LOG_WORDS)
    refused, late = float(signs.refused), float(signs.refused_late)
    answered = 1 - refused - late
    grounded = 0.0 if signs.grounded is None else answered * _standard(signs.grounded, _GROUNDED)
    about_refusal = [refused, refused * odds]
    return np.concatenate([about_refusal, late * shares, answered * shares, length * shares, [signs.overlap, grounded]])


def gap_left(shown: float) -> float:
    """How much of the difference between passages and whole text is left where passages are `shown` of the text.

    1 where they are as small a part as in LaRA, 0 where they are all of it; as `lara.as_shown`.
    """
    return min((1 - shown) / (1 - _RAG_TOKENS / _SHORTEST_TOKENS), 1.0)


@dataclass(frozen=True, slots=True)
class EscalationWeights:
    """Logistic weights by level (`common`, `tier:NAME` or a model).

    full, rag: of P(right), on ALL_INPUTS, added to the published log odds.
    escalated: of P(the verdict is to escalate) at prefer=balanced, on INPUTS alone: what to expect before the reply.
    """

    center: Floats
    scale: Floats
    full: Mapping[str, Floats]
    rag: Mapping[str, Floats]
    escalated: Mapping[str, Floats]
    trained: Mapping[str, Any]

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Raises KeyError, TypeError or ValueError for anything that `to_json` did not make."""
        if (row["kind"], row["version"], tuple(row["inputs"])) != ("escalation", VERSION, ALL_INPUTS):
            raise ValueError("it was written by another version")
        full, rag, escalated = (
            {level: np.array(mean, dtype=np.float64) for level, mean in dict(row[name]).items()}
            for name in ("full", "rag", "escalated")
        )
        return cls(np.array(row["center"]), np.array(row["scale"]), full, rag, escalated, dict(row["trained"]))

    def to_json(self) -> dict[str, Any]:
        """Numbers to four significant digits."""

        def rounded(values: Floats) -> list[float]:
            return [float(f"{value:.4g}") for value in values.tolist()]

        named = {"full": self.full, "rag": self.rag, "escalated": self.escalated}
        return {
            "kind": "escalation",
            "version": VERSION,
            "trained": dict(self.trained),
            "inputs": list(ALL_INPUTS),
            "center": rounded(self.center),
            "scale": rounded(self.scale),
            **{name: {level: rounded(mean) for level, mean in levels.items()} for name, levels in named.items()},
        }


class Escalation:
    """Verdicts on replies to passages. Pure: the same question, reply and prices give the same verdict."""

    def __init__(self, weights: EscalationWeights | None = None) -> None:
        self.weights = weights or shipped()

    def expected_share(self, features: Features, profile: ModelProfile, shown: float) -> float:
        """How often a reply to a request like this is not kept, in [0, 1]. shown: share of the text in the passages."""
        levels = self.weights.escalated
        mean = levels[closest_level(levels, profile) or "common"]
        return gap_left(shown) * _logistic(float(self._scaled(features) @ mean))

    def chances(self, features: Features, profile: ModelProfile, signs: Signs, shown: float) -> tuple[float, float]:
        """P(the reply is right), P(an answer from the whole text is right)."""
        read = np.concatenate([self._scaled(features), reply_inputs(inputs(features)[: len(TASKS)], signs)])

        def chance(strategy: str, levels: Mapping[str, Floats]) -> float:
            mean = levels[closest_level(levels, profile) or "common"]
            return _logistic(published_logit(features, profile, strategy) + float(read @ mean))

        kept, whole = chance("rag", self.weights.rag), chance("full", self.weights.full)
        return kept, kept + gap_left(shown) * (whole - kept)

    def judge(
        self,
        features: Features,
        profile: ModelProfile,
        signs: Signs,
        shown: float,
        *,
        spent: Estimate,
        full: Estimate,
        goal: Goal,
    ) -> Verdict:
        """Keep the reply, or read the whole text.

        shown: share of the text that the passages hold. spent: of the call that made the reply; full: of reading the
        whole text. The whole text is read where it fits the window, keeps the goal's hard limits together with what is
        spent, and either is worth its price or is needed to reach `min_quality`.
        """
        kept, whole = self.chances(features, profile, signs, shown)
        price = LAMBDA[goal.prefer] * prices([full], features, profile)[full.strategy]
        said = "says that the passages do not answer" if signs.refused or signs.refused_late else "answers"
        odds = f"the reply {said} and is right with probability {kept:.2f}, the whole text would be with {whole:.2f}"
        needed = goal.min_quality is not None and kept < goal.min_quality <= whole
        if whole - kept <= price and not needed:
            return Verdict(False, kept, whole, f"kept the passages' answer: {odds}, not worth its price of {price:.2f}")
        if forbidden := full.infeasible or _over_limits(spent, full, goal):
            return Verdict(False, kept, whole, f"kept the passages' answer although {odds}: {forbidden}")
        worth = f"min_quality = {goal.min_quality:g} needs it" if needed else f"worth its price of {price:.2f}"
        return Verdict(True, kept, whole, f"escalated to the whole text: {odds}, {worth}")

    def _scaled(self, features: Features) -> Floats:
        return scaled(inputs(features), self.weights.center, self.weights.scale)


def _over_limits(spent: Estimate, full: Estimate, goal: Goal) -> str:
    """Which hard limit reading the whole text would break, after what is spent; empty for none."""
    if goal.max_cost_usd is not None:
        if spent.cost_usd is None or full.cost_usd is None:
            return f"the cost of the whole text is unknown, so max_cost_usd = {dollars(goal.max_cost_usd)} may not hold"
        if (cost := Decimal(spent.cost_usd + full.cost_usd)) > goal.max_cost_usd:
            return f"both together cost {dollars(cost)}, over max_cost_usd = {dollars(goal.max_cost_usd)}"
    if goal.max_latency_s is not None:
        if spent.latency_s is None or full.latency_s is None:
            return f"the latency of the whole text is unknown, so max_latency_s = {goal.max_latency_s:g} may not hold"
        if (latency_s := spent.latency_s + full.latency_s) > goal.max_latency_s:
            return f"both together take {latency_s:.1f} s, over max_latency_s = {goal.max_latency_s:g}"
    return ""


def _standard(value: float, typical: tuple[float, float]) -> float:
    mean, deviation = typical
    return min(max((value - mean) / deviation, -_FURTHEST), _FURTHEST)


def _logistic(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


@cache
def shipped() -> EscalationWeights:
    """The weights that come with longroute."""
    text = resources.files(__package__).joinpath("weights", "escalation.json").read_text(encoding="utf-8")
    return EscalationWeights.from_json(json.loads(text))
