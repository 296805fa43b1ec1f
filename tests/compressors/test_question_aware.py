"""Question-aware compression: the budget goes where the answers are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longroute.compressors.compression import Compressed, Span, Units, keep_best, shares
from longroute.compressors.question_aware import Order, QuestionAware, falling_rates, paragraphs
from longroute.router.errors import ConfigError

WORDS = re.compile(r"\w+|[^\w\s]")


def count(text: str) -> int:
    return len(WORDS.findall(text))


class LongWords:
    """A fake inner compressor: longer words first. Remembers its budgets."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], int | None]] = []

    def compress(
        self,
        texts: Sequence[str],
        *,
        question: str = "",
        budget_tokens: int | None = None,
        keep_rate: float | None = None,
    ) -> list[Compressed]:
        self.calls.append((list(texts), budget_tokens))
        results = []
        tokens = [count(text) for text in texts]
        for text, before, limit in zip(texts, tokens, shares(tokens, budget_tokens=budget_tokens), strict=True):
            spans = [match.span() for match in WORDS.finditer(text)]
            units = Units.of(spans, [float(b - a) for a, b in spans])
            results.append(keep_best(text, units, budget_tokens=limit, tokens_before=before, count=count))
        return results


def by_number(question: str, passages: Sequence[str]) -> npt.NDArray[np.float64]:
    """A fake scorer: the number in a passage."""
    return np.array([float(found[0]) if (found := re.findall(r"\d+", passage)) else 0.0 for passage in passages])


def passage(number: int, words: int = 20) -> str:
    return " ".join([f"p{number}", str(number), *(f"word{n}x{'y' * (n % 7)}" for n in range(words - 2))])


def text_of(*numbers: int) -> str:
    return "\n\n".join(map(passage, numbers))


def blank_lines(text: str) -> list[Span]:
    return [match.span() for match in re.finditer(r"(?:.+\n?)+", text)]


def assert_true_offsets(text: str, result: Compressed) -> None:
    end = 0
    for (a, b), placed in zip(result.kept, result.placed, strict=True):
        assert end <= a < b <= len(text)
        assert result.text[placed : placed + b - a] == text[a:b]
        end = b
    assert result.tokens_after == count(result.text) and result.tokens_before == count(text)
    assert len(result.text) <= len(text)


# ---- what is kept ----------------------------------------------------------------------------------------------------


def test_without_an_inner_compressor_the_best_passages_are_kept_whole_in_their_order() -> None:
    text = text_of(3, 9, 1, 8)
    [result] = QuestionAware(by_number, count=count, split=blank_lines).compress([text], question="?", budget_tokens=45)
    assert result.text.split("\n") == [passage(9), passage(8)]
    assert_true_offsets(text, result)


def test_a_passage_that_does_not_fit_makes_room_for_the_next() -> None:
    text = "\n\n".join([passage(9, 40), passage(5, 10), passage(7, 20)])
    [result] = QuestionAware(by_number, count=count, split=blank_lines).compress([text], question="?", budget_tokens=30)
    assert "p7" in result.text and "p5" in result.text and "p9" not in result.text


def test_a_passage_that_is_larger_than_the_budget_is_shortened() -> None:
    texts = [passage(9, 60), passage(1, 60)]
    results = QuestionAware(by_number, LongWords(), count=count).compress(texts, question="?", budget_tokens=20)
    assert 15 <= results[0].tokens_after <= 20
    assert results[1].text == ""


def test_the_best_passage_is_shortened_rather_than_left_out_for_a_worse_one_that_fits() -> None:
    text = "\n\n".join([passage(9, 60), passage(1, 10)])
    compressor = QuestionAware(by_number, LongWords(), count=count, split=blank_lines)
    [result] = compressor.compress([text], question="?", budget_tokens=20)
    assert result.text and all(start < text.index("p1 ") for start, _ in result.kept)
    assert_true_offsets(text, result)


