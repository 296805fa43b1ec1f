"""InfiniRetri: a language model reads a text window by window and keeps the sentences that its question looks at.

What is kept goes in front of the next window, as text, so the model never sees more than a few thousand tokens,
whatever the length of the documents; and what one window shows to be of use is weighed again beside every later one.
No embedding and no index: the cost is one reading of each window, for each question.

Where the model looks is for others to tell (`router/runner/attention.py`); here are the windows, the scores and the
sentences. Source: Ye et al. (2025), "Infinite Retrieval", arXiv 2502.12962, and its package infini-retri 0.0.3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..router.core import Document, Passage
from ..router.errors import ContextTooLong

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Span = tuple[int, int]

_LEAST_WINDOW = 16  # tokens; with room for less, what could be found is not worth a reading


class Attention(Protocol):
    """A causal model that tells where it looks."""

    @property
    def max_tokens(self) -> int:
        """Most ids that it reads at once."""

    def encode(self, text: str) -> tuple[list[int], Ints]:
        """Token ids, and the characters that each stands for: shape (n, 2), neither column descending."""

    def looks(self, ids: Sequence[int], n_rows: int, depth: float = 1.0) -> Floats:
        """Attention of the last n_rows tokens, summed over the heads of the last layer within a share of all layers;
        shape (n_rows, len(ids))."""


class InfiniRetri:
    """A `Retriever` by the attention of a language model.

    count: tokens of a text, for budgets. window_tokens: of the documents, read at a time in whole sentences.
    top_tokens: tokens that are chosen after each window; the sentences that hold one stay. phrase_tokens: width of the
    box over which scores are summed, since an answer is a phrase. depth: the layer whose attention counts, as a share
    of all. The defaults are the package's.
    """

    def __init__(
        self,
        attention: Attention,
        *,
        count: Callable[[str], int],
        window_tokens: int = 1024,
        top_tokens: int = 300,
        phrase_tokens: int = 8,
        depth: float = 1.0,
    ) -> None:
        self.attention = attention
        self.count = count
        self.window_tokens = window_tokens
        self.top_tokens = top_tokens
        self.phrase_tokens = phrase_tokens
        self.depth = depth

    def retrieve(self, question: str, documents: Sequence[Document], *, budget_tokens: int) -> list[Passage]:
        """See `Retriever`. Sentences that follow one another are one passage, with the score of the best of them.

        Raises ContextTooLong where the question leaves the model no room for text.
        """
        if not question.strip() or budget_tokens <= 0:
            return []
        asked, _ = self.attention.encode(f"\n\nQuestion: {question.strip()}\n\nAnswer:")
        room = self.attention.max_tokens - len(asked)
        window = min(self.window_tokens, room // 2)
        if window < _LEAST_WINDOW:
            raise ContextTooLong(
                f"The question has {len(asked)} tokens; the model that retrieves reads {self.attention.max_tokens} at "
                "once. Ask a shorter question, or retrieve by words and embeddings (setting retriever = 'hybrid')."
            )
        border, _ = self.attention.encode("\n\n")  # lest the last word of a document run into the next one's first
        # A sentence that is larger than the budget could never be shown, nor one that is larger than a window be read.
        longest = max(min(window - len(border), budget_tokens), 1)
        found: list[_Scored] = []
        for sentences in _windows(self._sentences(documents, longest, border), window):
            found = self._read([*(kept.sentence for kept in found), *sentences], asked, room - window)
        return self._passages(found, documents, budget_tokens)

    def _sentences(self, documents: Sequence[Document], longest: int, border: Sequence[int]) -> Iterator[_Sentence]:
        for number, document in enumerate(documents):
            ids, offsets = self.attention.encode(document.text)
            ends = [end for _, end in sentences(document.text)]
            # By its last character: a token that begins with the space before it belongs to the word behind.
            last_characters = np.maximum(offsets[:, 1] - 1, offsets[:, 0])
            edges = np.searchsorted(last_characters, [0, *ends]).tolist()
            for (first, last), (start, end) in zip(pairwise(edges), pairwise([0, *ends]), strict=True):
                cuts = [*range(first, last, longest), last] if last > first else []
                places = [start, *(max(start, int(offsets[cut, 0])) for cut in cuts[1:-1]), end]
                for (a, b), (begin, stop) in zip(pairwise(cuts), pairwise(places), strict=False):
                    behind = border if stop == len(document.text) else ()
                    yield _Sentence(number, begin, stop, (*ids[a:b], *behind))

    def _read(self, shown: Sequence[_Sentence], asked: Sequence[int], most_tokens: int) -> list[_Scored]:
        """Of the sentences shown those that the question looks at, in the same order; most_tokens in all."""
        context = [token for sentence in shown for token in sentence.ids]
        looks = self.attention.looks([*context, *asked], len(asked), self.depth)
        scores = token_scores(looks, len(context), self.phrase_tokens)
        owners = np.repeat(np.arange(len(shown)), [len(sentence.ids) for sentence in shown])
        best = np.full(len(shown), -np.inf)
        chosen = np.argsort(-scores, kind="stable")[: self.top_tokens]
        np.maximum.at(best, owners[chosen], scores[chosen])
        kept, left = [], most_tokens
        for number in np.argsort(-best, kind="stable").tolist():
            if best[number] == -np.inf or len(shown[number].ids) > left:
                break
            left -= len(shown[number].ids)
            kept.append(number)
        return [_Scored(shown[number], float(best[number])) for number in sorted(kept)]

    def _passages(self, found: Sequence[_Scored], documents: Sequence[Document], budget: int) -> list[Passage]:
        chosen: list[_Scored] = []
        for scored in sorted(found, key=lambda scored: -scored.score):
            sentence = scored.sentence
            tokens = self.count(documents[sentence.document].text[sentence.start : sentence.end])
            if tokens > budget and chosen:
                break
            if tokens > budget:  # counted otherwise than the model does; a lesser sentence is better than nothing
                continue
            budget -= tokens
            chosen.append(scored)
        chosen.sort(key=lambda scored: (scored.sentence.document, scored.sentence.start))
        borders = [a.sentence.precedes(b.sentence) for a, b in pairwise(chosen)]
        runs = np.cumsum([0, *(not follows for follows in borders)])
        made = []
        for _, run in groupby(zip(runs, chosen, strict=False), key=lambda pair: pair[0]):
            together = [scored for _, scored in run]
            document = documents[together[0].sentence.document]
            start, end = together[0].sentence.start, together[-1].sentence.end
            text = document.text[start:end].rstrip()
            made.append(Passage(document.id, start, start + len(text), text, max(scored.score for scored in together)))
        return sorted(made, key=lambda passage: -passage.score)  # stable: ties stay in the order of the text


@dataclass(frozen=True, slots=True)
class _Sentence:
    """A stretch of document number `document`, with its tokens; at least one."""

    document: int
    start: int
    end: int
    ids: tuple[int, ...]

    def precedes(self, other: _Sentence) -> bool:
        return self.document == other.document and self.end == other.start


@dataclass(frozen=True, slots=True)
class _Scored:
    """score: of its best token, comparable within one reading."""

    sentence: _Sentence
    score: float


def _windows(sentences: Iterator[_Sentence], most_tokens: int) -> Iterator[list[_Sentence]]:
    """Whole sentences, as many as fit, in order."""
    window: list[_Sentence] = []
    tokens = 0
    for sentence in sentences:
        if window and tokens + len(sentence.ids) > most_tokens:
            yield window
            window, tokens = [], 0
        window.append(sentence)
        tokens += len(sentence.ids)
    if window:
        yield window


def token_scores(attention: Floats, n_context: int, phrase_tokens: int = 8) -> Floats:
    """What each token of a context counts to a question.

    attention: shape (q, n_context + q), of the question's tokens to the context and to the question itself, in a prompt
    where nothing stands between the two or behind.
    Every row is summed over a box of phrase_tokens around each column ("same" padding with zeros), weighted by the
    square of the attention that its token gives to the question, and the rows are added. Returns shape (n_context,).
    Source: arXiv 2502.12962; infini-retri 0.0.3 takes the weights of the first window for all, here each has its own.
    """
    to_context, to_question = attention[:, :n_context], attention[:, n_context:]
    weighted = (to_question.sum(axis=1) ** 2) @ to_context  # adding rows first and boxing once comes to the same
    # Of an even box the larger half is before: columns i - 4 to i + 3 for a width of 8.
    sums = np.concatenate([[0.0], np.cumsum(weighted)])
    places = np.arange(n_context)
    first = np.maximum(places - phrase_tokens // 2, 0)
    last = np.minimum(places + (phrase_tokens - 1) // 2 + 1, n_context)
    found: Floats = sums[last] - sums[first]
    return found


_SENTENCE_END = re.compile(r"[.!?…]['\"”’»)\]]*\s+|[。！？।]['\"”’»」』）]*\s*|\n+\s*")


def sentences(text: str) -> list[Span]:
    """The sentences of a text, which tile it: white space belongs to the sentence before it; lines end sentences."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    if not ends or ends[-1] < len(text):
        ends.append(len(text))
    return [(start, end) for start, end in pairwise([0, *ends]) if end > start]
