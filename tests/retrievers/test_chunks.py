from __future__ import annotations

import unicodedata
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from longroute.retrievers.chunks import Chunk, split
from longroute.router.core import Document, Kind
from longroute.router.errors import ConfigError
from longroute.router.tokens import cumulative_tokens

ZWJ = "\u200d"
FAMILY = ZWJ.join("👨👩👧👦")
LINE_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"

hostile_piece = st.sampled_from(
    [
        *("\r\n", "\n\n", "\n", "\r", "\u2028", " ", "\t", "\x00", "\ud800", "\udc00", "\ud83d\ude00", "\ufeff"),
        *("e\u0301", "\u0301\u0302", FAMILY, "👍🏽", "🇩🇪🇫🇷🇯🇵", "क्षि", "กำ้", "שָׁלוֹם", "مرحبا بكم.", "\u202e", "각"),
        *("# Heading\n", "```\ncode\n```\n", "| a | b |\n| c | d |\n", "TITLE\n", "2.1 Scope\n", "Title\n====\n"),
        *(
            "A sentence ends. ",
            "「はい。」",
            "这是一句话。",
            "word ",
            "x" * 90,
            "1,234.5",
            "¿Qué? ",
            "def f():\n    pass\n",
        ),
    ]
)
hostile_text = st.lists(hostile_piece | st.text(max_size=5), max_size=60).map("".join)


def texts(document: Document, max_tokens: int = 200) -> list[str]:
    return [document.text[chunk.start : chunk.end] for chunk in split(document, max_tokens=max_tokens)]


def breaks_a_character(text: str, place: int) -> bool:
    before, after = text[place - 1], text[place]
    if before in LINE_BREAKS:
        return before + after == "\r\n"
    return (
        unicodedata.category(after).startswith("M")
        or ZWJ in (before, after)
        or after in "🏻🏼🏽🏾🏿"
        or ("\ud800" <= before <= "\udbff" and "\udc00" <= after <= "\udfff")
    )


@given(hostile_text, st.integers(1, 60), st.sampled_from(["text", "markdown", "code"]))
@example("\n" + "a\u0301" * 40, 3, "text")
@example("\x1b\x0c\u0301\u0302", 1, "text")
def test_chunks_tile_the_text_within_the_budget_and_never_cut_a_character(text: str, budget: int, kind: Kind) -> None:
    chunks = split(Document(text, kind=kind), 7, budget)
    assert [chunk.start for chunk in chunks] == [0, *(chunk.end for chunk in chunks)][: len(chunks)]
    assert (chunks[-1].end if chunks else 0) == len(text)
    tokens = cumulative_tokens(text)
    for chunk in chunks:
        assert chunk.document == 7
        assert chunk.start < chunk.end
        assert chunk.start == 0 or not breaks_a_character(text, chunk.start)
        if tokens[chunk.end] - tokens[chunk.start] > budget + 1e-3:
            inside = range(chunk.start + 1, chunk.end)
            assert all(breaks_a_character(text, place) or is_joined_otherwise(text, place) for place in inside)


def is_joined_otherwise(text: str, place: int) -> bool:
    """What the first test leaves out because it may be cut at a line break: flags, viramas, Hangul, Thai vowels."""
    flags = text[place - 1] >= "🇦" and "🇦" <= text[place] <= "🇿"
    return (
        flags
        or unicodedata.combining(text[place - 1]) == 9
        or text[place] in "\u0e33\u200c" + "".join(map(chr, range(0x1160, 0x1200)))
    )


@pytest.mark.parametrize("unit", [FAMILY, "🇩🇪", "e\u0301", "👍🏽", "क्षि", "\ud83d\ude00", "\r\n", "กำ"])
def test_a_run_of_one_character_is_cut_only_between_repetitions(unit: str) -> None:
    for chunk in split(Document("x" + unit * 60), max_tokens=12):
        assert (chunk.start - 1) % len(unit) == 0 or chunk.start == 0


