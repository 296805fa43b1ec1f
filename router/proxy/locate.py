"""Finds the long text in a request: the question, the documents with their exact places, and what must stay.

Pure. A request is left alone unless it is clear what is asked, what the text is, and that the answer needs not every
word of it. Where in one string a text stands is left to `blocks.py`, what words mean to `wording.py`, and whether to
shorten anything to the router.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..core import Document
from .blocks import Span, find_blocks, trim
from .texts import Conversation, LeftAlone, Located, Place, Text
from .wording import (
    asks,
    core,
    has_question_mark,
    instructs,
    leans,
    needs_every_word,
    shows_examples,
    system_needs_every_word,
    weight,
)

_BYTES_PER_TOKEN = 4
_SHORT = 2000  # bytes: a string below is something said, not a text to shorten
_OLDER_TURNS = 12  # a conversation with fewer is not long by its turns
_LAST_TURNS = 4  # stay as they are before the question
_LONGEST_FIELD = 30  # characters of a record's field, on average
_SAMPLE = 6000  # characters to tell prose from code and data by


@dataclass(frozen=True, slots=True)
class _Found:
    """Documents in the strings of a request (index of the string, span in it), and what is said around them."""

    shape: str
    documents: tuple[tuple[int, Span], ...]
    said: tuple[tuple[int, Span], ...]


def locate(conversation: Conversation, *, min_tokens: int = 4000) -> Located | LeftAlone:
    """The long text of a request, or why it is left alone. Tokens are counted as a quarter of the UTF-8 bytes."""
    texts = conversation.texts
    min_bytes = min_tokens * _BYTES_PER_TOKEN
    if _n_bytes(text.text for text in texts) < min_bytes:
        return LeftAlone("the request is short")
    if conversation.last_role == "assistant" and conversation.api != "messages":
        return LeftAlone("the last message is the model's own, to be continued")
    asking = max((t.turn for t in texts if t.role == "user" and t.source == "message"), default=None)
    if asking is None:
        return LeftAlone("there is no message of a user")
    found = _find(conversation, asking)
    if isinstance(found, LeftAlone):
        return found
    if _n_bytes(texts[i].text[a:b] for i, (a, b) in found.documents) < min_bytes:
        found = _older_turns(conversation, asking)
        if isinstance(found, LeftAlone):
            return found
        if _n_bytes(texts[i].text[a:b] for i, (a, b) in found.documents) < min_bytes:
            return LeftAlone("no part of the request is long enough")
    forbidden = _forbidden(conversation, found)
    if forbidden:
        return LeftAlone(forbidden)
    question = _question(conversation, asking, found)
    if isinstance(question, LeftAlone):
        return question
    return _located(conversation, found, *question)


# ---- documents -------------------------------------------------------------------------------------------------------


def _find(conversation: Conversation, asking: int) -> _Found | LeftAlone:
    """Documents wherever they stand, with what is said in the message that asks."""
    texts = conversation.texts
    marked = any(text.mark == "document" for text in texts)
    elsewhere = _asked_apart(conversation, asking)
    documents: list[tuple[int, Span]] = []
    said: list[tuple[int, Span]] = []
    shapes: list[str] = []
    reason = "no part of the request is long enough"
    for i, text in enumerate(texts):
        asks_here = text.turn == asking and text.role == "user" and text.source == "message"
        whole = trim(text.text, 0, len(text.text))
        if text.mark == "document" or (text.source == "document" and not text.mark):
            if not text.fixed and whole[0] < whole[1]:
                documents.append((i, whole))
                shapes.append("marked" if text.mark else "document part")
        elif _is_short(text.text) or text.mark or marked:
            if asks_here:
                said.append((i, whole))
        elif text.source == "tool_result":
            if not _is_prose(text.text):
                reason = "the text is code or data"
            elif not text.fixed:
                documents.append((i, whole))
                shapes.append("tool result")
        elif text.role != "assistant" and not text.fixed:
            blocks = find_blocks(text.text, asked_elsewhere=elsewhere or not asks_here, strict=text.role == "system")
            if not isinstance(blocks, str) and not all(_is_prose(text.text[a:b]) for a, b in blocks.spans):
                blocks = "the text is code or data"
            if isinstance(blocks, str):
                if asks_here:  # who knows what it asks for
                    return LeftAlone(blocks)
                reason = blocks
                continue
            documents += ((i, span) for span in blocks.spans)
            said += ((i, span) for span in blocks.said if asks_here)
            where = "" if asks_here else "system text, " if text.role == "system" else "earlier turn, "
            shapes.append(where + blocks.shape)
    if not documents and _n_turns(texts, asking) < _OLDER_TURNS:
        return LeftAlone(reason)
    return _Found(" and ".join(dict.fromkeys(shapes)), tuple(documents), tuple(said))


def _asked_apart(conversation: Conversation, asking: int) -> bool:
    """Whether the question stands in a string of its own."""
    return bool(_option(conversation)) or any(
        text.mark == "question"
        or (text.turn == asking and text.role == "user" and _is_short(text.text) and not text.mark and asks(text.text))
        for text in conversation.texts
        if text.source == "message"
    )


def _older_turns(conversation: Conversation, asking: int) -> _Found | LeftAlone:
    """Each turn of a long conversation but the last ones, where the conversation is what the question is about."""
    older = [
        (i, text)
        for i, text in enumerate(conversation.texts)
        if text.role in ("user", "assistant") and text.turn < asking and text.text.strip()
    ]
    turns = sorted({text.turn for _, text in older})
    if len(turns) < _OLDER_TURNS:
        return LeftAlone("no part of the request is long enough")
    if any(text.source != "message" for text in conversation.texts):
        return LeftAlone("the conversation uses tools or documents, which later turns build on")
    replies = Counter(text.text for _, text in older if text.role == "assistant")
    if 2 * len(replies) <= replies.total() or _n_bytes(replies) < 20 * len(replies):
        return LeftAlone("the turns show examples to follow")
    if sum("```" in text.text for _, text in older) > len(older) / 10:
        return LeftAlone("the conversation is about code")
    kept = set(turns[-_LAST_TURNS:])
    documents = tuple(
        (i, trim(text.text, 0, len(text.text)))
        for i, text in older
        if text.turn not in kept and not text.fixed and not text.mark
    )
    said = tuple(
        (i, trim(text.text, 0, len(text.text)))
        for i, text in enumerate(conversation.texts)
        if text.turn == asking and text.role == "user"
    )
    return _Found("conversation", documents, said)


def _n_turns(texts: Sequence[Text], asking: int) -> int:
    return len({text.turn for text in texts if text.turn < asking})


# ---- the question ----------------------------------------------------------------------------------------------------


def _option(conversation: Conversation) -> str:
    given = conversation.options.get("question")
    return given.strip() if isinstance(given, str) else ""


def _question(conversation: Conversation, asking: int, found: _Found) -> tuple[str, Place | None] | LeftAlone:
    """What is asked, and where: what the request marks, else the clearest question of the last user turn."""
    if _option(conversation):
        return _option(conversation), None
    texts = conversation.texts
    marked = [(i, trim(t.text, 0, len(t.text))) for i, t in enumerate(texts) if t.mark == "question" and t.text.strip()]
    candidates = marked or [(i, (a, b)) for i, (a, b) in found.said if asks(texts[i].text[a:b])]
    if not candidates:
        return LeftAlone("the last message of the user asks nothing")

    def clarity(candidate: tuple[int, Span]) -> tuple[bool, int, bool, int]:
        i, (a, b) = candidate
        part = texts[i].text[a:b]
        marked_so = has_question_mark(part)
        return marked_so or not instructs(part), weight(part), marked_so, i

    i, (start, end) = max(reversed(candidates), key=clarity)
    if not marked:
        first, last = core(texts[i].text[start:end])
        start, end = start + first, start + last
    question = texts[i].text[start:end]
    if leans(question) and not marked and any(t.role == "assistant" and t.turn < asking for t in texts):
        return LeftAlone("the question leans on the turns before it")
    return question, Place(texts[i].path, start, end)


# ---- what forbids it -------------------------------------------------------------------------------------------------


def _forbidden(conversation: Conversation, found: _Found) -> str:
    """Why the task needs the whole text, or nothing."""
    texts = conversation.texts
    said = [texts[i].text[a:b] for i, (a, b) in found.said]
    marked = [text.text for text in texts if text.mark == "question"]
    if any(needs_every_word(part) for part in (*said, *marked, _option(conversation))):
        return "the task needs every word of the text"
    if any(shows_examples(part) for part in said):
        return "the request shows examples to follow"
    if any(text.role == "system" and system_needs_every_word(text.text) for text in texts):
        return "the system text sets a task that needs every word"
    return ""


def _located(conversation: Conversation, found: _Found, question: str, question_place: Place | None) -> Located:
    texts = conversation.texts
    titles = Counter(texts[i].title for i, _ in found.documents)
    documents, places = [], []
    for i, (start, end) in sorted(found.documents):
        title = texts[i].title
        # Turns know their speaker, so that retrieval takes them for what they are: parts of one conversation.
        speaker = texts[i].role if found.shape == "conversation" else ""
        documents.append(Document(texts[i].text[start:end], title if titles[title] == 1 else "", speaker=speaker))
        places.append(Place(texts[i].path, start, end))
    return Located(
        question=question,
        question_place=question_place,
        documents=tuple(documents),
        places=tuple(places),
        shape=found.shape,
        instructions=_instructions(texts, found.documents, question_place),
        app_caches=any(i <= conversation.cached_until for i, _ in found.documents),
    )


def _instructions(texts: Sequence[Text], documents: Sequence[tuple[int, Span]], question: Place | None) -> str:
    """All that is neither document nor question."""
    taken: dict[int, list[Span]] = {}
    for i, span in documents:
        taken.setdefault(i, []).append(span)
    rest: list[str] = []
    for i, text in enumerate(texts):
        spans = taken.get(i, [])
        if question is not None and question.path == text.path:
            spans = [*spans, (question.start, question.end)]
        bounds = [0, *(offset for span in sorted(spans) for offset in span), len(text.text)]
        rest += (text.text[bounds[k] : bounds[k + 1]] for k in range(0, len(bounds), 2))
    return "\n".join(part.strip() for part in rest if part.strip())


# ---- sizes and kinds of text -----------------------------------------------------------------------------------------

_CODE_LINE = re.compile(
    r"""\s*(?:(?:def|class|fn|func|function|struct|interface|enum)\s+\w+.*[:{(]$|(?:import|from)\s+[\w.]+(?:\s+import\b.*|;)?$
    |(?:public|private|protected|static|const|let|var|export|async)\s+\w+.*[;{=(,]$|return\b.{0,80}[;)\]\w]$
    |(?:if|for|while|with|elif|else|try|except|switch|case|finally)\b.*[:{]$|[\w.\[\]"']+\s*[-+*/|]?=\s*\S.*
    |//|/\*|\*/|\#include|\#define|@\w+$|[\w.]+\([^()]*\)[;:,]?$|["'][\w .-]+["']\s*:|\d{1,6}[\t→|]|</?\w
    |.{0,100}[{(\[]$|[^ ]*\(.*;$|[)\]}]+[,;:]?$)""",
    re.VERBOSE,
)


def _n_bytes(parts: Iterable[str]) -> int:
    return sum(len(part.encode("utf-8", "surrogatepass")) for part in parts)


def _is_short(text: str) -> bool:
    return len(text) < _SHORT and _n_bytes((text,)) < _SHORT


def _is_prose(text: str) -> bool:
    """Whether a text is for people: not code, JSON, tables or records."""
    middle = len(text) // 2
    sample = text[: _SAMPLE // 2] + text[middle : middle + _SAMPLE // 2]
    if text.lstrip().startswith(("{", "[{", '["', "[[")) and sample.count('"') > len(sample) / 60:
        return False
    lines = [line for line in sample.splitlines() if line.strip()]
    code = sum(_CODE_LINE.match(line) is not None for line in lines)
    if len(lines) >= 8:
        for separator in ",\t;|":
            columns, n = Counter(line.count(separator) for line in lines).most_common(1)[0]
            if columns >= 2 and n >= 0.8 * len(lines) and len(sample) < _LONGEST_FIELD * (columns + 1) * len(lines):
                return False
    return code <= len(lines) / 4
