"""The proxy as one ASGI application: our own endpoints, and the gateway for all other paths.

`make_app` wires it from settings; `server.py` serves it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..assemble import Router, make_profiles, make_retriever
from ..core import ModelProfile, Prefer
from ..errors import ConfigError, RouterError
from ..outputs import DecideOutput, decide_output
from ..settings import ProxySettings, Settings
from .access import Doorkeeper
from .dashboard.routes import Viewer, error, routes
from .exchange import Receive, Scope, Send
from .gateway import Gateway
from .headers import RequestHead, read_request
from .long_texts import LongTexts
from .openapi import describe
from .records import DecisionLog
from .routing import AUTO, OFF, Considered, Steering, consider
from .saving import measured
from .stopwatch import Stopwatch
from .telemetry import Metrics
from .texts import Api
from .upstreams import Upstreams, open_upstream
from .wire import Timeouts

_UNKNOWN_WINDOW = 10_000_000
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")


class LocatedOutput(BaseModel):
    """A document in the request: characters `start` to `end` of the string at `path`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    document: str
    path: list[str | int]
    start: int
    end: int


class ProxyDecideOutput(BaseModel):
    """`POST /v1/longroute/decide`: what would be done with this request, and why. Nothing is sent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = 1
    strategy: str = Field(description="off: the request would be left as it is.")
    reason: str
    api: str
    shape: str = Field(description="How the long text was located; empty where none was.")
    question: str = Field(description="The request's own words; empty where no long text was located.")
    documents: list[LocatedOutput]
    tokens_before: int | None = Field(description="Estimated prompt tokens as the request stands.")
    tokens_after: int | None = Field(description="The same as it would be sent.")
    passages: list[LocatedOutput] = Field(description="What would be shown, with offsets in the document's text.")
    decision: DecideOutput | None
    timings_s: dict[str, float]


class App:
    """Ours where the path is ours, else the upstream's."""

    def __init__(self, gateway: Gateway, own: Starlette, guard: Callable[[Scope], Response | None]) -> None:
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
                max_connections=2 * proxy.max_concurrency,
            )
            for upstream in proxy.upstreams
        ]
    )
    doorkeeper = Doorkeeper(proxy)
    log = DecisionLog(proxy.decisions_kept)
    metrics = Metrics(lambda: measured(log.recent(log.limit, None)))
    long_texts = LongTexts(proxy, log, metrics)
    gateway = Gateway(upstreams, proxy, doorkeeper=doorkeeper, long_texts=long_texts, metrics=metrics)
    own_keys = any(upstream.key for upstream in upstreams.all)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await upstreams.aclose()
        await long_texts.aclose()

    def authorise(request: Request) -> Viewer | Response:
        caller = doorkeeper.caller(_head(request))
        # Where nobody has a name, the id of a decision is as good as a key to it.
        if caller is None or not (caller.admin or caller.name or "id" in request.path_params):
            return error(401, "This needs a key: the admin's, or a client's for its own decisions.", "key_needed")
        return Viewer(caller.name, caller.admin)

    async def decide(request: Request) -> Response:
        if doorkeeper.caller(_head(request)) is None:
            return error(401, "This needs one of the proxy's client keys.", "key_needed")
        api = request.query_params.get("api")
        if api is not None and api not in get_args(Api):
            return error(400, f"api must be one of {', '.join(get_args(Api))}.", "invalid_api")
        raw = bytearray()
        async for piece in request.stream():  # a body in chunks does not say how long it is
            raw += piece
            if len(raw) > proxy.max_inspected_mb << 20:
                return error(413, f"The body is longer than {proxy.max_inspected_mb} MB.", "body_too_large")
        ours, watch = _head(request).ours, Stopwatch()
        steering = Steering(ours.get("strategy"), ours.get("prefer"))
        try:
            considered = await long_texts.in_thread(
                lambda: _decided(bytes(raw), api, upstreams, steering, proxy, watch)  # type: ignore[arg-type]
            )
        except TimeoutError:
            return error(503, f"This took longer than budget_s = {proxy.budget_s:g}.", "over_budget")
        except RouterError as refusal:
            return error(400, str(refusal), "cannot_decide")
        except Exception as failure:  # a real request would go out as it came
            return error(500, f"{watch.stage} failed ({type(failure).__name__}).", "failed")
        watch.stop()
        return Response(_output(considered, watch).model_dump_json(), media_type="application/json")

    async def healthy(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(request: Request) -> Response:
        return JSONResponse({"status": "ready", "upstreams": [upstream.name for upstream in upstreams.all]})

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
            Route("/v1/longroute/decide", decide, methods=["POST"]),
            Route("/v1/longroute/openapi.json", describe_ours),
            Route("/healthz", healthy),
            Route("/readyz", ready),
        ],
        exception_handlers={HTTPException: refuse},
        lifespan=lifespan,
    )
    return App(gateway, own, partial(_guard, doorkeeper.open and own_keys))


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
    host = headers.get(b"host", b"127.0.0.1").decode("latin-1")
    origin = headers.get(b"origin", b"").decode("latin-1").partition("://")[2]
    if all(_name(place) in _LOOPBACK for place in (host, origin) if place):
        return None
    return error(403, "Web pages may not use this proxy's keys. Set client_keys to let them in.", "foreign_origin")


def _name(place: str) -> str:
    return place if place.endswith("]") else place.rpartition(":")[0] or place


def _head(request: Request) -> RequestHead:
    return read_request(request.scope["headers"])


def _decided(
    raw: bytes, api: Api | None, upstreams: Upstreams, steering: Steering, proxy: ProxySettings, watch: Stopwatch
) -> Considered:
    upstream = upstreams.of_model(_model(raw))
    known = (OFF, AUTO, *upstream.router.strategies)
    if steering.strategy is not None and steering.strategy not in known:
        raise ConfigError(f"x-longroute-strategy names no strategy. Known: {', '.join(known)}.")
    if steering.prefer is not None and steering.prefer not in get_args(Prefer):
        raise ConfigError(f"x-longroute-prefer must be one of {', '.join(get_args(Prefer))}.")
    return consider(
        raw,
        api,
        upstream.router,
        steering,
        watch=watch,
        min_document_tokens=proxy.min_document_tokens,
        question_last=proxy.question_last,
        upstream=upstream.name,
    )


def _model(raw: bytes) -> str:
    import orjson

    try:
        model: Any = orjson.loads(raw).get("model")
    except (orjson.JSONDecodeError, AttributeError):
        raise ConfigError("The body is not a JSON object. Send the request that you would send to the model.") from None
    return model if isinstance(model, str) else ""


def _output(considered: Considered, watch: Stopwatch) -> ProxyDecideOutput:
    located, conversation = considered.located, considered.conversation
    documents = {
        document.id: LocatedOutput(document=document.id, path=list(place.path), start=place.start, end=place.end)
        for document, place in (zip(located.documents, located.places, strict=True) if located else ())
    }
    return ProxyDecideOutput(
        strategy=considered.strategy,
        reason=considered.reason,
        api=conversation.api if conversation else "",
        shape=located.shape if located else "",
        question=located.question if located else "",
        documents=list(documents.values()),
        tokens_before=considered.tokens_before,
        tokens_after=considered.tokens_after,
        passages=[
            LocatedOutput(document=p.document_id, path=documents[p.document_id].path, start=p.start, end=p.end)
            for p in considered.shown
        ],
        decision=decide_output(considered.decision) if considered.decision else None,
        timings_s=dict(watch.timings_s.items()),
    )
