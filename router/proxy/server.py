"""Serves the proxy: uvicorn with a bound on request heads, request targets kept as they came, nothing added."""

from __future__ import annotations

import logging
import socket
import sys
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..errors import ConfigError
from ..settings import Settings
from .app import check_bind, make_app
from .refusals import Refused, error_body
from .telemetry import log_as_json

_SWITCH_S = 0.001


def serve(settings: Settings) -> None:
    """Until SIGINT or SIGTERM; answers under way may finish then. Raises ConfigError before anything is served."""
    proxy = settings.proxy
    check_bind(proxy)
    app = make_app(settings)
    log_as_json(logging.INFO)
    # Retrieval in a thread must not hold up the event loop for the usual 5 ms at a time.
    sys.setswitchinterval(_SWITCH_S)
    config = uvicorn.Config(
        app,
        host=proxy.host,
        port=proxy.port,
        http=_protocol(proxy.max_head_kb << 10),
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="error",
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=round(proxy.shutdown_s),
        backlog=4096,
    )
    try:
        sockets = [config.bind_socket()]
    except SystemExit:
        raise ConfigError(f"Cannot listen on {proxy.host}:{proxy.port}; is something else listening there?") from None
    _Server(config).run(sockets=sockets)


class _Server(uvicorn.Server):
    """Says where it listens, once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or ():
            host, port = listening.getsockname()[:2]
            place = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            print(f"longroute listens on {place}/v1 · dashboard {place}/longroute", flush=True)


def _protocol(max_head_bytes: int) -> type[HttpToolsProtocol]:
    class Protocol(HttpToolsProtocol):
        """What uvicorn leaves out: a bound on the head, and the request target as it came."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._head_bytes = 0
            self._in_head = True

        def data_received(self, data: bytes) -> None:
            if self._in_head:
                self._head_bytes += len(data)
                if self._head_bytes > max_head_bytes + len(data):
                    self._refuse_head()
                    return
            super().data_received(data)
            if self._in_head and self._head_bytes > max_head_bytes:
                self._refuse_head()

        def on_message_begin(self) -> None:
            self._in_head, self._head_bytes = True, 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._in_head = False
            super().on_headers_complete()
            if self.url.startswith(b"/"):
                self.scope["longroute.target"] = bytes(self.url)  # type: ignore[typeddict-unknown-key]

        def _refuse_head(self) -> None:
            if not self.transport.is_closing():
                body = error_body("", Refused(431, "header_too_large", "The request head is too long."))
                head = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
                self.transport.write(head + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
                self.transport.close()

    return Protocol
