from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.retrievers.bm25 import BM25, inverse_document_frequency, saturation, top

words = st.sampled_from("abcdef")
chunk_lists = st.lists(st.lists(words, max_size=12), max_size=12)


def naive_scores(chunks: Sequence[Sequence[str]], query: Sequence[str], k1: float, b: float) -> list[float]:
    """The textbook formula, term by term (Robertson and Zaragoza 2009; idf as in Lucene)."""
    mean_length = max(sum(map(len, chunks)) / len(chunks), 1) if chunks else 1
    scores = []
    for chunk in chunks:
        counts = Counter(chunk)
        score = 0.0
        for term in query:
            holders = sum(term in other for other in chunks)
            idf = math.log(1 + (len(chunks) - holders + 0.5) / (holders + 0.5))
            tf = counts[term]
            if tf:
                score += idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * len(chunk) / mean_length))
        scores.append(score)
    return scores


@given(chunk_lists, st.lists(st.sampled_from("abcxyz"), max_size=5), st.floats(0.1, 3), st.floats(0, 1))
def test_scores_are_those_of_the_textbook(chunks: list[list[str]], query: list[str], k1: float, b: float) -> None:
    scores = BM25(chunks, k1, b).scores(query)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, naive_scores(chunks, query, k1, b), rtol=1e-5, atol=1e-6)


@given(chunk_lists, words)
def test_a_term_knows_its_chunks_and_what_it_tells(chunks: list[list[str]], term: str) -> None:
    index = BM25(chunks)
    holders = [number for number, chunk in enumerate(chunks) if term in chunk]
    assert index.chunks_with(term).tolist() == holders
    assert index.idf(term) == pytest.approx(math.log(1 + (len(chunks) - len(holders) + 0.5) / (len(holders) + 0.5)))


def test_rare_terms_tell_more_and_none_tells_less_than_nothing() -> None:
    idf = inverse_document_frequency(10, [1, 5, 10])
    assert idf[0] > idf[1] > idf[2] > 0


def test_further_occurrences_add_less_and_length_counts_against() -> None:
    worth = saturation(np.array([1.0, 2.0, 3.0, 1e9]), np.ones(4), k1=0.9, b=0.5)
    assert worth[0] == pytest.approx(1)
    assert worth[1] - worth[0] > worth[2] - worth[1] > 0
    assert worth[3] == pytest.approx(1.9)
    assert saturation(np.ones(1), np.full(1, 2.0), k1=0.9, b=0.5) < 1


@given(st.lists(st.integers(-3, 3), max_size=30), st.integers(0, 35))
def test_top_is_the_start_of_a_stable_sort(values: list[int], k: int) -> None:
    expected = sorted(range(len(values)), key=lambda number: -values[number])[:k]
    assert top(np.array(values, np.float32), k).tolist() == expected
