"""Where in one string a long text stands: inside tags, fences, quotes or rulers, after a label, beside a question.

Pure, and of one string alone: tags, labels, questions and instructions stay outside the spans. Only the edges of a
string are read closely, so a long text costs little. Which string asks, and whether a task allows any of this, is
left to `locate.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from .wording import (
    QUESTION_LABEL,
    TEXT_LABEL,
    directs_the_model,
    has_question_mark,
    instructs,
    introduces,
    points,
    shows_examples,
    weight,
)

Span = tuple[int, int]

_EDGE = 4000  # characters at either end in which something about the text may be said
_PARAGRAPHS = 8  # said at one end, at most
_NEAR = 1000  # characters next to it in which a greeting or a name may keep a question apart from the end
_PARAGRAPHS_NEAR = 3
_TAGS = 20_000  # more are not read
_DEEPEST = 6  # elements in elements; deeper ones are part of the text
_SHOTS_WITHIN = 20_000

_TAG = re.compile(r"<(/?)([A-Za-z_][\w.:-]{0,40})((?:\s[^<>]{0,200})?)>")
_MARKUP = re.compile(
    r"(?:abbr|a|blockquote|body|br|b|caption|center|code|col|dd|div|dl|dt|em|figure|font|footer|form|h[1-6r]|head|header|"
    r"iframe|img|input|i|label|link|li|meta|nav|ol|option|pre|p|script|section|select|small|span|strong|style|sub|sup|svg|"
    r"table|tbody|td|tfoot|thead|th|tr|ul|u|video)$",
    re.IGNORECASE,
)
_TALK = re.compile(
    r"(?:user_?)?(?:question|quer(?:y|ies)|task|request|instructions?|rules?|guidelines?|examples?|format|output\w*|role|"
    r"persona|style|tone|tools?|tool_\w+|env\w*|system\w*|policy|constraints?|thinking|answer\w*|steps?|reminder|"
    r"system.reminder|todo\w*)$",
    re.IGNORECASE,
)
_LABEL_NAME = re.compile(
    r"(?:source|title|url|uri|link|date|author|id|name|index|file_?name|path|page|score|metadata|type|language|lang)$",
    re.IGNORECASE,
)
_TEXT_NAME = re.compile(
    r"(?:\w*_)?(?:doc(?:ument)?s?|context|text|article|report|sources?|passages?|contents?|transcript|paper|page|book|file|"
    r"knowledge\w*|data|results?|search_results|chunks?|excerpts?|contract|story|references?|handbook|manual|faq|material|"
    r"attachments?|emails?|thread|meeting|background|information)(?:[_-]?\w{1,8})?$",
    re.IGNORECASE,
)

_BLANK = re.compile(r"\n[ \t\r]*\n\s*")
_FENCE = re.compile(r"^(`{3,}|~{3,})[ \t]*([\w+.-]*)[ \t\r]*$", re.MULTILINE)
_QUOTES = re.compile(r"(?:^|[\s:：])(\"\"\"|''')")
_RULER = re.compile(r"^[ \t]*(([-=*#~_+])\2{2,}(?:[ \w.:'-]{1,60}\2{2,})?)[ \t\r]*$", re.MULTILINE)
_OPTION = re.compile(r"\s*(?:\(?[A-Ha-h1-9][.)]|[-*•])\s")
_NUMBERED = re.compile(
    r"^[#* \t]{0,8}(?:(?:document|doc|passage|source|article|text|result|chunk|excerpt|file|reference|context|dokument|"
    r"quelle|documento|fuente|документ|источник|文档|文章|材料|段落|资料)[ \t]*(?:no\.?[ \t]*|\#)?(\d{1,3})[*]*[ \t]*"
    r"[:.：)\]-]?|\[(\d{1,3})\])[*]*[ \t]*",
    re.IGNORECASE | re.MULTILINE,
)
_PROSE_FENCES = ("", "text", "txt", "plain", "plaintext", "md", "markdown")


@dataclass(frozen=True, slots=True)
class Blocks:
    """Long texts in a string, in order, and everything said around them.

    shape: how they were told apart. said: the paragraphs outside, without their delimiters.
    """

    shape: str
    spans: tuple[Span, ...]
    said: tuple[Span, ...]


def find_blocks(text: str, *, asked_elsewhere: bool, strict: bool = False) -> Blocks | str:
    """The long texts of a string, or why none can be told apart.

    asked_elsewhere: the question stands in another string, so what stands here may be text from end to end.
    strict: only what names itself a text, for strings that are mostly instructions.
    """
    found = _tagged(text, strict) or _enclosed(text)
    if isinstance(found, str) or (found and not strict) or (found and found.shape == "tags"):
        return found
    if shows_examples(text[:_SHOTS_WITHIN]):
        return "the text shows examples to follow"
    return _beside(text, asked_elsewhere, strict)


def paragraphs(text: str, start: int, end: int) -> Iterator[Span]:
    """The paragraphs of a stretch of text, trimmed, none empty."""
    for blank in _BLANK.finditer(text, start, end):
        if start < blank.start():
            yield from _trimmed(text, start, blank.start())
        start = blank.end()
    yield from _trimmed(text, start, end)


def trim(text: str, start: int, end: int) -> Span:
    """The same stretch without white space at its ends."""
    inner = text[start:end]
    start += len(inner) - len(inner.lstrip())
    return start, start + len(inner.strip())


def _trimmed(text: str, start: int, end: int) -> Iterator[Span]:
    span = trim(text, start, end)
    if span[0] < span[1]:
        yield span


def _around(text: str, spans: Sequence[Span]) -> tuple[Span, ...]:
    """The paragraphs outside the spans."""
    bounds = [0, *(offset for span in spans for offset in span), len(text)]
    return tuple(p for i in range(0, len(bounds), 2) for p in paragraphs(text, bounds[i], bounds[i + 1]))


# ---- tags ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Element:
    name: str
    start: int
    inner: Span
    end: int


def _tagged(text: str, strict: bool) -> Blocks | None:
    tags = [tag for tag in islice(_TAG.finditer(text), _TAGS) if not _MARKUP.match(tag[2])]
    elements = [e for e in _elements(tags) if not _TALK.match(e.name)]
    if strict:
        elements = [e for e in elements if _TEXT_NAME.match(e.name) or e.end - e.start > 0.6 * len(text)]
    spans = [span for element in elements for span in _leaves(text, element, tags)]
    inside = sum(element.end - element.start for element in elements)
    outside = len(text) - inside
    if not spans or outside > max(_EDGE, inside // 2):
        return None
    said = _around(text, [(e.start, e.end) for e in elements])
    return Blocks("tags", tuple(spans), said)


def _elements(tags: Sequence[re.Match[str]]) -> Iterator[_Element]:
    """The outermost elements, of tags that are closed."""
    last_opening = {tag[2]: tag.start() for tag in tags if not tag[1]}
    last_closing = {tag[2]: tag.start() for tag in tags if tag[1]}
    opening: re.Match[str] | None = None
    depth = 0
    for tag in tags:
        if tag[3].endswith("/"):
            continue
        if opening is None:
            if not tag[1] and last_closing.get(tag[2], -1) > tag.start():
                opening, depth = tag, 1
        elif tag[2] == opening[2]:
            depth += -1 if tag[1] else 1
            # Of closings without an opening the last one counts: a text may mention the tag that it stands in.
            last = tag.start() == last_closing[tag[2]]
            if last or (depth <= 0 and last_opening[tag[2]] > tag.start()):
                yield _Element(opening[2], opening.start(), (opening.end(), tag.start()), tag.end())
                opening = None


def _leaves(text: str, element: _Element, tags: Sequence[re.Match[str]], depth: int = 0) -> Iterator[Span]:
    """The texts in an element: its own, or those of its children where it holds nothing else."""
    start, end = element.inner
    within = [tag for tag in tags if start <= tag.start() < end]
    children = list(_elements(within))
    if not children or depth == _DEEPEST or _own_length(text, start, end, children):
        yield from _trimmed(text, start, end)
        return
    for child in children:
        if not _LABEL_NAME.match(child.name) and not _TALK.match(child.name):
            yield from _leaves(text, child, within, depth + 1)


def _own_length(text: str, start: int, end: int, children: Sequence[_Element]) -> int:
    bounds = [start, *(offset for child in children for offset in (child.start, child.end)), end]
    return sum(len(text[bounds[i] : bounds[i + 1]].strip()) for i in range(0, len(bounds), 2))


# ---- fences, quotes, rulers ------------------------------------------------------------------------------------------


def _enclosed(text: str) -> Blocks | str | None:
    """A text between a delimiter near the beginning and its like near the end."""
    late = max(0, len(text) - _EDGE)
    opening = _FENCE.search(text, 0, _EDGE)
    if opening:
        closings = [c for c in _FENCE.finditer(text, max(late, opening.end())) if c[1] == opening[1] and not c[2]]
        if closings:
            if opening[2].lower() not in _PROSE_FENCES:
                return "the text is code or data"
            return _between(text, "fences", opening.start(), opening.end(), closings[-1].start(), closings[-1].end())
    opening = _QUOTES.search(text, 0, _EDGE)
    if opening:
        closing = text.rfind(opening[1], max(late, opening.end()))
        if closing > 0:
            return _between(text, "quotes", opening.start(1), opening.end(), closing, closing + 3)
    for opening in islice(_RULER.finditer(text, 0, _EDGE), 3):
        closings = [c for c in _RULER.finditer(text, max(late, opening.end())) if c[2] == opening[2]]
        if not closings or any(_hidden(text, [opening.span()], [closings[-1].span()])):
            continue  # a question stands inside: these rulers separate it, they do not enclose a text
        if _is_talk(text, 0, opening.start()) and _is_talk(text, closings[-1].end(), len(text)):
            return _between(text, "rulers", opening.start(), opening.end(), closings[-1].start(), closings[-1].end())
    return None


def _between(text: str, shape: str, start: int, inner_start: int, inner_end: int, end: int) -> Blocks:
    spans = tuple(_trimmed(text, inner_start, inner_end))
    return Blocks(shape, spans, _around(text, [(start, end)]))


def _is_talk(text: str, start: int, end: int) -> bool:
    return all(_says(text[a:b]) for a, b in paragraphs(text, start, end))


def _says(paragraph: str) -> bool:
    return introduces(paragraph) or _asks_or_instructs(paragraph) or TEXT_LABEL.fullmatch(paragraph) is not None


def _asks_or_instructs(paragraph: str) -> bool:
    return weight(paragraph) > 0 or instructs(paragraph)


# ---- beside a question -----------------------------------------------------------------------------------------------


def _beside(text: str, asked_elsewhere: bool, strict: bool) -> Blocks | str:
    """What is left of a string when all that is said about the text is taken off at both ends."""
    head, tail = _head(text), _tail(text)
    needed = 2 if asked_elsewhere else 1
    before, after = _request(text, head, needed), _request(text, tail, needed)
    announced = any(introduces(text[a:b]) for a, b in head)
    manner = all(instructs(text[a:b]) for a, b in head)
    # The wrong one of two questions could be a part of the text, even put there so that the right one is lost.
    hidden_before, hidden_after = _hidden(text, head, tail)
    hidden = _request(text, (*hidden_before, *hidden_after), 1)
    if (before and after and _two_questions(text, head, tail)) or hidden >= max(before, after, needed):
        return "two places could hold the question"
    if not (before or after or asked_elsewhere):
        return "no question is told apart from the text"
    if not (before or announced or (after and manner)):
        head = []
    if not (before or after):
        tail = []
    if before or after:
        head, tail = head + hidden_before, hidden_after + tail
    if strict and not any(points(text[a:b]) for a, b in head):
        return "nothing marks a text in the instructions"
    start, end = _inner(text, head[-1][1] if head else 0, tail[0][0] if tail else len(text))
    if directs_the_model(text[start:end]):
        return "the long text is instructions"
    spans = _numbered(text, start, end) or ((start, end),)
    shape = "pasted before the question" if after else "pasted after the question" if before else "a text of its own"
    return Blocks(shape, tuple(s for s in spans if s[0] < s[1]), (*head, *tail))


def _two_questions(text: str, head: Sequence[Span], tail: Sequence[Span]) -> bool:
    first, second = ([text[a:b] for a, b in said if has_question_mark(text[a:b])] for said in (head, tail))
    labelled = any(QUESTION_LABEL.match(question) for question in (*first, *second))
    return bool(first and second) and not labelled and set(first).isdisjoint(second)


def _hidden(text: str, head: Sequence[Span], tail: Sequence[Span]) -> tuple[list[Span], list[Span]]:
    """What stands near either end up to the last request that a greeting or the like keeps apart from the end."""
    start, end = head[-1][1] if head else 0, tail[0][0] if tail else len(text)
    first = list(islice(paragraphs(text, start, min(start + _NEAR, end)), _PARAGRAPHS_NEAR))
    last = list(paragraphs(text, max(start, end - _NEAR), end))[-_PARAGRAPHS_NEAR:]
    while first and not weight(text[slice(*first[-1])]):
        del first[-1]
    while last and not weight(text[slice(*last[0])]):
        del last[0]
    return first, last


def _request(text: str, said: Sequence[Span], needed: int) -> int:
    """The weight of the clearest request among what is said, where it is clear enough."""
    clearest = max((weight(text[a:b]) for a, b in said), default=0)
    return clearest if clearest >= needed else 0


def _head(text: str) -> list[Span]:
    """What is said before the text, paragraph by paragraph."""
    said: list[Span] = []
    for start, end in islice(paragraphs(text, 0, min(len(text), _EDGE)), _PARAGRAPHS):
        label = _line_of(TEXT_LABEL, text, start, end)
        if label is not None:
            if start < label and _says(text[start:label]):
                said.append(trim(text, start, label))
            break
        if end < _EDGE - 1 and _says(text[start:end]):
            said.append((start, end))
            continue
        line_end = text.find("\n", start, end)
        if line_end > 0 and _says(text[start:line_end]):
            said.append(trim(text, start, line_end))
        break
    return said


def _tail(text: str) -> list[Span]:
    """What is said after the text, in order."""
    said: list[Span] = []
    first = max(0, len(text) - _EDGE)
    for start, end in reversed(list(paragraphs(text, first, len(text)))[-_PARAGRAPHS:]):
        label = _line_of(QUESTION_LABEL, text, start, end)
        if label is not None:
            said.insert(0, (label, end))
            if label == start:
                continue
            break
        if start > first and "\n" not in text[start:end] and _asks_or_instructs(text[start:end]):
            said.insert(0, (start, end))
            continue
        line = _last_lines(text, start, end)
        if line is None:
            break
        said.insert(0, line)
        if line[0] > start:
            break
    return said


def _line_of(label: re.Pattern[str], text: str, start: int, end: int) -> int | None:
    """Where a line with the label begins."""
    while True:
        if label.match(text, start, end):
            return start
        start = text.find("\n", start, end) + 1
        if not start:
            return None


def _last_lines(text: str, start: int, end: int) -> Span | None:
    """The last line of a paragraph, with choices listed below it, where it says something about the text."""
    line_end = end
    while True:
        line_start = text.rfind("\n", start, line_end) + 1 or start
        line = text[line_start:line_end]
        if _OPTION.match(line) and line_start > start and end - line_start < 1000:
            line_end = line_start - 1
            continue
        return (line_start, end) if _asks_or_instructs(line) else None


def _inner(text: str, start: int, end: int) -> Span:
    """The stretch without the labels and delimiters at its ends."""
    start, end = trim(text, start, end)
    for _ in range(3):
        delimiter = TEXT_LABEL.match(text, start, end) or _RULER.match(text, start, end)
        if not delimiter:
            break
        start, end = trim(text, delimiter.end(), end)
    last_line = text.rfind("\n", start, end) + 1
    if last_line and _RULER.match(text, last_line, end):
        start, end = trim(text, start, last_line)
    return start, end


def _numbered(text: str, start: int, end: int) -> tuple[Span, ...]:
    """The texts of a numbered list that begins at the start."""
    first = _NUMBERED.match(text, start, end)
    if not first or int(first[1] or first[2]) > 1:
        return ()
    starts = [first]
    for found in _NUMBERED.finditer(text, first.end(), end):
        if int(found[1] or found[2]) == int(starts[-1][1] or starts[-1][2]) + 1:
            starts.append(found)
    if len(starts) < 2:
        return ()
    ends = [*(found.start() for found in starts[1:]), end]
    return tuple(trim(text, found.end(), stop) for found, stop in zip(starts, ends, strict=True))
