"""InfiniRetri: the scores against a slow reading of the paper, and a model built by hand whose looks are known."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import convolve2d

from longroute.retrievers.attention import InfiniRetri, sentences, token_scores
from longroute.router.core import Document
from longroute.router.errors import ContextTooLong
from longroute.router.tokens import counter_for

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
WORD = re.compile(r"\w+|[^\w\s]")


def count(text: str) -> int:
    return len(WORD.findall(text))


class EqualWords:
    """A fake model: a token of the question looks at equal words, and a little at everything.

    Remembers what it read.
    """

    def __init__(self, max_tokens: int = 4000) -> None:
        self.max_tokens = max_tokens
        self.known: dict[str, int] = {}
        self.read: list[list[int]] = []

    def encode(self, text: str) -> tuple[list[int], Ints]:
        found = list(WORD.finditer(text))
        ids = [self.known.setdefault(match.group(), len(self.known)) for match in found]
        return ids, np.array([match.span() for match in found], np.int64).reshape(-1, 2)

    def looks(self, ids: Sequence[int], n_rows: int, depth: float = 1.0) -> Floats:
        self.read.append(list(ids))
        row = np.array(ids)
        found = np.where(row[-n_rows:, None] == row, 1.0, 0.001)
        found *= np.tri(n_rows, len(ids), len(ids) - n_rows)  # causal
        normed: Floats = found / found.sum(axis=1, keepdims=True)
        return normed

    def words(self, ids: Sequence[int]) -> list[str]:
        spelled = {n: word for word, n in self.known.items()}
        return [spelled[n] for n in ids]


def filler(n: int, seed: int = 0) -> list[str]:
    """Sentences of ten made-up words each, none of them twice in all."""
    rng = random.Random(seed)
    return [" ".join(f"x{rng.randrange(10**9)}" for _ in range(10)) + "." for _ in range(n)]


NEEDLE = "Jonna Eide keeps the light of Skerra."
QUESTION = "Who keeps the light of Skerra?"


def slow_scores(attention: Floats, n_context: int) -> Floats:
    """As the package has it, step by step."""
    to_context = convolve2d(attention[:, :n_context], np.ones((1, 8)), mode="same", boundary="fill", fillvalue=0)
    weights = attention[:, n_context:].sum(axis=1, keepdims=True)
    total: Floats = (weights * (weights * to_context)).sum(axis=0)
    return total


@given(st.integers(0, 40), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_scores_are_those_of_the_paper(n_context: int, n_question: int, seed: int) -> None:
    attention = np.random.default_rng(seed).random((n_question, n_context + n_question))
    found = token_scores(attention, n_context)
    assert found.shape == (n_context,)
    if n_context >= 8:  # scipy swaps a text that is shorter than the box for the box
        assert np.allclose(found, slow_scores(attention, n_context))


@pytest.mark.parametrize("place", [0, 1, 57, 200, 398, 399])
def test_the_sentence_that_the_question_looks_at_is_found_wherever_it_stands(place: int) -> None:
    lines = filler(400)
    lines[place] = NEEDLE
    model = EqualWords()
    document = Document(" ".join(lines), "d")
    found = InfiniRetri(model, count=count, top_tokens=40).retrieve(QUESTION, [document], budget_tokens=60)
    assert NEEDLE in found[0].text
    assert len(model.read) > 4


def test_windows_hold_whole_sentences_and_what_was_kept_before_stands_first() -> None:
    lines = filler(300)
    lines[3] = NEEDLE
    model = EqualWords()
    InfiniRetri(model, count=count, window_tokens=200, top_tokens=8).retrieve(
        QUESTION, [Document(" ".join(lines), "d")], budget_tokens=1000
    )
    asked = WORD.findall(f"Question: {QUESTION} Answer:")
    seen: list[str] = []
    for ids in model.read:
        shown = model.words(ids)
        assert shown[-len(asked) :] == asked
        text = " ".join(shown[: -len(asked)])
        if model.read.index(ids):
            assert text.startswith(" ".join(WORD.findall(NEEDLE)))
            text = " ".join(text.split(" . ")[1:])
        assert shown[-len(asked) - 1] == "."  # a window ends where a sentence does
        seen += [line for line in lines if line.split()[0] in text.split()]
    assert seen[:-1] and set(seen) | {NEEDLE} == set(lines)  # all of it was read
    assert max(map(len, model.read)) <= 8 * 11 + 200 + len(asked)


def test_of_all_documents_the_ones_that_matter_and_budgets_hold() -> None:
    lines = filler(60)
    documents = [
        Document(" ".join(lines[:20]), "a"),
        Document(" ".join([*lines[20:30], NEEDLE, "She has kept the light since 1998.", *lines[30:40]]), "b"),
        Document("", "empty"),
        Document(" ".join(lines[40:]), "c"),
    ]
    found = InfiniRetri(EqualWords(), count=count, top_tokens=20).retrieve(QUESTION, documents, budget_tokens=20)
    assert [passage.document_id for passage in found] == ["b"]
    assert found[0].text == f"{NEEDLE} She has kept the light since 1998."


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text("ab é。.!?\n\U0001f680", max_size=120), min_size=1, max_size=3),
    st.integers(1, 60),
    st.sampled_from([64, 4000]),
)
def test_passages_are_exact_apart_and_within_the_budget(texts: list[str], budget: int, max_tokens: int) -> None:
    documents = [Document(text, str(number)) for number, text in enumerate(texts)]
    counter = counter_for("default")
    retriever = InfiniRetri(EqualWords(max_tokens), count=counter.count, window_tokens=32, top_tokens=10)
    found = retriever.retrieve("a b?", documents, budget_tokens=budget)
    assert sum(counter.count(passage.text) for passage in found) <= budget
    assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)
    for passage in found:
        assert passage.text == documents[int(passage.document_id)].text[passage.start : passage.end] != ""
    for one, other in pairwise(sorted(found, key=lambda p: (p.document_id, p.start))):
        assert one.document_id != other.document_id or one.end <= other.start
    assert found == retriever.retrieve("a b?", documents, budget_tokens=budget)


def test_prompts_never_exceed_the_model_even_where_everything_is_kept() -> None:
    model = EqualWords(max_tokens=300)
    text = " ".join(filler(100))
    InfiniRetri(model, count=count, top_tokens=10_000).retrieve(QUESTION, [Document(text, "d")], budget_tokens=9000)
    assert len(model.read) > 4
    assert max(map(len, model.read)) <= 300


class EqualLetters(EqualWords):
    """The same, with letters as tokens, white space among them."""

    def encode(self, text: str) -> tuple[list[int], Ints]:
        places = np.arange(len(text))
        return [ord(letter) for letter in text], np.column_stack([places, places + 1])


@pytest.mark.parametrize("n_letters", [19, 20, 40, 61, 400])
def test_prompts_never_exceed_the_model_where_one_sentence_fills_a_window(n_letters: int) -> None:
    asked = len("\n\nQuestion: a?\n\nAnswer:")
    model = EqualLetters(max_tokens=40 + asked)
    documents = [Document("a" * n_letters, "d"), Document("b" * n_letters, "e")]
    found = InfiniRetri(model, count=len, top_tokens=1000).retrieve("a?", documents, budget_tokens=1000)
    assert found and max(map(len, model.read)) <= 40 + asked


UNUSUAL = (
    "",
    " \n ",
    "a",
    "是的。好！我们明天见。" * 20,
    "<|end|> is spelled out <|end|>\n<|end|>",
    "\ud800 half a character, \N{ROCKET}\N{ROCKET} and \x00 more",
    "e\u0301" * 30,
    "x" * 700,
    "กรุงเทพมหานคร " * 20,
)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_neox"])
@pytest.mark.parametrize("question", ["?", "谁？<|end|>", "why " * 90])
def test_a_model_that_reads_anything_finds_exact_passages(family: str, question: str) -> None:
    pytest.importorskip("transformers")
    from longroute.tests.router.runner.bytewise import bytewise

    documents = [Document(text, str(number)) for number, text in enumerate(UNUSUAL)]
    counter = counter_for("default")
    retriever = InfiniRetri(bytewise(family=family), count=counter.count, top_tokens=20, depth=0.6)
    found = retriever.retrieve(question, documents, budget_tokens=80)
    assert found and sum(counter.count(passage.text) for passage in found) <= 80
    assert all(p.text == documents[int(p.document_id)].text[p.start : p.end] != "" for p in found)


def test_a_text_without_sentences_is_cut_to_what_can_be_shown() -> None:
    document = Document(" ".join(["y"] * 500 + ["Skerra"] + ["z"] * 500), "d")
    found = InfiniRetri(EqualWords(), count=count).retrieve("Where is Skerra?", [document], budget_tokens=40)
    assert "Skerra" in found[0].text and sum(count(passage.text) for passage in found) <= 40


def test_no_question_finds_nothing_and_one_too_long_is_refused() -> None:
    retriever = InfiniRetri(EqualWords(max_tokens=100), count=count)
    assert retriever.retrieve("  ", [Document("Some text.", "d")], budget_tokens=50) == []
    with pytest.raises(ContextTooLong, match="Ask a shorter question"):
        retriever.retrieve("why " * 90, [Document("Some text.", "d")], budget_tokens=50)


@given(st.text("ab .!?…。\n\"'»)", max_size=60))
def test_sentences_tile_the_text(text: str) -> None:
    spans = sentences(text)
    assert [0, *(end for _, end in spans)] == [*(start for start, _ in spans), len(text)]


def test_sentences_end_where_readers_see_an_end() -> None:
    text = 'It cost 3.2 million. "Really?" she asked. 是的。好！\nA title\n\nThe end'
    assert [text[a:b].strip() for a, b in sentences(text)] == [
        "It cost 3.2 million.", '"Really?"', "she asked.", "是的。", "好！", "A title", "The end"
    ]  # fmt: skip


def test_a_real_model_built_by_hand_finds_the_needle() -> None:
    pytest.importorskip("transformers")
    from longroute.tests.router.runner.matcher import matcher

    lines = filler(150)
    lines[77] = NEEDLE
    model = matcher(WORD.findall(f"{NEEDLE} {QUESTION} Question : Answer"), max_positions=1024)
    retriever = InfiniRetri(model, count=count, window_tokens=400, top_tokens=20)
    found = retriever.retrieve(QUESTION, [Document(" ".join(lines), "d")], budget_tokens=40)
    assert NEEDLE in found[0].text
