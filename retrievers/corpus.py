"""A corpus: documents in the form in which they can be searched, and the passages that a search brings to light.

Joins `chunks.py`, `terms.py` and `bm25.py`, and remembers recent corpora, so that deciding, retrieving and the next
question about the same documents index them once. Embedding chunks and fusing rankings are left to `hybrid.py`.

Turns of a conversation are documents too short to be found by their own words alone: they are also found by those of
the turns around them, by their speaker and by their time, and a hit brings its neighbours along.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
import numpy.typing as npt

from ..router.conversations import joined, label
from ..router.core import Document, Evidence, Passage
from .bm25 import BM25, Floats, top
from .chunks import Chunk, measured
from .terms import content_terms, terms
from .turns import NUMBER_TOKENS, Ints, Turns, tokens_around

CHUNK_TOKENS = 200

# How much of its neighbours' scores a chunk gets: an answer often stands beside the words of its question. Measured on
# contracts, conversations and long articles: recall@5 +1.3 points.
_NEIGHBOUR_WEIGHT = 0.1

# The start of a document that stands for its title, in UTF-8 bytes because a Chinese character says as much as three
# letters. Of several documents, every chunk is found by the title and the id of its own as well. Measured on reports
# that name their company once: recall@10 +31 points (Chinese), +6 (English); elsewhere nothing lost on average.
_TITLE_BYTES = 40

# What the words around a turn count, next to its own. Evidence of LoCoMo shown within 1,000 tokens: 76 % without them,
# 81 % at a weight of 1, 82 % at 2 and at 3; by the weight of neighbours that other chunks have, 77 %.
_AROUND_WEIGHT = 2.0

# Share of a budget kept for the neighbours of hits. Measured at 1,000 to 8,000 tokens: up to 0.4 points more evidence
# shown than by hits alone; a share of 0.3 loses two points at 1,000.
_NEIGHBOUR_SHARE = 0.1


@dataclass(frozen=True, eq=False, slots=True)
class Corpus:
    """Documents cut into chunks and indexed. Safe to share between threads.

    chunks: in document order, tiling every document.
    tokens: estimated tokens of each chunk, rounded up; of a turn's with the name of its speaker; shape (n_chunks,).
    follows: whether a chunk continues the document of the chunk before it, or its conversation; shape (n_chunks,).
    turns: what else is known of chunks of conversations; None where there are none.
    """

    documents: tuple[Document, ...]
    chunks: tuple[Chunk, ...]
    tokens: npt.NDArray[np.int64]
    follows: npt.NDArray[np.bool_]
    bm25: BM25
    turns: Turns | None = None

    @classmethod
    def build(cls, documents: Sequence[Document], chunk_tokens: int = CHUNK_TOKENS) -> Corpus:
        room = [max(1, chunk_tokens - tokens_around(document)) for document in documents]
        pieces = [piece for i, document in enumerate(documents) for piece in measured(document, i, room[i])]
        titles = [_title_terms(document) if len(documents) > 1 else set() for document in documents]
        indexed = []
        for chunk, _ in pieces:
            found = terms(documents[chunk.document].text[chunk.start : chunk.end])
            indexed.append([*found, *titles[chunk.document].difference(found)])
        chunks = tuple(chunk for chunk, _ in pieces)
        tokens = np.array([max(1, math.ceil(tokens - 1e-6)) for _, tokens in pieces], np.int64)
        follows = np.array([chunk.start > 0 for chunk in chunks], np.bool_)
        turns = None
        if any(document.speaker for document in documents):
            turns = Turns.build(documents, chunks, tokens, indexed, chunk_tokens)
            tokens, follows = tokens + turns.name_tokens, follows | turns.continues
        return cls(tuple(documents), chunks, tokens, follows, BM25(indexed), turns)

    def text_of(self, chunk: int) -> str:
        return self.passage(chunk).text

    @property
    def scenes(self) -> Ints:
        """The first chunk of each stretch that is embedded as one: of every chunk, but for short turns."""
        return np.arange(len(self.chunks)) if self.turns is None else self.turns.scenes

    def text_of_scene(self, scene: int) -> str:
        """The text that is embedded for a stretch of `scenes`."""
        if self.turns is None:
            return self.text_of(scene)
        bounds = [*self.scenes[scene : scene + 2].tolist(), len(self.chunks)]
        lines = []
        for chunk in range(bounds[0], bounds[1]):
            document = self.documents[self.chunks[chunk].document]
            speaker = label(document, document.time) if document.speaker else ""
            lines.append(speaker + self.text_of(chunk))
        return "\n".join(lines)

    def passage(self, chunk: int, score: float = 0.0) -> Passage:
        return self.span(chunk, chunk, score)

    def span(self, first: int, last: int, score: float = 0.0) -> Passage:
        """Chunks first to last, of one document, as one passage."""
        document = self.documents[self.chunks[first].document]
        start, end = self.chunks[first].start, self.chunks[last].end
        return Passage(document.id, start, end, document.text[start:end], score)

    def same_text(self, chunk: int, other: int) -> bool:
        """Whether other is a chunk, and all from the one to the other are of one document or conversation."""
        return 0 <= other < len(self.chunks) and bool(self.follows[min(chunk, other) + 1 : max(chunk, other) + 1].all())

    def scores(self, question: str) -> Floats:
        """How well each chunk matches a question, with a little help from its neighbours; shape (n_chunks,), >= 0."""
        wanted = terms(question)
        alone = self.bm25.scores(wanted)
        if self.turns is not None:
            return alone + np.float32(_AROUND_WEIGHT) * self.turns.bm25.scores(wanted)
        help_of_one = _NEIGHBOUR_WEIGHT * alone
        scores = alone.copy()
        scores[1:] += np.where(self.follows[1:], help_of_one[:-1], 0)
        scores[:-1] += np.where(self.follows[1:], help_of_one[1:], 0)
        return scores

    def ranked(self, question: str, k: int) -> list[tuple[int, float]]:
        """The k chunks that match best, best first, with their scores; fewer where fewer match at all."""
        scores = self.scores(question)
        return [(int(chunk), float(scores[chunk])) for chunk in top(scores, k) if scores[chunk] > 0]

    def evidence(self, question: str) -> Evidence | None:
        """How findable an answer is; None where the question has no terms or the documents no text."""
        wanted = content_terms(question)
        if not wanted or not self.chunks:
            return None
        scores = self.bm25.scores(wanted)
        order = top(scores, 20)
        matching = order[:5][scores[order[:5]] > 0]
        best, second = [*scores[order[:2]].tolist(), 0.0][:2]
        idf = np.array([self.bm25.idf(term) for term in wanted])
        holders = [self.bm25.chunks_with(term) for term in wanted]
        anywhere = np.array([len(chunks) > 0 for chunks in holders])
        in_best = np.array([order[0] in chunks for chunks in holders])
        ends = np.cumsum(self.tokens)
        middles = (ends - self.tokens / 2) / ends[-1]
        return Evidence(
            coverage=float(np.average(anywhere, weights=idf)),
            top_coverage=float(np.average(in_best, weights=idf)),
            top_score=best,
            margin=(best - second) / best if best > 0 else 0.0,
            entropy=_relative_entropy(scores[order]),
            spread=float(np.std(middles[matching])) if len(matching) else 0.0,
        )


def _title_terms(document: Document) -> set[str]:
    if document.speaker:  # its number and its first words say nothing of what it is about
        return {*terms(document.speaker), *terms(document.time)}
    start = document.text.lstrip()[:_TITLE_BYTES].encode("utf-8", "ignore")[:_TITLE_BYTES].decode("utf-8", "ignore")
    first_line = start.partition("\n")[0]
    return {*terms(document.id), *terms(first_line)}


def _relative_entropy(scores: Floats) -> float:
    """Entropy of softmax(scores) over its maximum, log n; in [0, 1], and 0 for a single score."""
    if len(scores) < 2:
        return 0.0
    weights = np.exp(scores.astype(np.float64) - scores.max())
    shares = weights / weights.sum()
    return float(min(1.0, -np.sum(shares * np.log(np.maximum(shares, 1e-300))) / math.log(len(scores))))


def passages(
    corpus: Corpus, ranked: Sequence[tuple[int, float]], budget_tokens: int, neighbours: int = 1
) -> list[Passage]:
    """The passages that ranked chunks make, best first, at most budget_tokens in total (estimated).

    ranked: chunks with their scores, best first, each once.
    neighbours: how many chunks to either side of a hit to add, since answers run on; they get a share of the budget,
    and what they leave goes to further hits. Chunks that touch become one passage, with the score of the best.
    Source of the neighbours: the contiguity buffer of EM-LLM (Fountas et al., 2024).
    """
    scores = dict(ranked)
    chosen: set[int] = set()
    sections: set[int] = set()
    left = budget_tokens

    def cost(chunk: int) -> int:
        """Tokens that a chunk adds to those chosen."""
        tokens, turns = int(corpus.tokens[chunk]), corpus.turns
        if turns is None or not turns.name_tokens[chunk]:
            return tokens
        near = any(other in chosen and corpus.same_text(chunk, other) for other in (chunk - 1, chunk + 1))
        section = int(turns.section[chunk])
        tokens += 0 if section in sections else int(turns.section_tokens[section])
        return tokens if near else tokens + NUMBER_TOKENS

    def take(chunk: int, spare: float = 0) -> bool:
        nonlocal left
        tokens = cost(chunk)
        if tokens > left - spare:
            return False
        chosen.add(chunk)
        if corpus.turns is not None:
            sections.add(int(corpus.turns.section[chunk]))
        left -= tokens
        return True

    def take_hits(spare: float) -> None:
        for chunk in scores:
            # What does not fit ends the list, lest small change be filled with chunks of no worth; but the first hit
            # may use all there is, and one that is larger than the budget is passed over.
            if chunk not in chosen and not take(chunk, spare if chosen else 0) and chosen:
                return

    take_hits(_NEIGHBOUR_SHARE * budget_tokens if neighbours else 0)
    hits = [chunk for chunk in scores if chunk in chosen]
    for distance in range(1, neighbours + 1):
        for hit in hits:
            for side in (-1, 1):
                chunk = hit + side * distance
                if chunk not in chosen and chunk - side in chosen and corpus.same_text(hit, chunk):
                    take(chunk)
    take_hits(0)

    together: list[list[int]] = []
    for chunk in sorted(chosen):
        if together and together[-1][-1] == chunk - 1 and corpus.chunks[chunk].start > 0:
            together[-1].append(chunk)
        else:
            together.append([chunk])
    merged = [
        corpus.span(run[0], run[-1], max((scores[chunk] for chunk in run if chunk in scores), default=0.0))
        for run in together
    ]
    return sorted(merged, key=lambda passage: -passage.score)  # stable: ties stay in the order of the text


class RecentCorpora:
    """Keeps the corpora used last, up to a number of characters in all, and always the very last.

    Documents are compared whole, not by a digest: Python remembers the hash of a string, so asking again about the same
    objects costs microseconds and about an equal copy one pass over its text. Two threads that ask for the same new
    corpus at once both build it.
    """

    def __init__(self, max_characters: int) -> None:
        self._max_characters = max_characters
        self._characters = 0
        self._corpora: OrderedDict[tuple[tuple[Document, ...], int], Corpus] = OrderedDict()
        self._lock = Lock()

    def get(self, documents: Sequence[Document], chunk_tokens: int) -> Corpus:
        key = (tuple(documents), chunk_tokens)
        with self._lock:
            if key in self._corpora:
                self._corpora.move_to_end(key)
                return self._corpora[key]
        corpus = Corpus.build(documents, chunk_tokens)
        with self._lock:
            if key not in self._corpora:
                self._corpora[key] = corpus
                self._characters += _characters(corpus)
            while self._characters > self._max_characters and len(self._corpora) > 1:
                self._characters -= _characters(self._corpora.popitem(last=False)[1])
        return corpus


def _characters(corpus: Corpus) -> int:
    return sum(len(document.text) for document in corpus.documents)


_recent = RecentCorpora(max_characters=20_000_000)  # some forty documents of 128,000 tokens; about 100 MB with indexes


def corpus_of(documents: Sequence[Document], chunk_tokens: int = CHUNK_TOKENS) -> Corpus:
    """The corpus of these documents, built now or remembered."""
    return _recent.get(documents, chunk_tokens)


@dataclass(frozen=True, slots=True)
class BM25Retriever:
    """Retrieval by words alone: no model, no download. A `Retriever` and an `EvidenceSource`."""

    chunk_tokens: int = CHUNK_TOKENS

    def retrieve(self, question: str, documents: Sequence[Document], *, budget_tokens: int) -> list[Passage]:
        corpus = corpus_of(documents, min(self.chunk_tokens, budget_tokens))  # so that one chunk always fits
        return passages(corpus, corpus.ranked(question, k=budget_tokens), budget_tokens)  # a chunk is a token at least

    def evidence(self, question: str, documents: Sequence[Document]) -> Evidence | None:
        # Of a conversation as one text: what evidence means to a policy does not depend on how turns are indexed.
        return corpus_of(joined(documents), self.chunk_tokens).evidence(question)
