"""The one decision rule of all policies: from estimates and a goal to a decision with reasons.

A policy says what quality to expect of each strategy; this module rules out what the hard limits forbid, prices the
rest, and chooses. Where qualities and costs come from is left to the policies and to `router/costs.py`.

    utility = quality - λ · (cost / cost of the text + LATENCY_SHARE · latency / latency of the text)

The unit of cost is what the model takes to read the whole text once, uncached; the unit of latency likewise. So λ is
the quality one gives up to save reading the text, whatever the model and the length, and a `full` that finds its text
in the prompt cache costs a fraction of the unit. Where there is no price (unknown, or a model that is free), prompt
tokens stand in for money.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

from ..router.core import Decision, Estimate, Features, Goal, ModelProfile, Prefer
from ..router.errors import ContextTooLong, NoFeasibleStrategy

# Quality one gives up to save reading the text once. Tried on LaRA's development part with the `lara` policy and types
# told by models that had not seen the document: mean of 13 models; the better of full and rag for each gives 68.9,
# 0.01 gives 70.2 at 55 % of full's input tokens, 0.06 70.2 at 35 %, 0.10 69.7 at 22 %. At 0.25 hardly anything goes to
# full, though comparisons would gain 15 points.
LAMBDA: dict[Prefer, float] = {"quality": 0.01, "balanced": 0.10, "cheap": 0.25}
LATENCY_SHARE = 0.2  # waiting for the text to be read counts a fifth of paying for it

_REASONS = 5


def choose(
    policy: str,
    features: Features,
    profile: ModelProfile,
    estimates: Sequence[Estimate],
    goal: Goal,
    because: Sequence[str] = (),
) -> Decision:
    """Decide among estimates whose quality is filled in where it is known.

    because: the policy's own reasons, which come first.
    Every estimate comes back in its place, with `utility` where it was compared and `infeasible` where a limit of the
    goal rules it out. What cannot be shown to keep a limit (unknown cost, latency, quality) does not keep it. A
    strategy of unknown quality is compared only where no quality is known; one whose quality is not measured is taken
    at the lower end of its interval. Ties go to the cheaper, then by name.
    Raises ContextTooLong where nothing fits the window, NoFeasibleStrategy where the limits leave nothing.
    """
    if not estimates:
        raise NoFeasibleStrategy("No strategy is allowed. Allow at least one, or leave `allowed` empty for all.")
    if not any(estimate.feasible for estimate in estimates):
        raise ContextTooLong(
            f"No allowed strategy fits {profile.name}. {_complaints(estimates)} "
            "Allow another strategy, choose a model with a longer window, send less text or lower max_output_tokens."
        )
    limited = [replace(e, infeasible=_violation(e, goal)) if e.feasible else e for e in estimates]
    candidates = [estimate for estimate in limited if estimate.feasible]
    if not candidates:
        raise NoFeasibleStrategy(
            f"The hard limits rule out every strategy for {profile.name}. {_complaints(limited)} Relax the limit that "
            "is named beside the strategy you want."
        )
    if known := [estimate for estimate in candidates if estimate.quality is not None]:
        candidates = known

    price = prices(candidates, features, profile)
    weight = LAMBDA[goal.prefer]
    candidates = [replace(e, utility=_quality(e) - weight * price[e.strategy]) for e in candidates]
    ranked = sorted(candidates, key=lambda e: (-(e.utility or 0.0), price[e.strategy], e.strategy))
    compared = {estimate.strategy: estimate for estimate in candidates}
    reasons = [*because, *_reasons(ranked, goal, profile)]
    reasons += [f"{e.strategy} is out: {e.infeasible}" for e in limited if not e.feasible]
    return Decision(
        strategy=ranked[0].strategy,
        policy=policy,
        model=profile.name,
        estimates=tuple(compared.get(e.strategy, e) for e in limited),
        reasons=tuple(reasons[:_REASONS]),
        features=features,
        goal=goal,
    )


def _quality(estimate: Estimate) -> float:
    """What a decision may count on: what was only published elsewhere must not win by a hopeful guess."""
    if estimate.measured or estimate.quality_interval is None:
        return estimate.quality or 0.0
    return estimate.quality_interval[0]


def _violation(estimate: Estimate, goal: Goal) -> str:
    """The first hard limit that the estimate cannot be shown to keep, or nothing."""
    if goal.max_cost_usd is not None:
        if estimate.cost_usd is None:
            return f"its cost is unknown, so max_cost_usd = {dollars(goal.max_cost_usd)} cannot be shown to hold."
        if estimate.cost_usd > goal.max_cost_usd:
            return f"{dollars(estimate.cost_usd)} is over max_cost_usd = {dollars(goal.max_cost_usd)}."
    if goal.max_latency_s is not None:
        if estimate.latency_s is None:
            return f"its latency is unknown, so max_latency_s = {goal.max_latency_s:g} cannot be shown to hold."
        if estimate.latency_s > goal.max_latency_s:
            return f"{estimate.latency_s:.1f} s is over max_latency_s = {goal.max_latency_s:g}."
    if goal.min_quality is not None:
        if estimate.quality is None:
            return f"its quality is unknown, so min_quality = {goal.min_quality:g} cannot be shown to hold."
        if estimate.quality < goal.min_quality:
            return f"expected quality {estimate.quality:.2f} is under min_quality = {goal.min_quality:g}."
    return ""


def prices(candidates: Sequence[Estimate], features: Features, profile: ModelProfile) -> dict[str, float]:
    """Cost and latency by strategy, in units of reading the text once. Reads no infeasible estimate: one more of those
    must not change a decision."""
    text_tokens = max(features.document_tokens + features.question_tokens + features.instruction_tokens, 1)
    costs = [e.cost_usd for e in candidates if e.cost_usd is not None]
    if profile.input_usd_per_mtok and len(costs) == len(candidates):
        unit = profile.input_usd_per_mtok * text_tokens / 1_000_000
        ratios = [float(cost / unit) for cost in costs]
    else:
        ratios = [e.prompt_tokens / text_tokens for e in candidates]
    latencies = [e.latency_s for e in candidates if e.latency_s is not None]
    if profile.prefill_tokens_per_s and len(latencies) == len(candidates):
        unit_s = text_tokens / profile.prefill_tokens_per_s
        ratios = [ratio + LATENCY_SHARE * s / unit_s for ratio, s in zip(ratios, latencies, strict=True)]
    return {e.strategy: ratio for e, ratio in zip(candidates, ratios, strict=True)}


def _reasons(ranked: Sequence[Estimate], goal: Goal, profile: ModelProfile) -> list[str]:
    best, *others = ranked
    if not others:
        unknown = "; nothing is known of its quality" if best.quality is None else ""
        return [f"{best.strategy} is the only strategy left to choose{unknown}."]
    second = others[0]
    if best.cost_usd and second.cost_usd:
        spent = (
            f"{best.strategy} costs {dollars(best.cost_usd)} against {dollars(second.cost_usd)} for {second.strategy}"
        )
        share = float(best.cost_usd / second.cost_usd)
    else:
        spent = (
            f"{profile.name} has no price to compare by: {best.strategy} reads {best.prompt_tokens:,} tokens against "
            f"{second.prompt_tokens:,} for {second.strategy}"
        )
        share = best.prompt_tokens / max(second.prompt_tokens, 1)
    cached = [
        f"{e.strategy} finds {e.cached_tokens:,} tokens in the prompt cache" for e in (best, second) if e.cached_tokens
    ]
    ratio = f"{share:.0%}" if share < 2 else f"{share:.0f} times as much"
    reasons = [f"{'; '.join([f'{spent} ({ratio})', *cached])}."]
    if best.quality is None:
        return [*reasons, "Nothing is known of the quality of either, so the cheapest is taken."]
    margin = 100 * ((best.utility or 0.0) - (second.utility or 0.0))
    return [
        *reasons,
        f"prefer={goal.prefer} gives up to {100 * LAMBDA[goal.prefer]:g} points of quality to save reading the whole "
        f"text: {best.strategy} wins by {margin:.1f} points.",
    ]


def _complaints(estimates: Sequence[Estimate]) -> str:
    return " ".join(f"{estimate.strategy}: {estimate.infeasible}" for estimate in estimates)


def dollars(amount: Decimal) -> str:
    """Two significant digits, without an exponent: $0.0083, $0.28, $12."""
    return f"${Decimal(f'{amount:.2g}'):f}"
