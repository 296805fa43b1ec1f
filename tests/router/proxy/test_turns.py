"""Whose turn it is, where more calls are wanted than may be under way."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from longroute.router.proxy.turns import Turns


class Crowd:
    """Calls that note who has a place; each keeps it for a few rounds of the event loop."""

    def __init__(self, places: int) -> None:
        self.turns = Turns(places)
        self.order: list[str] = []
        self.under_way = self.most = 0

    async def call(self, request: str, rounds: int = 1) -> None:
        async with self.turns.turn(request):
            self.order.append(request)
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            try:
                for _ in range(rounds):
                    await asyncio.sleep(0)
            finally:
                self.under_way -= 1


def test_a_request_with_many_calls_does_not_hold_up_one_with_few() -> None:
    async def main() -> list[str]:
        crowd = Crowd(1)
        await asyncio.gather(*(crowd.call("many") for _ in range(6)), *(crowd.call("few") for _ in range(2)))
        return crowd.order

    assert asyncio.run(main()) == ["many", "many", "few", "many", "few", "many", "many", "many"]


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.none() | st.integers(0, 6)), max_size=20),
)
def test_places_are_never_exceeded_nor_lost_whoever_gives_up(
    places: int, calls: list[tuple[str, int, int | None]]
) -> None:
    """calls: request, rounds that its call takes, and the round in which it is given up."""

    async def main() -> Crowd:
        crowd = Crowd(places)
        tasks = [asyncio.ensure_future(crowd.call(request, rounds)) for request, rounds, _ in calls]
        for now in range(7):
            for task, (_, _, given_up) in zip(tasks, calls, strict=True):
                if given_up == now:
                    task.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert crowd.turns.waiting == 0 and crowd.most <= places
        crowd.most = 0
        await asyncio.gather(*(crowd.call("late", 2) for _ in range(2 * places)))
        return crowd

    assert asyncio.run(main()).most == places, "every place is there again"
