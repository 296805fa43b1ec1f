"""Sanity of the question classifier on questions of our own, none of them used in training."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.router.core import TASKS, Task
from longroute.router.question_type import features, question_type, rule

QUESTIONS: dict[Task, tuple[str, ...]] = {
    "lookup": (
        "When was the lighthouse at Tornby built?",
        "Who signed the lease on behalf of the landlord?",
        "What is the maximum operating temperature of the pump?",
        "How much did the city pay for the land?",
        "Where was the treaty negotiated?",
        "In which year did Marta Olsen join the board?",
        "Wann wurde die Brauerei gegründet?",
        "Wer unterschrieb den Mietvertrag?",
        "Wie hoch ist die Kaution?",
        "Où a été signé le traité ?",
        "¿Quién firmó el contrato de alquiler?",
        "Когда была основана компания?",
        "这座灯塔是哪一年建成的？",
        "誰が契約書に署名しましたか？",
        "متى تأسست الشركة؟",
    ),
    "reasoning": (
        "Why did the board reject the merger?",
        "How did the flood affect the harvest, and what does that imply for next year's prices?",
        "What led the committee to change its mind about the bridge?",
        "How does the author's childhood influence his view of authority?",
        "Why might the second witness be lying?",
        "Warum lehnte der Vorstand die Fusion ab?",
        "Pourquoi le conseil a-t-il refusé la fusion ?",
        "¿Por qué rechazó el consejo la fusión?",
        "Почему совет отказался от слияния?",
        "董事会为什么拒绝合并？",
    ),
    "comparison": (
        "Compare revenue of 2021 and 2022.",
        "What are the differences between the first and the second draft?",
        "Which of the two bridges is longer, the Arno or the Selva?",
        "How do the two witnesses' accounts differ?",
        "Did the northern or the southern plant produce more steel?",
        "Vergleiche den Umsatz von 2021 und 2022.",
        "Worin unterscheidet sich der erste vom zweiten Entwurf?",
        "Comparez le chiffre d'affaires de 2021 et de 2022.",
        "¿Cuál es la diferencia entre el primer y el segundo borrador?",
        "В чём разница между первым и вторым вариантом?",
        "比较2021年和2022年的收入。",
        "二つの案の違いは何ですか？",
    ),
    "aggregation": (
        "How many times does the word 'liability' occur?",
        "List all the people who spoke at the hearing.",
        "Name every city the narrator visits.",
        "Give the dates of all board meetings in chronological order.",
        "What is the total number of defects reported across all sites?",
        "Wie oft kommt das Wort Haftung vor?",
        "Zähle alle Städte auf, die der Erzähler besucht.",
        "Énumère toutes les villes visitées par le narrateur.",
        "¿Cuántas veces aparece la palabra responsabilidad?",
        "Перечисли все города, которые посещает рассказчик.",
        "列出叙述者访问过的所有城市。",
        "語り手が訪れたすべての都市を挙げてください。",
    ),
    "summary": (
        "Summarise the document.",
        "Give me a short summary of the hearing.",
        "What is the main message of this report?",
        "Write an overview of the paper for a lay reader.",
        "tl;dr",
        "Fasse das Dokument zusammen.",
        "Wovon handelt das Buch?",
        "Résume le document.",
        "¿De qué trata el libro?",
        "О чём эта книга?",
        "总结一下这份文件。",
        "この文書を要約してください。",
    ),
    "code": (
        "What does function foo return?",
        "Where is the class RetryPolicy instantiated?",
        "Why does parse_args() raise a ValueError?",
        "Write unit tests for the tokenizer module.",
        "Which method overrides on_close in the subclass?",
        "Was gibt die Funktion foo zurück?",
        "¿Qué devuelve la función foo?",
        "函数 foo 返回什么？",
    ),
}  # fmt: skip


def test_most_plain_questions_get_the_type_a_person_would_name() -> None:
    asked = [(task, question) for task, questions in QUESTIONS.items() for question in questions]
    wrong = []
    for task, question in asked:
        probability = question_type(question)
        said = max(TASKS, key=probability.__getitem__)
        if said != task:
            wrong.append(f"{question} is {task}, said {said} ({probability[said]:.2f})")
    assert len(asked) >= 60
    assert len(wrong) <= len(asked) * 0.1, "\n".join(wrong)


def test_no_test_question_was_trained_on(repository: Path) -> None:
    seeds = json.loads((repository / "benchmarks" / "question_type_seeds.json").read_text(encoding="utf-8"))
    trained = {question for questions in seeds.values() for question in questions}
    assert not trained & {question for questions in QUESTIONS.values() for question in questions}


def test_a_question_that_only_the_document_could_refute_leaves_the_type_open() -> None:
    """Whether an answer is in the text is barely visible from the question: lookup must stay in the running."""
    probability = question_type("What brand of tea did the inspector drink on the night of the fire?")
    assert probability["unanswerable"] > 0.05
    assert probability["lookup"] > 0.05


@given(st.text(max_size=300))
def test_probabilities_cover_the_tasks_and_sum_to_one(question: str) -> None:
    probability = question_type(question)
    assert tuple(probability) == TASKS
    assert all(0 <= p <= 1 for p in probability.values())
    assert math.isclose(sum(probability.values()), 1)


@given(st.text(max_size=60))
def test_surrounding_space_does_not_matter(question: str) -> None:
    assert question_type(f"  {question}\n") == question_type(question)


def test_pasted_text_is_read_at_its_beginning_and_end_only() -> None:
    """Costs stay bounded, and the request before or after the paste still counts."""
    paste = "The weather was fair and nothing happened. " * 200
    assert len(features(paste)) < 500
    assert rule(features(f"Summarise this: {paste}")) == "summary"
    assert rule(features(f"{paste} Summarise the text above.")) == "summary"


@pytest.mark.parametrize(
    "question", ["Vergleiche A und B.", "Compare A et B.", "比较A和B", "Сравни A и B", "قارن بين A و B"]
)
def test_cues_mean_the_same_in_every_language(question: str) -> None:
    assert "cue: compare" in features(question)
