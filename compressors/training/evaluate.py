"""How well scores agree with what a language model kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..compression import Bools, Floats


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of scores with labels; all in [0, 1].

    auc: chance that a kept word scores above a dropped one, over all texts together.
    text_auc: the same within each text, averaged over texts; what matters where every text has its own budget.
    f1: of keeping as many words of each text as its label keeps, over all words.
    """

    auc: float
    text_auc: float
    f1: float
    n_texts: int
    n_words: int


def agreement(scores: Sequence[Floats], keeps: Sequence[Bools]) -> Agreement:
    """scores, keeps: per text, shape (n_words,), signs left out. Texts of which all or nothing is kept do not count."""
    telling = [
        (np.asarray(score), np.asarray(keep)) for score, keep in zip(scores, keeps, strict=True) if 0 < keep.mean() < 1
    ]
    if not telling:
        raise ValueError("no text with both kept and dropped words")
    hits = kept = 0
    for score, keep in telling:
        n = int(keep.sum())
        hits += int(keep[np.argsort(-score, kind="stable")[:n]].sum())
        kept += n
    return Agreement(
        auc=auc(np.concatenate([score for score, _ in telling]), np.concatenate([keep for _, keep in telling])),
        text_auc=float(np.mean([auc(score, keep) for score, keep in telling])),
        f1=hits / kept,  # as many are chosen as are right, so precision, recall and F1 are one
        n_texts=len(telling),
        n_words=sum(len(keep) for _, keep in telling),
    )


def auc(scores: Floats, positive: Bools) -> float:
    """Chance that a positive scores above a negative, ties counting half; both must occur."""
    _, place, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(sizes) - (sizes - 1) / 2)[place]  # mean rank among equals, from 1
    n = int(positive.sum())
    if not 0 < n < len(positive):
        raise ValueError("AUC needs positives and negatives")
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(positive) - n)))
