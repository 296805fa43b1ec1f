from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute import Router
from longroute.router.backends.scripted import Scripted
from longroute.router.core import Answer, Call, Document, Features, ModelProfile, Passage, Reply, Request
from longroute.router.errors import BackendUnavailable, ContextTooLong
from longroute.router.prompts import REFUSAL
from longroute.router.run import run, stream
from longroute.router.strategies.full import Full
from longroute.router.strategies.rag import Rag
from longroute.router.strategies.self_route import SelfRoute, shown_share

TEXT = "The tenant pays rent. A dog named Rex lives here. The landlord repairs the roof."
FEATURES = Features(30_000, 20, 0, 1024, 0.0, 2, 0.2, {"lookup": 1.0}, None, "text")
PROFILE = ModelProfile("model", 128_000)
REQUEST = Request("What is the dog called?", (Document(TEXT, "lease"), Document("Nothing.", "annex")), "model")


class Middle:
    """Finds the sentence about the dog."""

    def retrieve(self, question: str, documents: Sequence[Document], *, budget_tokens: int) -> list[Passage]:
        start, end = TEXT.index("A dog"), TEXT.index(" The landlord")
        return [Passage("lease", start, end, TEXT[start:end])]


@dataclass(frozen=True)
class Says:
    escalate: bool
    reason: str = "so it was said, 0.10 against 0.90"


@dataclass
class Judge:
    """Escalates as told, and remembers what it was shown."""

    escalate: bool = False
    share: float = 0.25
    seen: list[Answer] = field(default_factory=list)

    def expected_share(self, features: Features, profile: ModelProfile) -> float:
        return self.share

    def verdict(self, request: Request, features: Features, answer: Answer) -> Says:
        self.seen.append(answer)
        return Says(self.escalate)


def strategy(judge: Judge) -> SelfRoute:
    return SelfRoute(Rag(Middle()), Full(), judge)


def carried_out(judge: Judge, *script: str | Reply | Exception) -> tuple[Answer, list[Call]]:
    backend = Scripted(script)
    return run(strategy(judge).plan(REQUEST, FEATURES), backend), backend.calls


# ---- the calls -------------------------------------------------------------------------------------------------------


def test_the_first_call_is_rag_s_but_is_not_the_answer_yet() -> None:
    _, [call] = carried_out(Judge(), "Rex [1].")
    of_rag = next(Rag(Middle()).plan(REQUEST, FEATURES))
    assert isinstance(of_rag, Call)
    assert call == replace(of_rag, final=False, purpose="answer from passages")


def test_a_kept_answer_is_rag_s_with_its_citations_and_the_reason() -> None:
    judge = Judge(escalate=False)
    answer, _ = carried_out(judge, "Rex [1].")
    assert (answer.text, answer.answered) == ("Rex [1].", True)
    assert [citation.text for citation in answer.citations] == ["A dog named Rex lives here."]
    assert answer.passages
    assert answer.notes == ("So it was said, 0.10 against 0.90.",)


def test_an_escalated_answer_is_full_s_with_the_reason() -> None:
    answer, calls = carried_out(Judge(escalate=True), REFUSAL, 'It says "A dog named Rex lives here".')
    assert [call.final for call in calls] == [False, True]
    assert calls[1].context == (TEXT, "Nothing.")
    assert answer.answered
    assert answer.passages == ()  # the whole text was shown
    assert [citation.text for citation in answer.citations] == ["A dog named Rex lives here"]
    assert answer.notes == ("So it was said, 0.10 against 0.90.",)
    assert [call.purpose for call in answer.calls] == ["answer from passages", "answer"]


@pytest.mark.parametrize(
    ("reply", "answered"),
    [(Reply("Rex."), True), (Reply(REFUSAL), False), (Reply("The passages do not say.", answered=False), False)],
)
def test_the_judge_is_shown_the_answer_and_whether_it_refuses(reply: Reply, answered: bool) -> None:
    judge = Judge()
    carried_out(judge, reply)
    assert [(seen.text, seen.answered) for seen in judge.seen] == [(reply.text, answered)]
    assert judge.seen[0].passages


def test_where_the_second_call_fails_the_first_answer_stands_and_the_notes_say_so() -> None:
    answer, _ = carried_out(Judge(escalate=True), "Rex [1].", BackendUnavailable("The server is gone."))
    assert answer.text == "Rex [1]."
    assert "The server is gone." in answer.notes[-1]


def test_a_refusal_by_passages_stands_only_where_trying_again_would_not_help() -> None:
    with pytest.raises(BackendUnavailable):
        carried_out(Judge(escalate=True), REFUSAL, BackendUnavailable("The server is gone.", status=503))
    answer, _ = carried_out(Judge(escalate=True), REFUSAL, ContextTooLong("Too long."))
    assert not answer.answered and "Too long." in answer.notes[-1]


def test_an_empty_second_reply_does_not_undo_the_first() -> None:
    answer, _ = carried_out(Judge(escalate=True), "Rex [1].", " ")
    assert answer.text == "Rex [1]." and answer.citations
    assert "was empty" in answer.notes[-1]
    *pieces, _ = stream(strategy(Judge(escalate=True)).plan(REQUEST, FEATURES), Scripted(["Rex [1].", ""]))
    assert pieces == ["Rex [1]."]
    tool, _ = carried_out(Judge(escalate=True), "Rex [1].", Reply("", finish_reason="tool_calls"))
    assert tool.text == ""


