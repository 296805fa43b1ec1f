"""What the proxy asks of a connection to an upstream: send a request, get a response. Headers and bodies are bytes.

Implemented by `pool.py` (directly) and `forward_proxy.py` (through another proxy); `transport.py` chooses.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import Protocol

import httpx

Headers = list[tuple[bytes, bytes]]  # order, case and duplicates as they came
Body = bytes | AsyncIterable[bytes] | None


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
