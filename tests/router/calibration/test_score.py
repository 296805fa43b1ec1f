from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.router.calibration.score import (
    ScorerName,
    choice,
    chosen_letter,
    contains,
    exact_match,
    judge_call,
    normalise,
    refuses,
    rouge_l,
    score,
    scorer_for,
    token_f1,
    verdict,
)
from longroute.router.prompts import REFUSAL

Golden = tuple[str, list[str], float]

F1: list[Golden] = [
    ("The Eiffel Tower, in Paris.", ["Eiffel Tower"], 2 / 3),  # as LongBench's code has it
    ("state-of-the-art model", ["state of the art model"], 1 / 3),  # punctuation is deleted, not replaced
    ("", ["Paris"], 0.0),
    ("the a an", ["the"], 0.0),  # nothing is left of either
    ("Paris", ["London", "Paris"], 1.0),
    ("Paris", [], 0.0),
    ("paris PARIS", ["Paris"], 2 / 3),  # a word counts as often as it occurs in both
    ("It is 412 kilograms.", ["412"], 0.4),
    ("北京", ["北京"], 1.0),
    ("是北京。", ["北京"], 0.8),  # by character, without Chinese punctuation
    ("上海", ["北京"], 0.0),
    ("東京タワー", ["東京"], 4 / 7),
]
EXACT: list[Golden] = [
    ("The Eiffel Tower!", ["eiffel tower"], 1.0),
    ("Eiffel Tower in Paris", ["Eiffel Tower"], 0.0),
    ("  two   words ", ["two words"], 1.0),
    ("state-of-the-art", ["stateoftheart"], 1.0),
    ("", ["x"], 0.0),
    ("x", [], 0.0),
    ("b", ["a b", "c"], 1.0),
    ("1,150", ["1150"], 1.0),
    ("theory", ["ory"], 0.0),  # articles are whole words
    ("北京", ["北京"], 1.0),
]
CONTAINS: list[Golden] = [
    ("It weighs 412 kilograms.", ["412"], 1.0),
    ("It was in 2012.", ["12"], 0.0),
    ("Eiffel Tower in Paris", ["the Eiffel Tower"], 1.0),
    ("Eiffel", ["Eiffel Tower"], 0.0),
    ("", ["x"], 0.0),
    ("anything", ["the"], 0.0),  # nothing is left of the reference
    ("anything", [], 0.0),
    ("red or blue", ["green", "blue"], 1.0),
    ("首都是北京。", ["北京"], 1.0),
    ("PARIS", ["Paris"], 1.0),
]
ROUGE: list[Golden] = [
    ("the cat sat", ["the cat sat"], 1.0),
    ("the cat sat on the mat", ["the cat lay on a mat"], 4 / 6),
    ("a b c d", ["d c b a"], 0.25),
    ("", ["a"], 0.0),
    ("a", [""], 0.0),
    ("a", [], 0.0),
    ("A B", ["a b"], 1.0),
    ("a b.", ["a b"], 0.5),  # white space alone separates
    ("a x b y c", ["a b c"], 6 / 8),
    ("天气很好", ["天气好"], 6 / 7),
    ("x", ["y", "x z"], 2 / 3),
]
CHOICE: list[Golden] = [
    ("B", ["B"], 1.0),
    ("(b)", ["B"], 1.0),
    ("b.", ["B"], 1.0),
    ("The correct answer is (C).", ["C"], 1.0),
    ("**The correct answer is C**", ["C"], 1.0),
    ("Answer: D because A is wrong", ["D"], 1.0),
    ("B. the wiring", ["A"], 0.0),
    ("the wiring", ["C", "the wiring"], 1.0),
    ("", ["A", "the wiring"], 0.0),
    ("A careful reading shows that it is C.", ["C"], 1.0),  # an article is no answer
    ("I think B fits best", ["B"], 1.0),
    ("The answer is a matter of taste.", ["A"], 0.0),
    ("it's complicated", ["S"], 0.0),
    ("答案是 B", ["B"], 1.0),
    ("A", ["A", "Paris"], 1.0),
]


