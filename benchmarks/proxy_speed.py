"""What a proxy costs a request that it only passes on: time added, requests a second, CPU, delay of the first event.

    python -m benchmarks.proxy_speed [--quick]

All targets run side by side in one run, each pinned to the first core; this process (load and upstream, uvloop, nothing
but sockets) has the second. Rounds go through the targets in turn, so that a busy moment of the machine hits all of
them. Closed loop: each connection sends its next request when it has its answer. `direct` is the same load without a
proxy, so its requests a second are the ceiling of what can be seen here, and times of the others are over its.
CPU is the server's, user and system, from /proc. Two rows are longroute's: `off` says so in a header, `auto` has to
find out by itself that a request is too short to route. LiteLLM and the aiohttp proxy run where LiteLLM is installed
(see targets.py); `–` stands where there were too few requests for a p99. Writes results/proxy_speed.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import uvloop

from .machine import measured_on
from .targets import Running, available, peer_versions, running

RESULTS = Path(__file__).parent / "results" / "proxy_speed.md"
KINDS = ("direct", "naive", "naive-aiohttp", "litellm", "longroute")
CONCURRENCIES = (1, 16, 64)
SIZES = {"1 kB": 1_000, "64 kB": 64_000, "400 kB": 400_000, "2 MB": 2_000_000}
SERVER_CORE, LOAD_CORE = 0, 1
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

COMPLETION = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "An answer. " * 20}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 60, "total_tokens": 70},
    }
).encode()
ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(COMPLETION) + COMPLETION
)
CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1700000000, "model": "m"}
EVENT = (
    b"data: %b\n\n"
    % json.dumps(
        CHUNK | {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "An"}, "finish_reason": None}]}
    ).encode()
)
LAST_EVENT = (
    b"data: %b\n\ndata: [DONE]\n\n"
    % json.dumps(CHUNK | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}).encode()
)
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" + (
    b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
)
STREAM_END = b"%x\r\n%b\r\n0\r\n\r\n" % (len(LAST_EVENT), LAST_EVENT)
STREAM_PAUSE_S = 0.005


def content_length(head: bytes) -> int | None:
    found = head.lower().partition(b"content-length:")[2]
    return int(found.partition(b"\r\n")[0]) if found else None


class Upstream(asyncio.Protocol):
    """Answers each request once its body is there: with a stream where it asks for one."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._body_start = b""
        self._missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass

    def data_received(self, data: bytes) -> None:
        if not self._missing:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            length = content_length(bytes(self._head[:end]))
            assert length, "a request without a length cannot be measured here"
            data = bytes(self._head[end + 4 :])
            self._missing = length
            self._head.clear()
            self._body_start = b""
        self._missing -= len(data)
        if len(self._body_start) < SIZES["1 kB"]:
            self._body_start += data[:2000]
        if not self._missing:
            self._answer()

    def _answer(self) -> None:
        if b'"stream":true' not in self._body_start.replace(b" ", b""):
            self._transport.write(ANSWER)
            return
        self._transport.write(STREAM)
        asyncio.get_running_loop().call_later(STREAM_PAUSE_S, self._transport.write, STREAM_END)


