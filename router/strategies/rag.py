"""Strategy `rag`: the passages that matter, in document order, with citations."""

from __future__ import annotations

from ..core import Answer, Call, Features, Footprint, ModelProfile, Passage, Plan, Reply, Request, Retriever
from ..prompts import RAG_OVERHEAD_TOKENS, excerpts, numbered, rag_messages
from ..replies import answers
from .citations import named_groups, verbatim_quotes
from .full import TYPICAL_ANSWER_TOKENS

# Seconds of retrieval per document token, two cores, nothing cached; benchmarks/preparation.py measures it.
PREPARATION_S_PER_TOKEN = 8e-6

_FILLED = 0.96  # of the budget, as passages are shown whole
_PASSAGE_TOKENS = 300  # of a passage that has no neighbour among those shown, in a longer document


class Rag:
    """One call that shows retrieved passages only.

    budget_tokens: most text to show; LaRA's set-up (5 chunks of 600 tokens) is the default.
    """

    def __init__(self, retriever: Retriever, budget_tokens: int = 3000) -> None:
        self._retriever = retriever
        self._budget_tokens = budget_tokens

    def footprint(self, features: Features, profile: ModelProfile) -> Footprint:
        once, each = RAG_OVERHEAD_TOKENS
        shown = min(round(_FILLED * self._budget_tokens), features.document_tokens)
        mean = min(_PASSAGE_TOKENS, features.document_tokens // max(1, features.n_documents))
        # The larger the share that is shown, the more passages are neighbours, which are shown as one.
        alone = 1 - shown / max(1, features.document_tokens)
        passages = 1 + round(alone * shown / max(1, mean))
        each += features.name_tokens // max(1, features.n_documents)
        prompt = shown + features.question_tokens + features.instruction_tokens + once + each * passages
        return Footprint(
            prompt_tokens=prompt,
            completion_tokens=min(TYPICAL_ANSWER_TOKENS, features.max_output_tokens),
            largest_prompt_tokens=prompt,
            preparation_s=features.document_tokens * PREPARATION_S_PER_TOKEN,
        )

    def plan(self, request: Request, features: Features) -> Plan:
        found = self._retriever.retrieve(request.question, request.documents, budget_tokens=self._budget_tokens)
        passages = in_document_order(found, request)
        reply = yield Call(
            rag_messages(passages, request.question, request.instructions, request.documents),
            model=request.model,
            max_output_tokens=request.max_output_tokens,
            question=request.question,
            passages=passages,
            context=excerpts(passages, request.documents),
        )
        assert isinstance(reply, Reply)
        return Answer(
            reply.text,
            answered=answers(reply),
            citations=reply.citations
            or named_groups(reply.text, numbered(passages, request.documents))
            or verbatim_quotes(reply.text, request.documents),
            passages=passages,
        )


def in_document_order(passages: list[Passage], request: Request) -> tuple[Passage, ...]:
    """Readers follow a text better in its own order than by score (Order-preserving RAG, arXiv 2409.01666)."""
    position = {document.id: index for index, document in enumerate(request.documents)}
    return tuple(sorted(passages, key=lambda passage: (position[passage.document_id], passage.start)))
