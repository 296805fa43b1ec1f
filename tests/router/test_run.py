from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from decimal import Decimal

import pytest

from longroute.router.backends.scripted import Scripted
from longroute.router.core import Answer, Call, Message, Outcome, Plan, Reply, Usage
from longroute.router.errors import BackendUnavailable
from longroute.router.run import arun, astream, run, stream


def call(text: str, *, final: bool = True) -> Call:
    return Call((Message("user", text),), model="m", purpose=text, final=final)


def two_steps() -> Plan:
    first = yield call("first", final=False)
    assert isinstance(first, Reply)
    second = yield call(f"second after {first.text}")
    assert isinstance(second, Reply)
    return Answer(second.text)


def side_by_side(count: int) -> Plan:
    outcomes = yield tuple(call(f"part {n}", final=False) for n in range(count))
    assert isinstance(outcomes, tuple)
    return Answer(" ".join(outcome.text if isinstance(outcome, Reply) else str(outcome) for outcome in outcomes))


def echo(made: Call) -> str:
    return made.messages[-1].content.upper()


def test_replies_reach_the_plan_in_order() -> None:
    backend = Scripted(echo)
    answer = run(two_steps(), backend)
    assert answer.text == "SECOND AFTER FIRST"
    assert [record.purpose for record in answer.calls] == ["first", "second after FIRST"]


def test_synchronous_and_asynchronous_drivers_agree() -> None:
    assert run(two_steps(), Scripted(echo)).text == asyncio.run(arun(two_steps(), Scripted(echo))).text


def test_run_works_inside_a_running_loop() -> None:
    async def main() -> str:
        return run(two_steps(), Scripted(echo)).text

    assert asyncio.run(main()) == "SECOND AFTER FIRST"


def test_several_calls_run_at_once_and_return_in_order() -> None:
    together = asyncio.Event()
    waiting: list[str] = []

    class AllMustArrive:
        async def generate(self, made: Call) -> Reply:
            waiting.append(made.purpose)
            if len(waiting) == 3:
                together.set()
            await asyncio.wait_for(together.wait(), 5)
            return Reply(made.purpose)

        async def stream(self, made: Call) -> AsyncGenerator[str | Reply, None]:
            yield Reply("")

        async def aclose(self) -> None: ...

    assert run(side_by_side(3), AllMustArrive()).text == "part 0 part 1 part 2"


def test_usage_adds_up_and_an_unknown_price_stays_unknown() -> None:
    known = Reply("a", Usage(10, 4, 2, Decimal("0.1")))
    unknown = Reply("b", Usage(5, 0, 1, None))
    total = run(two_steps(), Scripted([known, known])).usage
    assert total == Usage(20, 8, 4, Decimal("0.2"))
    assert run(two_steps(), Scripted([known, unknown])).usage.cost_usd is None


def test_a_plan_without_calls_costs_nothing() -> None:
    def nothing() -> Plan:
        yield from ()
        return Answer("known already")

    assert run(nothing(), Scripted([])).usage.cost_usd == 0


def test_a_failed_call_can_be_handled_by_the_plan() -> None:
    def careful() -> Plan:
        try:
            reply = yield call("risky")
        except BackendUnavailable:
            reply = yield call("safe")
        assert isinstance(reply, Reply)
        return Answer(reply.text)

    assert run(careful(), Scripted([BackendUnavailable("down"), "fine"])).text == "fine"
    pieces = list(stream(careful(), Scripted([BackendUnavailable("down"), "fine"])))
    assert isinstance(pieces[-1], Answer)
    assert pieces[-1].text == "fine"


def test_an_unhandled_failure_reaches_the_caller() -> None:
    with pytest.raises(BackendUnavailable, match="down"):
        run(two_steps(), Scripted([BackendUnavailable("down")]))
    with pytest.raises(BackendUnavailable, match="down"):
        list(stream(two_steps(), Scripted([BackendUnavailable("down")])))


def test_of_calls_side_by_side_each_failure_is_handed_in_beside_the_replies() -> None:
    def one_fails(made: Call) -> str:
        if made.purpose == "part 1":
            raise BackendUnavailable("down")
        return made.purpose

    assert run(side_by_side(3), Scripted(one_fails)).text == "part 0 down part 2"


