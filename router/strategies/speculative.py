"""Strategy `speculative`: the whole text answers, a draft from the passages that matter makes it come faster (RAPID).

One call, `full`'s own, which carries besides the prompt that drafts are made from. Drafting and judging are the
runner's work (`router/runner/speculative.py`); models that know nothing of drafts are told of none.
Source: RAPID, arXiv 2502.20330.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..core import Draft, Features, Footprint, Message, ModelProfile, Passage, Plan, Reply, Request, Retriever
from ..prompts import FULL_OVERHEAD_TOKENS, excerpts, full_messages
from .full import Full
from .rag import PREPARATION_S_PER_TOKEN, in_document_order

_SHARE_DRAFTED_FROM = 24  # the paper's: passages of a 24th of the text, or of least_tokens where that is more
_MOST_TOKENS = 16_384  # beyond it drafts become slow and no better (ibid., section 4)
_LEAST_RATIO = 8  # with less than this many times the passages' length, drafting saves next to nothing


class Speculative:
    """One call that shows every document whole, with a draft from passages.

    least_tokens: least text that drafts are made from; texts shorter than eight times that are answered without.
    """

    def __init__(
        self,
        retriever: Retriever,
        full: Full,
        profile_of: Callable[[str], ModelProfile],
        least_tokens: int = 4096,
    ) -> None:
        self._retriever = retriever
        self._full = full
        self._profile_of = profile_of
        self._least_tokens = least_tokens

    def footprint(self, features: Features, profile: ModelProfile) -> Footprint:
        """Time at the plain speed of decoding, unless the profile says how much faster it is with drafts."""
        full = self._full.footprint(features, profile)
        if not profile.speculates:
            return replace(full, unavailable=_unavailable(profile))
        budget = self._budget_tokens(features)
        if budget is None:
            return full
        once, each = FULL_OVERHEAD_TOKENS
        names = each * features.n_documents + features.name_tokens
        draft = budget + features.question_tokens + features.instruction_tokens + once + names
        return replace(
            full,
            prompt_tokens=full.prompt_tokens + draft,
            preparation_s=features.document_tokens * PREPARATION_S_PER_TOKEN,
            decode_speedup=profile.speculative_speedup or 1.0,
        )

    def plan(self, request: Request, features: Features) -> Plan:
        draft, why_none = self._draft(request, features)
        reply = yield replace(self._full.call(request), draft=draft)
        assert isinstance(reply, Reply)
        answer = self._full.answer(request, reply)
        return replace(answer, notes=(f"Answered without a draft: {why_none}.",)) if why_none else answer

    def _draft(self, request: Request, features: Features) -> tuple[Draft | None, str]:
        """What drafts are made from, or why there are none."""
        profile = self._profile_of(request.model)
        if not profile.speculates:
            return None, _unavailable(profile)
        budget = self._budget_tokens(features)
        if budget is None:
            return None, (
                f"with {features.document_tokens:,} tokens the text is shorter than {_LEAST_RATIO} times the "
                f"{self._least_tokens:,} that drafts are made from"
            )
        found = self._retriever.retrieve(request.question, request.documents, budget_tokens=budget)
        if not found:
            return None, "no passage was found for the question"
        passages = in_document_order(found, request)
        return Draft(_about(passages, request), excerpts(passages, request.documents)), ""

    def _budget_tokens(self, features: Features) -> int | None:
        """Tokens of text that drafts are made from; None where the whole text is too short for it to pay."""
        budget = max(self._least_tokens, min(features.document_tokens // _SHARE_DRAFTED_FROM, _MOST_TOKENS))
        return budget if budget * _LEAST_RATIO <= features.document_tokens else None


def _about(passages: Sequence[Passage], request: Request) -> tuple[Message, ...]:
    """`full`'s prompt about what was found: each document with its passages in place of its text, or not at all."""
    found: dict[str, list[str]] = {}
    for passage in passages:
        found.setdefault(passage.document_id, []).append(passage.text)
    documents = [
        replace(document, text="\n\n".join(found[document.id]))
        for document in request.documents
        if document.id in found
    ]
    return full_messages(documents, request.question, request.instructions)


def _unavailable(profile: ModelProfile) -> str:
    return (
        f"{profile.name} is not known to take drafts; models of longroute's runner do (local:FOLDER, or served with "
        "speculates in its entry of models_file)"
    )
