from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from longroute.router.backends.scripted import Scripted
from longroute.router.core import (
    Answer,
    Call,
    Decision,
    Document,
    Estimate,
    Features,
    Footprint,
    Goal,
    ModelProfile,
    Passage,
    Reply,
    Request,
    Usage,
)
from longroute.router.errors import BackendUnavailable, ConfigError, ContextTooLong, DocumentError
from longroute.router.router import BaseRouter, Recorder
from longroute.router.strategies.full import Full
from longroute.router.strategies.rag import Rag

PROFILE = ModelProfile(
    "m",
    context_window=10_000,
    input_usd_per_mtok=Decimal(1),
    cached_input_usd_per_mtok=Decimal("0.1"),
    output_usd_per_mtok=Decimal(2),
    cache_min_tokens=10,
    cache_ttl_s=300.0,
)


class Words:
    """Counts words, and remembers how often it was asked."""

    relative_error = 0.0

    def __init__(self) -> None:
        self.counted: list[str] = []

    def count(self, text: str) -> int:
        self.counted.append(text)
        return len(text.split())


class First:
    """A policy that takes the first feasible option, and keeps what it was shown."""

    def decide(self, features: Features, profile: ModelProfile, options: Sequence[Estimate], goal: Goal) -> Decision:
        feasible = [option for option in options if option.feasible]
        if not feasible:
            raise ContextTooLong("nothing fits")
        return Decision(feasible[0].strategy, "first", profile.name, tuple(options), ("it came first",), features, goal)


class HeadRetriever:
    """Finds the first characters of every document."""

    def retrieve(self, question: str, documents: Sequence[Document], *, budget_tokens: int) -> list[Passage]:
        return [Passage(d.id, 0, min(20, len(d.text)), d.text[:20], 1.0) for d in reversed(documents)]


def router(
    replies: Sequence[str | Reply | Exception] | Callable[[Call], str | Reply],
    counter: Words | None = None,
    record: Recorder | None = None,
) -> tuple[BaseRouter, Scripted]:
    backend = Scripted(replies)
    words = counter or Words()
    made = BaseRouter(
        backend=backend,
        strategies={"full": Full(), "rag": Rag(HeadRetriever())},
        policy=First(),
        profile_of=lambda name: replace(PROFILE, name=name),
        counter_of=lambda profile: words,
        evidence=None,
        defaults=Request("", (), "m"),
        record_outcome=record,
    )
    return made, backend


def test_an_answer_carries_its_decision_usage_and_price() -> None:
    asked, backend = router([Reply("Ada.", Usage(1000, 0, 500))])
    answer = asked.answer("Who?", "Ada wrote it. " * 20)
    assert (answer.text, answer.strategy, answer.answered) == ("Ada.", "full", True)
    assert answer.usage.cost_usd == Decimal("0.002")
    assert answer.decision is not None
    assert answer.decision.reasons == ("it came first",)
    assert backend.calls[0].model == "m"


def test_deciding_calls_no_model() -> None:
    asked, backend = router([])
    assert asked.decide("Who?", "Ada wrote it.").strategy == "full"
    assert backend.calls == []


def test_all_four_ways_to_answer_agree() -> None:
    async def asynchronously() -> list[Answer]:
        streamed = [piece async for piece in router(["Ada did."])[0].astream("Who?", "Ada wrote it.")]
        assert isinstance(streamed[-1], Answer)
        return [await router(["Ada did."])[0].aanswer("Who?", "Ada wrote it."), streamed[-1]]

    *_, last = router(["Ada did."])[0].stream("Who?", "Ada wrote it.")
    answers = [router(["Ada did."])[0].answer("Who?", "Ada wrote it."), last, *asyncio.run(asynchronously())]
    assert {answer.text for answer in answers if isinstance(answer, Answer)} == {"Ada did."}
    assert {answer.strategy for answer in answers if isinstance(answer, Answer)} == {"full"}


