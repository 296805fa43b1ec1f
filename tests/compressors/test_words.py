"""What counts as a word."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from longroute.compressors.words import means, touched, words


def listed(text: str, pieces: list[int] | None = None) -> list[str]:
    starts, ends = words(text, None if pieces is None else np.array(pieces, np.int64))
    return [text[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def test_words_hold_together_what_belongs_together() -> None:
    assert listed("Don't pay 3.2% to well-known U.S. firms.") == [
        *("Don't", "pay", "3.2", "%", "to", "well-known", "U.S", ".", "firms", "."),
    ]
    assert listed("wait... what?!") == ["wait", "...", "what", "?", "!"]


def test_vowel_signs_and_accents_do_not_cut_words() -> None:
    assert listed("परिषद ने e\u0301te\u0301 नहीं।") == ["परिषद", "ने", "e\u0301te\u0301", "नहीं", "।"]


def test_scripts_without_spaces_are_cut_at_pieces() -> None:
    assert listed("他说GPT不行。") == ["他", "说", "GPT", "不", "行", "。"]
    assert listed("他说GPT不行。", [0, 2, 5]) == ["他说", "GPT", "不行", "。"]


@given(st.text(max_size=100))
def test_words_tile_everything_but_white_space(text: str) -> None:
    starts, ends = words(text)
    assert (starts < ends).all() and (ends[:-1] <= starts[1:]).all()
    covered = {place for a, b in zip(starts.tolist(), ends.tolist(), strict=True) for place in range(a, b)}
    assert all(text[place].isspace() == (place not in covered) for place in range(len(text)))


def test_means_of_what_a_word_touches() -> None:
    first, last = touched(np.array([0, 4, 9]), np.array([3, 8, 10]), np.array([0, 2, 5]), np.array([2, 5, 8]))
    assert (first.tolist(), last.tolist()) == ([0, 1, 3], [2, 3, 3])
    assert means(np.array([0.2, 0.4, 0.9]), first, last).round(3).tolist() == [0.3, 0.65, 0.0]
