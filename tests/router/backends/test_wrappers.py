from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.router.backends.scripted import Scripted
from longroute.router.backends.wrappers import CircuitBreaker, ConcurrencyLimit, Retry, Timeout
from longroute.router.core import Backend, Call, Message, Reply
from longroute.router.errors import (
    BackendError,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    BadReply,
    ContextTooLong,
    RateLimited,
)

CALL = Call((Message("user", "hi"),), "m")
DOWN = BackendUnavailable("down", status=503)


class Clock:
    """Time that passes only in sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


class Gate(Backend):
    """Gives one piece, then waits until the gate opens. Counts the calls under way."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.under_way = 0
        self.most = 0
        self.started: list[str] = []
        self.closed = 0

    async def generate(self, call: Call) -> Reply:
        _, reply = [piece async for piece in self.stream(call)]
        assert isinstance(reply, Reply)
        return reply

    async def stream(self, call: Call) -> AsyncGenerator[str | Reply, None]:
        self.started.append(call.purpose)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            yield "one "
            await self.opened.wait()
            yield Reply("one ")
        finally:
            self.under_way -= 1

    async def aclose(self) -> None:
        self.closed += 1


async def collect(backend: Backend, into: list[str | Reply] | None = None) -> list[str | Reply]:
    into = [] if into is None else into
    async with aclosing(backend.stream(CALL)) as pieces:
        async for piece in pieces:
            into.append(piece)
    return into


async def whole(backend: Backend) -> Reply:
    return await backend.generate(CALL)


async def streamed(backend: Backend) -> Reply:
    last = (await collect(backend))[-1]
    assert isinstance(last, Reply)
    return last


Ask = Callable[[Backend], Coroutine[Any, Any, Reply]]
both_ways = pytest.mark.parametrize("ask", [whole, streamed])
WRAPPERS: list[Callable[[Backend], Backend]] = [
    Retry,
    lambda backend: Timeout(backend, 5),
    CircuitBreaker,
    lambda backend: ConcurrencyLimit(backend, 1),
]


def retrying(backend: Backend, clock: Clock, **options: float) -> Retry:
    """Waits the longest its jitter allows."""
    return Retry(backend, sleep=clock.sleep, clock=clock, uniform=max, **options)  # type: ignore[arg-type]


# ---- what all have in common -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapper_passes_replies_and_pieces_on(wrap: Callable[[Backend], Backend]) -> None:
    reply = Reply("one two", finish_reason="length", notes=("kept",))
    assert asyncio.run(whole(wrap(Scripted([reply])))) == reply
    assert asyncio.run(collect(wrap(Scripted([reply])))) == ["one", " two", reply]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_closing_the_stream_of_a_wrapper_closes_the_one_inside(wrap: Callable[[Backend], Backend]) -> None:
    async def main() -> int:
        gate = Gate()
        async with aclosing(wrap(gate).stream(CALL)) as pieces:
            assert await anext(pieces) == "one "
        return gate.under_way

    assert asyncio.run(main()) == 0


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_closing_a_wrapper_closes_what_it_holds(wrap: Callable[[Backend], Backend]) -> None:
    async def main() -> int:
        gate = Gate()
        await wrap(gate).aclose()
        return gate.closed

    assert asyncio.run(main()) == 1


# ---- Retry -----------------------------------------------------------------------------------------------------------


@both_ways
def test_retries_wait_longer_each_time_and_leave_notes(ask: Ask) -> None:
    clock = Clock()
    script: list[str | Reply | Exception] = [DOWN, BackendTimeout("late"), DOWN, Reply("ok", notes=("own",))]
    reply = asyncio.run(ask(retrying(Scripted(script), clock, base_s=1.0)))
    assert clock.sleeps == [1.0, 2.0, 4.0]
    assert reply.notes == (
        "tried again after 1.0 s: BackendUnavailable (503)",
        "tried again after 2.0 s: BackendTimeout",
        "tried again after 4.0 s: BackendUnavailable (503)",
        "own",
    )


def test_the_wait_is_capped() -> None:
    clock = Clock()
    asyncio.run(whole(retrying(Scripted([DOWN] * 5 + ["ok"]), clock, max_retries=5, base_s=1.0, cap_s=3.0)))
    assert clock.sleeps == [1.0, 2.0, 3.0, 3.0, 3.0]


def test_waits_are_spread_over_the_whole_range() -> None:
    clock = Clock()
    backend = Retry(Scripted([DOWN] * 200 + ["ok"]), max_retries=200, base_s=1.0, cap_s=1.0, sleep=clock.sleep)
    asyncio.run(whole(backend))
    assert min(clock.sleeps) < 0.2
    assert max(clock.sleeps) > 0.8


