"""Text → units small enough to quote: sentences, headings, table rows and lines of code, each with its offsets.

Works from line layout, punctuation and script alone, for any language. Which units matter is left to the caller.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

UnitKind = Literal["sentence", "heading", "row", "code"]

_LONGEST = 500  # characters of a unit; longer ones are cut at the last comma or space
_WRAP_WIDTHS = range(30, 121)  # widths at which people and programs break lines that belong together

_LINE = re.compile(r"[^\n]+")
_FENCE = re.compile(r"\s*(?:```|~~~)")
_RULE = re.compile(r"\s*([=\-*~_^+#])\1{2,}\s*$")
_TABLE_RULE = re.compile(r"[\s|:+\-=]+$")
_MARKDOWN_HEADING = re.compile(r"#{1,6}\s")  # but a comment in code is indented, or goes on in the next line
_MARKER = re.compile(r"\s*(?:[-*+•‣▪·–—]\s|\(?\w{1,3}[.)]\s|\||#{1,6}\s|>|\[?\d+[-:/.]\d+[-:/.]\d+)")
_CODE = re.compile(
    r"""\s*(?:(?:def|class|import|from|return|if|elif|else|for|while|with|try|except|raise|func|fn|let|const|var|public
    |private|static|void|int|\#include|async|await|assert|yield|print)\b.*[:;{()=]$|[\w.\[\]"'*]+\s*(?:::|[-+*/|:])?=[^=]
    |>>>\s|\.\.\.\s|\$\s|[\w.]+\(|[\]})]+[;,]?$|@\w|//|/\*|<\/?\w+[^>]*>)""",
    re.VERBOSE,
)
_CLOSED = re.compile(r"[.!?…:;,。！？：；，؟۔।॥]['\"”’»)\]」』）*_]*$")
_END = re.compile(r"(?<![.!?…])[.!?…]++['\"”’»)\]*_]*+(?=\s)|[。！？]+[」』”’）]*|[؟۔।॥။។።]+")
_ABBREVIATION = re.compile(
    r"""(?:^|[\s(\["'“])(?:[^\W\d_]|\w\.\w|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|cf|al|etc|Fig|Figs|Eq|Sec|No|Nos|Nr|Vol|pp?|Op|ca
    |approx|Inc|Ltd|Co|Corp|Gen|Col|Sgt|Capt|Lt|Rev|Hon|Gov|Sen|Rep|Mt|bzw|usw|vgl|Abs|Art|Bd|Sra?|Sta|Mme|Mlle|гг?|ул
    |им|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.$""",
    re.VERBOSE,
)
_ORDINAL = re.compile(r"(?:^|\s)\d{1,2}\.$")
_AFTER_ORDINAL = re.compile(
    r"\s+(?:Jan|Feb|Mär|Apr|Mai|Jun|Jul|Aug|Sep|Okt|Nov|Dez|Jahr|jan|feb|mar|apr|maj|aug|okt|dec)"
)
_SPACELESS = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")  # Thai, Lao, Burmese, Khmer: spaces end phrases
_WORD = re.compile(r"\w")


@dataclass(frozen=True, slots=True)
class Unit:
    """`text[start:end]`, without white space around it. paragraph: number of the block it stands in."""

    start: int
    end: int
    kind: UnitKind
    paragraph: int


def split(text: str) -> list[Unit]:
    """All units in order, not overlapping. Rules, blank space and anything without a letter or digit belong to none."""
    units: list[Unit] = []
    blocks = list(_blocks(text))
    for number, (lines, fenced) in enumerate(blocks):
        following = blocks[number + 1][0] if number + 1 < len(blocks) else []
        for start, end, kind in _segments(text, lines, fenced, following):
            spans = _sentences(text, start, end) if kind == "sentence" else [(start, end)]
            units += (Unit(*span, kind, number) for span in spans if _WORD.search(text, *span))
    return units


_Span = tuple[int, int]


def _blocks(text: str) -> Iterator[tuple[list[_Span], bool]]:
    """Runs of lines without a blank line between them; a fenced listing is one run, blank lines or not."""
    lines: list[_Span] = []
    fenced = False
    previous_end = 0
    for match in _LINE.finditer(text):
        start, end = match.span()
        is_fence = _FENCE.match(text, start, end) is not None
        blank = text[start:end].isspace()
        if lines and (is_fence or (not fenced and (blank or text.count("\n", previous_end, start) > 1))):
            yield lines, fenced
            lines = []
        previous_end = end
        if is_fence:
            fenced = not fenced
        elif not blank:
            lines.append((start, end))
    if lines:
        yield lines, fenced


