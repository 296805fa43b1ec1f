"""Code as blocks: they cover the file, and functions are found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longroute.compressors import code_parsing
from longroute.compressors.code_parsing import (
    LANGUAGES,
    Block,
    Language,
    blocks_of,
    guess_language,
    has_errors,
    installed,
    language_of,
)
from longroute.router.errors import ConfigError, MissingExtra

PYTHON = LANGUAGES["python"]
SOURCES = {
    "python": '''"""Doc."""
import os

# about f
@wraps
def f(a,
      b):  # why
    # first
    x = 1; y = 2
    return x

class A(B):
    """Doc."""
    z = 1

    def g(self): return 1

    async def h(self):
        return "ä"
''',
    "javascript": """// hi
import x from "y";
export default class A extends B {
  // c
  g(a) {
    return 1;
  }
  n() { return 2; }
}
export const f = (a) => {
  return a;
};
""",
    "typescript": """interface X { a: number }
export function f(a: number): string {
  return "" + a;
}
class A {
  private g(): void {
    f(1);
  }
}
""",
    "tsx": """export function f() {
  return <p>hi</p>;
}
""",
    "java": """package p;
public class A {
  /** Doc. */
  public int f(int a) {
    return a;
  }
}
""",
    "go": """package p

func f(a int) int {
	return a
}
""",
    "rust": """use std::io;
impl A {
    pub fn f(&self) -> i32 {
        1
    }
}
""",
    "c": """#ifndef A_H
#define A_H
int f(int a)
{
    return a;
}
#endif
""",
    "cpp": """#include <x>
namespace n {
template <class T>
T f(T a) {
  return a;
}
}
""",
}


def walk(blocks: Sequence[Block]) -> Iterator[Block]:
    for block in blocks:
        yield block
        yield from walk(block.blocks)


def assert_covers(blocks: Sequence[Block], start: int, end: int) -> None:
    for block in blocks:
        assert block.start == start <= block.code < block.end
        start = block.end
        if block.blocks:
            assert block.code < block.inside[0] < block.inside[1] <= block.end
            assert_covers(block.blocks, *block.inside)
    assert start == end


def functions(text: str, language: Language) -> list[str]:
    """First lines of the functions that can be opened."""
    blocks = walk(blocks_of(text, language))
    return [text[b.code : b.inside[0]].strip() for b in blocks if b.kind == "function" and b.blocks]


def without_grammars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_parsing, "installed", lambda language: False)


needs_grammars = pytest.mark.skipif(
    not all(map(installed, LANGUAGES.values())), reason="the grammars of the extra 'code' are not installed"
)


@needs_grammars
@pytest.mark.parametrize("name", SOURCES)
def test_a_function_is_found_in_every_language(name: str) -> None:
    text = SOURCES[name]
    assert not has_errors(text, LANGUAGES[name])
    blocks = blocks_of(text, LANGUAGES[name])
    assert_covers(blocks, 0, len(text))
    assert any("f(" in found or "f =" in found for found in functions(text, LANGUAGES[name]))


@needs_grammars
def test_a_signature_ends_where_the_body_begins_and_comments_go_with_what_follows() -> None:
    text = SOURCES["python"]
    assert functions(text, PYTHON) == [
        "@wraps\ndef f(a,\n      b):  # why",
        "async def h(self):",
    ]
    found = next(block for block in walk(blocks_of(text, PYTHON)) if block.kind == "function")
    assert text[found.start : found.code].strip() == "# about f"
    assert [text[block.start : block.end] for block in found.blocks] == [
        "    # first\n    x = 1; y = 2\n",
        "    return x\n",
    ]


@needs_grammars
def test_offsets_are_characters_whatever_the_script() -> None:
    text = "# ä漢😀\ud800\ndef f():\n    x = '漢'\n    return x\n"
    assert functions(text, PYTHON) == ["def f():"]
    assert_covers(blocks_of(text, PYTHON), 0, len(text))


@needs_grammars
@pytest.mark.parametrize("text", ["", "\n", "def", "}{", "#", "\r\n\r", "x" * 10_000, "(" * 3000, "\x00", "class A:\n"])
def test_hostile_text_is_covered(text: str) -> None:
    for language in LANGUAGES.values():
        assert_covers(blocks_of(text, language), 0, len(text))


@settings(deadline=None)
@given(st.text(alphabet='def class A:(){}\n\t "#/;=>@é\r,.', max_size=120), st.sampled_from(sorted(LANGUAGES)))
def test_blocks_cover_any_text(text: str, name: str) -> None:
    assert_covers(blocks_of(text, LANGUAGES[name]), 0, len(text))
    assert_covers(code_parsing._by_lines(text, LANGUAGES[name]), 0, len(text))


@pytest.mark.parametrize("name", ["python", "javascript", "java", "go", "rust"])
def test_without_a_grammar_functions_are_guessed_from_lines(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_grammars(monkeypatch)
    text = SOURCES[name]
    assert_covers(blocks_of(text, LANGUAGES[name]), 0, len(text))
    assert any("f(" in found or "f =" in found for found in functions(text, LANGUAGES[name]))


def test_a_promise_without_a_grammar_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    without_grammars(monkeypatch)
    with pytest.raises(MissingExtra, match=r"longroute\[code\]"):
        has_errors("x = 1", PYTHON)


@pytest.mark.parametrize("name", ["python", "javascript", "typescript", "java", "go", "rust", "cpp"])
def test_the_language_is_guessed(name: str) -> None:
    assert guess_language(SOURCES[name]) == name


def test_an_unknown_language_is_named() -> None:
    assert guess_language("what is this?") == "python"
    with pytest.raises(ConfigError, match="cobol"):
        language_of("cobol")
