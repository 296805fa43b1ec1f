"""The client side of the proxy: lean HTTP/1.1 connections to one origin, with a pool, and httpx's interface over them.

httpx's own pool costs more CPU per request than all the rest of the proxy together; this one parses with httptools and
hands bytes through. It leaves to others: which headers travel on (hop-by-hop headers are the caller's business, `Host`
included), redirects, cookies, content decoding, and talking to forward proxies, which httpx's own transport does.
Errors are httpx's; their messages hold no headers and no bodies.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import urllib.request
from abc import abstractmethod
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from itertools import zip_longest
from math import inf
from typing import Any, Protocol, cast

import httptools
import httpx

from ..errors import ConfigError

Headers = list[tuple[bytes, bytes]]  # order, case and duplicates as they came
Body = bytes | AsyncIterable[bytes] | None

MAX_HEAD_BYTES = 64 * 2**10
_BUFFER_BYTES = 256 * 2**10  # of a response that its reader has not taken yet; reading pauses above
_JOIN_BYTES = 64 * 2**10  # up to here copying a body behind its head is cheaper than a second write
_EYEBALLS_S = 0.25  # head start of an address before the next one is tried as well (RFC 8305)
_RACE_S = 2.0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds allowed for each phase; None is for ever.

    connect_s: for a free place in the pool, and again for the connection with its TLS handshake. write_s: without any
    progress while the request is written. first_byte_s: from the request's end to the head of the response. stall_s:
    between two pieces of its body, while somebody waits for them.
    """

    connect_s: float | None = 10.0
    write_s: float | None = 60.0
    first_byte_s: float | None = 600.0
    stall_s: float | None = 600.0


class Response(httpx.AsyncByteStream):
    """A response whose head has arrived. Iterate over it once for its body, free of transfer codings but not decoded.

    Iteration raises httpx.TransportError, mostly ReadError, where the body breaks off; it never just ends.
    """

    status: int
    headers: Headers
    reason: bytes

    @property
    @abstractmethod
    def body_done(self) -> bool:
        """The whole body is here and none of it was taken, so `body` has all of it and nothing need be awaited."""

    @property
    @abstractmethod
    def body(self) -> bytes:
        """The whole body, where `body_done`."""

    @abstractmethod
    async def __anext__(self) -> bytes:
        """The next piece, as soon as there is one."""

    @abstractmethod
    async def aclose(self) -> None:
        """Closes the connection at once, which tells the server to stop; does nothing once the body has ended."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def read(self, limit: int) -> bytes:
        """The rest of the body. Raises httpx.ReadError, and closes, where that is longer than `limit` bytes."""
        pieces, size = [], 0
        async for piece in self:
            size += len(piece)
            if size > limit:
                await self.aclose()
                raise httpx.ReadError(f"The response is longer than the {limit} bytes allowed.")
            pieces.append(piece)
        return b"".join(pieces)


class Sender(Protocol):
    """What sends requests to one origin. `host` is what its Host header should say."""

    host: bytes

    async def send(
        self, method: bytes, target: bytes, headers: Headers, body: Body, *, timeouts: Timeouts | None = None
    ) -> Response:
        """The response as soon as its head is there; the caller closes it. A body without length is sent in chunks."""

    async def aclose(self) -> None: ...


class _Refused(Exception):
    """Raised in a parser's callback to stop it; the message says what is wrong with the response."""


class _WireResponse(Response):
    def __init__(self, connection: _Connection, status: int, headers: Headers, reason: bytes) -> None:
        self.status = status
        self.headers = headers
        self.reason = reason
        self.pieces: list[bytes] = []
        self.size = 0
        self.connection: _Connection | None = connection  # None once the body has ended, well or badly
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


class _Connection(asyncio.Protocol):
    """One connection: at any time idle, waiting for the head of a response, or receiving its body.

    `_waiter` is set in the second state, `_response` in the third (and, within one call of `data_received`, both).
    """

    def __init__(self, pool: Pool) -> None:
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


