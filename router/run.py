"""Drivers of plans: the only place where a plan meets a backend.

`run` and `stream` are synchronous, `arun` and `astream` asynchronous; each pair is the same loop. Between calls a plan
may block (retrieval, compression), so the asynchronous drivers advance it in a worker thread. Backends are asynchronous
only; the synchronous drivers run them on one background event loop, which works inside notebooks and other loops too.

A failed call is thrown into the plan at the point where it waits, so a plan may handle it (another strategy); of calls
side by side each failure is handed in beside the others' replies (one worker skipped). Once pieces of an answer were
handed out, the failure goes to the caller instead: what was said cannot be unsaid.
"""

from __future__ import annotations

import asyncio
import functools
import os
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from decimal import Decimal
from typing import Any, TypeVar

from .core import Answer, Backend, Call, CallRecord, Outcome, Plan, Reply, Usage
from .errors import RouterError
from .replies import shortcoming

T = TypeVar("T")
Calls = Call | tuple[Call, ...]
Outcomes = Outcome | tuple[Outcome, ...]
Listener = Callable[[Call, Outcome], None]
"""Told of every call and what became of it, as it ends. Runs on the event loop, so it must be quick."""


def run(plan: Plan, backend: Backend, listener: Listener | None = None) -> Answer:
    """Carry out a plan and return its answer. Blocks; works inside a running event loop too, though it stalls it."""
    trace = _Trace(listener)
    step = _advance(plan, None)
    while not isinstance(step, Answer):
        step = _advance(plan, _wait(_perform(step, backend, trace)))
    return trace.complete(step)


async def arun(plan: Plan, backend: Backend, listener: Listener | None = None) -> Answer:
    """`run` for asynchronous callers. Cancelling it cancels every outstanding call."""
    trace = _Trace(listener)
    try:
        step = await asyncio.to_thread(_advance, plan, None)
        while not isinstance(step, Answer):
            outcome = await _perform(step, backend, trace)
            step = await asyncio.to_thread(_advance, plan, outcome)
    finally:
        _close(plan)
    return trace.complete(step)


async def astream(plan: Plan, backend: Backend, listener: Listener | None = None) -> AsyncGenerator[str | Answer, None]:
    """Yields the pieces of the answer as they come, then the whole Answer, once, last.

    An answer that no call could stream, as it was chosen only when it was complete (by a vote, or kept by Self-Route),
    is one piece.
    """
    trace = _Trace(listener)
    handed_out = False
    try:
        step = await asyncio.to_thread(_advance, plan, None)
        while not isinstance(step, Answer):
            outcome: Outcomes | None = None
            if isinstance(step, Call) and step.final:
                async with aclosing(_pieces(step, backend, trace)) as pieces:
                    async for piece in pieces:
                        if isinstance(piece, str):
                            handed_out = True
                            yield piece
                        else:
                            outcome = piece
            else:
                outcome = await _perform(step, backend, trace)
            step = await asyncio.to_thread(_advance, plan, outcome)
    finally:
        _close(plan)
    if step.text and not handed_out:
        yield step.text
    yield trace.complete(step)


def ask_all(calls: Sequence[Call], backend: Backend) -> list[Outcome]:
    """Each call's reply or failure, in order; side by side. Blocks."""

    async def one(call: Call) -> Outcome:
        try:
            return await backend.generate(call)
        except RouterError as error:
            return error

    async def all_of_them() -> list[Outcome]:
        return await asyncio.gather(*map(one, calls))

    return _wait(all_of_them())


def stream(plan: Plan, backend: Backend, listener: Listener | None = None) -> Generator[str | Answer, None, None]:
    """`astream` for synchronous callers. Closing the generator early cancels the outstanding calls."""
    arrived: queue.SimpleQueue[str | Answer | None] = queue.SimpleQueue()

    async def pump() -> None:
        try:
            async with aclosing(astream(plan, backend, listener)) as pieces:
                async for piece in pieces:
                    arrived.put(piece)
        finally:
            arrived.put(None)

    pumping = asyncio.run_coroutine_threadsafe(pump(), _background_loop())
    try:
        while (piece := arrived.get()) is not None:
            yield piece
        pumping.result()  # raises what went wrong, where something did
    finally:
        pumping.cancel()


def _advance(plan: Plan, outcome: Outcomes | None) -> Calls | Answer:
    """Send the outcome of the last step into the plan; return its next calls, or its answer when it has finished."""
    try:
        return plan.throw(outcome) if isinstance(outcome, RouterError) else plan.send(outcome)  # type: ignore[arg-type]
    except StopIteration as finished:
        answer: Answer = finished.value
        return answer


def _close(plan: Plan) -> None:
    with suppress(ValueError):  # "generator already executing": a cancelled step is still on its way out of a thread
        plan.close()


async def _perform(step: Calls, backend: Backend, trace: _Trace) -> Outcomes:
    """Run one step's calls, side by side where there are several."""
    if isinstance(step, Call):
        return await trace.timed(step, backend)
    tasks = [asyncio.ensure_future(trace.timed(call, backend)) for call in step]
    try:
        return tuple(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pieces(call: Call, backend: Backend, trace: _Trace) -> AsyncGenerator[str | Outcome, None]:
    """Pieces of one streamed call, then its Reply, or the error where nothing had been handed out yet."""
    started = time.perf_counter()
    handed_out = False
    try:
        async with aclosing(backend.stream(call)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Reply):
                    trace.add(call, piece, started)
                else:
                    handed_out = True
                yield piece
    except RouterError as error:
        if handed_out:
            raise
        trace.tell(call, error)
        yield error


class _Trace:
    """Collects what the calls of one plan took."""

    def __init__(self, listener: Listener | None) -> None:
        self.records: list[CallRecord] = []
        self._listener = listener

    async def timed(self, call: Call, backend: Backend) -> Outcome:
        started = time.perf_counter()
        try:
            reply = await backend.generate(call)
        except RouterError as error:
            self.tell(call, error)
            return error
        self.add(call, reply, started)
        return reply

    def add(self, call: Call, reply: Reply, started: float) -> None:
        elapsed = time.perf_counter() - started
        said = shortcoming(reply) if call.final else ""
        notes = (*reply.notes, said) if said else reply.notes
        self.records.append(CallRecord(call.purpose, reply.usage, elapsed, reply.finish_reason, notes))
        self.tell(call, reply)

    def tell(self, call: Call, outcome: Outcome) -> None:
        if self._listener is not None:
            self._listener(call, outcome)

    def complete(self, answer: Answer) -> Answer:
        usages = [record.usage for record in self.records]
        total = functools.reduce(Usage.__add__, usages) if usages else Usage(cost_usd=Decimal(0))
        notes = tuple(note for record in self.records for note in record.notes)
        return replace(answer, usage=total, calls=tuple(self.records), notes=answer.notes + notes)


# ---- the event loop of synchronous callers ---------------------------------------------------------------------------

_starting = threading.Lock()


@functools.cache
def _started_loop(process_id: int) -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="longroute-calls", daemon=True).start()
    return loop


def _background_loop() -> asyncio.AbstractEventLoop:
    """One loop in one daemon thread per process: keyed by process id, because a thread does not survive a fork."""
    with _starting:
        return _started_loop(os.getpid())


def _wait(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the background loop; Ctrl-C in the waiting thread cancels it."""
    future = asyncio.run_coroutine_threadsafe(work, _background_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise
