"""Text that streams is the text of the whole, never holds a broken character, and ends before the stop text."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from longroute.router.runner.detokenize import Detokenizer, StopFilter

BROKEN = "\N{REPLACEMENT CHARACTER}"
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters=BROKEN), max_size=30)


def bytes_as_tokens(ids: Sequence[int]) -> str:
    return bytes(ids).decode(errors="replace")


def words_as_tokens(ids: Sequence[int]) -> str:
    """Like SentencePiece: a word brings its space along, but not at the start of a text."""
    return "".join(f" {i}" for i in ids)[1:]


@given(text=TEXTS)
def test_a_character_comes_once_all_its_bytes_are_there(text: str) -> None:
    detokenizer = Detokenizer(bytes_as_tokens)
    shown = ""
    for byte in text.encode():
        new = detokenizer.push(byte)
        assert BROKEN not in new
        shown += new
    assert shown == text


@given(text=TEXTS, missing=st.integers(1, 3))
def test_an_unfinished_character_at_the_end_is_not_shown(text: str, missing: int) -> None:
    detokenizer = Detokenizer(bytes_as_tokens)
    tokens = text.encode() + "\N{ROCKET}".encode()[:-missing]
    assert "".join(detokenizer.push(byte) for byte in tokens) == text


@given(ids=st.lists(st.integers(0, 999), min_size=1, max_size=30))
def test_spaces_between_tokens_survive(ids: list[int]) -> None:
    detokenizer = Detokenizer(words_as_tokens)
    assert "".join(detokenizer.push(i) for i in ids) == words_as_tokens(ids)


def test_bytes_that_are_no_character_do_not_stop_the_stream() -> None:
    detokenizer = Detokenizer(bytes_as_tokens)
    assert "".join(detokenizer.push(byte) for byte in b"a\xffb\xf0c") == f"a{BROKEN}b{BROKEN}c"


def test_only_a_few_tokens_are_decoded_at_a_time() -> None:
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return words_as_tokens(ids)

    detokenizer = Detokenizer(decode)
    for i in range(500):
        detokenizer.push(i)
    assert longest <= 4


PIECES = st.lists(st.text("ab.", max_size=4), max_size=8)
STOPS = st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3)


@given(pieces=PIECES, stops=STOPS)
def test_where_text_stops_does_not_depend_on_its_pieces(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    one_by_one, at_once = StopFilter(stops), StopFilter(stops)
    shown = "".join(one_by_one.push(piece) for piece in pieces) + one_by_one.flush()
    assert shown == at_once.push(text) + at_once.flush()
    assert one_by_one.stopped == at_once.stopped == any(stop in text for stop in stops)
    if one_by_one.stopped:
        first = min(text.find(stop) + len(stop) for stop in stops if stop in text)  # complete first
        assert any(shown + stop == text[:first] for stop in stops)
    else:
        assert shown == text


@given(pieces=PIECES, stops=STOPS)
def test_nothing_of_a_stop_text_is_ever_shown(pieces: list[str], stops: list[str]) -> None:
    stop_filter = StopFilter(stops)
    shown = ""
    for piece in pieces:
        shown += stop_filter.push(piece)
        assert not any(stop in shown for stop in stops)
    assert stop_filter.push("more") == "" or not stop_filter.stopped


def test_text_is_held_back_only_while_it_may_be_a_stop() -> None:
    stop_filter = StopFilter(["END", "\n\n"])
    assert [stop_filter.push(piece) for piece in ("one\n", "two E", "N", "Dor", "EN")] == ["one", "\ntwo ", "", "", ""]
    assert stop_filter.stopped
    waiting = StopFilter(["END"])
    assert (waiting.push("the EN"), waiting.flush()) == ("the ", "EN")
