from __future__ import annotations

import asyncio
import threading

from longroute.router.backends.per_loop import PerLoop


def test_a_loop_keeps_its_value_and_another_gets_its_own() -> None:
    values = PerLoop(object)

    async def twice() -> tuple[object, object]:
        return values.get(), values.get()

    first, again = asyncio.run(twice())
    other, _ = asyncio.run(twice())
    assert first is again
    assert other is not first


def test_values_of_closed_loops_are_dropped() -> None:
    values = PerLoop(object)

    async def use() -> None:
        values.get()

    for _ in range(3):
        asyncio.run(use())
    assert len(values.take_all()) == 1
    assert not values.take_all()


def test_loops_in_several_threads_each_get_one() -> None:
    values = PerLoop(object)
    meeting = threading.Barrier(4)
    seen: list[object] = []

    async def use() -> None:
        meeting.wait(5)
        seen.append(values.get())
        meeting.wait(5)  # no loop closes before all have asked

    threads = [threading.Thread(target=lambda: asyncio.run(use())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, seen))) == 4
    assert len(values.take_all()) == 4