@pytest.mark.parametrize(("prediction", "references", "expected"), F1)
def test_token_f1(prediction: str, references: list[str], expected: float) -> None:
    assert token_f1(prediction, references) == pytest.approx(expected)


@pytest.mark.parametrize(("prediction", "references", "expected"), EXACT)
def test_exact_match(prediction: str, references: list[str], expected: float) -> None:
    assert exact_match(prediction, references) == expected


@pytest.mark.parametrize(("prediction", "references", "expected"), CONTAINS)
def test_contains(prediction: str, references: list[str], expected: float) -> None:
    assert contains(prediction, references) == expected


@pytest.mark.parametrize(("prediction", "references", "expected"), ROUGE)
def test_rouge_l(prediction: str, references: list[str], expected: float) -> None:
    assert rouge_l(prediction, references) == pytest.approx(expected)


@pytest.mark.parametrize(("prediction", "references", "expected"), CHOICE)
def test_choice(prediction: str, references: list[str], expected: float) -> None:
    assert choice(prediction, references) == expected


def test_no_letter_is_found_where_none_is_given() -> None:
    assert chosen_letter("") is None
    assert chosen_letter("nothing of the kind") is None


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        (REFUSAL, True),
        ("The passages do not say.", True),
        ("The text doesn’t mention her age.", True),
        ("There is no information about parking.", True),
        ("This cannot be determined; not enough information.", True),
        ("It is not explicitly stated in the document.", True),
        ("文中未提及。", True),
        ("", True),
        ("Jonna Eide", False),
        ("Leider beträgt die Miete 900 Euro.", False),  # an invented answer is not a refusal for being polite
        ("She is 42 years old.", False),
        ("No.", False),
        ("The notice period is four months.", False),
    ],
)
def test_refusals_are_recognised(prediction: str, expected: bool) -> None:
    assert refuses(prediction) is expected


def test_refusing_is_right_where_the_documents_do_not_say_and_wrong_where_they_do() -> None:
    assert score("f1", REFUSAL, []) == 1.0
    assert score("f1", "42", []) == 0.0
    assert score("contains", REFUSAL, ["the answer"]) == 0.0


def test_a_right_answer_may_deny_something() -> None:
    assert score("contains", "No, the lease does not mention pets.", ["no"]) == 1.0


def test_the_task_and_the_choices_decide_on_the_scorer() -> None:
    assert scorer_for("lookup", choices=True) == "choice"
    assert scorer_for("summary", choices=False) == "rouge_l"
    assert scorer_for("", choices=False) == "f1"


@given(
    st.sampled_from(["f1", "exact", "contains", "rouge_l"]),
    st.text(max_size=60),
    st.lists(st.text(max_size=30), max_size=3),
)
def test_scores_are_shares_and_references_only_help(scorer: ScorerName, prediction: str, references: list[str]) -> None:
    value = score(scorer, prediction, references)
    assert 0 <= value <= 1
    if references:
        assert score(scorer, prediction, [*references, "another"]) >= value


@given(st.text(alphabet="abc xyz", min_size=1))
def test_a_text_is_right_about_itself(text: str) -> None:
    if normalise(text):
        assert token_f1(text, [text]) == exact_match(text, [text]) == contains(text, [text]) == 1


def test_the_judge_is_asked_in_json_at_temperature_0() -> None:
    call = judge_call('Who "did" it?', ["Ada"], "Ada, I think", "judge-model")
    assert json.loads(call.messages[1].content) == {
        "question": 'Who "did" it?',
        "references": ["Ada"],
        "answer": "Ada, I think",
    }
    assert (call.temperature, call.model, call.purpose) == (0.0, "judge-model", "judge")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('{"verdict": "CORRECT"}', 1.0),
        ('```json\n{"verdict": "INCORRECT"}\n```', 0.0),
        ("CORRECT", 1.0),
        ("It could be CORRECT, but no: INCORRECT", 0.0),
        ("I cannot tell what is correct.", None),
        ("", None),
    ],
)
def test_a_verdict_is_read_or_missed_but_never_guessed(reply: str, expected: float | None) -> None:
    assert verdict(reply) == expected
