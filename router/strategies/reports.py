"""Reports: what a reader of a part of a text says, in lines of a few forms that small models manage.

What the lines do to what is known already is left to `notes.py`; the prompt that asks for them is in `prompts.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

Form = Literal["evidence", "count", "correct", "drop"]

_OPENING_MARKS = '"“”„«»‹›「『〝＂'
_CLOSING_MARKS = '"”“»«›‹」』〞＂'

# What small models put before a line: bullets, numbers, Markdown, quoting.
_DECORATION = r"[\s>*_`#•·+–—-]*+(?:\d{1,3}[.)]\s+)?[\s*_`\[]*+"
_KEYWORD = re.compile(
    rf"{_DECORATION}(?:(?P<word>EVIDENCE|COUNT|CORRECT(?:ION|ED|S)?|DROP(?:PED|S)?)\b[*_`\]]*+(?P<rest>.*)"
    r"|(?P<bare>NOTHING|COMPLETED?)[\s*_`\].!]*+)$",
    re.IGNORECASE | re.DOTALL,
)
_NUMBERS = re.compile(
    r"[\s(\[#]*+(?:(?:notes?|items?|numbers?|nos?\.?)[\s(\[#]*+)?(?P<numbers>\d{1,6}(?:[\s\])]*+(?:,|and\b|&|\[|\()[\s(\[#]*+\d{1,6})*+)"
    r"[\s\])]*+",
    re.IGNORECASE,
)
_SEPARATOR = re.compile(r"[\s*_`]*+(?:[:：=]|[-–—]+(?=\s))[\s*_`]*+")
_REMARK = re.compile(r"[\s*_`.,;]*+(?:(?:[|｜→]|[-=]>|[-–—]+(?=\s))\s*+(?P<remark>.*))?$", re.DOTALL)
_FENCE_LINE = re.compile(r"\s*(?:```|~~~)\S*\s*$")
_MOST_JOINED_LINES = 20  # of a quotation that goes on; beyond them its closing mark was forgotten
_LABEL_LENGTH = 80  # characters of what is counted


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that a reader reports.

    marked: the quotation stood in quotation marks, so it is meant to be one.
    targets: numbers of the items it corrects or drops.
    """

    form: Form
    quote: str = ""
    remark: str = ""
    label: str = ""
    targets: tuple[int, ...] = ()
    marked: bool = True


@dataclass(frozen=True, slots=True)
class Report:
    """A reader's reply, read. complete: it says that the question can be answered now."""

    lines: tuple[Line, ...] = ()
    complete: bool = False


def parse(reply: str) -> Report:
    """Read a reader's reply. Never fails: what is in none of the forms is kept, as a remark without a quotation."""
    lines: list[Line] = []
    stray: list[str] = []
    complete = nothing = False
    for text in _logical_lines(reply):
        match = _KEYWORD.match(text)
        bare = match["bare"].upper() if match and match["bare"] else ""
        line = _line(match["word"].upper(), match["rest"]) if match and match["word"] else None
        if bare:
            complete, nothing = complete or bare.startswith("COMPLETE"), nothing or bare == "NOTHING"
        elif line is not None:
            lines.append(line)
        elif (body := re.sub(rf"^{_DECORATION}", "", text))[:1] in _OPENING_MARKS and body:
            lines.append(_evidence(body))
        elif lines and not stray and lines[-1].form in ("evidence", "count", "correct"):
            lines[-1] = replace(lines[-1], remark=f"{lines[-1].remark} {text.strip()}".strip())  # a wrapped line
        elif not text.rstrip().endswith((":", "：")):  # "Here is what I found:" leads to the lines
            stray.append(text.strip())
    if stray and not (nothing and not lines):
        lines.insert(0, Line("evidence", remark=" ".join(stray), marked=False))
    return Report(tuple(lines), complete)


def _logical_lines(reply: str) -> Iterator[str]:
    """Lines that say something; a quotation that goes on over several is one."""
    held: list[str] = []
    for text in reply.splitlines():
        if _FENCE_LINE.match(text) or not text.strip():
            continue
        if held and (_KEYWORD.match(text) or len(held) >= _MOST_JOINED_LINES):
            yield " ".join(held)
            held = []
        held.append(text.strip() if held else text)
        if not _open(" ".join(held)):
            yield " ".join(held)
            held = []
    if held:
        yield " ".join(held)


def _open(text: str) -> bool:
    """Whether a line of ours ends inside its quotation."""
    match = _KEYWORD.match(text)
    if not match or not match["word"]:
        return False
    first = re.search(f"[{_OPENING_MARKS}]", match["rest"])
    return first is not None and re.search(f"[{_CLOSING_MARKS}]", match["rest"][first.end() :]) is None


def _line(word: str, rest: str) -> Line | None:
    """What follows a keyword; None where it is a sentence that only begins with the word."""
    targets: tuple[int, ...] = ()
    label = ""
    if word.startswith(("CORRECT", "DROP")):
        numbers = _NUMBERS.match(rest)
        if numbers is None:
            return None
        targets = tuple(dict.fromkeys(map(int, re.findall(r"\d+", numbers["numbers"]))))
        rest = rest[numbers.end() :]
    elif word == "COUNT":
        mark = re.search(f"[:：=][\\s*_`]*+(?=[{_OPENING_MARKS}])", rest) or re.search("[:：=]", rest)
        if mark is None:
            return None
        label, rest = cleaned(rest[: mark.start()])[:_LABEL_LENGTH], rest[mark.start() :]
    separator = _SEPARATOR.match(rest)
    body = rest[separator.end() :] if separator else rest.strip()
    if separator is None and body[:1] not in _OPENING_MARKS:
        return None
    if word.startswith("DROP"):
        reason = body.strip().strip("|｜*_` ")
        return Line("drop", remark=reason, targets=targets)
    form: Form = "correct" if targets else "count" if word == "COUNT" else "evidence"
    return replace(_evidence(body), form=form, label=label, targets=targets)


def _evidence(body: str) -> Line:
    """A quotation and what it shows, the one after the other."""
    body = body.strip()
    if body[:1] and body[0] in _OPENING_MARKS:
        for close in re.finditer(f"[{_CLOSING_MARKS}]", body[1:]):
            tail = _REMARK.match(body, close.end() + 1)
            if tail:
                return Line("evidence", body[1 : close.start() + 1].strip(), (tail["remark"] or "").strip())
        quote, _, remark = body[1:].partition(" | ")  # cut off before its closing mark
        return Line("evidence", quote.strip(), remark.strip())
    quote, _, remark = body.partition("|")
    return Line("evidence", quote.strip(" *_`"), remark.strip(), marked=False)


def cleaned(text: str) -> str:
    """One line, without what separates the parts of ours."""
    return " ".join(text.split()).replace("|", "/").strip(" *_`")