class Pool:
    """Keep-alive connections to one origin, the last used first. Belongs to the event loop that uses it.

    url: the origin; a path in it is ignored. idle_s: how long an unused connection is kept where the server does not
    say; below the 5 s after which common servers (uvicorn, Node) close theirs. ssl_context: by default httpx's, which
    heeds SSL_CERT_FILE; either is told to speak HTTP/1.1.
    """

    def __init__(
        self,
        url: str,
        *,
        timeouts: Timeouts | None = None,
        max_connections: int = 1000,
        ssl_context: ssl.SSLContext | None = None,
        idle_s: float = 4.0,
    ) -> None:
        parsed = _parse(url)
        self._address = (parsed.raw_host.decode("ascii"), parsed.port or (443 if parsed.scheme == "https" else 80))
        self.host = parsed.netloc
        self.origin = _origin(parsed)
        self.idle_s = idle_s
        self._timeouts = timeouts or Timeouts()
        self._tls = None
        if parsed.scheme == "https":
            self._tls = ssl_context or httpx.create_ssl_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        self._places = asyncio.Semaphore(max_connections)
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._closed = False
        self._emptied: asyncio.Future[None] | None = None

    async def send(
        self, method: bytes, target: bytes, headers: Headers, body: Body, *, timeouts: Timeouts | None = None
    ) -> Response:
        """The response as soon as its head is there; the caller closes it. A body without length is sent in chunks.

        Raises httpx.ConnectError, ConnectTimeout, PoolTimeout, WriteError, WriteTimeout, ReadError, ReadTimeout,
        RemoteProtocolError; LocalProtocolError where the request itself cannot be sent as it is.
        """
        allowed = timeouts or self._timeouts
        head, chunked = _serialise(method, target, headers, body)
        connection = await self._lease(allowed)
        try:
            return await connection.exchange(method, head, body, chunked, allowed)
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            # A server may close an idle connection just when we use it again; it has not read the request then. It
            # cannot be known for certain, so this is done once, on a new connection, within moments of sending, and
            # never after a byte of response. Browsers and most HTTP clients do the same.
            if self._closed or not connection.lost_race or not (body is None or isinstance(body, bytes)):
                raise
        connection = await self._lease(allowed, fresh=True)
        return await connection.exchange(method, head, body, chunked, allowed)

    async def aclose(self) -> None:
        """Closes every connection, those in use too."""
        self._closed = True
        for connection in list(self._open):
            connection.fail(httpx.ReadError(f"The connections to {self.origin} were closed."))
        if self._open:
            self._emptied = asyncio.get_running_loop().create_future()
            await self._emptied

    async def _lease(self, allowed: Timeouts, *, fresh: bool = False) -> _Connection:
        if self._closed:
            raise RuntimeError(f"The pool of connections to {self.origin} is closed; open another.")
        if self._places.locked():
            try:
                async with asyncio.timeout(allowed.connect_s):
                    await self._places.acquire()
            except TimeoutError:
                raise httpx.PoolTimeout(
                    f"No connection to {self.origin} became free within {allowed.connect_s:g} s; raise max_connections."
                ) from None
        else:
            await self._places.acquire()
        while self._idle and not fresh:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            connection.fail(httpx.ReadTimeout("idle for too long"))
        try:
            return await self._connect(allowed)
        except BaseException:
            self._places.release()
            raise

    async def _connect(self, allowed: Timeouts) -> _Connection:
        loop, (host, port) = asyncio.get_running_loop(), self._address
        try:
            async with asyncio.timeout(allowed.connect_s):
                sock = await _dial(loop, host, port)
                _, connection = await loop.create_connection(
                    lambda: _Connection(self), sock=sock, ssl=self._tls, server_hostname=host if self._tls else None
                )
        except TimeoutError:
            raise httpx.ConnectTimeout(
                f"No connection to {self.origin} in time ({allowed.connect_s} s allowed). Is it up, is the URL right?"
            ) from None
        except OSError as error:  # ssl.SSLError is one
            raise httpx.ConnectError(f"{self.origin} cannot be reached: {error.strerror or error}.") from error
        if not connection.usable:
            raise httpx.ConnectError(f"{self.origin} closed the connection as soon as it was open.")
        return connection

    # ---- what connections tell ---------------------------------------------------------------------------------------

    def opened(self, connection: _Connection) -> None:
        self._open.add(connection)

    def free(self, connection: _Connection) -> None:
        """A response ended and the connection can carry another request."""
        self._places.release()
        self._idle.append(connection)

    def gone(self, connection: _Connection, *, idle: bool) -> None:
        """The connection will not be used again; `idle` says that no request had it."""
        if not idle:
            self._places.release()
        elif connection in self._idle:
            self._idle.remove(connection)

    def lost(self, connection: _Connection) -> None:
        """Its socket is closed."""
        self._open.discard(connection)
        if self._emptied is not None and not self._open and not self._emptied.done():
            self._emptied.set_result(None)


