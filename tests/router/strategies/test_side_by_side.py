from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from longroute.router.backends.scripted import Scripted
from longroute.router.core import Answer, Call, Message, Outcome, Plan, Reply
from longroute.router.errors import BackendUnavailable, RouterError
from longroute.router.run import run
from longroute.router.strategies.side_by_side import Path, side_by_side


def call(purpose: str) -> Call:
    return Call((Message("user", purpose),), "m", purpose=purpose)


def steps(name: str, n: int) -> Path[str]:
    said = []
    for i in range(n):
        reply = yield call(f"{name}{i}")
        assert isinstance(reply, Reply)
        said.append(reply.text)
    return "".join(said)


def whole(paths: list[Path[str]], ends: list[Any]) -> Plan:
    ends += yield from side_by_side(paths)
    return Answer("done")


def test_each_path_gets_its_own_replies_and_a_round_is_sent_together() -> None:
    ends: list[Any] = []
    plan = whole([steps("a", 3), steps("b", 1), steps("c", 2)], ends)
    rounds = []
    step = next(plan)
    with pytest.raises(StopIteration):
        while True:
            calls = step if isinstance(step, tuple) else (step,)
            rounds.append([one.purpose for one in calls])
            replies = tuple(Reply(one.purpose) for one in calls)
            step = plan.send(replies if isinstance(step, tuple) else replies[0])
    assert rounds == [["a0", "b0", "c0"], ["a1", "c1"], ["a2"]]
    assert ends == ["a0a1a2", "b0", "c0c1"]


def test_a_failure_is_met_by_its_own_path() -> None:
    def careful() -> Path[str]:
        try:
            yield call("x")
        except RouterError as error:
            return f"met {error}"
        return "?"

    def answer(one: Call) -> str:
        if one.purpose in ("x", "b0"):
            raise BackendUnavailable("gone")
        return one.purpose

    ends: list[Any] = []
    run(whole([careful(), steps("a", 1), steps("b", 2)], ends), Scripted(answer))
    assert ends[:2] == ["met gone", "a0"] and isinstance(ends[2], BackendUnavailable)


def test_a_path_may_ask_for_several_calls_itself() -> None:
    def pair() -> Generator[tuple[Call, ...], tuple[Outcome, ...], str]:
        outcomes = yield call("p"), call("q")
        return "".join(one.text for one in outcomes if isinstance(one, Reply))

    ends: list[Any] = []
    run(whole([pair(), steps("a", 2)], ends), Scripted(lambda one: one.purpose))  # type: ignore[list-item]
    assert ends == ["pq", "a0a1"]


def test_paths_are_closed_with_the_whole() -> None:
    closed = []

    def path() -> Path[str]:
        try:
            yield call("x")
            yield call("y")
        finally:
            closed.append(True)
        return ""

    plan = whole([path(), path()], [])
    next(plan)
    plan.close()
    assert closed == [True, True]


def test_no_path_comes_to_nothing() -> None:
    ends: list[Any] = []
    run(whole([], ends), Scripted([]))
    assert ends == []
