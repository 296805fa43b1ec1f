"""Who is next, without a model: turns are fair, heads that are being read are waited for."""

from __future__ import annotations

from typing import cast

import pytest

from longroute.router.errors import ConfigError
from longroute.router.runner.generation import Generation
from longroute.router.runner.handle import Handle
from longroute.router.runner.kv_cache import KVCache
from longroute.router.runner.scheduler import Job, Scheduler, longest_live


class FakeCache:
    """Counts tokens; can only go back as far as `window`."""

    def __init__(self, n_tokens: int, window: int = 1 << 30) -> None:
        self.n_tokens = n_tokens
        self.window = window

    def can_keep(self, n_tokens: int) -> bool:
        return self.n_tokens - self.window <= n_tokens <= self.n_tokens


def job(ids: tuple[int, ...], fed: int = 0, shared: int = 0, window: int = 1 << 30) -> Job:
    made = Job(Generation(ids, shared_tokens=shared), Handle(lambda: None), 10, 0.0)
    made.cache = cast(KVCache, FakeCache(fed, window))
    return made


def started(*jobs: Job, slots: int = 8) -> Scheduler:
    scheduler = Scheduler(slots)
    for one in jobs:
        scheduler.waiting.append(one)
        scheduler.start(one)
    return scheduler


def test_prompts_are_read_in_turn() -> None:
    a, b, c = job((1,)), job((2,)), job((3,))
    scheduler = started(a, b, c)
    assert [scheduler.next_prefill() for _ in range(5)] == [a, b, c, a, b]
    scheduler.decode(c)
    assert [scheduler.next_prefill() for _ in range(3)] == [a, b, a]
    assert scheduler.decoding == [c]


def test_slots_count_readers_and_writers() -> None:
    a, b = job((1,)), job((2,))
    scheduler = started(a, b, slots=2)
    scheduler.decode(a)
    states = [(scheduler.has_slot, bool(scheduler))]
    for one in (a, b):
        scheduler.drop(one)
        states.append((scheduler.has_slot, bool(scheduler)))
    assert states == [(False, True), (True, True), (True, False)]
    assert scheduler.next_prefill() is None


def test_a_chunk_ends_where_the_shared_head_does() -> None:
    reading = job(tuple(range(50)), fed=20, shared=30)
    assert reading.next_chunk(16) == 10
    reading.cache = cast(KVCache, FakeCache(30))
    assert reading.next_chunk(16) == 16
    reading.cache = cast(KVCache, FakeCache(45))
    assert reading.next_chunk(16) == 5


def test_a_head_that_is_being_read_is_worth_waiting_for_if_it_saves_a_chunk() -> None:
    document = tuple(range(100))
    reader = job((*document, 201), fed=32)
    asker = job((*document, 202))
    scheduler = started(reader)
    assert scheduler.worth_waiting(asker, 32, 16, forgets=False)
    assert not scheduler.worth_waiting(asker, 90, 16, forgets=False)
    assert not scheduler.worth_waiting(job((7, 8, 9) * 20), 0, 16, forgets=False)
    scheduler.decode(reader)
    assert not scheduler.worth_waiting(asker, 32, 16, forgets=False)


def test_a_model_that_forgets_leaves_only_the_declared_head() -> None:
    document = tuple(range(100))
    asker = job((*document, 202))
    assert not started(job((*document, 201), fed=32)).worth_waiting(asker, 0, 16, forgets=True)
    assert started(job((*document, 201), fed=32, shared=100)).worth_waiting(asker, 0, 16, forgets=True)
    assert not started(job((*document, 201), fed=100, shared=100)).worth_waiting(asker, 0, 16, forgets=True)


def test_the_longest_head_among_the_running_is_found() -> None:
    asker = job((1, 2, 3, 4, 5))
    a, b, c = job((1, 2, 9), fed=3), job((1, 2, 3, 4, 5, 6), fed=3), job((1, 2, 3, 4, 5, 6), fed=6, window=1)
    assert longest_live(asker, [a, b]) == (b, 3)
    assert longest_live(asker, [a, c]) == (a, 2)  # c has forgotten what it would take
    b.cache = cast(KVCache, FakeCache(6))
    assert longest_live(asker, [a, b]) == (b, 4)  # the last token of a prompt must be read to go on from it
    assert longest_live(asker, []) == (None, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_ids": ()}, "prompt_ids is empty"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"stop": ("",)}, "stop holds an empty text"),
        ({"shared_tokens": 4}, "shared_tokens is 4; the prompt has 3"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Generation(**{"prompt_ids": (1, 2, 3), **options})  # type: ignore[arg-type]
