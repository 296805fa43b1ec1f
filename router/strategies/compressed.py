"""Strategy `compressed`: every document in the window, shortened to what matters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from ..core import Answer, Call, Citation, Document, Features, Footprint, ModelProfile, Passage, Plan, Reply, Request
from ..prompts import COMPRESSED_OVERHEAD_TOKENS, compressed_messages, refuses, shortened
from .citations import verbatim_quotes
from .full import TYPICAL_ANSWER_TOKENS

# Seconds of compressing per document token by the default compressor, two cores: 1 s for 107,000 tokens, half a
# second more where passages are embedded for the first time.
PREPARATION_S_PER_TOKEN = 1.5e-5


class Shortened(Protocol):
    """A shortened text that knows where its characters come from: `compressors.compression.Compressed`."""

    @property
    def text(self) -> str: ...

    def source_offset(self, place: int) -> int:
        """Offset in the source of the character at `text[place]`. Raises IndexError where it has none."""


class Shortener(Protocol):
    """`compressors.compression.Compressor`, as far as this strategy needs it."""

    def compress(
        self, texts: Sequence[str], *, question: str = "", keep_rate: float | None = None
    ) -> Sequence[Shortened]:
        """One result per text."""


class Compressed:
    """One call that shows every document at `keep_rate` of its tokens.

    by_kind: compressors for kinds of documents (code) that the general one is not for.
    """

    def __init__(
        self, compressor: Shortener, keep_rate: float = 0.33, by_kind: Mapping[str, Shortener] | None = None
    ) -> None:
        self._compressor = compressor
        self._keep_rate = keep_rate
        self._by_kind = by_kind or {}

    def footprint(self, features: Features, profile: ModelProfile) -> Footprint:
        once, each = COMPRESSED_OVERHEAD_TOKENS
        shown = round(features.document_tokens * self._keep_rate)
        prompt = shown + features.question_tokens + features.instruction_tokens + once + each * features.n_documents
        return Footprint(
            prompt_tokens=prompt,
            completion_tokens=min(TYPICAL_ANSWER_TOKENS, features.max_output_tokens),
            largest_prompt_tokens=prompt,
            preparation_s=features.document_tokens * PREPARATION_S_PER_TOKEN,
            stands_in=True,
        )

    def plan(self, request: Request, features: Features) -> Plan:
        short = [self._shorten(document, request.question) for document in request.documents]
        shown = tuple(
            replace(document, text=result.text) for document, result in zip(request.documents, short, strict=True)
        )
        reply = yield Call(
            compressed_messages(shown, request.question, request.instructions),
            model=request.model,
            max_output_tokens=request.max_output_tokens,
            question=request.question,
            passages=tuple(Passage(d.id, 0, len(d.text), d.text) for d in shown),
            context=tuple(
                document.text if document.text == result.text else shortened(result.text)
                for document, result in zip(request.documents, short, strict=True)
            ),
        )
        assert isinstance(reply, Reply)
        quotes = verbatim_quotes(reply.text, shown)
        results = {document.id: result for document, result in zip(request.documents, short, strict=True)}
        sources = {document.id: document for document in request.documents}
        return Answer(
            reply.text,
            answered=reply.answered and not refuses(reply.text),
            citations=tuple(_in_source(reply.citations or quotes, results, sources)),
        )

    def _shorten(self, document: Document, question: str) -> Shortened:
        own = self._by_kind.get(document.kind)
        for compressor in (own, self._compressor) if own else (self._compressor,):
            [result] = compressor.compress([document.text], question=question, keep_rate=self._keep_rate)
            if result.text.strip():  # one for a kind finds nothing to keep in what only bears its name: minified code
                break
        return result


def _in_source(
    quotes: Sequence[Citation], results: Mapping[str, Shortened], sources: Mapping[str, Document]
) -> Iterator[Citation]:
    """Citations of the shortened texts as ones of their sources; they may hold words that were left out.

    What a compressor wrote itself stands in no source, and is not cited.
    """
    for quote in quotes:
        result, source = results[quote.document_id], sources[quote.document_id]
        with suppress(IndexError):
            start, end = result.source_offset(quote.start), result.source_offset(quote.end - 1) + 1
            yield replace(quote, start=start, end=max(start, end), text=source.text[start : max(start, end)])
