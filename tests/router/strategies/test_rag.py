from __future__ import annotations

from collections.abc import Sequence

import pytest

from longroute.router.backends.scripted import Scripted
from longroute.router.core import Answer, Call, Document, Features, ModelProfile, Passage, Reply, Request, Strategy
from longroute.router.features import extract
from longroute.router.prompts import REFUSAL
from longroute.router.run import run
from longroute.router.strategies.full import Full
from longroute.router.strategies.rag import Rag
from longroute.router.tokens import counter_for

TURNS = tuple(
    Document(text, f"chat#{number}", speaker=speaker)
    for number, (speaker, text) in enumerate(
        [("Ada", "Have you signed the lease?"), ("Ben", "Yes, on Friday."), ("Ada", "Good."), ("Ben", "It rains.")], 1
    )
)


class Finds:
    """Finds the turns of these numbers, best first."""

    def __init__(self, *numbers: int) -> None:
        self._numbers = numbers

    def retrieve(self, question: str, documents: Sequence[Document], *, budget_tokens: int) -> list[Passage]:
        chosen = [documents[number - 1] for number in self._numbers]
        return [Passage(document.id, 0, len(document.text), document.text) for document in chosen]


def features_of(request: Request) -> Features:
    return extract(request, ModelProfile("m", 1000), counter_for("default"), None)


def answered(text: str, *numbers: int) -> tuple[Call, Answer]:
    request = Request("When was the lease signed?", TURNS, "m")
    plan = Rag(Finds(*numbers)).plan(request, features_of(request))
    call = next(plan)
    assert isinstance(call, Call)
    try:
        plan.send(Reply(text))
    except StopIteration as finished:
        answer: Answer = finished.value
        return call, answer
    raise AssertionError("the plan goes on")


@pytest.mark.parametrize(
    "reply",
    [
        Reply(" \n"),
        Reply(REFUSAL),
        Reply("Die Passagen enthalten keine Antwort auf diese Frage."),
        Reply("On Fri", finish_reason="content_filter"),
        Reply("I would rather not.", finish_reason="refusal"),
        Reply("On Friday.", answered=False),
    ],
)
@pytest.mark.parametrize("strategy", [Rag(Finds(2)), Full()])
def test_what_is_no_answer_does_not_count_as_one(strategy: Strategy, reply: Reply) -> None:
    request = Request("When was the lease signed?", TURNS, "m")
    assert not run(strategy.plan(request, features_of(request)), Scripted([reply])).answered


def test_an_answer_that_broke_off_counts_and_says_so() -> None:
    request = Request("When was the lease signed?", TURNS, "m")
    answer = run(Full().plan(request, features_of(request)), Scripted([Reply("On Fri", finish_reason="length")]))
    assert answer.answered and answer.notes == ("the answer broke off at its longest: raise max_output_tokens",)


def test_a_number_that_turns_share_cites_each_of_them() -> None:
    call, answer = answered("On Friday [1].", 4, 2, 1)
    assert [passage.document_id for passage in call.passages] == ["chat#1", "chat#2", "chat#4"]
    assert "[1] Ada: Have you signed the lease?\nBen: Yes, on Friday.\n[2] Ben: It rains." in call.messages[-1].content
    assert [(citation.document_id, citation.text) for citation in answer.citations] == [
        ("chat#1", TURNS[0].text),
        ("chat#2", TURNS[1].text),
    ]


def test_the_context_has_a_text_for_each_turn() -> None:
    call, _ = answered("On Friday.", 2)
    assert len(call.context) == len(TURNS)
    assert call.context[1] == TURNS[1].text
