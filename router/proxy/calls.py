"""Calls of our own in the words of the caller's API, and what comes back: replies, and the usage of any answer.

Strategies of several calls ask the caller's own upstream with the caller's credentials, and its own model where the
settings name no other for them. Leaves reading requests to `openai.py` and `anthropic.py`, and sending to `gateway.py`.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, cast

import orjson

from ..core import Call, Reply, Usage
from ..errors import BadReply
from .body import as_string
from .texts import Api

_ANTHROPIC_DEFAULT_MAX_TOKENS = 1024
_TOOLS = "tool_calls"  # the finish reason where a model asks for a tool; Anthropic's is `tool_use`
_REFUSAL = "refusal"  # the finish reason of a model that will not answer, as Anthropic calls it
_TOOL_ITEMS = ("function_call", "custom_tool_call", "mcp_approval_request")
_LIMIT_NAMES = ("max_completion_tokens", "max_tokens")
# Who may process a text (OpenRouter), where (Anthropic) and for whom (OpenAI): that holds for its parts, too.
_TERMS = ("provider", "inference_geo", "user", "safety_identifier")

# The two ends of a stream hold its usage: Anthropic says the prompt's first, everyone the rest last.
_HEAD_BYTES, _TAIL_BYTES = 16 << 10, 64 << 10
_WHOLE_BYTES = 4 << 20


def call_body(api: Api, original: Mapping[str, Any], call: Call) -> bytes:
    """The body of a call that is not the caller's own question: same API and terms, none of the caller's tools.

    The model is the call's; where that is the caller's, too, it is named as the caller named it, or not at all.
    """
    messages = [{"role": message.role, "content": message.content} for message in call.messages]
    body: dict[str, Any] = {name: value for name, value in original.items() if name in ("model", *_TERMS)}
    if call.model != as_string(original.get("model")):
        body["model"] = call.model
    if api == "chat":
        # Which of the two names this server takes, the caller knows.
        limit = next((name for name in _LIMIT_NAMES if name in original), _LIMIT_NAMES[0])
        body |= {"messages": messages, limit: call.max_output_tokens}
    elif api == "responses":
        body |= {"input": messages, "max_output_tokens": call.max_output_tokens, "store": False}
    elif api == "messages":
        system = "\n\n".join(message.content for message in call.messages if message.role == "system")
        spoken = [message for message in messages if message["role"] != "system"]
        body |= {"max_tokens": call.max_output_tokens, "messages": spoken} | ({"system": system} if system else {})
    else:
        prompt = "\n\n".join(message.content for message in call.messages)
        body |= {"prompt": prompt, "max_tokens": call.max_output_tokens}
    if call.temperature is not None:
        body["temperature"] = call.temperature
    if call.stop and api != "responses":
        body["stop_sequences" if api == "messages" else "stop"] = list(call.stop)
    return orjson.dumps(body)


def reply_of(api: Api, body: bytes, content_type: bytes = b"application/json") -> Reply:
    """The reply in a complete answer, streamed or not. Raises BadReply where there is none."""
    if b"event-stream" in content_type:
        return _reply_of_stream(body)
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise BadReply(f"The upstream answered a call with {len(body)} bytes that are not JSON.") from None
    text, reason = _said(api, data) if isinstance(data, dict) else (None, "")
    if text is None and "tool" in reason:
        text = ""  # the model says nothing yet: it asks for a tool of the caller's
    if text is None:
        raise BadReply("The upstream answered a call with something that is not a completion.")
    return Reply(text, _usage(data) or Usage(), finish_reason=reason, model=str(data.get("model", "")))


def usage_of(body: bytes, content_type: bytes) -> Usage:
    """The usage that a complete answer names, streamed or not; none where it names none."""
    reader = UsageReader(content_type, b"")
    reader.feed(body)
    return reader.usage() or Usage()


def _reply_of_stream(body: bytes) -> Reply:
    pieces: list[str] = []
    reason = "stop"
    for event in _events(body):
        piece, ended = _streamed(event)
        pieces.append(piece)
        # Both end with `stop`: a refusal always, a call of a tool with some servers.
        reason = reason if reason in (_TOOLS, _REFUSAL) else ended or reason
    if not pieces:
        raise BadReply("The upstream answered a call with a stream that holds no completion.")
    return Reply("".join(pieces), usage_of(body, b"event-stream"), finish_reason=reason)


def _streamed(event: object) -> tuple[str, str]:
    """The text that one event adds, and the finish reason where it names one, in any of the APIs' words."""
    if not isinstance(event, dict):
        return "", ""
    kind = event.get("type")
    if kind == "response.output_text.delta":
        return str(event.get("delta", "")), ""
    if kind == "response.refusal.delta":
        return str(event.get("delta", "")), _REFUSAL
    if kind == "response.output_item.done":
        item = event.get("item")
        return "", _TOOLS if isinstance(item, dict) and item.get("type") in _TOOL_ITEMS else ""
    delta: Any = event.get("delta")
    if isinstance(delta, dict):
        return str(delta.get("text") or ""), str(delta.get("stop_reason") or "")
    choices = event.get("choices")
    choice: dict[str, Any] = {}
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        choice = choices[0]
    said = choice["delta"] if isinstance(choice.get("delta"), dict) else choice
    text = _joined(said.get("content")) or str(said.get("text") or "")
    if refusal := _refusal([said]):
        return text or refusal, _REFUSAL
    return text, _TOOLS if _asks_for_tool(said) else str(choice.get("finish_reason") or "")


