from __future__ import annotations

import gzip
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.router.core import Task
from longroute.router.lara_task import LARA_TASKS, lara_task, ngrams

DATA = Path(os.environ.get("LONGROUTE_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "lara"
LABELS: dict[str, Task] = {
    "location": "lookup",
    "reasoning": "reasoning",
    "comp": "comparison",
    "hallu": "unanswerable",
}
PHRASINGS: list[tuple[str, Task]] = [
    ("Compare the evaluation metrics used between paper 0 and paper 1.", "comparison"),
    ("What is the difference in approach between paper 1 and paper 2?", "comparison"),
    ("What date was the agreement between the two companies signed?", "lookup"),
    ("Why does the narrator allow the clerk to keep working?", "reasoning"),
    ("What was the total number of shares outstanding as of January 31?", "lookup"),
]


@pytest.fixture(scope="module")
def model() -> dict[str, Any]:
    text = resources.files("longroute.policies").joinpath("weights", "lara_task.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def likeliest(question: str) -> Task:
    shares = lara_task(question)
    return max(shares, key=lambda task: shares[task])


@pytest.mark.parametrize(("question", "task"), PHRASINGS)
def test_typical_phrasings_are_recognised(question: str, task: Task) -> None:
    assert likeliest(question) == task


@given(st.text(st.characters(), max_size=300))
def test_any_text_is_read_as_probabilities(question: str) -> None:
    shares = lara_task(question)
    assert tuple(shares) == LARA_TASKS
    assert all(0 <= share <= 1 for share in shares.values())
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    "question", ["", " ", "?", "\x00", "\ud800", "Straße İ ﬁ", "مرحبا", "什么时候", "🧭" * 999, "what " * 100_000]
)
def test_odd_questions_are_read_too(question: str) -> None:
    assert sum(lara_task(question).values()) == pytest.approx(1)


def test_a_question_without_a_known_word_is_read_as_the_bias_says(model: dict[str, Any]) -> None:
    odds = np.exp(model["bias"])
    for question in ("", "zzqx qqzv"):
        assert list(lara_task(question).values()) == pytest.approx(odds / odds.sum())


def test_only_the_beginning_of_a_long_question_is_read() -> None:
    beginning = "what " * 1_000
    assert lara_task(beginning[:4_000] + "Compare paper 0 and paper 1") == lara_task(beginning[:4_000])


def test_ngrams_are_words_of_two_letters_and_pairs_of_neighbours() -> None:
    assert ngrams("What IS a cat? What is...") == {
        "what": 2,
        "is": 2,
        "cat": 1,
        "what is": 2,
        "is cat": 1,
        "cat what": 1,
    }


def test_the_stored_tasks_stand_in_the_order_that_is_read(model: dict[str, Any]) -> None:
    assert tuple(model["tasks"]) == LARA_TASKS
    assert all(len(row) == 1 + len(LARA_TASKS) for row in model["vocabulary"].values())


def scikit_learn_twin(model: dict[str, Any], questions: list[str]) -> np.ndarray:
    """The stored model, run by scikit-learn's own tokenizer, TF-IDF and logistic regression. Shape (n, 4)."""
    text = pytest.importorskip("sklearn.feature_extraction.text")
    linear = pytest.importorskip("sklearn.linear_model")
    grams = sorted(model["vocabulary"])
    rows = np.array([model["vocabulary"][gram] for gram in grams])
    vectors = text.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, vocabulary=grams)
    vectors.idf_ = rows[:, 0]
    logistic = linear.LogisticRegression()
    logistic.classes_ = np.arange(len(LARA_TASKS))
    logistic.coef_, logistic.intercept_ = rows[:, 1:].T, np.array(model["bias"])
    shares: np.ndarray = logistic.predict_proba(vectors.transform(questions))
    return shares


def test_plain_python_says_what_scikit_learn_says(model: dict[str, Any]) -> None:
    rng, grams = np.random.default_rng(0), sorted(model["vocabulary"])
    made = [" ".join(rng.choice(grams, size=size)) for size in rng.integers(1, 40, size=200)]
    questions = [*(question for question, _ in PHRASINGS), *made, "", "I am a x-ray, 3 of 10; naïve Δx"]
    expected = scikit_learn_twin(model, questions)
    got = np.array([list(lara_task(question).values()) for question in questions])
    assert got == pytest.approx(expected, abs=1e-9)


@pytest.mark.skipif(
    not DATA.is_dir(), reason="needs LaRA's questions, which are not part of longroute: set LONGROUTE_DATA"
)
def test_lara_s_own_questions_are_read_as_their_authors_labelled_them() -> None:
    with gzip.open(DATA / "cases.jsonl.gz", "rt", encoding="utf-8") as lines:
        cases = [json.loads(line) for line in lines]
    right = [likeliest(case["question"]) == LABELS[case["task"]] for case in cases]
    assert np.mean(right) > 0.9  # it was trained on them: this says that the file is whole, not how well it generalises
