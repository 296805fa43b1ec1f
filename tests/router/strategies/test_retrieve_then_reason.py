from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longroute.retrievers.chunks import split
from longroute.router.backends.extractive import Extractive
from longroute.router.backends.scripted import Scripted
from longroute.router.core import (
    Answer,
    Backend,
    Call,
    Document,
    Features,
    Goal,
    Message,
    ModelProfile,
    Reply,
    Request,
    TokenCounter,
    Usage,
)
from longroute.router.costs import charge, price
from longroute.router.errors import BackendRejected, BackendUnavailable, ContextTooLong, NoFeasibleStrategy
from longroute.router.features import extract
from longroute.router.prompts import NO_EVIDENCE, REFUSAL, full_messages
from longroute.router.run import run
from longroute.router.strategies.retrieve_then_reason import COPY_OUTPUT_TOKENS, RetrieveThenReason
from longroute.router.tokens import EstimatedCounter, counter_from

FILLING = "It rains there on many days of the year, and few people mind the rain any more. "
KEEPER = "The keeper at Skerra is Jonna Eide, who came in 2019."
OPENING = "Visitors must ask the keeper before they climb the old tower."
TEXT = f"{FILLING * 40}{KEEPER} {FILLING * 40}\n\n{OPENING} {FILLING * 10}"
WIDE = ModelProfile("m", 128_000, input_usd_per_mtok=Decimal(1), output_usd_per_mtok=Decimal(4))
NARROW = replace(WIDE, context_window=1_500, max_output_tokens=300)
COUNTER = counter_from(lambda text: (len(text) + 3) // 4)


def request_of(*texts: str, max_cost_usd: str | None = None, question: str = "Who is asked?") -> Request:
    documents = tuple(Document(text, f"d{number}") for number, text in enumerate(texts, start=1))
    goal = Goal(max_cost_usd=Decimal(max_cost_usd) if max_cost_usd else None)
    return Request(question, documents, "m", goal, max_output_tokens=200)


def strategy_of(profile: ModelProfile, counter: TokenCounter = COUNTER) -> RetrieveThenReason:
    return RetrieveThenReason(
        profile_of=lambda name: profile,
        counter_of=lambda profile: counter,
        split=lambda document, tokens: [(c.start, c.end) for c in split(document, max_tokens=tokens)],
        price=price,
    )


def features_of(request: Request, profile: ModelProfile) -> Features:
    return extract(request, profile, COUNTER, None)


def ask(backend: Backend, request: Request, profile: ModelProfile = WIDE) -> Answer:
    return run(strategy_of(profile).plan(request, features_of(request, profile)), backend)


def copier(*sentences: str, answer: str = "Jonna Eide [1]") -> Callable[[Call], str]:
    """A model that copies those of the sentences that it is shown."""

    def reply(call: Call) -> str:
        if call.final:
            return answer
        prompt = call.messages[-1].content
        return "\n".join(sentence for sentence in sentences if sentence in prompt) or NO_EVIDENCE

    return reply


def counted(messages: Sequence[Message], counter: TokenCounter = COUNTER) -> int:
    return sum(counter.count(message.content) for message in messages)


# ---- one window ------------------------------------------------------------------------------------------------------


def test_the_answering_call_sees_the_evidence_and_nothing_else() -> None:
    backend = Scripted(copier(KEEPER, OPENING))
    answer = ask(backend, request_of(TEXT))
    copying, answering = backend.calls
    assert not copying.final and copying.context == () and answering.final
    shown = answering.messages[-1].content
    assert KEEPER in shown and OPENING in shown and FILLING.strip() not in shown
    assert [passage.text for passage in answering.passages] == [KEEPER, OPENING] == [p.text for p in answer.passages]
    assert [citation.text for citation in answer.citations] == [KEEPER]
    assert answering.context[0].count("[…]") >= 3 and KEEPER in answering.context[0]
    assert answer.notes == () and answer.unread == ()
    assert answer.work[0].notes == (f"{KEEPER}\n{OPENING}",)


def test_up_to_the_question_the_copying_prompt_is_that_of_full() -> None:
    backend = Scripted(copier(KEEPER))
    request = request_of(TEXT, "Another text.")
    ask(backend, request)
    full = full_messages(request.documents, request.question)
    assert backend.calls[0].messages[0] == full[0]
    assert backend.calls[0].messages[1].content.startswith(full[1].content)


def test_inventions_do_not_reach_the_answer_and_are_reported() -> None:
    slip = KEEPER.replace("who came", "and came")
    invented = "The keeper at Skerra is Bob Ross, who left in 2001."
    backend = Scripted([f"{slip}\n{invented}\n{OPENING}", "Jonna Eide [1]"])
    answer = ask(backend, request_of(TEXT))
    shown = backend.calls[1].messages[-1].content
    assert KEEPER in shown and "Bob" not in shown and slip not in shown
    assert [note[:6] for note in answer.notes] == ["1 of 3", "1 of 3"]


@pytest.mark.parametrize("copied", [NO_EVIDENCE, REFUSAL, "The keeper is Bob Ross, who left in 2001."])
def test_without_evidence_the_whole_text_is_shown(copied: str) -> None:
    backend = Scripted([copied, REFUSAL])
    answer = ask(backend, request_of(TEXT))
    assert backend.calls[1].context == (TEXT,) and backend.calls[1].final
    assert not answer.answered and answer.notes[-1].endswith("the whole text was shown")


def test_an_application_s_own_instructions_are_kept_in_both_calls() -> None:
    backend = Scripted(copier(KEEPER))
    ask(backend, replace(request_of(TEXT), instructions="Be terse."))
    assert [call.messages[0].content for call in backend.calls] == ["Be terse."] * 2


def test_turns_of_a_conversation_are_shown_with_who_said_them() -> None:
    turns = (
        Document("I came to Skerra in 2019.", "t1", speaker="Jonna", time="10 May"),
        Document("And I am still in Vell.", "t2", speaker="Ada", time="10 May"),
    )
    backend = Scripted(["Jonna (10 May): I came to Skerra in 2019.", "Jonna [1]"])
    answer = ask(backend, replace(request_of("x"), documents=turns))
    assert "Jonna" in backend.calls[1].messages[-1].content
    assert [citation.document_id for citation in answer.citations] == ["t1"]


def test_it_works_without_a_model() -> None:
    answer = ask(Extractive(), request_of(TEXT, question="Who is the keeper at Skerra?"))
    assert "Jonna Eide" in answer.text and answer.answered
    assert answer.citations[0].text in TEXT and answer.notes == ()
    nothing = ask(Extractive(), request_of(TEXT, question="What does a submarine periscope cost?"))
    assert not nothing.answered


# ---- portions --------------------------------------------------------------------------------------------------------


def test_a_text_longer_than_the_window_is_read_in_portions_side_by_side() -> None:
    backend = Scripted(copier(KEEPER, OPENING))
    answer = ask(backend, request_of(TEXT), NARROW)
    *copying, answering = backend.calls
    assert len(copying) > 1
    assert "".join(passage.text for call in copying for passage in call.passages) == TEXT
    assert [passage.text for passage in answering.passages] == [KEEPER, OPENING]
    assert answer.unread == () and len(answer.work[0].read) == len(copying)


def test_a_portion_that_fails_is_tried_again_and_then_named_as_unread() -> None:
    failures = 0

    def reply(call: Call) -> str:
        nonlocal failures
        if "portion 1 " in call.purpose:
            failures += 1
            raise BackendUnavailable("The server is away.")
        return copier(OPENING)(call)

    backend = Scripted(reply)
    answer = ask(backend, request_of(TEXT), NARROW)
    assert failures == 2
    [gap] = answer.unread
    assert gap.text == TEXT[gap.start : gap.end] and gap.start == 0
    assert answer.work[0].read[0] == () and answer.work[0].notes[0] == ""
    assert OPENING in answer.work[0].notes[-1]
    assert any("The server is away." in note for note in answer.notes)
    assert "Not read" in backend.calls[-1].messages[-1].content and "Not read" in backend.calls[-1].context[0]


def test_an_error_that_passes_and_an_empty_reply_cost_one_call_more() -> None:
    for hiccup in (BackendUnavailable("away"), Reply("  ")):
        answer = ask(Scripted([hiccup, KEEPER, "Jonna Eide [1]"]), request_of(TEXT))
        assert answer.text == "Jonna Eide [1]" and answer.unread == ()


def test_where_every_call_fails_the_error_is_raised() -> None:
    with pytest.raises(BackendUnavailable):
        ask(Scripted([BackendUnavailable("away")] * 2), request_of(TEXT))
    backend = Scripted([BackendRejected("no")])
    with pytest.raises(BackendRejected):
        ask(backend, request_of(TEXT))
    assert len(backend.calls) == 1  # refused: another try cannot help


def test_nothing_found_in_a_text_longer_than_the_window_is_said_to_the_model() -> None:
    backend = Scripted(copier(answer=REFUSAL))
    answer = ask(backend, request_of(TEXT), NARROW)
    assert "nothing was found" in backend.calls[-1].messages[-1].content
    assert not answer.answered and "without any" in answer.notes[-1]


@pytest.mark.parametrize("reason", ["length", "max_tokens"])
def test_a_list_that_broke_off_is_reported(reason: str) -> None:
    answer = ask(Scripted([Reply(KEEPER, finish_reason=reason), "Jonna Eide [1]"]), request_of(TEXT))
    assert "broke off" in answer.notes[0]


def test_more_evidence_than_there_is_room_for_is_left_out_aloud() -> None:
    facts = [f"Fact {n} is that house number {n} has {n} red doors and a garden." for n in range(120)]
    text = f"{' Nothing here. '.join(facts)} {FILLING * 60}"
    backend = Scripted(copier(*facts))
    answer = ask(backend, request_of(text), NARROW)
    assert counted(backend.calls[-1].messages) + 200 <= NARROW.context_window
    assert any("want of room" in note for note in answer.notes)
    assert backend.calls[-1].passages


def test_a_question_that_leaves_no_room_for_text_is_explained() -> None:
    request = request_of(TEXT, question="Why? " * 2_000)
    with pytest.raises(ContextTooLong, match="longer window"):
        ask(Scripted([]), request, NARROW)


# ---- money -----------------------------------------------------------------------------------------------------------


class Billed(Scripted):
    """Counts as COUNTER does, at WIDE's prices."""

    async def generate(self, call: Call) -> Reply:
        reply = await super().generate(call)
        usage = Usage(counted(call.messages), 0, COUNTER.count(reply.text))
        return replace(reply, usage=charge(usage, WIDE))


@given(st.integers(1, 9_000))
@settings(max_examples=40, deadline=None)
def test_the_money_limit_holds_and_what_it_left_unread_is_said(micro_usd: int) -> None:
    limit = Decimal(micro_usd) / 1_000_000
    backend = Billed(copier(KEEPER, OPENING))
    try:
        answer = ask(backend, request_of(TEXT, max_cost_usd=str(limit)), NARROW)
    except NoFeasibleStrategy:
        assert backend.calls == []
        return
    assert answer.usage.cost_usd is not None and answer.usage.cost_usd <= limit
    read = sum(len(p.text) for portion in answer.work[0].read for p in portion)
    assert read + sum(len(p.text) for p in answer.unread) == len(TEXT)
    assert bool(answer.unread) == any("max_cost_usd" in note for note in answer.notes)


def test_what_calls_did_not_use_of_their_money_pays_for_more_calls() -> None:
    request = request_of(TEXT * 6, max_cost_usd="0.02")
    backend = Scripted(lambda call: Reply(copier(KEEPER)(call), Usage(counted(call.messages), 0, 5)))
    answer = ask(backend, request, NARROW)
    assert len(backend.calls) == 13 and answer.unread == ()
    spent = sum(price(NARROW, call.usage) or 0 for call in answer.calls)
    assert spent <= Decimal("0.02")


def test_an_empty_answer_is_none() -> None:
    assert not ask(Scripted([KEEPER, " "]), request_of(TEXT)).answered


def test_the_whole_text_is_not_shown_where_it_costs_too_much() -> None:
    backend = Billed(copier(answer=REFUSAL))
    once = counted(full_messages(request_of(TEXT * 8).documents, "Who is asked?"))
    limit = Decimal(once + 4 * COPY_OUTPUT_TOKENS + 4_000) / 1_000_000
    answer = ask(backend, request_of(TEXT * 8, max_cost_usd=str(limit)))
    assert len(backend.calls) == 2 and "without any" in answer.notes[-1]
    assert answer.usage.cost_usd is not None and answer.usage.cost_usd <= limit


# ---- what it takes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", [WIDE, replace(NARROW, context_window=5_000)])
@pytest.mark.parametrize("texts", [(TEXT * 8,), (TEXT * 5, TEXT, TEXT * 4), tuple(f"{n} {FILLING}" for n in range(60))])
def test_the_footprint_is_what_the_calls_take(profile: ModelProfile, texts: tuple[str, ...]) -> None:
    request = request_of(*texts)
    features = features_of(request, profile)
    footprint = strategy_of(profile).footprint(features, profile)
    backend = Scripted(copier(KEEPER, OPENING))
    ask(backend, request, profile)
    copying = [call for call in backend.calls if not call.final]
    assert abs(footprint.calls - 1 - len(copying)) <= 1 + len(copying) // 4
    assert max(counted(call.messages) for call in copying) <= footprint.largest_prompt_tokens
    if len(texts) < 10:  # what a fence takes is rounded up, so many small documents are overestimated
        taken = sum(counted(call.messages) for call in backend.calls)
        assert taken <= footprint.prompt_tokens <= 1.25 * taken


def test_what_full_has_left_in_the_prompt_cache_is_reckoned_with() -> None:
    features = replace(features_of(request_of(TEXT), WIDE), cached_tokens=1_500)
    assert strategy_of(WIDE).footprint(features, WIDE).cached_tokens == 1_500
    assert strategy_of(NARROW).footprint(features, NARROW).cached_tokens == 0


COUNTERS = (
    COUNTER,
    counter_from(lambda text: 3 * len(text)),
    counter_from(lambda text: len(text.encode("utf-8", "surrogatepass"))),
    EstimatedCounter("default"),
)


@given(
    st.lists(st.text(min_size=1, max_size=1500), min_size=1, max_size=4),
    st.sampled_from(COUNTERS),
    st.integers(6_000, 12_000),
    st.text(max_size=3000),
)
@settings(max_examples=60, deadline=None)
def test_every_prompt_fits_the_window_whatever_the_text_and_the_model_say(
    texts: list[str], counter: TokenCounter, window: int, said: str
) -> None:
    request = request_of("x", *(text * 5 for text in texts))
    profile = replace(WIDE, context_window=window)
    features = extract(request, profile, counter, None)
    backend = Scripted(lambda call: said if call.final else f"{said}\n{call.passages[0].text}")
    answer = run(strategy_of(profile, counter).plan(request, features), backend)
    for call in backend.calls:
        assert counted(call.messages, counter) * (1 + features.token_error) + call.max_output_tokens <= window
    read = [passage for portion in answer.work[0].read for passage in portion]
    for document in request.documents:
        assert "".join(p.text for p in (*read, *answer.unread) if p.document_id == document.id) == document.text
