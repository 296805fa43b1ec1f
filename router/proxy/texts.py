"""What a request body says, independent of its API: its texts in the order the model reads them, and places in them.

Nouns only. `openai.py` and `anthropic.py` read bodies into a Conversation, `locate.py` finds the long text in it,
`splice.py` writes changes back into the bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..core import Document

Api = Literal["chat", "completions", "responses", "messages"]
JsonPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """One string of the body that the model reads.

    path: where it stands in the JSON body, like ("messages", 2, "content", 0, "text").
    turn: number of its message, from 0; system text outside the messages has -1.
    source: `message` is ordinary text, `document` a document or file part, `tool_result` what a tool returned.
    title: what the request calls it (a file name, a document's title), else empty.
    mark: what the request itself says it is, by a `longroute` field beside it; else empty.
    fixed: must stay as it is, because something else depends on its exact words (citations by offset, signatures).
    """

    path: JsonPath
    text: str
    role: Literal["system", "user", "assistant", "tool"]
    turn: int
    source: Literal["message", "document", "tool_result"] = "message"
    title: str = ""
    mark: Literal["", "document", "question", "keep"] = ""
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class Conversation:
    """A request body as a model reads it.

    texts: in prompt order, system text first.
    cached_until: texts up to and including this index lie before the last `cache_control` mark; -1 where there is none.
    has_tools: the request offers tools. last_role: role of the last message.
    stream: the answer is wanted as a stream. n: answers wanted.
    marks: paths of our own extension fields, to be taken out before the request is sent on.
    options: the top-level `longroute` field, as it came.
    """

    api: Api
    model: str
    texts: tuple[Text, ...]
    max_output_tokens: int | None = None
    cached_until: int = -1
    has_tools: bool = False
    last_role: str = "user"
    stream: bool = False
    n: int = 1
    marks: tuple[JsonPath, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """Characters `start` to `end` (exclusive, decoded) of the string at `path`."""

    path: JsonPath
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Located:
    """The long text of a request.

    documents, places: side by side; each document's text is exactly what stands at its place.
    question: what is asked, in the request's own words; question_place: where, None where it is put together.
    shape: how it was found, for the trace.
    instructions: everything else that the model reads, joined; only to be counted.
    app_caches: a document lies before a `cache_control` mark: the application pays for caching it.
    """

    question: str
    question_place: Place | None
    documents: tuple[Document, ...]
    places: tuple[Place, ...]
    shape: str
    instructions: str = ""
    app_caches: bool = False


@dataclass(frozen=True, slots=True)
class LeftAlone:
    """No long text that could safely be shortened; `reason` is for a person to read."""

    reason: str
