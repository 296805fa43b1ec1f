"""A strategy of several calls in its simplest form, for the tests of those who show and carry out such calls."""

from __future__ import annotations

from itertools import pairwise

from longroute.router.core import (
    Answer,
    Call,
    Features,
    Footprint,
    Message,
    ModelProfile,
    Passage,
    Plan,
    Reply,
    Request,
    Work,
)
from longroute.router.errors import BackendError


class Chain:
    """Three workers read a third each, one after the other; the question is asked about their notes.

    A worker that fails is skipped and its third is unread; where all fail, the last error is raised.
    """

    def footprint(self, features: Features, profile: ModelProfile) -> Footprint:
        return Footprint(features.document_tokens + 600, 200, 300, calls=4, sequential_calls=4)

    def plan(self, request: Request, features: Features) -> Plan:
        [document] = request.documents
        ends = [round(len(document.text) * share / 3) for share in range(4)]
        notes: list[str] = []
        read: list[tuple[Passage, ...]] = []
        unread: list[Passage] = []
        failed: BackendError | None = None
        for number, (start, end) in enumerate(pairwise(ends), start=1):
            portion = Passage(document.id, start, end, document.text[start:end])
            try:
                reply = yield Call(
                    (Message("user", f"WORKER {portion.text}"),),
                    request.model,
                    50,
                    purpose=f"worker {number} of 3",
                    final=False,
                    question=request.question,
                    passages=(portion,),
                )
            except BackendError as error:
                failed = error
                read.append(())
                unread.append(portion)
                continue
            assert isinstance(reply, Reply)
            notes.append(reply.text)
            read.append((portion,))
        if not notes and failed is not None:
            raise failed
        final = yield Call(
            (Message("user", f"MANAGER {notes}"),),
            request.model,
            question=request.question,
            context=(f"NOTES: {' / '.join(notes)}",),
        )
        assert isinstance(final, Reply)
        said = tuple(f"worker {read.index(()) + 1} of 3 failed, so its part is unread" for _ in unread[:1])
        return Answer(final.text, notes=said, unread=tuple(unread), work=(Work(tuple(read), tuple(notes)),))
