from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.router.backends.sse import MAX_EVENT_BYTES, Event, EventParser
from longroute.router.errors import BadReply


def events(*pieces: bytes) -> list[Event]:
    parser = EventParser()
    return [event for piece in pieces for event in parser.feed(piece)] + list(parser.finish())


LINES = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\r\n")).map(lambda s: "x" + s)


@given(
    st.lists(st.lists(LINES, min_size=1, max_size=3), max_size=5),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.lists(st.integers(0, 400)),
)
def test_events_survive_any_split_of_the_bytes(data: list[list[str]], end: bytes, cuts: list[int]) -> None:
    wire = b"".join(b"".join(b"data: " + line.encode() + end for line in lines) + end for lines in data)
    bounds = [0, *sorted(min(cut, len(wire)) for cut in cuts), len(wire)]
    pieces = [wire[a:b] for a, b in pairwise(bounds)]
    assert events(*pieces) == [Event("\n".join(lines)) for lines in data]


def test_comments_ids_and_unknown_fields_are_skipped() -> None:
    assert events(b": ping\n\nid: 7\nretry: 3\nnonsense\ndata: a\n\n: ping\n\n") == [Event("a")]


def test_the_space_after_the_colon_is_optional_and_only_one_is_dropped() -> None:
    assert events(b"data:a\n\ndata:  b\n\n") == [Event("a"), Event(" b")]


def test_a_byte_order_mark_is_dropped() -> None:
    assert events(b"\xef\xbb\xbfdata: a\n\n") == [Event("a")]


def test_events_keep_their_name_and_the_next_one_has_none() -> None:
    assert events(b"event: error\ndata: a\n\ndata: b\n\n") == [Event("a", "error"), Event("b")]


def test_an_event_comes_as_soon_as_its_blank_line_does() -> None:
    assert list(EventParser().feed(b"data: a\r\n\r\n")) == [Event("a")]


@pytest.mark.parametrize("wire", [b"data: a", b"data: a\n", b"data: a\r"])
def test_the_last_event_needs_no_blank_line(wire: bytes) -> None:
    assert events(wire) == [Event("a")]


def test_bytes_that_are_not_utf8_do_not_end_the_stream() -> None:
    assert events(b"data: a\xff\n\ndata: b\n\n") == [Event("a\ufffd"), Event("b")]


def test_an_endless_event_is_refused() -> None:
    parser = EventParser()
    with pytest.raises(BadReply, match="one event of more than"):
        for _ in range(MAX_EVENT_BYTES // 2**20 + 1):
            list(parser.feed(b"x" * 2**20))
