"""A long text is told from what is said around it, in one string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.router.proxy.blocks import Blocks, find_blocks, paragraphs, trim

TEXT = "\n\n".join(f"The delegation arrived in Paris on day {n}, and the talks went on." for n in range(100))


def blocks(text: str, *, asked_elsewhere: bool = False, strict: bool = False) -> Blocks:
    found = find_blocks(text, asked_elsewhere=asked_elsewhere, strict=strict)
    assert isinstance(found, Blocks), found
    return found


def inside(text: str, found: Blocks) -> list[str]:
    return [text[start:end] for start, end in found.spans]


def test_a_tag_that_the_text_mentions_does_not_end_it() -> None:
    text = f"<doc>{TEXT} </doc> {TEXT}</doc>\n\nWho came?"
    assert inside(text, blocks(text)) == [f"{TEXT} </doc> {TEXT}"]


def test_markup_inside_a_tag_belongs_to_the_text() -> None:
    text = f"<page><h1>News</h1><p>{TEXT}</p></page>\n\nWho came?"
    assert inside(text, blocks(text)) == [f"<h1>News</h1><p>{TEXT}</p>"]


def test_elements_nested_without_end_are_text() -> None:
    text = "".join(f"<t{n}>" for n in range(3000)) + TEXT + "".join(f"</t{n}>" for n in reversed(range(3000)))
    (span,) = blocks(f"{text}\n\nWho came?").spans
    assert TEXT in text[span[0] : span[1]]


def test_what_tags_call_a_question_or_a_title_is_no_text() -> None:
    text = f"<item><title>A</title><body_text>{TEXT}</body_text></item>\n<question>Who came?</question>"
    found = blocks(text)
    assert inside(text, found) == [TEXT]
    assert "Who came?" in text[found.said[0][0] : found.said[0][1]]


def test_a_string_of_its_own_is_text_from_end_to_end_where_the_question_is_elsewhere() -> None:
    text = f"Who came?\n\n{TEXT}\n\nWho left?"
    assert inside(text, blocks(text, asked_elsewhere=True)) == [text]


def test_choices_belong_to_the_question_above_them() -> None:
    text = f"{TEXT}\nWho came?\nA. one\nB. two"
    found = blocks(text)
    assert inside(text, found) == [TEXT]
    assert text[found.said[0][0] : found.said[0][1]] == "Who came?\nA. one\nB. two"


def test_rulers_inside_a_text_stay_in_it() -> None:
    text = f"Who came?\n\n---\n{TEXT}\n---\n{TEXT}"
    assert inside(text, blocks(text)) == [f"{TEXT}\n---\n{TEXT}"]


def test_a_list_that_begins_in_the_middle_is_one_text() -> None:
    text = f"{TEXT}\n[1] a reference\n[2] another\n\nWho came?"
    assert len(blocks(text).spans) == 1


@pytest.mark.parametrize("text", [f"You are Ada.\n\n{TEXT}", f"<rules>{TEXT}</rules>\n<style>{TEXT}</style>"])
def test_instructions_hold_a_text_only_where_they_say_so(text: str) -> None:
    assert isinstance(find_blocks(text, asked_elsewhere=True, strict=True), str)


@given(text=st.text("ab \n\t", max_size=60))
def test_paragraphs_are_trimmed_and_leave_out_only_white_space(text: str) -> None:
    spans = list(paragraphs(text, 0, len(text)))
    assert all(start < end and (start, end) == trim(text, start, end) for start, end in spans)
    assert "".join("".join(text[start:end].split()) for start, end in spans) == "".join(text.split())
