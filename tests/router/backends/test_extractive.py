from __future__ import annotations

import asyncio
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.router.backends.extractive import NOT_FOUND, Extractive, rough_terms
from longroute.router.core import Call, Passage, Reply
from longroute.router.errors import BackendRejected

BRIDGE = (
    "# The old bridge\n\n"
    "The old bridge was opened in 1872 by Clara Novak. It carries two lanes. Trams used it until 1950.\n\n"
    "## Repairs\n\n"
    "The pillars were repaired because frost had split the stone. The work cost three million crowns.\n"
)


def passage(text: str, id: str = "doc", start: int = 0, score: float = 0.0) -> Passage:
    return Passage(id, start, start + len(text), text, score)


def ask(question: str, *passages: Passage | str, backend: Extractive | None = None) -> Reply:
    shown = tuple(one if isinstance(one, Passage) else passage(one) for one in passages)
    return asyncio.run((backend or Extractive()).generate(Call((), "extractive", question=question, passages=shown)))


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("When was the old bridge opened?", "The old bridge was opened in 1872 by Clara Novak."),
        ("Who opened the bridge?", "The old bridge was opened in 1872 by Clara Novak."),
        ("Until when did trams use the bridge?", "Trams used it until 1950."),
        ("Why were the pillars repaired?", "The pillars were repaired because frost had split the stone."),
        ("How much did the work cost?", "The work cost three million crowns."),
    ],
)
def test_the_sentence_that_answers_is_quoted(question: str, answer: str) -> None:
    reply = ask(question, BRIDGE)

    assert reply.answered
    assert reply.text == answer


@pytest.mark.parametrize(
    ("question", "text", "answer"),
    [
        ("东京塔是什么时候建成的？", "东京是日本的首都。东京塔建成于1958年。人口一千四百万。", "东京塔建成于1958年。"),
        (
            "東京タワーはいつ完成しましたか？",
            "東京は首都である。東京タワーは1958年に完成した。",
            "東京タワーは1958年に完成した。",
        ),
        ("متى بني الجسر؟", "المدينة جميلة جدا. بني الجسر عام 1872. سكانها مليون.", "بني الجسر عام 1872."),
        (
            "Wann wurde die Brücke eröffnet?",
            "Sie ist alt. Eröffnet wurde die Brücke am 5. Mai 1872.",
            "Eröffnet wurde die Brücke am 5. Mai 1872.",
        ),
        ("लाल किला किसने बनवाया था?", "दिल्ली राजधानी है। लाल किला शाहजहाँ ने बनवाया था।", "लाल किला शाहजहाँ ने बनवाया था।"),
    ],
)
def test_other_languages_are_answered_too(question: str, text: str, answer: str) -> None:
    assert ask(question, text).text == answer


@pytest.mark.parametrize(
    "question", ["Who invented the espresso machine?", "Wie hoch ist der Eiffelturm?", "长城有多长？"]
)
def test_nothing_fitting_is_said_to_be_so(question: str) -> None:
    reply = ask(question, BRIDGE)

    assert (reply.text, reply.answered, reply.citations) == (NOT_FOUND, False, ())


def test_no_passages_are_no_answer() -> None:
    assert not ask("Who opened the bridge?").answered
    assert not ask("Summarize it.").answered


def test_a_call_without_a_question_is_refused_with_the_remedy() -> None:
    with pytest.raises(BackendRejected, match="Use the strategies 'rag' or 'full'"):
        asyncio.run(Extractive().generate(Call((), "extractive", purpose="worker 1 of 3")))


@given(
    question=st.text(max_size=40) | st.sampled_from(["What is a bridge?", "Summarize it", "How are b and c related?"]),
    texts=st.lists(st.text(alphabet="abc.?:\n#|` 故。", max_size=120) | st.just(BRIDGE), max_size=3),
    start=st.integers(0, 1000),
)
def test_every_citation_is_an_exact_slice_and_the_answer_holds_its_words(
    question: str, texts: list[str], start: int
) -> None:
    passages = [passage(text, f"doc-{number}", start) for number, text in enumerate(texts)]
    if not question.strip():
        return

    reply = ask(question, *passages)

    sources = {one.document_id: one.text for one in passages}
    assert reply.answered == bool(reply.citations)
    for cited in reply.citations:
        assert sources[cited.document_id][cited.start - start : cited.end - start] == cited.text
        assert " ".join(cited.text.split()) in " ".join(reply.text.split())
        assert 0.0 <= cited.score <= 1.0 + 1e-9


def test_asking_again_gives_the_same_and_costs_nothing() -> None:
    first, second = ask("Who opened the bridge?", BRIDGE), ask("Who opened the bridge?", BRIDGE)

    assert first == second
    assert (first.usage.prompt_tokens, first.usage.cost_usd, first.model) == (0, Decimal(0), "extractive")


