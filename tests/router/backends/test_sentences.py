from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.router.backends.sentences import split


def pieces(text: str, kind: str = "") -> list[str]:
    return [text[unit.start : unit.end] for unit in split(text) if not kind or unit.kind == kind]


@given(st.text(alphabet="aB1 .!?。\n#|-`=\t\"'ไ", max_size=300))
def test_units_are_in_order_apart_and_lose_no_word(text: str) -> None:
    units = split(text)

    assert all(one.end <= other.start for one, other in pairwise(units))
    assert all(text[unit.start : unit.end].strip() == text[unit.start : unit.end] != "" for unit in units)
    covered = {i for unit in units for i in range(unit.start, unit.end)}
    assert all(i in covered or not character.isalnum() for i, character in enumerate(text))


@pytest.mark.parametrize(
    "sentences",
    [
        ["Dr. A. Smith paid 3.5 million to Acme Inc. in Jan. 2020.", "Why?", '"Because!"', "He left."],
        ["Er starb am 5. Mai 1910 in Wien.", "Sie blieb."],
        ["See e.g. section 3 of it, i.e. the end.", "Done…", "Next."],
        ["他说：“你好。”", "然后走了！", "为什么？"],
        ["قال نعم.", "هل جاء؟", "لا."],
        ["राम घर गया।", "वह सोया।"],
    ],
)
def test_sentences_end_where_readers_think_so(sentences: list[str]) -> None:
    joiner = "" if sentences[0].startswith("他") else " "

    assert pieces(joiner.join(sentences)) == sentences


def test_wrapped_lines_are_one_sentence_and_other_lines_are_not() -> None:
    wrapped = "The first sentence is long enough to be\nbroken by its width, and it ends here. The\nsecond is short."
    listed = "Shopping for the party next Saturday:\n- three eggs and a pint of whole milk\n- one loaf of bread"
    log = "2024-01-02 10:00:01 INFO started server on port 80\n2024-01-02 10:00:05 ERROR the disk is full now"

    assert len(pieces(wrapped)) == 2
    assert len(pieces(listed)) == 3
    assert len(pieces(log)) == 2


def test_headings_rows_and_code_are_told_apart() -> None:
    text = (
        "# Guide\n\nInstalling\n==========\n\nRun this command first.\n\nNotes on use\n\nIt takes a minute or two.\n\n"
        "| Plan | Price |\n|---|---|\n| Pro | $12 |\n\n```sh\npip install acme\n\n# a comment\n```\n\nThe end."
    )

    assert pieces(text, "heading") == ["# Guide", "Installing", "Notes on use"]
    assert pieces(text, "row") == ["| Plan | Price |", "| Pro | $12 |"]
    assert pieces(text, "code") == ["pip install acme", "# a comment"]
    assert pieces(text, "sentence") == ["Run this command first.", "It takes a minute or two.", "The end."]


def test_source_code_without_a_fence_is_code_and_its_prose_is_prose() -> None:
    text = (
        'def connect(host):\n    """Open a connection.\n\n    It may fail after a while.\n    """\n'
        "    x = open(host)\n    return x\n"
    )

    assert "It may fail after a while." in pieces(text, "sentence")
    assert "x = open(host)" in pieces(text)


def test_what_has_no_end_is_cut_at_commas() -> None:
    text = ", ".join(["some words without a full stop"] * 100)

    assert max(map(len, pieces(text))) <= 500
    assert all(piece.endswith(",") for piece in pieces(text)[:-1])


@pytest.mark.parametrize(
    "part", ["." * 50_000 + "x", "f(" + " " * 50_000 + "x", "if " + "( " * 25_000, "-" * 50_000, "a.b" * 20_000]
)
def test_hostile_text_takes_no_longer_than_other_text(part: str) -> None:
    assert all(unit.end - unit.start <= 500 or unit.kind != "sentence" for unit in split(part * 2))


def test_scripts_without_full_stops_are_cut_at_spaces() -> None:
    phrase = "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย"

    assert pieces(" ".join([phrase] * 5)) == [f"{phrase} {phrase}", f"{phrase} {phrase}", phrase]
