"""A request that may hold a long text: looked at, decided, carried out, sent, rescued, recorded.

Whatever fails before the upstream has answered, the original goes out, and a header says so. The thinking is done by
`routing.py`, in a worker thread and within a time budget; a strategy's own calls are made by `own_calls.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import replace
from typing import Any, TypeVar

import httpx

from ..backends.complaint import parse_complaint
from ..core import Call, Usage
from ..costs import charge
from ..errors import ContextTooLong, NoFeasibleStrategy
from ..router import BaseRouter, smaller
from ..settings import ProxySettings
from .calls import UsageReader
from .exchange import Exchange, Whole
from .headers import ours, value_of
from .own_calls import COMPLAINT_BYTES, PASSING, OwnCalls
from .patience import Patience
from .recording import estimate_in_brief, places_in_brief, record_of
from .records import DecisionLog, Record, Stage
from .refusals import Refused
from .routing import OFF, CannotFollow, Considered, Steering, consider, rescue, resume, without_our_fields
from .stopwatch import Stopwatch
from .telemetry import Metrics, log_fail_open, log_request, span_writer
from .texts import Api
from .turns import Turns
from .upstreams import Upstream
from .wire import Headers, Response

T = TypeVar("T")

_WORKERS = 2  # more would only share the interpreter
_BACKLOG = 16
_REFUSALS = (400, 413, 422)
_TRACE_HEADERS = (b"traceparent", b"tracestate", b"baggage")


class LongTexts:
    """Serves what the gateway found worth a look."""

    def __init__(self, settings: ProxySettings, log: DecisionLog, metrics: Metrics, turns: Turns) -> None:
        self._settings = settings
        self._log = log
        self._metrics = metrics
        self._write_span = span_writer()
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="longroute")
        self._turns = turns
        self._under_way = 0

    async def serve(self, exchange: Exchange, upstream: Upstream, api: Api, raw: bytes, steering: Steering) -> None:
        """Raises Refused for what the request asks of us in vain, and where there is no answer."""
        watch = Stopwatch()
        patience = Patience(self._settings.retries, self._settings.retry_wait_s)
        own = OwnCalls(exchange, upstream, api, self._turns, patience)
        considered, replay, failed = await self._considered(own, raw, steering, watch)
        self._log.add(self._recorded(considered, exchange, upstream, api, failed))
        reader: UsageReader | None = None
        try:
            watch.enter("upstream_first_byte")
            response: Response | Whole
            if isinstance(replay, Refused):
                raise replay
            if replay is not None:
                response = replay
            else:
                async with self._kept_open(exchange, considered, exchange.opened):
                    response, considered, failed = await self._answered(own, considered, failed, watch)
            watch.enter("relay")
            reader = UsageReader(
                value_of(response.headers, b"content-type"), value_of(response.headers, b"content-encoding")
            )
            await exchange.relay(upstream, response, _headers(considered, exchange.id, failed), reader)
        except Refused as refusal:
            exchange.status = refusal.status
            raise
        finally:
            watch.stop()
            usage = reader.usage() if reader is not None and exchange.finished else None
            if usage is not None and isinstance(response, Whole) and response.counted:
                usage = Usage()
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
        self, own: OwnCalls, raw: bytes, steering: Steering, watch: Stopwatch
    ) -> tuple[Considered, Whole | Refused | None, Stage | None]:
        """What to send; how it ended, where the strategy has come to an end; the stage that failed, where one did."""
        settings, exchange, upstream, api = self._settings, own.exchange, own.upstream, own.api
        considered = original = Considered(OFF, "", raw, raw, raw)
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
                        stream_calls=settings.stream_calls,
                        holdout=settings.holdout,
                        upstream=upstream.name,
                    )
                )
            original = _as_it_came(considered)
            return *await self._carried_out(own, considered, watch), None
        except asyncio.CancelledError:
            if exchange.calls:  # paid for, though nobody waits for an answer any more
                watch.stop()
                self._log.add(self._recorded(considered, exchange, upstream, api, None))
                self._complete(exchange, upstream, api, considered, None, None, watch)
            raise
        except CannotFollow as error:
            raise Refused(400, "bad_request", str(error)) from None
        except (ContextTooLong, NoFeasibleStrategy) as error:
            return replace(original, reason=f"no strategy is possible: {error}"), None, None
        except Exception as error:
            if (refusal := own.handed_on(error)) is not None:
                reason = f"a call of {considered.strategy} failed ({refusal.status}) as the request itself would have"
                return replace(considered, step=None, reason=reason, tokens_after=None), refusal, None
            stage = watch.stage
            log_fail_open(exchange.id, stage, error)
            if original.decision is None and b'"longroute"' in raw:
                with suppress(Exception):  # the upstream may refuse fields that it does not know
                    original = replace(original, body=without_our_fields(raw, api))
            if original.tokens_before is not None:  # what the strategy's own calls took was spent in vain
                original = replace(original, tokens_after=original.tokens_before + exchange.spent.prompt_tokens)
            async with self._kept_open(exchange, considered, considered.streamed):
                await own.wait()
            reason = f"{stage} failed ({type(error).__name__}), so the request went out as it came"
            return replace(original, reason=reason), None, stage

    async def _carried_out(
        self, own: OwnCalls, considered: Considered, watch: Stopwatch
    ) -> tuple[Considered, Whole | None]:
        """Make the calls of a strategy that needs several, up to the last, which is the caller's own."""
        async with self._kept_open(own.exchange, considered, considered.streamed and not own.exchange.opened):
            while (step := considered.step) is not None:
                watch.enter("plan")
                outcomes = await own.perform(step)
                resumed = await self.in_thread(
                    lambda c=considered, o=outcomes: resume(c, o, own.upstream.router),  # type: ignore[misc]
                    begun=True,
                )
                if isinstance(resumed, tuple):
                    considered, text = resumed
                    if text not in own.said:
                        raise RuntimeError("the strategy ended with an answer that is not the upstream's")
                    return considered, own.said[text]
                considered = resumed
            return considered, None

    def _kept_open(
        self, exchange: Exchange, considered: Considered, streams: bool
    ) -> AbstractAsyncContextManager[None]:
        """While a stream waits for calls that its reader does not see."""
        if not streams:
            return nullcontext()
        head = _headers(replace(considered, tokens_after=None), exchange.id, None)  # not known before all calls are
        return exchange.kept_open(self._settings.keep_alive_s, head)

    # ---- the upstream's answer ---------------------------------------------------------------------------------------

    async def _answered(
        self, own: OwnCalls, considered: Considered, failed: Stage | None, watch: Stopwatch
    ) -> tuple[Response | Whole, Considered, Stage | None]:
        """The upstream's answer to what was decided; to something else where it does not take that."""
        exchange, upstream = own.exchange, own.upstream
        response, considered = await self._asked_last(own, considered)
        if isinstance(response, Whole) or response.status not in _REFUSALS:
            return response, considered, failed
        refusal = await exchange.whole(upstream, response)
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
            rescued, replay = await self._carried_out(own, rescued, watch)
            if replay is not None:
                return replay, rescued, failed
            return *await self._asked_last(own, rescued), failed
        except Exception as error:
            log_fail_open(exchange.id, watch.stage, error)
            return refusal, considered, "prepare"

    async def _asked_last(self, own: OwnCalls, considered: Considered) -> tuple[Response | Whole, Considered]:
        """The answer to the body; where there is none, one that the strategy has got already is better than none.

        That passages do not say it is better only where the client could not do better by trying again.
        """
        earlier = own.exchange.earlier if considered.rewritten else None
        try:
            response = await own.last(considered.body, again=considered.rewritten)
            if response.status < 400 or earlier is None or (response.status in PASSING and not earlier[2]):
                return response, considered
            status = response.status
            await response.aclose()
        except Refused as refusal:
            if earlier is None or not earlier[2]:
                raise
            status = refusal.status
        answer, shown, _ = earlier
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
        if usage is None and (exchange.status or 500) >= 400 and exchange.spent.prompt_tokens:
            usage = Usage()  # no answer, or an error, which is not charged; the calls before it were
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
        complaint = parse_complaint(refusal.decoded()[:COMPLAINT_BYTES])
    except httpx.DecodingError:
        return False
    return isinstance(complaint.error(refusal.status, Call((), ""), server="", key=""), ContextTooLong)


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
