"""Lean keep-alive connections to one origin.

httpx's own pool costs more CPU per request than all the rest of the proxy together; this one hands bytes through. It
leaves to others: which headers travel on (`Host` included), redirects, cookies, content decoding. Errors are httpx's;
their messages hold no headers and no bodies.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from itertools import zip_longest
from typing import Any

import httpx

from ..errors import ConfigError
from .connection import Connection
from .wire import Body, Headers, Response, Timeouts

_EYEBALLS_S = 0.25  # head start of an address before the next one is tried as well (RFC 8305)


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
        parsed = parse_origin(url)
        self._address = (parsed.raw_host.decode("ascii"), parsed.port or (443 if parsed.scheme == "https" else 80))
        self.host = parsed.netloc
        self.origin = origin_of(parsed)
        self.idle_s = idle_s
        self._timeouts = timeouts or Timeouts()
        self._tls = None
        if parsed.scheme == "https":
            self._tls = ssl_context or httpx.create_ssl_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        self._places = asyncio.Semaphore(max_connections)
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
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

    async def _lease(self, allowed: Timeouts, *, fresh: bool = False) -> Connection:
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

    async def _connect(self, allowed: Timeouts) -> Connection:
        loop, (host, port) = asyncio.get_running_loop(), self._address
        try:
            async with asyncio.timeout(allowed.connect_s):
                sock = await _dial(loop, host, port)
                _, connection = await loop.create_connection(
                    lambda: Connection(self), sock=sock, ssl=self._tls, server_hostname=host if self._tls else None
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

    def opened(self, connection: Connection) -> None:
        self._open.add(connection)

    def free(self, connection: Connection) -> None:
        self._places.release()
        self._idle.append(connection)

    def gone(self, connection: Connection, *, idle: bool) -> None:
        if not idle:
            self._places.release()
        elif connection in self._idle:
            self._idle.remove(connection)

    def lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        if self._emptied is not None and not self._open and not self._emptied.done():
            self._emptied.set_result(None)


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


def parse_origin(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"The URL is {url.rpartition('@')[2]!r}; it must look like 'https://host'.")
    return parsed


def origin_of(url: httpx.URL) -> str:
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
