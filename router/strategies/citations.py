"""Where a model's answer stands in the source: numbered passages it names, and quotes that are found verbatim."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..core import Citation, Document, Passage
from .quotes import Source

_NUMBERS = re.compile(r"\[(\d{1,5}(?:\s*[,;–-]\s*\d{1,5})*)\]")
_QUOTES = re.compile(r"[\"“„«]([^\"“”„«»]{12,600})[\"”“»]")


def named_passages(answer: str, passages: Sequence[Passage]) -> tuple[Citation, ...]:
    """Citations of the passages an answer names like [2], [1, 3] or [2-4], in order of first mention.

    passages: as numbered in the prompt, from 1. Numbers that name no passage are ignored.
    """
    return named_groups(answer, [(passage,) for passage in passages])


def named_groups(answer: str, groups: Sequence[Sequence[Passage]]) -> tuple[Citation, ...]:
    """The same where several passages have one number between them (see `prompts.numbered`): each of them is cited."""
    numbers = dict.fromkeys(number for group in _NUMBERS.findall(answer) for number in _expand(group))
    return tuple(_cite(passage) for number in numbers if 1 <= number <= len(groups) for passage in groups[number - 1])


def without_numbers(answer: str) -> str:
    """The answer without the numbers of passages that it names."""
    return _NUMBERS.sub(" ", answer)


def verbatim_quotes(answer: str, documents: Iterable[Document]) -> tuple[Citation, ...]:
    """Citations of the answer's quotations that stand word for word in a document, as `quotes` compares words."""
    sources = [(document.id, Source(document.text)) for document in documents]
    found = (_find(quote, sources) for quote in dict.fromkeys(_QUOTES.findall(answer)))
    return tuple(citation for citation in found if citation is not None)


def _expand(group: str) -> Iterable[int]:
    for part in re.split(r"\s*[,;]\s*", group):
        first, *last = (int(number) for number in re.split(r"\s*[–-]\s*", part))
        yield from range(first, last[-1] + 1 if last else first + 1)


def _find(quote: str, sources: Sequence[tuple[str, Source]]) -> Citation | None:
    for document_id, source in sources:
        if found := source.find(quote.strip(" .,;…"), min_alignment=1.0):
            return Citation(document_id, found.start, found.end, source.text[found.start : found.end], 1.0)
    return None


def _cite(passage: Passage) -> Citation:
    return Citation(passage.document_id, passage.start, passage.end, passage.text, passage.score)
