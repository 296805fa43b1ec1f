from __future__ import annotations

import pytest

from longroute.router.core import TASKS, Document, Evidence, ModelProfile, Request
from longroute.router.features import extract
from longroute.router.lara_task import LARA_TASKS

PROFILE = ModelProfile("some-model", 200)
QUESTION = "When was the bridge opened?"
EVIDENCE = Evidence(0.9, 0.6, 7.0, 0.2, 0.7, 0.1)


class Words:
    """Counts words, and remembers what it was asked."""

    relative_error = 0.07

    def __init__(self) -> None:
        self.asked: list[str] = []

    def count(self, text: str) -> int:
        self.asked.append(text)
        return len(text.split())


def request(*documents: Document, instructions: str = "") -> Request:
    return Request(QUESTION, documents, "some-model", instructions=instructions, max_output_tokens=77)


def test_documents_question_and_instructions_are_counted_apart() -> None:
    asked = request(Document("one two three"), Document("four five"), instructions="Be brief.")
    features = extract(asked, PROFILE, Words(), EVIDENCE, cached_tokens=3)
    assert (features.document_tokens, features.question_tokens, features.instruction_tokens) == (5, 5, 2)
    assert (features.n_documents, features.max_output_tokens, features.cached_tokens) == (2, 77, 3)
    assert features.token_error == Words.relative_error
    assert features.evidence is EVIDENCE


def test_a_conversation_counts_as_one_document_with_names_and_times() -> None:
    turns = [Document("four five", f"c#{n}", speaker="Ada", time="Monday noon") for n in range(3)]
    counter = Words()
    features = extract(request(Document("one two three"), *turns), PROFILE, counter, EVIDENCE)
    assert features.n_documents == 2
    assert "Ada (Monday noon): four five\nAda: four five\nAda: four five" in counter.asked


def test_the_window_ratio_is_the_text_s_share_of_the_window_and_may_exceed_one() -> None:
    assert extract(request(Document("word " * 50)), PROFILE, Words(), None).window_ratio == pytest.approx(0.25)
    assert extract(request(Document("word " * 300)), PROFILE, Words(), None).window_ratio == pytest.approx(1.5)


@pytest.mark.parametrize("turned", [False, True])
def test_the_kind_is_that_of_the_largest_document(turned: bool) -> None:
    documents = [Document("short", kind="pdf"), Document("def long(): ...", kind="code"), Document("mid", kind="html")]
    assert extract(request(*(documents[::-1] if turned else documents)), PROFILE, Words(), None).kind == "code"


def test_a_caller_s_own_count_of_documents_is_used_for_documents_alone() -> None:
    counter = Words()
    features = extract(request(Document("a text")), PROFILE, counter, None, count_document=lambda text: 1_000)
    assert features.document_tokens == 1_000
    assert counter.asked == [QUESTION, ""]


def test_both_readings_of_the_question_are_probabilities() -> None:
    features = extract(request(Document("text")), PROFILE, Words(), None)
    assert set(features.task) == set(TASKS)
    assert set(features.lara_task) == set(LARA_TASKS)
    assert sum(features.task.values()) == pytest.approx(1)
    assert sum(features.lara_task.values()) == pytest.approx(1)


def test_the_same_request_has_the_same_features() -> None:
    asked = request(Document("one two"), Document("three"))
    assert extract(asked, PROFILE, Words(), EVIDENCE) == extract(asked, PROFILE, Words(), EVIDENCE)


def test_the_question_is_read_without_the_documents() -> None:
    short, long = (extract(request(Document(text)), PROFILE, Words(), None) for text in ("a", "Compare all. " * 50))
    assert (short.task, short.lara_task) == (long.task, long.lara_task)
