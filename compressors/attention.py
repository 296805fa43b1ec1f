"""What compressors by the attention of a small causal model share: how a text is read, and what of it is kept.

The model reads the text with the question behind it. A method says in which order tokens are to be kept
(`specpc.py`, `gemfilter.py`); here they are widened to whole words or sentences, up to a budget: so the model that
answers may be any, with another tokenizer, behind any API. Where the model looks is for others to tell
(`router/runner/attention.py`). Protected stretches have no privilege: a number elsewhere is not what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from ..router.errors import ContextTooLong
from .compression import Compressed, Count, Floats, Ints, Span, Units, keep_best, shares, whole
from .words import touched, words

_LEAST_BLOCK = 128  # tokens of text; with room for less beside the question a model can tell nothing

Split = Callable[[str], Sequence[Span]]
"""Text → stretches to be kept whole (sentences), ascending and apart."""
Order = Callable[[Sequence[int], Sequence[int]], Ints]
"""Ids of a text and of the question behind it → the numbers of all tokens of the text, as they are to be kept."""


class Reader(Protocol):
    """A causal model that reads."""

    @property
    def n_layers(self) -> int: ...

    @property
    def max_tokens(self) -> int:
        """Most ids that it reads at once."""

    def encode(self, text: str) -> tuple[list[int], Ints]:
        """Token ids, and the characters that each stands for: shape (n, 2), neither column descending."""


class TokenSelection:
    """Keeps the stretches of a text whose best token comes first in an order of tokens.

    split: None keeps single words. Where not even the best stretch fits a budget, words do.
    Texts are read one by one, and a total budget is shared by their lengths.
    """

    def __init__(self, reader: Reader, order: Order, *, count: Count, split: Split | None) -> None:
        self._reader = reader
        self._order = order
        self._count = count
        self._split = split

    def compress(
        self, texts: Sequence[str], question: str, budget_tokens: int | None, keep_rate: float | None
    ) -> list[Compressed]:
        """See `Compressor.compress`."""
        before = [self._count(text) if text else 0 for text in texts]
        budgets = shares(before, budget_tokens=budget_tokens, keep_rate=keep_rate)
        return [
            self._shortened(text, question, budget, tokens)
            for text, budget, tokens in zip(texts, budgets, before, strict=True)
        ]

    def _shortened(self, text: str, question: str, budget: int, before: int) -> Compressed:
        if budget >= before:
            return whole(text, before)
        ids, offsets = self._reader.encode(text) if budget else ([], np.zeros((0, 2), np.int64))
        if not ids:
            return Compressed("", (), (), before, 0)
        order = self._order(ids, asked(self._reader, question))
        places = np.empty(len(ids))
        places[order] = np.arange(len(ids))
        spans = list(self._split(text)) if self._split else []
        result = self._kept(text, spans, offsets, places, budget, before)
        if not result.text:
            starts, ends = words(text, offsets[:, 0])
            spans = list(zip(starts.tolist(), ends.tolist(), strict=True))
            result = self._kept(text, spans, offsets, places, budget, before)
        return result

    def _kept(
        self, text: str, spans: Sequence[Span], offsets: Ints, places: Floats, budget: int, before: int
    ) -> Compressed:
        """The spans whose best token comes first in the order of keeping, as many as fit."""
        if not spans:
            return Compressed("", (), (), before, 0)
        edges = np.array(spans, np.int64)
        first, last = touched(edges[:, 0], edges[:, 1], offsets[:, 0], offsets[:, 1])
        worst = np.append(places, len(places))  # stands for spans of which no token is known, and ends the last range
        pairs = np.column_stack([first, np.maximum(last, first + 1)]).ravel()
        earliest = np.minimum.reduceat(worst, np.minimum(pairs, len(places)))[::2]
        earliest = np.where(last > first, earliest, len(places))
        units = Units.of(spans, -earliest)
        return keep_best(text, units, budget_tokens=budget, tokens_before=before, count=self._count)


def asked(reader: Reader, question: str) -> list[int]:
    """What stands behind a text that is read for a question; nothing where there is none."""
    return reader.encode(f"\n\nQuestion: {question.strip()}\n\nAnswer:")[0] if question.strip() else []


def block_tokens(reader: Reader, n_text: int, n_asked: int) -> int:
    """How many of the n_text tokens of a text are read at once, with a question of n_asked tokens behind them.

    Raises ContextTooLong where the question leaves no room for text.
    """
    size = reader.max_tokens - n_asked
    if size < min(_LEAST_BLOCK, n_text):
        raise ContextTooLong(
            f"The question has {n_asked} tokens; the model that selects reads {reader.max_tokens} at once. Ask a "
            "shorter question, or use a model with a longer window."
        )
    return min(size, n_text)
