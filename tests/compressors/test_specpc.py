"""SpecPC: the order of keeping against a slow reading of the paper, and drafts whose looks are known."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longroute.compressors.compression import Span
from longroute.compressors.specpc import SpecPC, default_first_layer, keep_order
from longroute.router.errors import ConfigError, ContextTooLong
from longroute.router.tokens import counter_for

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
WORD = re.compile(r"\w+|[^\w\s]")


def count(text: str) -> int:
    return len(WORD.findall(text))


class Planted:
    """A fake draft that looks where it was told: at given words. Its tokens are words. Remembers what it was asked."""

    def __init__(self, looks: dict[str, float] | None = None, *, n_layers: int = 24, max_tokens: int = 10_000) -> None:
        self.looks = looks or {}
        self.n_layers = n_layers
        self.max_tokens = max_tokens
        self.known: dict[str, int] = {}
        self.asked: list[tuple[int, list[float], int]] = []

    def encode(self, text: str) -> tuple[list[int], Ints]:
        found = list(WORD.finditer(text))
        ids = [self.known.setdefault(match.group(), len(self.known)) for match in found]
        return ids, np.array([match.span() for match in found], np.int64).reshape(-1, 2)

    def strongest(self, ids: Sequence[int], row_weights: Sequence[float], first_layer: int = 0) -> Floats:
        self.asked.append((len(ids), list(row_weights), first_layer))
        spelled = {n: word for word, n in self.known.items()}
        return np.array([self.looks.get(spelled[n], 1e-4) for n in ids])


def slow_order(scores: Floats, pool: int, neighbours: int, last: int) -> list[int]:
    """The same by the words of the paper, without a thought for speed."""
    n = len(scores)

    def pooled(i: int) -> float:
        return max(float(scores[j]) for j in range(i - (pool - 1) // 2, i + pool // 2 + 1) if 0 <= j < n)

    best = sorted(range(n), key=lambda i: (-pooled(i), -scores[i], i))
    wanted = list(range(max(n - max(last, 0), 0), n))
    for i in best:
        wanted += [j for d in range(neighbours + 1) for j in dict.fromkeys((i - d, i + d)) if 0 <= j < n]
    return list(dict.fromkeys(wanted))


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9]), max_size=60),
    st.integers(1, 9),
    st.integers(0, 7),
    st.integers(-3, 70),
)
def test_the_order_of_keeping_is_that_of_the_paper(values: list[float], pool: int, neighbours: int, last: int) -> None:
    scores = np.array(values, np.float64)
    found = keep_order(scores, pool=pool, neighbours=neighbours, last=last).tolist()
    assert found == slow_order(scores, pool, neighbours, last)


def test_a_token_is_kept_with_its_neighbours_nearest_first() -> None:
    scores = np.zeros(1000)
    scores[[300, 700]] = 1.0, 0.5
    order = keep_order(scores)
    assert order[:5].tolist() == [300, 299, 301, 298, 302]
    assert set(order[:129].tolist()) == set(range(236, 365))
    first_of_second = int(np.flatnonzero(order == 700)[0])
    assert first_of_second < 200  # all under the first maximum, then the second


def test_the_queries_are_the_last_64_their_weights_rise_and_early_layers_do_not_count() -> None:
    draft = Planted()
    SpecPC(draft, count=count).compress([long_text()], question="Who runs Vell?", keep_rate=0.3)
    [(n_ids, weights, first_layer)] = draft.asked
    assert n_ids == count(long_text()) + count("Question: Who runs Vell? Answer:")
    assert np.allclose(weights, np.linspace(0, 1, 64))
    assert first_layer == 8
    assert [default_first_layer(n) for n in (1, 2, 6, 12, 16, 32)] == [0, 0, 2, 4, 8, 8]


def long_text(*, at: int = 400, words: str = "Vell is run by Ada Lindqvist .", seed: int = 0) -> str:
    rng = random.Random(seed)
    filler = [f"x{rng.randrange(10**9)}" + ("." if n % 9 == 8 else "") for n in range(1200)]
    return " ".join([*filler[:at], words, *filler[at:]])


@pytest.mark.parametrize("at", [0, 400, 1199])
def test_what_the_draft_looks_at_is_kept_with_what_stands_around_it(at: int) -> None:
    text = long_text(at=at)
    [short] = SpecPC(Planted({"Vell": 0.9}), count=count).compress([text], question="Who runs Vell?", budget_tokens=260)
    assert "Vell is run by Ada Lindqvist ." in short.text
    assert 240 <= short.tokens_after <= 260
    assert text.endswith(short.text.split()[-1])  # the end of the prompt stays


def test_stretches_are_kept_whole_where_they_fit_and_words_where_none_does() -> None:
    def halves(text: str) -> list[Span]:
        return [(0, len(text) // 2), (len(text) // 2, len(text))]

    text = " ".join(f"w{n}" for n in range(200)) + " Vell " + " ".join(f"v{n}" for n in range(195))
    compressor = SpecPC(Planted({"Vell": 0.9}), count=count, split=halves, queries=8)
    [half] = compressor.compress([text], question="Vell? And so on and on.", budget_tokens=300)
    assert half.kept == (halves(text)[1],)
    [words] = compressor.compress([text], question="Vell? And so on and on.", budget_tokens=40)
    assert " Vell " in words.text and 38 <= words.tokens_after <= 40


def test_a_text_beyond_the_window_of_the_draft_is_read_in_blocks_that_overlap() -> None:
    draft = Planted({"Vell": 0.9}, max_tokens=300)
    text = long_text(at=900)
    [short] = SpecPC(draft, count=count).compress([text], question="Who runs Vell?", budget_tokens=250)
    assert "Vell is run by" in short.text
    asked = count("Question: Who runs Vell? Answer:")
    room, overlap = 300 - asked, 64 - asked
    assert [n for n, _, _ in draft.asked[:-1]] == [300] * (len(draft.asked) - 1)
    assert draft.asked[-1][0] == count(text) - (len(draft.asked) - 1) * (room - overlap) + asked
    with pytest.raises(ContextTooLong, match="Ask a shorter question"):
        SpecPC(draft, count=count).compress([text], question="why " * 250, keep_rate=0.5)


def test_nothing_is_read_where_there_is_nothing_to_choose() -> None:
    draft = Planted()
    compressor = SpecPC(draft, count=count)
    assert [r.text for r in compressor.compress(["one two", ""], keep_rate=1.0)] == ["one two", ""]
    assert compressor.compress(["one two"], budget_tokens=0)[0].text == ""
    assert draft.asked == []
    with pytest.raises(ConfigError):
        compressor.compress(["one"], budget_tokens=1, keep_rate=0.5)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text("ab é。.!7\n\U0001f680文", max_size=150), min_size=1, max_size=3),
    st.floats(0, 1),
    st.booleans(),
    st.sampled_from(["", "ab é?"]),
    st.booleans(),
)
def test_results_keep_the_contract(texts: list[str], share: float, rate: bool, question: str, sentences: bool) -> None:
    counter = counter_for("default")
    split = (lambda text: [m.span() for m in re.finditer(r"[^.。]+[.。]?", text)]) if sentences else None
    compressor = SpecPC(Planted({"ab": 0.5}), count=counter.count, split=split, queries=4, pool=3, neighbours=2)
    budget = int(share * sum(map(counter.count, texts)))
    if rate:
        results = compressor.compress(texts, question=question, keep_rate=share)
    else:
        results = compressor.compress(texts, question=question, budget_tokens=budget)
        assert sum(result.tokens_after for result in results) <= budget
    for text, result in zip(texts, results, strict=True):
        assert result.tokens_after == (counter.count(result.text) if result.text else 0) <= counter.count(text)
        assert len(result.text) <= len(text)
        if rate:
            assert result.tokens_after <= share * result.tokens_before + 1e-9
        for (start, end), place in zip(result.kept, result.placed, strict=True):
            assert text[start:end] == result.text[place : place + end - start]
        assert list(result.kept) == sorted(result.kept)


def test_a_real_draft_built_by_hand_keeps_the_answer() -> None:
    pytest.importorskip("transformers")
    from longroute.tests.router.runner.matcher import matcher

    draft = matcher(WORD.findall("Vell is run by Question : Who runs Vell ? Answer"), max_positions=2048, layers=3)
    [short] = SpecPC(draft, count=count).compress([long_text()], question="Who runs Vell?", budget_tokens=250)
    assert "Vell is run by Ada Lindqvist ." in short.text