def test_better_passages_lose_less() -> None:
    text = text_of(3, 9, 6, 1)
    inner = LongWords()
    compressor = QuestionAware(by_number, inner, count=count, split=blank_lines, coarse_factor=2, spread=0.3)
    [result] = compressor.compress([text], question="?", budget_tokens=30)
    first = inner.calls[:3]
    assert [passages[0][:2] for passages, _ in first] == ["p9", "p6", "p3"]
    limits = [limit for _, limit in first]
    assert limits == sorted(limits, reverse=True) and limits[0] > limits[-1]  # type: ignore[type-var, operator]
    assert "p1 " not in result.text
    assert_true_offsets(text, result)


def test_the_total_goes_to_the_texts_that_matter_and_a_rate_holds_for_each() -> None:
    texts = [text_of(1, 2), text_of(8, 9), "", text_of(3)]
    compressor = QuestionAware(by_number, count=count, split=blank_lines)
    assert [bool(result.text) for result in compressor.compress(texts, question="?", budget_tokens=40)] == [
        False,
        True,
        False,
        False,
    ]
    results = compressor.compress(texts, question="?", keep_rate=0.5)
    assert [result.text.partition(" ")[0] for result in results] == ["p2", "p9", "", ""]


def test_without_a_question_the_inner_compressor_does_the_work() -> None:
    texts, inner = [text_of(1, 2), text_of(8, 9)], LongWords()
    results = QuestionAware(by_number, inner, count=count).compress(texts, budget_tokens=20)
    assert results == LongWords().compress(texts, budget_tokens=20)
    assert inner.calls == [(texts, 20)]


def test_what_fits_stays_as_it_is() -> None:
    text = text_of(1, 2)
    [result] = QuestionAware(by_number, LongWords(), count=count).compress([text], question="?", budget_tokens=10**6)
    assert result.text == text and result.kept == ((0, len(text)),)


@pytest.mark.parametrize(
    ("order", "expected"), [("text", (0, 1, 3, 4)), ("best_first", (1, 4, 3, 0)), ("best_at_ends", (1, 3, 0, 4))]
)
def test_the_order_is_told_and_results_stay_with_their_texts(order: Order, expected: tuple[int, ...]) -> None:
    texts = [passage(2), passage(9), passage(1), passage(3), passage(5)]
    compressor = QuestionAware(by_number, count=count, order=order)
    found = compressor.rank_and_compress(texts, question="?", budget_tokens=85)
    assert found.order == expected
    assert [result.text for result in found.results] == [texts[0], texts[1], "", texts[3], texts[4]]
    assert found.relevance == (2, 9, 1, 3, 5)


def test_protected_stretches_that_the_inner_compressor_broke_are_named() -> None:
    class Breaking(LongWords):
        def compress(
            self,
            texts: Sequence[str],
            *,
            question: str = "",
            budget_tokens: int | None = None,
            keep_rate: float | None = None,
        ) -> list[Compressed]:
            return [Compressed(t[:2], ((0, 2),), (0,), count(t), 1, ((3, 5),)) for t in texts]

    text = text_of(3, 9)
    [result] = QuestionAware(by_number, Breaking(), count=count, split=blank_lines, coarse_factor=3).compress(
        [text], question="?", budget_tokens=20
    )
    start = text.index("p9")
    assert result.broken == ((3, 5), (start + 3, start + 5))
    assert result.kept == ((0, 2), (start, start + 2))


