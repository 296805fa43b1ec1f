"""Sentences that a model copied out of what it was shown, checked: only what stands there remains, in its own words."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from ..core import Document, Passage
from ..prompts import finds_nothing
from .quotes import MIN_ALIGNMENT, Found, Source

_BETWEEN = "\n\n"  # between the passages, so that a copy of two neighbours is found too

_BULLET = re.compile(r"^(?:[-*+•–>]\s+|>)+")
_NUMBER = re.compile(r"^\[(\d{1,4})\]\s*[:.-]?\s*|^document\s*\[?(\d{1,4})\]?\s*[:.)-]\s*", re.IGNORECASE)
_SOURCE_NAMED_LAST = re.compile(r"\s*[\[(](?:document\s*)?\d{1,4}[\])][.\s]*$", re.IGNORECASE)
_ENUMERATED = re.compile(r"^\(?\d{1,3}[.)]\s+")
_SPEAKER = re.compile(r"^[^:\n\"“]{1,60}:\s+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")


@dataclass(frozen=True, slots=True)
class Copied:
    """What remains of a list of copies.

    passages: in the order of the list, in the source's words.
    verbatim, repaired, dropped: lines that stood there, that nearly did, and that did not.
    """

    passages: tuple[Passage, ...] = ()
    verbatim: int = 0
    repaired: int = 0
    dropped: int = 0


def checked(reply: str, shown: Sequence[Passage]) -> Copied:
    """Look up every line of a reply in what the model was shown.

    A line's number of a document, counted from 1 in `shown`, is where it is looked up first; it may be missing or
    wrong. Lines that say that there is nothing are neither found nor dropped.
    """
    source = _Shown(shown)
    passages: list[Passage] = []
    verbatim = repaired = dropped = 0
    for line in reply.splitlines():
        if not re.search(r"\w", line) or line.strip().startswith("```") or finds_nothing(line):
            continue
        found = source.find(line)
        passages += found.passages
        verbatim, repaired, dropped = verbatim + found.verbatim, repaired + found.repaired, dropped + found.dropped
    return Copied(tuple(passages), verbatim, repaired, dropped)


def in_order(passages: Sequence[Passage], documents: Sequence[Document]) -> tuple[Passage, ...]:
    """Each stretch of text once, in document order; those with nothing but white space between them are one."""
    sources = {document.id: document for document in documents}
    position = {document.id: place for place, document in enumerate(documents)}
    merged: list[Passage] = []
    for passage in sorted(passages, key=lambda passage: (position[passage.document_id], passage.start, -passage.end)):
        text = sources[passage.document_id].text
        last = merged[-1] if merged else None
        if last is None or last.document_id != passage.document_id or text[last.end : passage.start].strip():
            merged.append(passage)
        elif passage.end > last.end:
            score = min(last.score, passage.score)
            merged[-1] = Passage(last.document_id, last.start, passage.end, text[last.start : passage.end], score)
    return tuple(merged)


class _Shown:
    """What a model was shown, as one text to look lines up in."""

    def __init__(self, shown: Sequence[Passage]) -> None:
        self._shown = shown
        self._starts = list(accumulate((len(passage.text) + len(_BETWEEN) for passage in shown[:-1]), initial=0))
        self._all = Source(_BETWEEN.join(passage.text for passage in shown))
        self._single: dict[int, Source] = {}

    def find(self, line: str) -> Copied:
        number, wordings = _read(line)
        if found := self._first(number, wordings) or self._whole_line(number, wordings[0]):
            exact = found.alignment == 1.0
            return Copied(tuple(self._passages(found)), verbatim=int(exact), repaired=int(not exact))
        # Several sentences on a line, from places apart.
        sentences = _SENTENCE_END.split(wordings[-1])
        singly = [self._first(number, (sentence,)) for sentence in sentences] if len(sentences) > 1 else []
        passages = tuple(passage for found in singly if found for passage in self._passages(found))
        return Copied(passages, repaired=int(bool(passages)), dropped=int(not passages))

    def _first(self, number: int | None, wordings: Sequence[str]) -> Found | None:
        """Word for word before nearly so, and where the line says before anywhere."""
        for min_alignment in (1.0, MIN_ALIGNMENT):
            for wording in wordings:
                found = self._in_document(number, wording, min_alignment) if number else None
                if found := found or self._all.find(wording, min_alignment=min_alignment):
                    return found
        return None

    def _in_document(self, number: int, wording: str, min_alignment: float) -> Found | None:
        if not 1 <= number <= len(self._shown) or len(self._shown) == 1:
            return None
        source = self._single.setdefault(number, Source(self._shown[number - 1].text))
        found = source.find(wording, min_alignment=min_alignment)
        start = self._starts[number - 1]
        return Found(start + found.start, start + found.end, found.alignment) if found else None

    def _whole_line(self, number: int | None, wording: str) -> Found | None:
        """Rows of a table and lines of code may have too few words to be looked up, but be the only line like this."""
        places = self._lines.get(_bare(wording), [])
        if number:
            places = [place for place in places if bisect_right(self._starts, place[0]) == number] or places
        return Found(*places[0], 1.0) if len(places) == 1 else None

    @cached_property
    def _lines(self) -> dict[str, list[tuple[int, int]]]:
        """Where each line of the text stands, without what may be written around it."""
        lines: dict[str, list[tuple[int, int]]] = defaultdict(list)
        start = 0
        for line in self._all.text.splitlines(keepends=True):
            if words := line.strip():
                begin = start + line.index(words)
                lines[_bare(words)].append((begin, begin + len(words)))
            start += len(line)
        return dict(lines)

    def _passages(self, found: Found) -> Iterator[Passage]:
        """Of each passage the part that was found."""
        for place in range(bisect_right(self._starts, found.start) - 1, len(self._shown)):
            passage, base = self._shown[place], self._starts[place]
            if base >= found.end:
                return
            start, end = max(0, found.start - base), min(len(passage.text), found.end - base)
            text = passage.text[start:end]
            if text.strip():
                yield Passage(passage.document_id, passage.start + start, passage.start + end, text, found.alignment)


def _bare(line: str) -> str:
    return " ".join(_BULLET.sub("", line.strip()).split())


def _read(line: str) -> tuple[int | None, tuple[str, ...]]:
    """The document's number, where a line has one, and what may have been copied, likeliest first.

    What looks like an addition to the sentence (its number in a list, who said it) may be part of it.
    """
    rest = _BULLET.sub("", line.strip())
    number = _NUMBER.match(rest)
    if number:
        rest = rest[number.end() :]
    rest = _SOURCE_NAMED_LAST.sub("", rest) or rest
    without = _ENUMERATED.sub("", rest)
    wordings = tuple(dict.fromkeys((rest, without, _SPEAKER.sub("", without))))
    return (int(number[1] or number[2]) if number else None), wordings
