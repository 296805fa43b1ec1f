"""Strategy `self_route`: an answer from passages, and one from the whole text where that is not to be relied on.

The first call is `rag`'s, the second `full`'s; the verdict between them is handed in (`policies/escalation.py`).
Source: Self-Route, arXiv 2407.16833, which escalates on every refusal.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from ..core import Answer, Call, Features, Footprint, ModelProfile, Passage, Plan, Reply, Request
from ..errors import RouterError, worth_another_try
from .full import Full
from .rag import Rag


class Verdict(Protocol):
    """`policies.escalation.Verdict`, as far as this strategy needs it."""

    @property
    def escalate(self) -> bool: ...

    @property
    def reason(self) -> str:
        """For a person to read, with the probabilities that it rests on."""


class Judge(Protocol):
    """Says whether an answer from passages is to be relied on. Pure."""

    def expected_share(self, features: Features, profile: ModelProfile) -> float:
        """How often it will not be, [0, 1]; 0 where the whole text does not fit the window or is shown already."""

    def verdict(self, request: Request, features: Features, answer: Answer) -> Verdict:
        """answer: from passages, as `Rag` gives it."""


class SelfRoute:
    """One call that shows retrieved passages, and a second that shows every document whole where the judge wants it."""

    def __init__(self, rag: Rag, full: Full, judge: Judge) -> None:
        self._rag = rag
        self._full = full
        self._judge = judge

    def footprint(self, features: Features, profile: ModelProfile) -> Footprint:
        """What is to be expected: the second call counts with the share of requests that need it."""
        first = self._rag.footprint(features, profile)
        share = self._judge.expected_share(features, profile)
        if share == 0:
            return first
        second = self._full.footprint(features, profile)
        return Footprint(
            prompt_tokens=first.prompt_tokens + round(share * second.prompt_tokens),
            completion_tokens=first.completion_tokens + round(share * second.completion_tokens),
            largest_prompt_tokens=max(first.largest_prompt_tokens, second.largest_prompt_tokens),
            cached_tokens=round(share * second.cached_tokens),
            calls=2,
            sequential_calls=2,
            preparation_s=first.preparation_s,
        )

    def plan(self, request: Request, features: Features) -> Plan:
        plan = self._rag.plan(request, features)
        call = next(plan)
        assert isinstance(call, Call)
        reply = yield replace(call, purpose="answer from passages", final=False)
        assert isinstance(reply, Reply)
        first = _finished(plan, reply)
        if _asks_for_a_tool(reply):
            return replace(first, notes=(*first.notes, "Kept the passages' reply: the model asks for a tool."))
        verdict = self._judge.verdict(request, features, first)
        if not verdict.escalate:
            return replace(first, notes=(*first.notes, _sentence(verdict.reason)))
        try:
            second = yield self._full.call(request)
            assert isinstance(second, Reply)
        except RouterError as error:  # nothing of a second answer was handed on
            if not first.answered and worth_another_try(error):
                raise  # that a few passages do not say it is no answer while the caller may try again
            failed = f"The whole text could not be read, so the passages' answer stands: {error}"
            return replace(first, notes=(*first.notes, _sentence(verdict.reason), failed))
        if first.text.strip() and not second.text.strip() and not _asks_for_a_tool(second):
            empty = "The reply to the whole text was empty, so the passages' answer stands."
            return replace(first, notes=(*first.notes, _sentence(verdict.reason), empty))
        whole = self._full.answer(request, second)
        return replace(whole, notes=(*whole.notes, _sentence(verdict.reason)))


def _asks_for_a_tool(reply: Reply) -> bool:
    return "tool" in reply.finish_reason or "function" in reply.finish_reason  # `tool_calls`, `tool_use`


def _finished(plan: Plan, reply: Reply) -> Answer:
    try:
        plan.send(reply)
    except StopIteration as finished:
        answer: Answer = finished.value
        return answer
    raise AssertionError("rag asks for one call")


def shown_share(passages: tuple[Passage, ...], request: Request) -> float:
    """Share of the documents' characters that passages hold, [0, 1]."""
    whole = sum(len(document.text) for document in request.documents)
    return min(sum(passage.end - passage.start for passage in passages) / whole, 1.0) if whole else 1.0


def _sentence(reason: str) -> str:
    return f"{reason[0].upper()}{reason[1:]}."
