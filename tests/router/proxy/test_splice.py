"""Splicing changes what it was asked to change and no other byte, whoever wrote the JSON."""

from __future__ import annotations

import json
from collections.abc import Callable

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.router.proxy.splice import Edit, prefix_end, splice
from longroute.router.proxy.texts import JsonPath, Place

CHARACTERS = st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from('"\\/\n\t\u2028é漢😀\x7f\x00u'))
STRINGS = st.text(CHARACTERS, max_size=40)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False, allow_infinity=False), STRINGS
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(STRINGS, inner, max_size=4), max_leaves=12
)
WRITERS: list[Callable[[object], bytes]] = [
    lambda value: json.dumps(value).encode(),
    lambda value: json.dumps(value, ensure_ascii=False).encode(),
    lambda value: json.dumps(value, indent=3, separators=(" ,\r\n", "\t:  ")).encode(),
    lambda value: json.dumps(value).replace("/", "\\/").encode(),
    lambda value: b" \n" + orjson.dumps(value) + b"\n",
]


def strings_in(value: object, path: JsonPath = ()) -> list[tuple[JsonPath, str]]:
    if isinstance(value, str):
        return [(path, value)]
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in inner for found in strings_in(item, (*path, key))]


def put(value: object, path: JsonPath, text: str) -> object:
    if not path:
        return text
    holder = value
    for key in path[:-1]:
        holder = holder[key]  # type: ignore[index]
    holder[path[-1]] = text  # type: ignore[index]
    return value


@given(data=st.data(), value=VALUES, write=st.sampled_from(WRITERS))
def test_the_spliced_body_parses_to_the_edited_value_and_keeps_its_other_bytes(
    data: st.DataObject, value: object, write: Callable[[object], bytes]
) -> None:
    raw = write(value)
    edits, edited = [], json.loads(json.dumps(value))
    for path, text in strings_in(value):
        bounds = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4, unique=True)))
        new = text
        pairs = list(zip(bounds[::2], bounds[1::2], strict=False))
        for start, end in pairs:
            edits.append(Edit(Place(path, start, end), data.draw(STRINGS)))
        for edit in reversed(edits[len(edits) - len(pairs) :]):
            new = new[: edit.place.start] + edit.text + new[edit.place.end :]
        edited = put(edited, path, new)
    spliced = splice(raw, data.draw(st.permutations(edits)))
    assert orjson.loads(spliced) == edited
    ranges = sorted((prefix_end(raw, Place(e.place.path, 0, e.place.start)), prefix_end(raw, e.place)) for e in edits)
    kept, done, at = [], 0, 0
    for start, end in ranges:
        kept.append(raw[done:start])
        done = end
    for piece in [*kept, raw[done:]]:  # the bytes outside the edits stand in the result, in order
        at = spliced.index(piece, at) + len(piece)


@given(text=STRINGS, write=st.sampled_from(WRITERS), data=st.data())
def test_the_prefix_of_a_place_holds_the_text_up_to_its_end(
    text: str, write: Callable[[object], bytes], data: st.DataObject
) -> None:
    raw = write({"a": 1, "text": text})
    end = data.draw(st.integers(0, len(text)))
    assert orjson.loads(raw[: prefix_end(raw, Place(("text",), 0, end))] + b'"}')["text"] == text[:end]


@pytest.mark.parametrize(
    "text",
    ["plain " * 40_000, '\\"' * 60_000, "漢字，" * 60_000, "😀a" * 60_000, "\\" * 150_001, "line\n\tи" * 30_000],
    ids=["plain", "quotes", "han", "pairs", "backslashes", "mixed"],
)
@pytest.mark.parametrize("write", WRITERS)
def test_places_in_long_strings_are_found_whatever_their_escapes(write: Callable[[object], bytes], text: str) -> None:
    raw = write({"messages": [{"content": text}]})
    path: JsonPath = ("messages", 0, "content")
    bounds = [0, 1, 16_383, 65_537, 99_999, len(text) - 1, len(text)]
    edits = [Edit(Place(path, start, end), "é") for start, end in zip(bounds[::2], bounds[1::2], strict=False)]
    expected = "é" + text[1:16_383] + "é" + text[65_537:99_999] + "é" + text[-1:]
    assert orjson.loads(splice(raw, edits))["messages"][0]["content"] == expected


