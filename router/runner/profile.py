"""How fast a model is on this machine: tokens read and written per second by length of the text, and what a call costs.

What is measured is the engine as requests meet it, one at a time, on random tokens: a step takes as long whatever the
tokens say. Nothing is reused between measurements of reading and writing. How many drafts would be kept random tokens
cannot tell: of speculation only the time of a round is measured, and its speed-up predicted for a given acceptance.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..errors import ConfigError, ContextTooLong
from .draft_length import expected_tokens
from .generation import Draft, Generation, GenerationUsage, SamplingOptions
from .laws import Law
from .local_model import LocalModel
from .speculative import Speculation

LENGTHS = (512, 2048, 8192, 32_768, 131_072)
_GREEDY = SamplingOptions(temperature=0)
_NEVER: frozenset[int] = frozenset()  # an answer that ended early would measure nothing
_SHORT_TRIES = 5
_DRAFTED = 4  # tokens a round, where drafts have a fixed length: good for acceptances of 0.6 to 0.9
_ROUNDS_TOKENS = 5 * (_DRAFTED + 1) + 1  # five rounds where everything is kept, 26 where nothing is


@dataclass(frozen=True, slots=True)
class Measured:
    """One length. Seconds are of the engine, waiting excluded; the first token belongs to reading.

    round_s: of drafting four tokens on the text's drafting part and judging them on the whole, in mode `exact`; None
    where the model cannot take back what it has read, or the memory does not hold both texts.
    """

    prompt_tokens: int
    new_tokens: int
    prefill_s: float
    decode_s: float
    round_s: float | None = None

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.prompt_tokens / self.prefill_s

    @property
    def decode_tokens_per_s(self) -> float:
        return (self.new_tokens - 1) / self.decode_s

    def speedup(self, acceptance: float) -> float | None:
        """How many times faster answers are written with drafts, if each is kept with this chance when those before it
        were. At least 1, as the engine decodes plainly where drafts do not pay.
        """
        if self.round_s is None:
            return None
        return max(1.0, expected_tokens(acceptance, _DRAFTED) / self.round_s / self.decode_tokens_per_s)


@dataclass(frozen=True, slots=True)
class Speed:
    """Over all measured lengths. overhead_s: what a call with next to no text takes, its one token included."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    overhead_s: float


def measure(
    model: LocalModel, lengths: Sequence[int] = LENGTHS, *, new_tokens: int = 32, budget_s: float = 300.0, seed: int = 0
) -> Iterator[Measured]:
    """One result for each length, in order, as it is there; two tries each, of which the better counts, and one with
    drafts, which reads little again.

    Lengths that the window or the memory cannot hold are left out, and those that would go beyond budget_s in all,
    taking reading to grow with the square of the length.
    """
    if new_tokens < 2:
        raise ConfigError(f"new_tokens is {new_tokens}; it takes at least 2 to time the step from one to the next.")
    rng = random.Random(seed)
    _run(model, _text(model, rng, 16), new_tokens)  # what is done once only: kernels chosen, memory touched
    spent_s, last = 0.0, None
    for length in sorted(set(lengths)):
        if last is not None:
            growth = length / last.prompt_tokens
            if spent_s + 2 * (last.prefill_s * growth**2 + last.decode_s * growth) > budget_s:
                return
        try:
            texts = [_text(model, rng, length) for _ in range(2)]
            tries = [_run(model, text, new_tokens) for text in texts]
        except ContextTooLong:
            return
        decode_s = min(used.decode_s for used in tries)
        drafted = _run_drafted(model, texts[-1])
        round_s = None if drafted is None else _round_s(drafted, decode_s / (new_tokens - 1))
        last = Measured(length, new_tokens, min(used.prefill_s for used in tries), decode_s, round_s)
        spent_s += sum(used.prefill_s + used.decode_s for used in (*tries, drafted) if used is not None)
        yield last


def speed(model: LocalModel, measured: Sequence[Measured], seed: int = 1) -> Speed:
    """The summary that a latency estimate needs. Raises ConfigError where nothing was measured."""
    if not measured:
        raise ConfigError("Not even the shortest length could be measured; see runner.cache_mb, or name a shorter one.")
    rng = random.Random(seed)
    short = [_run(model, _text(model, rng, 1), 1) for _ in range(_SHORT_TRIES)]
    return Speed(
        sum(m.prompt_tokens for m in measured) / sum(m.prefill_s for m in measured),
        sum(m.new_tokens - 1 for m in measured) / sum(m.decode_s for m in measured),
        statistics.median(used.queue_s + used.prefill_s + used.decode_s for used in short),
    )


def drafted_from(length: int) -> int:
    """Tokens that drafts for a text of this length are made from: what strategy `speculative` takes where it drafts at
    all (a 24th of the text, 4,096 at least), an eighth of what is shorter.
    """
    return max(1, min(length // 8, max(4096, length // 24)))


def _text(model: LocalModel, rng: random.Random, length: int) -> tuple[int, ...]:
    known = min(model.engine.model.vocab_size, len(model.tokenizer.vocabulary))  # a second model has no more
    return tuple(rng.choices(range(known), k=length))


def _run(model: LocalModel, text: tuple[int, ...], new_tokens: int, draft: Draft | None = None) -> GenerationUsage:
    room = model.context_window
    if room is not None and len(text) + new_tokens > room:
        raise ContextTooLong(f"{len(text)} tokens and {new_tokens} of an answer do not fit the window of {room}.")
    generation = Generation(text, _GREEDY, new_tokens, stop_ids=_NEVER, draft=draft)
    return model.engine.submit(generation).result().usage


def _run_drafted(model: LocalModel, text: tuple[int, ...]) -> GenerationUsage | None:
    """With drafts of a fixed length, however sure the drafter is. None where that cannot be."""
    if not model.engine.can_speculate:
        return None
    speculation = Speculation(Law("exact"), _DRAFTED, least_confidence=0.0)
    try:
        return _run(model, text, _ROUNDS_TOKENS, Draft(text[: drafted_from(len(text))], speculation))
    except ContextTooLong:
        return None


def _round_s(used: GenerationUsage, step_s: float) -> float | None:
    """Seconds for each four drafted tokens, the first round and plain steps (of step_s each) left out.

    The last rounds may be cut short; counting by drafted tokens takes their time for more than it is, never for less.
    """
    tally = used.speculation
    drafted = 0 if tally is None else tally.drafted - _DRAFTED  # the first round belongs to the first token
    if tally is None or drafted <= 0:
        return None
    return max(used.decode_s - tally.plain_steps * step_s, 0.0) * _DRAFTED / drafted or None
