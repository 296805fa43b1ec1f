"""Words: the stretches of a text that are kept or dropped as one.

The same words whatever model scores them: runs of letters, with what joins them inside (`don't`, `3.2`, `well-known`),
and marks of punctuation on their own. Scripts without spaces have no such runs; there the pieces of a tokenizer serve.
Offsets count characters, `end` exclusive; white space belongs to no word.
"""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np

from .compression import Floats, Ints, Span

# By exclusion, because Python's \w leaves out the vowel signs of Indic scripts and the marks of decomposed accents.
_MARKS = (
    r"!-/:-@\[-`{-~¡-©«-±´¶-¸»-¿×÷\u2010-\u2027\u2030-\u205e\u2190-\u23ff\u2500-\u25ff\u3001-\u3003\u3008-\u3020\u3030"
    r"\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65।॥۔؟،؛։"
)
_UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9d\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_LETTERS = rf"[^\s{_MARKS}{_UNSPACED}\U00020000-\U0003ffff]"
_WORD = re.compile(
    rf"""(?P<unspaced> [{_UNSPACED}\U00020000-\U0003ffff]++ )
       | {_LETTERS}++ (?: ['’.,:/_&@-] {_LETTERS}++ )*+
       | (?P<mark> [^\s] ) (?P=mark)*+""",
    re.VERBOSE,
)


def words(text: str, pieces: Ints | None = None) -> tuple[Ints, Ints]:
    """Starts and ends of the words, shape (n,) each; ascending, not overlapping.

    pieces: ascending offsets where a tokenizer's pieces begin; scripts without spaces are cut there. Without them they
    are cut between all characters.
    """
    found: list[Span] = []
    for match in _WORD.finditer(text):
        if match.lastgroup != "unspaced":
            found.append(match.span())
            continue
        start, end = match.span()
        if pieces is None:
            edges = list(range(start, end + 1))
        else:
            inside = pieces[np.searchsorted(pieces, start, "right") : np.searchsorted(pieces, end, "left")]
            edges = [start, *np.unique(inside).tolist(), end]
        found += pairwise(edges)
    edges_of = np.array(found, np.int64).reshape(len(found), 2)
    return edges_of[:, 0].copy(), edges_of[:, 1].copy()


def touched(starts: Ints, ends: Ints, others_starts: Ints, others_ends: Ints) -> tuple[Ints, Ints]:
    """For each stretch the range [first, last) of the others that it overlaps; all ascending."""
    first = np.searchsorted(others_ends, starts, side="right")
    last = np.searchsorted(others_starts, ends, side="left")
    return first, np.maximum(first, last)


def means(values: Floats, first: Ints, last: Ints) -> Floats:
    """The mean of values[first:last] for each pair, 0 where that is empty; shape (len(first),)."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    found: Floats = (sums[last] - sums[first]) / np.maximum(last - first, 1)
    return found