def test_the_server_gets_at_least_the_wait_it_asked_for() -> None:
    clock = Clock()
    asyncio.run(whole(retrying(Scripted([RateLimited("slow", retry_after_s=7.0), "ok"]), clock, base_s=1.0)))
    assert clock.sleeps == [8.0]


@both_ways
def test_a_longer_wait_than_allowed_is_not_waited_for(ask: Ask) -> None:
    clock = Clock()
    inner = Scripted([RateLimited("slow", status=429, retry_after_s=3600.0)])
    with pytest.raises(RateLimited, match="slow Not tried again: 3600 s is more than the 60 s") as caught:
        asyncio.run(ask(retrying(inner, clock)))
    assert (caught.value.status, caught.value.retry_after_s) == (429, 3600.0)
    assert clock.sleeps == []


@both_ways
def test_the_last_error_says_how_often_it_was_tried(ask: Ask) -> None:
    inner = Scripted([DOWN] * 3)
    with pytest.raises(BackendUnavailable, match="down Gave up after 3 tries") as caught:
        asyncio.run(ask(retrying(inner, Clock(), max_retries=2)))
    assert caught.value.__cause__ is DOWN
    assert len(inner.calls) == 3


def test_no_retry_starts_after_the_budget() -> None:
    clock = Clock()
    with pytest.raises(BackendUnavailable, match="after the 10 s allowed"):
        asyncio.run(whole(retrying(Scripted([DOWN] * 9), clock, max_retries=9, base_s=4.0, budget_s=10.0)))
    assert clock.sleeps == [4.0]


@both_ways
@pytest.mark.parametrize("error", [BackendRejected("no"), BadReply("what"), ContextTooLong("long"), ValueError("bug")])
def test_what_cannot_pass_is_not_retried(ask: Ask, error: Exception) -> None:
    inner = Scripted([error])
    with pytest.raises(type(error)) as caught:
        asyncio.run(ask(retrying(inner, Clock())))
    assert caught.value is error
    assert len(inner.calls) == 1


def test_a_stream_is_not_retried_after_its_first_piece() -> None:
    class Breaking(Scripted):
        async def stream(self, call: Call) -> AsyncGenerator[str | Reply, None]:
            self.calls.append(call)
            yield "one "
            raise DOWN

    inner, got = Breaking([]), list[str | Reply]()
    with pytest.raises(BackendUnavailable) as caught:
        asyncio.run(collect(retrying(inner, Clock()), got))
    assert caught.value is DOWN
    assert got == ["one "]
    assert len(inner.calls) == 1


# ---- Timeout ---------------------------------------------------------------------------------------------------------


@both_ways
def test_a_call_that_takes_too_long_is_cancelled(ask: Ask) -> None:
    async def main() -> Gate:
        gate = Gate()
        with pytest.raises(BackendTimeout, match=r"'m' took longer than the 0\.05 s"):
            await ask(Timeout(gate, 0.05))
        return gate

    gate = asyncio.run(main())
    assert gate.started == ["answer"]
    assert gate.under_way == 0


def test_a_stream_that_takes_too_long_keeps_its_pieces_and_counts_them() -> None:
    got: list[str | Reply] = []

    async def main() -> None:
        await collect(Timeout(Gate(), 0.05), got)

    with pytest.raises(BackendTimeout, match="4 characters had arrived"):
        asyncio.run(main())
    assert got == ["one "]


# ---- CircuitBreaker --------------------------------------------------------------------------------------------------


def fail(backend: Backend, ask: Ask = whole) -> BackendError:
    with pytest.raises(BackendError) as caught:
        asyncio.run(ask(backend))
    return caught.value


@both_ways
def test_the_circuit_opens_after_failures_in_a_row(ask: Ask) -> None:
    clock = Clock()
    inner = Scripted([DOWN, BackendTimeout("late"), "never asked for"])
    breaker = CircuitBreaker(inner, max_failures=2, pause_s=10, clock=clock)
    fail(breaker, ask)
    fail(breaker, ask)
    clock.now = 4
    error = fail(breaker, ask)
    assert isinstance(error, BackendUnavailable)
    assert error.retry_after_s == 6
    assert "'m' failed 2 times in a row" in str(error)
    assert "in 6.0 s" in str(error)
    assert len(inner.calls) == 2


@both_ways
def test_after_the_pause_a_success_closes_the_circuit(ask: Ask) -> None:
    clock = Clock()
    breaker = CircuitBreaker(Scripted([DOWN, "ok", DOWN, "ok"]), max_failures=1, pause_s=10, clock=clock)
    fail(breaker, ask)
    clock.now = 10
    assert asyncio.run(ask(breaker)).text == "ok"
    assert fail(breaker, ask) is DOWN


def test_after_the_pause_a_failure_opens_it_again() -> None:
    clock = Clock()
    breaker = CircuitBreaker(Scripted([DOWN, DOWN, DOWN]), max_failures=2, pause_s=10, clock=clock)
    fail(breaker)
    fail(breaker)
    clock.now = 10
    assert fail(breaker) is DOWN
    assert fail(breaker).retry_after_s == 10