class Client(asyncio.Protocol):
    """One connection of the load: sends, waits for the whole answer, sends again, until told to stop."""

    def __init__(self, message: bytes, stream: bool) -> None:
        self._message = message
        self._mark = b"data:" if stream else b"HTTP"  # what of an answer is waited for
        self._answer = bytearray()
        self._started = 0.0
        self._marked = False
        self._stop_at = 0.0
        self.seconds: list[float] = []
        self.starts: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass

    def go(self, stop_at: float) -> None:
        self._stop_at = stop_at
        self._send()

    def _send(self) -> None:
        self._answer.clear()
        self._marked = False
        self._started = time.perf_counter()
        self._transport.write(self._message)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        now = time.perf_counter()
        if self._mark == b"data:" and not self._marked and self._mark in self._answer:
            self._marked = True
            self._keep(now)
        if not self._is_whole():
            return
        if not self._marked:
            self._keep(now)
        if now < self._stop_at:
            self._send()
        else:
            self._transport.close()

    def _keep(self, now: float) -> None:
        self.starts.append(self._started)
        self.seconds.append(now - self._started)

    def _is_whole(self) -> bool:
        end = self._answer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self._answer[:end])
        if not head.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(f"answered with {bytes(self._answer[:500])!r}"))
            self._transport.close()
            return False
        length = content_length(head)
        return self._answer.endswith(b"0\r\n\r\n") if length is None else len(self._answer) == end + 4 + length

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            if self._is_whole():
                self.done.set_result(None)
            else:
                self.done.set_exception(RuntimeError("the connection ended without an answer"))


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: one server under one header."""

    name: str
    kind: str
    header: bytes = b""
    sizes: tuple[str, ...] = tuple(SIZES)


ROWS = (
    Row("direct", "direct"),
    Row("naive, httpx", "naive"),
    Row("naive, aiohttp", "naive-aiohttp"),
    Row("LiteLLM", "litellm"),
    Row("longroute, off", "longroute", b"x-longroute-strategy: off\r\n"),
    Row("longroute, auto", "longroute", sizes=("1 kB",)),
)


@dataclass(slots=True)
class Measured:
    """Of one row at one size and concurrency: seconds per request, wall and CPU seconds, requests of all rounds."""

    seconds: list[float] = field(default_factory=list)
    wall_s: float = 0.0
    cpu_s: float = 0.0
    requests: int = 0

    def quantile_ms(self, share: float) -> float:
        return float(np.quantile(self.seconds, share)) * 1000


Cell = tuple[str, str, int]  # row, size or "stream", concurrency


def request(row: Row, size: int, stream: bool) -> bytes:
    body = {"model": "m", "stream": stream, "messages": [{"role": "user", "content": ""}]}
    frame = json.dumps(body).encode()
    words = (b"The quick brown fox said: jump over it. " * (size // 40 + 1))[: max(0, size - len(frame))]
    data = frame.replace(b'"content": ""', b'"content": "' + words + b'"')
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer sk-none\r\n"
    head += b"content-type: application/json\r\naccept: application/json\r\nuser-agent: load/1\r\n"
    return head + row.header + b"content-length: %d\r\n\r\n" % len(data) + data


def cpu_s(pid: int | None) -> float:
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


async def slice_of_load(at: Running, message: bytes, concurrency: int, seconds: float, stream: bool) -> Measured:
    """Load for so long, after a fifth of that as a warm-up whose times are not kept."""
    loop = asyncio.get_running_loop()
    clients = [
        (await loop.create_connection(lambda: Client(message, stream), "127.0.0.1", at.port))[1]
        for _ in range(concurrency)
    ]
    cpu_before, begun = cpu_s(at.pid), time.perf_counter()
    kept_from = begun + seconds / 5
    for client in clients:
        client.go(kept_from + seconds)
    async with asyncio.timeout(60):
        await asyncio.gather(*(client.done for client in clients))
    return Measured(
        [s for client in clients for start, s in zip(client.starts, client.seconds, strict=True) if start >= kept_from],
        time.perf_counter() - begun,
        cpu_s(at.pid) - cpu_before,
        sum(len(client.seconds) for client in clients),
    )


def cells(quick: bool) -> Iterator[Cell]:
    sizes = ("1 kB", "400 kB") if quick else tuple(SIZES)
    concurrencies = CONCURRENCIES[:2] if quick else CONCURRENCIES
    for size in (*sizes, "stream"):
        for concurrency in concurrencies:
            for row in ROWS:
                if size in row.sizes or size == "stream":
                    yield row.name, size, concurrency


async def measure(kinds: list[str], quick: bool) -> dict[Cell, Measured]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Upstream, "127.0.0.1", 0, backlog=512)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    rows = {row.name: row for row in ROWS if row.kind in kinds}
    found: dict[Cell, Measured] = {}
    with ExitStack() as stack:
        started = {kind: stack.enter_context(running(kind, url, SERVER_CORE)) for kind in kinds}
        os.sched_setaffinity(0, {LOAD_CORE})
        for _ in range(1 if quick else 2):
            for cell in cells(quick):
                name, size, concurrency = cell
                if name not in rows:
                    continue
                stream = size == "stream"
                message = request(rows[name], SIZES.get(size, SIZES["1 kB"]), stream)
                one = await slice_of_load(started[rows[name].kind], message, concurrency, 0.4 if quick else 1.0, stream)
                total = found.setdefault(cell, Measured())
                total.seconds += one.seconds
                total.wall_s += one.wall_s
                total.cpu_s += one.cpu_s
                total.requests += one.requests
    server.close()
    return found


def table(found: dict[Cell, Measured], size: str) -> str:
    """Direct as it is; the others' times over direct's at the same size and concurrency."""
    concurrencies = sorted({cell[2] for cell in found if cell[1] == size})
    columns = [f"{what} at {n}" for what in ("p50 / p99, ms", "requests/s") for n in concurrencies]
    lines = [f"| target | {' | '.join(columns)} | CPU ms |", "|---|" + "---:|" * (len(columns) + 1)]
    for name in dict.fromkeys(cell[0] for cell in found if cell[1] == size):
        rows = [found[name, size, n] for n in concurrencies]
        bases = [None if name == "direct" else found["direct", size, n] for n in concurrencies]
        times = [f"{_over(row, base, 0.5)} / {_over(row, base, 0.99)}" for row, base in zip(rows, bases, strict=True)]
        rates = [f"{row.requests / row.wall_s:,.0f}" for row in rows]
        cpu_ms = sum(row.cpu_s for row in rows) / sum(row.requests for row in rows) * 1000
        lines.append(f"| {name} | {' | '.join([*times, *rates])} | {f'{cpu_ms:.2f}' if cpu_ms else '–'} |")
    return "\n".join(lines)


def _over(row: Measured, base: Measured | None, share: float) -> str:
    if base is None:
        return f"{row.quantile_ms(share):.2f}"
    if (1 - share) * len(row.seconds) < 2:
        return "–"  # a handful of requests has no 99th percentile
    return f"{row.quantile_ms(share) - base.quantile_ms(share):+.2f}"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="half a minute, without LiteLLM; writes no results")
    quick = arguments.parse_args().quick
    kinds = [kind for kind in KINDS if available(kind) and not (quick and kind == "litellm")]
    found = uvloop.run(measure(kinds, quick))
    parts = []
    for size in dict.fromkeys(cell[1] for cell in found):
        what = "Streams of 1 kB requests: time to the first event" if size == "stream" else f"Bodies of {size}"
        parts.append(f"## {what}\n\n{table(found, size)}\n")
    print("\n".join(parts))
    if not quick:
        measured = measured_on("uvicorn", "uvloop", "httpx") | {"peers": peer_versions()}
        about = "\n".join(f"{key}: {value}  " for key, value in measured.items())
        RESULTS.write_text(f"# What passing a request on costs\n\n{__doc__}\n{about}\n\n" + "\n".join(parts))


if __name__ == "__main__":
    main()
