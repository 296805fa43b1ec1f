"""In which order words are kept: by their scores, with what carries the meaning put forward.

Forced, before everything: words that turn a meaning round (negations, comparatives, conditions); they are few. Numbers,
names, identifiers, code, tables and quotations are many (a fifth of the tokens of encyclopedic text are numbers alone):
forcing them all fills a text cut to a third with figures that nobody can place, and of the queries that find their
passage in the whole text a fifth more is lost. They come forward instead, the further the more is kept: at half the
length most survive, of a severe shortening the best, among words that say what they are about.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from .compression import Bools, Compressed, Floats, Ints, Span, Units
from .protect import Kind, Protected, mark

FORCED: frozenset[Kind] = frozenset({"negation", "comparative", "condition"})
_LAYOUT: frozenset[Kind] = frozenset({"code", "table"})


def in_order(words: Ints, scores: Floats, protected: Sequence[Protected], emphasis: float) -> Units:
    """Units whose order of being kept is the same for every budget, so that a larger one keeps what a smaller one did.

    words: int64 (n, 2); scores: float64 (n,), higher is better; protected: of the same text.
    emphasis: above 0. Where a share k of the text would be kept by score, protected words that are not forced come
    forward until they make up emphasis * k**2 of the text, in characters. 1e6 forces them all, 1e-6 none.
    """
    starts, ends = words[:, 0].copy(), words[:, 1].copy()
    in_layout = mark(starts, ends, _of(protected, _LAYOUT))[0] > 0
    forced, forced_groups = mark(starts, ends, _of(protected, FORCED))
    # `if` and `not` in code that is left out say nothing.
    forced[in_layout], forced_groups[in_layout] = 0, -1
    soft, groups = mark(starts, ends, [span for span in protected if span.kind not in FORCED])
    soft[forced > 0], groups[forced > 0] = 0, -1
    groups = np.where(forced_groups >= 0, forced_groups + groups.max(initial=-1) + 1, groups)
    return Units(
        starts,
        ends,
        -_keys(scores, ends - starts + 1, soft > 0, groups, emphasis),
        forced,
        groups,
        np.full_like(groups, -1),
    )


def _of(spans: Sequence[Protected], kinds: Collection[Kind]) -> list[Protected]:
    return [span for span in spans if span.kind in kinds]


def _keys(scores: Floats, sizes: Ints, soft: Bools, groups: Ints, emphasis: float) -> Floats:
    """When each unit is kept: after how many characters. The members of a group get one key."""
    items = np.unique(
        np.where(groups >= 0, groups, groups.max(initial=-1) + 1 + np.arange(len(groups))), return_inverse=True
    )[1]
    n_items = int(items.max(initial=-1)) + 1
    size = np.bincount(items, sizes, n_items)
    score = np.bincount(items, scores, n_items) / np.maximum(np.bincount(items, minlength=n_items), 1)
    forward = np.zeros(n_items, np.bool_)
    forward[items[soft]] = True
    order = np.argsort(-score, kind="stable")
    keys = np.empty(n_items)
    keys[order] = np.cumsum(size[order])
    first = order[forward[order]]
    keys[first] = np.minimum(keys[first], np.sqrt(np.cumsum(size[first]) * sizes.sum() / emphasis))
    result: Floats = keys[items]
    return result


def missing(protected: Sequence[Protected], compressed: Compressed) -> tuple[Span, ...]:
    """The protected stretches that a result does not hold whole."""
    kept = np.array(compressed.kept, np.int64).reshape(-1, 2)
    spans = np.array([(span.start, span.end) for span in protected], np.int64).reshape(-1, 2)
    if not len(kept):
        return tuple(dict.fromkeys((span.start, span.end) for span in protected))
    around = np.searchsorted(kept[:, 0], spans[:, 0], side="right") - 1
    lost = (around < 0) | (kept[np.maximum(around, 0), 1] < spans[:, 1])
    return tuple(dict.fromkeys((start, end) for start, end in spans[lost].tolist()))
