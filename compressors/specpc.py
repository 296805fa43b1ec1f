"""SpecPC: what a small draft model looks at before it would answer is what a large one needs to see.

The attention of the draft's last tokens says what every token is worth. The best are kept with what stands around them.

Source: Galim et al. (2025), "Draft-based Approximate Inference for LLMs", arXiv 2506.08373, and its published code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from .attention import Reader, Split, TokenSelection, block_tokens
from .compression import Compressed, Count, Floats, Ints

_EARLY_LAYERS = 8  # look at most of a text, whatever is asked
_DEEP_ENOUGH = 16  # layers of the shallowest model for which leaving out so many leaves enough


class Draft(Reader, Protocol):
    """A small causal model that tells where it looks."""

    def strongest(self, ids: Sequence[int], row_weights: Sequence[float], first_layer: int = 0) -> Floats:
        """The most that the last len(row_weights) tokens look at each token, weighted, over all heads and the layers
        from first_layer on; shape (len(ids),)."""


class SpecPC:
    """Keeps what the attention of a draft model points to. A `Compressor`; see `attention.py` for what all do alike.

    draft: reads every text once for each question. count: tokens, for budgets. split: see `TokenSelection`.
    queries: last tokens of the prompt whose attention counts, the later the more (from 0 to 1); they are kept always.
    first_layer: from which attention counts; None takes 8, or a third of the layers of a model with less than 16.
    pool: tokens over which the maximum is taken. neighbours: tokens to either side that are kept with one that is.
    The defaults are the paper's, which takes half as many neighbours in its code as in its text; here it is the text.
    Its look-ahead token is left out: it is written, but never looks at anything. Without a question, the end of a text
    says what matters in it, or of each block where the draft cannot read it at once.
    """

    def __init__(
        self,
        draft: Draft,
        *,
        count: Count,
        split: Split | None = None,
        queries: int = 64,
        first_layer: int | None = None,
        pool: int = 64,
        neighbours: int = 64,
    ) -> None:
        self.draft = draft
        self.count = count
        self.split = split
        self.queries = queries
        self.first_layer = default_first_layer(draft.n_layers) if first_layer is None else first_layer
        self.pool = pool
        self.neighbours = neighbours

    def compress(
        self,
        texts: Sequence[str],
        *,
        question: str = "",
        budget_tokens: int | None = None,
        keep_rate: float | None = None,
    ) -> list[Compressed]:
        """See `Compressor.compress`. Raises ContextTooLong where the question leaves the draft no room for text."""
        selection = TokenSelection(self.draft, self._order, count=self.count, split=self.split)
        return selection.compress(texts, question, budget_tokens, keep_rate)

    def _order(self, ids: Sequence[int], asked: Sequence[int]) -> Ints:
        last = self.queries - len(asked)
        return keep_order(self._scores(ids, asked), pool=self.pool, neighbours=self.neighbours, last=last)

    def _scores(self, ids: Sequence[int], asked: Sequence[int]) -> Floats:
        """What each token of a text is worth, shape (len(ids),); a text beyond the draft's window is read in blocks."""
        size = block_tokens(self.draft, len(ids), len(asked))
        scores = np.zeros(len(ids))
        for start in _block_starts(len(ids), size, max(self.queries - len(asked), 0)):
            block = ids[start : start + size]
            rows = min(self.queries, len(block) + len(asked))
            weights = np.linspace(0, 1, rows) if rows > 1 else np.ones(1)
            found = self.draft.strongest([*block, *asked], weights.tolist(), self.first_layer)
            scores[start : start + size] = found[: len(block)]
        return scores


def default_first_layer(n_layers: int) -> int:
    """The first layer whose attention counts: the paper's, or for models too shallow for that, after a third."""
    return _EARLY_LAYERS if n_layers >= _DEEP_ENOUGH else n_layers // 3


def keep_order(scores: Floats, *, pool: int = 64, neighbours: int = 64, last: int = 0) -> Ints:
    """All tokens of a text in the order in which SpecPC keeps them; how many of them, a capacity says.

    scores: shape (n,), >= 0. The last `last` tokens come first. Then by the maximum over `pool` tokens around each
    ("same" padding, of an even number the larger half behind), every one with its `neighbours` to either side, the
    nearest first. Of tokens under one maximum those with higher scores of their own come first, then the earlier.
    Returns the numbers of the tokens, shape (n,).
    """
    n = len(scores)
    if n == 0:
        return np.zeros(0, np.int64)
    before = (pool - 1) // 2
    padded = np.concatenate([np.zeros(before), scores, np.zeros(pool - 1 - before)])
    pooled = np.lib.stride_tricks.sliding_window_view(padded, pool).max(axis=1)
    around = np.arange(-neighbours, neighbours + 1)
    around = around[np.argsort(np.abs(around), kind="stable")]
    tail = max(n - max(last, 0), 0)
    kept = [np.arange(tail, n)]
    taken = np.zeros(n, np.bool_)
    taken[tail:] = True
    missing = tail
    for token in np.lexsort((np.arange(n), -scores, -pooled)).tolist():
        if not missing:
            break
        near = around + token
        near = near[(near >= 0) & (near < n)]
        near = near[~taken[near]]
        taken[near] = True
        missing -= len(near)
        kept.append(near)
    return np.concatenate(kept).astype(np.int64)


def _block_starts(n: int, size: int, overlap: int) -> Iterator[int]:
    """Where blocks of a text begin. The end of a block stands next to the last queries, which look at what is near: so
    blocks overlap, and what a later one says of the end of an earlier one holds."""
    step = max(size - overlap, 1)
    start = 0
    while True:
        yield start
        if start + size >= n:
            return
        start += step
