"""An upstream that keeps every byte it is sent and answers with exactly the bytes it was told to.

A raw asyncio server in a thread of its own, without any HTTP library: what a library would repair or hide is what the
wire suite looks for. What is sent and what must hold is left to `wire.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal, TypeVar

Headers = list[tuple[bytes, bytes]]
T = TypeVar("T")

HOLD: Final = "hold"  # a piece of a script: nothing more until the check calls `Exchange.release`
READ_BUFFER = 1 << 16
MODEL_NAME = re.compile(rb'"model"\s*:\s*"(?:openai/)?(wire-\d+)"')


def parse_head(head: bytes) -> tuple[bytes, Headers]:
    """Start line and headers, names in lower case, in order, of bytes that end with an empty line."""
    first, *rest = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    fields = (line.partition(b":") for line in rest)
    return first, [(name.lower(), value.strip(b" \t")) for name, _, value in fields]


def value_of(headers: Headers, name: bytes) -> bytes | None:
    return next((value for key, value in headers if key == name), None)


def chunked(*pieces: bytes) -> bytes:
    """These pieces as chunks, without the last one."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


@dataclass(frozen=True, slots=True)
class Script:
    """How one request is answered.

    pieces: bytes are written as they are, a number is a pause in seconds, HOLD waits for `Exchange.release`.
    end: `keep` the connection, `close` it, `reset` it, or `hang` until the other side goes away.
    reads: `all` of the request before answering, only its `head`, or its body `late`: after one release.
    """

    pieces: tuple[bytes | float | Literal["hold"], ...] = ()
    end: Literal["keep", "close", "reset", "hang"] = "keep"
    reads: Literal["all", "head", "late"] = "all"