def test_options_of_the_request_override_the_defaults() -> None:
    asked, backend = router(["fine"])
    answer = asked.answer(
        "Who?", "Ada wrote it.", model="other", allowed=["rag"], prefer="cheap", max_cost_usd=0.5, max_output_tokens=7
    )
    assert answer.strategy == "rag"
    assert answer.decision is not None
    assert answer.decision.goal == Goal("cheap", Decimal("0.5"))
    assert (backend.calls[0].model, backend.calls[0].max_output_tokens) == ("other", 7)


def test_passages_are_shown_in_document_order_and_cited_by_number() -> None:
    asked, backend = router(["It is in the second [2]."])
    answer = asked.answer("Which?", [Document("first text", id="a"), Document("second text", id="b")], allowed=["rag"])
    assert [passage.document_id for passage in backend.calls[0].passages] == ["a", "b"]
    assert [citation.document_id for citation in answer.citations] == ["b"]


def test_a_refusal_is_an_answer_that_says_so() -> None:
    asked, _ = router(["The documents do not contain the answer."])
    assert not asked.answer("Who?", "Nothing here.").answered


def test_where_the_server_says_it_does_not_fit_a_smaller_strategy_answers() -> None:
    asked, _ = router([ContextTooLong("12,000 tokens; 10,000 accepted"), "short answer"])
    answer = asked.answer("Who?", "Ada wrote it. " * 2000)
    assert (answer.strategy, answer.text) == ("rag", "short answer")
    assert "did not fit" in answer.notes[0]
    assert answer.decision is not None
    assert answer.decision.strategy == "full"


def test_a_failure_of_the_model_is_raised_not_hidden() -> None:
    asked, _ = router([BackendUnavailable("down")])
    with pytest.raises(BackendUnavailable):
        asked.answer("Who?", "Ada wrote it.")


def test_the_second_question_on_a_document_finds_its_prefix_warm() -> None:
    asked, _ = router([Reply("a", Usage(3000, 0, 5)), Reply("b", Usage(3000, 2900, 5))])
    text = "Ada wrote it. " * 1000
    cold = asked.decide("Who?", text).estimate
    asked.answer("Who?", text)
    warm = asked.decide("When?", text).estimate
    assert cold.cached_tokens == 0
    assert warm.cached_tokens > 2500
    assert cold.cost_usd is not None
    assert warm.cost_usd is not None
    assert warm.cost_usd < cold.cost_usd / 2
    assert asked.decide("Who?", text + "!").estimate.cached_tokens == 0


def test_long_texts_are_counted_once() -> None:
    counter = Words()
    asked, _ = router([], counter)
    text = "Ada wrote it. " * 100
    asked.decide("Who?", text)
    asked.decide("When?", text)
    assert counter.counted.count(text) == 1


@pytest.mark.parametrize(
    ("question", "documents", "options", "error", "words"),
    [
        ("  ", "text", {}, ConfigError, "question is empty"),
        ("Who?", "", {}, DocumentError, "no text"),
        ("Who?", [], {}, DocumentError, "no text"),
        ("Who?", ["", "  \n"], {}, DocumentError, "no text"),
        ("Who?", [Document("x", id="a"), Document("y", id="a")], {}, DocumentError, "'a'"),
        ("Who?", "text", {"prefer": "best"}, ConfigError, "quality, balanced, cheap"),
        ("Who?", "text", {"allowed": ["magic"]}, ConfigError, "magic"),
        ("Who?", "text", {"max_output_tokens": 0}, ConfigError, "at least 1"),
        ("Who?", "text", {"max_cost_usd": float("nan")}, ConfigError, "max_cost_usd = NaN"),
        ("Who?", "text", {"colour": "red"}, TypeError, "colour"),
    ],
)
def test_bad_input_gets_a_clear_error(
    question: str, documents: list[str], options: dict[str, str], error: type[Exception], words: str
) -> None:
    asked, backend = router([])
    with pytest.raises(error, match=words):
        asked.answer(question, documents, **options)  # type: ignore[arg-type]
    assert backend.calls == []


