"""A model API on loopback that answers by script, and `longroute serve` in front of it: what real clients are tried on.

Speaks OpenAI's chat, responses, embeddings and models and Anthropic's messages, each whole and streamed, as their
published schemas say. It keeps every request as it came. Bytes on the wire are the matter of `recording.py`.

What is asked decides the answer: a tool where tools are offered and none has answered yet, JSON where a schema is
given, else SAID. The model's name decides what goes wrong: `status-429` always answers so, `once-429` only at first,
`hangs` waits for the client to leave, `stalls` does so after the beginning of a stream.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

SAID = "Ada wrote the notes."
JSON_SAID = '{"name":"Ada","year":1843}'
ARGUMENTS = '{"place":"Ulm"}'
CREATED = 1_700_000_000
RETRY_AFTER_MS = 7
START_S = 60

Json = dict[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


@dataclass(slots=True)
class Asked:
    """One request as it arrived. gone: set when the client has left before the answer's end."""

    path: str
    headers: dict[str, str]
    raw: bytes
    gone: threading.Event = field(default_factory=threading.Event)

    @property
    def body(self) -> Json:
        body: Json = json.loads(self.raw)
        return body


class ScriptedModels:
    """An ASGI application. asked: every request, in order of arrival."""

    def __init__(self, models: tuple[str, ...] = ("ada-1",)) -> None:
        self._models = models
        self.asked: list[Asked] = []

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        raw, more = b"", True
        while more:
            message = await receive()
            raw, more = raw + message.get("body", b""), message.get("more_body", False)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        asked = Asked(scope["path"], headers, raw)
        self.asked.append(asked)
        if scope["path"] == "/v1/models":
            await _whole(send, self._list())
            return
        body = asked.body
        model = str(body.get("model"))
        kind, _, status = model.partition("-")
        first = sum(earlier.raw == raw for earlier in self.asked) == 1
        if kind == "status" or (kind == "once" and first):
            await _fail(send, scope["path"], int(status))
        elif kind == "hangs":
            await _until_gone(receive, asked)
        elif body.get("stream"):
            events = _STREAMS[scope["path"]](body)
            await _stream(send, events[:2] if kind == "stalls" else events, ends=kind != "stalls")
            if kind == "stalls":
                await _until_gone(receive, asked)
        else:
            await _whole(send, _ANSWERS[scope["path"]](body))

    def _list(self) -> Json:
        models = [{"id": name, "object": "model", "created": CREATED, "owned_by": "ada"} for name in self._models]
        return {"object": "list", "data": models}


