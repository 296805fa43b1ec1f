from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longroute.router.strategies.notes import Notes
from longroute.router.strategies.reports import Line, parse
from longroute.router.strategies.view import view
from longroute.tests.router.strategies.ada import PORTION, TEXT, after, shown


@pytest.mark.parametrize(
    "reply",
    [
        'EVIDENCE: "Two dogs sat by the gate." | there were two',
        '- **EVIDENCE:** "Two dogs sat by the gate." | there were two',
        "1. EVIDENCE: “Two dogs sat by the gate.” | there were two",
        '```\nEVIDENCE: "Two dogs sat by the gate." | there were two\n```',
        'Here is what I found:\n\n* EVIDENCE - "Two dogs sat by the gate." — there were two',
        "evidence: «Two dogs sat by the gate.» ｜ there were two",
        "EVIDENCE：「Two dogs sat by the gate.」 | there were two",
        'EVIDENCE: "Two dogs sat\nby the gate." | there were two',
        'EVIDENCE: "Two dogs sat by the gate." |\nthere were two',
        '"Two dogs sat by the gate." | there were two',
        "EVIDENCE: Two dogs sat by the gate. | there were two",
    ],
)
def test_evidence_is_understood_in_many_spellings(reply: str) -> None:
    [item] = after(reply).items
    assert item.place is not None and item.quote == "Two dogs sat by the gate."
    assert item.remark == "there were two"


def test_a_quotation_may_hold_quotation_marks_and_bars() -> None:
    [line] = parse('EVIDENCE: "He said "no" and left" | refused').lines
    assert (line.quote, line.remark) == ('He said "no" and left', "refused")


def test_a_quotation_that_was_cut_off_is_kept() -> None:
    [item] = after('EVIDENCE: "Two dogs sat by the').items
    assert item.place is not None and item.quote == "Two dogs sat by the"


@pytest.mark.parametrize(
    "reply", ["NOTHING", "Nothing.", "**NOTHING**", "  - NOTHING\n", "", "NOTHING\n\nThe part is about dogs."]
)
def test_nothing_is_nothing(reply: str) -> None:
    assert parse(reply).lines == ()


def test_a_reply_in_no_form_is_kept_whole() -> None:
    [item] = after("The gate was watched by dogs.\nI think there were two.").items
    assert item.remark == "The gate was watched by dogs. I think there were two." and item.place is None
    assert item.remark in shown(Notes((item,)))


def test_complete_is_heard() -> None:
    assert parse('EVIDENCE: "A dog barked at noon." | noon\nCOMPLETE').complete
    assert not parse("The notes are complete nonsense: x").complete


def test_corrections_and_drops_name_their_items() -> None:
    lines = parse('CORRECT [3]: "words here" | not so\nDROP 4, 5: wrong person\nDROP note 6 - no\nDROP 7').lines
    assert lines[0] == Line("correct", "words here", "not so", targets=(3,))
    assert lines[1] == Line("drop", remark="wrong person", targets=(4, 5))
    assert lines[2] == Line("drop", remark="no", targets=(6,))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "EVIDENCE",
                "COUNT",
                "CORRECT 1",
                "DROP 1",
                "NOTHING",
                "COMPLETE",
                ":",
                '"',
                "“",
                "|",
                "\n",
                " ",
                "- ",
                "**",
                "1",
            ]
        )
        | st.text(max_size=20),
        max_size=30,
    ).map("".join)
)
def test_any_reply_is_read_and_no_word_of_one_without_form_is_lost(reply: str) -> None:
    lines = parse(reply).lines
    notes = Notes().after(lines, 1, PORTION)
    for item in notes.items:
        assert item.place is None or TEXT[item.place.start - 100 : item.place.end - 100] == item.place.text
    text = view(notes, 100_000, len).text
    assert len(text.split("\n")) == len(view(notes, 100_000, len).lines) or not text
