from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.retrievers.bm25 import top
from longroute.retrievers.corpus import Corpus
from longroute.retrievers.dense import DenseRetriever, VectorIndex, index_of
from longroute.router.core import Document


class LetterEmbedder:
    """The vector of a text is how often it holds each letter; counts the texts it was given."""

    name = "letters"
    max_tokens = 256

    def __init__(self) -> None:
        self.texts = 0

    def understands(self, text: str) -> float:
        return 1.0

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += len(texts)
        counts = np.array([[1e-3 + text.lower().count(chr(97 + i)) for i in range(26)] for text in texts], np.float32)
        return np.asarray(counts / np.linalg.norm(counts, axis=1, keepdims=True))


DOCUMENTS = [Document("Zebras graze. " * 60, "zoo"), Document("Foxes box. " * 60 + "Quizzes jinx. " * 60, "den")]


def unit_vectors(n: int, seed: int) -> np.ndarray:
    """Vectors in clusters, as those of real text are."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((20, 16))
    vectors = centres[random.integers(20, size=n)] + 0.5 * random.standard_normal((n, 16))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


@given(st.integers(1, 40), st.integers(0, 50), st.integers(0, 5))
def test_the_exact_index_finds_the_closest_in_order(n: int, k: int, seed: int) -> None:
    vectors = unit_vectors(n, seed)
    index, query = VectorIndex(vectors), unit_vectors(1, seed + 100)[0]
    nearest = index.nearest(query, k)
    np.testing.assert_array_equal(nearest, top(vectors @ query, k))
    np.testing.assert_allclose(index.similarities(query, nearest), (vectors @ query)[nearest], atol=1e-6)


def test_the_graph_finds_what_the_exact_index_finds() -> None:
    vectors = unit_vectors(3000, seed=1)
    exact, graph = VectorIndex(vectors), VectorIndex(vectors, exact_up_to=100)
    shared = [
        len(set(exact.nearest(query, 20).tolist()) & set(graph.nearest(query, 20).tolist()))
        for query in unit_vectors(20, seed=2)
    ]
    assert np.mean(shared) >= 19


def test_the_graph_gives_all_it_has_when_asked_for_more() -> None:
    graph = VectorIndex(unit_vectors(30, seed=3), exact_up_to=10)
    assert sorted(graph.nearest(unit_vectors(1, seed=4)[0], 50).tolist()) == list(range(30))


def test_a_corpus_is_embedded_once() -> None:
    corpus, embedder = Corpus.build(DOCUMENTS), LetterEmbedder()
    assert index_of(corpus, embedder) is index_of(corpus, embedder)
    assert embedder.texts == len(corpus.chunks)
    assert index_of(corpus, LetterEmbedder()) is not index_of(corpus, embedder)


@pytest.mark.parametrize(("question", "document_id"), [("zebras graze", "zoo"), ("foxes box", "den")])
def test_the_closest_passage_comes_first_and_fits_the_budget(question: str, document_id: str) -> None:
    passages = DenseRetriever(LetterEmbedder()).retrieve(question, DOCUMENTS, budget_tokens=400)
    assert passages[0].document_id == document_id
    texts = {document.id: document.text for document in DOCUMENTS}
    assert all(passage.text == texts[passage.document_id][passage.start : passage.end] for passage in passages)
    assert sum(len(passage.text) for passage in passages) < len(DOCUMENTS[1].text)


def test_no_text_has_no_passages() -> None:
    assert DenseRetriever(LetterEmbedder()).retrieve("anything?", [Document("", "empty")], budget_tokens=100) == []
