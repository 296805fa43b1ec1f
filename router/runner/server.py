"""Serves the runner's application: uvicorn, one process, one model.

The port is taken before the model is loaded, so that a port in use is told at once and health checks have an answer:
`loading`. Streams may finish when the server is told to stop; at a second signal it waits for nobody.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

import uvicorn
from starlette.responses import JSONResponse

from ..errors import ConfigError
from .app import make_app
from .local_model import LocalModel
from .refusal import Refusal

_LOOPBACK = ("localhost", "::1")
_LAST_WORDS_S = 5  # after shutdown_s, to tell clients that their answers end here
_LOADING = Refusal(503, "loading", "The model is being loaded. Come back in a moment.")


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """port 0 takes a free one. api_key: what callers must show; needed for any host but loopback.

    shutdown_s: how long answers under way may take to finish at the end.
    """

    host: str = "127.0.0.1"
    port: int = 8200
    api_key: str | None = None
    shutdown_s: float = 60.0


def check_bind(options: ServerOptions) -> None:
    """Raises ConfigError for an address that strangers reach without a key."""
    if options.host not in _LOOPBACK and not options.host.startswith("127.") and not options.api_key:
        raise ConfigError(
            f"host = {options.host!r} is reachable from other machines, and there is no api_key. Set "
            "LONGROUTE_RUNNER__API_KEY, or listen on 127.0.0.1."
        )


def serve(load: Callable[[], LocalModel], options: ServerOptions, *, names: Sequence[str] = ()) -> None:
    """Until SIGINT or SIGTERM; answers under way may finish then. The model is closed at the end.

    load: makes the model, which may take minutes. names: what clients may call the model besides its own name.
    Raises ConfigError where the address cannot be had, before anything is loaded, and whatever `load` raises.
    """
    check_bind(options)
    logging.basicConfig(level=logging.WARNING)
    listening = _listen(options)
    opening = _Opening(load, names, options.api_key)
    config = uvicorn.Config(
        opening,
        host=options.host,
        port=options.port,
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="error",
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=round(options.shutdown_s) + _LAST_WORDS_S,
    )
    _Server(config, opening, options.shutdown_s).run(sockets=[listening])
    if opening.failure is not None:
        raise opening.failure


def _listen(options: ServerOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:  # the latter for ports beyond 65,535
        reason = str(getattr(error, "strerror", None) or error).partition(" (")[0]  # the address comes in there again
        raise ConfigError(
            f"Cannot listen on {options.host}:{options.port}: {reason}. Choose another --port or --host, or stop what "
            "listens there."
        ) from error


class _Opening:
    """The ASGI application while the model is loaded, and the runner's own from then on."""

    def __init__(self, load: Callable[[], LocalModel], names: Sequence[str], api_key: str | None) -> None:
        self.model: LocalModel | None = None
        self.failure: BaseException | None = None
        self._load = load
        self._names, self._api_key = names, api_key
        self._app: Any = None

    def start(self, opened: Callable[[], None]) -> None:
        """Begin to load. opened: called on the event loop when the model is there, or when it could not be loaded."""
        loop = asyncio.get_running_loop()

        def run() -> None:
            try:
                self.model = self._load()
            except BaseException as error:  # told where the server was started from
                self.failure = error
            with suppress(RuntimeError):  # the loop is closed: the server was stopped meanwhile
                loop.call_soon_threadsafe(opened)

        # A daemon, as nobody who stops the server wants to wait for weights.
        threading.Thread(target=run, name="longroute-load", daemon=True).start()

    def open(self, model: LocalModel) -> None:
        self._app = make_app(model, names=self._names, api_key=self._api_key)

    def close(self) -> None:
        if self.model is not None:
            self.model.close()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._app is not None:
            await self._app(scope, receive, send)
        elif scope["path"] == "/healthz":
            await JSONResponse({"status": "loading"}, 503)(scope, receive, send)
        else:
            await JSONResponse(_LOADING.body(), _LOADING.status, _LOADING.headers)(scope, receive, send)


class _Server(uvicorn.Server):
    """Loads the model once it listens, and says where it listens once that is done."""

    def __init__(self, config: uvicorn.Config, opening: _Opening, shutdown_s: float) -> None:
        super().__init__(config)
        self._opening = opening
        self._shutdown_s = shutdown_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._opening.start(lambda: self._opened(sockets or []))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        # A closed model ends what is still under way with an error that clients can read.
        loop.call_later(self._shutdown_s, lambda: loop.run_in_executor(None, self._opening.close))
        await super().shutdown(sockets)
        if not self.force_exit:
            await asyncio.to_thread(self._opening.close)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:  # the second signal, whichever it is
            self.force_exit = True
            sig = signal.SIGTERM  # raised again at the end, it ends the process; SIGINT would wait for threads
        super().handle_exit(sig, frame)

    def _opened(self, sockets: Sequence[socket.socket]) -> None:
        model = self._opening.model
        if model is None:
            self.should_exit = True
            return
        self._opening.open(model)
        for listening in sockets:
            host, port = listening.getsockname()[:2]
            place = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            print(f"longroute runs {model.name} on {place}/v1", flush=True)
