"""The caller's end, fed by hand: events in order, errors where they are waited for, cancelling by leaving."""

from __future__ import annotations

import asyncio
import threading

import pytest

from longroute.router.errors import BackendError, ConfigError
from longroute.router.runner.generation import Done, GenerationUsage, Piece, TokenChoice
from longroute.router.runner.handle import Handle

DONE = Done("stop", GenerationUsage(1, 0, 2, 0.0, 0.0, 0.0), "!")
PIECES = [Piece(TokenChoice(4), "a"), Piece(TokenChoice(5), "b")]


def fed(*events: Piece | Done | Exception) -> tuple[Handle, list[str]]:
    woken: list[str] = []
    handle = Handle(lambda: woken.append("engine"))
    for event in events:
        handle.put(event)
    return handle, woken


def test_events_come_in_order_and_make_a_whole() -> None:
    handle, woken = fed(*PIECES, DONE)
    assert list(handle) == [*PIECES, DONE]
    whole = fed(*PIECES, DONE)[0].result()
    assert (whole.text, whole.token_ids, whole.reason) == ("ab!", (4, 5), "stop")
    assert (handle.cancelled, woken) == (False, [])
    with pytest.raises(ConfigError, match="was read already"):
        handle.result()


def test_an_error_is_raised_where_it_is_waited_for() -> None:
    handle, _ = fed(PIECES[0], BackendError("broken"))
    events = iter(handle)
    assert next(events) == PIECES[0]
    with pytest.raises(BackendError, match="broken"):
        next(events)
    assert not handle.cancelled

    async def read() -> None:
        await fed(BackendError("broken"))[0].result_async()

    with pytest.raises(BackendError, match="broken"):
        asyncio.run(read())


def test_leaving_the_loop_cancels_and_wakes_the_engine() -> None:
    handle, woken = fed(*PIECES)
    events = iter(handle)
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert (handle.cancelled, woken) == (True, ["engine"])


def test_a_waiting_event_loop_is_woken_from_another_thread() -> None:
    handle, _ = fed()

    def feed() -> None:
        for piece in PIECES:
            handle.put(piece)
        handle.put(DONE)

    async def read() -> list[Piece | Done]:
        threading.Timer(0.02, feed).start()
        return [event async for event in handle]

    assert asyncio.run(read()) == [*PIECES, DONE]


def test_a_cancelled_task_cancels_its_request() -> None:
    handle, woken = fed(PIECES[0])

    async def read() -> None:
        reading = asyncio.create_task(handle.result_async())
        await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    asyncio.run(read())
    assert (handle.cancelled, woken) == (True, ["engine"])
    handle.put(DONE)  # the loop is closed; the engine need not care
