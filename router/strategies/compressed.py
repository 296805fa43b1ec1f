"""Strategy `compressed`: every document in the window, shortened to what matters.

A conversation is shortened as one text: what matters in a turn shows only beside the others.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from ..conversations import Stretch, placed, runs
from ..core import Answer, Call, Citation, Document, Features, Footprint, ModelProfile, Passage, Plan, Reply, Request
from ..prompts import COMPRESSED_OVERHEAD_TOKENS, compressed_messages, shortened, shortened_turns
from ..replies import answers
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
        names = each * features.n_documents + features.name_tokens
        prompt = shown + features.question_tokens + features.instruction_tokens + once + names
        return Footprint(
            prompt_tokens=prompt,
            completion_tokens=min(TYPICAL_ANSWER_TOKENS, features.max_output_tokens),
            largest_prompt_tokens=prompt,
            preparation_s=features.document_tokens * PREPARATION_S_PER_TOKEN,
            stands_in=True,
        )

    def plan(self, request: Request, features: Features) -> Plan:
        short = [self._shorten_run(run, request.question) for run in runs(request.documents)]
        shown = tuple(replace(part.whole, text=part.result.text) for part in short)
        reply = yield Call(
            compressed_messages(shown, request.question, request.instructions),
            model=request.model,
            max_output_tokens=request.max_output_tokens,
            question=request.question,
            passages=tuple(Passage(d.id, 0, len(d.text), d.text) for d in shown),
            context=tuple(text for part in short for text in part.in_place()),
        )
        assert isinstance(reply, Reply)
        parts = {part.whole.id: part for part in short}
        quotes = reply.citations or verbatim_quotes(reply.text, shown)
        return Answer(
            reply.text,
            answered=answers(reply),
            citations=tuple(citation for quote in quotes for citation in parts[quote.document_id].in_source(quote)),
        )

    def _shorten_run(self, run: tuple[Document, ...], question: str) -> _Part:
        first = run[0]
        if not first.speaker:
            return _Part(run, first, (Stretch(0, len(first.text), 0, 0),), self._shorten(first, question))
        text, stretches = placed(run)
        together = Document(text, first.id)
        return _Part(run, together, stretches, self._shorten(together, question))

    def _shorten(self, document: Document, question: str) -> Shortened:
        own = self._by_kind.get(document.kind)
        for compressor in (own, self._compressor) if own else (self._compressor,):
            [result] = compressor.compress([document.text], question=question, keep_rate=self._keep_rate)
            if result.text.strip():  # one for a kind finds nothing to keep in what only bears its name: minified code
                break
        return result


@dataclass(frozen=True, slots=True)
class _Part:
    """What was shortened in one go: a document, or a run of turns.

    whole: the documents as one, before. stretches: where they stand in it.
    """

    documents: tuple[Document, ...]
    whole: Document
    stretches: tuple[Stretch, ...]
    result: Shortened

    def in_source(self, quote: Citation) -> Iterator[Citation]:
        """A citation of the shortened text as ones of its sources, which may hold words that were left out.

        What a compressor wrote itself stands in no source, and is not cited.
        """
        with suppress(IndexError):
            start = self.result.source_offset(quote.start)
            end = self.result.source_offset(quote.end - 1) + 1
            for number, document in enumerate(self.documents):
                at = [s for s in self.stretches if s.turn == number and s.start < end and start < s.end]
                if at:
                    first = at[0].source + max(0, start - at[0].start)
                    last = at[-1].source + min(end, at[-1].end) - at[-1].start
                    text = document.text[first:last]
                    yield replace(quote, document_id=document.id, start=first, end=last, text=text)

    def in_place(self) -> list[str]:
        """For each document what to show in its place in a prompt that is not ours."""
        text = self.result.text
        if text == self.whole.text:
            return [document.text for document in self.documents]
        if not self.documents[0].speaker:
            return [shortened(text)]
        spans = self._kept_of_turns()
        if not spans:  # a compressor that writes itself does not say what is whose: its text stands for all
            return shortened_turns(self.documents, [text, *[""] * (len(self.documents) - 1)])
        return shortened_turns(
            self.documents,
            [text[slice(*spans[number])] if number in spans else "" for number in range(len(self.documents))],
        )

    def _kept_of_turns(self) -> dict[int, tuple[int, int]]:
        """Where in the shortened text stands what was kept of each turn, by number; of some nothing."""
        starts = [stretch.start for stretch in self.stretches]
        spans: dict[int, tuple[int, int]] = {}
        for place in range(len(self.result.text)):
            with suppress(IndexError):
                offset = self.result.source_offset(place)
                stretch = self.stretches[bisect_right(starts, offset) - 1]
                if stretch.start <= offset < stretch.end:
                    spans[stretch.turn] = (spans.get(stretch.turn, (place, place))[0], place + 1)
        return spans