def test_escapes_elsewhere_in_the_same_string_stay_as_they_were_written() -> None:
    raw = rb'{"t": "\u0041\/ OLD \u00e9\ud83d\ude00 \u0022"}'
    assert splice(raw, [Edit(Place(("t",), 3, 6), "new")]) == rb'{"t": "\u0041\/ new \u00e9\ud83d\ude00 \u0022"}'


@pytest.mark.parametrize(
    ("raw", "path", "expected"),
    [
        (b'{"longroute": {"a": [1]}, "b": 2}', ("longroute",), b'{"b": 2}'),
        (b'{"b": 2 , "longroute": "x" }', ("longroute",), b'{"b": 2 }'),
        (b'{ "longroute": {} }', ("longroute",), b"{  }"),
        (b'{"a":1,"longroute":1,"b":2,"longroute":2,"longroute":3}', ("longroute",), b'{"a":1,"b":2}'),
        (b'{"longroute":1,"a":1}', ("longroute",), b'{"a":1}'),
        (b'{"m":[{"longroute":"keep","x":"}]"},{}]}', ("m", 0, "longroute"), b'{"m":[{"x":"}]"},{}]}'),
        (b'{"a":1,"longr\\u006fute":2}', ("longroute",), b'{"a":1}'),
    ],
)
def test_a_removed_member_takes_one_comma_with_it(raw: bytes, path: JsonPath, expected: bytes) -> None:
    assert splice(raw, [], [path]) == expected


def test_of_a_key_that_occurs_twice_the_last_counts_as_for_parsers() -> None:
    assert splice(b'{"t":"one","t":"two"}', [Edit(Place(("t",), 0, 3), "2")]) == b'{"t":"one","t":"2"}'


def test_a_byte_order_mark_stays() -> None:
    assert splice(b'\xef\xbb\xbf{"t":"x"}', [Edit(Place(("t",), 0, 1), "y")]) == b'\xef\xbb\xbf{"t":"y"}'


@pytest.mark.parametrize(
    ("path", "start", "end"),
    [
        (("u",), 0, 1),
        (("l", 5), 0, 1),
        (("l", 0), 0, 1),
        (("t", "deeper"), 0, 1),
        (("t",), 0, 4),
        (("t",), -1, 1),
        (("t",), 2, 1),
        (("l",), 0, 0),
    ],
)
def test_what_does_not_exist_is_refused(path: JsonPath, start: int, end: int) -> None:
    with pytest.raises(ValueError, match=r"body|string|edit"):
        splice(b'{"t": "abc", "l": [1]}', [Edit(Place(path, start, end), "x")])


def test_overlapping_edits_are_refused() -> None:
    with pytest.raises(ValueError, match="overlap"):
        splice(b'{"t": "abc"}', [Edit(Place(("t",), 0, 2), "x"), Edit(Place(("t",), 1, 3), "y")])


@pytest.mark.parametrize("remove", [(), ("l", 0), ("nothing",)])
def test_only_members_that_exist_can_be_removed(remove: JsonPath) -> None:
    with pytest.raises(ValueError, match=r"removed|nothing"):
        splice(b'{"l": [1]}', [], [remove])


@given(raw=st.binary(max_size=60) | st.text('{}[]",:\\u0a ', max_size=30).map(str.encode))
def test_bytes_that_are_no_json_are_refused_and_never_hang(raw: bytes) -> None:
    try:
        splice(raw, [Edit(Place(("a",), 0, 0), "x")])
    except ValueError:
        return
    assert b'"' in raw  # only where something like {"a": "..." stands there
