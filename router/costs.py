"""What a strategy would cost: money, seconds, room in the window; and which prompts a provider still has cached.

Arithmetic on profiles and footprints, and one ledger that remembers what was sent. Prices come from
`router/models.py`, token counts from the features, footprints from the strategies. Unknown prices and speeds make
unknown costs and latencies (None), never zero.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal

from .core import Estimate, Footprint, ModelProfile, Usage

_MILLION = 1_000_000


def shares(profile: ModelProfile, footprint: Footprint) -> tuple[tuple[ModelProfile, Footprint], ...]:
    """Who does what of a footprint: the model of this profile all that is not delegated."""
    if footprint.delegated is None:
        return ((profile, footprint),)
    other = footprint.delegated.footprint
    own = replace(
        footprint,
        prompt_tokens=footprint.prompt_tokens - other.prompt_tokens,
        completion_tokens=footprint.completion_tokens - other.completion_tokens,
        cached_tokens=footprint.cached_tokens - other.cached_tokens,
        calls=footprint.calls - other.calls,
        sequential_calls=footprint.sequential_calls - other.sequential_calls,
        delegated=None,
    )
    return ((profile, own), (footprint.delegated.profile, other))


def price(profile: ModelProfile, use: Footprint | Usage) -> Decimal | None:
    """Dollars for these tokens; None where a price that they need is unknown.

    use: of one call, or the footprint of a strategy, which counts as long where its longest call does: what the other
    calls of such a strategy read is little beside that.
    """
    if isinstance(use, Footprint) and use.delegated is not None:
        bills = [price(model, share) for model, share in shares(profile, use)]
        return None if None in bills else sum(filter(None, bills), Decimal(0))
    if isinstance(use, Footprint):
        longest, written_tokens = use.largest_prompt_tokens, 0  # we ask no provider to cache anything
    else:
        longest, written_tokens = use.prompt_tokens, use.written_tokens
    prices = _Prices.of(profile, longest)
    bill = (
        (use.prompt_tokens - use.cached_tokens - written_tokens, prices.input),
        (use.cached_tokens, prices.cached),
        (written_tokens, prices.input if prices.written is None else prices.written),
        (use.completion_tokens, prices.output),
    )
    total = Decimal(0)
    for tokens, usd_per_mtok in bill:
        if tokens:
            if usd_per_mtok is None:
                return None
            total += tokens * usd_per_mtok / _MILLION
    return total


@dataclass(frozen=True, slots=True)
class _Prices:
    """Dollars per million tokens; None where unknown, of written tokens where they cost what input costs."""

    input: Decimal | None
    cached: Decimal | None
    written: Decimal | None
    output: Decimal | None

    @classmethod
    def of(cls, profile: ModelProfile, prompt_tokens: int) -> _Prices:
        """Of a call with so long a prompt."""
        if profile.long_prompt_tokens is not None and prompt_tokens > profile.long_prompt_tokens:
            return cls(
                profile.long_input_usd_per_mtok,
                profile.long_cached_input_usd_per_mtok,
                profile.long_cache_write_usd_per_mtok,
                profile.long_output_usd_per_mtok,
            )
        return cls(
            profile.input_usd_per_mtok,
            profile.cached_input_usd_per_mtok,
            profile.cache_write_usd_per_mtok,
            profile.output_usd_per_mtok,
        )


def charge(usage: Usage, profile: ModelProfile) -> Usage:
    """The usage with its cost, unless the server has already said what it cost."""
    return usage if usage.cost_usd is not None else replace(usage, cost_usd=price(profile, usage))


def latency(profile: ModelProfile, footprint: Footprint) -> float | None:
    """Seconds from start to finished answer; None where the model's speed is unknown.

    Tokens count once for each round of parallel calls: calls of one round are taken to be alike.
    """
    total_s = footprint.preparation_s
    for model, part in shares(profile, footprint):
        prefill, decode, overhead = model.prefill_tokens_per_s, model.decode_tokens_per_s, model.overhead_s
        if prefill is None or decode is None or overhead is None:
            return None
        uncached = part.prompt_tokens - part.cached_tokens
        in_a_row = part.sequential_calls / part.calls if part.calls else 0.0
        writing_s = part.completion_tokens / (decode * part.decode_speedup)
        total_s += overhead * part.sequential_calls + in_a_row * (uncached / prefill + writing_s)
    return total_s


def estimate(
    strategy: str,
    footprint: Footprint,
    profile: ModelProfile,
    *,
    max_output_tokens: int,
    token_error: float = 0.0,
) -> Estimate:
    """Tokens, cost, latency and feasibility of a strategy; its quality is left to the policy.

    token_error: relative error of the token counts; the window must hold the largest prompt with that much more.
    """
    infeasible = footprint.unavailable
    for model, part in shares(profile, footprint):
        largest = part.largest_prompt_tokens
        needed = math.ceil(largest * (1 + token_error)) + max_output_tokens
        if not infeasible and needed > model.context_window:
            margin = f" ± {token_error:.0%}" if token_error else ""
            infeasible = (
                f"its largest prompt has {largest:,} tokens{margin}; with {max_output_tokens:,} for the answer that is "
                f"{needed:,}, and {model.name} accepts {model.context_window:,}"
            )
    return Estimate(
        strategy=strategy,
        prompt_tokens=footprint.prompt_tokens,
        completion_tokens=footprint.completion_tokens,
        cached_tokens=footprint.cached_tokens,
        calls=footprint.calls,
        cost_usd=price(profile, footprint),
        latency_s=latency(profile, footprint),
        infeasible=infeasible,
    )


def no_gain(short: Footprint, full: Footprint, profile: ModelProfile) -> str:
    """Why standing in for `full` costs more than it saves, for a person to read; empty where it does not.

    In money, where prices are known: the cached part of `full` costs a fraction, and a rewritten text is not cached.
    In time, where there is no money to save (a model that is free) and the model's speed is known. Else in tokens.
    """
    cost, full_cost = price(profile, short), price(profile, full)
    if cost is not None and full_cost:
        if cost < full_cost:
            return ""
        cached = f", with {full.cached_tokens:,} tokens in the prompt cache" if full.cached_tokens else ""
        return f"it costs no less than full{cached}"
    time_s, full_s = latency(profile, short), latency(profile, full)
    if time_s is not None and full_s is not None and time_s >= full_s:
        return f"preparing it takes {short.preparation_s:.1f} s, longer than the model needs to read what it leaves out"
    uncached, full_uncached = short.prompt_tokens - short.cached_tokens, full.prompt_tokens - full.cached_tokens
    return "" if uncached < full_uncached else "the model has to read no less than for full"


# ---- prompt caches ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Sent:
    at_s: float
    warm_tokens: int  # 0: the provider reported a miss where we expected a hit


class PromptCacheLedger:
    """Which prompt prefixes a provider should still have in its cache, from what was sent and what it reported.

    A belief, not knowledge: a report of cached tokens corrects it. Safe to share between threads; the least recently
    sent prefixes are forgotten first.

    clock: seconds from any fixed moment. max_prefixes: how many are remembered.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, max_prefixes: int = 10_000) -> None:
        self._clock = clock
        self._max_prefixes = max_prefixes
        self._sent: OrderedDict[tuple[str, str], _Sent] = OrderedDict()
        self._lock = threading.Lock()

    def warm_tokens(self, profile: ModelProfile, prefix_key: str) -> int:
        """Tokens of this prefix believed to be cached; 0 where the model's cache lifetime is unknown.

        prefix_key: hash of the exact prefix.
        """
        with self._lock:
            entry = self._unexpired(profile, prefix_key)
            return entry.warm_tokens if entry else 0

    def sent(
        self, profile: ModelProfile, prefix_key: str, tokens: int, cached_tokens_reported: int | None = None
    ) -> None:
        """Note that a prompt with this prefix, `tokens` long, has just been answered.

        cached_tokens_reported: as the provider says, None where it does not. A miss where a hit was expected makes
        the prefix cold until a hit is reported or its time is over.
        """
        with self._lock:
            before = self._unexpired(profile, prefix_key)
            warm = tokens if tokens >= (profile.cache_min_tokens or 0) else 0
            if before is not None and cached_tokens_reported is not None:
                warm = min(warm, cached_tokens_reported)
            elif before is not None:
                warm = min(warm, before.warm_tokens)
            key = (profile.name, prefix_key)
            self._sent[key] = _Sent(self._clock(), warm)
            self._sent.move_to_end(key)
            if len(self._sent) > self._max_prefixes:
                self._sent.popitem(last=False)

    def _unexpired(self, profile: ModelProfile, prefix_key: str) -> _Sent | None:
        entry = self._sent.get((profile.name, prefix_key))
        lifetime = profile.cache_ttl_s
        fresh = entry is not None and lifetime is not None and self._clock() - entry.at_s < lifetime
        return entry if fresh else None
