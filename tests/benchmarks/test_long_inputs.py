"""Inputs of a chosen length hold the evidence of their questions, and say rightly how it is spread."""

from __future__ import annotations

from pathlib import Path

import pytest

from longroute.benchmarks.data import Question, Span, data_directory
from longroute.benchmarks.long_inputs import (
    CHARACTERS_PER_TOKEN,
    PLACE,
    SETS,
    SPREAD,
    facts,
    long_inputs,
    places,
)
from longroute.benchmarks.simulated_reader import SimulatedReader
from longroute.router.core import Document


@pytest.fixture
def data() -> Path:
    directory = data_directory()
    if directory is None or not all((directory / name).is_dir() for name in SETS):
        pytest.skip("The data sets are not here: set LONGROUTE_DATA (see benchmarks/data.py).")
    return directory


@pytest.mark.parametrize("name", SETS)
def test_every_fact_stands_in_an_input_of_the_wanted_length(data: Path, name: str) -> None:
    pools = long_inputs(data, name, 8000, 4)
    assert sum(len(pool.questions) for pool in pools) == 4
    for pool in pools:
        texts = [document.text for document in pool.documents]
        assert sum(map(len, texts)) == pytest.approx(8000 * CHARACTERS_PER_TOKEN, abs=1)
        assert len({document.id for document in pool.documents}) == len(texts)
        for question in pool.questions:
            found = facts(question, pool.documents)
            assert {s.fact for s in SimulatedReader(found).shown("\n".join(texts))} == set(range(len(found)))


def test_sessions_of_a_conversation_keep_their_order(data: Path) -> None:
    [pool] = long_inputs(data, "locomo", 60_000, 1)
    of: dict[str, list[int]] = {}
    for document in pool.documents:
        conversation, _, start = document.id.partition("#")
        of.setdefault(conversation, []).append(int(start))
    assert max(map(len, of.values())) > 1
    assert all(starts == sorted(starts) for starts in of.values())


def test_equal_seeds_give_equal_inputs(data: Path) -> None:
    assert long_inputs(data, "multihop", 8000, 3) == long_inputs(data, "multihop", 8000, 3)
    assert long_inputs(data, "multihop", 8000, 3) != long_inputs(data, "multihop", 8000, 3, seed=1)


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([("a", 0, 100)], 1),
        ([("a", 0, 100), ("a", 500, 600)], 1),
        ([("a", 0, 100), ("a", PLACE + 500, PLACE + 600)], 2),
        ([("a", 0, 100), ("b", 0, 100), ("c", 50, 60)], SPREAD),
        ([("a", 0, 3 * PLACE)], 3),
    ],
)
def test_places(spans: list[tuple[str, int, int]], expected: int) -> None:
    assert places(Question("q", "?", tuple(Span(*span) for span in spans))) == expected


def test_short_sentences_are_no_facts_unless_there_is_nothing_else() -> None:
    text = "Yes. The bell was cast by Orla Brandt in winter. No!"
    question = Question("q", "?", (Span("a", 0, len(text)), Span("a", 0, 4)))
    assert facts(question, [Document(text, "a")]) == ["The bell was cast by Orla Brandt in winter.", "Yes."]
