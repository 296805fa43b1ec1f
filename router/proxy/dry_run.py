"""`POST /v1/longroute/decide`: what would be done with a request, told without doing it."""

from __future__ import annotations

from typing import cast, get_args

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from ..errors import ConfigError, RouterError
from ..outputs import DecideOutput, decide_output
from ..settings import ProxySettings
from .access import Doorkeeper
from .dashboard.routes import error
from .headers import RequestHead, read_request
from .long_texts import LongTexts
from .routing import Considered, consider, steering_of
from .stopwatch import Stopwatch
from .texts import Api
from .upstreams import Upstream, Upstreams

_MOST_AT_ONCE = 8  # each holds a body; more would only wait for the threads that do the work


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


class DryRun:
    """The endpoint."""

    def __init__(
        self, upstreams: Upstreams, doorkeeper: Doorkeeper, long_texts: LongTexts, settings: ProxySettings
    ) -> None:
        self._upstreams = upstreams
        self._doorkeeper = doorkeeper
        self._long_texts = long_texts
        self._settings = settings
        self._under_way = 0

    async def answer(self, request: Request) -> Response:
        head = read_request(request.scope["headers"])
        if self._doorkeeper.caller(head) is None:
            return error(401, "This needs one of the proxy's client keys.", "key_needed")
        if self._under_way >= _MOST_AT_ONCE:
            return error(503, f"{_MOST_AT_ONCE} dry runs are under way. Try again in a moment.", "busy")
        self._under_way += 1
        try:
            return await self._answered(request, head)
        finally:
            self._under_way -= 1

    async def _answered(self, request: Request, head: RequestHead) -> Response:
        api = request.query_params.get("api")
        if api is not None and api not in get_args(Api):
            return error(400, f"api must be one of {', '.join(get_args(Api))}.", "invalid_api")
        raw, limit_mb = bytearray(), self._settings.max_inspected_mb
        async for piece in request.stream():  # a body in chunks does not say how long it is
            raw += piece
            if len(raw) > limit_mb << 20:
                return error(413, f"The body is longer than {limit_mb} MB.", "body_too_large")
        watch = Stopwatch()
        try:
            considered = await self._long_texts.in_thread(
                lambda: self._considered(bytes(raw), cast(Api | None, api), head.ours, watch)
            )
        except TimeoutError:
            return error(503, f"This took longer than budget_s = {self._settings.budget_s:g}.", "over_budget")
        except RouterError as refusal:
            return error(400, str(refusal), "cannot_decide")
        except Exception as failure:  # a real request would go out as it came
            return error(500, f"{watch.stage} failed ({type(failure).__name__}).", "failed")
        watch.stop()
        return Response(_output(considered, watch).model_dump_json(), media_type="application/json")

    def _considered(self, raw: bytes, api: Api | None, ours: dict[str, str], watch: Stopwatch) -> Considered:
        upstream = self._upstream(raw, ours.get("upstream"))
        return consider(
            raw,
            api,
            upstream.router,
            steering_of(ours, upstream.router),
            watch=watch,
            min_document_tokens=self._settings.min_document_tokens,
            question_last=self._settings.question_last,
            stored_responses=self._settings.stored_responses,
            stream_calls=self._settings.stream_calls,
            upstream=upstream.name,
        )

    def _upstream(self, raw: bytes, name: str | None) -> Upstream:
        try:
            model = orjson.loads(raw).get("model")
        except (orjson.JSONDecodeError, AttributeError):
            raise ConfigError(
                "The body is not a JSON object. Send the request that you would send to the model."
            ) from None
        if name is None:
            return self._upstreams.of_model(model if isinstance(model, str) else "")
        return self._upstreams.named(name)


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
