from __future__ import annotations

from longroute.router.runner.engine import EngineMetrics
from longroute.router.runner.health import Progress

IDLE = EngineMetrics()
BUSY = EngineMetrics(submitted=1, running=1)


def test_an_engine_that_works_or_has_nothing_to_do_is_well() -> None:
    progress = Progress(longest_step_s=10)
    assert progress.health(True, IDLE, 0.0) == "ok"
    assert progress.health(True, IDLE, 1000.0) == "ok"
    assert progress.health(True, BUSY, 2000.0) == "ok"  # nobody asked for long, and the work may be new
    assert progress.health(True, EngineMetrics(submitted=1, running=1, prefilled_tokens=5), 2011.0) == "ok"


def test_work_that_does_not_move_for_longer_than_a_step_takes_is_stalled() -> None:
    progress = Progress(longest_step_s=10)
    assert progress.health(True, BUSY, 0.0) == "ok"
    assert progress.health(True, BUSY, 9.0) == "ok"
    assert progress.health(True, BUSY, 11.0) == "stalled"
    assert progress.health(True, EngineMetrics(submitted=2, running=1, waiting=1), 12.0) == "ok"  # a new request
    assert progress.health(True, IDLE, 13.0) == "ok"


def test_without_its_thread_an_engine_is_dead_whatever_it_counts() -> None:
    assert Progress().health(False, IDLE, 0.0) == "dead"
