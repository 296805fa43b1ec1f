"""Reads bodies of OpenAI's chat completions, completions and responses into a Conversation.

A body is untrusted: what is not understood is simply not a Text. Files are sent as base64, which cannot be shortened in
place, so they are not read. What the texts mean is left to `locate.py`.
"""

from __future__ import annotations

from dataclasses import replace

from .body import (
    NOTHING_TO_READ,
    Collector,
    Object,
    Origin,
    Source,
    TextRole,
    as_object,
    as_string,
    filled_list,
    members,
    positive,
)
from .texts import Conversation, JsonPath, LeftAlone

_ROLES: dict[object, TextRole] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_TEXT_PARTS = ("text", "input_text", "output_text")


def read_chat(body: object) -> Conversation | LeftAlone:
    """`POST /v1/chat/completions`."""
    fields = as_object(body)
    collector = Collector()
    options = collector.options(fields)
    last_role = "user"
    for path, message in members(fields.get("messages"), ("messages",)):
        last_role = _read_message(collector, path, message) or last_role
    if not collector.texts:
        return NOTHING_TO_READ
    return Conversation(
        api="chat",
        model=as_string(fields.get("model")),
        texts=tuple(collector.texts),
        max_output_tokens=positive(fields.get("max_completion_tokens")) or positive(fields.get("max_tokens")),
        cached_until=collector.cached_until,
        has_tools=filled_list(fields.get("tools"), fields.get("functions")),
        last_role=last_role,
        stream=fields.get("stream") is True,
        n=positive(fields.get("n")) or 1,
        marks=tuple(collector.marks),
        options=options,
    )


def read_completion(body: object) -> Conversation | LeftAlone:
    """`POST /v1/completions`: one prompt, as a string or as a list of one."""
    fields = as_object(body)
    collector = Collector()
    options = collector.options(fields)
    prompt = fields.get("prompt")
    path: JsonPath = ("prompt",)
    if isinstance(prompt, list) and len(prompt) == 1:
        path, prompt = ("prompt", 0), prompt[0]
    if fields.get("echo") is True:
        return LeftAlone("the prompt is echoed in the answer")
    if fields.get("suffix"):
        return LeftAlone("a suffix asks for the text between, not for an answer")
    collector.add(path, prompt, Origin("user", 0))
    if not collector.texts:
        return NOTHING_TO_READ
    return Conversation(
        api="completions",
        model=as_string(fields.get("model")),
        texts=tuple(collector.texts),
        max_output_tokens=positive(fields.get("max_tokens")),
        stream=fields.get("stream") is True,
        n=positive(fields.get("n")) or 1,
        marks=tuple(collector.marks),
        options=options,
    )


def read_responses(body: object) -> Conversation | LeftAlone:
    """`POST /v1/responses`."""
    fields = as_object(body)
    for name in ("previous_response_id", "conversation"):
        if fields.get(name):
            return LeftAlone(f"{name} continues a conversation that the server keeps: later turns need all of it")
    collector = Collector()
    options = collector.options(fields)
    collector.add(("instructions",), fields.get("instructions"), Origin("system", -1))
    collector.add(("input",), fields.get("input"), Origin("user", 0))
    last_role = "user"
    for path, item in members(fields.get("input"), ("input",)):
        if item.get("type") == "function_call_output":
            last_role = "tool"
            origin = Origin("tool", _turn(path), "tool_result", mark=collector.mark(item, path))
            _read_content(collector, (*path, "output"), item.get("output"), origin)
        else:
            last_role = _read_message(collector, path, item) or last_role
    if not collector.texts:
        return NOTHING_TO_READ
    return Conversation(
        api="responses",
        model=as_string(fields.get("model")),
        texts=tuple(collector.texts),
        max_output_tokens=positive(fields.get("max_output_tokens")),
        cached_until=collector.cached_until,
        has_tools=filled_list(fields.get("tools")),
        last_role=last_role,
        stream=fields.get("stream") is True,
        marks=tuple(collector.marks),
        options=options,
    )


def _read_message(collector: Collector, path: JsonPath, message: Object) -> TextRole | None:
    """Adds a message's texts; its role where that is understood."""
    mark = collector.mark(message, path)
    named = message.get("role")
    role = _ROLES.get(named) if isinstance(named, str) else None
    if role is None:
        return None
    source: Source = "tool_result" if role == "tool" else "message"
    origin = Origin(role, _turn(path), source, as_string(message.get("name")) if role == "tool" else "", mark)
    _read_content(collector, (*path, "content"), message.get("content"), origin)
    collector.note_cache(message)
    return role


def _turn(path: JsonPath) -> int:
    index = path[-1]
    assert isinstance(index, int)
    return index


def _read_content(collector: Collector, path: JsonPath, content: object, origin: Origin) -> None:
    """A string, or a list of parts."""
    collector.add(path, content, origin)
    for part_path, part in members(content, path):
        of_part = replace(origin, mark=collector.mark(part, part_path, origin.mark))
        if part.get("type") in _TEXT_PARTS:
            collector.add((*part_path, "text"), part.get("text"), of_part)
        collector.note_cache(part)
