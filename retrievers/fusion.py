"""Fusion: several scores for the same chunks become one. Pure functions of arrays; what is scored is left to others.

Every function is blind to the order of its inputs, and to the order of the chunks but for permuting its output alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def reciprocal_rank(scores: Sequence[np.ndarray], k: int = 60) -> np.ndarray:
    """Sum over the rankings of 1 / (k + rank), the best chunk having rank 1 and equal scores the same rank.

    scores: arrays of shape (n_chunks,), higher is better; their scales do not matter.
    Returns shape (n_chunks,), higher is better.
    Source: Cormack, Clarke, Büttcher (2009), SIGIR, "Reciprocal rank fusion outperforms Condorcet [...]".
    """
    ranks = [len(array) - np.searchsorted(np.sort(array), array, side="right") + 1 for array in scores]
    return np.asarray(np.sort([1 / (k + rank) for rank in ranks], axis=0).sum(axis=0))


def convex(lexical: np.ndarray, semantic: np.ndarray, semantic_weight: float) -> np.ndarray:
    """semantic_weight · semantic + (1 - semantic_weight) · lexical / max(lexical).

    lexical: BM25 scores of shape (n_chunks,), >= 0; divided by the best, because their scale varies by question.
    semantic: cosines of shape (n_chunks,) in [-1, 1], used as they are: their scale is the model's own, so a chunk's
    fused score does not depend on which other chunks were embedded.
    semantic_weight: in [0, 1].
    Source: Bruch, Gai, Ingber (2023), ACM TOIS 42(1), "An Analysis of Fusion Functions for Hybrid Retrieval".
    """
    best = float(lexical.max(initial=0.0))
    return semantic_weight * semantic + (1 - semantic_weight) * (lexical / best if best > 0 else lexical)
