from __future__ import annotations

import asyncio
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.router.backends.scripted import Scripted
from longroute.router.core import Call, Message, Reply
from longroute.router.errors import BackendRejected, RateLimited


def call(text: str = "hi", purpose: str = "answer") -> Call:
    return Call((Message("user", text),), "m", purpose=purpose)


async def collect(backend: Scripted, one: Call) -> list[str | Reply]:
    return [piece async for piece in backend.stream(one)]


def test_replies_come_in_order_and_calls_are_kept() -> None:
    backend = Scripted(["one", Reply("two", finish_reason="length")])
    replies = [asyncio.run(backend.generate(call(text))) for text in ("a", "b")]
    assert replies == [Reply("one", model="m"), Reply("two", finish_reason="length")]
    assert backend.calls == [call("a"), call("b")]


def test_a_function_answers_from_the_call() -> None:
    backend = Scripted(lambda one: one.messages[0].content.upper())
    assert asyncio.run(backend.generate(call("hi"))).text == "HI"


def test_an_exception_in_the_script_is_raised_in_its_turn() -> None:
    backend = Scripted([RateLimited("slow down"), "then"])
    with pytest.raises(RateLimited):
        asyncio.run(backend.generate(call()))
    assert asyncio.run(backend.generate(call())).text == "then"


def test_a_script_that_ran_out_says_which_call_was_too_many() -> None:
    backend = Scripted(["one"])
    asyncio.run(backend.generate(call()))
    with pytest.raises(BackendRejected, match=re.escape("call 2 (purpose 'worker 2 of 8')")):
        asyncio.run(backend.generate(call(purpose="worker 2 of 8")))


@given(st.text())
def test_streamed_pieces_add_up_to_the_reply_that_comes_last(text: str) -> None:
    *pieces, reply = asyncio.run(collect(Scripted([text]), call()))
    assert reply == Reply(text, model="m")
    assert "".join(map(str, pieces)) == text
    assert all(len(str(piece).split()) <= 1 for piece in pieces)


def test_latency_lets_other_work_run_meanwhile() -> None:
    async def both() -> list[str]:
        done: list[str] = []

        async def ask(backend: Scripted, name: str) -> None:
            await backend.generate(call())
            done.append(name)

        await asyncio.gather(ask(Scripted(["x"], latency_s=0.02), "slow"), ask(Scripted(["x"]), "quick"))
        return done

    assert asyncio.run(both()) == ["quick", "slow"]