def test_a_stream_gives_the_pieces_and_then_the_reply() -> None:
    async def collect() -> list[str | Reply]:
        backend = Extractive()
        call = Call((), "extractive", question="Who opened the bridge?", passages=(passage(BRIDGE),))
        pieces = [piece async for piece in backend.stream(call)]
        await backend.aclose()
        return pieces

    *pieces, reply = asyncio.run(collect())

    assert isinstance(reply, Reply)
    assert len(pieces) > 3
    assert "".join(map(str, pieces)) == reply.text


def test_a_heading_is_never_the_answer_but_tells_what_stands_below_it() -> None:
    text = "# Guide\n\n## Cancelling a subscription\n\nOpen the settings and press Cancel.\n\n## Paying\n\nBy card.\n"

    assert ask("How does cancelling a subscription work?", text).text == "Open the settings and press Cancel."


def test_a_question_in_the_text_gives_way_to_its_answer() -> None:
    text = "Ann: Which hotel did you book in Lisbon?\nBob: The Ritz, from 3 to 9 May.\nAnn: Great, who is coming?"

    assert "The Ritz" in ask("Which hotel did they book in Lisbon?", text).text


def test_what_a_thing_is_comes_from_the_sentence_that_begins_with_it() -> None:
    text = "You may slice a string with a router. A router is a device that forwards packets. Buy a router soon."

    assert ask("What is a router?", text).text == "A router is a device that forwards packets."


def test_a_pronoun_brings_the_sentence_before_it() -> None:
    text = "Clara Novak was an engineer. She designed the harbour crane in 1901. The town is small."

    reply = ask("Who designed the harbour crane?", text)

    assert reply.text == "Clara Novak was an engineer. She designed the harbour crane in 1901."
    assert len(reply.citations) == 1


def test_a_colon_brings_what_follows_it() -> None:
    text = "Intro text here.\n\nTo install acme, run this command:\n\n```sh\npip install acme-tool\n```\n"

    assert ask("How do I install acme?", text).text == "To install acme, run this command:\npip install acme-tool"


def test_the_halves_of_an_answer_are_given_in_the_order_of_the_text() -> None:
    first, second = passage("The film Alpha was directed by Ann Bee.", "a"), passage("Ann Bee was born in Oslo.", "b")

    reply = ask("Where was the director of Alpha born?", first, second)

    assert reply.text == "The film Alpha was directed by Ann Bee. … Ann Bee was born in Oslo."


def test_the_same_sentence_in_two_documents_is_quoted_once() -> None:
    text = "Frost had split the stone and so the pillars were repaired."

    assert ask("Why were the pillars repaired?", passage(text, "a"), passage(text, "b")).text == text


def test_the_retriever_breaks_ties_between_passages() -> None:
    low, high = passage("The code is 111 here.", "a", score=1.0), passage("The code is 222 here.", "b", score=2.0)

    assert ask("What is the code?", low, high).citations[0].document_id == "b"


def test_terms_that_a_search_drops_still_count_where_they_are_talked_about() -> None:
    def searched(text: str) -> list[str]:
        return [term for term in rough_terms(text) if term not in ("with", "while")]

    text = "The while statement repeats a block. The with statement closes what it opened."

    assert ask("What does the with statement do?", text, backend=Extractive(searched)).text.startswith("The with")


def test_embeddings_choose_among_sentences_with_the_same_words() -> None:
    def encode(texts: Sequence[str]) -> np.ndarray:
        return np.array([[1.0, 0.0] if "vessel" in text or "ship" in text else [0.0, 1.0] for text in texts])

    text = "The dock at Oslo holds one car. The dock at Oslo holds one vessel."

    assert "car" in ask("Is there a ship in the Oslo dock?", text).text
    assert "vessel" in ask("Is there a ship in the Oslo dock?", text, backend=Extractive(encode=encode)).text


def test_a_summary_takes_a_few_sentences_from_the_whole_text_in_order() -> None:
    paragraphs = [f"The bridge at place {n} carries trams over the river. Number {n} is red." for n in range(30)]
    text = "\n\n".join(["The river has thirty bridges, and trams run over them all.", *paragraphs])

    reply = ask("Summarize this document.", text)

    assert reply.answered
    assert 2 <= len(reply.citations) <= 4
    quoted = reply.text.split(" … ")
    assert sorted(quoted, key=text.index) == quoted


def test_a_needle_in_half_a_million_characters_is_found() -> None:
    hay = "The grass on the hill was dry and nobody came by. " * 10_000
    text = hay[:250_000] + "\n\nThe secret password of the lighthouse is marmalade.\n\n" + hay[:250_000]

    assert ask("What is the secret password of the lighthouse?", text).text == (
        "The secret password of the lighthouse is marmalade."
    )
