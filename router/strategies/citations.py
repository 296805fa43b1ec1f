"""Where a model's answer stands in the source: numbered passages it names, and quotes that are found verbatim."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..core import Citation, Document, Passage

_NUMBERS = re.compile(r"\[(\d{1,3}(?:\s*[,;–-]\s*\d{1,3})*)\]")
_QUOTES = re.compile(r"[\"“„«]([^\"“”„«»]{12,600})[\"”“»]")


def named_passages(answer: str, passages: Sequence[Passage]) -> tuple[Citation, ...]:
    """Citations of the passages an answer names like [2], [1, 3] or [2-4], in order of first mention.

    passages: as numbered in the prompt, from 1. Numbers that name no passage are ignored.
    """
    numbers = dict.fromkeys(number for group in _NUMBERS.findall(answer) for number in _expand(group))
    return tuple(_cite(passages[number - 1]) for number in numbers if 1 <= number <= len(passages))


def verbatim_quotes(answer: str, documents: Iterable[Document]) -> tuple[Citation, ...]:
    """Citations of the answer's quotations that stand word for word in a document; white space may differ."""
    sources = tuple(documents)
    found = (_find(quote, sources) for quote in dict.fromkeys(_QUOTES.findall(answer)))
    return tuple(citation for citation in found if citation is not None)


def _expand(group: str) -> Iterable[int]:
    for part in re.split(r"\s*[,;]\s*", group):
        first, *last = (int(number) for number in re.split(r"\s*[–-]\s*", part))
        yield from range(first, last[-1] + 1 if last else first + 1)


def _find(quote: str, documents: Sequence[Document]) -> Citation | None:
    words = quote.strip(" .,;…").split()
    if len(words) < 3 and len(quote) < 20:  # too little to be a quotation of anything in particular
        return None
    pattern = re.compile(r"\s+".join(map(re.escape, words)))
    for document in documents:
        if match := pattern.search(document.text):
            return Citation(document.id, match.start(), match.end(), match.group(), 1.0)
    return None


def _cite(passage: Passage) -> Citation:
    return Citation(passage.document_id, passage.start, passage.end, passage.text, passage.score)
