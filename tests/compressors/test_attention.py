"""What compressors by attention share: from an order of tokens to text, and what no model can be shown."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longroute.compressors.attention import TokenSelection, asked, block_tokens
from longroute.compressors.compression import Compressor, Span
from longroute.compressors.gemfilter import GemFilter
from longroute.compressors.specpc import SpecPC
from longroute.router.errors import ContextTooLong
from longroute.router.tokens import counter_for

Ints = npt.NDArray[np.int64]


class Letters:
    """A fake model whose tokens are characters."""

    n_layers = 4
    max_tokens = 1000

    def encode(self, text: str) -> tuple[list[int], Ints]:
        places = np.arange(len(text))
        return [ord(letter) for letter in text], np.column_stack([places, places + 1])


def rarest_first(ids: Sequence[int], _: Sequence[int]) -> Ints:
    return np.argsort([-token for token in ids], kind="stable")


def thirds(text: str) -> list[Span]:
    return [match.span() for match in re.finditer(r"[^.]+\.", text)]


def test_stretches_come_in_the_order_of_their_best_tokens() -> None:
    text = "aza aaa. ayb bbb. xxx xxx."
    by_sentence = TokenSelection(Letters(), rarest_first, count=len, split=thirds)
    assert [result.text for result in by_sentence.compress([text], "", 9, None)] == ["aza aaa."]
    assert by_sentence.compress([text], "", 17, None)[0].kept == ((0, 17),)
    by_word = TokenSelection(Letters(), rarest_first, count=len, split=None)
    assert by_word.compress([text], "", 7, None)[0].text == "aza ayb"
    assert by_sentence.compress([text], "", 7, None)[0].text == "aza ayb"  # no sentence is that short


def test_a_question_stands_behind_and_leaves_room() -> None:
    letters = Letters()
    assert asked(letters, "  ") == []
    assert "".join(map(chr, asked(letters, " Who? "))) == "\n\nQuestion: Who?\n\nAnswer:"
    assert [block_tokens(letters, n, 900 - 28) for n in (5, 128, 5000)] == [5, 128, 128]
    assert block_tokens(letters, 100, 900) == 100
    with pytest.raises(ContextTooLong, match=r"question has 873 tokens.*reads 1000"):
        block_tokens(letters, 128, 873)


UNUSUAL = (
    "",
    " ",
    "a",
    "\n\n\n",
    "是的。好！我们明天见。",
    "<|end|> is spelled out <|end|>\n<|end|>",
    "\ud800 half a character, \N{ROCKET}\N{ROCKET} and \x00 more",
    "e\u0301" * 30,
    "x" * 700,
    "กรุงเทพมหานคร " * 20,
    "One sentence. " * 60 + "The last one is another.",
)


def sentences_or_lines(text: str) -> list[Span]:
    return [match.span() for match in re.finditer(r"[^.。\n]+[.。\n]?", text)]


def compressors(split: Callable[[str], Sequence[Span]] | None) -> list[Compressor]:
    pytest.importorskip("transformers")
    from longroute.tests.router.runner.bytewise import bytewise

    count = counter_for("default").count
    return [make(bytewise(), count=count, split=split) for make in (SpecPC, GemFilter)]


@pytest.mark.parametrize("split", [None, sentences_or_lines])
@pytest.mark.parametrize("question", ["", "?", "谁？<|end|>", "why " * 60])
def test_unusual_texts_keep_the_contract(split: Callable[[str], Sequence[Span]] | None, question: str) -> None:
    count = counter_for("default").count
    for compressor in compressors(split):
        results = compressor.compress(UNUSUAL, question=question, keep_rate=0.5)
        for text, result in zip(UNUSUAL, results, strict=True):
            assert result.tokens_after == (count(result.text) if result.text else 0) <= 0.5 * result.tokens_before
            assert len(result.text) <= len(text)
            for (start, end), place in zip(result.kept, result.placed, strict=True):
                assert text[start:end] == result.text[place : place + end - start] != ""


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.text("ab é。.!7\n\U0001f680文<|end>", max_size=150), min_size=1, max_size=3),
    st.floats(0, 1),
    st.sampled_from(["", "ab é?"]),
    st.sampled_from([None, sentences_or_lines]),
)
def test_a_model_that_reads_anything_keeps_the_contract(
    texts: list[str], share: float, question: str, split: Callable[[str], Sequence[Span]] | None
) -> None:
    count = counter_for("default").count
    budget = int(share * sum(map(count, texts)))
    for compressor in compressors(split):
        results = compressor.compress(texts, question=question, budget_tokens=budget)
        assert sum(result.tokens_after for result in results) <= budget
        for text, result in zip(texts, results, strict=True):
            assert list(result.kept) == sorted(result.kept)
            for (start, end), place in zip(result.kept, result.placed, strict=True):
                assert text[start:end] == result.text[place : place + end - start]
        assert results == compressor.compress(texts, question=question, budget_tokens=budget)


@pytest.mark.parametrize("n_letters", [600, 5000])
def test_a_question_without_room_is_refused_whatever_the_text(n_letters: int) -> None:
    for compressor in compressors(None):
        with pytest.raises(ContextTooLong, match="Ask a shorter question"):
            compressor.compress(["a b. " * (n_letters // 5)], question="why " * 110, keep_rate=0.5)
