"""One HTTP/1.1 connection: a request out, its response in, with httptools as the parser.

Leaves to `pool.py` which connection a request takes and when to dial anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from math import inf
from typing import Protocol, cast

import httptools
import httpx

from .wire import Body, Headers, Response, Timeouts

MAX_HEAD_BYTES = 64 * 2**10
_BUFFER_BYTES = 256 * 2**10  # of a response that its reader has not taken yet; reading pauses above
_JOIN_BYTES = 64 * 2**10  # up to here copying a body behind its head is cheaper than a second write
_RACE_S = 0.25  # a server that closes later than this has probably read the request


class Owner(Protocol):
    """What a connection tells the pool it belongs to."""

    idle_s: float
    origin: str

    def opened(self, connection: Connection) -> None: ...

    def free(self, connection: Connection) -> None:
        """A response ended and the connection can carry another request."""

    def gone(self, connection: Connection, *, idle: bool) -> None:
        """The connection will not be used again; `idle` says that no request had it."""

    def lost(self, connection: Connection) -> None:
        """Its socket is closed."""


class _Refused(Exception):
    """Raised in a parser's callback to stop it; the message says what is wrong with the response."""


class _WireResponse(Response):
    def __init__(self, connection: Connection, status: int, headers: Headers, reason: bytes) -> None:
        self.status = status
        self.headers = headers
        self.reason = reason
        self.pieces: list[bytes] = []
        self.size = 0
        self.connection: Connection | None = connection  # None once the body has ended, well or badly
        self.error: Exception | None = None
        self.waiter: asyncio.Future[None] | None = None
        self._begun = False

    @property
    def body_done(self) -> bool:
        return self.connection is None and self.error is None and not self._begun

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    async def __anext__(self) -> bytes:
        self._begun = True
        while not self.pieces:
            if self.error is not None:
                raise self.error
            if self.connection is None:
                raise StopAsyncIteration
            self.waiter = self.connection.wait_for_body()
            try:
                await self.waiter
            except BaseException:
                await self.aclose()
                raise
            finally:
                self.waiter = None
        piece = self.body
        self.pieces.clear()
        self.size = 0
        if self.connection is not None:
            self.connection.resume_reading()
        return piece

    async def aclose(self) -> None:
        if self.connection is not None:
            self.connection.fail(httpx.ReadError("The response was closed before its end."))

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class Connection(asyncio.Protocol):
    """One connection: at any time idle, waiting for the head of a response, or receiving its body.

    `_waiter` is set in the second state, `_response` in the third (and, within one call of `data_received`, both).
    """

    def __init__(self, pool: Owner) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        # RFC 9112, 2.2: a lone LF may end a line. httpx accepts it, so do we.
        self._parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True)
        self._transport: asyncio.Transport
        self._closed = False
        self._requests = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._deadline = inf
        self._reading_paused = False
        self._unwritten = 0  # what the transport still had to write when last looked at; 0 while it keeps up
        self._drained: asyncio.Future[None] | None = None
        self._pump: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[_WireResponse] | None = None
        self._response: _WireResponse | None = None

    # ---- what the pool asks ------------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        return not self._closed and not self._transport.is_closing() and self._loop.time() < self._deadline

    @property
    def lost_race(self) -> bool:
        """The server closed this reused connection while the request was on its way: not one byte came back.

        Had the server been at work on the request, it would rarely have gone so soon; a close that was already under
        way shows within a round trip.
        """
        return self._requests > 1 and not self._arrived and self._loop.time() - self._sent_at < _RACE_S

    async def exchange(self, method: bytes, head: bytes, body: Body, chunked: bool, allowed: Timeouts) -> Response:
        self._allowed = allowed
        self._head_only = method == b"HEAD"
        self._requests += 1
        self._sent_at = self._loop.time()
        self._arrived = self._complete = self._informational = self._keep = self._until_close = False
        self._keep_s = self._pool.idle_s
        self._overhead = self._head_bytes = 0
        self._headers: Headers = []
        self._reason = b""
        waiter: asyncio.Future[_WireResponse] = self._loop.create_future()
        self._waiter = waiter
        try:
            if body is None or isinstance(body, bytes):
                self._write(head, body or b"", chunked)
                self._request_written()
            else:
                self._allow(None)
                self._transport.write(head)
                self._pump = self._loop.create_task(self._send_pieces(body, chunked))
                self._pump.add_done_callback(self._pumped)
            return await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # Cancelled just when it was answered: the connection may have gone on to another request already.
                await waiter.result().aclose()
            else:
                waiter.cancel()
                self.fail(error if isinstance(error, Exception) else httpx.ReadError("The request was cancelled."))
            raise
        finally:
            del waiter  # else it, its error and this frame hold each other, and the body, until they are collected

    def fail(self, error: Exception) -> None:
        """Gives the connection up, now; whoever waits for it gets this error."""
        if self._closed:
            return
        waiter, response = self._waiter, self._response
        idle = waiter is None and response is None
        self._close()
        if response is not None:
            response.error = error
            response.connection = None
            response.wake()
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)
        self._pool.gone(self, idle=idle)

    # ---- writing -----------------------------------------------------------------------------------------------------

    def _write(self, head: bytes, body: bytes, chunked: bool) -> None:
        if chunked:
            body = (_chunk(body) if body else b"") + _LAST_CHUNK
        if len(body) <= _JOIN_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)

    async def _send_pieces(self, body: AsyncIterable[bytes], chunked: bool) -> None:
        async for piece in body:
            if piece:
                self._transport.write(_chunk(piece) if chunked else piece)
            if self._unwritten:
                self._drained = self._loop.create_future()
                await self._drained
        if chunked:
            self._transport.write(_LAST_CHUNK)

    def _pumped(self, pump: asyncio.Task[None]) -> None:
        self._pump = None
        if pump.cancelled():
            return
        error = pump.exception()
        if error is None:
            self._request_written()
        else:
            self.fail(error if isinstance(error, Exception) else httpx.WriteError(f"{type(error).__name__} in a body."))

    def _request_written(self) -> None:
        if self._waiter is not None and not self._unwritten:
            self._allow(self._allowed.first_byte_s)

    def pause_writing(self) -> None:
        self._unwritten = self._transport.get_write_buffer_size() or 1
        if self._waiter is not None:
            self._allow(self._allowed.write_s)

    def resume_writing(self) -> None:
        self._unwritten = 0
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self._waiter is not None:
            self._allow(None if self._pump is not None else self._allowed.first_byte_s)

    # ---- reading -----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        waiter = self._waiter
        if self._response is None if waiter is None else waiter.cancelled():  # idle, given up or closed
            self.fail(httpx.RemoteProtocolError("bytes that nobody waits for"))
            return
        self._arrived = True
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
            if self._overhead > MAX_HEAD_BYTES and not self._complete:
                raise _Refused(f"more than {MAX_HEAD_BYTES} bytes of head or framing")
        except (httptools.HttpParserError, _Refused) as error:
            self._keep = False
            if not self._complete:
                why = error.__context__ if isinstance(error.__context__, _Refused) else error
                self.fail(httpx.RemoteProtocolError(f"{self._pool.origin} sent a malformed response: {why}."))
                return
        response = self._response
        if response is None:
            return
        self._waiter = None
        if self._complete:
            self._finish(response)
        elif response.size > _BUFFER_BYTES and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()
        if waiter is None:
            response.wake()
        elif not waiter.done():
            waiter.set_result(response)

    def resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()

    def wait_for_body(self) -> asyncio.Future[None]:
        self._allow(self._allowed.stall_s)
        return self._loop.create_future()

    def eof_received(self) -> None:
        # Not left to connection_lost, which comes only after the rest of the request is written: perhaps never.
        self._ended(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.lost(self)
        self._ended(exc)
        del self._parser  # it refers back to us

    def _ended(self, exc: Exception | None) -> None:
        response, name = self._response, self._pool.origin
        why = f" ({type(exc).__name__})" if exc is not None else ""
        if self._closed:
            return
        if response is not None and self._until_close and exc is None:
            self._keep = False
            self._finish(response)
            response.wake()
        elif response is not None:
            self.fail(httpx.ReadError(f"{name} closed the connection in the middle of its response{why}."))
        elif self._unwritten or self._pump is not None:
            self.fail(httpx.WriteError(f"{name} closed the connection before it had the whole request{why}."))
        elif exc is not None:
            self.fail(httpx.ReadError(f"{name} reset the connection before it answered{why}."))
        else:
            self.fail(httpx.RemoteProtocolError(f"{name} closed the connection without a complete response."))

    def _finish(self, response: _WireResponse) -> None:
        """The body has ended. The connection is free, whether or not somebody has read all that it brought."""
        self._response = None
        response.connection = None
        if self._keep and self._pump is None and not self._transport.get_write_buffer_size():
            self.resume_reading()
            self._allow(self._keep_s)
            self._pool.free(self)
        else:
            self._close()
            self._pool.gone(self, idle=False)

    # ---- what the parser calls ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._complete:
            raise _Refused("another response behind it")

    def on_status(self, part: bytes) -> None:
        self._reason += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > MAX_HEAD_BYTES:
            raise _Refused(f"more than {MAX_HEAD_BYTES} bytes of headers")
        if self._response is None:  # later ones are trailers
            self._headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status == 101:
            raise _Refused("a change of protocol, which is not supported")
        if status < 200:
            self._informational = True
            self._headers, self._reason = [], b""
            return
        self._keep = self._parser.should_keep_alive()
        self._response = _WireResponse(self, status, self._headers, self._reason)
        for name, value in self._headers:
            if len(name) == 10 and name.lower() == b"keep-alive":
                self._keep_s = _server_keeps_s(value, self._keep_s)
        if self._head_only:
            # The parser cannot be told that no body follows, so this connection ends here.
            self._complete = True
            raise _Refused("no body")
        if not self._keep:
            self._until_close = _ends_with_connection(self._headers)

    def on_body(self, piece: bytes) -> None:
        assert self._response is not None
        self._overhead = 0
        self._response.pieces.append(piece)
        self._response.size += len(piece)

    def on_message_complete(self) -> None:
        self._complete = not self._informational
        self._informational = False

    # ---- time --------------------------------------------------------------------------------------------------------

    def _allow(self, seconds: float | None) -> None:
        """From now on, something must happen within this time.

        The timer is moved only when it would come too late: on a busy connection once in seconds, not per request.
        """
        self._deadline = inf if seconds is None else self._loop.time() + seconds
        if self._deadline < self._timer_at:
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._deadline
        self._timer = None if self._deadline == inf else self._loop.call_at(self._deadline, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer, self._timer_at = None, inf
        name, response = self._pool.origin, self._response
        if self._loop.time() < self._deadline - 0.001:  # timers count in milliseconds
            self._set_timer()
        elif response is not None:
            if response.waiter is not None:  # else the reader is the slow one
                self.fail(httpx.ReadTimeout(f"{name} sent nothing more for {self._allowed.stall_s:g} s."))
        elif self._waiter is None:
            self.fail(httpx.ReadTimeout("idle for long enough"))
        elif not self._unwritten:
            self.fail(httpx.ReadTimeout(f"{name} did not answer within {self._allowed.first_byte_s:g} s."))
        elif (unwritten := self._transport.get_write_buffer_size()) < self._unwritten:
            self._unwritten = unwritten or 1
            self._allow(self._allowed.write_s)
        else:
            self.fail(httpx.WriteTimeout(f"{name} took nothing of the request for {self._allowed.write_s:g} s."))

    def _close(self) -> None:
        self._closed = True
        self._waiter = self._response = None
        if self._timer is not None:
            self._timer.cancel()
        if self._pump is not None:
            self._pump.cancel()
        self._transport.abort()  # close() would first write what is left of the request


_LAST_CHUNK = b"0\r\n\r\n"


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def _server_keeps_s(keep_alive: bytes, otherwise: float) -> float:
    """How long the server lets a connection rest, less a second for the way, by its Keep-Alive header."""
    for part in keep_alive.split(b","):
        name, _, value = part.strip().partition(b"=")
        if name.lower() == b"timeout" and value.isdigit():
            return int(value[:9]) - 1.0
    return otherwise


def _ends_with_connection(headers: Headers) -> bool:
    """Whether the body goes on until the server closes; asked where the connection is not kept (RFC 9112, 6.3)."""
    framing = {name.lower(): value.lower() for name, value in headers}
    coding = framing.get(b"transfer-encoding")
    return b"content-length" not in framing if coding is None else not coding.endswith(b"chunked")
