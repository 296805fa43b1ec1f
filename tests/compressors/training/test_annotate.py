from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.compressors.training.annotate import annotate, key_of

TEXT = "The cat sat on the mat , and then the dog came in and sat down too ."


def kept(compressed: str, text: str = TEXT, window: int = 150) -> list[str]:
    found = annotate(text, compressed, window)
    return [text[a:b] for (a, b), keep in zip(found.words.tolist(), found.keep, strict=True) if keep]


def test_words_are_found_in_order() -> None:
    assert kept("cat sat mat dog sat down") == ["cat", "sat", "mat", "dog", "sat", "down"]
    found = annotate(TEXT, "cat sat mat dog sat down")
    assert np.flatnonzero(found.keep).tolist() == [1, 2, 5, 10, 14, 15]


def test_inflection_case_and_signs_do_not_matter() -> None:
    assert kept("Cats sitting; DOGS.") == ["cat", "dog"]  # sitting and sat are another matter


def test_a_word_that_was_moved_is_found_behind() -> None:
    assert kept("dog came , cat sat") == ["cat", "sat", "dog", "came"]


def test_nothing_is_found_beyond_the_window() -> None:
    assert kept("first last", "first " + "word " * 30 + "last", window=10) == ["first"]


def test_each_word_is_labelled_once() -> None:
    assert kept("dog dog dog") == ["dog"]


def test_measures_of_a_faithful_compression() -> None:
    found = annotate("one two three four .", "two four")
    assert (found.variation, found.hitting, found.matching) == (0, 0.5, 0.5)
    assert found.alignment_gap == 0
    assert found.signs.tolist() == [False, False, False, False, True]


def test_measures_of_an_unfaithful_one() -> None:
    found = annotate("one two three four", "zwei one one one")
    assert found.variation == 0.25 and found.hitting == 0.75 and found.matching == 0.25


@pytest.mark.parametrize(("one", "other"), [("compresses", "compressed"), ("City", "cities"), ("the", "the,")])
def test_forms_of_a_word_have_one_key(one: str, other: str) -> None:
    assert key_of(one) == key_of(other)


@given(st.text(), st.text())
def test_any_pair_can_be_annotated(text: str, compressed: str) -> None:
    found = annotate(text, compressed)
    assert found.keep.shape == found.signs.shape == (len(found.words),)
    assert not (found.keep & found.signs).any()
    assert 0 <= found.variation <= 1 and 0 <= found.matching <= 1


@given(st.lists(st.sampled_from(["red", "green", "blue", "black"]), min_size=1, max_size=60).map(" ".join))
def test_a_text_that_compresses_to_itself_is_kept_whole(text: str) -> None:
    assert annotate(text, text).keep.all()
