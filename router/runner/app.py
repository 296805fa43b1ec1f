"""The runner as an ASGI application: OpenAI's completions over one local model, its metrics and its health.

Requests are checked in `asked.py` and answered in the words of `answers.py`; this module connects them to the engine.
The status of an answer waits for its first token, so whatever goes wrong before is a proper error even where a stream
was asked for. A client that leaves takes its request along: the engine ends it within one step.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from ipaddress import ip_address
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ..errors import RouterError
from .answers import ChatShape, Json, Shape, TextShape, model_body, usage_body
from .asked import ChatAsked, TextAsked, read_body
from .generation import Done, Draft, Generation, GenerationUsage, Piece, TokenChoice
from .handle import Event, Handle
from .health import Progress
from .local_model import LocalModel
from .metrics import metrics_text
from .refusal import Refusal, refusal_of

USUAL_ANSWER_TOKENS = 2048
"""Longest answer in a conversation where the client sets no limit: the memory for it is set aside beforehand."""

_USUAL_COMPLETION_TOKENS = 16  # OpenAI's own default for plain completions
_MOST_BODY_BYTES = 256 << 20
_log = logging.getLogger(__name__)

Prompt = tuple[tuple[int, ...], Draft | None]


def make_app(model: LocalModel, *, names: Sequence[str] = (), api_key: str | None = None) -> Starlette:
    """names: what clients may call the model besides its own name. The model is closed when the application ends."""
    return _App(model, names, api_key).starlette()


class _App:
    def __init__(self, model: LocalModel, names: Sequence[str], api_key: str | None) -> None:
        self._model = model
        self._names = frozenset((model.name, *names))
        self._key = None if api_key is None else _digest(api_key.encode())
        self._created = int(time.time())
        self._progress = Progress()
        self._requests = 0
        self._refused = 0

    def starlette(self) -> Starlette:
        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            yield
            await asyncio.to_thread(self._model.close)

        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._guarded(self._chat), methods=["POST"]),
                Route("/v1/completions", self._guarded(self._text), methods=["POST"]),
                Route("/v1/models", self._guarded(self._models)),
                Route("/v1/models/{name:path}", self._guarded(self._one_model)),
                Route("/metrics", self._guarded(self._metrics)),
                Route("/healthz", self._health),
            ],
            exception_handlers={HTTPException: _no_such_endpoint},
            lifespan=lifespan,
        )

    # ---- endpoints ----

    async def _chat(self, request: Request) -> Response:
        asked = read_body(ChatAsked, await _json(request))
        self._check_name(asked.model)
        self._check_number(asked.choices)
        tokenizer = self._model.tokenizer
        options = asked.chat_template_kwargs
        ids = await asyncio.to_thread(tokenizer.chat_ids, asked.shown(), options)
        draft = None
        if asked.speculative is not None:
            draft_ids = await asyncio.to_thread(tokenizer.chat_ids, asked.shown_to_drafter(), options)
            draft = Draft(draft_ids, asked.speculative.speculation(self._model.speculation))
        shape = ChatShape(_new_id("chatcmpl"), int(time.time()), self._model.name, self._spelled)
        limit = asked.limit or USUAL_ANSWER_TOKENS
        return self._answer(asked, shape, [(ids, draft)], limit)

    async def _text(self, request: Request) -> Response:
        asked = read_body(TextAsked, await _json(request))
        self._check_name(asked.model)
        self._check_number(len(asked.prompts) * asked.choices)
        speculative, tokenizer = asked.speculative, self._model.tokenizer
        draft = None
        if speculative is not None:
            if not isinstance(speculative.draft, str):
                message = "For plain completions longroute.speculative.draft is a text: the drafter's whole prompt."
                raise Refusal(400, "invalid_type", message, "longroute.speculative.draft")
            draft_ids = await asyncio.to_thread(tokenizer.text_ids, speculative.draft)
            draft = Draft(draft_ids, speculative.speculation(self._model.speculation))
        prompts = [
            (
                await asyncio.to_thread(tokenizer.text_ids, prompt) if isinstance(prompt, str) else tuple(prompt),
                draft,
            )
            for prompt in asked.prompts
        ]
        shape = TextShape(_new_id("cmpl"), int(time.time()), self._model.name, self._spelled)
        return self._answer(asked, shape, prompts, asked.max_tokens or _USUAL_COMPLETION_TOKENS)

    async def _models(self, request: Request) -> Response:
        return _Json({"object": "list", "data": [self._described()]})

    async def _one_model(self, request: Request) -> Response:
        self._check_name(request.path_params["name"])
        return _Json(self._described())

    async def _metrics(self, request: Request) -> Response:
        text = metrics_text(self._model.engine.metrics(), self._requests, self._refused)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def _health(self, request: Request) -> Response:
        health = self._progress.health(self._model.engine.is_alive, self._model.engine.metrics(), time.monotonic())
        return _Json({"status": health, "model": self._model.name}, 200 if health == "ok" else 503)

    # ---- parts ----

    def _guarded(self, endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Asks for the key, where there is one, and turns errors into refusals."""

        async def guarded(request: Request) -> Response:
            self._requests += 1
            try:
                self._check_key(request)
                return await endpoint(request)
            except ClientDisconnect:
                return Response(status_code=499)  # nobody reads it
            except Exception as error:
                self._refused += 1
                return _refused(error)

        return guarded

    def _check_key(self, request: Request) -> None:
        if self._key is None:
            # Open to everybody on this machine; but web pages in a browser here come from elsewhere, be it by a form
            # across origins or by a name that was made to point here.
            places = [request.headers.get("host", "127.0.0.1")]
            if "origin" in request.headers:  # `null`, of a page in a sandbox, is no place of ours either
                places.append(request.headers["origin"].partition("://")[2])
            if not all(map(_is_loopback, places)):
                raise Refusal(403, "foreign_origin", "Web pages may not use this runner; set an api_key to let them.")
            return
        kind, _, shown = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(_digest(shown.strip().encode()), self._key):
            raise Refusal(
                401, "invalid_api_key", "Incorrect API key provided. Send the runner's own as a bearer token."
            )

    def _check_name(self, name: str) -> None:
        if name not in self._names:
            message = f"The model {name[:100]!r} does not exist here; this runner serves {self._model.name!r}."
            raise Refusal(404, "model_not_found", message, "model")

    def _check_number(self, answers: int) -> None:
        most = self._model.engine.options.queue_limit
        if answers > most:
            message = f"The request asks for {answers:,} answers; no more than {most:,} may wait here. Ask for fewer."
            raise Refusal(400, "too_many_answers", message)

    def _described(self) -> Json:
        return model_body(self._model.name, self._created, self._model.context_window)

    def _spelled(self, token: int) -> str:
        return self._model.tokenizer.spelled(token)

    def _answer(
        self,
        asked: ChatAsked | TextAsked,
        shape: Shape,
        prompts: Sequence[Prompt],
        max_tokens: int,
    ) -> Response:
        """Queue every choice of every prompt, all or none."""
        handles: list[Handle] = []
        usual = self._model.usual_sampling(drafted=asked.speculative is not None)
        try:
            for prompt, draft in prompts:
                shared = self._model.shared_head(prompt)
                for choice in range(asked.choices):
                    sampling = asked.sampling(usual, choice)
                    handles.append(
                        self._model.engine.submit(
                            Generation(
                                prompt,
                                sampling,
                                max_tokens,
                                asked.stops,
                                self._model.end_ids,
                                shared_tokens=shared,
                                draft=draft,
                            )
                        )
                    )
        except Exception:
            for handle in handles:
                handle.cancel()
            raise
        return _Answer(handles, asked, shape, self._model.end_ids, self._failed)

    def _failed(self) -> None:
        self._refused += 1


