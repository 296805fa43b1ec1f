"""What the checks of the wire suite have in common: a target, requests and answers as bytes, and how they compare."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .raw_client import Answer, Connection, CutOff
from .recording import Exchange, Headers, Recorder, Script, chunked

CHAT_PATH = b"/v1/chat/completions"
MESSAGES_PATH = b"/v1/messages"
CHAT = b'{"model":"MODEL","messages":[{"role":"user","content":"hi"}]}'  # MODEL becomes the name of the script
COMPLETION = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"m","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"hi","refusal":null},"logprobs":null,"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2},"x_unknown": [1.0, 1e3]}'
)
JSON_TYPE = b"content-type: application/json"
HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
MEGABYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Target:
    """What is under test, in front of this upstream. patience_s: a byte that takes longer does not come."""

    kind: str
    port: int
    upstream: Recorder
    patience_s: float = 5.0

    @property
    def is_proxy(self) -> bool:
        return self.kind != "direct"

    def connect(self, receive_buffer: int | None = None) -> Connection:
        return Connection(self.port, self.patience_s, receive_buffer)

    def arrived(self, name: bytes) -> Exchange:
        return self.upstream.exchange(name, self.patience_s)

    def wait(self, until: Callable[[], object], what: str) -> None:
        self.upstream.wait(until, self.patience_s, what)


Check = Callable[[Target], None]


def reply(body: bytes = COMPLETION, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    fields = [*(headers or (JSON_TYPE,)), b"content-length: %d" % len(body)]
    return b"HTTP/1.1 %b\r\n%b\r\n\r\n%b" % (status, b"\r\n".join(fields), body)


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"
OK = Script((reply(),))


def event(content: str) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    data = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: %b\n\n" % json.dumps(data).encode()


def request(
    name: bytes,
    body: bytes | None = CHAT,
    *headers: bytes,
    method: bytes = b"POST",
    path: bytes = CHAT_PATH,
    version: bytes = b"HTTP/1.1",
) -> bytes:
    """The bytes of a request that the recorder answers with the script of this name. No body: no content-length."""
    fields = [b"host: wire.test", b"x-script: " + name, *headers]
    if body is None:
        return b"%b %b %b\r\n%b\r\n\r\n" % (method, path, version, b"\r\n".join(fields))
    body = body.replace(b"MODEL", name)
    if not any(header.lower().startswith(b"content-type:") for header in headers):
        fields.append(JSON_TYPE)
    fields.append(b"content-length: %d" % len(body))
    return b"%b %b %b\r\n%b\r\n\r\n%b" % (method, path, version, b"\r\n".join(fields), body)


def ask(
    target: Target,
    script: Script = OK,
    body: bytes | None = CHAT,
    *headers: bytes,
    method: bytes = b"POST",
    path: bytes = CHAT_PATH,
) -> tuple[Answer, Exchange]:
    """One request on a connection of its own, its answer, and what the upstream saw of it."""
    name = target.upstream.add(script)
    with target.connect() as connection:
        connection.send(request(name, body, *headers, method=method, path=path))
        try:
            answer = connection.answer(method)
        except CutOff as error:
            raise AssertionError(f"no whole answer came: {error}") from error
    assert target.upstream.exchanges(name), (
        f"answered {answer.status} without asking the upstream: {answer.body[:300]!r}"
    )
    return answer, target.arrived(name)


def same(what: str, got: bytes, expected: bytes) -> None:
    if got == expected:
        return
    at = next((i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), min(len(got), len(expected)))
    shown = slice(max(0, at - 20), at + 60)
    raise AssertionError(
        f"{what} differs at byte {at} ({len(got)} bytes, expected {len(expected)}): "
        f"{got[shown]!r}, expected {expected[shown]!r}"
    )


def end_to_end(headers: Headers, *ignored: bytes) -> Headers:
    return [(name, value) for name, value in headers if name not in HOP_BY_HOP and name not in ignored]


def stream_script(*pieces: bytes) -> Script:
    return Script((STREAM_HEAD, *(chunked(piece) for piece in pieces), LAST_CHUNK))


STREAM_BODY = CHAT[:-1] + b',"stream":true}'


@contextmanager
def open_stream(
    target: Target, script: Script, *headers: bytes, receive_buffer: int | None = None
) -> Iterator[tuple[Connection, Exchange]]:
    """A request for a stream, sent and arrived; nothing of its answer is read yet."""
    name = target.upstream.add(script)
    with target.connect(receive_buffer) as connection:
        connection.send(request(name, STREAM_BODY, *headers))
        yield connection, target.arrived(name)
