from __future__ import annotations

import json
import random
from pathlib import Path

from longroute.benchmarks.key_values import invented_facts, words
from longroute.benchmarks.mixed_questions import DECOYS, decoy, mixed_questions
from longroute.router.assemble import make_retriever
from longroute.router.calibration.dataset import read_dataset
from longroute.router.core import Document
from longroute.router.settings import load_settings

ROWS = list(mixed_questions(0, (60, 200), 4))


def test_answers_stand_in_their_texts_and_missing_ones_do_not() -> None:
    assert [row.kind for row in ROWS[:8]] == [
        "plain",
        "plain",
        "plain",
        "missing",
        "decoyed",
        "decoyed",
        "plain",
        "missing",
    ]
    for row in ROWS:
        subject = row.question.removeprefix("What is the ").rstrip("?")
        assert (f"The {subject} is {row.answer}." in row.text) == (row.kind != "missing")


def test_the_same_seed_gives_the_same_questions() -> None:
    assert list(mixed_questions(0, (60, 200), 4)) == ROWS
    assert list(mixed_questions(1, (60, 200), 4)) != ROWS


def test_calibration_reads_them_with_texts_as_groups(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row.line()) + "\n" for row in ROWS))
    cases = read_dataset(file).cases
    assert len(cases) == 32 and len({case.group for case in cases}) == 8


def test_decoys_are_made_of_words_that_the_model_knows() -> None:
    known = set(words())
    for fact in invented_facts(random.Random(2), 20):
        assert set(decoy(random.Random(3), fact).rstrip(".").split()) <= known


def test_decoys_use_up_a_search_s_budget() -> None:
    retriever = make_retriever(load_settings(embedding_model="none", cache=False))
    found = {"plain": 0, "decoyed": 0}
    for row in ROWS:
        if row.kind in found and row.page.startswith("page-200"):
            passages = retriever.retrieve(row.question, [Document(row.text, "page")], budget_tokens=400)
            found[row.kind] += any(row.answer in passage.text for passage in passages)
    assert found["plain"] == 8 and found["decoyed"] <= 1, DECOYS
