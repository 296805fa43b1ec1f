"""Hybrid retrieval, the default: words and meaning together, in two stages.

BM25 reads everything, which takes a tenth of a second for a long document. Only its best candidates are embedded, so a
cold document of 128,000 tokens is ready in about a second on two cores, and recall is that of embedding all of it
(`benchmarks/retrieval.py`). A corpus no larger than the number of candidates is embedded whole. Without an embedding
model this is BM25 and says so.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from ..router.core import Document, Passage
from .bm25 import Floats, Indices, top
from .corpus import CHUNK_TOKENS, Corpus, corpus_of, passages
from .dense import index_of
from .embed import Embedder
from .fusion import convex

log = logging.getLogger(__name__)

CANDIDATES = 48  # of 150 to 1,800 chunks; from 32 on, recall stays within 0.2 points of embedding them all
SEMANTIC_WEIGHT = 0.5  # chosen on one half of the questions of benchmarks/retrieval.py; flat between 0.45 and 0.65


class HybridRetriever:
    """A `Retriever` by BM25 scores and cosines, added up.

    embedder: None leaves BM25 alone.
    candidates: how many chunks are embedded for a question.
    full: embed every chunk; for corpora that are asked so often that it pays.
    """

    def __init__(self, embedder: Embedder | None, *, candidates: int = CANDIDATES, full: bool = False) -> None:
        self.embedder = embedder
        self.candidates = candidates
        self.full = full
        if embedder is None:
            log.info("No embedding model: passages are ranked by their words alone (BM25).")

    def retrieve(self, question: str, documents: Sequence[Document], *, budget_tokens: int) -> list[Passage]:
        corpus = corpus_of(documents, min(CHUNK_TOKENS, budget_tokens))  # so that one chunk always fits
        return passages(corpus, self.rank(question, corpus), budget_tokens)

    def rank(self, question: str, corpus: Corpus) -> list[tuple[int, float]]:
        """Chunks with their fused scores, best first: the candidates, and every other chunk that BM25 found."""
        lexical = corpus.scores(question)
        weight = SEMANTIC_WEIGHT * self.embedder.understands(question) if self.embedder is not None else 0.0
        semantic = np.zeros_like(lexical)
        relevant = lexical > 0
        if self.embedder is not None and weight > 0 and corpus.chunks:
            scenes = corpus.scenes
            candidates, cosines = self._cosines(question, corpus, np.maximum.reduceat(lexical, scenes), self.embedder)
            # The rest comes after what was read and found alike.
            by_scene, read = np.full(len(scenes), cosines.min(), np.float32), np.zeros(len(scenes), np.bool_)
            by_scene[candidates], read[candidates] = cosines, True
            sizes = np.diff(scenes, append=len(corpus.chunks))
            semantic, relevant = np.repeat(by_scene, sizes), relevant | np.repeat(read, sizes)
        scores = convex(lexical, semantic, weight)
        return [(int(chunk), float(scores[chunk])) for chunk in top(scores, len(scores)) if relevant[chunk]]

    def _cosines(self, question: str, corpus: Corpus, lexical: Floats, embedder: Embedder) -> tuple[Indices, Floats]:
        """The candidates among the corpus's scenes and their cosines to the question."""
        if self.full:
            index, query = index_of(corpus, embedder), embedder.encode([question])[0]
            candidates = np.union1d(top(lexical, self.candidates), index.nearest(query, self.candidates))
            return candidates, index.similarities(query, candidates)
        candidates = _candidates(lexical, self.candidates)
        query, *vectors = embedder.encode([question, *map(corpus.text_of_scene, candidates)])
        return candidates, np.array(vectors) @ query


def _candidates(lexical: Floats, n: int) -> Indices:
    """The n chunks that match best; where fewer match at all, others, spread evenly over the corpus.

    So a question in other words, or in another language, than the document still has something to choose from.
    """
    matching = top(lexical, n)
    matching = matching[lexical[matching] > 0]
    others = np.setdiff1d(np.arange(len(lexical)), matching)
    places = np.linspace(0, len(others) - 1, min(n - len(matching), len(others))).round().astype(np.intp)
    return np.concatenate([matching, others[places]])
