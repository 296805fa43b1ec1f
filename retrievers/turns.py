"""Turns: what is known of chunks that belong to conversations, beyond what is known of any chunk.

A turn is too short to be found by its own words: it answers another, and says `it`. So each is also found by the words
of the turns around it, by its speaker and by its time; and in a prompt it takes more than its text. Where conversations
begin and end is left to `router/conversations.py`, scores and budgets to `corpus.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ..router.conversations import belong_together, label
from ..router.core import Document
from ..router.tokens import cumulative_tokens
from .bm25 import BM25
from .chunks import Chunk

Ints = npt.NDArray[np.int64]

NUMBER_TOKENS = 3  # `[12] ` before turns that are shown together

_TURNS_AROUND = 2


@dataclass(frozen=True, eq=False, slots=True)
class Turns:
    """The turns among the chunks of a corpus; other chunks stand for themselves and take nothing more.

    around: the first and the last of the chunks by whose words each is found.
    bm25: an index of the same chunks by the words of all that is around each.
    continues: whether a chunk begins a turn that follows the turn before it; shape (n_chunks,).
    name_tokens: to name the speaker, and to begin lines; shape (n_chunks,), 0 only for what is no turn.
    scenes: the first chunk of each stretch that is read as one for its meaning, ascending; shape (n_scenes,).
    section, section_tokens: chunks with the same number stand together and have one time, which takes so many tokens to
    say, once; shapes (n_chunks,), (n_sections,).
    """

    around: tuple[tuple[int, int], ...]
    bm25: BM25
    continues: npt.NDArray[np.bool_]
    name_tokens: Ints
    scenes: Ints
    section: Ints
    section_tokens: Ints

    @classmethod
    def build(
        cls,
        documents: Sequence[Document],
        chunks: Sequence[Chunk],
        tokens: Ints,
        indexed: Sequence[Sequence[str]],
        chunk_tokens: int,
    ) -> Turns:
        """tokens, indexed: of each chunk, and its terms. chunk_tokens: what makes a chunk, and what is around one."""
        owners = [documents[chunk.document] for chunk in chunks]
        starts = [chunk.start == 0 for chunk in chunks]
        continues = [False] * len(chunks)
        sections = [True] * len(chunks)
        for i in range(1, len(chunks)):
            continues[i] = starts[i] and belong_together(owners[i - 1], owners[i])
            sections[i] = starts[i] and not (continues[i] and owners[i].time == owners[i - 1].time)
        linked = [continued or not start for continued, start in zip(continues, starts, strict=True)]
        around = tuple(
            _around(i, tokens, linked, chunk_tokens) if owner.speaker else (i, i) for i, owner in enumerate(owners)
        )
        lines = [
            name_tokens(owner) + owner.text.count("\n", chunk.start, chunk.end) if owner.speaker else 0
            for chunk, owner in zip(chunks, owners, strict=True)
        ]
        times = [time_tokens(owner) for owner, begins in zip(owners, sections, strict=True) if begins]
        return cls(
            around=around,
            bm25=BM25([term for near in indexed[first : last + 1] for term in near] for first, last in around),
            continues=np.array(continues, np.bool_),
            name_tokens=np.array(lines, np.int64),
            scenes=np.array(_scenes(tokens + np.array(lines, np.int64), linked, chunk_tokens), np.int64),
            section=np.cumsum(np.array(sections, np.int64)) - 1,
            section_tokens=np.array(times, np.int64),
        )


def tokens_around(document: Document) -> int:
    """Most tokens that a turn of one line takes beyond its text; 0 for other documents."""
    return NUMBER_TOKENS + name_tokens(document) + time_tokens(document) if document.speaker else 0


def name_tokens(turn: Document) -> int:
    return _tokens_of(label(turn, turn.time) + "\n")


def time_tokens(turn: Document) -> int:
    return _tokens_of(label(turn)) - _tokens_of(label(turn, turn.time)) + 1 if turn.speaker and turn.time else 0


@lru_cache(maxsize=4096)  # the same few speakers, thousands of times
def _tokens_of(text: str) -> int:
    return math.ceil(float(cumulative_tokens(text)[-1]) - 1e-6)


def _scenes(tokens: Ints, linked: Sequence[bool], most_tokens: int) -> list[int]:
    """Where stretches begin that together make no more than most_tokens: what a chunk is in other texts."""
    starts: list[int] = []
    left = 0
    for chunk, size in enumerate(tokens.tolist()):
        if not linked[chunk] or size > left:
            starts.append(chunk)
            left = most_tokens
        left -= size
    return starts


def _around(chunk: int, tokens: Ints, linked: Sequence[bool], most_tokens: int) -> tuple[int, int]:
    """The first and last of the chunks next to this one that together make no more than most_tokens, nearest first.

    linked: whether each chunk goes on where the one before it ends.
    """
    first = last = chunk
    left = most_tokens - int(tokens[chunk])
    for distance in range(1, _TURNS_AROUND + 1):
        before, after = chunk - distance, chunk + distance
        if first == before + 1 and linked[first] and tokens[before] <= left:
            first, left = before, left - int(tokens[before])
        if last == after - 1 and after < len(linked) and linked[after] and tokens[after] <= left:
            last, left = after, left - int(tokens[after])
    return first, last