def test_where_the_first_call_fails_so_does_the_strategy() -> None:
    with pytest.raises(BackendUnavailable):
        carried_out(Judge(escalate=True), BackendUnavailable("The server is gone."), "Rex.")


@pytest.mark.parametrize("reason", ["tool_calls", "tool_use", "function_call"])
def test_a_reply_that_asks_for_a_tool_is_not_an_empty_answer(reason: str) -> None:
    judge = Judge(escalate=True)
    answer, calls = carried_out(judge, Reply("", finish_reason=reason))
    assert len(calls) == 1
    assert not judge.seen
    assert "tool" in answer.notes[0]


def test_only_the_answer_that_is_handed_on_is_streamed() -> None:
    *pieces, answer = stream(strategy(Judge(escalate=True)).plan(REQUEST, FEATURES), Scripted([REFUSAL, "Rex it is."]))
    assert "".join(map(str, pieces)) == "Rex it is."
    assert isinstance(answer, Answer)
    [piece, answer] = stream(strategy(Judge(escalate=False)).plan(REQUEST, FEATURES), Scripted(["Rex."]))
    assert isinstance(answer, Answer)
    assert piece == answer.text == "Rex."


# ---- what to expect of it --------------------------------------------------------------------------------------------


@given(st.floats(0, 1), st.integers(1, 500_000))
def test_its_footprint_lies_between_rag_s_and_both_together(share: float, tokens: int) -> None:
    features = replace(FEATURES, document_tokens=tokens, cached_tokens=tokens // 2)
    expected = strategy(Judge(share=share)).footprint(features, PROFILE)
    rag, full = (s.footprint(features, PROFILE) for s in (Rag(Middle()), Full()))
    assert rag.prompt_tokens <= expected.prompt_tokens <= rag.prompt_tokens + full.prompt_tokens
    assert expected.cached_tokens <= expected.prompt_tokens
    if share:
        assert expected.largest_prompt_tokens == max(rag.largest_prompt_tokens, full.largest_prompt_tokens)
        assert expected.sequential_calls == expected.calls == 2


def test_without_a_second_call_to_expect_it_takes_what_rag_takes() -> None:
    assert strategy(Judge(share=0)).footprint(FEATURES, PROFILE) == Rag(Middle()).footprint(FEATURES, PROFILE)


def test_the_share_shown_is_of_all_documents() -> None:
    assert shown_share((), REQUEST) == 0
    assert shown_share((Passage("lease", 0, len(TEXT), TEXT),), REQUEST) == len(TEXT) / (len(TEXT) + 8)
    assert shown_share((), replace(REQUEST, documents=(Document("", "empty"),))) == 1


# ---- assembled -------------------------------------------------------------------------------------------------------

LEASE = "The tenant pays the rent on the first day of the month. " * 1500
LEASE += "A dog named Rex lives in the flat. " + "The landlord repairs the roof and the stairs. " * 1500
COMPARE = "How do the duties of the tenant compare with those of the landlord?"


def routed(script: Callable[[Call], str] | Sequence[str], question: str = COMPARE, model: str = "gpt-4o") -> Answer:
    router = Router(cache=False, embedding_model="none", model=model, prefer="balanced", backend=Scripted(script))
    return router.answer(question, [LEASE], allowed=("self_route",))


def test_a_refusal_to_compare_is_escalated_and_the_notes_say_with_which_probabilities() -> None:
    answer = routed([REFUSAL, "The tenant pays; the landlord repairs."])
    assert answer.text == "The tenant pays; the landlord repairs."
    assert answer.strategy == "self_route"
    assert answer.notes[0].startswith("Escalated to the whole text: ")
    assert len(answer.calls) == 2


def test_a_grounded_answer_to_a_lookup_is_kept() -> None:
    answer = routed(["The tenant pays on the first day of the month [1]."], "On which day is rent paid by the tenant?")
    assert answer.text == "The tenant pays on the first day of the month [1]."
    assert len(answer.calls) == 1
    assert answer.notes[0].startswith("Kept the passages' answer: ")


def test_where_the_whole_text_does_not_fit_the_answer_is_kept_and_says_so() -> None:
    router = Router(cache=False, embedding_model="none", model="gpt-4", prefer="quality", backend=Scripted([REFUSAL]))
    answer = router.answer(COMPARE, [LEASE], allowed=("self_route",))  # beyond its window
    assert not answer.answered
    assert "gpt-4 accepts" in answer.notes[0]
    assert answer.decision is not None
    assert answer.decision.estimate.calls == 1


def test_it_works_without_a_model() -> None:
    router = Router(cache=False, embedding_model="none")
    for question in ("What is the dog in the flat called?", "Which colour has the submarine of the admiral?"):
        answer = router.answer(question, [LEASE], allowed=("self_route",))
        assert answer.notes
        assert answer.calls
    assert not answer.answered