@contextmanager
def listening(models: ScriptedModels) -> Iterator[str]:
    """Its address, without `/v1`, until the block ends."""
    config = uvicorn.Config(models, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@contextmanager
def proxied(*arguments: str, settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """The address of a `longroute serve` with these arguments, without `/v1`. Settings as in the environment."""
    with tempfile.TemporaryDirectory() as home:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LONGROUTE_")}
        environment |= {"HOME": home, "XDG_CACHE_HOME": home, "NO_PROXY": "*", **(settings or {})}
        log = Path(home) / "log"
        with log.open("wb") as errors:
            command = [sys.executable, "-m", "longroute", "serve", "--port", "0", *arguments]
            process = subprocess.Popen(command, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        late = threading.Timer(START_S, process.kill)
        late.start()
        try:
            greeting = process.stdout.readline().decode()
            late.cancel()
            if not greeting:
                raise RuntimeError(f"{command!r} did not start (exit {process.wait()}):\n{log.read_text()[-2000:]}")
            yield greeting.split()[3].removesuffix("/v1")
        finally:
            late.cancel()
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


# ---- what is sent ----------------------------------------------------------------------------------------------------


async def _start(send: Send, status: int, kind: bytes, *more: tuple[bytes, bytes]) -> None:
    headers = [(b"content-type", kind), (b"x-request-id", b"req-1"), (b"request-id", b"req-1"), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _whole(send: Send, answer: Json, status: int = 200, *more: tuple[bytes, bytes]) -> None:
    await _start(send, status, b"application/json", *more)
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


async def _fail(send: Send, path: str, status: int) -> None:
    error: Json = {"type": f"error_{status}", "message": f"scripted {status}"}
    anthropic = path.startswith("/v1/messages")
    answer = {"type": "error", "error": error} if anthropic else {"error": error | {"param": None, "code": "scripted"}}
    await _whole(send, answer, status, (b"retry-after-ms", b"%d" % RETRY_AFTER_MS))


async def _stream(send: Send, events: list[Json], *, ends: bool) -> None:
    await _start(send, 200, b"text/event-stream; charset=utf-8")
    chat = events[0].get("object") == "chat.completion.chunk"
    for event in events:
        name = "" if chat else f"event: {event['type']}\n"
        piece = f"{name}data: {json.dumps(event)}\n\n".encode()
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    if ends:
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n" if chat else b""})


async def _until_gone(receive: Receive, asked: Asked) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    asked.gone.set()


# ---- OpenAI chat -----------------------------------------------------------------------------------------------------


def _chat(body: Json) -> Json:
    kind, said = _said(body, body.get("response_format"))
    message: Json = {"role": "assistant", "content": said, "refusal": None}
    if kind == "tool":
        call = {"id": "call_1", "type": "function", "function": {"name": _tool(body), "arguments": ARGUMENTS}}
        message |= {"content": None, "tool_calls": [call]}
    reason = "tool_calls" if kind == "tool" else "stop"
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": CREATED, "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": reason, "logprobs": None}],
        "usage": _USAGE,
    }  # fmt: skip


def _chat_stream(body: Json) -> list[Json]:
    message = _chat(body)["choices"][0]["message"]
    deltas: list[Json] = [{"role": "assistant", "content": ""}]
    if "tool_calls" in message:
        call = message["tool_calls"][0]
        head = call | {"index": 0, "function": call["function"] | {"arguments": ""}}
        deltas += [{"tool_calls": [head]}, {"tool_calls": [{"index": 0, "function": {"arguments": ARGUMENTS}}]}]
    else:
        deltas += [{"content": piece} for piece in _pieces(message["content"])]
    reason = "tool_calls" if "tool_calls" in message else "stop"
    ends = [None] * len(deltas) + [reason]
    common = {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": CREATED, "model": body["model"],
    }  # fmt: skip
    chunks: list[Json] = [
        common | {"choices": [{"index": 0, "delta": delta, "finish_reason": end}]}
        for delta, end in zip([*deltas, {}], ends, strict=True)
    ]
    wants_usage = (body.get("stream_options") or {}).get("include_usage")
    return [*chunks, common | {"choices": [], "usage": _USAGE}] if wants_usage else chunks


_USAGE = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}


def _embeddings(body: Json) -> Json:
    given = body["input"]
    texts = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    vector: list[float] | str = [0.25, -0.5, 1.0]
    if body.get("encoding_format") == "base64":
        vector = base64.b64encode(struct.pack("<3f", 0.25, -0.5, 1.0)).decode()
    data = [{"object": "embedding", "index": index, "embedding": vector} for index in range(len(texts))]
    return {
        "object": "list", "data": data, "model": body["model"], "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }  # fmt: skip


# ---- OpenAI responses ------------------------------------------------------------------------------------------------


def _response(body: Json) -> Json:
    kind, said = _said(body, (body.get("text") or {}).get("format"))
    if kind == "tool":
        item: Json = {
            "type": "function_call", "id": "fc_1", "call_id": "call_1", "name": _tool(body), "arguments": ARGUMENTS,
            "status": "completed",
        }  # fmt: skip
    else:
        item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [_text(said)]}
    details: Json = {"input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0}}
    details |= {"output_tokens_details": {"reasoning_tokens": 0}}
    return {
        "id": "resp_1", "object": "response", "created_at": CREATED, "completed_at": CREATED, "status": "completed",
        "error": None, "incomplete_details": None, "instructions": body.get("instructions"), "metadata": {},
        "model": body["model"], "output": [item], "parallel_tool_calls": True, "temperature": 1.0, "top_p": 1.0,
        "tool_choice": "auto", "tools": [{"strict": None} | tool for tool in body.get("tools") or []],
        "text": body.get("text") or {"format": {"type": "text"}},
        "usage": {"input_tokens": 11, "output_tokens": 5, "total_tokens": 16} | details,
    }  # fmt: skip


def _text(said: str) -> Json:
    return {"type": "output_text", "text": said, "annotations": [], "logprobs": []}


def _response_stream(body: Json) -> list[Json]:
    whole = _response(body)
    item = whole["output"][0]
    begun = whole | {"status": "in_progress", "completed_at": None, "output": []}
    del begun["usage"]
    events: list[Json] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
    ]
    at = {"output_index": 0, "item_id": item["id"]}
    if item["type"] == "function_call":
        empty = item | {"arguments": "", "status": "in_progress"}
        arguments = "response.function_call_arguments"
        inner: list[Json] = [
            {"type": f"{arguments}.delta", "delta": ARGUMENTS, **at},
            {"type": f"{arguments}.done", "arguments": ARGUMENTS, "name": item["name"], **at},
        ]
    else:
        empty, said = item | {"content": [], "status": "in_progress"}, item["content"][0]["text"]
        at |= {"content_index": 0}
        inner = [
            {"type": "response.content_part.added", "part": _text(""), **at},
            *(
                {"type": "response.output_text.delta", "delta": piece, "logprobs": [], **at}
                for piece in _pieces(said)
            ),
            {"type": "response.output_text.done", "text": said, "logprobs": [], **at},
            {"type": "response.content_part.done", "part": _text(said), **at},
        ]  # fmt: skip
    events += [
        {"type": "response.output_item.added", "output_index": 0, "item": empty},
        *inner,
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": whole},
    ]
    return [event | {"sequence_number": number} for number, event in enumerate(events)]


# ---- Anthropic messages ----------------------------------------------------------------------------------------------


def _message(body: Json) -> Json:
    kind, said = _said(body, (body.get("output_config") or {}).get("format"))
    block: Json = {"type": "text", "text": said}
    if kind == "tool":
        block = {"type": "tool_use", "id": "toolu_1", "name": _tool(body), "input": json.loads(ARGUMENTS)}
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": body["model"], "content": [block],
        "stop_reason": "tool_use" if kind == "tool" else "end_turn", "stop_sequence": None,
        "usage": {"input_tokens": 11, "output_tokens": 5},
    }  # fmt: skip


def _message_stream(body: Json) -> list[Json]:
    whole = _message(body)
    block = whole["content"][0]
    if block["type"] == "tool_use":
        empty: Json = block | {"input": {}}
        deltas: list[Json] = [{"type": "input_json_delta", "partial_json": ARGUMENTS}]
    else:
        empty = block | {"text": ""}
        deltas = [{"type": "text_delta", "text": piece} for piece in _pieces(block["text"])]
    end = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    return [
        {"type": "message_start", "message": whole | {"content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": empty},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": end, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]


def _count(body: Json) -> Json:
    return {"input_tokens": 11}


# ---- pieces ----------------------------------------------------------------------------------------------------------

_ANSWERS: Mapping[str, Callable[[Json], Json]] = {
    "/v1/chat/completions": _chat,
    "/v1/embeddings": _embeddings,
    "/v1/responses": _response,
    "/v1/messages": _message,
    "/v1/messages/count_tokens": _count,
}
_STREAMS: Mapping[str, Callable[[Json], list[Json]]] = {
    "/v1/chat/completions": _chat_stream,
    "/v1/responses": _response_stream,
    "/v1/messages": _message_stream,
}


def _said(body: Json, wanted: Json | None) -> tuple[str, str]:
    """`tool`, `json` or `text`, and the words."""
    if body.get("tools") and not _tool_has_answered(body):
        return "tool", ""
    structured = (wanted or {}).get("type") == "json_schema"
    return ("json", JSON_SAID) if structured else ("text", SAID)


def _tool_has_answered(body: Json) -> bool:
    given = body["messages"] if "messages" in body else body["input"]
    last = given[-1] if isinstance(given, list) else {}
    content = last.get("content")
    blocks = content if isinstance(content, list) else []
    return (
        last.get("role") == "tool"
        or last.get("type") == "function_call_output"
        or any(block.get("type") == "tool_result" for block in blocks)
    )


def _tool(body: Json) -> str:
    tool = body["tools"][0]
    return str(tool.get("function", tool)["name"])


def _pieces(text: str) -> list[str]:
    return [text[:4], text[4:]]
