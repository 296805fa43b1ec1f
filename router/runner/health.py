"""Whether the engine still gets anywhere, from what it says of itself. Pure: the clock is the caller's."""

from __future__ import annotations

from typing import Literal

from .engine import EngineMetrics
from .metrics import GAUGES

Health = Literal["ok", "stalled", "dead"]

_LONGEST_STEP_S = 600.0  # a chunk of 2,048 tokens behind a long text takes minutes where a large model has a small CPU


class Progress:
    """Remembers when the engine's counters last moved. Ask now and then; what happened in between is seen by them."""

    def __init__(self, longest_step_s: float = _LONGEST_STEP_S) -> None:
        self._longest_step_s = longest_step_s
        self._counters: tuple[float, ...] = ()
        self._moved_at = 0.0

    def health(self, is_alive: bool, metrics: EngineMetrics, now_s: float) -> Health:
        """is_alive: whether the engine's thread is there."""
        if not is_alive:
            return "dead"
        counters = tuple(getattr(metrics, name) for name in EngineMetrics.__dataclass_fields__ if name not in GAUGES)
        if counters != self._counters or not (metrics.waiting or metrics.running):
            self._counters, self._moved_at = counters, now_s
        return "stalled" if now_s - self._moved_at > self._longest_step_s else "ok"
