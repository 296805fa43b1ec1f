"""Policy `fixed`: always the same strategy. For applications that know, and as the baseline of every comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..router.core import Decision, Estimate, Features, Goal, ModelProfile
from ..router.errors import NoFeasibleStrategy
from .decision_rule import choose


class Fixed:
    """Uses `strategy` wherever it is allowed, fits the window and keeps the goal's limits; raises where it does not.

    It expects no particular quality, so a goal with `min_quality` rules it out.
    """

    def __init__(self, strategy: str) -> None:
        self.strategy = strategy

    def decide(self, features: Features, profile: ModelProfile, options: Sequence[Estimate], goal: Goal) -> Decision:
        chosen = [option for option in options if option.strategy == self.strategy]
        if not chosen:
            allowed = ", ".join(option.strategy for option in options) or "nothing"
            raise NoFeasibleStrategy(
                f"The policy always uses {self.strategy!r}, but the request allows only {allowed}. "
                "Allow it, or choose another policy."
            )
        because = [f"The policy always uses {self.strategy}."]
        decision = choose("fixed", features, profile, chosen, goal, because)
        compared = {estimate.strategy: estimate for estimate in decision.estimates}
        return replace(decision, estimates=tuple(compared.get(option.strategy, option) for option in options))
