"""GemFilter: the early layers of a model already know which tokens an answer needs, so only they read the whole text.

The last token looks back, in one layer about half way through; what it looks at most is kept. The layers behind that
one never run. The paper lets the same model answer from the tokens that are kept; here they are text, so any model may.

Source: Shi et al. (2024), "Discovering the Gems in Early Layers", arXiv 2409.17422, and its published code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..router.errors import CalibrationError
from .attention import Reader, Split, TokenSelection, asked, block_tokens
from .compression import Compressed, Count, Floats, Ints, Span
from .words import means, touched


class EarlyLayers(Reader, Protocol):
    """A causal model that need not be run to its end."""

    @property
    def layers(self) -> Sequence[int]:
        """Those that see all of a text, ascending."""

    def layer_within(self, depth: float) -> int:
        """The last of `layers` within a share of all that the model has, or where none is within it, the first."""

    def last_query(self, ids: Sequence[int], layers: Sequence[int], *, products: bool = False) -> Floats:
        """Attention of the last token, or inner products of its query and the keys, summed over the heads of each
        layer; shape (len(layers), len(ids))."""


class GemFilter:
    """Keeps the tokens that an early layer would look up. A `Compressor`; see `attention.py` for what all do alike.

    reader: reads every text once for each question, as far as the layer that counts.
    count: tokens, for budgets. split: see `TokenSelection`; the paper keeps single tokens, to which None comes closest.
    depth: that layer, as a share of all. The paper's are the 14th of 32 (Llama 3.1 8B), the 20th of 40 (Mistral Nemo)
    and the 20th of 32 (Phi 3.5 mini): 0.44, 0.5 and 0.62; the default is among them and where SmolLM2-135M, the model
    that was at hand, looks for answers. `best_depth` finds that of another.
    products: score by inner products of query and keys as published, in place of the attention that comes of them. With
    SmolLM2 they rank answers lower in every layer from the 13th to the 24th, though few pages are lost by it.
    pool: tokens around each over which the mean is taken; the paper's.
    A text that the model cannot read at once is read in blocks of one length, each before the question. Without a
    question the last token of each says what matters in it.
    """

    def __init__(
        self,
        reader: EarlyLayers,
        *,
        count: Count,
        split: Split | None = None,
        depth: float = 0.6,
        products: bool = False,
        pool: int = 5,
    ) -> None:
        self.reader = reader
        self.count = count
        self.split = split
        self.depth = depth
        self.products = products
        self.pool = pool

    def compress(
        self,
        texts: Sequence[str],
        *,
        question: str = "",
        budget_tokens: int | None = None,
        keep_rate: float | None = None,
    ) -> list[Compressed]:
        """See `Compressor.compress`. Raises ContextTooLong where the question leaves the model no room for text."""
        selection = TokenSelection(self.reader, self._order, count=self.count, split=self.split)
        return selection.compress(texts, question, budget_tokens, keep_rate)

    def _order(self, ids: Sequence[int], asked: Sequence[int]) -> Ints:
        blocks = -(-len(ids) // block_tokens(self.reader, len(ids), len(asked)))
        size = -(-len(ids) // blocks)
        layer = self.reader.layer_within(self.depth)
        read = [
            self.reader.last_query([*block, *asked], [layer], products=self.products)[0, : len(block)]
            for block in (ids[start : start + size] for start in range(0, len(ids), size))
        ]
        return np.argsort(-pooled(np.concatenate(read), self.pool), kind="stable")


def pooled(scores: Floats, pool: int = 5) -> Floats:
    """The mean over `pool` tokens around each, of an even number the larger half before; shape (n,) in and out.

    At the ends the mean of those that are there: the paper's zeros would count against them, or for most products.
    """
    places = np.arange(len(scores))
    first, last = np.maximum(places - pool // 2, 0), np.minimum(places + (pool - 1) // 2 + 1, len(scores))
    return means(scores, first, last)


@dataclass(frozen=True, slots=True)
class AnsweredText:
    """answer: where in the text the answer to the question stands; characters, end exclusive."""

    text: str
    question: str
    answer: Span


def best_depth(
    reader: EarlyLayers, examples: Sequence[AnsweredText], *, products: bool = False, pool: int = 5
) -> float:
    """The depth for `GemFilter` at which answers stand out the most from their texts.

    Of each text the best token of the answer is ranked among all tokens, in every layer; the layer with the lowest
    median rank is taken, of equal ones the first. Every layer is read once for each text, which must fit the model.
    Raises CalibrationError where there is no example, or an answer has no token.
    """
    if not examples:
        raise CalibrationError("A depth is chosen by examples, and there is none. A dozen of your own will do.")
    ranks = np.array([_ranks(reader, example, products, pool) for example in examples])
    return (reader.layers[int(np.median(ranks, axis=0).argmin())] + 1) / reader.n_layers


def _ranks(reader: EarlyLayers, example: AnsweredText, products: bool, pool: int) -> list[int]:
    """Of the best token of the answer among all of the text, layer by layer; 0 is first."""
    ids, offsets = reader.encode(example.text)
    start, end = (np.array([edge]) for edge in example.answer)
    (first,), (last,) = touched(start, end, offsets[:, 0], offsets[:, 1])
    if first == last:
        raise CalibrationError(
            f"The answer to {example.question!r} is said to stand at {example.answer} of a text of "
            f"{len(example.text)} characters, where no token is. Give the characters that it takes up."
        )
    found = reader.last_query([*ids, *asked(reader, example.question)], reader.layers, products=products)
    smooth = [pooled(row[: len(ids)], pool) for row in found]
    return [int((row > row[first:last].max()).sum()) for row in smooth]
