"""Serves the proxy: uvicorn with bounds on heads and on slow clients, targets kept as they came, nothing added."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..errors import ConfigError
from ..settings import ProxySettings, Settings
from .app import check_bind, make_app
from .refusals import Refused, error_body
from .telemetry import Reason, log_as_json

_SWITCH_S = 0.001
_LEAST_BYTES = 16 << 10  # of a body that go on arriving, in the time that a client may stall


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
        http=_protocol(proxy, app.metrics.rejected),
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


def _protocol(settings: ProxySettings, rejected: Callable[[Reason], None]) -> type[HttpToolsProtocol]:
    max_head_bytes = settings.max_head_kb << 10
    look_every_s = min(settings.client_stall_s, settings.stall_s) / 4

    class Protocol(HttpToolsProtocol):
        """What uvicorn leaves out: bounds on the head and on time, the target as it came, offers that are declined."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._head_bytes = 0
            self._in_head = True
            self._offered = False
            self._in_body = False
            self._since = self._blocked_since = self.loop.time()
            self._received = 0  # of a body, since `_since`
            self._unwritten = 0  # of an answer, when last looked at; 0 while the client keeps up
            self._look: asyncio.TimerHandle | None = None

        # ---- slow clients: each would hold a connection, a place among the requests and an upstream for ever ---------

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._look = self.loop.call_later(look_every_s, self._look_at_progress)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._look is not None:
                self._look.cancel()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._blocked_since, self._unwritten = self.loop.time(), self.transport.get_write_buffer_size()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._unwritten = 0

        def _look_at_progress(self) -> None:
            now = self.loop.time()
            self._look = self.loop.call_later(look_every_s, self._look_at_progress)
            if self._unwritten and (unwritten := self.transport.get_write_buffer_size()) < self._unwritten:
                self._blocked_since, self._unwritten = now, unwritten
            enough = self._received >= _LEAST_BYTES or self.flow.read_paused  # paused: it is the upstream that is slow
            if self._in_body and enough:
                self._since, self._received = now, 0
            answered = self.cycle is None or self.cycle.response_complete  # else the next request may come as it likes
            sends = self._in_body or (self._in_head and answered)
            sends_too_slowly = sends and now - self._since >= settings.client_stall_s
            if sends_too_slowly or (self._unwritten and now - self._blocked_since >= settings.stall_s):
                rejected("slow_client")
                self.transport.abort()

        # ---- requests ------------------------------------------------------------------------------------------------

        def data_received(self, data: bytes) -> None:
            self._received += len(data)
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
            self._in_head, self._in_body = True, False
            self._head_bytes, self._offered = 0, False
            self._since = self.loop.time()
            super().on_message_begin()

        def on_header(self, name: bytes, value: bytes) -> None:
            if not self._in_body:  # else a trailer, which nobody has checked like a header (RFC 9110, 6.5.1)
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._in_head, self._in_body = False, True
            self._since, self._received = self.loop.time(), 0
            self._offered = self.parser.should_upgrade() and self._get_upgrade() not in (None, b"websocket")
            if self._offered:
                return
            super().on_headers_complete()
            if self.url.startswith(b"/"):
                self.scope["longroute.target"] = bytes(self.url)  # type: ignore[typeddict-unknown-key]

        def on_message_complete(self) -> None:
            self._in_body = False
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
                rejected("header_too_large")
                body = error_body("", Refused(431, "header_too_large", "The request head is too long."))
                head = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
                self.transport.write(head + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
                self.transport.close()

    return Protocol