def test_only_one_call_tries_while_the_others_are_kept_back() -> None:
    async def main() -> list[str]:
        clock, inner = Clock(), Scripted([DOWN, "trial", "after it"])
        breaker = CircuitBreaker(inner, max_failures=1, pause_s=10, clock=clock)
        with pytest.raises(BackendUnavailable):
            await whole(breaker)
        clock.now = 10
        trial = asyncio.ensure_future(whole(breaker))
        await asyncio.sleep(0)
        with pytest.raises(BackendUnavailable, match="left alone"):
            await whole(breaker)
        return [(await trial).text, (await whole(breaker)).text]

    assert asyncio.run(main()) == ["trial", "after it"]


@both_ways
def test_a_trial_that_the_caller_cancels_leaves_room_for_another(ask: Ask) -> None:
    async def main() -> Reply:
        clock = Clock()
        inner = Scripted([DOWN, "ok"])
        breaker = CircuitBreaker(inner, max_failures=1, pause_s=10, clock=clock)
        with pytest.raises(BackendUnavailable):
            await ask(breaker)
        clock.now = 10
        inner.latency_s = 60
        trial = asyncio.ensure_future(ask(breaker))
        await asyncio.sleep(0)
        trial.cancel()
        await asyncio.wait([trial])
        inner.latency_s = 0
        return await ask(breaker)

    assert asyncio.run(main()).text == "ok"


@pytest.mark.parametrize(
    "answer",
    [
        "ok",
        BackendRejected("no", status=400),
        RateLimited("slow", status=429),
        BackendUnavailable("conflict", status=409),
        BadReply("what"),
        ContextTooLong("long"),
    ],
)
def test_any_answer_of_the_server_ends_the_row_of_failures(answer: str | Exception) -> None:
    breaker = CircuitBreaker(Scripted([DOWN, answer] * 5), max_failures=2)

    async def main() -> list[str]:
        outcomes = await asyncio.gather(*[whole(breaker) for _ in range(10)], return_exceptions=True)
        return [str(getattr(outcome, "text", outcome)) for outcome in outcomes]

    expected = answer if isinstance(answer, str) else str(answer)
    assert asyncio.run(main()) == ["down", expected] * 5


def test_each_model_has_its_own_circuit() -> None:
    breaker = CircuitBreaker(Scripted([DOWN, "ok"]), max_failures=1)
    fail(breaker)
    assert asyncio.run(breaker.generate(Call(CALL.messages, "other"))).text == "ok"


# ---- ConcurrencyLimit ------------------------------------------------------------------------------------------------


@both_ways
def test_no_more_calls_than_allowed_are_under_way(ask: Ask) -> None:
    async def main() -> int:
        gate = Gate()
        limited = ConcurrencyLimit(gate, 3)
        tasks = [asyncio.ensure_future(ask(limited)) for _ in range(10)]
        await asyncio.sleep(0.01)
        assert gate.under_way == 3
        gate.opened.set()
        await asyncio.gather(*tasks)
        return gate.most

    assert asyncio.run(main()) == 3


def test_waiting_calls_are_served_in_the_order_they_came() -> None:
    async def main() -> list[str]:
        gate = Gate()
        gate.opened.set()
        limited = ConcurrencyLimit(gate, 1)
        await asyncio.gather(*[limited.generate(Call((), "m", purpose=str(i))) for i in range(6)])
        return gate.started

    assert asyncio.run(main()) == list("012345")


@given(st.lists(st.integers(0, 7)), st.integers(1, 4))
def test_cancelled_calls_leave_their_places_free(cancelled: list[int], limit: int) -> None:
    async def main() -> int:
        gate = Gate()
        limited = ConcurrencyLimit(gate, limit)
        tasks = [asyncio.ensure_future(whole(limited)) for _ in range(8)]
        for i in cancelled:
            await asyncio.sleep(0)
            tasks[i].cancel()
        gate.opened.set()
        await asyncio.wait(tasks)
        gate.opened.clear()
        again = [asyncio.ensure_future(whole(limited)) for _ in range(8)]
        await asyncio.sleep(0.001)
        places = gate.under_way
        gate.opened.set()
        await asyncio.gather(*again)
        return places

    assert asyncio.run(main()) == limit


def test_loops_in_several_threads_do_not_wait_for_each_other() -> None:
    limited = ConcurrencyLimit(Scripted(lambda call: "ok", latency_s=0.001), 1)
    errors: list[BaseException] = []

    async def main() -> None:
        await asyncio.gather(*[whole(limited) for _ in range(5)])  # contended, so a shared semaphore would raise

    def in_thread() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=in_thread) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert errors == []
