"""Portions: documents cut and joined into parts that one reader can take in, each within a budget as really counted.

The portions of documents tile them: put one after another they are the documents, whole and in order. Where a text may
be cut is left to the `Split` that is handed in, what a portion takes in a prompt to the `Measure`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from ..core import Document, Passage
from ..errors import ConfigError

Portion = tuple[Passage, ...]

Split = Callable[[Document, int], Sequence[tuple[int, int]]]
"""Where a document may be cut: (start, end) of pieces that tile its text, each of at most so many estimated tokens
unless it is a single grapheme. `retrievers.chunks.split` is one."""

Measure = Callable[[Portion], int]
"""Tokens that a portion takes, with everything that has to be written around it."""

_PIECES = 24  # of a budget; so much finer than a portion are the places where it may begin
_FILL = 0.99  # of the room; counts of pieces do not add up exactly, and too much would mean two halves
_FEWEST_TOKENS = 24  # of a piece, where it can be that long: places between sentences, rather than within


def portions(
    documents: Sequence[Document],
    budget_tokens: int,
    *,
    measure: Measure,
    weigh: Measure,
    split: Split,
    balanced: bool = True,
) -> tuple[Portion, ...]:
    """The documents in as few portions as fit, in order.

    budget_tokens: most that `measure` may say of a portion.
    weigh: the same without what is there once for every portion; of small pieces, so it should be quick.
    balanced: all portions about equally long, so that none is nearly empty; else each is filled before the next begins,
    as in Chain-of-Agents (arXiv 2406.02818, appendix).
    Nothing is taken to add up: what is made of pieces is measured, and made smaller where it does not fit.
    Raises ConfigError where a single grapheme does not fit.
    """
    pieces = [
        _passage(document, start, end)
        for document in documents
        for start, end in split(document, max(_FEWEST_TOKENS, budget_tokens // _PIECES))
    ]
    weights, frame = _weights(pieces, weigh)
    room = max(1, math.floor((budget_tokens - measure(()) - frame) * _FILL))
    grouped = _evenly(weights, room) if balanced else _filled(weights, room)
    return tuple(
        portion
        for first, last in grouped
        for portion in _fitting(pieces[first:last], budget_tokens, measure=measure, split=split)
    )


def _weights(pieces: Sequence[Passage], weigh: Measure) -> tuple[list[int], int]:
    """What each piece adds to those before it; and the largest frame of the first one in a portion."""
    weights: list[int] = []
    frames = [0]
    before: Portion = ()
    for piece in pieces:
        own = (Passage(piece.document_id, piece.start, piece.start, ""),)
        if before and before[0].document_id == piece.document_id:
            weights.append(max(1, weigh((piece,)) - frames[-1]))
        else:
            frames.append(weigh(own))
            weights.append(max(1, weigh((*before, piece)) - weigh(before)))
        before = own
    return weights, max(frames)


def _filled(weights: Sequence[int], room: int) -> list[tuple[int, int]]:
    """Ranges of weights, each as long as fits; one weight may be too much by itself."""
    ranges: list[tuple[int, int]] = []
    first = total = 0
    for place, weight in enumerate(weights):
        if place > first and total + weight > room:
            ranges.append((first, place))
            first, total = place, 0
        total += weight
    return [*ranges, (first, len(weights))] if weights else []


def _evenly(weights: Sequence[int], room: int) -> list[tuple[int, int]]:
    """Ranges of about equal weight, as few as fit; where that takes another one than filling up does, so be it."""
    wanted = len(_filled(weights, room))
    while True:
        ranges = _cut_in(weights, room, wanted)
        if len(ranges) <= wanted:
            return ranges
        wanted += 1


def _cut_in(weights: Sequence[int], room: int, wanted: int) -> list[tuple[int, int]]:
    """So many ranges, each cut where it comes closest to its share of what is left; more where they do not fit."""
    ranges: list[tuple[int, int]] = []
    first, total, left = 0, 0, sum(weights)
    for place, weight in enumerate(weights):
        share = left / max(1, wanted - len(ranges))
        over = total + weight - share > share - total and len(ranges) + 1 < wanted
        if place > first and (over or total + weight > room):
            ranges.append((first, place))
            left -= total
            first, total = place, 0
        total += weight
    return [*ranges, (first, len(weights))] if weights else []


def _fitting(pieces: Sequence[Passage], budget_tokens: int, *, measure: Measure, split: Split) -> Iterator[Portion]:
    """The pieces as one portion; as several where, seen together, they take more than each by itself seemed to."""
    waiting = [list(pieces)]
    while waiting:
        now = waiting.pop()
        portion = _joined(now)
        tokens = measure(portion)
        if tokens <= budget_tokens:
            yield portion
            continue
        if len(now) == 1:
            now = _finer(now[0], tokens, budget_tokens, split)
        middle = len(now) // 2
        waiting += [now[middle:], now[:middle]]


def _finer(piece: Passage, tokens: int, budget_tokens: int, split: Split) -> list[Passage]:
    """A piece cut into at least two."""
    document = Document(piece.text)
    # What the splitter takes for a token need not be one, so shorter and shorter pieces are tried.
    limit = max(1, len(piece.text) // 2)
    while len(spans := split(document, limit)) < 2:
        if limit == 1:
            raise ConfigError(
                f"One character of document {piece.document_id!r} takes {tokens:,} tokens with the prompt around it; "
                f"there is room for {budget_tokens:,}. Use a model with a longer window, or raise agents.window_tokens."
            )
        limit //= 2
    return [
        Passage(piece.document_id, piece.start + start, piece.start + end, piece.text[start:end])
        for start, end in spans
    ]


def _joined(pieces: Sequence[Passage]) -> Portion:
    """Neighbouring pieces of one document as one passage."""
    return tuple(
        Passage(name, run[0].start, run[-1].end, "".join(piece.text for piece in run))
        for name, run in ((name, list(group)) for name, group in groupby(pieces, key=lambda piece: piece.document_id))
    )


def _passage(document: Document, start: int, end: int) -> Passage:
    return Passage(document.id, start, end, document.text[start:end])
