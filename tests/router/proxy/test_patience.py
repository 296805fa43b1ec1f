"""How much the calls of one request may fail and wait."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from longroute.router.proxy.patience import Patience

FAILURES = st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e3) | st.none()), max_size=30)


def test_as_many_calls_may_fail_as_are_borne_or_have_succeeded() -> None:
    ended = []
    for succeeded, failures in ((0, 2), (0, 3), (3, 3), (3, 4)):
        patience = Patience(retries=2, wait_s=0, succeeded=succeeded)
        for _ in range(failures):
            patience.failure(0.0, None)
        ended.append(patience.ended)
    assert ended == [False, True, False, True]


def test_waits_that_overlap_count_once() -> None:
    patience = Patience(retries=9, wait_s=10)
    for wish in (6.0, 4.0, 6.0):
        patience.failure(100.0, wish)
    assert patience.wait_s == 4 and patience.delay_s(103.0) == 3 and not patience.ended
    patience.failure(106.0, 5.0)
    assert patience.ended


@given(FAILURES)
def test_what_is_waited_and_what_fails_is_bounded(failures: list[tuple[float, float | None]]) -> None:
    patience, waited, now = Patience(retries=4, wait_s=60), 0.0, 0.0
    for later, wish in failures:
        if patience.ended:
            break
        delay = patience.delay_s(now)
        waited, now = waited + delay, max(now + delay, later)
        patience.failure(now, wish)
    assert patience.failed <= 5
    assert waited <= 60 or math.isclose(waited, 60)
