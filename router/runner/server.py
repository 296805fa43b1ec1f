"""Serves the runner's application: uvicorn, one process, one model. Streams may finish when it is told to stop."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import uvicorn

from ..errors import ConfigError
from .app import make_app
from .local_model import LocalModel

_LOOPBACK = ("localhost", "::1")


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


def serve(model: LocalModel, options: ServerOptions, *, names: Sequence[str] = ()) -> None:
    """Until SIGINT or SIGTERM; answers under way may finish then. The model is closed at the end.

    names: what clients may call the model besides its own name. Raises ConfigError before anything is served.
    """
    check_bind(options)
    logging.basicConfig(level=logging.WARNING)
    config = uvicorn.Config(
        make_app(model, names=names, api_key=options.api_key),
        host=options.host,
        port=options.port,
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="error",
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=round(options.shutdown_s),
        backlog=1024,
    )
    try:
        sockets = [config.bind_socket()]
    except SystemExit:
        raise ConfigError(
            f"Cannot listen on {options.host}:{options.port}; is something else listening there?"
        ) from None
    _Server(config, model.name).run(sockets=sockets)


class _Server(uvicorn.Server):
    """Says where it listens, once it does."""

    def __init__(self, config: uvicorn.Config, model_name: str) -> None:
        super().__init__(config)
        self._model_name = model_name

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or ():
            host, port = listening.getsockname()[:2]
            place = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            print(f"longroute runs {self._model_name} on {place}/v1", flush=True)
