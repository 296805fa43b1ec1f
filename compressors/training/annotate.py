"""From a text and its compression by a language model to a label per word: keep or drop.

A model told to remove words still moves, changes and adds some, so the words of the compression are looked for near the
place where the last one was found. How well that went says how far the pair can be trusted.
Source: LLMLingua-2 (arXiv 2403.12968), section 3.2, algorithm 1.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ..compression import Bools, Ints
from ..lexical_features import form_of, split_words

WINDOW = 150
"""Words to either side in which a word is looked for."""
_ENDINGS = ("'s", "’s", "ing", "ies", "ed", "es", "ly", "s", "d")


@dataclass(frozen=True, slots=True)
class Annotation:
    """Labels of one text, and how its compression relates to it. Shares are in [0, 1].

    words: int64 (n, 2), as `split_words` found them; keep: bool (n,); signs: bool (n,), nothing but signs: no label.
    variation: share of the words of the compression that the text does not have.
    hitting: words of the compression that the text has / words of the text; above 1 where it repeats itself.
    matching: share of the words of the text that are labelled keep.
    """

    words: Ints
    keep: Bools
    signs: Bools
    variation: float
    hitting: float
    matching: float

    @property
    def alignment_gap(self) -> float:
        """Hitting minus matching: near 0 where every word of the compression was found in its place."""
        return self.hitting - self.matching


def annotate(text: str, compressed: str, window: int = WINDOW) -> Annotation:
    """Find the words of a compression in its text, in order as far as may be.

    Words are equal without case, signs and the commonest endings. The search begins at the place of the last find, not
    one behind it as in the paper's code: else the first word of a text could be found only by a repetition. As there, a
    find carries the place forward by half the window at most, so that one wrong find far ahead does not lose the rest.
    """
    words = split_words(text)
    keys = [key_of(text[a:b]) for a, b in words.tolist()]
    wanted = [key for a, b in split_words(compressed).tolist() if (key := key_of(compressed[a:b]))]
    keep = np.zeros(len(keys), np.bool_)
    place = 0
    for key in wanted:
        found = _nearest(keys, keep, key, place, window)
        if found is not None:
            keep[found] = True
            place = min(found, place + window // 2)
    signs = np.array([not key for key in keys], np.bool_)
    have = Counter(keys)
    hits = sum(have[key] > 0 for key in wanted)
    n = max(int((~signs).sum()), 1)
    return Annotation(words, keep, signs, 1 - hits / max(len(wanted), 1), hits / n, float(keep.sum()) / n)


def key_of(word: str) -> str:
    """What a word and its inflected forms have in common, roughly; empty for signs."""
    form = form_of(word)
    for ending in _ENDINGS:
        if form.endswith(ending) and len(form) - len(ending) >= 3:
            return form[: -len(ending)].rstrip("eiy")
    return form.rstrip("eiy") if len(form) > 3 else form


def _nearest(keys: list[str], taken: Bools, key: str, place: int, window: int) -> int | None:
    for offset in range(window + 1):
        for at in (place + offset, place - offset):
            if 0 <= at < len(keys) and keys[at] == key and not taken[at]:
                return at
    return None
