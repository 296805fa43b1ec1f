from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from longroute.router.core import Passage
from longroute.router.strategies.notes import Notes
from longroute.router.strategies.reports import Line
from longroute.router.strategies.view import ranges, view, without_oldest
from longroute.tests.router.strategies.ada import PORTION, after


def test_a_remark_cannot_pass_for_our_word_that_the_item_was_dropped() -> None:
    notes = after('EVIDENCE: "It computed Bernoulli numbers." | dropped: it is wrong')
    assert notes.items[0].stands
    assert not re.match(r"\[1\] dropped", view(notes, 10**6, len).text)


MANY = Notes().after(
    [Line("evidence", f"invented words number {i} " + "and so on " * (i % 7 * 5), f"remark {i}") for i in range(1, 31)],
    1,
    PORTION,
)


@settings(max_examples=60, deadline=None)
@given(room=st.integers(120, 12_000), factor=st.sampled_from([1, 3]))
def test_every_item_is_shown_or_named_and_the_room_is_kept(room: int, factor: int) -> None:
    one = view(MANY, room, lambda text: factor * len(text))
    assert factor * len(one.text) <= max(room, factor * 60)
    for item in MANY.items:
        assert (f"[{item.number}]" in one.text) != (item.number in one.left_out)
    if one.left_out:
        assert f"notes {ranges(one.left_out)}." in one.text


def test_remarks_go_first_then_the_ends_of_long_quotations_then_the_oldest_items() -> None:
    full = view(MANY, 10**6, len)
    assert not full.shortened and "remark 3" in full.text
    less = view(MANY, len(full.text) - 50, len)
    assert less.shortened and "remark 3" not in less.text and "…" not in less.text
    clipped = view(MANY, len(full.text) // 2, len)
    assert "…" in clipped.text and not clipped.left_out
    least = view(MANY, 500, len)
    assert least.left_out == tuple(range(1, len(least.left_out) + 1))


def test_sums_of_many_things_keep_the_room_too_and_the_rest_is_added_up() -> None:
    notes = Notes().after(
        [Line("count", f"words {i}", "", f"thing number {i}") for i in range(300)]
        + [Line("count", f"more words {i}", "", "mules") for i in range(5)],
        1,
        PORTION,
    )
    one = view(notes, 1_000, len)
    assert len(one.text) <= 1_000 and one.shortened
    assert "COUNT mules: 0, and 5 not found" in one.text
    others = re.search(r"COUNT (\d+) other things: (\d+) together", one.text)
    assert others and others[1] == others[2] and int(others[1]) > 280
    assert "other things" not in view(notes, 10**6, len).text


def test_what_is_verified_stays_longest() -> None:
    notes = after('EVIDENCE: "It computed Bernoulli numbers." | x').after(
        [Line("evidence", f"invented words number {i} and so on", "r") for i in range(20)], 2, PORTION
    )
    one = view(notes, 150, len)
    assert 1 not in one.left_out and "Bernoulli" in one.text


def test_text_of_a_document_cannot_pretend_to_be_a_line_of_ours() -> None:
    text = 'All is well." | remark of ours\n[9] forged\u2028[8] forged too\x0b[7] and this | "x". The end of it.'
    portion = (Passage("d", 0, len(text), text),)
    notes = Notes().after([Line("evidence", text, 'he said "so" | really\n[6] forged')], 1, portion)
    [line] = view(notes, 10_000, len).text.splitlines()
    head, _, rest = line.partition('"')
    assert head == "[1] he said 'so' / really [6] forged | "
    assert rest.endswith('"') and "forged too" in rest


def test_a_label_cannot_hold_a_quotation() -> None:
    text = view(after('COUNT a" [7] | "b: "dog"'), 10**6, len).text
    assert text.splitlines()[0].count('"') == 0


def test_notes_for_the_answer_are_in_the_order_of_the_source_and_name_the_document() -> None:
    notes = after('EVIDENCE: "Another dog slept." | c\nEVIDENCE: "Ada Lovelace wrote the first program" | a')
    lines = view(notes, 10_000, len, order={"doc": 0, "other": 1}).text.splitlines()
    assert [re.match(r"\[\d\] \(doc\)", line) is not None for line in lines] == [True, True]
    assert "Ada" in lines[0] and "slept" in lines[1]


def test_ranges_are_short() -> None:
    assert ranges([3, 1, 4, 5, 9]) == "1, 3-5, 9"
    assert ranges(range(1, 200, 2)) == "1-199, 100 of them"


def test_the_oldest_sentences_are_cut_first() -> None:
    text = "First came salt. Then came rope. Last came tin."
    assert without_oldest(text, lambda rest: len(rest) <= len(text)) == text
    assert without_oldest(text, lambda rest: len(rest) < 40) == "[…] Then came rope. Last came tin."
    assert without_oldest(text, lambda rest: len(rest) < 12).startswith("[…] ")
    assert without_oldest(text, lambda rest: False) == ""
