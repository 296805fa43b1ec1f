"""LongLLMLingua: passages that answer the question stay, others go; what stays is compressed, the best of it least.

Texts are cut into passages, a scorer ranks them (`relevance.py`), the best are kept until they hold `coarse_factor`
times the budget, and any other compressor shortens these to the budget, each at a rate that falls with its rank.
Without an inner compressor whole passages are kept. How words are chosen within a passage is left to the inner one.

What is kept is of the source, in its order, text by text. Protected stretches of passages that are left out as a whole
are gone with them; `Compressed.broken` names those of the passages that stay.

Source: Jiang et al. (2024), "LongLLMLingua", sections 4.1 to 4.3. The paper's own relevance is `LogProbScorer`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from ..router.errors import ConfigError
from .aiming import aimed
from .compression import Compressed, Compressor, Count, Floats, Ints, Span, render, shares, whole
from .relevance import LexicalScorer, Scorer

Order = Literal["text", "best_first", "best_at_ends"]
Split = Callable[[str], Sequence[Span]]

_BANDS = 8  # passages of like rank are compressed in one call of the inner compressor, which may work in batches


@dataclass(frozen=True, slots=True)
class Ranked:
    """Compressed texts, and in what order to show them.

    results: one for each text, in the order of the texts. order: numbers of the texts of which something is kept, in
    the order to show them. relevance: of each text, that of its best passage; comparable within one call.
    """

    results: list[Compressed]
    order: tuple[int, ...]
    relevance: tuple[float, ...]


class QuestionAware:
    """Ranks passages by a question, then compresses what is worth it.

    score: ranks passages; BM25 over their words where none is given. inner: shortens passages; None keeps them whole,
    and leaves out those that are larger than the budget.
    split: text → its passages as spans, ascending and not overlapping; what is in none of them is left out.
    coarse_factor: passages are kept until they hold so many times the budget, >= 1. 1 is ranking alone; the larger,
    the more passages stay, and the less of each.
    spread: the rate of the best passage is so much higher, and of the last so much lower, than the mean; [0, 1].
    Both were chosen in benchmarks/question_aware.py; the paper's, 2 and 0.3, keep fewer pieces of evidence whole.
    order: how `Ranked.order` goes; models attend to the beginning and the end of a prompt.
    Without a question the inner compressor alone does the work.
    """

    def __init__(
        self,
        score: Scorer | None = None,
        inner: Compressor | None = None,
        *,
        count: Count,
        split: Split | None = None,
        coarse_factor: float = 1.25,
        spread: float = 0.6,
        order: Order = "text",
    ) -> None:
        if coarse_factor < 1:
            raise ConfigError(f"coarse_factor is {coarse_factor}; it must be 1 or more.")
        if not 0 <= spread <= 1:
            raise ConfigError(f"spread is {spread}; it must be in [0, 1].")
        if order not in ("text", "best_first", "best_at_ends"):
            raise ConfigError(f"Unknown order {order!r}. Known: text, best_first, best_at_ends.")
        self.score: Scorer = score or LexicalScorer()
        self.inner = inner
        self.count = count
        self.split: Split = split or paragraphs
        self.coarse_factor = coarse_factor
        self.spread = spread
        self.order: Order = order

    def compress(
        self,
        texts: Sequence[str],
        *,
        question: str = "",
        budget_tokens: int | None = None,
        keep_rate: float | None = None,
    ) -> list[Compressed]:
        """See `compression.Compressor`. A total budget goes where the answers are; a rate holds for every text."""
        return self.rank_and_compress(
            texts, question=question, budget_tokens=budget_tokens, keep_rate=keep_rate
        ).results

    def rank_and_compress(
        self,
        texts: Sequence[str],
        *,
        question: str = "",
        budget_tokens: int | None = None,
        keep_rate: float | None = None,
    ) -> Ranked:
        """`compress`, with the order in which to show the results."""
        tokens = [self.count(text) if text else 0 for text in texts]
        limits = shares(tokens, budget_tokens=budget_tokens, keep_rate=keep_rate)
        passages = [passage for number, text in enumerate(texts) for passage in self._cut(number, text)]
        scores = np.zeros(len(passages))
        if question.strip() and passages:
            found = self.score(question, [texts[p.text][p.start : p.end] for p in passages])
            scores = np.nan_to_num(np.asarray(found, np.float64), nan=-np.inf, neginf=-np.inf)
        owners = np.array([passage.text for passage in passages], np.int64)
        relevance = np.full(len(texts), -np.inf)
        np.maximum.at(relevance, owners, scores)
        if budget_tokens is not None:
            everything = _Group(list(texts), tokens, passages, scores)
            results = self._together(everything, question, min(budget_tokens, sum(tokens)))
        else:
            edges = np.searchsorted(owners, np.arange(len(texts) + 1)).tolist()  # passages come by text
            results = []
            for number, (first, last) in enumerate(pairwise(edges)):
                own = [replace(passage, text=0) for passage in passages[first:last]]
                group = _Group([texts[number]], [tokens[number]], own, scores[first:last])
                results += self._together(group, question, limits[number])
        order = tuple(number for number in _ordered(relevance.tolist(), self.order) if results[number].text)
        return Ranked(results, order, tuple(relevance.tolist()))

    def _cut(self, number: int, text: str) -> Iterator[_Passage]:
        place = 0
        for start, end in self.split(text):
            if not place <= start <= end <= len(text):
                raise ConfigError(
                    f"split gave the passage {start} to {end} after {place} in a text of {len(text)} characters; "
                    "passages must ascend and not overlap."
                )
            if text[start:end].strip():
                yield _Passage(number, start, end, self.count(text[start:end]))
            place = end

    def _together(self, group: _Group, question: str, budget: int) -> list[Compressed]:
        """Several texts under one budget."""
        if sum(group.tokens) <= budget:
            return [whole(text, before) for text, before in zip(group.texts, group.tokens, strict=True)]
        if self.inner is not None and (not len(group.scores) or group.scores.max() == group.scores.min()):
            return self.inner.compress(group.texts, question=question, budget_tokens=budget)
        order = np.argsort(-group.scores, kind="stable")
        return aimed(lambda aim: self._selected(group, order, question, aim), budget, group.tokens)

    def _selected(self, group: _Group, order: Ints, question: str, aim: float) -> list[Compressed]:
        costs = np.array([passage.tokens for passage in group.passages], np.float64)
        chosen = _first_that_fit(order, costs, aim * (self.coarse_factor if self.inner else 1.0))
        if self.inner is not None and (not chosen or chosen[0] != order[0]):
            chosen = order[:1].tolist()  # the best is too long, but shortened it says more than worse ones whole
        spans: list[list[Span]] = [[] for _ in group.texts]
        broken: list[list[Span]] = [[] for _ in group.texts]
        if self.inner is None or not chosen:
            parts = [(n, whole(group.shown(n), group.passages[n].tokens)) for n in chosen]
        else:
            rates = falling_rates(costs[chosen], aim, self.spread)
            parts = list(self._compressed(self.inner, group, chosen, rates, question))
        for number, part in parts:
            passage = group.passages[number]
            spans[passage.text] += [(a + passage.start, b + passage.start) for a, b in part.kept]
            broken[passage.text] += [(a + passage.start, b + passage.start) for a, b in part.broken]
        return [
            _written(text, sorted(own), sorted(lost), before, self.count)
            for text, own, lost, before in zip(group.texts, spans, broken, group.tokens, strict=True)
        ]

    def _compressed(
        self, inner: Compressor, group: _Group, chosen: Sequence[int], rates: Floats, question: str
    ) -> Iterator[tuple[int, Compressed]]:
        """The chosen passages, best first, in bands of one budget each."""
        for band in np.array_split(np.arange(len(chosen)), min(_BANDS, len(chosen))):
            numbers = [chosen[place] for place in band]
            costs = np.array([group.passages[number].tokens for number in numbers])
            limit = int(rates[band] @ costs + 0.5)
            if limit > 0:
                shown = [group.shown(number) for number in numbers]
                yield from zip(numbers, inner.compress(shown, question=question, budget_tokens=limit), strict=True)


@dataclass(frozen=True, slots=True)
class _Passage:
    """In text number `text`."""

    text: int
    start: int
    end: int
    tokens: int


@dataclass(frozen=True, slots=True)
class _Group:
    """Texts that share a budget, with their passages and the scores of these."""

    texts: list[str]
    tokens: list[int]
    passages: list[_Passage]
    scores: Floats

    def shown(self, number: int) -> str:
        passage = self.passages[number]
        return self.texts[passage.text][passage.start : passage.end]


def _first_that_fit(order: Ints, costs: Floats, room: float) -> list[int]:
    """Numbers in the given order, without those that do not fit beside the ones before."""
    chosen = []
    for number in order.tolist():
        if costs[number] <= room:
            chosen.append(number)
            room -= costs[number]
    return chosen


def falling_rates(tokens: Floats, target: float, spread: float) -> Floats:
    """The rate of each passage: best first, `spread` above the mean rate for the best, as much below for the last.

    tokens: shape (n,), of the passages, best first. Returns shape (n,), in [0, 1], with rates @ tokens == target where
    the tokens suffice, for all are raised or lowered by as much as clipping to [0, 1] takes away or adds.
    Source: LongLLMLingua, section 4.3, with the rank running from 0 to n - 1 over n - 1, so that the mean is kept.
    """
    if float(tokens.sum()) <= target:
        return np.ones(len(tokens))
    slope = (1 - 2 * np.arange(len(tokens)) / max(len(tokens) - 1, 1)) * spread * (len(tokens) > 1)
    low, high = -2.0, 2.0
    for _ in range(50):
        middle = (low + high) / 2
        fits = float(np.clip(slope + middle, 0, 1) @ tokens) <= target
        low, high = (middle, high) if fits else (low, middle)
    rates: Floats = np.clip(slope + low, 0, 1)
    return rates


def _written(text: str, spans: Sequence[Span], broken: Sequence[Span], before: int, count: Count) -> Compressed:
    shown, kept, placed = render(text, spans)
    after = count(shown) if shown else 0
    if after >= before:
        return whole(text, before)
    starts = [start for start, _ in kept]

    def held(span: Span) -> bool:
        place = bisect_right(starts, span[0]) - 1
        return place >= 0 and kept[place][1] >= span[1]

    # White space that the inner compressor left out at the edge of a passage is back where neighbours were joined.
    return Compressed(shown, kept, placed, before, after, tuple(span for span in broken if not held(span)))


def _ordered(relevance: Sequence[float], order: Order) -> list[int]:
    """Numbers of texts in the order to show them; of equal ones the earlier is the better."""
    if order == "text":
        return list(range(len(relevance)))
    ranked = sorted(range(len(relevance)), key=lambda number: (-relevance[number], number))
    return ranked if order == "best_first" else [*ranked[::2], *ranked[1::2][::-1]]


# ---- cutting ---------------------------------------------------------------------------------------------------------

_BREAK = re.compile(r"\n[ \t\r]*\n\s*")
_SENTENCE = re.compile(r"(?<=[.!?])['\")\]]*\s+|(?<=[。！？])|\n+")


def paragraphs(text: str, characters: int = 600) -> list[Span]:
    """The paragraphs of a text; short neighbours together, up to about so many characters, long ones cut by sentences.

    A sentence that is longer stays whole up to three times the size.
    """
    found: list[Span] = []
    for start, end in _between(text, 0, len(text), _BREAK):
        # A paragraph of its own begins a passage, unless both together are short.
        first = True
        for a, b in _pieces(text, start, end, characters):
            if (
                found
                and b - found[-1][0] <= characters
                and not (first and found[-1][1] - found[-1][0] > characters // 2)
            ):
                found[-1] = (found[-1][0], b)
            else:
                found.append((a, b))
            first = False
    return found


def _pieces(text: str, start: int, end: int, characters: int) -> Iterator[Span]:
    if end - start <= characters:
        yield start, end
        return
    for a, b in _between(text, start, end, _SENTENCE):
        for place in range(a, b, 3 * characters):
            yield place, min(place + 3 * characters, b)


def _between(text: str, start: int, end: int, separator: re.Pattern[str]) -> Iterator[Span]:
    """What stands between the matches of a separator, where that is more than white space."""
    edges = [start, *(edge for match in separator.finditer(text, start, end) for edge in match.span()), end]
    for a, b in list(pairwise(edges))[::2]:
        if text[a:b].strip():
            yield a, b
