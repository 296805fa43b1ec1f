"""A real HTTP server on loopback that misbehaves as told."""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

Action = bytes | float | Literal["reset", "hang"]


@dataclass
class FlakyServer:
    """Answers each request with the next list of actions: bytes to send, seconds to wait, `reset`, `hang`.

    `asked` is set by each request. `hang` stays silent until the client leaves, and then sets `left`. A request that
    nobody planned for gets 418.
    """

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    connections: int = 0
    asked: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)
    script: deque[tuple[Action, ...]] = field(default_factory=deque)

    def then(self, *actions: Action) -> None:
        self.script.append(actions)

    def then_send(self, body: bytes | object, status: int = 200, **headers: str) -> None:
        """A complete response; objects become JSON, and underscores in header names hyphens."""
        self.then(_response(body, status, headers))

    def then_stream(self, *actions: Action | dict[str, Any]) -> None:
        """A chunked event stream; objects become events, bytes are one chunk each."""
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        self.then(head, *map(_framed, actions), b"0\r\n\r\n")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyServer]:
    monkeypatch.setenv("NO_PROXY", "*")
    flaky = FlakyServer()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            flaky.connections += 1
            with contextlib.suppress(ConnectionError):
                while _read_request(self.rfile, flaky):
                    actions = flaky.script.popleft() if flaky.script else (_response({"error": "unplanned"}, 418, {}),)
                    for action in actions:
                        if not _perform(action, self.connection, flaky):
                            return

    with _Server(("127.0.0.1", 0), Handler) as listening:
        flaky.url = f"http://127.0.0.1:{listening.server_address[1]}/v1"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield flaky
        listening.shutdown()
        thread.join()
    assert not flaky.script, f"{len(flaky.script)} planned responses were never asked for"


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


def _read_request(rfile: Any, flaky: FlakyServer) -> bool:
    """Take in one request; False where the client has left."""
    if not rfile.readline():
        return False
    headers = {}
    while (line := rfile.readline().decode().strip()) and ":" in line:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    flaky.headers.append(headers)
    flaky.bodies.append(json.loads(rfile.read(int(headers["content-length"]))))
    flaky.asked.set()
    return True


def _perform(action: Action, connection: socket.socket, flaky: FlakyServer) -> bool:
    """Do one thing; False where the connection is over."""
    if isinstance(action, bytes):
        connection.sendall(action)
    elif isinstance(action, float):
        time.sleep(action)
    elif action == "hang":
        connection.settimeout(10)
        if connection.recv(1) == b"":
            flaky.left.set()
        return False
    else:  # a linger time of zero turns the close into a reset
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False
    return True


def _response(body: bytes | object, status: int, headers: dict[str, str]) -> bytes:
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {"content-type": "application/json", "content-length": str(len(payload))}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + payload


def _framed(action: Action | dict[str, Any]) -> Action:
    if isinstance(action, dict):
        action = b"data: " + json.dumps(action).encode() + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(action), action) if isinstance(action, bytes) else action
