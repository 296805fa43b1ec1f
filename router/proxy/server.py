"""Serves the proxy: uvicorn with a bound on request heads, request targets kept as they came, nothing added."""

from __future__ import annotations

import logging
import socket
import sys
from typing import Any

import httptools
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
        """What uvicorn leaves out: a bound on the head, the request target as it came, offers that are declined."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._head_bytes = 0
            self._in_head = True
            self._offered = False

        def data_received(self, data: bytes) -> None:
            if self._in_head:
                self._head_bytes += len(data)
                if self._head_bytes > max_head_bytes + len(data):
                    self._refuse_head()
                    return
            self._unset_keepalive_if_required()
            self._feed(data)
            if self._in_head and self._head_bytes > max_head_bytes:
                self._refuse_head()

        def on_message_begin(self) -> None:
            self._in_head, self._head_bytes, self._offered = True, 0, False
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._in_head = False
            self._offered = self.parser.should_upgrade() and self._get_upgrade() not in (None, b"websocket")
            if self._offered:
                return
            super().on_headers_complete()
            if self.url.startswith(b"/"):
                self.scope["longroute.target"] = bytes(self.url)  # type: ignore[typeddict-unknown-key]

        def on_message_complete(self) -> None:
            if not self._offered:
                super().on_message_complete()

        def _feed(self, data: bytes) -> None:
            while data:
                try:
                    self.parser.feed_data(data)
                    return
                except httptools.HttpParserUpgrade as stopped:
                    # The parser takes all behind the head for the other protocol, the request's body too. An offer
                    # may be declined (RFC 9110, 7.8), so the request is read again without it.
                    data = self._without_offer() + data[stopped.args[0] :] if self._offered else b""
                except httptools.HttpParserError:
                    self.send_400_response("Invalid HTTP request received.")
                    return

        def _without_offer(self) -> bytes:
            kept = [b"%b: %b\r\n" % item for item in self.headers if item[0] != b"upgrade"]
            return b"%b %b HTTP/1.1\r\n%b\r\n" % (self.parser.get_method(), self.url, b"".join(kept))

        def _refuse_head(self) -> None:
            if not self.transport.is_closing():
                body = error_body("", Refused(431, "header_too_large", "The request head is too long."))
                head = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
                self.transport.write(head + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
                self.transport.close()

    return Protocol
