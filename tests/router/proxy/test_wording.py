"""What words around a text are taken for."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.router.proxy import wording
from longroute.router.proxy.wording import (
    asks,
    core,
    directs_the_model,
    instructs,
    introduces,
    leans,
    needs_every_word,
    shows_examples,
    system_needs_every_word,
    weight,
)


def test_no_pattern_matches_nothing() -> None:
    patterns = {name: value for name, value in vars(wording).items() if isinstance(value, re.Pattern)}
    assert [name for name, pattern in patterns.items() if pattern.search("\n 7 ;") is not None] == []


@pytest.mark.parametrize(
    "said",
    [
        "Translate the following text into French:",
        "please proofread this",
        "Can you rewrite the text below?",
        "I want you to edit this chapter.",
        "Read it, then convert it to Markdown.",
        "Your task is to fix all typos.",
        "Count the words.",
        "How many times does the word 'sea' occur?",
        "Extract all names from the text.",
        "Continue the story.",
        "Refactor this function.",
        "Übersetze den Text ins Englische.",
        "Bitte schreibe den Text in einfacher Sprache um.",
        "Corrigez les fautes.",
        "Reescribe el texto.",
        "Переведи текст.",
        "请把下面的文章翻译成英文",
        "この文章を翻訳してください",
        "이 글을 번역해 주세요",
        "ترجم النص التالي",
        "Riscrivi il testo.",
        "Vertaal deze tekst.",
    ],
)
def test_tasks_on_the_exact_text_need_every_word(said: str) -> None:
    assert needs_every_word(said)


@pytest.mark.parametrize(
    "said",
    [
        "Who translated the book?",
        "What did the editor change in the second edition?",
        "How did he convert to the new faith, and when?",
        "Summarize the meeting.",
        "Write a short summary of the report.",
        "What is the total number of points?",
        "Format your answer as a list.",
        "Explain why the count fled.",
        "Wer hat das Buch übersetzt?",
        "谁写了这本书？",
        "Сколько очков набрала команда?",
    ],
)
def test_questions_that_only_sound_like_it_do_not(said: str) -> None:
    assert not needs_every_word(said)
    assert asks(said) or instructs(said)


@pytest.mark.parametrize(
    "said",
    [
        "You are a translator from English to German.",
        "Act as a proofreader.",
        "Your job is to rewrite what the user sends.",
        "Translate everything into Spanish.",
    ],
)
def test_a_system_text_may_set_such_a_task(said: str) -> None:
    assert system_needs_every_word(said)


@pytest.mark.parametrize(
    "said", ["You are a helpful assistant.", "You answer questions. You can translate when a user asks for it."]
)
def test_a_system_text_that_mentions_one_in_passing_does_not(said: str) -> None:
    assert not system_needs_every_word(said)


@pytest.mark.parametrize("said", ["Why?", "And then?", "Are you sure?", "Go on.", "What about her?", "继续"])
def test_words_that_mean_nothing_alone_lean(said: str) -> None:
    assert leans(said)


@pytest.mark.parametrize(
    "said", ["Why did the ministry cancel the contract?", "Who signed for the buyer?", "Какая команда выиграла матч?"]
)
def test_a_question_with_a_subject_stands_alone(said: str) -> None:
    assert not leans(said)


@pytest.mark.parametrize(
    ("paragraph", "expected"),
    [
        ("Question: who signed?", 2),
        ("Based on the text above, who signed?", 2),
        ("Summarize the following report.", 2),
        ("Who signed?", 1),
        ("The buyer signed on the third of May.", 0),
        ("Ann: Shall we begin?", 0),
        ("", 0),
    ],
)
def test_a_paragraph_beside_a_text_weighs_by_how_clearly_it_asks(paragraph: str, expected: int) -> None:
    assert weight(paragraph) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Based on the text above, who signed?", "who signed?"),
        ("Use the text below.\nQuestion: who signed?\nAnswer:", "who signed?"),
        ("Who signed? Here is the text:", "Who signed?"),
        ("Answer from the document. Who signed? Be brief.", "Who signed?"),
        ('Is this true? "The buyer signed."', 'Is this true? "The buyer signed."'),
        ("In 1990, who signed?", "In 1990, who signed?"),
        ("Who signed?", "Who signed?"),
    ],
)
def test_the_core_of_a_request_is_its_question(said: str, expected: str) -> None:
    start, end = core(said)
    assert said[start:end] == expected


@given(said=st.text(max_size=200))
def test_the_core_lies_within_what_is_said(said: str) -> None:
    start, end = core(said)
    assert 0 <= start <= end <= len(said)


def test_introductions_and_instructions_are_told_from_text() -> None:
    assert introduces("Here is the report:")
    assert not introduces("The delegation arrived in Paris.")
    assert instructs("Answer in one sentence.")
    assert not instructs("The delegation arrived in Paris.")


def test_examples_are_seen_by_their_labels() -> None:
    assert shows_examples("Input: a\nOutput: b\n\nInput: c\nOutput: d\n\nInput: e\nOutput:")
    assert not shows_examples("Question: who signed?\nAnswer:")


def test_a_prompt_is_told_from_a_text_by_its_words() -> None:
    assert directs_the_model("Never guess. You must use the tools. Do not reply before the user asks. " * 50)
    assert not directs_the_model("The delegation arrived in Paris, where the talks had not begun. " * 50)
