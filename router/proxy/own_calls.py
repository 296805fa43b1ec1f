"""The calls of one request that its client did not make itself, and the last one, which the client is answered with.

What is tried again is the plan's to decide: nothing is sent twice here but a last call, which would take all before it
with it. What a plan cannot see is watched here: the upstream's wish to be left alone (`retry-after`), how much may fail
and wait in all (`patience.py`), how many calls are under way (`turns.py`).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace

import httpx

from ..backends.complaint import parse_complaint, retry_after_s
from ..core import Call, Message, Outcome, Reply
from ..costs import charge
from ..errors import BackendError, BackendUnavailable, BadReply, RouterError
from ..replies import answers
from .body import as_string
from .calls import call_body, reply_of, usage_of
from .exchange import READ_BYTES, Exchange, Whole
from .headers import value_of
from .patience import Patience
from .refusals import Refused, Unreachable
from .routing import Step
from .texts import Api
from .turns import Turns
from .upstreams import Upstream
from .wire import Headers, Response

COMPLAINT_BYTES = 1 << 20  # of a refusal, to be understood; some servers repeat the whole request in it
_PAUSE_S = 0.5  # before the next call, where one has failed in passing and the upstream names no time

# What the upstream says of the key or the model, and of itself; 529 is Anthropic's 503.
_KEY_OR_MODEL = (401, 402, 403, 404)
_OVERLOADED = (408, 502, 503, 504, 529)
PASSING = (429, 500, *_OVERLOADED)  # what may go well another time


@dataclass(frozen=True, slots=True)
class _Failure:
    """A call without a reply. answer: what its sender gets to see. original_too: would be said of the original."""

    error: RouterError
    answer: Whole | Refused
    original_too: bool


class OwnCalls:
    """said: the upstream's answers to the caller's own question, by their text."""

    def __init__(self, exchange: Exchange, upstream: Upstream, api: Api, turns: Turns, patience: Patience) -> None:
        self.exchange = exchange
        self.upstream = upstream
        self.api = api
        self.said: dict[str, Whole] = {}
        self._turns = turns
        self._patience = patience
        self._failures: list[_Failure] = []

    async def perform(self, step: Step) -> tuple[Outcome, ...]:
        """What became of each call, in order. Raises the last error where too much has failed to go on."""
        tasks = [asyncio.ensure_future(self._in_turn(c, b, step)) for c, b in zip(step.calls, step.bodies, strict=True)]
        try:
            outcomes = tuple(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._patience.ended:
            raise self._failures[-1].error
        return outcomes

    def handed_on(self, error: BaseException) -> Whole | Refused | None:
        """What the call said that failed with this error, where the original would have been told the same.

        So it is with the key, the model and the state of the upstream. It is not with our words (400, 413, 422; 500,
        where a server stumbles over them), nor with our number of calls (429 beside or after others).
        """
        failure = next((failure for failure in self._failures if failure.error is error), None)
        return failure.answer if failure is not None and failure.original_too else None

    async def wait(self) -> None:
        """Until the upstream may be asked again; not where that is longer than may be waited."""
        if self._patience.wait_s >= 0:
            await asyncio.sleep(self._patience.delay_s(_now()))

    async def last(self, body: bytes, *, again: bool) -> Response:
        """The answer that goes to the client. Raises Refused where there is none.

        again: after a failure in passing the call is sent once more, if others would have been made in vain.
        """
        again = again and self._patience.succeeded > 0
        wish_s: float | None = None
        try:
            response = await self.exchange.ask(self.upstream, body, len(body))
        except Unreachable:
            if not again:
                raise
        else:
            if not again or response.status not in PASSING:
                return response
            wish_s = _asked_to_wait_s(response.headers)
            if wish_s is not None and wish_s > self._patience.wait_s:
                return response
            await response.aclose()
        self._failed_in_passing(wish_s)
        await self.wait()
        return await self.exchange.ask(self.upstream, body, len(body))

    # ---- one call ----------------------------------------------------------------------------------------------------

    async def _in_turn(self, call: Call, body: bytes | None, step: Step) -> Outcome:
        sent = call_body(self.api, step.original, call) if body is None else body
        while not self._patience.ended:
            await self.wait()
            async with self._turns.turn(self.exchange.id):
                # Another call may have failed while this one waited for its turn.
                if not self._patience.ended and not self._patience.delay_s(_now()):
                    return await self._made(call, body, sent, step)
        return self._failures[-1].error

    async def _made(self, call: Call, body: bytes | None, sent: bytes, step: Step) -> Outcome:
        answer: Whole | Refused
        try:
            response = await self.exchange.ask(self.upstream, sent, len(sent), own=True)
            answer = Whole(response.status, response.headers, await response.read(READ_BYTES), counted=True)
            outcome = self._understood(call, sent, answer)
        except Refused as refusal:
            answer = refusal
            outcome = BackendUnavailable(f"{self.upstream.name} did not answer a call ({refusal.status}).")
        except httpx.HTTPError as error:
            self.exchange.note(self.upstream, error)
            answer = Refused(502, None, f"The upstream {self.upstream.name!r} broke off an answer.")
            outcome = BackendUnavailable(f"{self.upstream.name} broke off a call ({type(error).__name__}).")
        if isinstance(outcome, Reply):
            self._patience.succeeded += 1
            if body is not None and isinstance(answer, Whole):
                self.said[outcome.text] = answer
                self.exchange.earlier = answer, call.passages, answers(outcome)
            return outcome
        callers_words = body is not None
        callers_model = callers_words or call.model == as_string(step.original.get("model"))
        alone = len(step.calls) == 1 and not self._patience.succeeded
        original_too = callers_model and _originals_too(answer, callers_words=callers_words, alone=alone)
        self._failures.append(_Failure(outcome, answer, original_too))
        if isinstance(outcome, BackendError) and outcome.retryable:
            self._failed_in_passing(outcome.retry_after_s)
        else:
            self._patience.failure(_now(), None)
        return outcome

    def _failed_in_passing(self, wish_s: float | None) -> None:
        pause_s = min(_PAUSE_S, self._patience.wait_s)
        self._patience.failure(_now(), pause_s if wish_s is None else wish_s)

    def _understood(self, call: Call, sent: bytes, answer: Whole) -> Reply | RouterError:
        """Raises httpx.DecodingError, an HTTPError, where the body is not what its header says."""
        said = answer.decoded()
        profile = self.upstream.router.profile_of(call.model)
        if answer.status != 200:
            seen = Message("user", sent.decode(errors="replace"))  # what may be repeated, and must not be noted
            return parse_complaint(said[:COMPLAINT_BYTES]).error(
                answer.status,
                replace(call, messages=(*call.messages, seen)),
                server=self.upstream.name,
                key="the caller's key",
                retry_after_s=_asked_to_wait_s(answer.headers),
            )
        kind = value_of(answer.headers, b"content-type")
        try:
            reply = reply_of(self.api, said, kind)
        except BadReply as error:  # paid for nevertheless
            self.exchange.spent += charge(usage_of(said, kind), profile)
            return error
        reply = replace(reply, usage=charge(reply.usage, profile))
        self.exchange.spent += reply.usage
        return reply


def _originals_too(answer: Whole | Refused, *, callers_words: bool, alone: bool) -> bool:
    """Whether the original would have been told the same. alone: no other call has come into its way."""
    if isinstance(answer, Refused):
        return isinstance(answer, Unreachable) or answer.status == 504
    status = answer.status
    return status in (*_KEY_OR_MODEL, *_OVERLOADED) or (status == 429 and alone) or (status == 500 and callers_words)


def _asked_to_wait_s(headers: Headers) -> float | None:
    named = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
    return retry_after_s(named, time.time())


def _now() -> float:
    return asyncio.get_running_loop().time()