def test_an_absurd_pile_of_marks_is_cut_in_the_end() -> None:
    assert len(split(Document("a" + "\u0301" * 10_000))) > 1


def test_a_heading_stays_with_the_text_that_follows_it() -> None:
    body = "Plain words stand here in order to fill the page. " * 12
    for heading in ("## Terms\n\n", "Terms\n-----\n", "4.2 Terms\n", "TERMS AND NOTES\n\n"):
        pieces = texts(Document((body + "\n\n" + heading + body + "\n\n") * 3))
        assert sum(piece.startswith(heading.strip()) for piece in pieces) == 3
        assert not any(piece.rstrip().endswith(heading.strip()) for piece in pieces)


def test_paragraphs_are_merged_up_to_the_budget_and_not_cut() -> None:
    paragraphs = [f"Paragraph {number} is one of many that are short.\n\n" for number in range(100)]
    pieces = texts(Document("".join(paragraphs)))
    assert len(pieces) < 15
    assert all(piece.startswith("Paragraph") and piece.endswith("\n\n") for piece in pieces)


@pytest.mark.parametrize(
    ("sentence", "end"),
    [
        ("Mr. J. Smith said “no.” ", "” "),
        ("合同自签署之日起生效。", "。"),
        ("هل تم توقيع العقد؟ ", "؟ "),
        ("अनुबंध पर हस्ताक्षर हुए। ", "। "),
    ],
)
def test_long_paragraphs_are_cut_after_sentences(sentence: str, end: str) -> None:
    pieces = texts(Document(sentence * 100))
    assert len(pieces) > 1
    assert all(piece.endswith(end) for piece in pieces)


def test_a_text_with_a_paragraph_to_the_line_is_cut_at_lines() -> None:
    pieces = texts(Document("Anna: I came. I saw it all.\n" * 100))
    assert all(piece.endswith("\n") for piece in pieces)


def test_fences_and_tables_are_whole_where_they_fit() -> None:
    words = "Some words lead up to this. " * 20
    fence = "```python\n# not a heading\n\nx = 1\n\n" + "y = 2\n" * 20 + "```\n"
    table = "| name | value |\n|------|-------|\n" + "| row | 1 |\n" * 15
    for block in (fence, table):
        pieces = texts(Document((words + "\n" + block + "\n") * 4))
        assert sum(block.strip() in piece for piece in pieces) == 4


def test_a_table_larger_than_a_chunk_is_cut_at_its_rows() -> None:
    pieces = texts(Document("| A sentence. Another one. | 1 |\n" * 100))
    assert len(pieces) > 1
    assert all(piece.startswith("|") for piece in pieces)


def test_an_unclosed_fence_hides_nothing_but_headings() -> None:
    assert len(texts(Document("```\n" + "Words. And more words.\n\n" * 100))) > 1


def test_code_is_cut_before_definitions() -> None:
    function = (
        "@decorated\ndef function(argument):\n    first = 1\n\n    second = 2\n    return [\n        3,\n\n]\n\n\n"
    )
    pieces = texts(Document(function * 30, kind="code"))
    assert len(pieces) > 1
    assert all(piece.startswith("@decorated") for piece in pieces)


@pytest.mark.parametrize(
    "text", ["x" * 2_000_000, " " * 2_000_000, "`" * 2_000_000, "a b. " * 500_000, "|\n" * 500_000]
)
def test_huge_lines_are_cut_and_nothing_is_lost(text: str) -> None:
    chunks = split(Document(text))
    assert chunks[-1].end == len(text)
    assert all(before.end == after.start for before, after in pairwise(chunks))


def test_the_empty_text_has_no_chunks_and_a_short_one_has_one() -> None:
    assert split(Document("")) == []
    assert split(Document("short"), 3) == [Chunk(3, 0, 5)]


def test_a_budget_without_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_tokens is 0"):
        split(Document("text"), max_tokens=0)
