from __future__ import annotations

import pytest

from longroute.router.backends.asked import read


@pytest.mark.parametrize(
    ("question", "content"),
    [
        ("Who is the author of the letter?", "letter"),
        ("What does WHO recommend in the US?", "WHO recommend US"),
        ("WHO IS ADA LOVELACE?", "ADA LOVELACE"),
        ("What does the with statement do?", "with statement"),
        ("What is the meaning of 'if'?", "meaning if"),
        ("Wann wurde die Brücke gebaut?", "Brücke gebaut"),
        ("故宫是什么时候建的？", "故宫 建"),
        ("लाल किला किसने बनवाया था?", "लाल किला बनवाया"),
    ],
)
def test_question_words_go_and_what_is_sought_stays(question: str, content: str) -> None:
    assert read(question).content == content


@pytest.mark.parametrize(
    ("question", "answer", "other"),
    [
        ("When was it built?", "Built in 1920.", "Built of stone."),
        ("Wann wurde es gebaut?", "Im Jahr 1920.", "Aus Stein."),
        ("它是何时建成的？", "建于1920年。", "用石头建成。"),
        ("How many rooms are there?", "There are twelve.", "There are rooms."),
        ("Сколько там комнат?", "Там 12 комнат.", "Там комнаты."),
        ("Who built it?", "Built by Ada Lovelace.", "built by the town."),
        ("Where was it built?", "It stands in Paris.", "It stands."),
        ("Why did it fall?", "It fell because of rain.", "It fell."),
    ],
)
def test_the_form_of_an_answer_is_known(question: str, answer: str, other: str) -> None:
    expected = read(question).expected

    assert expected is not None
    assert expected.search(answer)
    assert not expected.search(other)


@pytest.mark.parametrize(
    ("question", "subject"),
    [
        ("What is a slice?", "slice"),
        ("Who was Ada Lovelace?", "Ada Lovelace"),
        ("What does the pass statement do?", "pass statement"),
        ("Was ist ein Router?", "Router"),
        ("什么是路由器？", "路由器"),
        ("What is the price that they paid for all of it?", ""),
    ],
)
def test_the_thing_to_define_is_found(question: str, subject: str) -> None:
    assert read(question).subject == subject


@pytest.mark.parametrize(
    "question",
    [
        "Summarize the report.",
        "Could you please summarise it?",
        "A short overview, please",
        "Give me a brief summary of the meeting",
        "What is this text about?",
        "Resume el documento.",
        "总结一下",
        "TL;DR",
        "What is it?",
    ],
)
def test_a_summary_is_wanted_where_nothing_in_particular_is(question: str) -> None:
    assert read(question).summary


@pytest.mark.parametrize(
    "question",
    [
        "What does Ada say about bridges?",
        "When did the work resume?",
        "Who moved for summary judgment?",
        "How do the authors of the paper summarize the evidence?",
    ],
)
def test_a_question_about_something_is_no_summary(question: str) -> None:
    assert not read(question).summary


def test_a_hostile_question_is_read_quickly() -> None:
    assert not read("what is " + "a" * 50_000 + " " * 50_000 + "!").subject
