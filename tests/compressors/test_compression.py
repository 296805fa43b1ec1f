"""The contract of compressors, on the part they share: choosing and writing under a budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longroute.compressors.compression import Units, keep_best, render, shares, whole
from longroute.compressors.words import words
from longroute.router.errors import ConfigError
from longroute.router.tokens import estimate_tokens

TEXTS = st.one_of(
    st.text(max_size=200),
    st.text(alphabet="ab .,\n\t-…。不的😀\u0301\u200d\ud800", max_size=200),
    st.lists(st.sampled_from(["not", "budget", "3.2", "million", "Ada", ",", ".", "\n\n", "委员会"]), max_size=80).map(
        " ".join
    ),
)


def n_words(text: str) -> int:
    return len(text.split())


def units_of(text: str, seed: int = 0, groups: bool = False) -> Units:
    starts, ends = words(text)
    rng = np.random.default_rng(seed)
    ranks = rng.integers(0, 3, len(starts)) * (rng.random(len(starts)) < 0.2)
    labels = np.full(len(starts), -1)
    if groups:
        for number in range(len(starts) // 10):
            labels[number * 10 : number * 10 + int(rng.integers(2, 8))] = number
    spans = list(zip(starts.tolist(), ends.tolist(), strict=True))
    return Units.of(spans, rng.random(len(starts)), ranks, labels)


@given(TEXTS, st.floats(0, 1), st.integers(0, 5), st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_contract_holds_for_any_text(text: str, rate: float, seed: int, groups: bool) -> None:
    for count in (n_words, len, estimate_tokens):
        before = count(text)
        budget = int(rate * before)
        found = keep_best(text, units_of(text, seed, groups), budget_tokens=budget, tokens_before=before, count=count)
        assert found.tokens_after == count(found.text) <= budget
        assert len(found.text) <= len(text)
        assert list(found.kept) == sorted(found.kept)
        for (start, end), place in zip(found.kept, found.placed, strict=True):
            assert found.text[place : place + end - start] == text[start:end]
            assert found.source_offset(place) == start and found.source_offset(place + end - start - 1) == end - 1
        rest = [character for character in found.text if not character.isspace()]
        source = iter(text)
        assert all(character in source for character in rest)  # the same letters in the same order


@given(st.lists(st.sampled_from("abcdefgh"), max_size=60), st.integers(0, 60), st.integers(0, 60), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_larger_budget_keeps_what_a_smaller_one_kept(letters: list[str], small: int, large: int, seed: int) -> None:
    text = " ".join(letters)
    small, large = sorted((small, large))
    kept = []
    for budget in (small, large):
        found = keep_best(text, units_of(text, seed), budget_tokens=budget, tokens_before=n_words(text), count=n_words)
        kept.append({place for start, end in found.kept for place in range(start, end) if not text[place].isspace()})
    assert kept[0] <= kept[1]


def test_the_whole_budget_is_used() -> None:
    text = "The council did not approve the budget, and nobody knows why it was late. " * 200
    for rate in (0.1, 0.33, 0.5, 0.9):
        before = estimate_tokens(text)
        found = keep_best(
            text, units_of(text), budget_tokens=int(rate * before), tokens_before=before, count=estimate_tokens
        )
        assert rate - 0.02 <= found.keep_rate <= rate


def test_higher_ranks_are_kept_first() -> None:
    units = Units.of([(0, 1), (2, 3), (4, 5)], [0.9, 0.1, 0.8], ranks=[0, 1, 0])
    found = keep_best("a b c", units, budget_tokens=2, tokens_before=3, count=n_words)
    assert found.text == "a b"


def test_a_group_is_kept_whole_or_named_as_broken() -> None:
    text = "a b c d e f"
    units = Units.of([(i, i + 1) for i in range(0, 11, 2)], [0.1, 0.2, 0.9, 0.9, 0.3, 0.4], [0, 1, 1, 1, 0, 0],
                     [-1, 0, 0, 0, -1, -1])  # fmt: skip
    kept = keep_best(text, units, budget_tokens=4, tokens_before=6, count=n_words)
    assert kept.text == "b c d f" and kept.broken == ()
    broken = keep_best(text, units, budget_tokens=2, tokens_before=6, count=n_words)
    assert broken.text == "c d" and broken.broken == ((2, 7),)


def test_equal_echoes_in_a_row_are_written_once() -> None:
    text = ". x . y ."
    units = Units.of([(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)], [0.9, 0.1, 0.9, 0.8, 0.9], echoes=[0, -1, 0, -1, 0])
    found = keep_best(text, units, budget_tokens=4, tokens_before=5, count=lambda t: len(t.replace(" ", "")))
    assert found.text == ". y ."


def test_what_is_left_out_leaves_a_blank_where_words_would_grow_together() -> None:
    assert render("one two three", [(0, 3), (8, 13)])[0] == "one three"
    assert render("well-known", [(0, 4), (5, 10)])[0] == "well known"
    assert render("委员会", [(0, 1), (2, 3)])[0] == "委会"
    assert render("end of it. Next", [(0, 3), (9, 10), (11, 15)])[0] == "end. Next"
    assert render("one. Left out.\n\nTwo", [(0, 4), (16, 19)])[0] == "one.\nTwo"
    assert render("a  b", [(0, 1), (3, 4)]) == ("a  b", ((0, 4),), (0,))


def test_a_blank_of_ours_belongs_to_the_stretch_before_it() -> None:
    units = Units.of([(0, 3), (4, 7), (8, 13)], [0.9, 0.1, 0.8])
    found = keep_best("one two three", units, budget_tokens=2, tokens_before=3, count=n_words)
    assert found.text == "one three" and [found.source_offset(place) for place in (2, 3, 4)] == [2, 3, 8]
    with pytest.raises(IndexError):
        found.source_offset(9)


def test_shares() -> None:
    assert shares([10, 20], keep_rate=0.5) == [5, 10]
    assert shares([10, 20, 30], budget_tokens=30) == [5, 10, 15]
    assert sum(shares([7, 11, 13], budget_tokens=20)) == 20
    assert shares([3, 4], budget_tokens=100) == [3, 4]
    assert shares([], budget_tokens=5) == shares([], keep_rate=0.1) == []
    assert shares([0, 0], budget_tokens=0) == [0, 0]


@pytest.mark.parametrize("limits", [{}, {"budget_tokens": 1, "keep_rate": 0.5}, {"keep_rate": 1.1}, {"keep_rate": -0.1},
                                    {"budget_tokens": -1}])  # fmt: skip
def test_limits_that_make_no_sense_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        shares([1], **limits)  # type: ignore[arg-type]


def test_whole_keeps_everything() -> None:
    assert whole("a b", 2).kept == ((0, 3),) and whole("a b", 2).keep_rate == 1
    assert whole("", 0).kept == () and whole("", 0).keep_rate == 1
