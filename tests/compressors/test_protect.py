"""What must not be lost is found, in several languages."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.compressors.protect import KINDS, Kind, mark, protected_spans
from longroute.compressors.words import words


def found(text: str, kind: Kind) -> list[str]:
    return [text[span.start : span.end] for span in protected_spans(text, {kind})]


@pytest.mark.parametrize(
    ("text", "negations"),
    [
        ("It doesn't matter; nobody can't, won’t or will not.", ["doesn't", "nobody", "can't", "won’t", "not"]),
        ("Er kommt nicht, ohne keinen Grund.", ["nicht", "ohne", "keinen"]),
        ("Il n'est pas venu, aucun train sans retard.", ["n'est", "pas", "aucun", "sans"]),
        ("No vino nadie, nunca sin ella.", ["No", "nadie", "nunca", "sin"]),
        ("Он не пришёл, никто.", ["не", "никто"]),
        ("他没有来，不是她。", ["没", "不"]),
    ],
)
def test_negations(text: str, negations: list[str]) -> None:
    assert found(text, "negation") == negations


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("It needs at least two votes, more than before", {"at least", "more than"}),
        ("Mindestens fünf, höchstens zehn", {"Mindestens", "höchstens"}),
        ("au moins deux, plus grand", {"au moins", "plus"}),
        ("al menos dos, mayor", {"al menos", "mayor"}),
    ],
)
def test_comparatives(text: str, kept: set[str]) -> None:
    assert kept <= set(found(text, "comparative"))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Pay unless told otherwise, except if late, as long as it lasts.", {"unless", "except", "if", "as long as"}),
        ("Wenn es regnet, falls nicht", {"Wenn", "falls"}),
        ("sauf si demandé, à moins que", {"sauf", "si", "à moins"}),
        ("salvo que, si no", {"salvo", "si"}),
    ],
)
def test_conditions(text: str, kept: set[str]) -> None:
    assert kept <= set(found(text, "condition"))


def test_numbers_with_what_belongs_to_them() -> None:
    text = "Up $3.2 million (5 %), 12 March 2024, US$ 10, 3rd, 5 km/h, GPT-4, 1,000.5 kg, 9:30 am, 10–12 days, 1/2, x2."
    assert found(text, "number") == [
        *("$3.2 million", "5 %", "12 March 2024", "US$ 10", "3rd", "5 km/h", "GPT-4", "1,000.5 kg", "9:30 am"),
        *("10–12 days", "1/2", "x2"),
    ]
    assert found("5 Mio. Euro, 3 jours, 2001年5月, zwei", "number") == [
        "5 Mio. Euro",
        "3 jours",
        "2001年",
        "5月",
        "zwei",
    ]


def test_names_but_not_what_only_begins_a_sentence() -> None:
    text = "Yesterday the committee met Jane Smith of the University of Oxford. However, Smith left. Members stayed."
    assert found(text, "name") == ["Jane Smith of the University of Oxford", "Smith"]


def test_german_nouns_are_not_all_names() -> None:
    text = "Der Rat hat den Haushalt und die Straße mit Angela Merkel besprochen, die SPD kam zum Hafen und zur Brücke."
    assert found(text, "name") == ["Angela Merkel", "SPD"]


def test_code_tables_quotations_identifiers() -> None:
    text = 'Run\n```py\nx = "1"\n```\nor `ls -l`.\n| a | b |\n| 1 | 2 |\nHe said “no way” and "never" to a.b@c.org at https://x.y/z.'
    assert found(text, "code") == ['```py\nx = "1"\n```', "`ls -l`"]
    assert found(text, "table") == ["| a | b |\n| 1 | 2 |"]
    assert found(text, "quotation") == ['"1"', "“no way”", '"never"']
    assert {"a.b@c.org", "https://x.y/z"} <= set(found(text, "identifier"))
    assert found("call foo_bar() in /usr/lib/x", "identifier") == ["foo_bar()", "/usr/lib/x"]


@given(st.text(alphabet='ab1 `\n|"“”«»$.,-_/@A不三', max_size=120))
def test_spans_lie_in_the_text_in_order(text: str) -> None:
    spans = protected_spans(text)
    assert all(0 <= span.start < span.end <= len(text) for span in spans)
    assert [span.start for span in spans] == sorted(span.start for span in spans)
    starts, ends = words(text)
    ranks, groups = mark(starts, ends, spans)
    numbers = groups[groups >= 0]
    assert (np.diff(numbers) >= 0).all() and (ranks[groups >= 0] > 0).all()


def test_units_of_a_span_are_one_group_and_the_outermost_counts() -> None:
    text = 'He said "not 5 million" to Ada'
    starts, ends = words(text)
    ranks, groups = mark(starts, ends, protected_spans(text))
    by_word = {text[a:b]: (r, g) for a, b, r, g in zip(starts, ends, ranks.tolist(), groups.tolist(), strict=True)}
    assert by_word["not"] == by_word["5"] == by_word["million"] == (3, 0)
    assert by_word["said"] == (0, -1) and by_word["Ada"] == (2, -1)


@pytest.mark.parametrize("text", ["`" * 20_000, "|" * 20_000, "\t\n" * 10_000, '"a' * 10_000, "1," * 10_000,
                                  "a_" * 10_000, "a.b" * 7_000, "A " * 10_000, "\n```" * 5_000])  # fmt: skip
def test_hostile_text_takes_no_more_than_its_length(text: str) -> None:
    start = time.process_time()
    protected_spans(text)
    assert time.process_time() - start < 2


def test_every_kind_can_be_left_out() -> None:
    assert protected_spans("Ada does not pay 5 euros", ()) == []
    assert {span.kind for span in protected_spans("Ada does not pay 5 euros", KINDS)} == {"negation", "number"}
