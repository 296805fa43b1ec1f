"""A small proxy that does everything right, and on request one thing wrong: what the wire suite itself is tested with.

Without a fault it passes every check; with the fault that a check is there for, that check must fail.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import posixpath
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlencode

from .recording import Background, Headers, WatchedReader, body_pieces, chunked, listen, parse_head, value_of
from .wire_target import HOP_BY_HOP

Fault = Literal[
    "",
    "adds_headers",
    "always_chunks",
    "always_says_a_length",
    "answers_for_itself",
    "buffers_answers",
    "buffers_requests",
    "closes_after_each",
    "connects_each_time",
    "decodes_gzip",
    "doubles_the_prefix",
    "drops_headers",
    "drops_the_client",
    "hides_cuts",
    "ignores_aborts",
    "impatient",
    "keeps_host",
    "keeps_http_1_0",
    "never_continues",
    "normalises_paths",
    "one_at_a_time",
    "own_error_bodies",
    "own_methods",
    "own_status",
    "passes_both_framings",
    "passes_hop_by_hop",
    "rewrites_answers",
    "rewrites_requests",
    "sends_again",
    "sorts_headers",
    "takes_interim_for_final",
    "tidies_streams",
    "trusts_idle_connections",
    "unframes_requests",
]
Stream = tuple[WatchedReader, asyncio.StreamWriter]
FAILED = (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError)
STANDARD_HEADERS = (b"content-type", b"content-length", b"transfer-encoding", b"x-script", b"expect")


class SpoilingProxy:
    def __init__(self, upstream_port: int, fault: Fault = "") -> None:
        self.fault = fault
        self._upstream_port = upstream_port
        self._idle: list[Stream] = []
        self._turn = asyncio.Lock()
        self._open: set[asyncio.StreamWriter] = set()
        self._background = Background()
        self._server = self._background.run(listen(self._serve))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        async def stop() -> None:
            self._server.close()
            for writer in self._open:
                writer.transport.abort()

        self._background.run(stop())
        self._background.close()

    async def _serve(self, reader: WatchedReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while await self._one((reader, writer)):
                pass
        except FAILED:
            pass
        finally:
            writer.close()

    async def _one(self, client: Stream) -> bool:
        """Passes on one request and its answer; true where the client's connection is kept."""
        reader, writer = client
        if self.fault == "impatient":
            head = await reader.read(1 << 16)
            reader.feed_data(head)
            if b"\r\n\r\n" not in head:
                return False
        line, headers = parse_head(await reader.readuntil(b"\r\n\r\n"))
        framings = {name for name, _ in headers} & {b"content-length", b"transfer-encoding"}
        if len(framings) > 1 and self.fault != "passes_both_framings":
            writer.write(_answer(b"400 Bad Request", b"{}"))
            return False
        if value_of(headers, b"expect") and self.fault != "never_continues":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self.fault == "one_at_a_time":
            async with self._turn:
                return await self._exchange(client, line, headers)
        return await self._exchange(client, line, headers)

    async def _exchange(self, client: Stream, line: bytes, headers: Headers) -> bool:
        reader, writer = client
        upstream: Stream | None = None
        sending: asyncio.Future[None] | None = None
        try:
            try:
                upstream = await self._connect()
                sending = asyncio.ensure_future(self._send(client, upstream, line, headers))
                receiving = asyncio.ensure_future(self._receive(upstream))
                await self._unless_gone(reader, receiving, sending)
                status_line, answer_headers = receiving.result()
            except FAILED:
                if sending is not None and sending.done() and not sending.cancelled() and sending.exception():
                    raise ConnectionResetError from None  # it was the client that failed
                if self.fault == "drops_the_client":
                    return False
                inner = {"type": "upstream_error", "message": "The upstream failed."}
                error = {"type": "error", "error": inner}
                writer.write(_answer(b"502 Bad Gateway", json.dumps(error).encode()))
                await writer.drain()
                return True
            passing = asyncio.ensure_future(self._pass_back(client, upstream, line, status_line, answer_headers))
            await self._unless_gone(reader, passing)
            kept = passing.result() and sending.done()
            if kept and self.fault != "connects_each_time":
                self._idle.append(upstream)
                upstream = None
            old = line.endswith(b"HTTP/1.0") and self.fault != "keeps_http_1_0"
            return sending.done() and not old and self.fault != "closes_after_each"
        finally:
            if sending is not None:
                sending.cancel()
            if upstream is not None and not (self.fault == "ignores_aborts" and reader.gone.is_set()):
                upstream[1].close()

    async def _connect(self) -> Stream:
        while self._idle:
            idle = self._idle.pop()
            if self.fault == "trusts_idle_connections" or not idle[0].gone.is_set():
                return idle
            idle[1].close()
        reader = WatchedReader()
        transport, protocol = await asyncio.get_running_loop().create_connection(
            lambda: asyncio.StreamReaderProtocol(reader), "127.0.0.1", self._upstream_port
        )
        writer = asyncio.StreamWriter(transport, protocol, reader, asyncio.get_running_loop())
        self._open.add(writer)
        return reader, writer

    async def _unless_gone(self, client: WatchedReader, work: asyncio.Future[Any], *also: asyncio.Future[None]) -> None:
        """Waits for work; ends everything where the client leaves or its request breaks off first."""
        if self.fault == "ignores_aborts":
            await asyncio.wait([work])
            return
        gone = asyncio.ensure_future(client.gone.wait())
        for other in also:
            other.add_done_callback(lambda done: gone.cancel() if not done.cancelled() and done.exception() else None)
        await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not work.done():
            work.cancel()
            await asyncio.wait([work])
            raise ConnectionResetError

    def _forwarded(self, headers: Headers) -> Headers:
        named = {token.strip().lower() for token in (value_of(headers, b"connection") or b"").split(b",")}
        if self.fault == "passes_hop_by_hop":
            named = set()
        hop = HOP_BY_HOP if self.fault != "passes_hop_by_hop" else {b"transfer-encoding", b"connection"}
        kept = [(name, value) for name, value in headers if name not in hop and name not in named]
        if self.fault == "drops_headers":
            kept = [(name, value.partition(b";")[0]) for name, value in kept if name in STANDARD_HEADERS]
        if self.fault == "sorts_headers":
            kept.sort()
        if self.fault == "adds_headers":
            kept.append((b"via", b"1.1 spoiled"))
        return kept

    async def _send(self, client: Stream, upstream: Stream, line: bytes, headers: Headers) -> None:
        reader, _ = client
        _, writer = upstream
        method, path, _ = line.split(b" ")
        if self.fault == "own_methods":
            method = b"GET" if method == b"POST" else b"POST"
        sent = self._forwarded(headers)
        if self.fault != "keeps_host":
            sent = [header for header in sent if header[0] != b"host"] + [
                (b"host", b"127.0.0.1:%d" % self._upstream_port)
            ]
        pieces, whole = body_pieces(reader, headers), b""
        has_length = value_of(headers, b"content-length") is not None
        has_chunks = value_of(headers, b"transfer-encoding") is not None
        if self.fault in ("buffers_requests", "rewrites_requests", "sends_again"):
            whole = b"".join([piece async for piece in pieces])
            if self.fault == "rewrites_requests":
                whole = _rewritten(whole)
            sent = [header for header in sent if header[0] != b"content-length"]
            sent.append((b"content-length", b"%d" % len(whole)))
            pieces, has_chunks = _one_piece(whole), False
        elif self.fault == "always_says_a_length" and not has_length and not has_chunks:
            sent.append((b"content-length", b"0"))
        elif self.fault == "unframes_requests" and has_length:
            sent, has_chunks = [header for header in sent if header[0] != b"content-length"], True
        if has_chunks:
            sent.append((b"transfer-encoding", b"chunked"))
        sent = [header for header in sent if header[0] != b"expect"]
        head = _head(b"%b %b HTTP/1.1" % (method, self._path(path)), sent)
        if self.fault == "sends_again":
            (await self._connect())[1].write(head + whole)
        writer.write(head)
        async with aclosing(pieces) as body:  # type: ignore[type-var]
            async for piece in body:
                writer.write(chunked(piece) if has_chunks else piece)
                await writer.drain()
        if has_chunks:
            writer.write(b"0\r\n\r\n")

    def _path(self, path: bytes) -> bytes:
        if self.fault == "doubles_the_prefix":
            return b"/v1" + path
        if self.fault != "normalises_paths":
            return path
        place, _, query = path.decode().partition("?")
        place = posixpath.normpath(unquote(place).replace("//", "/"))
        query = urlencode(dict(parse_qsl(query)))
        return f"{place}?{query}".removesuffix("?").replace(" ", "%20").encode()

    async def _receive(self, upstream: Stream) -> tuple[bytes, Headers]:
        while True:
            line, headers = parse_head(await upstream[0].readuntil(b"\r\n\r\n"))
            version, status, *_ = line.split(b" ", 2)
            if not version.startswith(b"HTTP/1."):
                raise ValueError("not HTTP")
            int(value_of(headers, b"content-length") or 0)
            if int(status) >= 200 or self.fault == "takes_interim_for_final":
                return line, headers

    async def _pass_back(
        self, client: Stream, upstream: Stream, line: bytes, status_line: bytes, headers: Headers
    ) -> bool:
        """Passes on an answer; true where the upstream's connection can be used again."""
        _, writer = client
        status = int(status_line.split(b" ", 2)[1])
        if self.fault == "own_status":
            status_line = b"HTTP/1.1 502 X" if status in (200, 500) else b"HTTP/1.1 500 X"
        bare = line.startswith(b"HEAD ") or status in (204, 304)
        kept = self._forwarded(headers)
        length = value_of(headers, b"content-length")
        until_close = length is None and value_of(headers, b"transfer-encoding") is None and not bare
        pieces = _until_close(upstream[0]) if until_close else body_pieces(upstream[0], [] if bare else headers)
        replaced = await self._replaced(pieces, status, headers)
        if replaced is not None:
            pieces = _one_piece(replaced)
            kept = [header for header in kept if header[0] != b"content-length"]
            length = None
        if self.fault in ("always_chunks", "hides_cuts"):
            kept = [header for header in kept if header[0] != b"content-length"]
            length = None
        old = line.endswith(b"HTTP/1.0") and self.fault != "always_chunks"
        chunks = length is None and not bare and not old
        if chunks:
            kept.append((b"transfer-encoding", b"chunked"))
        writer.write(_head(b"HTTP/1.1 " + status_line.partition(b" ")[2], kept))
        try:
            async with aclosing(pieces) as body:  # type: ignore[type-var]
                async for piece in body:
                    if not (self.fault == "ignores_aborts" and client[0].gone.is_set()):
                        writer.write(chunked(piece) if chunks else piece)
                        await writer.drain()
        except FAILED:
            if self.fault != "hides_cuts":
                writer.transport.abort()
                raise
        if chunks:
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        return not until_close

    async def _replaced(self, pieces: AsyncIterator[bytes], status: int, headers: Headers) -> bytes | None:
        """The whole body that goes to the client in place of the upstream's, for faults that make one."""
        gzipped = value_of(headers, b"content-encoding") == b"gzip"
        if self.fault == "buffers_answers":
            return b"".join([piece async for piece in pieces])
        if self.fault == "rewrites_answers":
            return b"".join([piece async for piece in pieces]) + b"\n"
        if self.fault == "decodes_gzip" and gzipped:
            return gzip.decompress(b"".join([piece async for piece in pieces]))
        if self.fault == "own_error_bodies" and status >= 400:
            return b'{"error":"something went wrong"}'
        if self.fault == "tidies_streams":
            whole = b"".join([piece async for piece in pieces]).decode(errors="replace")
            lines = [each for each in whole.splitlines() if each.startswith("data: ")]
            return "\n\n".join([*lines, "data: [DONE]", ""]).encode()
        return None


def _rewritten(body: bytes) -> bytes:
    try:
        return json.dumps(json.loads(body)).encode()
    except (ValueError, RecursionError):
        return b"{}"


async def _one_piece(body: bytes) -> AsyncIterator[bytes]:
    if body:
        yield body


async def _until_close(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while piece := await reader.read(1 << 16):
        yield piece


def _head(line: bytes, headers: Headers) -> bytes:
    return line + b"\r\n" + b"".join(b"%b: %b\r\n" % header for header in headers) + b"\r\n"


def _answer(status: bytes, body: bytes) -> bytes:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    return _head(b"HTTP/1.1 " + status, headers) + body
