"""Chunks: where a document may be cut so that each piece can be indexed and shown on its own.

`split` is lossless: the chunks of a document tile its text, and a chunk holds offsets, never text. Cuts fall, in order
of preference, before headings (in code: before top-level definitions), after blank lines, sentences, lines and spaces;
code fences and tables stay whole where they fit. What the chunks are good for is left to the indexes built on them.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..router.core import Document
from ..router.errors import ConfigError
from ..router.tokens import cumulative_tokens

# The share of a chunk that must be filled before a cut of each kind is taken. Headings and paragraphs may leave a chunk
# short, because a chunk about one thing is found better than a full one; lesser cuts are taken as late as they come.
_HEADING_FILL, _PARAGRAPH_FILL, _OTHER_FILL = 0.25, 0.4, 0.2

# A run of headings up to this many characters stays together; a longer one is a text in capitals, not a title page.
_HEADING_RUN = 160

# Begins with a newline, so that the search skips from line to line; the lines it reads are given one before the first.
_STRUCTURE = re.compile(
    r"""\n(?:
      (?P<blank>    [^\S\n]*+ (?=\n) (?:\n[^\S\n]*+(?=\n))*+ )
    | (?P<fence>    [ \t]{0,3}(?:`{3,}+|~{3,}+) ) [^\n]*+
    | (?P<table>    [ \t]*+\|[^\n]*+ (?:\n[ \t]*+\|[^\n]*+)++ )
    | (?P<heading>  \#{1,6}[ \t]+\S[^\n]*+                                                              # Markdown
                  | \S[^\n]{0,118}+\n(?:={3,}+|-{3,}+|~{3,}+|\^{3,}+|\*{3,}+)[ \t]*+ (?![^\n])          # underlined
                  | \d{1,3}(?:\.\d{1,3})*+\.?[ \t]+[^\W\d_a-z][^\n]{1,76}+ (?<![.!?;:,]) (?![^\n]) )  # numbered
    | (?P<capitals> [^\na-z|]{3,80}+ (?![^\n]) )
    )""",
    re.VERBOSE,
)
_CODE_STRUCTURE = re.compile(r"\n(?:[^\S\n]*+\n)++(?P<definition>(?=[^\s)\]}]))?")
_SENTENCE_END = re.compile(
    r"""[.!?…؟۔।॥։።။。！？｡] (?<!\b[A-Z]\.)(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\bNo\.)
        [.!?…]*+ [)\]}"'’”»›」』）】》〉*_]*+
        (?: \s++ (?![a-z]) | (?<=[。！？｡]) | (?<=[。！？｡].) )""",
    re.VERBOSE,
)
# More marks than this on one letter are an attack: Unicode annex 15 calls a text with more than 30 unsafe to stream.
_LONGEST_GRAPHEME = 1000

_CLAUSE_ENDS = "，、；：،؛"
_ZERO_WIDTH_JOINER = "\u200d"
_VIRAMA = 9  # the combining class of the sign that joins two consonants of an Indic script
_EXTENDING = frozenset(  # characters that belong to the one before and are not marks by category
    chr(code)
    for first, last in (
        (0x0E33, 0x0E33),  # Thai am
        (0x0EB3, 0x0EB3),  # Lao am
        (0x1160, 0x11FF),  # Hangul vowels and finals
        (0xD7B0, 0xD7FF),
        (0x200C, 0x200D),  # zero-width joiners
        (0xFF9E, 0xFF9F),  # half-width Katakana marks
        (0x1F3FB, 0x1F3FF),  # skin tones
        (0xE0020, 0xE007F),  # the letters of regional flags
    )
    for code in range(first, last + 1)
)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of one document: `documents[document].text[start:end]`."""

    document: int
    start: int
    end: int


def split(document: Document, index: int = 0, max_tokens: int = 200) -> list[Chunk]:
    """Cut a document into chunks that tile its text: in order, without gap or overlap.

    index: what `Chunk.document` is to say.
    max_tokens: estimated tokens that no chunk exceeds, unless it is a single grapheme.
    Takes time linear in the length of the text. An empty text has no chunks.
    """
    return [chunk for chunk, _ in measured(document, index, max_tokens)]


def measured(document: Document, index: int = 0, max_tokens: int = 200) -> Iterator[tuple[Chunk, float]]:
    """The chunks of `split`, each with its estimated number of tokens."""
    if max_tokens < 1:
        raise ConfigError(f"max_tokens is {max_tokens}; a chunk needs room for at least 1 token.")
    text = document.text
    lines = _with_plain_line_breaks(text)
    structure = _code_structure(lines) if document.kind == "code" else _prose_structure(lines)
    ruler = _Ruler(text)
    start = 0
    while start < len(text):
        end = ruler.reach(start, max_tokens)
        if end < len(text):
            end = _best_cut(text, lines, structure, ruler, start, end, max_tokens)
        yield Chunk(index, start, end), ruler.tokens(start, end)
        start = end


@dataclass(frozen=True, slots=True)
class _Structure:
    """Offsets of what the layout of a text shows, each list ascending."""

    headings: list[int]
    paragraphs: list[int]
    block_starts: list[int]  # code fences and tables
    block_ends: list[int]
    sentences: bool


class _Ruler:
    """Measures a text in estimated tokens, a window at a time so that a huge text needs no array of its own length."""

    _WINDOW = 1 << 21

    def __init__(self, text: str) -> None:
        self._text = text
        self._move(0)

    def _move(self, base: int) -> None:
        self._base = base
        self._tokens = cumulative_tokens(self._text[base : base + self._WINDOW])

    def tokens(self, start: int, end: int) -> float:
        """Estimated tokens of text[start:end]; what lies beyond the window is not counted."""
        last = min(end - self._base, len(self._tokens) - 1)
        return float(self._tokens[last] - self._tokens[start - self._base])

    def reach(self, start: int, budget: float) -> int:
        """The furthest end such that text[start:end] holds at most budget tokens; never before start.

        Starts must not decrease. Sees half a window ahead: a chunk of a million characters is long enough.
        """
        if start - self._base > self._WINDOW // 2:
            self._move(start)
        at_most = self._tokens[start - self._base] + budget + 1e-6  # the sums are floats
        return self._base + int(np.searchsorted(self._tokens, at_most, side="right")) - 1


def _with_plain_line_breaks(text: str) -> str:
    """The text with every line break written as a newline and every offset unchanged."""
    lines = text.replace("\r\n", " \n")
    for character in "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029":
        lines = lines.replace(character, "\n")
    return lines


def _code_structure(lines: str) -> _Structure:
    """A definition is taken to be what starts in the first column after a blank line, whatever the language."""
    structure = _Structure([], [], [], [], sentences=False)
    for match in _CODE_STRUCTURE.finditer(lines):
        (structure.paragraphs if match["definition"] is None else structure.headings).append(match.end())
    return structure


def _prose_structure(lines: str) -> _Structure:
    structure = _Structure([], [], [], [], sentences=True)
    fence, fence_start = "", 0
    run_start, run_end = 0, -1  # the last run of headings, with the blank lines after it
    for match in _STRUCTURE.finditer("\n" + lines):
        start, end, kind = match.start(), match.end() - 1, match.lastgroup
        if kind == "blank":
            if start == run_end:
                run_end = end + 1
            else:
                structure.paragraphs.append(end + 1)
        elif kind == "fence":
            mark = match["fence"].lstrip()
            if not fence:
                fence, fence_start = mark, start
            elif mark.startswith(fence):
                structure.block_starts.append(fence_start)
                structure.block_ends.append(end)
                fence = ""
        elif fence:
            continue
        elif kind == "table":
            structure.block_starts.append(start)
            structure.block_ends.append(end)
        elif kind == "heading" or match.group().isupper():
            if start > run_end + 1 or end > run_start + _HEADING_RUN:
                structure.headings.append(start)
                run_start = start
            run_end = end
    return structure


def _best_cut(
    text: str, lines: str, structure: _Structure, ruler: _Ruler, start: int, limit: int, max_tokens: int
) -> int:
    """Where the chunk from start ends best, given that it may reach to limit and no further."""
    block = bisect_left(structure.block_starts, limit) - 1
    in_block = block >= 0 and limit < structure.block_ends[block]
    if in_block:
        block_start, block_end = structure.block_starts[block], structure.block_ends[block]
        if start < block_start and ruler.tokens(block_start, block_end) <= max_tokens:
            return block_start
    for places, fill in ((structure.headings, _HEADING_FILL), (structure.paragraphs, _PARAGRAPH_FILL)):
        last = places[bisect_right(places, limit) - 1] if places else 0
        if start < last <= limit and last >= ruler.reach(start, fill * max_tokens):
            return last
    floor = ruler.reach(start, _OTHER_FILL * max_tokens)
    if structure.sentences and not in_block:
        ends = [match for match in _SENTENCE_END.finditer(lines, floor, limit) if not _joined(text, match.end(), start)]
        if ends:
            return next((match for match in reversed(ends) if "\n" in match.group()), ends[-1]).end()
    if line_end := lines.rfind("\n", floor, limit) + 1:
        return line_end
    for place in range(limit, floor, -1):
        before = lines[place - 1]
        if (
            (before.isspace() or before in _CLAUSE_ENDS)
            and not lines[place].isspace()
            and not _joined(text, place, start)
        ):
            return place
    return _character_cut(text, start, limit)


def _character_cut(text: str, start: int, limit: int) -> int:
    """The last place between two characters, at limit or before; else, as the first character is too long, its end."""
    place = limit
    while place > start and _joined(text, place, start):
        place -= 1
    if place > start:
        return place
    place = limit + 1
    while place < min(len(text), limit + _LONGEST_GRAPHEME) and _joined(text, place, start):
        place += 1
    return place


def _is_regional(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _joined(text: str, place: int, start: int) -> bool:
    """Whether a cut at place would break what a reader sees as one character.

    start: a place known to be between characters. The rules of Unicode annex 29 that matter, a little coarser.
    """
    before, after = text[place - 1], text[place]
    if (before < "\x7f" and after < "\x7f") or before in "\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029":
        return before == "\r" and after == "\n"  # nothing else joins a line break (rule GB4), not even a mark
    if unicodedata.category(after)[0] == "M" or after in _EXTENDING or before == _ZERO_WIDTH_JOINER:
        return True
    if unicodedata.combining(before) == _VIRAMA:
        return True
    if _is_regional(before) and _is_regional(after):  # a flag is a pair of them
        first = place - 1
        while first > start and _is_regional(text[first - 1]):
            first -= 1
        return (place - first) % 2 == 1
    return "\ud800" <= before <= "\udbff" and "\udc00" <= after <= "\udfff"