_LAST_CHUNK = b"0\r\n\r\n"


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def _serialise(method: bytes, target: bytes, headers: Headers, body: Body) -> tuple[bytes, bool]:
    """The head of a request, and whether its body goes in chunks. Adds a framing header where there is none."""
    lines = [b"%b %b HTTP/1.1" % (method, target), *[b"%b: %b" % header for header in headers]]
    framing = {name.lower(): value for name, value in headers if len(name) in (14, 17)}
    length = framing.get(b"content-length")
    chunked = b"transfer-encoding" in framing
    if length is None and not chunked and body:
        if isinstance(body, bytes):
            lines.append(b"content-length: %d" % len(body))
        else:
            chunked = True
            lines.append(b"transfer-encoding: chunked")
    elif length is not None and (body is None or isinstance(body, bytes)) and int(length) != len(body or b""):
        # The server would wait for more, or take the rest for another request.
        raise httpx.LocalProtocolError(f"The body has {len(body or b'')} bytes, but its content-length says otherwise.")
    lines += (b"", b"")
    head = b"\r\n".join(lines)
    n_lines = len(lines) - 1
    if head.count(b"\n") != n_lines or head.count(b"\r") != n_lines or b"\0" in head or b" " in target + method:
        raise httpx.LocalProtocolError(
            "A line break, NUL or space stands where HTTP cannot carry it, in the request's method, target or headers."
        )
    return head, chunked


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


def _parse(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"The URL is {url.rpartition('@')[2]!r}; it must look like 'https://host'.")
    return parsed