def test_a_listener_hears_of_every_call_and_what_became_of_it() -> None:
    heard: list[tuple[str, str]] = []

    def listen(made: Call, outcome: Outcome) -> None:
        heard.append((made.purpose, outcome.text if isinstance(outcome, Reply) else str(outcome)))

    run(two_steps(), Scripted(echo), listen)
    assert heard == [("first", "FIRST"), ("second after FIRST", "SECOND AFTER FIRST")]
    streamed = list(heard)
    heard.clear()
    list(stream(two_steps(), Scripted(echo), listen))
    assert heard == streamed
    heard.clear()
    with pytest.raises(BackendUnavailable):
        run(two_steps(), Scripted([BackendUnavailable("down")]), listen)
    assert heard == [("first", "down")]


def test_only_the_final_call_is_streamed() -> None:
    *pieces, answer = stream(two_steps(), Scripted(["hidden words", "shown words here"]))
    assert "".join(piece for piece in pieces if isinstance(piece, str)) == "shown words here"
    assert len(pieces) > 1
    assert isinstance(answer, Answer)
    assert answer.text == "shown words here"
    assert len(answer.calls) == 2


class BreaksAfterOnePiece:
    async def generate(self, made: Call) -> Reply:
        return Reply("never asked")

    async def stream(self, made: Call) -> AsyncGenerator[str | Reply, None]:
        yield "half an ans"
        raise BackendUnavailable("connection lost")

    async def aclose(self) -> None: ...


def test_what_was_handed_out_is_not_replaced_by_a_second_try() -> None:
    asked = []

    def careful() -> Plan:
        try:
            reply = yield call("risky")
        except BackendUnavailable:
            asked.append("again")
            reply = yield call("safe")
        assert isinstance(reply, Reply)
        return Answer(reply.text)

    pieces = stream(careful(), BreaksAfterOnePiece())
    assert next(pieces) == "half an ans"
    with pytest.raises(BackendUnavailable, match="lost"):
        next(pieces)
    assert asked == []


class Endless:
    """Streams until it is cancelled, and says when it was."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()

    async def generate(self, made: Call) -> Reply:
        try:
            await asyncio.sleep(60)
        finally:
            self.cancelled.set()
        return Reply("")

    async def stream(self, made: Call) -> AsyncGenerator[str | Reply, None]:
        try:
            while True:
                yield "more "
                await asyncio.sleep(0.001)
        finally:
            self.cancelled.set()

    async def aclose(self) -> None: ...


def one_step() -> Plan:
    reply = yield call("only")
    assert isinstance(reply, Reply)
    return Answer(reply.text)


def test_closing_a_stream_early_cancels_the_call() -> None:
    backend = Endless()
    pieces = stream(one_step(), backend)
    assert next(pieces) == "more "
    pieces.close()
    assert backend.cancelled.wait(5)


def test_cancelling_the_task_cancels_the_call_and_closes_the_plan() -> None:
    backend = Endless()
    closed = []

    def watched() -> Plan:
        try:
            reply = yield call("only")
        finally:
            closed.append(True)
        assert isinstance(reply, Reply)
        return Answer(reply.text)

    async def main() -> None:
        task = asyncio.create_task(arun(watched(), backend))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert backend.cancelled.is_set()
    assert closed == [True]


def test_the_event_loop_keeps_turning_while_a_plan_works() -> None:
    release = threading.Event()

    def blocking() -> Plan:
        assert release.wait(5), "the loop never got to run"
        reply = yield call("after")
        assert isinstance(reply, Reply)
        return Answer(reply.text)

    async def main() -> str:
        asyncio.get_running_loop().call_later(0.01, release.set)
        return (await arun(blocking(), Scripted(["done"]))).text

    assert asyncio.run(main()) == "done"


def test_asynchronous_stream_ends_with_the_answer() -> None:
    async def main() -> list[str | Answer]:
        return [piece async for piece in astream(two_steps(), Scripted(["a", "b c"]))]

    *pieces, answer = asyncio.run(main())
    assert "".join(p for p in pieces if isinstance(p, str)) == "b c"
    assert isinstance(answer, Answer)