def _asks_for_tool(message: Mapping[str, Any]) -> bool:
    """The finish reason does not always say it: of a tool that the caller insists on, OpenAI's is `stop`."""
    return bool(message.get("tool_calls") or message.get("function_call"))


def _joined(content: object) -> str | None:
    """A message's text, which may stand in parts (Mistral's, where the model reasons). None where there is none."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    texts = [str(part.get("text") or "") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    return "".join(texts) if texts else None


def _parts(message: Mapping[str, Any]) -> list[Any]:
    content = message.get("content")
    return content if isinstance(content, list) else []


def _refusal(parts: Iterable[object]) -> str:
    """Why the model does not answer, which OpenAI's say beside the text or in a part of its own."""
    said = (part.get("refusal") for part in parts if isinstance(part, dict))
    return "".join(text for text in said if isinstance(text, str))


def _said(api: Api, data: dict[str, Any]) -> tuple[str | None, str]:
    """Text and finish reason; no text at all is None."""
    try:
        if api in ("chat", "completions"):
            choice = data["choices"][0]
            ended = str(choice.get("finish_reason") or "stop")
            if api == "completions":
                return _joined(choice["text"]), ended
            message = choice["message"]
            asks = ended == "function_call" or _asks_for_tool(message)
            text, refusal = _joined(message.get("content")), _refusal([message, *_parts(message)])
            return (text or refusal, _REFUSAL) if refusal else (text, _TOOLS if asks else ended)
        if api == "messages":
            parts, reason = data["content"], data.get("stop_reason")
        else:
            parts = [part for item in data["output"] if item.get("type") == "message" for part in item["content"]]
            tools = any(item.get("type") in _TOOL_ITEMS for item in data["output"])
            reason = _TOOLS if tools else data.get("status")
        texts = [part["text"] for part in parts if part.get("type") in ("text", "output_text")]
        if refusal := _refusal(parts):
            return "".join(texts) or refusal, _REFUSAL
        return "".join(texts) if texts else None, str(reason or "stop")
    except (KeyError, IndexError, TypeError, AttributeError):
        return None, ""


# ---- usage -----------------------------------------------------------------------------------------------------------


class UsageReader:
    """Reads the usage out of an answer that passes by, whole or streamed, compressed or not. Changes nothing.

    Keeps the two ends of long answers only: that is where usage stands.
    """

    def __init__(self, content_type: bytes, content_encoding: bytes) -> None:
        self._streamed = b"event-stream" in content_type
        self._readable = content_encoding in (b"", b"identity", b"gzip", b"deflate")
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32) if content_encoding in (b"gzip", b"deflate") else None
        self._head = bytearray()
        self._tail = bytearray()

    def feed(self, piece: bytes) -> None:
        if not self._readable:
            return
        if self._inflate is not None:
            try:
                piece = self._inflate.decompress(piece, _WHOLE_BYTES)
            except zlib.error:
                self._readable = False
                return
        room = (_HEAD_BYTES if self._streamed else _WHOLE_BYTES) - len(self._head)
        self._head += piece[:room]
        if room < len(piece):
            self._tail += piece[max(room, 0) :]
            del self._tail[:-_TAIL_BYTES]

    def usage(self) -> Usage | None:
        """None where the answer does not say, or cannot be read."""
        if not self._readable:
            return None
        if not self._streamed:
            return None if self._tail else _usage(_parsed(bytes(self._head)))
        found = [usage for data in _events(self._head, self._tail) if (usage := _usage(data))]
        if not found:
            return None
        # Anthropic's first event has the prompt, its last the completion; others say all at the end.
        return Usage(**{name: max(getattr(usage, name) for usage in found) for name in _COUNTS})


_COUNTS = ("prompt_tokens", "cached_tokens", "completion_tokens", "written_tokens")


def _events(*parts: bytes | bytearray) -> Iterable[object]:
    for part in parts:
        for line in re.split(rb"\r\n|\r|\n", bytes(part)):
            if line.startswith(b"data:"):
                yield _parsed(line[5:])


def _parsed(data: bytes) -> object:
    try:
        return cast(object, orjson.loads(data))
    except orjson.JSONDecodeError:
        return None


def _usage(data: object) -> Usage | None:
    """The usage of a completion, a chunk or an event, in any of the APIs' words; None where there is none."""
    if not isinstance(data, dict):
        return None
    inner = next((data[key] for key in ("message", "response") if isinstance(data.get(key), dict)), data)
    usage = data.get("usage") or inner.get("usage")
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    cached = _count(details, "cached_tokens") + _count(usage, "cache_read_input_tokens")
    # Anthropic counts what it read from or wrote to its cache beside the input, the others within it.
    written = _count(usage, "cache_creation_input_tokens")
    beside = _count(usage, "cache_read_input_tokens") + written
    prompt = _count(usage, "prompt_tokens") or _count(usage, "input_tokens") + beside
    completion = _count(usage, "completion_tokens") or _count(usage, "output_tokens")
    cached, written = min(cached, prompt), written or _count(details, "cache_write_tokens")
    return Usage(prompt, cached, completion, written_tokens=min(written, prompt - cached))


def _count(usage: object, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
