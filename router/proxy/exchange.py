"""One request under way, with its two ends: the client's, which is ASGI, and the upstream's, which is a connection.

Passes bytes and headers on and changes neither. What to send is decided elsewhere (`gateway.py`, `long_texts.py`).
"""

from __future__ import annotations

import asyncio
import ssl
import time
import uuid
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import httpx

from ..core import Passage, Usage
from .access import Caller
from .calls import UsageReader
from .headers import RequestHead, for_own_call, read_response, unpacked, value_of, with_length
from .refusals import ClientGone, Refused, Unreachable, error_event
from .telemetry import ErrorKind, Metrics, log_upstream_error
from .upstreams import Upstream
from .wire import Headers, Response

READ_BYTES = 16 << 20  # of an answer that must be read before anything can be made of it

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer that has been read to its end. counted: its usage is already in `Exchange.spent`."""

    status: int
    headers: Headers
    body: bytes
    counted: bool = False

    def decoded(self) -> bytes:
        """Raises httpx.DecodingError, an HTTPError, where the body is not what its header says, or a bomb."""
        encoding = value_of(self.headers, b"content-encoding")
        if encoding in (b"", b"identity"):
            return self.body
        if encoding == b"gzip":  # what is asked for where it is to be read here
            unpacking = zlib.decompressobj(zlib.MAX_WBITS | 16)
            try:
                unpacked = unpacking.decompress(self.body, READ_BYTES)
            except zlib.error as error:
                raise httpx.DecodingError("The answer is not gzip as it says.") from error
            if unpacking.unconsumed_tail:
                raise httpx.DecodingError(f"Unpacked, the answer is longer than {READ_BYTES} bytes.")
            return unpacked
        return httpx.Response(200, headers=[(b"content-encoding", encoding)], content=self.body).content


@dataclass(slots=True)
class Exchange:
    """status: of the answer, once it is known. answering: it has begun. finished: the client has all of it.

    opened: its head went out before there was an answer, as a stream that holds nothing but comments yet.

    spent: by calls of a strategy's own, before the one that is answered with, at the price of each one's model.
    calls: sent to the upstream so far, whatever became of them.
    earlier: what one of them replied to the caller's own question, the passages that it had been shown, and whether it
        is an answer.
    held_bytes: of its body, in memory.
    uploaded: set when a body that is passed on in pieces has come to its end; None where it was read whole.
    """

    method: str
    path: str
    target: bytes
    head: RequestHead
    caller: Caller
    receive: Receive
    send: Send
    metrics: Metrics
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    arrived_at: float = field(default_factory=time.time)
    status: int | None = None
    opened: bool = False
    answering: bool = False
    finished: bool = False
    uploaded: asyncio.Event | None = None
    held_bytes: int = 0
    spent: Usage = field(default_factory=lambda: Usage(cost_usd=Decimal(0)))
    calls: int = 0
    earlier: tuple[Whole, tuple[Passage, ...], bool] | None = None

    # ---- the client's end --------------------------------------------------------------------------------------------

    async def receive_piece(self) -> tuple[bytes, bool]:
        """The next piece of the body, and whether there is more. Raises ClientGone."""
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        return message.get("body", b""), message.get("more_body", False)

    @contextmanager
    def until_client_leaves(self) -> Iterator[None]:
        """Cancels what is inside when the client leaves, and turns that into ClientGone."""
        serving = asyncio.current_task()
        assert serving is not None
        left = False

        async def watch() -> None:
            nonlocal left
            if self.uploaded is not None:
                await self.uploaded.wait()  # until then whoever reads the body learns it
            while (await self.receive())["type"] != "http.disconnect":
                pass
            if not self.finished:
                left = True
                serving.cancel()

        watching = asyncio.ensure_future(watch())
        try:
            yield
        except asyncio.CancelledError:
            if not left:
                raise
            serving.uncancel()
            raise ClientGone from None
        finally:
            watching.cancel()

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        self.status, self.answering, self.finished = status, True, True
        if self.opened:
            body = body if _is_stream(status, headers) else error_event(self.path, status, body)
        else:
            await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    @asynccontextmanager
    async def kept_open(self, every_s: float, head: Headers) -> AsyncIterator[None]:
        """A comment into the stream whenever what is inside has taken that long, so that nobody on the way gives up.

        The first one opens the stream, with these headers: then there is no other answer than a stream any more.
        """
        ended = asyncio.Event()

        async def comment() -> None:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(every_s):
                        await ended.wait()
                    return
                if not self.opened:
                    self.opened = True
                    kind = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
                    await self.send({"type": "http.response.start", "status": 200, "headers": kind + head})
                await self.send({"type": "http.response.body", "body": b": longroute\n\n", "more_body": True})

        commenting = asyncio.ensure_future(comment())
        try:
            yield
        finally:
            ended.set()
            await commenting  # not cancelled: half a head would be the end of the connection

    async def relay(
        self, upstream: Upstream, response: Response | Whole, extra: Headers, reader: UsageReader | None = None
    ) -> None:
        """Hand an answer on as it comes. Where it breaks off, so does ours: the client must see it."""
        headers = read_response(response.headers)
        if extra:  # a proxy behind this one may say the same of itself
            named = {name for name, _ in extra}
            headers = [item for item in headers if item[0].lower() not in named] + extra
        if self.opened and not isinstance(response, Whole) and not _is_stream(response.status, response.headers):
            response = await self.whole(upstream, response)
        if isinstance(response, Whole) or response.body_done:
            if reader is not None:
                reader.feed(response.body)
            plain = response.decoded() if self.opened and isinstance(response, Whole) else response.body
            await self.answer(response.status, headers, plain)
            return
        self.status, self.answering = response.status, True
        try:
            if not self.opened:
                await self.send({"type": "http.response.start", "status": response.status, "headers": headers})
            async for piece in response:
                if reader is not None:
                    reader.feed(piece)
                await self.send({"type": "http.response.body", "body": piece, "more_body": True})
        except httpx.HTTPError as error:
            self.note(upstream, error)
            raise ClientGone from None  # nothing can be said any more; the server cuts the connection
        finally:
            await response.aclose()
        self.finished = True
        await self.send({"type": "http.response.body", "body": b""})

    # ---- the upstream's end ------------------------------------------------------------------------------------------

    async def whole(self, upstream: Upstream, response: Response) -> Whole:
        """The answer, read to its end. Raises Refused where it breaks off."""
        try:
            return Whole(response.status, response.headers, await response.read(READ_BYTES))
        except httpx.HTTPError as error:
            self.note(upstream, error)
            raise Refused(502, None, f"The upstream {upstream.name!r} broke off an answer.") from None

    async def ask(
        self,
        upstream: Upstream,
        body: bytes | AsyncIterator[bytes],
        length: int | None = None,
        *,
        own: bool = False,
    ) -> Response:
        """The upstream's answer, its body not yet read. Raises Refused where there is none.

        length: of a body that is not the one that came. own: the answer is to be read here, not only handed on.
        """
        headers = self.head.forwarded
        if length is not None:
            headers = for_own_call(headers, length) if own else with_length(headers, length)
        if self.opened and not own:
            headers = unpacked(headers)
        self.calls += 1
        try:
            return await upstream.pool.send(
                self.method.encode("ascii"),
                upstream.target(self.target),
                [(b"host", upstream.pool.host), *headers],
                body,
            )
        except httpx.HTTPError as error:
            self.note(upstream, error)
            name = f"The upstream {upstream.name!r}"
            if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
                raise Refused(504, None, f"{name} did not answer in time ({type(error).__name__}).") from None
            refused = Unreachable if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) else Refused
            raise refused(502, None, f"{name} cannot be reached or broke off ({_why(error)}).") from None

    def note(self, upstream: Upstream, error: httpx.HTTPError) -> None:
        kind = next(kind for cause, kind in _KINDS if isinstance(error, cause))
        if kind == "connect" and isinstance(_system_error(error), ssl.SSLError):
            kind = "tls"
        self.metrics.upstream_error(upstream.name, kind)
        log_upstream_error(self.id, upstream.name, kind, error)


def _is_stream(status: int, headers: Headers) -> bool:
    return status == 200 and b"event-stream" in value_of(headers, b"content-type")


def _why(error: httpx.HTTPError) -> str:
    """For whoever asked: the kind of error, and what the system says of it. Neither can quote a request."""
    system = _system_error(error)
    if isinstance(system, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {system.verify_message}"
    if isinstance(system, ssl.SSLError):
        return f"no TLS connection: {system.reason}"
    said = system.strerror if system is not None else None
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _system_error(error: BaseException | None) -> OSError | None:
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


_KINDS: tuple[tuple[type[httpx.HTTPError], ErrorKind], ...] = (
    (httpx.TimeoutException, "timeout"),
    (httpx.ConnectError, "connect"),
    (httpx.ProtocolError, "protocol"),
    (httpx.HTTPError, "reset"),
)
