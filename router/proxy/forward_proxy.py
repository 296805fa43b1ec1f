"""Connections through another proxy, which the environment names. httpx's own transport does the work."""

from __future__ import annotations

import ssl
from typing import cast

import httpx

from ..errors import ConfigError
from .pool import origin_of, parse_origin
from .wire import Body, Headers, Response, Timeouts


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
        parsed = parse_origin(url)
        self.host = parsed.netloc
        self._origin = origin_of(parsed)
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
