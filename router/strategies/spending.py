"""What a plan may still spend: a hard limit kept call by call, whatever each call turns out to cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal

from ..core import ModelProfile, Reply, Usage
from ..errors import BackendTimeout, BadReply, RouterError

Price = Callable[[ModelProfile, Usage], Decimal | None]
"""Dollars of a usage; None where a price is unknown."""


class Spending:
    """Money of one request, shared by all paths of its plan.

    limit_usd: None where there is none. Where a price is unknown nothing can be watched, and `blind` says so.
    """

    def __init__(self, limit_usd: Decimal | None, price: Price) -> None:
        self._limit = limit_usd
        self._price = price
        self._spent = Decimal(0)
        self._under_way = Decimal(0)
        self._kept_back: dict[int, Decimal] = {}
        self.blind = False

    @property
    def limited(self) -> bool:
        """Whether there is a limit, so that it is worth counting what a call may take."""
        return self._limit is not None

    def worst(self, profile: ModelProfile, prompt_tokens: float, output_tokens: int) -> Decimal:
        """Dollars that a call costs at most, as far as prices are known; nothing where there is no limit."""
        if self._limit is None:
            return Decimal(0)
        price = self._price(profile, Usage(math.ceil(prompt_tokens), 0, output_tokens))
        self.blind = self.blind or price is None
        return price or Decimal(0)

    def keep_back(self, path: int, worst: Decimal) -> None:
        """Set aside what a path needs for its last call."""
        self._kept_back[path] = worst

    def take(self, worst: Decimal) -> bool:
        """Take out what a call may cost, where that leaves what is kept back. `settle` puts the rest in again."""
        kept = sum(self._kept_back.values(), Decimal(0))
        if self._limit is not None and self._spent + self._under_way + kept + worst > self._limit:
            return False
        self._under_way += worst
        return True

    def settle(self, worst: Decimal, profile: ModelProfile, outcome: Reply | RouterError) -> None:
        """Note what a call has cost. What a server does not report, or may have done in vain, costs the worst."""
        self._under_way -= worst
        if isinstance(outcome, Reply):
            usage = outcome.usage
            known = usage.cost_usd if usage.cost_usd is not None else self._price(profile, usage)
            self._spent += known if known is not None and (usage.prompt_tokens or usage.cost_usd) else worst
        elif isinstance(outcome, BackendTimeout | BadReply):
            self._spent += worst

    def prompt_tokens_left(self, profile: ModelProfile, output_tokens: int) -> float:
        """Longest prompt of one more call that the rest pays for; infinite where there is no limit or no price."""
        if self._limit is None:
            return math.inf
        rest = self._limit - self._spent - self._under_way - sum(self._kept_back.values(), Decimal(0))
        left = self._prompt_tokens_for(rest, profile, output_tokens, shortest=0)
        dearer_from = profile.long_prompt_tokens
        if dearer_from is None or left <= dearer_from:
            return max(0.0, left)
        return max(dearer_from, self._prompt_tokens_for(rest, profile, output_tokens, shortest=dearer_from + 1))

    def _prompt_tokens_for(self, rest: Decimal, profile: ModelProfile, output_tokens: int, *, shortest: int) -> float:
        """Prompt that so many dollars pay for, at the prices of a prompt of `shortest` tokens."""
        bill = self._price(profile, Usage(shortest, 0, output_tokens))
        longer = self._price(profile, Usage(shortest + 1, 0, output_tokens))
        if bill is None or longer is None or longer == bill:
            return math.inf
        return float(shortest + (rest - bill) / (longer - bill))