# ---- promises --------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.lists(st.text(alphabet="ab 9.。漢é\n\t\r\ud800'", max_size=80), max_size=5),
    st.integers(0, 60),
    st.booleans(),
    st.floats(1, 4),
    st.floats(0, 1),
    st.sampled_from([0, 3, 600]),
)
def test_never_above_the_budget_never_longer_and_offsets_are_true(
    texts: list[str], budget: int, with_inner: bool, factor: float, spread: float, characters: int
) -> None:
    compressor = QuestionAware(
        by_number,
        LongWords() if with_inner else None,
        count=count,
        split=lambda text: paragraphs(text, characters) if characters else [(0, len(text))],
        coarse_factor=factor,
        spread=spread,
    )
    found = compressor.rank_and_compress(texts, question="a9", budget_tokens=budget)
    assert sum(result.tokens_after for result in found.results) <= budget
    for text, result in zip(texts, found.results, strict=True):
        assert_true_offsets(text, result)
    assert sorted(found.order) == [number for number, result in enumerate(found.results) if result.text]


@settings(deadline=None)
@given(st.lists(st.text(alphabet="ab 9.\n", max_size=60), max_size=4), st.floats(0, 1))
def test_a_rate_holds_for_every_text(texts: list[str], rate: float) -> None:
    results = QuestionAware(count=count, inner=LongWords()).compress(texts, question="a", keep_rate=rate)
    for text, result in zip(texts, results, strict=True):
        assert result.tokens_after <= rate * count(text) + 1e-6
        assert_true_offsets(text, result)


def test_scores_that_are_no_numbers_come_last() -> None:
    def broken(question: str, passages: Sequence[str]) -> npt.NDArray[np.float64]:
        return np.array([np.nan, 1.0, -np.inf])

    found = QuestionAware(broken, count=count, order="best_first").rank_and_compress(
        [passage(1), passage(2), passage(3)], question="?", budget_tokens=40
    )
    assert found.order[0] == 1


@pytest.mark.parametrize("split", [[(3, 1)], [(0, 5), (4, 6)], [(0, 10**6)], [(-1, 2)]])
def test_a_split_that_goes_wrong_is_named(split: list[Span]) -> None:
    with pytest.raises(ConfigError, match="split gave the passage"):
        QuestionAware(count=count, split=lambda text: split).compress([passage(1)], question="?", budget_tokens=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"coarse_factor": 0.5}, "coarse_factor is 0.5"), ({"spread": 2}, "spread is 2"), ({"order": "x"}, "order 'x'")],
)
def test_options_out_of_range_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuestionAware(count=count, **options)  # type: ignore[arg-type]


# ---- rates and passages ----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=30), st.floats(0, 1), st.floats(0, 1))
def test_rates_fall_with_the_rank_and_come_to_the_target(sizes: list[int], rate: float, spread: float) -> None:
    tokens = np.array(sizes, np.float64)
    target = rate * tokens.sum()
    rates = falling_rates(tokens, target, spread)
    assert ((rates >= 0) & (rates <= 1)).all() and (np.diff(rates) <= 1e-9).all()
    assert rates @ tokens == pytest.approx(target, abs=1e-6)


def test_rates_are_those_of_the_paper() -> None:
    np.testing.assert_allclose(falling_rates(np.full(5, 100.0), 250.0, 0.3), [0.8, 0.65, 0.5, 0.35, 0.2])


@settings(deadline=None)
@given(st.text(alphabet="ab .。!\n\t", max_size=400), st.integers(1, 60))
def test_passages_hold_all_but_white_space(text: str, characters: int) -> None:
    spans = paragraphs(text, characters)
    assert all(a < b for a, b in spans)
    assert all(b <= c for (_, b), (c, _) in pairwise(spans))
    assert re.sub(r"\s", "", "".join(text[a:b] for a, b in spans)) == re.sub(r"\s", "", text)
    assert all(b - a <= 3 * characters for a, b in spans)


def test_paragraphs_are_kept_apart_and_short_ones_together() -> None:
    long = "One sentence of some length. " * 30
    text = f"Title\n\nShort one.\n\n{long}\n\n{'Another. ' * 40}"
    shown = [text[a:b] for a, b in paragraphs(text)]
    assert shown[0].startswith("Title\n\nShort one.")
    assert all(part.rstrip().endswith(".") for part in shown)
    assert all(len(part) <= 600 for part in shown)
    assert len(shown) == 3
