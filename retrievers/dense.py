"""Dense retrieval: the chunks whose vectors lie closest to the question's. Every chunk is embedded first.

That costs seconds for a long document, so it pays for corpora that are asked again and again, and as a baseline; for
the rest there is `hybrid.py`. What a vector means is left to `embed.py`, what a passage is to `corpus.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ..router.core import Document, Passage
from .bm25 import Floats, Indices, top
from .corpus import CHUNK_TOKENS, Corpus, corpus_of, passages
from .embed import Embedder

# A graph answers in 0.1-0.4 ms and takes 0.3 ms a vector to build. The product takes 8 ms for 50,000 vectors of 384
# dimensions, about as long as embedding the question, so below that a graph gains nothing that can be felt.
EXACT_UP_TO = 50_000
_GRAPH_DEGREE, _BUILD_BREADTH, _SEARCH_BREADTH = 32, 80, 200  # found all of the best 100 of 50,000 clustered vectors


class VectorIndex:
    """Unit vectors, searched by their dot product: exactly up to EXACT_UP_TO of them, through a FAISS graph above.

    vectors: float32, shape (n, dimensions).
    """

    def __init__(self, vectors: Floats, exact_up_to: int = EXACT_UP_TO) -> None:
        self._vectors = vectors
        self._graph = _graph_of(vectors) if len(vectors) > exact_up_to else None

    def similarities(self, query: Floats, of: Indices) -> Floats:
        """Dot products with the vectors numbered `of`; same shape as `of`."""
        return np.asarray(self._vectors[of] @ query)

    def nearest(self, query: Floats, k: int) -> Indices:
        """Numbers of the k vectors closest to the query, shape (min(k, n),), closest first."""
        if self._graph is None:
            return top(self._vectors @ query, k)
        found: Indices = self._graph.search(query[None], k)[1][0]
        return found[found >= 0]  # FAISS fills up with -1


@lru_cache(maxsize=8)  # corpora and embedders are equal only to themselves; corpus_of returns the same one again
def index_of(corpus: Corpus, embedder: Embedder) -> VectorIndex:
    """The vectors of all scenes (chunks, but for short turns) of a corpus that has any."""
    return VectorIndex(embedder.encode([corpus.text_of_scene(scene) for scene in range(len(corpus.scenes))]))


class DenseRetriever:
    """Ranks chunks by the similarity of their vectors to the question's, and nothing else."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder

    def retrieve(self, question: str, documents: Sequence[Document], *, budget_tokens: int) -> list[Passage]:
        corpus = corpus_of(documents, min(CHUNK_TOKENS, budget_tokens))  # so that one chunk always fits
        return passages(corpus, self.rank(question, corpus, k=budget_tokens), budget_tokens)

    def rank(self, question: str, corpus: Corpus, k: int) -> list[tuple[int, float]]:
        """The k closest chunks with their cosines, closest first."""
        if not corpus.chunks:
            return []
        index, query = index_of(corpus, self.embedder), self.embedder.encode([question])[0]
        nearest = index.nearest(query, k)
        bounds = [*corpus.scenes.tolist(), len(corpus.chunks)]
        cosines = index.similarities(query, nearest).tolist()
        return [
            (chunk, cosine)
            for scene, cosine in zip(nearest.tolist(), cosines, strict=True)
            for chunk in range(bounds[scene], bounds[scene + 1])
        ][:k]


def _graph_of(vectors: Floats) -> Any:
    import faiss

    graph = faiss.IndexHNSWFlat(vectors.shape[1], _GRAPH_DEGREE, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = _BUILD_BREADTH
    graph.hnsw.efSearch = _SEARCH_BREADTH
    graph.add(vectors)
    return graph
