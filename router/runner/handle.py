"""The caller's end of one request: events as they come, in a thread or on an event loop, and the means to cancel."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from ..errors import ConfigError
from .generation import Done, Generated, Piece, TokenChoice

Event = Piece | Done


class Handle:
    """Iterate over it once, with `for` or `async for`: pieces, then `Done`. An error of the request is raised there.

    Leaving the loop early cancels the request; its slot is free within one step of the engine.
    """

    def __init__(self, wake_engine: Callable[[], None]) -> None:
        self.cancelled = False
        self._wake_engine = wake_engine
        self._changed = threading.Condition()
        self._events: deque[Event | Exception] = deque()
        self._read = False  # to the end
        self._listener: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def cancel(self) -> None:
        """Ask the engine to stop this request. What it made until then still comes, and then `Done("cancelled")`."""
        self.cancelled = True
        self._wake_engine()

    def result(self) -> Generated:
        """Wait for the end and return the whole answer."""
        return _whole(list(self))

    async def result_async(self) -> Generated:
        return _whole([event async for event in self])

    def __iter__(self) -> Iterator[Event]:
        self._check()
        try:
            while not self._read:
                with self._changed:
                    self._changed.wait_for(lambda: self._events)
                    event = self._events.popleft()
                yield self._told(event)
        finally:
            if not self._read:
                self.cancel()

    async def __aiter__(self) -> AsyncIterator[Event]:
        self._check()
        arrived = asyncio.Event()
        with self._changed:
            self._listener = (asyncio.get_running_loop(), arrived)
        try:
            while not self._read:
                with self._changed:
                    event = self._events.popleft() if self._events else None
                    if event is None:
                        arrived.clear()
                if event is None:
                    await arrived.wait()
                    continue
                yield self._told(event)
        finally:
            with self._changed:
                self._listener = None
            if not self._read:
                self.cancel()

    def _check(self) -> None:
        if self._read:
            raise ConfigError("The answer of this handle was read already; keep it, or submit the request again.")

    def _told(self, event: Event | Exception) -> Event:
        self._read = not isinstance(event, Piece)
        if isinstance(event, Exception):
            raise event
        return event

    # ---- the engine's side ----

    def put(self, event: Event | Exception) -> None:
        """Called on the engine's thread; an exception ends the request."""
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()
            if self._listener is not None:
                loop, arrived = self._listener
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                    loop.call_soon_threadsafe(arrived.set)


def _whole(events: list[Event]) -> Generated:
    choices: list[TokenChoice] = [event.choice for event in events if isinstance(event, Piece)]
    done = events[-1]
    assert isinstance(done, Done)
    return Generated("".join(event.text for event in events), tuple(choices), done.reason, done.usage)
