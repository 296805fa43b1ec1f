"""Policy `lara`: what the LaRA benchmark measured of full against rag, as a prior for requests that nobody calibrated.

`weights/lara_prior.json` holds the published table: answers judged correct, by task, length and model. From it comes
an expected quality of `full` and `rag` for any distribution over question types, any length and any tier of model.
Nothing is published on the other strategies, so their quality stays unknown. The choice itself is the decision rule's.

Source: LaRA, arXiv 2502.09977. The table holds for texts like LaRA's (books, financial statements, papers) and its
retriever (five chunks of 600 tokens); the intervals do not cover texts of another kind.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib import resources
from typing import Any

from ..router.core import Decision, Estimate, Features, Goal, ModelProfile, Task
from .decision_rule import choose

_STRATEGIES = ("full", "rag")  # the order of each pair in the table
_SHORT, _LONG = "32k", "128k"
_SHORT_TOKENS = 32_000
_OCTAVES = 2  # from 32k to 128k
_BEYOND = 1  # octaves past 128k to which the trend is drawn out; longer texts get the value at 256k
_RAG_TOKENS = 3_000  # what LaRA's retriever showed
_Z90 = 1.645  # half-width of a 90 % interval in standard deviations


@dataclass(frozen=True, slots=True)
class Belief:
    """A share of right answers, in [0, 1] but for extrapolation, and the variance of our belief in it."""

    mean: float
    variance: float


class Lara:
    """Expects of `full` and `rag` what LaRA measured, and leaves the choice to the decision rule."""

    def decide(self, features: Features, profile: ModelProfile, options: Sequence[Estimate], goal: Goal) -> Decision:
        full, rag = (quality(features, profile, strategy) for strategy in _STRATEGIES)
        text_tokens = max(features.document_tokens, 1)
        shown = next((min(o.prompt_tokens / text_tokens, 1.0) for o in options if o.strategy == "rag"), 0.0)
        expected = {"full": full, "rag": as_shown(full, rag, shown)}
        basis = _basis(features, profile)
        estimates = [
            filled(option, expected[option.strategy], basis)
            if option.strategy in expected
            else replace(option, basis="LaRA has not measured it")
            for option in options
        ]
        return choose("lara", features, profile, estimates, goal, [_reason(features, profile, expected)])


def quality(features: Features, profile: ModelProfile, strategy: str) -> Belief:
    """Expected quality of `full` or `rag`, averaged over the question's possible types.

    The variance covers the spread between models of a tier, LaRA's sampling error and the type of the question.
    """
    beliefs = {task: _at_length(task, profile, strategy, features.document_tokens) for task in features.task}
    mean = sum(share * beliefs[task].mean for task, share in features.task.items())
    variance = sum(
        share * (beliefs[task].variance + (beliefs[task].mean - mean) ** 2) for task, share in features.task.items()
    )
    return Belief(min(max(mean, 0.0), 1.0), variance)


def _at_length(task: Task, profile: ModelProfile, strategy: str, document_tokens: int) -> Belief:
    """Linear in the logarithm of the length from 32k to 256k tokens, constant beyond; the variance stops at 128k."""
    octaves = math.log2(max(document_tokens, _SHORT_TOKENS) / _SHORT_TOKENS)
    share = min(octaves, _OCTAVES + _BEYOND) / _OCTAVES
    short, long = (_measured(task, profile, strategy, length) for length in (_SHORT, _LONG))
    return Belief(
        short.mean + share * (long.mean - short.mean),
        short.variance + min(share, 1.0) * (long.variance - short.variance),
    )


def as_shown(full: Belief, rag: Belief, shown: float) -> Belief:
    """Rag's quality where its passages are `shown` of the text: the gap to full closes as the share goes to one.

    LaRA's shortest texts are ten times what its retriever showed; on a text that fits into rag's budget both
    strategies show the model the same words.
    """
    gap = min((1 - shown) / (1 - _RAG_TOKENS / _SHORT_TOKENS), 1.0)
    return Belief(full.mean + gap * (rag.mean - full.mean), full.variance + gap * (rag.variance - full.variance))


# ---- the table -------------------------------------------------------------------------------------------------------


@cache
def _table() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("weights", "lara_prior.json").read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


@lru_cache(maxsize=4096)
def _measured(task: Task, profile: ModelProfile, strategy: str, length: str) -> Belief:
    """One cell: the model's own row drawn towards its tier's, a new model of a tier, or any model at all."""
    borrowed = _table()["borrowed"].get(task, {"row": task, "rag_points": 0, "sd_points": 0})
    row, tier = borrowed["row"], profile.tier
    sd_points = borrowed["sd_points"]
    if tier == "extractive":
        # Picking sentences cannot lose its way in a long text, so both strategies get rag's row and cost decides.
        strategy, tier, sd_points = "rag", "small", sd_points + _table()["extractive_sd_points"]
    own = _own(profile)
    if own:
        tier = own["tier"]
    peers = [m for m in _table()["models"] if tier in ("unknown", m["tier"])]
    values = [_value(m, row, strategy, length) for m in peers]
    mean = sum(values) / len(values)
    spread = _variance([values]) if tier == "unknown" else _spread_within_tiers(row, strategy, length)
    if own:
        belief = _drawn_to_tier(_value(own, row, strategy, length), mean, spread, len(values), _cases(row, length))
    else:
        belief = Belief(mean, spread * (1 + 1 / len(values)))
    shift = borrowed["rag_points"] / 100 if strategy == "rag" else 0.0
    return Belief(belief.mean + shift, belief.variance + (sd_points / 100) ** 2)


def _drawn_to_tier(own: float, mean: float, spread: float, peers: int, cases: float) -> Belief:
    """Empirical Bayes: the observed spread is true spread plus sampling error, and the row keeps the true share."""
    sampling = own * (1 - own) / cases
    kept = max(1 - sampling / spread, 0.0)
    return Belief(kept * own + (1 - kept) * mean, kept * sampling + (1 - kept) ** 2 * spread / peers)


@cache
def _spread_within_tiers(row: str, strategy: str, length: str) -> float:
    """Variance between models of one tier, pooled over the tiers: two to four models a tier are too few alone."""
    tiers: dict[str, list[float]] = {}
    for model in _table()["models"]:
        tiers.setdefault(model["tier"], []).append(_value(model, row, strategy, length))
    return _variance([values for values in tiers.values() if len(values) > 1])


def _variance(groups: Sequence[Sequence[float]]) -> float:
    """Unbiased variance within groups, pooled."""
    squares = sum((x - sum(group) / len(group)) ** 2 for group in groups for x in group)
    return squares / sum(len(group) - 1 for group in groups)


def _value(model: Mapping[str, Any], row: str, strategy: str, length: str) -> float:
    return float(model[length][row][_STRATEGIES.index(strategy)]) / 100


def _cases(row: str, length: str) -> float:
    """Number of independent cases with the same standard error as LaRA's unweighted mean over three kinds of text."""
    kinds: list[int] = _table()["cases"][length][row]
    return len(kinds) ** 2 / sum(1 / cases for cases in kinds)


