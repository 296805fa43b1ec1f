"""What one request costs on the client's side: the proxy's pool, the same behind httpx, and httpx with its own pool.

A bare keep-alive responder runs in another process; time and CPU are of this process alone, on uvloop. Prints a table.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from multiprocessing.connection import Connection
from typing import cast

import httpx
import uvloop

from longroute.router.proxy.pool import Pool
from longroute.router.proxy.transport import LeanTransport

from .machine import measured_on

SECONDS = 1.2  # of measuring per cell, after a quarter of it to warm up
CONCURRENCY = (1, 16, 64)
BODIES = {"1 kB": 1_000, "64 kB": 64_000}
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_1\r\ncontent-length: 1000\r\n\r\n"
Call = Callable[[], Awaitable[None]]


class Responder(asyncio.Protocol):
    """Answers each request after as many body bytes as its content-length says; parses nothing else."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._missing = 0

    def data_received(self, data: bytes) -> None:
        if not self._missing:
            head, _, data = data.partition(b"\r\n\r\n")
            self._missing = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        self._missing -= len(data)
        if not self._missing:
            self._transport.write(ANSWER + bytes(1000))


def serve(told: Connection) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Responder, "127.0.0.1", 0)
        told.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(main())


@asynccontextmanager
async def pool(url: str, body: bytes) -> AsyncIterator[Call]:
    connections = Pool(url)
    headers = [
        (b"host", connections.host),
        (b"accept", b"*/*"),
        (b"content-type", b"application/json"),
        (b"authorization", b"Bearer none"),
        (b"content-length", b"%d" % len(body)),
    ]

    async def call() -> None:
        response = await connections.send(b"POST", b"/v1/chat/completions", headers, body)
        assert response.body_done
        assert len(response.body) == 1000

    yield call
    await connections.aclose()


@asynccontextmanager
async def through_httpx(url: str, body: bytes, transport: httpx.AsyncBaseTransport | None) -> AsyncIterator[Call]:
    async with httpx.AsyncClient(transport=transport) as client:

        async def call() -> None:
            response = await client.post(
                f"{url}/v1/chat/completions", content=body, headers={"authorization": "Bearer none"}
            )
            assert len(response.content) == 1000

        yield call


CLIENTS: dict[str, Callable[[str, bytes], AbstractAsyncContextManager[Call]]] = {
    "Pool": pool,
    "httpx over LeanTransport": lambda url, body: through_httpx(url, body, LeanTransport()),
    "httpx": lambda url, body: through_httpx(url, body, None),
}


async def measure(call: Call, concurrency: int, seconds: float) -> tuple[float, float, float]:
    """CPU per request in ms, median time of a request in ms, requests per second."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def worker() -> None:
        while (before := time.perf_counter()) < end:
            await call()
            times.append(time.perf_counter() - before)

    cpu, began = time.process_time(), time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    cpu, took = time.process_time() - cpu, time.perf_counter() - began
    return cpu / len(times) * 1e3, statistics.median(times) * 1e3, len(times) / took


async def table(url: str) -> None:
    print("| body | at once | client | CPU ms per request | p50 ms | requests/s |\n|---|---|---|---|---|---|")
    for size, n_bytes in BODIES.items():
        for concurrency in CONCURRENCY:
            for name, client in CLIENTS.items():
                async with client(url, bytes(n_bytes)) as call:
                    await measure(call, concurrency, SECONDS / 4)
                    cpu, p50, rate = await measure(call, concurrency, SECONDS)
                print(f"| {size} | {concurrency} | {name} | {cpu:.3f} | {p50:.2f} | {rate:.0f} |")


def main() -> None:
    ours, theirs = multiprocessing.Pipe()
    responder = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    responder.start()
    try:
        uvloop.run(table(f"http://127.0.0.1:{ours.recv()}"))
    finally:
        responder.terminate()
    print(" · ".join(measured_on("httpx", "httptools", "uvloop").values()))


if __name__ == "__main__":
    main()
