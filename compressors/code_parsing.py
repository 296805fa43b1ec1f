"""Source code as a tree of blocks of whole lines: classes, functions, and the statements in them.

Every block is a run of whole lines, and the blocks in a block cover its inside without a gap: comments and blank lines
go with what follows them, the last ones of a body with what they follow. So a file from which blocks are left out is
still a file, as long as the first line of what remains stays and a body never ends up empty (`Language.empty`). Syntax
trees come from tree-sitter (extra `code`); without it, functions are found by indentation (Python) or braces, which is
less sure. What to leave out is for `code.py`. Offsets count characters.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module, util
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..router.errors import ConfigError, MissingExtra
from .compression import Span

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

Kind = Literal["function", "class", "statement"]

_DEEPEST = 40  # classes in classes; beyond it a block is not opened


@dataclass(frozen=True, slots=True)
class Block:
    """The lines `text[start:end]`.

    code: where its own lines begin, after the comments and blank lines that go with it. inside: what is between the
    first line and the last one, e.g. a function's body without its signature and its closing brace; empty where the
    block is not to be opened. blocks: they cover the inside, in order.
    indent: white space before the first line of the inside.
    """

    start: int
    end: int
    kind: Kind
    code: int
    inside: Span
    blocks: tuple[Block, ...] = ()
    indent: str = ""


def closed(start: int, end: int, kind: Kind = "statement") -> Block:
    """A block that is not to be opened."""
    return Block(start, end, kind, start, (end, end))


@dataclass(frozen=True, slots=True)
class Language:
    """How a language writes what we look for.

    module, function: where the grammar is. functions, classes: types of nodes. wrappers: nodes that hold one of these
    and belong to it (decorators, `export`). comment: begins one up to the end of the line. empty: a body that says
    that it was left out.
    """

    name: str
    module: str
    function: str
    functions: frozenset[str]
    classes: frozenset[str]
    wrappers: frozenset[str]
    comment: str
    empty: str

    @property
    def braces(self) -> bool:
        return self.name != "python"


def _language(
    name: str, functions: str, classes: str, wrappers: str = "", module: str = "", function: str = ""
) -> Language:
    comment = "#" if name == "python" else "//"
    return Language(
        name,
        f"tree_sitter_{module or name}",
        function or "language",
        frozenset(functions.split()),
        frozenset(classes.split()),
        frozenset(wrappers.split()),
        comment,
        "..." if name == "python" else f"{comment} ...",
    )


_SCRIPT = (
    "function_declaration generator_function_declaration method_definition",
    "class_declaration abstract_class_declaration internal_module",
    "export_statement ambient_declaration expression_statement",
)
LANGUAGES: dict[str, Language] = {
    language.name: language
    for language in (
        _language("python", "function_definition", "class_definition", "decorated_definition"),
        _language("javascript", *_SCRIPT),
        _language("typescript", *_SCRIPT, function="language_typescript"),
        _language("tsx", *_SCRIPT, module="typescript", function="language_tsx"),
        _language(
            "java",
            "method_declaration constructor_declaration compact_constructor_declaration",
            "class_declaration interface_declaration record_declaration",
        ),
        _language("go", "function_declaration method_declaration", ""),
        _language("rust", "function_item", "impl_item trait_item mod_item"),
        _language("c", "function_definition", ""),
        _language(
            "cpp",
            "function_definition",
            "class_specifier struct_specifier namespace_definition linkage_specification",
            "template_declaration",
        ),
    )
}

_SIGNS = (
    ("python", r"^[ \t]*(?:async[ \t]+def|def|class)[ \t]+\w+.*:[ \t]*(?:#.*)?$"),
    ("python", r"^(?:from[ \t]+[\w.]+[ \t]+)?import[ \t]+[\w., ]+$"),
    ("go", r"^package[ \t]+\w+[ \t]*$|^func[ \t]"),
    ("rust", r"^[ \t]*(?:pub(?:\(\w+\))?[ \t]+)?(?:fn|impl|mod|trait)\b|^use[ \t]+[\w:]+"),
    ("java", r"^(?:package|import)[ \t]+(?:static[ \t]+)?[\w.*]+;"),
    ("java", r"^[ \t]*(?:public|private|protected)[ \t]+[\w<>\[\], ]+\("),
    ("cpp", r"^#[ \t]*include\b|^(?:template[ \t]*<|namespace[ \t]|using[ \t]+namespace)|\bstd::"),
    ("typescript", r"^(?:export[ \t]+)?(?:interface|type)[ \t]+\w+|\)[ \t]*:[ \t]*[\w<>\[\]|]+[ \t]*(?:=>|\{)"),
    ("javascript", r"^(?:export[ \t]+)?(?:default[ \t]+)?(?:async[ \t]+)?function\b"),
    ("javascript", r"^(?:export[ \t]+)?(?:const|let|var)[ \t]+\w+|\brequire\(|^import\b.*\bfrom[ \t]+[\"']"),
)
_GUESSES = tuple((name, re.compile(pattern, re.MULTILINE)) for name, pattern in _SIGNS)
_GUESSED_FROM = 20_000  # characters


def guess_language(text: str) -> str:
    """The language whose typical lines are most frequent at the beginning of a text; `python` where none is found.

    For texts without a file name only; C counts as C++, whose grammar reads it.
    """
    beginning = text[:_GUESSED_FROM]
    found: Counter[str] = Counter({"python": 0})
    for name, pattern in _GUESSES:
        found[name] += sum(1 for _ in pattern.finditer(beginning))
    return found.most_common(1)[0][0]  # of equals the one named first


def language_of(name: str) -> Language:
    """Raises ConfigError for a language that is not known."""
    if name not in LANGUAGES:
        raise ConfigError(f"Unknown programming language {name!r}. Known: {', '.join(LANGUAGES)}.")
    return LANGUAGES[name]


def installed(language: Language) -> bool:
    """Whether the syntax of a language can be read; else it is guessed from its lines."""
    return all(util.find_spec(package) is not None for package in ("tree_sitter", language.module))


def blocks_of(text: str, language: Language) -> tuple[Block, ...]:
    """The blocks that a file is made of; together they cover all of it."""
    return _by_grammar(text, language) if installed(language) else _by_lines(text, language)


def require_grammar(language: Language) -> None:
    """Raises MissingExtra where the syntax of a language cannot be read."""
    if not installed(language):
        raise MissingExtra(
            f"Code that is promised to parse needs the grammar of {language.name}, which is not installed. "
            "Install it with: pip install 'longroute[code]', or pass parseable=False."
        )


def has_errors(text: str, language: Language) -> bool:
    """Whether the grammar finds a mistake in a text. Raises MissingExtra where there is no grammar."""
    require_grammar(language)
    return _parser(language.name).parse(text.encode("utf-8", "replace")).root_node.has_error


# ---- with a grammar --------------------------------------------------------------------------------------------------


@lru_cache(maxsize=len(LANGUAGES))
def _parser(name: str) -> Parser:
    import tree_sitter

    language = LANGUAGES[name]
    grammar = getattr(import_module(language.module), language.function)
    return tree_sitter.Parser(tree_sitter.Language(grammar()))


def _by_grammar(text: str, language: Language) -> tuple[Block, ...]:
    root = _parser(language.name).parse(text.encode("utf-8", "replace")).root_node
    reader = _Reader(text, language)
    return reader.tile(list(root.named_children), 0, len(text), 0)


class _Reader:
    """Turns the nodes of one text into blocks."""

    def __init__(self, text: str, language: Language) -> None:
        self._text, self._language = text, language
        self._offsets = None if text.isascii() else _offsets(text)

    def tile(self, nodes: list[Node], start: int, end: int, depth: int) -> tuple[Block, ...]:
        """Blocks that cover text[start:end], both of them at the beginning of a line, or at the end of the text.

        Neighbours on one line become one block.
        """
        found: list[Block] = []
        for node in nodes:
            if self._is_comment(node):
                continue  # goes with what follows it
            first, last = self._line_start(self._at(node.start_byte)), self._line_end(self._at(node.end_byte))
            first, last = max(first, start), min(last, end)
            place = found[-1].end if found else start
            if first >= place and last > place:
                block = self._block(node, first, last, depth)
                found.append(replace(block, start=place))
            elif last > place:  # shares a line with the block before
                place = found[-1].start if found else start
                found[-1:] = [closed(place, last)]
            elif found:  # is within it
                found[-1] = closed(found[-1].start, place)
        if not found:
            return (closed(start, end),) if end > start else ()
        # Comments at the end go with what they follow: on their own they could be all that is left of a body.
        return (*found[:-1], replace(found[-1], end=end))

    def _block(self, node: Node, start: int, end: int, depth: int) -> Block:
        language = self._language
        if node.type in ("preproc_ifdef", "preproc_if"):
            return self._conditional(node, start, end, depth)
        kind, body = self._definition(node)
        if kind == "statement" or body is None or depth > _DEEPEST:
            return closed(start, end, kind)
        if language.braces:
            inside = self._line_end(self._at(body.start_byte) + 1), self._line_start(self._at(body.end_byte) - 1)
            opened = self._text[self._at(body.start_byte) : inside[0]].strip() == "{"
            opened = opened and self._text[inside[1] : self._at(body.end_byte)].strip() == "}"
        else:
            # A comment after the colon stands before the body in the tree.
            colon = next((c for c in reversed(self._children_before(body)) if c.type == ":"), None)
            if colon is None:
                return closed(start, end, kind)
            inside = self._line_end(self._at(colon.end_byte)), end
            opened = self._text[self._at(colon.end_byte) : inside[0]].partition("#")[0].strip() == ""
        if not opened or not start < inside[0] < inside[1]:
            return closed(start, end, kind)
        blocks = self.tile(list(body.named_children), inside[0], inside[1], depth + 1)
        first = next((c for c in body.named_children if not self._is_comment(c)), body)
        place = self._at(first.start_byte)
        indent = self._text[self._line_start(place) : place]
        return Block(start, end, kind, start, inside, blocks, indent if indent.isspace() else "")

    def _conditional(self, node: Node, start: int, end: int, depth: int) -> Block:
        """`#ifndef ... #endif`, which in C stands around whole files."""
        inside = self._line_end(self._at(node.start_byte) + 1), self._line_start(self._at(node.end_byte) - 1)
        closing = self._text[inside[1] : end].lstrip().startswith("#endif")
        otherwise = any(child.type.startswith(("preproc_el", "ERROR")) for child in node.children)
        if otherwise or not closing or depth > _DEEPEST or not start < inside[0] < inside[1]:
            return closed(start, end)
        nodes = [child for child in node.named_children if self._at(child.start_byte) >= inside[0]]
        return Block(start, end, "class", start, inside, self.tile(nodes, *inside, depth + 1))

    def _definition(self, node: Node) -> tuple[Kind, Node | None]:
        """What a node is, and its body."""
        language = self._language
        for _ in range(4):  # a decorated one, an exported decorated one, ...
            if node.type in language.functions or node.type in language.classes:
                return ("function" if node.type in language.functions else "class"), node.child_by_field_name("body")
            if node.type in ("lexical_declaration", "variable_declaration"):  # const f = () => { ... }
                value = node.named_children[0].child_by_field_name("value") if node.named_child_count == 1 else None
                if value is not None and value.type in ("arrow_function", "function_expression"):
                    return "function", value.child_by_field_name("body")
                return "statement", None
            if node.type not in language.wrappers or not node.named_children:
                return "statement", None
            node = node.named_children[-1]
        return "statement", None

    @staticmethod
    def _children_before(body: Node) -> list[Node]:
        parent = body.parent
        return [] if parent is None else [c for c in parent.children if c.end_byte <= body.start_byte]

    @staticmethod
    def _is_comment(node: Node) -> bool:
        return "comment" in node.type

    def _at(self, byte: int) -> int:
        return byte if self._offsets is None else int(np.searchsorted(self._offsets, byte))

    def _line_start(self, place: int) -> int:
        """The beginning of the line of text[place]."""
        return self._text.rfind("\n", 0, place) + 1

    def _line_end(self, place: int) -> int:
        """The beginning of the line after the one that text[:place] ends in; place itself, where that is one."""
        if place and self._text[place - 1] == "\n":
            return place
        found = self._text.find("\n", place)
        return len(self._text) if found < 0 else found + 1


def _offsets(text: str) -> np.ndarray:
    """Bytes of UTF-8 before each character, shape (len(text) + 1,). A lone surrogate is written as one byte."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    sizes = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    sizes[(codes >= 0xD800) & (codes < 0xE000)] = 1
    return np.concatenate([[0], np.cumsum(sizes)])


