"""Whose turn it is, where more calls are wanted than may be under way at once."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """At most `places` at a time. Requests take turns, so one with hundreds of calls does not hold up the others.

    Whoever has a place must not wait for another one; then no two can wait for each other. Belongs to one event loop.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()  # next request first

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def turn(self, request: str) -> AsyncIterator[None]:
        """A place for one call of the request of this id."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(request)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, request: str) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._waiting.setdefault(request, deque())
        queue.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # given a place just when it no longer wanted one
                self._pass_on()
            elif place in queue:
                queue.remove(place)
                if not queue:
                    del self._waiting[request]
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            request, queue = self._waiting.popitem(last=False)
            place = queue.popleft()
            if queue:
                self._waiting[request] = queue  # behind all others
            if not place.done():
                place.set_result(None)
                return
        self._free += 1