def _segments(
    text: str, lines: list[_Span], fenced: bool, following: list[_Span]
) -> Iterator[tuple[int, int, UnitKind]]:
    """Lines of one block, joined where they were only wrapped."""
    shown = [text[start:end].rstrip() for start, end in lines]
    if fenced or sum(_CODE.match(line) is not None for line in shown) > len(lines) / 2:
        yield from ((*_trim(text, start, end), "code") for start, end in lines)
        return
    width = max(map(len, shown))
    indents = [len(line) - len(line.lstrip()) for line in shown]
    first = 0
    for i in range(1, len(lines) + 1):
        if i < len(lines) and _wrapped(shown[i - 1], shown[i], width, indents[i] - indents[i - 1], i - 1 == first):
            continue
        start, end = _trim(text, lines[first][0], lines[i - 1][1])
        underlined = i < len(lines) and _RULE.match(shown[i])
        after = lines[i] if i < len(lines) else (following[0] if following and len(lines) == 1 else None)
        if shown[first].lstrip().startswith("|"):
            if not _TABLE_RULE.match(text, start, end):
                yield start, end, "row"
        elif i - 1 == first and (underlined or _titled(text, start, end, after)):
            yield start, end, "heading"
        else:
            yield start, end, "sentence"
        first = i


def _wrapped(line: str, following: str, width: int, indent: int, opening: bool) -> bool:
    """Whether following goes on where line was broken by its width."""
    if width not in _WRAP_WIDTHS or _MARKER.match(following) or _RULE.match(following) or _RULE.match(line):
        return False
    if line.lstrip().startswith(("#", "|")) or (indent and not opening) or _CODE.match(line) or _CODE.match(following):
        return False
    return len(line) >= 0.6 * width or following.lstrip()[:1].islower()


def _titled(text: str, start: int, end: int, after: _Span | None) -> bool:
    """Whether a line is a heading: marked as one, or short, open-ended, and standing over something longer."""
    if _MARKDOWN_HEADING.match(text, start):
        return text[start - 1 : start] in {"", "\n"} and not (after and text.startswith("# ", after[0]))
    if after is None or end - start > 80 or _CLOSED.search(text, start, end) or _MARKER.match(text, start, end):
        return False
    return after[1] - after[0] >= 2 * (end - start) or (
        _CLOSED.search(text, *after) is not None and after[1] - after[0] > end - start
    )


def _sentences(text: str, start: int, end: int) -> Iterator[_Span]:
    spaceless = len(_SPACELESS.findall(text, start, end)) > 0.3 * (end - start)
    first = start
    for match in _END.finditer(text, start, end):
        stop = match.end()
        if match[0][0] == "." and not _ends_sentence(text, first, match.start() + 1, stop, end):
            continue
        yield from _pieces(text, first, stop, spaceless)
        first = stop
    yield from _pieces(text, first, end, spaceless)


def _ends_sentence(text: str, first: int, dot: int, stop: int, end: int) -> bool:
    rest = text[stop : min(stop + 12, end)]
    before = text[max(first, dot - 10) : dot]
    if rest.lstrip()[:1].islower() or _ABBREVIATION.search(before):
        return False
    if _ORDINAL.search(before):
        return text[first:dot].strip() != before.strip() and not _AFTER_ORDINAL.match(rest)
    return True


def _pieces(text: str, start: int, end: int, spaceless: bool) -> Iterator[_Span]:
    """The span, cut where it is too long to quote; scripts without full stops are cut at spaces into phrases."""
    longest = 80 if spaceless else _LONGEST
    while end - start > longest:
        window = text[start : start + longest]
        cut = max(window.rfind(mark, longest // 2) for mark in ("; ", ", ", "，", "、", "；", "،", "\n"))
        if cut < 0:
            cut = max(window.rfind(" ", longest // 3), -1)
        cut = start + (cut + 1 if cut >= 0 else longest)
        yield _trim(text, start, cut)
        start = cut
    start, end = _trim(text, start, end)
    if start < end:
        yield start, end


def _trim(text: str, start: int, end: int) -> _Span:
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - (len(piece) - len(piece.rstrip()))
