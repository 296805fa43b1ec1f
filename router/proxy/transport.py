"""Connections to an origin: direct or through the environment's proxy, and the same behind httpx's interface."""

from __future__ import annotations

import ssl
import urllib.request
from typing import cast

import httpx

from .forward_proxy import ProxiedPool
from .pool import Pool, origin_of, parse_origin
from .wire import Body, Sender, Timeouts


def open_pool(
    url: str,
    *,
    timeouts: Timeouts | None = None,
    max_connections: int = 1000,
    ssl_context: ssl.SSLContext | None = None,
) -> Sender:
    """Connections to the origin of this URL: direct, or through the proxy that the environment names for it."""
    parsed = parse_origin(url)
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
            self._pools[key] = open_pool(origin_of(url), max_connections=self._max_connections, ssl_context=self._tls)
        return self._pools[key]
