"""Reads a body of Anthropic's messages API into a Conversation.

A body is untrusted: what is not understood is simply not a Text. Thinking is signed and images are not text, so neither
is read; documents whose citations are switched on are fixed, because citations count their characters. What the texts
mean is left to `locate.py`.
"""

from __future__ import annotations

from dataclasses import replace

from .body import (
    NOTHING_TO_READ,
    Collector,
    Object,
    Origin,
    TextRole,
    as_object,
    as_string,
    filled_list,
    members,
    positive,
)
from .texts import Conversation, JsonPath, LeftAlone

_ROLES: dict[object, TextRole] = {"user": "user", "assistant": "assistant", "system": "system"}
_DEEPEST = 2


def read_messages(body: object) -> Conversation | LeftAlone:
    """`POST /v1/messages` and `/v1/messages/count_tokens`."""
    fields = as_object(body)
    collector = Collector()
    options = collector.options(fields)
    _read_content(collector, ("system",), fields.get("system"), Origin("system", -1))
    last_role = "user"
    for path, message in members(fields.get("messages"), ("messages",)):
        named = message.get("role")
        role = _ROLES.get(named) if isinstance(named, str) else None
        mark = collector.mark(message, path)
        if role is not None:
            last_role = role
            turn = path[-1]
            assert isinstance(turn, int)
            _read_content(collector, (*path, "content"), message.get("content"), Origin(role, turn, mark=mark))
    if not collector.texts:
        return NOTHING_TO_READ
    collector.note_cache(fields)  # automatic caching: up to the last block
    return Conversation(
        api="messages",
        model=as_string(fields.get("model")),
        texts=tuple(collector.texts),
        max_output_tokens=positive(fields.get("max_tokens")),
        cached_until=collector.cached_until,
        has_tools=filled_list(fields.get("tools")),
        last_role=last_role,
        stream=fields.get("stream") is True,
        marks=tuple(collector.marks),
        options=options,
    )


def _read_content(collector: Collector, path: JsonPath, content: object, origin: Origin, depth: int = 0) -> None:
    """A string, or a list of blocks, which hold blocks of their own no deeper than a document in a tool's result."""
    collector.add(path, content, origin)
    for block_path, block in members(content, path):
        of_block = replace(origin, mark=collector.mark(block, block_path, origin.mark))
        kind = block.get("type")
        if kind == "text":
            collector.add((*block_path, "text"), block.get("text"), of_block)
        elif kind == "document" and depth < _DEEPEST:
            _read_document(collector, block_path, block, _of_document(block, of_block), depth + 1)
        elif kind == "search_result" and depth < _DEEPEST:
            inner = (*block_path, "content")
            _read_content(collector, inner, block.get("content"), _of_document(block, of_block), depth + 1)
        elif kind == "tool_result" and depth == 0:
            of_result = replace(of_block, role="tool", source="tool_result")
            _read_content(collector, (*block_path, "content"), block.get("content"), of_result, depth + 1)
        collector.note_cache(block)


def _of_document(block: Object, origin: Origin) -> Origin:
    cited = as_object(block.get("citations")).get("enabled") is True
    return replace(origin, source="document", title=as_string(block.get("title")), fixed=cited)


def _read_document(collector: Collector, path: JsonPath, block: Object, origin: Origin, depth: int) -> None:
    source = as_object(block.get("source"))
    if source.get("type") == "text":
        collector.add((*path, "source", "data"), source.get("data"), origin)
    elif source.get("type") == "content":
        _read_content(collector, (*path, "source", "content"), source.get("content"), origin, depth)
