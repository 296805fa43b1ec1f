"""Strategy `full`: the whole text in the window, question last, prefix byte-stable so that prompt caches hit."""

from __future__ import annotations

from ..core import Answer, Call, Features, Footprint, ModelProfile, Passage, Plan, Reply, Request
from ..prompts import FULL_OVERHEAD_TOKENS, full_messages
from ..replies import answers
from .citations import verbatim_quotes

TYPICAL_ANSWER_TOKENS = 150  # median over the published LaRA answers is about this; used for estimates only


class Full:
    """One call that shows every document whole."""

    def footprint(self, features: Features, profile: ModelProfile) -> Footprint:
        once, each = FULL_OVERHEAD_TOKENS
        prompt = (
            features.document_tokens
            + features.question_tokens
            + features.instruction_tokens
            + once
            + each * features.n_documents
            + features.name_tokens
        )
        return Footprint(
            prompt_tokens=prompt,
            completion_tokens=min(TYPICAL_ANSWER_TOKENS, features.max_output_tokens),
            largest_prompt_tokens=prompt,
            cached_tokens=min(features.cached_tokens, prompt),
        )

    def plan(self, request: Request, features: Features) -> Plan:
        reply = yield self.call(request)
        assert isinstance(reply, Reply)
        return self.answer(request, reply)

    def call(self, request: Request) -> Call:
        return Call(
            full_messages(request.documents, request.question, request.instructions),
            model=request.model,
            max_output_tokens=request.max_output_tokens,
            question=request.question,
            passages=tuple(Passage(d.id, 0, len(d.text), d.text) for d in request.documents),
            context=tuple(document.text for document in request.documents),
        )

    def answer(self, request: Request, reply: Reply) -> Answer:
        return Answer(
            reply.text,
            answered=answers(reply),
            citations=reply.citations or verbatim_quotes(reply.text, request.documents),
        )