class _Answer(Response):
    """Sends what the engine makes of one or more choices, whole or as a stream, while it watches for the client."""

    def __init__(
        self,
        handles: Sequence[Handle],
        asked: ChatAsked | TextAsked,
        shape: Shape,
        ends: frozenset[int],
        failed: Callable[[], None],
    ) -> None:
        super().__init__()
        self._handles = handles
        self._asked = asked
        self._shape = shape
        self._ends = ends  # tokens that end a text and are not shown
        self._failed = failed
        self._usages: dict[int, GenerationUsage] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        watching = asyncio.create_task(self._leave_with_client(receive))
        try:
            async with aclosing(self._events()) as events:
                first = await anext(events)
                if self._asked.stream:
                    await self._stream(first, events, send)
                else:
                    await (await self._whole(first, events))(scope, receive, send)
        except RouterError as error:
            self._failed()
            await _refused(error)(scope, receive, send)
        finally:
            watching.cancel()

    async def _leave_with_client(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        for handle in self._handles:
            handle.cancel()

    async def _events(self) -> AsyncGenerator[tuple[int, Event], None]:
        """Of all choices, as they come, each with its index. Raises the first error, which ends all of them."""
        arriving: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue()

        async def pass_on(index: int, handle: Handle) -> None:
            try:
                async for event in handle:
                    arriving.put_nowait((index, event))
            except Exception as error:
                arriving.put_nowait((index, error))

        passing = [asyncio.create_task(pass_on(i, handle)) for i, handle in enumerate(self._handles)]
        left = len(passing)
        try:
            while left:
                index, event = await arriving.get()
                if isinstance(event, Exception):
                    raise event
                left -= isinstance(event, Done)
                yield index, event
        finally:
            for handle in self._handles:
                handle.cancel()
            for task in passing:
                task.cancel()

    async def _whole(self, first: tuple[int, Event], events: AsyncIterator[tuple[int, Event]]) -> Response:
        texts, reasons = [""] * len(self._handles), [""] * len(self._handles)
        choices: list[list[TokenChoice]] = [[] for _ in self._handles]
        async for index, event in _chained(first, events):
            texts[index] += event.text
            if isinstance(event, Done):
                reasons[index] = event.reason
                self._usages[index] = event.usage
            else:
                choices[index] += self._shown(event)
        bodies = [
            self._shape.whole_choice(i, text, self._asked_for(choices[i]), reasons[i]) for i, text in enumerate(texts)
        ]
        return _Json(self._shape.whole(bodies, self._usage()))

    async def _stream(self, first: tuple[int, Event], events: AsyncIterator[tuple[int, Event]], send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def say(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": b"data: %b\n\n" % data, "more_body": more})

        for index in range(len(self._handles)):
            if (opening := self._shape.first_chunk(index)) is not None:
                await say(orjson.dumps(opening))
        try:
            async for index, event in _chained(first, events):
                if isinstance(event, Done):
                    self._usages[index] = event.usage
                    if event.text:
                        await say(orjson.dumps(self._shape.chunk(index, event.text, None, None)))
                    await say(orjson.dumps(self._shape.chunk(index, "", None, event.reason)))
                    continue
                shown = self._asked_for(self._shown(event))
                if event.text or shown:
                    await say(orjson.dumps(self._shape.chunk(index, event.text, shown, None)))
        except RouterError as error:  # too late for a status
            self._failed()
            await say(orjson.dumps(refusal_of(error).body()), more=False)
            return
        if self._asked.shows_usage:
            await say(orjson.dumps(self._shape.usage_chunk(self._usage())))
        await say(b"[DONE]", more=False)

    def _shown(self, piece: Piece) -> list[TokenChoice]:
        return [] if piece.choice.token in self._ends else [piece.choice]

    def _asked_for(self, choices: list[TokenChoice]) -> list[TokenChoice] | None:
        return None if self._asked.wanted_logprobs is None else choices

    def _usage(self) -> Json:
        return usage_body([self._usages[i] for i in range(len(self._handles))], self._asked.choices)


class _Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


async def _chained(
    first: tuple[int, Event], events: AsyncIterator[tuple[int, Event]]
) -> AsyncIterator[tuple[int, Event]]:
    yield first
    async for event in events:
        yield event


async def _json(request: Request) -> object:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MOST_BODY_BYTES:
            raise Refusal(413, "body_too_large", f"The body is longer than {_MOST_BODY_BYTES >> 20} MiB.")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, "invalid_json", f"The body is not JSON: {error}.") from None


def _refused(error: Exception) -> Response:
    refusal = refusal_of(error)
    if refusal.code == "internal_error":
        _log.error("A request failed.", exc_info=error)
    return _Json(refusal.body(), refusal.status, refusal.headers)


async def _no_such_endpoint(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}."
    return _Json(Refusal(error.status_code, "no_such_endpoint", message).body(), error.status_code, error.headers)


def _is_loopback(place: str) -> bool:
    """place: a host with or without its port."""
    name = (place if place.endswith("]") else place.rpartition(":")[0] or place).strip("[]").lower()
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def _new_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"


def _digest(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=32).digest()
