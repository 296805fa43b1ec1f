"""The store finds the longest usable head, keeps within its bytes, and never writes to what it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from longroute.router.runner.prefixes import PrefixStore, as_ids, shared_length


@dataclass
class FakeCache:
    """A cache of one byte a token that remembers what was done to it; `window` is how far it can go back."""

    n_tokens: int
    window: int = 1 << 30
    room: int = 0

    @property
    def nbytes(self) -> int:
        return self.n_tokens

    def can_keep(self, n_tokens: int) -> bool:
        return self.n_tokens - self.window <= n_tokens <= self.n_tokens

    def keep_first(self, n_tokens: int) -> None:
        self.n_tokens = n_tokens

    def reserve(self, n_tokens: int) -> None:
        self.room = n_tokens

    def copy_first(self, n_tokens: int, room: int = 0) -> Self:
        return type(self)(n_tokens, self.window, room)


def store(max_bytes: int, *texts: tuple[int, ...], window: int = 1 << 30) -> PrefixStore[FakeCache]:
    made: PrefixStore[FakeCache] = PrefixStore(max_bytes, forgets=window < 1 << 30)
    for text in texts:
        made.put(as_ids(text), FakeCache(len(text), window))
    return made


SHORT = st.lists(st.integers(0, 2), max_size=12).map(tuple)


@given(one=SHORT, other=SHORT)
def test_the_shared_head_is_what_a_loop_counts(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    n = 0
    while n < min(len(one), len(other)) and one[n] == other[n]:
        n += 1
    assert shared_length(as_ids(one), as_ids(other)) == n


@given(
    texts=st.lists(SHORT, max_size=8), wanted=SHORT, window=st.sampled_from((0, 2, 1 << 30)), limit=st.integers(0, 12)
)
def test_the_longest_usable_head_is_found(
    texts: list[tuple[int, ...]], wanted: tuple[int, ...], window: int, limit: int
) -> None:
    found, saved = store(1000, *texts, window=window).best(as_ids(wanted), limit)
    usable = [min(shared_length(as_ids(text), as_ids(wanted)), limit) for text in texts]
    assert saved == max((n for n, t in zip(usable, texts, strict=True) if n >= len(t) - window), default=0)
    assert (found is None) == (saved == 0)


@given(texts=st.lists(SHORT, max_size=12), budget=st.integers(0, 30))
def test_the_store_stays_within_its_bytes(texts: list[tuple[int, ...]], budget: int) -> None:
    made = store(budget, *texts)
    assert made.nbytes <= budget


def test_the_least_recently_used_goes_first() -> None:
    made = store(9, (1, 1, 1, 1), (2, 2, 2, 2))
    found, _ = made.best(as_ids((1, 1, 9)), 2)
    assert found is not None
    made.take(found, 2, room=5)  # a copy, as half of it would be lost; now the other is the oldest
    made.put(as_ids((3, 3, 3, 3)), FakeCache(4))
    assert made.best(as_ids((1, 1, 1, 1)), 4)[1] == 4
    assert made.best(as_ids((2, 2, 2, 2)), 4)[1] == 0


def test_a_cache_used_nearly_whole_is_handed_over_and_others_are_copied() -> None:
    text = tuple(range(20))
    made = store(100, text)
    found, saved = made.best(as_ids((*text[:19], 99)), 19)
    assert found is not None
    assert made.take(found, saved, room=30) is found.cache
    assert (found.cache.n_tokens, found.cache.room, len(made)) == (19, 30, 0)
    made = store(100, text)
    found, saved = made.best(as_ids((*text[:10], 99)), 10)
    assert found is not None
    taken = made.take(found, saved, room=30)
    assert (taken.n_tokens, taken.room) == (10, 30)
    assert (found.cache.n_tokens, len(made)) == (20, 1)


def test_a_cache_that_forgets_is_never_handed_over() -> None:
    made = store(100, tuple(range(20)), window=4)
    found, saved = made.best(as_ids(range(18)), 17)
    assert found is not None
    assert made.take(found, saved, room=30) is not found.cache
    assert len(made) == 1


def test_a_longer_text_takes_the_place_of_its_own_beginning_unless_it_forgets() -> None:
    assert len(store(100, (1, 2), (1, 2, 3), (1,))) == 1
    assert len(store(100, (1, 2), (1, 2, 3), (1,), (1, 2), window=0)) == 3


def test_room_can_be_made_without_touching_the_one_in_use() -> None:
    made = store(100, (1, 1), (2, 2), (3, 3))
    spared, _ = made.best(as_ids((1, 1)), 2)
    assert made.evict(3, spare=spared) == 4
    assert (len(made), made.nbytes) == (1, 2)
    assert made.evict(10, spare=spared) == 0


def test_ids_compare_by_value_not_by_type() -> None:
    assert shared_length(as_ids([1, 2, 3]), np.array([1, 2, 4])) == 2
