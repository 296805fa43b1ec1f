"""How fast a model is on this machine: tokens read and written per second by length of the text, and what a call costs.

What is measured is the engine as requests meet it, one at a time, on random tokens: a step takes as long whatever the
tokens say. Nothing is reused between measurements.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..errors import ConfigError, ContextTooLong
from .generation import Generation, GenerationUsage, SamplingOptions
from .local_model import LocalModel

LENGTHS = (512, 2048, 8192, 32_768, 131_072)
_GREEDY = SamplingOptions(temperature=0)
_NEVER: frozenset[int] = frozenset()  # an answer that ended early would measure nothing
_SHORT_TRIES = 5


@dataclass(frozen=True, slots=True)
class Measured:
    """One length. Seconds are of the engine, waiting excluded; the first token belongs to reading."""

    prompt_tokens: int
    new_tokens: int
    prefill_s: float
    decode_s: float

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.prompt_tokens / self.prefill_s

    @property
    def decode_tokens_per_s(self) -> float:
        return (self.new_tokens - 1) / self.decode_s


@dataclass(frozen=True, slots=True)
class Speed:
    """Over all measured lengths. overhead_s: what a call with next to no text takes, its one token included."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    overhead_s: float


def measure(
    model: LocalModel, lengths: Sequence[int] = LENGTHS, *, new_tokens: int = 32, budget_s: float = 300.0, seed: int = 0
) -> Iterator[Measured]:
    """One result for each length, in order, as it is there; two tries each, of which the better counts.

    Lengths that the window or the memory cannot hold are left out, and those that would go beyond budget_s in all,
    taking reading to grow with the square of the length.
    """
    if new_tokens < 2:
        raise ConfigError(f"new_tokens is {new_tokens}; it takes at least 2 to time the step from one to the next.")
    rng = random.Random(seed)
    _run(model, rng, 16, new_tokens)  # what is done once only: kernels chosen, memory touched
    spent_s, last = 0.0, None
    for length in sorted(set(lengths)):
        if last is not None:
            growth = length / last.prompt_tokens
            if spent_s + 2 * (last.prefill_s * growth**2 + last.decode_s * growth) > budget_s:
                return
        try:
            tries = [_run(model, rng, length, new_tokens) for _ in range(2)]
        except ContextTooLong:
            return
        spent_s += sum(used.prefill_s + used.decode_s for used in tries)
        last = Measured(length, new_tokens, min(u.prefill_s for u in tries), min(u.decode_s for u in tries))
        yield last


def speed(model: LocalModel, measured: Sequence[Measured], seed: int = 1) -> Speed:
    """The summary that a latency estimate needs. Raises ConfigError where nothing was measured."""
    if not measured:
        raise ConfigError("Not even the shortest length could be measured; see runner.cache_mb, or name a shorter one.")
    rng = random.Random(seed)
    short = [_run(model, rng, 1, 1) for _ in range(_SHORT_TRIES)]
    return Speed(
        sum(m.prompt_tokens for m in measured) / sum(m.prefill_s for m in measured),
        sum(m.new_tokens - 1 for m in measured) / sum(m.decode_s for m in measured),
        statistics.median(used.queue_s + used.prefill_s + used.decode_s for used in short),
    )


def _run(model: LocalModel, rng: random.Random, length: int, new_tokens: int) -> GenerationUsage:
    room = model.context_window
    if room is not None and length + new_tokens > room:
        raise ContextTooLong(f"{length} tokens and {new_tokens} of an answer do not fit the window of {room}.")
    ids = tuple(rng.choices(range(model.engine.model.vocab_size), k=length))
    generation = Generation(ids, _GREEDY, new_tokens, stop_ids=_NEVER)
    return model.engine.submit(generation).result().usage
