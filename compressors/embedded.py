"""The compressor that needs no download: a small keep/drop classifier over words, trained by our own pipeline.

Two tiers behind one class. The lexical one is numpy and always there; given an encoder of words (`WordEncoder`, from
the extra `embed`) the same class reads the text in context. To the head's logit come how rare a word is, what it costs,
where it stands and, where there is a question, how near it stands to the question's words. What carries the meaning
comes forward whatever it scores (`precedence.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ..router.tokens import EstimatedCounter, cumulative_tokens
from .compression import Bools, Compressed, Compressor, Count, Floats, Ints, keep_best, shares, whole
from .keep_head import HALO, Trained, shipped
from .lexical_features import F32, Described, Vocabulary, describe, split_words, stems_of
from .precedence import in_order, missing
from .protect import KINDS, Kind, protected_spans

RARITY_WEIGHT = 0.5
PRICE_WEIGHT = 1.0
"""Of the logarithm of a word's tokens: a budget is in tokens, and rare words are made of many."""
START_WEIGHT = 1.5
"""What the first word of a text has before the last: texts say at their beginning what they are about."""
EMPHASIS = 3.0
WORD_WEIGHT = 1.0
SENTENCE_WEIGHT = 12.0
"""Of the question: for its own words, and for all words of a sentence that holds all of them, by how rare they are."""
_NEIGHBOUR = 0.4  # what a sentence gains from the one before or after it
_STEPS_APART = 0.5  # a sign scores so much less than the lower of its neighbours
_BLOCK = 4096  # words encoded at a time: bounds memory, whatever the length of the text


class EncodeWords(Protocol):
    """Words in their surroundings to vectors."""

    def __call__(self, texts: Sequence[str], words: Sequence[Ints]) -> Sequence[F32]:
        """words: per text int64 (n, 2), start and end. Returns float32 (n, dimensions) per text."""


class Embedded(Compressor):
    """Keeps the words that a language model would keep when it is told to compress.

    Trained on English; in other languages rarity and protection do most of the work.

    encode_words: None for the lexical tier; else what the encoder head was trained on (`WordEncoder()`).
    count: counts tokens; by default an estimate.
    kinds: what is protected, and emphasis, how much (`in_order`).
    rarity_weight: of the surprise of a word, in nats, beside the head's logit.
    trained: weights of one's own, by `training/train.py`; of the tier that fits encode_words.
    """

    def __init__(
        self,
        encode_words: EncodeWords | None = None,
        *,
        count: Count | None = None,
        kinds: Collection[Kind] = KINDS,
        rarity_weight: float = RARITY_WEIGHT,
        emphasis: float = EMPHASIS,
        trained: Trained | None = None,
    ) -> None:
        self.encode_words = encode_words
        self.count: Callable[[str], int] = count or EstimatedCounter().count
        self.kinds = tuple(kinds)
        self.rarity_weight = rarity_weight
        self.emphasis = emphasis
        self._own = trained

    @property
    def trained(self) -> Trained:
        return self._own or shipped("encoder" if self.encode_words else "lexical")

    def compress(
        self,
        texts: Sequence[str],
        *,
        question: str = "",
        budget_tokens: int | None = None,
        keep_rate: float | None = None,
    ) -> list[Compressed]:
        tokens = [self.count(text) for text in texts]
        budgets = shares(tokens, budget_tokens=budget_tokens, keep_rate=keep_rate)
        found = [whole(text, before) for text, before in zip(texts, tokens, strict=True)]
        too_long = [i for i, (before, budget) in enumerate(zip(tokens, budgets, strict=True)) if before > budget]
        for i, scored in zip(too_long, self.scored([texts[i] for i in too_long], question), strict=True):
            text = texts[i]
            spans = protected_spans(text, self.kinds)
            units = in_order(scored.words, scored.scores, spans, self.emphasis)
            made = keep_best(text, units, budget_tokens=budgets[i], tokens_before=tokens[i], count=self.count)
            found[i] = replace(made, broken=missing(spans, made))
        return found

    def scored(self, texts: Sequence[str], question: str = "") -> Iterator[Scored]:
        """The words of each text and what they are worth, before any budget."""
        trained = self.trained
        for batch in _batches(texts):
            words = [split_words(text) for text in batch]
            described = [describe(text, spans, trained.vocabulary) for text, spans in zip(batch, words, strict=True)]
            if self.encode_words is None:
                logits = [trained.head.logits(each) for each in described]
            elif len(batch) == 1:
                logits = [_in_blocks(batch[0], words[0], described[0], trained, self.encode_words)]
            else:
                states = self.encode_words(batch, words)
                logits = [trained.head.logits(each, state) for each, state in zip(described, states, strict=True)]
            for text, spans, each, logit in zip(batch, words, described, logits, strict=True):
                scores = logit + self.rarity_weight * each.surprise - PRICE_WEIGHT * _log_prices(text, spans)
                scores -= START_WEIGHT * np.arange(len(spans)) / max(len(spans), 1)
                if question:
                    scores += nearness(question, each, trained.vocabulary)
                yield Scored(spans, logit, _signs_follow(scores, each.signs))


