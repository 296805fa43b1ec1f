"""One model server over HTTP: its connections, the time allowed for each phase, bounded reads, failures of the wire.

Leaves the shape of requests and replies to the API's own module (`openai.py`), the meaning of refusals to
`complaint.py`, and trying again to `wrappers.py`.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import httpx

from ..core import Call
from ..errors import BackendError, BackendTimeout, BackendUnavailable, BadReply, ConfigError, RouterError
from .complaint import Complaint, parse_complaint, retry_after_s
from .per_loop import PerLoop

MAX_REPLY_BYTES = 64 * 2**20
MAX_COMPLAINT_BYTES = 64 * 2**10
_COMPLAINT_S = 5.0
_PHASES: dict[type[Exception], str] = {
    httpx.ConnectTimeout: "connect_s",
    httpx.WriteTimeout: "write_s",
    httpx.PoolTimeout: "pool_s",
}


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds allowed for each phase of a call. For a limit on the whole call, wrap the backend in `Timeout`.

    first_text_s: from the request until the first text; includes prefill, and the whole generation where the reply is
    not streamed. stall_s: between two pieces of a stream after that. pool_s: for a free connection out of 100.
    """

    connect_s: float = 10.0
    write_s: float = 60.0
    first_text_s: float = 600.0
    stall_s: float = 60.0
    pool_s: float = 60.0


class Endpoint:
    """Sends requests to one server. Keeps one connection pool per event loop, and credentials out of every message."""

    def __init__(
        self, base_url: str, headers: Mapping[str, str], *, key: str, secrets: Sequence[str], timeouts: Timeouts
    ) -> None:
        """key: what a person calls the credentials, for messages; secrets: what messages must not hold."""
        shown = base_url.rpartition("@")[2]  # the part before may be a password
        try:
            url = httpx.URL(base_url)
        except httpx.InvalidURL:
            url = httpx.URL()
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigError(f"base_url is {shown!r}; it must look like 'https://host/v1'.")
        for name, value in headers.items():
            if not (value.isascii() and value.isprintable()):
                raise ConfigError(
                    f"The header {name!r} holds characters that HTTP cannot carry. Check {key} for line breaks, "
                    "typographic quotes or invisible characters."
                )
        self.name = f"{url.scheme}://{url.netloc.decode()}{url.path.rstrip('/')}"
        self.timeouts = timeouts
        self._base_url = base_url.rstrip("/")
        self._headers = dict(headers)
        self._key = key
        self._secrets = tuple(secrets)
        self._clients = PerLoop(self._client)

    async def post(self, path: str, body: Mapping[str, object]) -> httpx.Response:
        """The response, its body not yet read; the caller closes it. Raises BackendError where none arrives."""
        # Lone surrogates, which broken PDFs yield, cannot be sent; a question mark can.
        content = json.dumps(body, ensure_ascii=False).encode(errors="replace")
        client = self._clients.get()
        request = client.build_request(
            "POST", f"{self._base_url}/{path}", content=content, headers={"content-type": "application/json"}
        )
        try:
            return await client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise self.failure(error) from error

    async def read_reply(self, response: httpx.Response) -> bytes:
        """The whole body. Raises BackendError where it breaks off or is longer than MAX_REPLY_BYTES."""
        body = bytearray()
        try:
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > MAX_REPLY_BYTES:
                    raise BadReply(f"{self.name} sent more than {MAX_REPLY_BYTES} bytes; is this a model server?")
        except httpx.HTTPError as error:
            raise self.failure(error) from error
        return bytes(body)

    async def read_complaint(self, response: httpx.Response) -> Complaint:
        """What an error response says, as far as its first bytes tell soon; closes it."""
        body = bytearray()
        try:
            async with asyncio.timeout(_COMPLAINT_S):
                async for piece in response.aiter_bytes():
                    body += piece
                    if len(body) >= MAX_COMPLAINT_BYTES:
                        break
        except (httpx.HTTPError, TimeoutError):
            pass  # the status alone says enough
        finally:
            await response.aclose()
        return parse_complaint(bytes(body[:MAX_COMPLAINT_BYTES]))

    def refusal(self, status: int, complaint: Complaint, call: Call, headers: Mapping[str, str]) -> RouterError:
        """The error for an answer that says no."""
        return complaint.error(
            status,
            call,
            server=self.name,
            key=self._key,
            secrets=self._secrets,
            retry_after_s=retry_after_s(headers, time.time()),
        )

    def failure(self, error: httpx.HTTPError | TimeoutError, *, arrived_chars: int = 0) -> BackendError:
        """The error for a wire that broke or went silent, `arrived_chars` into the answer."""
        after = f" after {arrived_chars} characters of the answer" if arrived_chars else ""
        # Only connecting says something useful and harmless; other texts may hold what was sent.
        reason = f"{type(error).__name__}: {error}" if isinstance(error, httpx.ConnectError) else type(error).__name__
        if isinstance(error, httpx.DecodingError):
            return BadReply(f"{self.name} sent a body that does not decompress ({reason}); look at proxies in between.")
        if isinstance(error, httpx.ConnectError):
            return BackendUnavailable(f"{self.name} cannot be reached ({reason}). Is it running, is base_url right?")
        if isinstance(error, httpx.TimeoutException | TimeoutError):
            phase = _PHASES.get(type(error), "stall_s" if arrived_chars else "first_text_s")
            allowed = getattr(self.timeouts, phase)
            return BackendTimeout(
                f"{self.name} took longer than {allowed:g} s{after}. Raise {phase} in Timeouts, or send less text."
            )
        return BackendUnavailable(f"{self.name} dropped the connection{after} ({reason}). Try again.")

    async def aclose(self) -> None:
        here = asyncio.get_running_loop()
        for loop, client in self._clients.take_all().items():
            if loop is here:
                await client.aclose()
            elif loop.is_running():
                # Not awaited: that loop may be the one that waits for us.
                asyncio.run_coroutine_threadsafe(client.aclose(), loop)

    def _client(self) -> httpx.AsyncClient:
        allowed = self.timeouts
        return httpx.AsyncClient(
            headers=self._headers,
            verify=self._tls,
            timeout=httpx.Timeout(
                connect=allowed.connect_s, read=allowed.first_text_s, write=allowed.write_s, pool=allowed.pool_s
            ),
        )

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return httpx.create_ssl_context()  # reads every root certificate, so once and not per loop
