"""Using up a budget by aiming again."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from longroute.compressors.aiming import aimed
from longroute.compressors.compression import Compressed


def result(tokens: int) -> list[Compressed]:
    return [Compressed("x" * tokens, ((0, tokens),) if tokens else (), (0,) if tokens else (), 10**6, tokens)]


def test_what_comes_out_too_long_or_too_short_is_aimed_at_again() -> None:
    for error in (0.8, 0.95, 1.0, 1.05, 1.2):
        tried: list[float] = []

        def select(aim: float, error: float = error, tried: list[float] = tried) -> list[Compressed]:
            tried.append(aim)
            return result(int(aim * error))

        [found] = aimed(select, 1000, [10**6])
        assert 950 <= found.tokens_after <= 1000
        assert len(tried) <= 8 and tried[0] == 1000


def test_nothing_is_better_than_too_much() -> None:
    [found] = aimed(lambda aim: result(7), 5, [10**6])
    assert found == Compressed("", (), (), 10**6, 0)


@settings(deadline=None)
@given(st.integers(0, 500), st.lists(st.floats(0, 3), min_size=1, max_size=8))
def test_the_budget_is_never_exceeded(budget: int, errors: list[float]) -> None:
    number = iter(range(100))
    found = aimed(lambda aim: result(math.ceil(aim * errors[next(number) % len(errors)])), budget, [10**6])
    assert sum(part.tokens_after for part in found) <= budget