# ---- without one -----------------------------------------------------------------------------------------------------

_DEFINITION = re.compile(r"[ \t]*(?:(?P<function>(?:async[ \t]+)?def)|class)[ \t]+\w")
_OPENS = re.compile(
    r"^[ \t]*(?!(?:if|for|while|switch|catch|else|do|return)\b)"
    r"(?:(?P<class>(?:(?:export|default|public|abstract|final|static|pub)[ \t]+)*"
    r"(?:class|interface|namespace|impl|trait|mod)\b)"
    r"|[^\n;{}=]*\)|(?:export[ \t]+)?(?:const|let|var)[ \t]+\w+[^\n;{}]*=>)[^\n;{}]*\{[ \t]*$"
)


def _by_lines(text: str, language: Language) -> tuple[Block, ...]:
    edges = [0, *(match.end() for match in re.finditer("\n", text))]
    if edges[-1] < len(text):
        edges.append(len(text))
    lines = _Lines(text, edges)
    return tuple((lines.braced if language.braces else lines.indented)(0, len(edges) - 1, 0))


class _Lines:
    """Finds blocks by what lines look like. Numbers are those of lines; edges[i] is where line i begins."""

    def __init__(self, text: str, edges: list[int]) -> None:
        self._edges = edges
        self._lines = [text[a:b] for a, b in pairwise(edges)]

    def indented(self, first: int, last: int, depth: int) -> Iterator[Block]:
        """Python: a definition reaches to the next line that is indented no more than it."""
        pending = at = first
        while at < last:
            match = _DEFINITION.match(self._lines[at])
            if match is None:
                at += 1
                continue
            width = self._indent(at)
            head = at
            while head < last - 1 and not self._lines[head].partition("#")[0].rstrip().endswith(":"):
                head += 1
            end = head + 1
            while end < last and (not self._lines[end].strip() or self._indent(end) > width):
                end += 1
            while end > head + 1 and not self._lines[end - 1].strip():
                end -= 1
            start = at
            while start > pending and self._lines[start - 1].lstrip().startswith(("@", "#")):
                start -= 1
            yield from self._plain(pending, start)
            if end > head + 1:
                kind: Kind = "function" if match["function"] else "class"
                inner = self.indented(head + 1, end, depth + 1) if kind == "class" and depth < _DEEPEST else ()
                yield self._opened(start, end, kind, head + 1, end, tuple(inner))
            else:
                yield from self._plain(start, end)
            pending = at = end
        yield from self._plain(pending, last)

    def braced(self, first: int, last: int, depth: int) -> Iterator[Block]:
        """Brace languages: a definition reaches to the line whose closing brace is indented like its first line."""
        pending = at = first
        while at < last:
            match = _OPENS.match(self._lines[at].rstrip("\r\n"))
            end = self._closing(at, last) if match else None
            if match is None or end is None:
                at += 1
                continue
            yield from self._plain(pending, at)
            kind: Kind = "class" if match["class"] else "function"
            inner = self.braced(at + 1, end, depth + 1) if kind == "class" and depth < _DEEPEST else ()
            yield self._opened(at, end + 1, kind, at + 1, end, tuple(inner))
            pending = at = end + 1
        yield from self._plain(pending, last)

    def _closing(self, at: int, last: int) -> int | None:
        width = self._indent(at)
        for line in range(at + 1, last):
            if self._lines[line].lstrip().startswith("}") and self._indent(line) <= width:
                return line if line > at + 1 else None
        return None

    def _opened(self, start: int, end: int, kind: Kind, first: int, last: int, blocks: tuple[Block, ...]) -> Block:
        indent = self._lines[first][: self._indent(first)]
        blocks = blocks or tuple(self._plain(first, last))
        inside = self._edges[first], self._edges[last]
        return Block(self._edges[start], self._edges[end], kind, self._edges[start], inside, blocks, indent)

    def _plain(self, first: int, last: int) -> Iterator[Block]:
        if last > first:
            yield closed(self._edges[first], self._edges[last])

    def _indent(self, line: int) -> int:
        return len(self._lines[line]) - len(self._lines[line].lstrip(" \t"))
