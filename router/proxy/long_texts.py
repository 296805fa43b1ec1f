"""A request that may hold a long text: looked at, decided, carried out, sent, rescued, recorded.

Whatever fails before the upstream has answered, the original goes out, and a header says so. The thinking is done by
`routing.py`, in a worker thread and within a time budget; this module makes the calls.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import httpx

from ..backends.complaint import parse_complaint, retry_after_s
from ..core import Call, Message, Outcome, Usage
from ..costs import charge
from ..errors import BackendError, BackendUnavailable, BadReply, ContextTooLong, NoFeasibleStrategy, RouterError
from ..router import BaseRouter, smaller
from ..settings import ProxySettings
from .calls import UsageReader, call_body, reply_of, usage_of
from .exchange import Exchange, Whole
from .headers import ours, value_of
from .recording import estimate_in_brief, places_in_brief, record_of
from .records import DecisionLog, Record, Stage
from .refusals import Refused
from .routing import OFF, CannotFollow, Considered, Steering, Step, consider, rescue, resume, without_our_fields
from .stopwatch import Stopwatch
from .telemetry import Metrics, log_fail_open, log_request, span_writer
from .texts import Api
from .upstreams import Upstream
from .wire import Headers, Response

T = TypeVar("T")

_WORKERS = 2  # more would only share the interpreter
_BACKLOG = 16
_COMPLAINT_BYTES = 1 << 20  # of a refusal, to be understood; some servers repeat the whole request in it
_REPLY_BYTES = 64 << 20
_REFUSALS = (400, 413, 422)
_PATIENCE_S = 60.0  # longest wait that a server may ask for before a call of a strategy's own is sent once more
_TRACE_HEADERS = (b"traceparent", b"tracestate", b"baggage")


class LongTexts:
    """Serves what the gateway found worth a look."""

    def __init__(self, settings: ProxySettings, log: DecisionLog, metrics: Metrics) -> None:
        self._settings = settings
        self._log = log
        self._metrics = metrics
        self._write_span = span_writer()
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="longroute")
        self._under_way = 0

    async def serve(self, exchange: Exchange, upstream: Upstream, api: Api, raw: bytes, steering: Steering) -> None:
        """Raises Refused for what the request asks of us in vain, and where there is no answer."""
        watch = Stopwatch()
        considered, replay, failed = await self._considered(exchange, upstream, api, raw, steering, watch)
        self._log.add(self._recorded(considered, exchange, upstream, api, failed))
        reader: UsageReader | None = None
        try:
            watch.enter("upstream_first_byte")
            response: Response | Whole
            if replay is not None:
                response = replay
            else:
                response, considered, failed = await self._answered(exchange, upstream, api, considered, failed, watch)
            watch.enter("relay")
            reader = UsageReader(
                value_of(response.headers, b"content-type"), value_of(response.headers, b"content-encoding")
            )
            await exchange.relay(upstream, response, _headers(considered, exchange.id, failed), reader)
        finally:
            watch.stop()
            usage = reader.usage() if reader is not None and exchange.finished else None
            if usage is not None and isinstance(response, Whole) and response.counted:
                usage = Usage()
            if usage is None and exchange.finished and (exchange.status or 0) >= 400 and exchange.spent.prompt_tokens:
                usage = Usage()  # an error is not charged; the calls before it were
            self._complete(exchange, upstream, api, considered, usage, failed, watch)

    async def warm_up(self, router: BaseRouter) -> None:
        """Load what the first long text would otherwise wait for: weights, the embedding model. Never fails."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._workers, _rehearse, router)
        except Exception as error:
            log_fail_open("warm-up", "prepare", error)

    async def in_thread(self, work: Callable[[], T], *, begun: bool = False) -> T:
        """Own work off the event loop. Raises TimeoutError past the budget, and at once where too much is waiting.

        A thread cannot be stopped: what it finds after that is lost, but for the caches it fills.
        begun: calls were paid for already, so this is not turned away however much is waiting.
        """
        if self._under_way >= _BACKLOG and not begun:
            raise TimeoutError
        self._under_way += 1
        running = asyncio.get_running_loop().run_in_executor(self._workers, work)
        running.add_done_callback(self._ended)
        async with asyncio.timeout(self._settings.budget_s):
            return await asyncio.shield(running)

    def _ended(self, work: asyncio.Future[Any]) -> None:
        self._under_way -= 1
        if not work.cancelled():
            work.exception()  # looked at, so that nobody is told of a failure that no longer matters

    async def aclose(self) -> None:
        self._workers.shutdown(wait=False, cancel_futures=True)

    # ---- before the upstream -----------------------------------------------------------------------------------------

    async def _considered(
        self, exchange: Exchange, upstream: Upstream, api: Api, raw: bytes, steering: Steering, watch: Stopwatch
    ) -> tuple[Considered, Whole | None, Stage | None]:
        """What to send; a finished answer, where the strategy has one; the stage that failed, where one did."""
        settings = self._settings
        original = Considered(OFF, "", raw, raw, raw)
        try:
            with watch.lent() as lent:
                considered = await self.in_thread(
                    lambda: consider(
                        raw,
                        api,
                        upstream.router,
                        steering,
                        watch=lent,
                        min_document_tokens=settings.min_document_tokens,
                        question_last=settings.question_last,
                        stored_responses=settings.stored_responses,
                        holdout=settings.holdout,
                        upstream=upstream.name,
                    )
                )
            original = _as_it_came(considered)
            return *await self._carried_out(exchange, upstream, api, considered, watch), None
        except CannotFollow as error:
            raise Refused(400, "bad_request", str(error)) from None
        except (ContextTooLong, NoFeasibleStrategy) as error:
            return replace(original, reason=f"no strategy is possible: {error}"), None, None
        except Exception as error:
            stage = watch.stage
            log_fail_open(exchange.id, stage, error)
            if original.decision is None and b'"longroute"' in raw:
                with suppress(Exception):  # the upstream may refuse fields that it does not know
                    original = replace(original, body=without_our_fields(raw, api))
            if original.tokens_before is not None:  # what the strategy's own calls took was spent in vain
                original = replace(original, tokens_after=original.tokens_before + exchange.spent.prompt_tokens)
            reason = f"{stage} failed ({type(error).__name__}), so the request went out as it came"
            return replace(original, reason=reason), None, stage

    async def _carried_out(
        self, exchange: Exchange, upstream: Upstream, api: Api, considered: Considered, watch: Stopwatch
    ) -> tuple[Considered, Whole | None]:
        """Make the calls of a strategy that needs several, up to the last, which is the caller's own."""
        said: dict[str, Whole] = {}  # the upstream's answers to the caller's own question, by their text
        while (step := considered.step) is not None:
            watch.enter("plan")
            outcomes = await self._perform(exchange, upstream, api, step, said)
            resumed = await self.in_thread(
                lambda c=considered, o=outcomes: resume(c, o, upstream.router),  # type: ignore[misc]
                begun=True,
            )
            if isinstance(resumed, tuple):
                considered, text = resumed
                if text not in said:
                    raise RuntimeError("the strategy ended with an answer that is not the upstream's")
                return considered, said[text]
            considered = resumed
        return considered, None

    async def _perform(
        self, exchange: Exchange, upstream: Upstream, api: Api, step: Step, said: dict[str, Whole]
    ) -> tuple[Outcome, ...]:
        """What became of each call, in order. Answers to the caller's own question are added to `said`.

        Where the server names a time to come back at, that is waited for, once: plans have no clock. What else may
        help against a failure is theirs to try.
        """

        async def one(call: Call, body: bytes | None) -> Outcome:
            sent = call_body(api, step.original, call) if body is None else body
            try:
                response = await exchange.ask(upstream, sent, len(sent), own=True)
                whole = Whole(response.status, response.headers, await response.read(_REPLY_BYTES), counted=True)
                if whole.status != 200:
                    said_of_it = parse_complaint(_decoded(whole)[:_COMPLAINT_BYTES])
                    seen = Message("user", sent.decode(errors="replace"))  # what may be repeated, and must not be noted
                    return said_of_it.error(
                        whole.status,
                        replace(call, messages=(*call.messages, seen)),
                        server=upstream.name,
                        key="the caller's key",
                        retry_after_s=_asked_to_wait_s(whole),
                    )
                answered, kind = _decoded(whole), value_of(whole.headers, b"content-type")
                try:
                    reply = reply_of(api, answered, kind)
                except BadReply:  # paid for nevertheless
                    exchange.spent += charge(usage_of(answered, kind), upstream.router.profile_of(call.model))
                    raise
            except (Refused, httpx.HTTPError) as error:
                return BackendUnavailable(f"{upstream.name} broke off a call ({type(error).__name__}).")
            except RouterError as error:
                return error
            reply = replace(reply, usage=charge(reply.usage, upstream.router.profile_of(call.model)))
            exchange.spent += reply.usage
            if body is not None:
                said[reply.text] = whole
                exchange.earlier = whole, call.passages
            return reply

        async def patiently(call: Call, body: bytes | None) -> Outcome:
            outcome = await one(call, body)
            if isinstance(outcome, BackendError) and outcome.retryable and outcome.retry_after_s is not None:
                if outcome.retry_after_s > _PATIENCE_S:
                    return outcome
                await asyncio.sleep(outcome.retry_after_s)
                outcome = await one(call, body)
            return outcome

        tasks = [asyncio.ensure_future(patiently(c, b)) for c, b in zip(step.calls, step.bodies, strict=True)]
        try:
            return tuple(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # ---- the upstream's answer ---------------------------------------------------------------------------------------

    async def _answered(
        self,
        exchange: Exchange,
        upstream: Upstream,
        api: Api,
        considered: Considered,
        failed: Stage | None,
        watch: Stopwatch,
    ) -> tuple[Response | Whole, Considered, Stage | None]:
        """The upstream's answer to what was decided; to something else where it does not take that."""
        response, considered = await self._asked_last(exchange, upstream, considered)
        if isinstance(response, Whole) or response.status not in _REFUSALS:
            return response, considered, failed
        try:
            refusal = Whole(response.status, response.headers, await response.read(_REPLY_BYTES))
        except httpx.HTTPError as error:
            exchange.note(upstream, error)
            raise Refused(502, None, f"The upstream {upstream.name!r} broke off a refusal.") from None
        too_long = _too_long(refusal)
        if considered.rewritten and not (too_long and considered.as_it_came):  # it might have taken the original
            reason = f"the upstream refused the changed request ({refusal.status}), so the original was sent"
            sent = (considered.tokens_before or 0) + considered.tokens_spent
            considered = replace(_as_it_came(considered), reason=reason, tokens_after=sent)
            return await exchange.ask(upstream, considered.body, len(considered.body)), considered, "refused"
        shorter = smaller(considered.decision) if considered.decision and too_long else None
        if shorter is None:
            return refusal, considered, failed
        try:
            rescued = await self.in_thread(lambda: rescue(considered, upstream.router, shorter))
            rescued, replay = await self._carried_out(exchange, upstream, api, rescued, watch)
            if replay is not None:
                return replay, rescued, failed
            return *await self._asked_last(exchange, upstream, rescued), failed
        except Exception as error:
            log_fail_open(exchange.id, watch.stage, error)
            return refusal, considered, "prepare"

    async def _asked_last(
        self, exchange: Exchange, upstream: Upstream, considered: Considered
    ) -> tuple[Response | Whole, Considered]:
        """The answer to the body; where there is none, one that the strategy has got already is better than none."""
        earlier = exchange.earlier if considered.rewritten else None
        try:
            response = await exchange.ask(upstream, considered.body, len(considered.body))
            if earlier is None or response.status < 400:
                return response, considered
            status = response.status
            await response.aclose()
        except Refused as refusal:
            if earlier is None:
                raise
            status = refusal.status
        answer, shown = earlier
        note = f"The last call failed ({status}), so an earlier answer stands."
        return answer, replace(considered, shown=shown, notes=(*considered.notes, note))

    def _recorded(
        self, considered: Considered, exchange: Exchange, upstream: Upstream, api: Api, failed: Stage | None
    ) -> Record:
        """The record; a bare one where that fails: nobody shall go without an answer for want of a record."""
        try:
            return record_of(considered, exchange, upstream.name, api, failed)
        except Exception as error:
            log_fail_open(exchange.id, "relay", error)
            bare = Considered(considered.strategy, considered.reason, b"", b"", b"")
            return record_of(bare, exchange, upstream.name, api, failed)

    def _complete(
        self,
        exchange: Exchange,
        upstream: Upstream,
        api: Api,
        considered: Considered,
        usage: Usage | None,
        failed: Stage | None,
        watch: Stopwatch,
    ) -> None:
        if usage is not None and considered.request is not None:
            if considered.as_it_came:
                upstream.router.sent_in_full(considered.request, usage)
            usage = charge(usage, upstream.router.profile_of(considered.request.model)) + exchange.spent
        record = replace(
            self._recorded(considered, exchange, upstream, api, failed),
            status=exchange.status,
            calls=exchange.calls,
            usage=usage,
            timings_s=dict(watch.timings_s),
        )
        self._log.complete(record)
        self._metrics.completed(record)
        log_request(record)
        trace = {k.decode(): v.decode("latin-1") for k, v in exchange.head.forwarded if k in _TRACE_HEADERS}
        self._write_span(record, trace)


def _rehearse(router: BaseRouter) -> None:
    text = "\n\n".join(f"Paragraph {number} says that all is well in house {number}." for number in range(500))
    for strategy in router.strategies:
        try:
            request, decision = router.prepare("What does paragraph 7 say?", text, model="warm-up", allowed=(strategy,))
        except (ContextTooLong, NoFeasibleStrategy):  # it needs something of its model, a local runner say
            continue
        plan = router.plan(request, decision)
        next(plan)
        plan.close()


def _as_it_came(considered: Considered) -> Considered:
    return replace(considered, strategy=OFF, body=considered.original, step=None, shown=(), notes=(), unread=())


def _too_long(refusal: Whole) -> bool:
    try:
        complaint = parse_complaint(_decoded(refusal)[:_COMPLAINT_BYTES])
    except httpx.DecodingError:
        return False
    return isinstance(complaint.error(refusal.status, Call((), ""), server="", key=""), ContextTooLong)


def _asked_to_wait_s(whole: Whole) -> float | None:
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in whole.headers}
    return retry_after_s(headers, time.time())


def _decoded(whole: Whole) -> bytes:
    """Raises httpx.DecodingError, an HTTPError, where the body is not what its header says."""
    encoding = value_of(whole.headers, b"content-encoding")
    if encoding in (b"", b"identity"):
        return whole.body
    return httpx.Response(200, headers=[(b"content-encoding", encoding)], content=whole.body).content


def _headers(considered: Considered, decision_id: str, failed: Stage | None) -> Headers:
    return ours(
        strategy=considered.strategy,
        reason=considered.reason or None,
        decision_id=decision_id,
        tokens_before=considered.tokens_before,
        tokens_after=considered.tokens_after,
        estimate=estimate_in_brief(considered),
        unread=places_in_brief(considered.unread),
        notes="; ".join(considered.notes) or None,
        holdout="true" if considered.holdout else None,
        fail_open=failed,
    )