def _own(profile: ModelProfile) -> Mapping[str, Any] | None:
    """The rows of the very model, found by its name without provider and version; None for one LaRA did not measure."""
    base = profile.name.lower().rpartition("/")[2]
    for model in _table()["models"]:
        for alias in model["aliases"]:
            if re.fullmatch(rf"{re.escape(alias)}(?:-instruct|-latest|-[\d-]+)*", base):
                row: Mapping[str, Any] = model
                return row
    return None


# ---- what a person reads ---------------------------------------------------------------------------------------------


def filled(option: Estimate, belief: Belief, basis: str) -> Estimate:
    half = _Z90 * math.sqrt(belief.variance)
    interval = (max(belief.mean - half, 0.0), min(belief.mean + half, 1.0))
    return replace(option, quality=belief.mean, quality_interval=interval, basis=basis)


def _basis(features: Features, profile: ModelProfile) -> str:
    likely = max(features.task, key=lambda task: features.task[task])
    notes = [f"LaRA's published table, {_whose(profile)}"]
    if likely in _table()["borrowed"]:
        row = _table()["borrowed"][likely]["row"]
        notes.append(f"{likely} was not measured: its {row} row with a wider interval")
    if profile.tier == "extractive":
        notes.append("nothing is published on extractive answers: a guess")
    if features.document_tokens > _SHORT_TOKENS * 2**_OCTAVES:
        notes.append("extrapolated beyond 128k tokens")
    return "; ".join(notes)


def _whose(profile: ModelProfile) -> str:
    if profile.tier == "extractive":
        return "rag row of tier 'small'"
    if own := _own(profile):
        return f"{own['name']}'s row"
    return "all its models" if profile.tier == "unknown" else f"models of tier '{profile.tier}'"


def _reason(features: Features, profile: ModelProfile, expected: Mapping[str, Belief]) -> str:
    ranked = sorted(features.task.items(), key=lambda item: -item[1])
    kinds = " or ".join(f"{task} ({share:.2f})" for task, share in ranked[: 1 if ranked[0][1] >= 0.6 else 2])
    qualities = ", ".join(f"{name} {belief.mean:.2f}" for name, belief in expected.items())
    return (
        f"The question's type: {kinds}. At {features.document_tokens:,} tokens LaRA ({_whose(profile)}) leads to "
        f"expect {qualities}."
    )