def _origin(url: httpx.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


async def _dial(loop: asyncio.AbstractEventLoop, host: str, port: int) -> socket.socket:
    """A connected socket by happy eyeballs: addresses of both families in turn, each with a head start over the next.

    Written here because uvloop's create_connection has none.
    """
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    first = [info for info in found if info[0] == found[0][0]]
    other = [info for info in found if info[0] != found[0][0]]
    untried = deque(info for pair in zip_longest(first, other) for info in pair if info is not None)
    attempts: set[asyncio.Task[socket.socket]] = set()
    failure: BaseException = OSError(f"no address for {host}")
    try:
        while untried or attempts:
            if untried:
                attempts.add(loop.create_task(_dial_address(loop, untried.popleft())))
            done, _ = await asyncio.wait(
                attempts, timeout=_EYEBALLS_S if untried else None, return_when=asyncio.FIRST_COMPLETED
            )
            for attempt in done:
                attempts.discard(attempt)
                error = attempt.exception()
                if error is None:
                    return attempt.result()
                failure = error
        raise failure
    finally:
        for attempt in attempts:
            attempt.add_done_callback(_hang_up)
            attempt.cancel()


async def _dial_address(loop: asyncio.AbstractEventLoop, info: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, address = info
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


def _hang_up(attempt: asyncio.Task[socket.socket]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


# ---- through a proxy of the environment ------------------------------------------------------------------------------


class _ProxiedResponse(Response):
    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers = response.headers.raw
        self.reason = response.extensions.get("reason_phrase", b"")
        self._response = response
        self._pieces = aiter(cast(httpx.AsyncByteStream, response.stream))

    @property
    def body_done(self) -> bool:
        return False

    @property
    def body(self) -> bytes:
        raise RuntimeError("The body has to be iterated over: body_done is false.")

    async def __anext__(self) -> bytes:
        return await anext(self._pieces)

    async def aclose(self) -> None:
        await self._response.aclose()


class ProxiedPool:
    """The same over httpx's own pool, slower, for what that does well: a forward proxy and the tunnel through it."""

    def __init__(
        self,
        url: str,
        proxy: str,
        *,
        timeouts: Timeouts | None = None,
        max_connections: int = 1000,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        parsed = _parse(url)
        self.host = parsed.netloc
        self._origin = _origin(parsed)
        self._timeouts = timeouts or Timeouts()
        shown = proxy.rpartition("@")[2]  # the part before may be a password
        try:
            self._transport = httpx.AsyncHTTPTransport(
                proxy=proxy,
                verify=ssl_context or httpx.create_ssl_context(),
                limits=httpx.Limits(max_connections=max_connections, keepalive_expiry=4.0),
            )
        except ImportError:
            raise ConfigError(
                f"The environment says to reach {self._origin} through {shown!r}; for SOCKS run "
                "`pip install 'httpx[socks]'`, or list the host in NO_PROXY."
            ) from None
        except (ValueError, httpx.InvalidURL):
            raise ConfigError(
                f"The environment says to reach {self._origin} through {shown!r}, which is not the URL of a proxy; "
                "correct HTTP_PROXY, HTTPS_PROXY or ALL_PROXY, or list the host in NO_PROXY."
            ) from None

    async def send(
        self, method: bytes, target: bytes, headers: Headers, body: Body, *, timeouts: Timeouts | None = None
    ) -> Response:
        allowed = timeouts or self._timeouts
        limits = {
            "connect": allowed.connect_s,
            "pool": allowed.connect_s,
            "write": allowed.write_s,
            "read": allowed.first_byte_s,
        }
        request = httpx.Request(
            method.decode("ascii"),
            httpx.URL(self._origin).copy_with(raw_path=target),
            headers=headers,
            content=body,
            extensions={"timeout": limits},
        )
        response = await self._transport.handle_async_request(request)
        limits["read"] = allowed.stall_s  # httpcore looks again before it reads the body
        return _ProxiedResponse(response)

    async def aclose(self) -> None:
        await self._transport.aclose()


def open_pool(
    url: str,
    *,
    timeouts: Timeouts | None = None,
    max_connections: int = 1000,
    ssl_context: ssl.SSLContext | None = None,
) -> Sender:
    """Connections to the origin of this URL: direct, or through the proxy that the environment names for it."""
    parsed = _parse(url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parsed.scheme) or proxies.get("all")
    places = (parsed.host, parsed.netloc.decode("ascii"))
    if proxy is None or any(urllib.request.proxy_bypass(place) for place in places):
        return Pool(url, timeouts=timeouts, max_connections=max_connections, ssl_context=ssl_context)
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    return ProxiedPool(url, proxy, timeouts=timeouts, max_connections=max_connections, ssl_context=ssl_context)


# ---- behind httpx ----------------------------------------------------------------------------------------------------


class LeanTransport(httpx.AsyncBaseTransport):
    """The same pools, one per origin, for httpx.AsyncClient(transport=...). Belongs to one event loop.

    Of httpx's timeouts, `pool` counts as `connect`.
    """

    def __init__(self, *, max_connections: int = 1000, ssl_context: ssl.SSLContext | None = None) -> None:
        self._max_connections = max_connections
        self._tls = ssl_context
        self._pools: dict[tuple[str, bytes], Sender] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url, allowed = request.url, request.extensions.get("timeout", {})
        read = allowed.get("read")
        response = await self._pool(url).send(
            request.method.encode("ascii"),
            url.raw_path,
            request.headers.raw,
            request.content if isinstance(request.stream, httpx.ByteStream) else cast(Body, request.stream),
            timeouts=Timeouts(allowed.get("connect"), allowed.get("write"), read, read),
        )
        return httpx.Response(
            response.status, headers=response.headers, stream=response, extensions={"reason_phrase": response.reason}
        )

    async def aclose(self) -> None:
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            await pool.aclose()

    def _pool(self, url: httpx.URL) -> Sender:
        key = (url.scheme, url.netloc)
        if key not in self._pools:
            if url.scheme == "https" and self._tls is None:
                self._tls = httpx.create_ssl_context()  # reads every root certificate, so once
            self._pools[key] = open_pool(_origin(url), max_connections=self._max_connections, ssl_context=self._tls)
        return self._pools[key]