DEFAULT = Script((b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",))


@dataclass(slots=True)
class Exchange:
    """One request as it arrived. `written`: bytes of the answer that the system took; `gone`: the other side left."""

    connection: int
    request_line: bytes
    headers: Headers
    release: Callable[[], None]
    body: bytearray = field(default_factory=bytearray)
    whole: bool = False
    written: int = 0
    gone: bool = False

    def header(self, name: bytes) -> bytes | None:
        return value_of(self.headers, name)


class Background:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def close(self) -> None:
        async def cancel_all() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)  # closed transports let go of their sockets in the next round

        self.run(cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class WatchedReader(asyncio.StreamReader):
    """A reader that says when the other side has gone, without anyone reading."""

    def __init__(self, limit: int = READ_BUFFER) -> None:
        super().__init__(limit)
        self.gone = asyncio.Event()

    def feed_eof(self) -> None:
        super().feed_eof()
        self.gone.set()

    def set_exception(self, exc: Exception | type[Exception]) -> None:
        super().set_exception(exc)  # type: ignore[arg-type]
        self.gone.set()


async def listen(
    serve: Callable[[WatchedReader, asyncio.StreamWriter], Coroutine[Any, Any, None]], port: int = 0
) -> asyncio.Server:
    """A loopback server whose connections have a WatchedReader."""

    def connection() -> asyncio.StreamReaderProtocol:
        reader = WatchedReader()
        return asyncio.StreamReaderProtocol(reader, lambda _, writer: serve(reader, writer))

    return await asyncio.get_running_loop().create_server(connection, "127.0.0.1", port, backlog=512)


def reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection with RST, where a plain close would send FIN."""
    transport_socket = writer.get_extra_info("socket")
    transport_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def body_pieces(reader: asyncio.StreamReader, headers: Headers) -> AsyncIterator[bytes]:
    """The body's bytes as they come, chunk framing taken off. Raises IncompleteReadError where it is cut off."""
    if b"chunked" in (value_of(headers, b"transfer-encoding") or b"").lower():
        while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            while size:
                piece = await _piece(reader, size)
                size -= len(piece)
                yield piece
            await reader.readexactly(2)
        while await reader.readuntil(b"\r\n") != b"\r\n":
            pass  # trailers
        return
    left = int(value_of(headers, b"content-length") or 0)
    while left:
        piece = await _piece(reader, left)
        left -= len(piece)
        yield piece


async def _piece(reader: asyncio.StreamReader, most: int) -> bytes:
    piece = await reader.read(min(most, READ_BUFFER))
    if not piece:
        raise asyncio.IncompleteReadError(b"", most)
    return piece


class Recorder:
    """The recording upstream. `add` a script, send a request with its name in the header `x-script`, look at it.

    A proxy that drops that header is served by the name in `"model"`. A request without a known name gets `{}`.
    """

    def __init__(self) -> None:
        self._background = Background()
        self._changed = threading.Condition()
        self._scripts: dict[bytes, Script] = {}
        self._exchanges: dict[bytes, list[Exchange]] = {}
        self._writers: set[asyncio.StreamWriter] = set()
        self._numbers = itertools.count(1)
        self._names = itertools.count(1)
        self._server = self._background.run(listen(self._serve))
        self.port: int = self._server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._background.run(self._stop())
        self._background.close()

    def add(self, script: Script) -> bytes:
        name = b"wire-%d" % next(self._names)
        self._scripts[name] = script
        self._exchanges[name] = []
        return name

    def exchanges(self, name: bytes) -> list[Exchange]:
        return list(self._exchanges[name])

    def wait(self, until: Callable[[], T], patience_s: float, what: str) -> T:
        """The first true value of `until`, looked at whenever something happens here."""
        with self._changed:
            value = self._changed.wait_for(until, patience_s)
        assert value, f"not within {patience_s:g} s: {what}"
        return value

    def exchange(self, name: bytes, patience_s: float) -> Exchange:
        """The first request for a script, once its head is there."""
        return self.wait(lambda: self._exchanges[name], patience_s, "the request reaches the upstream")[0]

    def settled(self, amount: Callable[[], int], quiet_s: float = 0.3) -> int:
        """A count once it has stopped growing for a while."""
        before = amount()
        with self._changed:
            while self._changed.wait_for(partial(_differs, amount, before), quiet_s):
                before = amount()
        return before

    def drop_connections(self) -> None:
        """Closes every connection, idle ones too."""
        self._background.run(self._drop())

    @contextmanager
    def down(self) -> Iterator[None]:
        """No one listens here for a while: connecting is refused."""
        self._background.run(self._stop())
        try:
            yield
        finally:
            self._server = self._background.run(listen(self._serve, self.port))

    async def _stop(self) -> None:
        self._server.close()
        await self._drop()

    async def _drop(self) -> None:
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    async def _serve(self, reader: WatchedReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        # Small buffers, so that bytes on their way to a slow reader are seen here as not taken.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, READ_BUFFER)
        writer.transport.set_write_buffer_limits(0)  # a drained piece has left, so a reset after it does not lose it
        number = next(self._numbers)
        try:
            while await self._answer_one(number, reader, writer):
                pass
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError):
            pass  # the other side left, or does not speak HTTP: the exchange shows what had arrived
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            self._writers.discard(writer)

    async def _answer_one(self, number: int, reader: WatchedReader, writer: asyncio.StreamWriter) -> bool:
        """Serves one request; true where the connection is kept for another."""
        request_line, headers = parse_head(await reader.readuntil(b"\r\n\r\n"))
        permits = asyncio.Semaphore(0)
        loop = asyncio.get_running_loop()
        exchange = Exchange(number, request_line, headers, lambda: _call(loop, permits.release))
        name = value_of(headers, b"x-script")
        if (value_of(headers, b"expect") or b"").lower() == b"100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if name is None:
            await self._read(exchange, reader)
            found = MODEL_NAME.search(exchange.body)
            name = found[1] if found else b""
        script = self._scripts.get(name, DEFAULT)
        self._exchanges.setdefault(name, []).append(exchange)
        self._notify()
        try:
            if script.reads == "late":
                await permits.acquire()
            if script.reads != "head":
                await self._read(exchange, reader)
            for piece in script.pieces:
                await self._play(piece, exchange, permits, reader, writer)
            if script.end == "hang":
                await reader.gone.wait()
        finally:
            exchange.gone = reader.gone.is_set()
            self._notify()
        if script.end == "reset":
            reset(writer)
        return script.end == "keep" and exchange.whole

    async def _read(self, exchange: Exchange, reader: asyncio.StreamReader) -> None:
        if exchange.whole:
            return
        async for piece in body_pieces(reader, exchange.headers):
            exchange.body += piece
            self._notify()
        exchange.whole = True
        self._notify()

    async def _play(
        self,
        piece: bytes | float | str,
        exchange: Exchange,
        permits: asyncio.Semaphore,
        reader: WatchedReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        if isinstance(piece, bytes):
            for start in range(0, len(piece), READ_BUFFER):
                part = piece[start : start + READ_BUFFER]
                writer.write(part)
                await writer.drain()
                exchange.written += len(part)
                self._notify()
        elif isinstance(piece, str):
            waits = [asyncio.ensure_future(permits.acquire()), asyncio.ensure_future(reader.gone.wait())]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            if reader.gone.is_set():
                raise ConnectionResetError
        else:
            await asyncio.sleep(piece)


def _differs(amount: Callable[[], int], before: int) -> bool:
    return amount() != before


def _call(loop: asyncio.AbstractEventLoop, action: Callable[[], None]) -> None:
    loop.call_soon_threadsafe(action)
