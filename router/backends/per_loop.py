"""One value per event loop, for what may not travel between loops: HTTP connections, asyncio primitives.

A backend is used from the synchronous driver's loop and from its users' own loops, one after another or at once.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerLoop(Generic[T]):
    """Makes a value the first time a loop asks for it; safe to use from several threads.

    Weak keys would never die here, because connections and contended semaphores refer back to their loop. So the
    values of closed loops are dropped whenever a new loop asks.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: dict[asyncio.AbstractEventLoop, T] = {}
        self._lock = threading.Lock()

    def get(self) -> T:
        """The value of the running loop."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if loop not in self._values:
                self._values = {known: value for known, value in self._values.items() if not known.is_closed()}
                self._values[loop] = self._make()
            return self._values[loop]

    def take_all(self) -> dict[asyncio.AbstractEventLoop, T]:
        """Every value, by loop; they are forgotten here."""
        with self._lock:
            taken, self._values = self._values, {}
        return taken
