"""The door of the proxy: lets a request in, finds its upstream, and sends it on, as it came or by `long_texts.py`.

    admit ──▶ read the body ──▶ choose the upstream ──▶ short or not ours: pass on
                                                    └─▶ long: look at it

Most requests are short: their bodies are never parsed (but for the model's name, where there are several upstreams).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson

from ..errors import ConfigError
from ..settings import ProxySettings
from .access import Caller, Doorkeeper, RateLimit
from .exchange import Exchange, Receive, Scope, Send
from .headers import RequestHead, ours, read_request, with_key
from .long_texts import LongTexts
from .refusals import ClientGone, Refused, error_body
from .routing import OFF, Steering, steering_of
from .telemetry import Metrics, log_fail_open
from .texts import Api
from .upstreams import Upstream, Upstreams
from .wire import Headers

_BYTES_PER_TOKEN = 4
_SMALL_BODY = 64 << 10
_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]{1,200})"')
_MODEL_PART = re.compile(rb'name="?model"?\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]{1,200})\r\n')
_ABOUT_THE_ANSWER = (b"accept-encoding", b"if-none-match", b"if-modified-since", b"range", b"content-length")
_MODEL_LIST_BYTES = 16 << 20
_HELD_FACTOR = 8  # bodies, those still arriving too, together hold about this many times the longest one


class Gateway:
    """Everything that is an upstream's, as an ASGI application."""

    def __init__(
        self,
        upstreams: Upstreams,
        settings: ProxySettings,
        *,
        doorkeeper: Doorkeeper,
        long_texts: LongTexts,
        metrics: Metrics,
    ) -> None:
        self._upstreams = upstreams
        self._settings = settings
        self._doorkeeper = doorkeeper
        self._long_texts = long_texts
        self._metrics = metrics
        self._rate = RateLimit(settings.requests_per_minute)
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._metrics.in_flight += 1
        exchange = None
        try:
            exchange = self._admit(scope, receive, send)
            await self._serve(exchange)
        except Refused as refusal:
            await self._refuse(scope, send, refusal, exchange)
        except ConfigError as error:  # an upstream, strategy or preference that there is not
            await self._refuse(scope, send, Refused(400, "bad_request", str(error)), exchange)
        except ClientGone:
            pass  # without an end of the answer, the server closes the connection
        except Exception as error:  # ours; its message may quote the request, so the server must not print it
            log_fail_open(exchange.id if exchange else "", "relay", error)
            await self._refuse(scope, send, Refused(500, None, "The proxy failed. Try again."), exchange)
        finally:
            self._metrics.in_flight -= 1
            if exchange is not None:
                self._held_bytes -= exchange.held_bytes

    def _admit(self, scope: Scope, receive: Receive, send: Send) -> Exchange:
        """Raises Refused."""
        settings, head = self._settings, read_request(scope["headers"])
        caller = self._doorkeeper.caller(head)
        if caller is None and _is_preflight(scope["method"], head):
            caller = Caller()  # browsers ask without a key whether they may show one
        if caller is None:
            raise Refused(401, "key", "This proxy asks for a key. Send one of its client keys as a bearer token.")
        if self._metrics.in_flight > settings.max_concurrency:
            raise Refused(503, "concurrency", "As many requests as allowed are under way.", retry_after_s=1)
        wait_s = self._rate.wait_s(caller.name or (scope.get("client") or ("",))[0])
        if wait_s:
            raise Refused(429, "rate_limit", "This client has sent too many requests.", retry_after_s=wait_s)
        if head.length is not None and head.length > settings.max_body_mb << 20:
            raise Refused(413, "body_too_large", f"The body is longer than {settings.max_body_mb} MB.")
        if head.coded:
            raise Refused(
                501, "bad_request", "Of transfer codings the proxy knows chunks alone. Send the body in those."
            )
        if head.websocket:
            raise Refused(
                501, "bad_request", "The proxy carries no WebSockets. Connect to the upstream directly, or use HTTP."
            )
        if caller.key_in in (b"authorization", b"x-api-key"):
            head.forwarded = with_key(head.forwarded, "")  # our key is nobody else's business
        target = scope.get("longroute.target") or _target(scope)
        return Exchange(scope["method"], scope["path"], target, head, caller, receive, send, self._metrics)

    async def _serve(self, exchange: Exchange) -> None:
        head = exchange.head
        api = _api(exchange)
        by_model = self._upstreams.only is None and "upstream" not in head.ours
        unread = api is None and not (by_model and _is_json(head))
        limit = _SMALL_BODY if unread else self._settings.max_inspected_mb << 20
        body, rest = await self._read(exchange, limit, _SMALL_BODY if by_model else 0)
        upstream = self._upstream(exchange, body)
        if upstream is None:
            if await self._models(exchange):
                return
            upstream = self._upstreams.all[0]  # none has a list: the first one says why
        if upstream.key and not _is_preflight(exchange.method, head):
            head.forwarded = with_key(head.forwarded, upstream.key, anthropic=exchange.path.startswith("/v1/messages"))
        steering = steering_of(head.ours, upstream.router)
        if rest is not None:
            exchange.uploaded = asyncio.Event()
            with exchange.until_client_leaves():
                await self._pass_on(exchange, upstream, api, _joined(body, rest))
        elif api is not None and self._worth_a_look(head, body, steering):
            with exchange.until_client_leaves():
                try:
                    await self._long_texts.serve(exchange, upstream, api, body, steering)
                except (Refused, ClientGone):
                    raise
                except Exception as error:
                    if exchange.answering:
                        raise
                    log_fail_open(exchange.id, "relay", error)
                    await self._pass_on(exchange, upstream, api, body)
        else:
            with exchange.until_client_leaves():
                await self._pass_on(exchange, upstream, api, body)

    async def _pass_on(
        self, exchange: Exchange, upstream: Upstream, api: Api | None, body: bytes | AsyncIterator[bytes]
    ) -> None:
        try:
            # A body that came in chunks has been put together: its length is known now.
            length = len(body) if isinstance(body, bytes) and body and exchange.head.length is None else None
            response = await exchange.ask(upstream, body, length)
            await exchange.relay(upstream, response, [])
        except Refused as refusal:
            exchange.status = refusal.status
            raise
        finally:
            self._metrics.passed(upstream.name, api or "other", exchange.status)

    # ---- parts -------------------------------------------------------------------------------------------------------

    async def _read(self, exchange: Exchange, limit: int, least: int) -> tuple[bytes, AsyncIterator[bytes] | None]:
        """The body where it may be held whole, else its beginning and the rest as it comes.

        limit: bytes to hold at most. least: bytes of the beginning, where the whole is longer.
        """
        if (exchange.head.length or 0) > limit:
            limit = least
        most = _HELD_FACTOR * self._settings.max_inspected_mb << 20
        pieces: list[bytes] = []
        more = True
        while more and exchange.held_bytes <= (limit if self._held_bytes <= most else least):
            body, more = await exchange.receive_piece()
            pieces.append(body)
            exchange.held_bytes += len(body)
            self._held_bytes += len(body)
        return b"".join(pieces), self._rest(exchange, exchange.held_bytes) if more else None

    async def _rest(self, exchange: Exchange, size: int) -> AsyncIterator[bytes]:
        more = True
        while more:
            piece, more = await exchange.receive_piece()
            size += len(piece)
            if size > self._settings.max_body_mb << 20:
                raise Refused(413, "body_too_large", f"The body is longer than {self._settings.max_body_mb} MB.")
            yield piece
        if exchange.uploaded is not None:
            exchange.uploaded.set()

    def _upstream(self, exchange: Exchange, body: bytes) -> Upstream | None:
        """The one named in a header, the only one, the one that serves the model, or the first.

        None for the list of models, which is everybody's.
        """
        name = exchange.head.ours.get("upstream")
        if name is not None:
            return self._upstreams.named(name)
        if self._upstreams.only is not None:
            return self._upstreams.only
        if exchange.method == "GET" and exchange.path.rstrip("/") == "/v1/models":
            return None
        if exchange.path.startswith("/v1/models/"):
            return self._upstreams.of_model(exchange.path.removeprefix("/v1/models/"))
        model = _model(body)
        return self._upstreams.of_model(model) if model else self._upstreams.all[0]

    def _worth_a_look(self, head: RequestHead, body: bytes, steering: Steering) -> bool:
        long = len(body) >= self._settings.min_document_tokens * _BYTES_PER_TOKEN and steering.strategy != OFF
        return (
            (long or b'"longroute"' in body)
            and not head.signed
            and head.content_encoding in (b"", b"identity")
            and _is_json(head)
        )

    async def _models(self, exchange: Exchange) -> bool:
        """The models of all upstreams as one list; who did not answer is named in a header. False where nobody did."""

        async def listed(upstream: Upstream) -> list[Any] | None:
            own = [item for item in exchange.head.forwarded if item[0] not in _ABOUT_THE_ANSWER]
            head = RequestHead(with_key(own, upstream.key) if upstream.key else own, {})
            try:
                asking = Exchange(
                    "GET", exchange.path, exchange.target, head, exchange.caller, exchange.receive, exchange.send,
                    self._metrics,
                )  # fmt: skip
                response = await asking.ask(upstream, b"")
                data = orjson.loads(await response.read(_MODEL_LIST_BYTES))
            except (Refused, httpx.HTTPError, orjson.JSONDecodeError):
                return None
            models = data.get("data") if isinstance(data, dict) and response.status == 200 else None
            return models if isinstance(models, list) else None

        lists = await asyncio.gather(*map(listed, self._upstreams.all))
        if all(models is None for models in lists):
            return False
        missing = [u.name for u, models in zip(self._upstreams.all, lists, strict=True) if models is None]
        body = orjson.dumps({"object": "list", "data": [model for models in lists for model in models or ()]})
        headers: Headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await exchange.answer(200, headers + ours(missing_upstreams=", ".join(missing) or None), body)
        return True

    async def _refuse(self, scope: Scope, send: Send, refusal: Refused, exchange: Exchange | None) -> None:
        if refusal.reason:
            self._metrics.rejected(refusal.reason)
        if exchange is not None and exchange.answering:
            return
        body = error_body(scope["path"], refusal)
        if exchange is not None and exchange.opened:
            await exchange.answer(refusal.status, [], body)
            return
        headers: Headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if refusal.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % max(1, round(refusal.retry_after_s))))
        if refusal.status == 413:  # the rest of the body is not waited for
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _api(exchange: Exchange) -> Api | None:
    """The API whose requests may hold a long text. Other paths, and Assistants' `/messages`, are passed on."""
    if exchange.method != "POST":
        return None
    path = exchange.path
    if path == "/v1/messages":
        return "messages"
    if path.endswith("/chat/completions"):
        return "chat"
    if path.endswith("/completions"):
        return "completions"
    return "responses" if path.endswith("/responses") else None


def _model(body: bytes) -> str:
    """The model that a body names, as JSON or as a form; of one too long to be held, the first in its beginning."""
    try:
        model = orjson.loads(body).get("model")
        return model if isinstance(model, str) else ""
    except (orjson.JSONDecodeError, AttributeError):
        beginning = body[:_SMALL_BODY]
        named = _MODEL_PART.search(beginning) or _MODEL.search(beginning)
        return named[1].decode(errors="replace") if named else ""


def _is_json(head: RequestHead) -> bool:
    """Whether the body may be JSON: its header says so, or nothing."""
    return not head.content_type or b"json" in head.content_type.lower()


def _is_preflight(method: str, head: RequestHead) -> bool:
    return (
        method == "OPTIONS"
        and bool(head.origin)
        and any(k == b"access-control-request-method" for k, _ in head.forwarded)
    )


def _target(scope: Scope) -> bytes:
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    query: bytes = scope["query_string"]
    return path + b"?" + query if query else path


async def _joined(beginning: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield beginning
    async for piece in rest:
        yield piece
