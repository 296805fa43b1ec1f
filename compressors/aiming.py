"""Using up a budget with a selection whose exact tokens are known only once it is written down."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .compression import Compressed

_ROUNDS = 8
_ENOUGH = 0.99  # share of the budget with which the search is content


def aimed(select: Callable[[float], list[Compressed]], budget: int, tokens: Sequence[int]) -> list[Compressed]:
    """The results of the attempt that uses most of the budget without exceeding it; empty results if none does.

    select: results for about so many tokens, by additive prices, which are a little off.
    tokens: of each source. Calls `select` up to eight times, as a rule once or twice.
    """
    best = [Compressed("", (), (), before, 0) for before in tokens]
    most, aim, before = 0, float(budget), -1
    for _ in range(_ROUNDS):
        found = select(aim)
        now = sum(result.tokens_after for result in found)
        if most < now <= budget:
            best, most = found, now
        if _ENOUGH * budget <= now <= budget or (now == before and now <= budget):
            break
        # Lower by a little more than the excess, so that a few tokens too many do not take several rounds.
        aim = max(aim + (budget - now) * (1.05 if now > budget else 0.9), 0.0)
        before = now
    return best
