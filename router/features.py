"""Request → Features: the one arrow between what came in and what a policy may look at. Pure and cheap."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .conversations import joined
from .core import Evidence, Features, ModelProfile, Request, TokenCounter
from .lara_task import lara_task
from .prompts import shown_name
from .question_type import question_type


def extract(
    request: Request,
    profile: ModelProfile,
    counter: TokenCounter,
    evidence: Evidence | None,
    cached_tokens: int = 0,
    count_document: Callable[[str], int] | None = None,
) -> Features:
    """Features of a request.

    counter: counts for the request's model.
    count_document: the same, where the caller remembers counts of long texts; counter.count without it.
    evidence: BM25's view of the question and the documents, or None where there is none.
    cached_tokens: leading tokens of the full prompt believed to be in the provider's prompt cache.
    """
    count_document = count_document or counter.count
    documents = joined(request.documents)  # as prompts show them: a conversation is one text, with names and times
    document_tokens = sum(count_document(document.text) for document in documents)
    largest = max(documents, key=lambda document: len(document.text))
    return Features(
        document_tokens=document_tokens,
        question_tokens=counter.count(request.question),
        instruction_tokens=counter.count(request.instructions),
        max_output_tokens=request.max_output_tokens,
        token_error=counter.relative_error,
        n_documents=len(documents),
        window_ratio=document_tokens / profile.context_window,
        task=question_type(request.question),
        evidence=evidence,
        kind=largest.kind,
        cached_tokens=cached_tokens,
        lara_task=lara_task(request.question),
        name_tokens=_name_tokens([shown_name(document.id) for document in documents], count_document),
    )


def _name_tokens(names: Sequence[str], count: Callable[[str], int]) -> int:
    """Of all names, counted in one go, as there may be a thousand, without the breaks between them."""
    return max(0, count("\n".join(names)) - (len(names) - 1))