@pytest.mark.parametrize(
    ("question", "documents", "words"),
    [
        (None, ["text"], "question is a text, not NoneType"),
        ("Who?", None, "not NoneType"),
        ("Who?", 3, "not int"),
        ("Who?", ["one", b"two"], "not bytes"),
    ],
)
def test_what_is_no_text_is_said_to_be_none(question: Any, documents: Any, words: str) -> None:
    asked, backend = router(["x"])
    with pytest.raises(TypeError, match=words):
        asked.answer(question, documents)
    assert backend.calls == []


def test_documents_without_a_name_get_one() -> None:
    asked, backend = router(["x"])
    asked.answer("Who?", ["one", Document("two", id="mine")], allowed=["rag"])
    assert [passage.document_id for passage in backend.calls[0].passages] == ["document-1", "mine"]


def test_the_estimate_of_the_prompt_is_not_below_the_prompt() -> None:
    """The allowance for fences and task covers what the prompts really add."""
    asked, backend = router(["x", "x"])
    for strategy in ("full", "rag"):
        decision = asked.decide("Who wrote it?", ["Ada wrote it. " * 400] * 3, allowed=[strategy])
        asked.answer("Who wrote it?", ["Ada wrote it. " * 400] * 3, allowed=[strategy])
        words = sum(len(message.content.split()) for message in backend.calls[-1].messages)
        assert decision.estimate.prompt_tokens >= words


def test_an_outcome_is_recorded_with_what_the_caller_knows() -> None:
    recorded: list[tuple[Answer, float, str, str, str]] = []

    def record(answer: Answer, score: float, *, case_id: str, task: str, group: str) -> None:
        recorded.append((answer, score, case_id, task, group))

    asked, _ = router(["Ada."], record=record)
    answer = asked.answer("Who?", "Ada wrote it.")
    asked.record(answer, 0.5, case_id="q1", task="lookup", group="d1")
    asked.record(answer, 1.0)
    asked.record(answer, 0.0)
    assert recorded[0] == (answer, 0.5, "q1", "lookup", "d1")
    assert len({case_id for _, _, case_id, _, _ in recorded}) == 3
    assert all(case_id == group for _, _, case_id, _, group in recorded[1:])


def test_without_a_place_for_outcomes_the_setting_is_named() -> None:
    asked, _ = router(["Ada."])
    with pytest.raises(ConfigError, match="outcomes_file"):
        asked.record(asked.answer("Who?", "Ada wrote it."), 1.0)


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_a_score_outside_its_range_is_not_recorded(score: float) -> None:
    asked, _ = router(["Ada."], record=forbidden)
    with pytest.raises(ConfigError, match=f"score = {score}"):
        asked.record(asked.answer("Who?", "Ada wrote it."), score)


def test_an_answer_without_its_decision_is_not_recorded() -> None:
    asked, _ = router([], record=forbidden)
    with pytest.raises(ConfigError, match="no decision"):
        asked.record(Answer("Ada."), 1.0)


def forbidden(answer: Answer, score: float, *, case_id: str, task: str, group: str) -> None:
    pytest.fail("this must not be recorded")


class Half(Full):
    """`full` with half the text, at the price of some work."""

    def footprint(self, features: Features, profile: ModelProfile) -> Footprint:
        whole = super().footprint(features, profile)
        shown = whole.prompt_tokens // 2
        return replace(whole, prompt_tokens=shown, largest_prompt_tokens=shown, cached_tokens=0, stands_in=True)


def test_standing_in_for_full_is_out_where_the_prompt_cache_makes_full_cheaper() -> None:
    usage = Usage(prompt_tokens=2_000, cached_tokens=0, completion_tokens=10)
    base, _ = router([Reply("yes", usage)])
    base._strategies["half"] = Half()
    text = "word " * 2_000
    assert {e.strategy: e.feasible for e in base.decide("Is it?", text).estimates}["half"]
    base.answer("Is it?", text, allowed=["full"])
    half = next(e for e in base.decide("Is it?", text).estimates if e.strategy == "half")
    assert "prompt cache" in half.infeasible
    assert base.decide("Is it?", text, allowed=["half"]).strategy == "half"  # asked for by name, it is done
