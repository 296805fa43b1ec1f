from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from longroute.router.core import Document, Passage
from longroute.router.strategies.copied import checked, in_order

RIVER = "The Vell rises at Skerra. It is 40 km long. Barges do not use it in winter, as the ice is too thick by then."
TOWN = "Vell has a bakery. It opens at six. The Vell rises at Skerra."


def shown(*texts: str) -> tuple[Passage, ...]:
    return tuple(Passage(f"d{n}", 0, len(text), text) for n, text in enumerate(texts, start=1))


def copies(reply: str) -> list[str]:
    return [passage.text for passage in checked(reply, shown(RIVER, TOWN)).passages]


def test_lists_are_read_however_they_are_marked_up() -> None:
    for line in (
        "It opens at six.",
        "[2] It opens at six.",
        "- [2]: It opens at six.",
        "2. It opens at six.",
        '* "It opens at six."',
        "> **It opens at six.** [2]",
        "Document 2: It opens at six. (document 2)",
        "Baker (10 May): It opens at six.",
    ):
        assert copies(f"```\n{line}\n```") == ["It opens at six."] or copies(line) == ["It opens at six"], line


def test_a_sentence_of_two_documents_is_taken_from_the_one_it_is_said_to_be_from() -> None:
    for number, document in ((1, "d1"), (2, "d2"), (7, "d1")):
        [passage] = checked(f"[{number}] The Vell rises at Skerra.", shown(RIVER, TOWN)).passages
        assert passage.document_id == document


def test_a_wrong_number_does_not_lose_a_sentence() -> None:
    assert copies("[1] It opens at six.") == ["It opens at six."]


def test_a_slip_is_repaired_an_invention_dropped_and_both_are_counted() -> None:
    reply = (
        "Barges do not use it in winter, as the ice too thick by then.\nBarges use it in winter, as the ice is thin.\n"
        "It is 41 km long.\nIt is 40 km long."
    )
    found = checked(reply, shown(RIVER, TOWN))
    assert (found.verbatim, found.repaired, found.dropped) == (1, 1, 2)
    assert [passage.text for passage in found.passages] == [
        "Barges do not use it in winter, as the ice is too thick by then.",
        "It is 40 km long.",
    ]


def test_a_line_too_short_to_be_looked_up_is_found_where_it_is_the_only_one() -> None:
    table, code = "| city | n |\n| Turin | 5 |\n| Rome | 7 |", "TIMEOUT = 30\nif x:\n    return x\nelse:\n    return x"

    def found(reply: str) -> list[tuple[str, str]]:
        return [(passage.document_id, passage.text) for passage in checked(reply, shown(table, code)).passages]

    assert found("| Turin | 5 |\n[2] - TIMEOUT  = 30") == [("d1", "| Turin | 5 |"), ("d2", "TIMEOUT = 30")]
    assert found("[2] | Rome | 7 |") == [("d1", "| Rome | 7 |")]
    assert found("| Rome | 5 |\nreturn x\nTurin") == []


def test_sentences_from_places_apart_may_stand_on_one_line() -> None:
    assert copies("It is 40 km long. It opens at six.") == ["It is 40 km long.", "It opens at six."]


def test_neighbouring_documents_copied_as_one_are_told_apart() -> None:
    talk = shown("I bought a boat.", "How much was it?")
    found = checked("I bought a boat. How much was it?", talk).passages
    assert [(p.document_id, p.text) for p in found] == [("d1", "I bought a boat."), ("d2", "How much was it?")]


def test_saying_that_there_is_nothing_is_no_copy() -> None:
    for reply in ("NOTHING FOUND", "**Nothing found.**", "The documents do not contain the answer.", "", "---"):
        assert checked(reply, shown(RIVER)) == checked("", shown(RIVER))


def test_offsets_are_of_the_document_where_a_part_of_it_was_shown() -> None:
    [passage] = checked("It is 40 km long.", [Passage("d1", 26, len(RIVER), RIVER[26:])]).passages
    assert RIVER[passage.start : passage.end] == passage.text == "It is 40 km long."


def test_each_stretch_is_kept_once_in_order_and_neighbours_are_joined() -> None:
    documents = (Document(RIVER, "d1"), Document(TOWN, "d2"))
    found = checked(
        "[2] It opens at six.\nIt is 40 km long.\nThe Vell rises at Skerra.\n40 km long", shown(RIVER, TOWN)
    )
    assert [p.text for p in in_order(found.passages, documents)] == [
        "The Vell rises at Skerra. It is 40 km long.",
        "It opens at six.",
    ]


@given(st.text(max_size=300), st.lists(st.text(max_size=100), min_size=1, max_size=4))
def test_whatever_is_said_only_words_of_the_source_come_out(reply: str, texts: list[str]) -> None:
    documents = [Document(text, f"d{n}") for n, text in enumerate(texts, start=1)]
    sources = {document.id: document.text for document in documents}
    found = checked(f"{reply}\n{texts[0]}", shown(*texts)).passages
    for passage in (*found, *in_order(found, documents)):
        assert sources[passage.document_id][passage.start : passage.end] == passage.text
    merged = in_order(found, documents)
    places = [(p.document_id, p.start, p.end) for p in merged]
    assert places == sorted(places)
    assert all(a[2] <= b[1] for a, b in pairwise(places) if a[0] == b[0])
