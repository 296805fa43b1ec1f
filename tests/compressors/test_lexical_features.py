from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.compressors.lexical_features import NAMES, SUFFIXES, Vocabulary, describe, form_of, split_words, stems_of

VOCABULARY = Vocabulary({"the": 0, "cat": 1}, np.array([0.05, 4.0], np.float32), np.array([0.06, 0.001], np.float32))


def column(text: str, name: str) -> list[float]:
    found: list[float] = describe(text, split_words(text), VOCABULARY).numbers[:, NAMES.index(name)].tolist()
    return found


@given(st.text())
def test_words_hold_everything_but_white_space(text: str) -> None:
    words = split_words(text).tolist()
    assert "".join(text[a:b] for a, b in words) == "".join(text.split())
    assert all(a < b for a, b in words)
    assert all(b <= c for (_, b), (c, _) in pairwise(words))


@given(st.text())
def test_every_text_can_be_described(text: str) -> None:
    words = split_words(text)
    described = describe(text, words, VOCABULARY)
    assert described.numbers.shape == (len(words), len(NAMES))
    assert np.isfinite(described.numbers).all() and np.isfinite(described.surprise).all()
    assert ((described.rows >= 0) & (described.rows < 2 + SUFFIXES)).all()
    assert (np.diff(described.sentences) >= 0).all()


def test_writing_without_spaces_is_cut_at_signs() -> None:
    text = "今天天气很好，我们去公园。GPT-4模型"
    assert [text[a:b] for a, b in split_words(text).tolist()] == ["今天天气很好，", "我们去公园。", "GPT-4", "模型"]


def test_marks_stay_with_their_letter() -> None:
    text = "ก" * 8 + "\u0e49" + "ข"
    assert split_words(text).tolist() == [[0, 9], [9, 10]]


def test_rare_words_surprise_more_than_common_ones() -> None:
    described = describe("The cat saw quarks .", split_words("The cat saw quarks ."), VOCABULARY)
    the, cat, _, quarks, sign = described.surprise.tolist()
    assert the < cat < quarks and sign == 0


def test_words_of_an_unknown_language_are_common_where_the_text_repeats_them() -> None:
    text = " ".join(f"oraz slowo{i}" for i in range(2000))
    described = describe(text, split_words(text), VOCABULARY)
    assert described.surprise[0] < described.surprise[1] - 3


def test_sentences_end_at_signs_and_blank_lines_but_not_before_small_letters() -> None:
    text = "It is e.g. small. Next one\n\nheading\nnext"
    assert describe(text, split_words(text), VOCABULARY).sentences.tolist() == [0, 0, 0, 0, 1, 1, 2, 2]


def test_brackets_do_not_reach_beyond_their_sentence() -> None:
    assert column("A ( b c. Then d", "bracketed") == [0, 1, 1, 1, 0, 0]


def test_a_repeated_word_is_not_first() -> None:
    assert column("the cat the", "first") == [1, 1, 0]


@pytest.mark.parametrize(("word", "form"), [("(Hello),", "hello"), ("--", ""), ("U.S.", "u.s"), ("_x_", "x")])
def test_forms_lose_signs_and_case(word: str, form: str) -> None:
    assert form_of(word) == form


def test_inflected_forms_meet() -> None:
    assert set(stems_of("compressed")) == set(stems_of("compression"))
    assert set(stems_of("天气很好")) == {"天气", "气很", "很好"}
