"""Policy `risk_controlled`: the cheapest strategy whose quality was shown to stay close to that of `full`.

It wraps another policy, which predicts the qualities and keeps the goal's hard limits, and replaces that policy's
choice by a rule with one number: take the cheapest strategy predicted to be at most `threshold` worse than `full`. How
far the threshold may go, and what that guarantees, is `router/calibration/risk.py`'s business; the guarantee comes
with the policy and stands, with its assumption, among the reasons of every decision that rests on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..router.core import Decision, Estimate, Features, Goal, ModelProfile, Policy
from ..router.errors import ConfigError
from .decision_rule import prices

FULL = "full"

Loss = Literal["difference", "shortfall"]


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What a calibration set showed about routing by a threshold. `dataclasses.asdict` is its JSON form.

    loss: per request, quality of `full` minus quality of the strategy taken (`difference`), or the same where it is
    positive and else 0 (`shortfall`). Qualities are in [0, 1].
    epsilon: largest mean loss allowed; delta: largest chance that the calibration set misled us about it; None where
    the mean is also over calibration sets (conformal risk control).
    unit: what was drawn independently, `n` of them; a document's loss is the mean over its requests.
    strategies, models: what was calibrated, and hence may be chosen.
    threshold: None where no threshold is safe; `needed` is then how many units would do if the new ones look like
    those seen, or None where no number in reach would.
    mean_loss: on the calibration set, at the threshold; at the safest threshold where none is safe.
    """

    loss: Loss
    epsilon: float
    delta: float | None
    unit: Literal["request", "document"]
    n: int
    strategies: tuple[str, ...]
    models: tuple[str, ...]
    threshold: float | None
    mean_loss: float
    needed: int | None = None

    @property
    def statement(self) -> str:
        """What holds, or what it would take."""
        lost = "gives up" if self.loss == "difference" else "loses, counting no gains,"
        limit = f"at most {100 * self.epsilon:g} points of quality against {FULL} on average"
        if self.threshold is not None:
            likely = "" if self.delta is None else f", with {100 * (1 - self.delta):g}% confidence"
            return f"Routing {lost} {limit}{likely}: calibrated on {self.n:,} {self.unit}s."
        more = (
            f"collect about {self.needed - self.n:,} more"
            if self.needed
            else "more of the same will not do: allow a larger loss, or calibrate better predictions"
        )
        return (
            f"No threshold is safe: {self.n:,} {self.unit}s do not show that routing {lost} {limit} "
            f"(it came to {100 * self.mean_loss:.1f} at the safest); {more}."
        )

    @property
    def assumption(self) -> str:
        """What the statement rests on, to be printed beside it."""
        return (
            f"This holds while live {self.unit}s come from the same source as the calibration set, independently, and "
            "models, prompts, retriever, prices and limits stay as they were."
        )


def guarantee_from(row: Mapping[str, Any]) -> Guarantee:
    """A Guarantee from its JSON form. Raises ConfigError for anything else."""
    try:
        return Guarantee(**{**row, "strategies": tuple(row["strategies"]), "models": tuple(row["models"])})
    except (KeyError, TypeError) as error:
        raise ConfigError(f"Not a guarantee: {error}. Write the policy file again with `calibrate fit`.") from error


class RiskControlled:
    """The cheapest of the calibrated strategies that `base` predicts to be at most the threshold worse than `full`.

    Without a safe threshold, or for a model that was not calibrated, it takes `full`, which loses nothing. Where `full`
    cannot be used there is nothing to compare with, and the choice of `base` stands.
    """

    def __init__(self, base: Policy, guarantee: Guarantee) -> None:
        self.base = base
        self.guarantee = guarantee

    def decide(self, features: Features, profile: ModelProfile, options: Sequence[Estimate], goal: Goal) -> Decision:
        decision = self.base.decide(features, profile, options, goal)
        feasible = {estimate.strategy: estimate for estimate in decision.estimates if estimate.feasible}
        outs = [f"{e.strategy} is out: {e.infeasible}" for e in decision.estimates if not e.feasible]
        full = feasible.get(FULL)
        if full is None:
            reason = f"{FULL} cannot be used, so nothing is guaranteed against it and policy {decision.policy} chose."
            return replace(decision, policy="risk_controlled", reasons=(reason, *decision.reasons))
        if profile.name not in self.guarantee.models:
            calibrated = ", ".join(self.guarantee.models)
            chosen = full
            reasons = [f"The guarantee is for {calibrated}, not for {profile.name}, so {FULL} is taken."]
        elif (threshold := self.guarantee.threshold) is None:
            chosen = full
            reasons = [self.guarantee.statement, f"So {FULL} is taken, which loses nothing against itself."]
        else:
            close = [e for e in feasible.values() if self._close(e, full, threshold)]
            price = prices(close, features, profile)
            chosen = min(close, key=lambda e: (price[e.strategy], e is not full, e.strategy))
            reasons = [_why(chosen, full, threshold), self.guarantee.statement, self.guarantee.assumption]
        return replace(decision, policy="risk_controlled", strategy=chosen.strategy, reasons=(*reasons, *outs))

    def _close(self, estimate: Estimate, full: Estimate, threshold: float) -> bool:
        if estimate is full:
            return True
        if estimate.strategy not in self.guarantee.strategies or estimate.quality is None or full.quality is None:
            return False
        return full.quality - estimate.quality <= threshold


def _why(chosen: Estimate, full: Estimate, threshold: float) -> str:
    allowed = f"at most {100 * threshold:g} points of predicted quality below {FULL}"
    if threshold < 0:
        allowed = f"at least {-100 * threshold:g} points of predicted quality above {FULL}"
    if chosen is full:
        return f"No cheaper strategy is {allowed}, so {FULL} is taken."
    return (
        f"{chosen.strategy} ({chosen.quality:.2f}) is the cheapest strategy {allowed} ({full.quality:.2f}), the "
        "threshold that calibration found safe."
    )
