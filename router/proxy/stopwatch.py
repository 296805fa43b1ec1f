"""Which stage of a request is under way, and how long each has taken."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .records import Phase, Step


class Stopwatch:
    """Stages follow one another; entering one ends the one before. clock: seconds from any fixed moment."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._started = self._entered = clock()
        self.stage: Step = "queue"
        self.timings_s: dict[Phase, float] = {}

    def enter(self, stage: Step) -> None:
        self._add()
        self.stage = stage

    @contextmanager
    def lent(self) -> Iterator[Stopwatch]:
        """A watch that enters stages of this one until the block ends: a worker thread may be at work for longer."""
        lent = _Lent(self)
        try:
            yield lent
        finally:
            lent.owner = None

    def stop(self) -> None:
        """Ends the stage under way, and the whole."""
        self._add()
        self.timings_s["total"] = self._entered - self._started

    def _add(self) -> None:
        now = self._clock()
        self.timings_s[self.stage] = self.timings_s.get(self.stage, 0.0) + now - self._entered
        self._entered = now


class _Lent(Stopwatch):
    def __init__(self, owner: Stopwatch) -> None:
        super().__init__()
        self.owner: Stopwatch | None = owner

    def enter(self, stage: Step) -> None:
        if (owner := self.owner) is not None:
            owner.enter(stage)