@dataclass(frozen=True, slots=True)
class Scored:
    """words: int64 (n, 2); logits: float64 (n,), of the head alone; scores: float64 (n,), what is sorted by."""

    words: Ints
    logits: Floats
    scores: Floats


def nearness(question: str, described: Described, vocabulary: Vocabulary) -> Floats:
    """How much a question adds to the score of each word; float64 (n,), 0 or more.

    Its own words gain, and so do all words of a sentence, by the share of the question that the sentence and, less, its
    neighbours hold. Words of the question weigh as much as they are rare, squared, so that function words say nothing.
    """
    weights: dict[str, float] = {}
    asked = split_words(question)
    looked_at = describe(question, asked, vocabulary)
    for form, rarity in zip(
        (looked_at.forms[kind] for kind in looked_at.kinds.tolist()), looked_at.surprise.tolist(), strict=True
    ):
        weights |= dict.fromkeys(stems_of(form), rarity**2)
    found = np.zeros(len(described.kinds))
    total = sum(weights.values())
    if not total or not len(found):
        return found
    n_sentences = int(described.sentences[-1]) + 1
    covered = np.zeros(n_sentences)
    for stem, weight in weights.items():
        kinds = np.array([stem in stems for stems in described.stems], np.bool_)
        hits = kinds[described.kinds]
        found += hits * (WORD_WEIGHT * weight / max(weights.values()))
        covered[np.unique(described.sentences[hits])] += weight / total
    best = np.maximum(np.append(covered[1:], 0), np.insert(covered[:-1], 0, 0))
    relevance = np.minimum(covered + _NEIGHBOUR * best, 1)
    result: Floats = found + SENTENCE_WEIGHT * relevance[described.sentences]
    return result


def _log_prices(text: str, words: Ints) -> Floats:
    """By the estimate, whatever counts the budget: it is not worth a count per word."""
    before = cumulative_tokens(text)
    prices: Floats = before[words[:, 1]] - before[words[:, 0]]
    return np.log(np.maximum(prices, 1))


def _signs_follow(scores: Floats, signs: Bools) -> Floats:
    """Signs that stand alone are kept after both their neighbours: between words that are gone they mean nothing."""
    if not signs.any():
        return scores
    places = np.arange(len(scores))
    before = np.maximum.accumulate(np.where(signs, -1, places))
    after = np.minimum.accumulate(np.where(signs, len(scores), places)[::-1])[::-1]
    padded = np.append(scores, np.inf)  # nothing after is n, nothing before -1: both the last
    lower = np.minimum(padded[after], padded[before])
    return np.where(signs, np.where(np.isfinite(lower), lower, scores) - _STEPS_APART, scores)


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Short texts together, so that an encoder is busy; about a block of words each."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and size + len(text) > 6 * _BLOCK:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


def _in_blocks(text: str, words: Ints, described: Described, trained: Trained, encode: EncodeWords) -> Floats:
    """The logits of one text that may be long: states are encoded and forgotten block by block."""
    found = np.empty(len(words))
    for start in range(0, len(words), _BLOCK):
        a, b = max(start - HALO, 0), min(start + _BLOCK + HALO, len(words))
        origin, end = int(words[a, 0]), int(words[b - 1, 1])
        states = encode([text[origin:end]], [words[a:b] - origin])[0]
        part = Described(
            described.forms,
            described.kinds[a:b],
            described.rows[a:b],
            described.numbers[a:b],
            described.surprise[a:b],
            described.signs[a:b],
            described.sentences[a:b],
        )
        found[start : start + _BLOCK] = trained.head.logits(part, states)[start - a : start - a + _BLOCK]
    return found
