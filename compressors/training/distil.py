"""Making training data: a chat model compresses texts, and what it did badly is thrown away.

Any backend will do; texts are cut into pieces at the ends of sentences, because models compress long texts far more
than short ones and lose their beginning. Source: LLMLingua-2 (arXiv 2403.12968), sections 3.1 and 3.3 and appendix A.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ...router.core import Backend, Call, Message
from ...router.tokens import estimate_tokens
from .annotate import Annotation, annotate

PIECE_TOKENS = 512
_SENTENCE_END = re.compile(r"[.!?]\s+|[。！？\n]\s*")

SYSTEM = "You are an excellent linguist and very good at compressing passages into short expressions by removing words."
INSTRUCTION = """\
Compress the text below by only removing words that carry little, so that you could restore its whole meaning later.

Rules:
1. Only remove words; change none.
2. Keep the words in their order.
3. Do not abbreviate, and add no new words, symbols or emoji.
4. Keep negations, conditions, comparisons, names, and numbers with their units.
5. Remove as much as you can while every piece of information stays recoverable.

Answer with the compressed text and nothing else.

Text:
"""


@dataclass(frozen=True, slots=True)
class Example:
    """A piece of text and what a model made of it. source: where the text comes from, for the record."""

    text: str
    compressed: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Annotated:
    example: Example
    annotation: Annotation


def pieces(text: str, piece_tokens: int = PIECE_TOKENS) -> list[str]:
    """A text cut at the ends of sentences and lines into pieces of at most piece_tokens (estimated), losing nothing.

    A sentence longer than a piece is a piece of its own.
    """
    found: list[str] = []
    current, size = "", 0
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    for a, b in pairwise(sorted({0, *ends, len(text)})):
        sentence = text[a:b]
        tokens = estimate_tokens(sentence)
        if current and size + tokens > piece_tokens:
            found.append(current)
            current, size = "", 0
        current, size = current + sentence, size + tokens
    return [*found, current] if current else found


async def distil(
    texts: Sequence[str], backend: Backend, model: str, *, source: str = "", parallel: int = 8
) -> list[Example]:
    """Have a model compress texts: one example per piece, in order.

    parallel: calls at a time. Raises BackendError where a call fails; wrap the backend to have it tried again.
    """
    gate = asyncio.Semaphore(parallel)

    async def one(piece: str) -> Example:
        call = Call(
            (Message("system", SYSTEM), Message("user", INSTRUCTION + piece)),
            model,
            # A compression is no longer than its text; some room is left for what the estimate is off by.
            max_output_tokens=estimate_tokens(piece) * 5 // 4 + 16,
            temperature=0.3,
            purpose="compress",
        )
        async with gate:
            reply = await backend.generate(call)
        return Example(piece, reply.text.strip(), source)

    return list(await asyncio.gather(*(one(piece) for text in texts for piece in pieces(text))))


def quality_controlled(
    examples: Sequence[Example], worst_variation: float = 0.05, worst_gap: float = 0.10
) -> list[Annotated]:
    """Annotate examples, and leave out those that are likely to be wrong.

    worst_variation: share to drop for words that the model made up; worst_gap: then, of the rest, the share to drop for
    words that were not found where they should be. The values are the paper's. Examples of which nothing was kept, or
    everything, teach nothing and go first; ties at the border stay.
    """
    made = [Annotated(example, annotate(example.text, example.compressed)) for example in examples]
    made = [pair for pair in made if 0 < pair.annotation.matching < 1]
    made = _without_worst(made, [pair.annotation.variation for pair in made], worst_variation)
    return _without_worst(made, [pair.annotation.alignment_gap for pair in made], worst_gap)


def _without_worst(made: list[Annotated], badness: list[float], share: float) -> list[Annotated]:
    if not made:
        return made
    border = float(np.quantile(badness, 1 - share))
    return [pair for pair, bad in zip(made, badness, strict=True) if bad <= border]
