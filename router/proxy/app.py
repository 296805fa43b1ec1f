"""The proxy as one ASGI application: our own endpoints, and the gateway for all other paths.

`make_app` wires it from settings; `server.py` serves it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from ipaddress import ip_address

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..assemble import Router, make_profiles, make_retriever
from ..core import ModelProfile
from ..errors import ConfigError
from ..settings import ProxySettings, Settings
from .access import Doorkeeper
from .dashboard.routes import Viewer, error, routes
from .dry_run import DryRun, ProxyDecideOutput
from .exchange import Receive, Scope, Send
from .gateway import Gateway
from .headers import read_request
from .long_texts import LongTexts
from .openapi import describe
from .records import DecisionLog
from .saving import measured
from .telemetry import Metrics
from .turns import Turns
from .upstreams import Upstreams, open_upstream
from .wire import Timeouts

_UNKNOWN_WINDOW = 10_000_000
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")


class App:
    """Ours where the path is ours, else the upstream's."""

    def __init__(
        self, gateway: Gateway, own: Starlette, guard: Callable[[Scope], Response | None], metrics: Metrics
    ) -> None:
        self.metrics = metrics
        self._gateway = gateway
        self._own = own
        self._guard = guard
        self._paths = frozenset(route.path for route in own.routes if isinstance(route, Route))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if (refusal := self._guard(scope)) is not None:
                await refusal(scope, receive, send)
                return
            path = scope["path"]
            if path not in self._paths and not path.startswith("/v1/longroute/"):
                await self._gateway(scope, receive, send)
                return
        await self._own(scope, receive, send)


def make_app(settings: Settings) -> App:
    """Raises ConfigError where the settings cannot work."""
    proxy = settings.proxy
    retriever = make_retriever(settings)  # one for all upstreams: it holds the embedding model
    profile_of = partial(_trusting, make_profiles(settings))
    timeouts = Timeouts(proxy.connect_s, first_byte_s=proxy.first_byte_s, stall_s=proxy.stall_s)
    upstreams = Upstreams(
        [
            open_upstream(
                upstream,
                Router(settings, retriever=retriever, profile_of=profile_of),
                timeouts,
                max_connections=proxy.max_concurrency + proxy.max_calls,
            )
            for upstream in proxy.upstreams
        ]
    )
    doorkeeper = Doorkeeper(proxy)
    log = DecisionLog(proxy.decisions_kept)
    turns = Turns(proxy.max_calls)
    metrics = Metrics(lambda: measured(log.recent(log.limit, None)), lambda: turns.waiting)
    long_texts = LongTexts(proxy, log, metrics, turns)
    gateway = Gateway(upstreams, proxy, doorkeeper=doorkeeper, long_texts=long_texts, metrics=metrics)
    warm = asyncio.Event()
    own_keys = any(upstream.key for upstream in upstreams.all)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        warming = asyncio.create_task(long_texts.warm_up(upstreams.all[0].router))
        warming.add_done_callback(lambda done: warm.set())
        yield
        warming.cancel()
        await upstreams.aclose()
        await long_texts.aclose()

    def authorise(request: Request) -> Viewer | Response:
        caller = doorkeeper.caller(read_request(request.scope["headers"]))
        # Where nobody has a name, the id of a decision is as good as a key to it.
        if caller is None or not (caller.admin or caller.name or "id" in request.path_params):
            return error(401, "This needs a key: the admin's, or a client's for its own decisions.", "key_needed")
        return Viewer(caller.name, caller.admin)

    async def healthy(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(request: Request) -> Response:
        """Requests are served before, too; but the first long ones would go out as they came."""
        status = "ready" if warm.is_set() else "warming up"
        names = [upstream.name for upstream in upstreams.all]
        return JSONResponse({"status": status, "upstreams": names}, 200 if warm.is_set() else 503)

    strategies = sorted({name for upstream in upstreams.all for name in upstream.router.strategies})
    description = describe(
        ProxyDecideOutput,
        strategies=strategies,
        client_keys=bool(proxy.client_keys),
        admin_key=proxy.admin_key is not None,
    )

    async def describe_ours(request: Request) -> Response:
        return JSONResponse(description)

    async def refuse(request: Request, refusal: Exception) -> Response:
        assert isinstance(refusal, HTTPException)
        message = f"{request.method} {request.url.path}: {refusal.detail}."
        answer = error(refusal.status_code, message, "no_such_endpoint")
        answer.headers.update(refusal.headers or {})
        return answer

    own = Starlette(
        routes=[
            *routes(log, metrics, authorise),
            Route("/v1/longroute/decide", DryRun(upstreams, doorkeeper, long_texts, proxy).answer, methods=["POST"]),
            Route("/v1/longroute/openapi.json", describe_ours),
            Route("/healthz", healthy),
            Route("/readyz", ready),
        ],
        exception_handlers={HTTPException: refuse},
        lifespan=lifespan,
    )
    return App(gateway, own, partial(_guard, doorkeeper.open and own_keys), metrics)


def check_bind(settings: ProxySettings) -> None:
    """Raises ConfigError for an address that strangers reach without a key."""
    if settings.host not in _LOOPBACK and not settings.host.startswith("127.") and not settings.client_keys:
        raise ConfigError(
            f"host = {settings.host!r} is reachable from other machines, and there are no client_keys. Set at least "
            "one in [proxy.client_keys], or listen on 127.0.0.1."
        )


# ---- parts -----------------------------------------------------------------------------------------------------------


def _trusting(profile_of: Callable[[str], ModelProfile], name: str) -> ModelProfile:
    """Who sends a long text to a model that we do not know takes it to fit; we know no better."""
    profile = profile_of(name)
    return replace(profile, context_window=_UNKNOWN_WINDOW) if profile.source.startswith("assumed") else profile


def _guard(spends_our_keys: bool, scope: Scope) -> Response | None:
    """Without client keys whoever connects spends the proxy's own keys: then no web page may, by rebinding a name or
    by posting a form across origins."""
    if not spends_our_keys:
        return None
    headers = dict(scope["headers"])
    places = [headers.get(b"host", b"127.0.0.1").decode("latin-1")]
    if b"origin" in headers:  # `null`, of a page in a sandbox, is no place of ours either
        places.append(headers[b"origin"].decode("latin-1").partition("://")[2])
    if all(_is_loopback(place) for place in places):
        return None
    return error(403, "Web pages may not use this proxy's keys. Set client_keys to let them in.", "foreign_origin")


def _is_loopback(place: str) -> bool:
    """place: a host with or without its port."""
    name = (place if place.endswith("]") else place.rpartition(":")[0] or place).lower()
    try:
        return name == "localhost" or ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
