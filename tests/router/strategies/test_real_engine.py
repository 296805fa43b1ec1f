"""Strategies of several calls against a real engine: `transformers serve` with a toy model.

The model says nonsense, always the same. What is shown: every way to ask gives the same answer, whoever goes away takes
every outstanding call along, and money that runs out in the middle leaves an answer that says so.
"""

from __future__ import annotations

import asyncio
import importlib.util
import random
from collections.abc import Iterator
from contextlib import aclosing, closing, contextmanager, suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from longroute.benchmarks.tiny_engine import NEEDS, make_model, serving
from longroute.router.assemble import Router, make_backend
from longroute.router.core import Answer, Document, Goal, ModelProfile
from longroute.router.run import run
from longroute.router.settings import Settings, load_settings

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # those of the model libraries

QUESTION = "Who brought the compass to Velm?"
DRAW = random.Random(4)
TEXT = " ".join(
    f"In {DRAW.randint(1200, 1800)} {DRAW.choice(('Orla', 'Bram'))} brought {DRAW.choice(('salt', 'bells'))} to Velm."
    for _ in range(250)
)
STRATEGIES = ("chain_of_agents", "retrieve_then_reason", "self_route")
WINDOW = 4000
AGENTS = {"window_tokens": 3000, "notes_tokens": 300, "worker_output_tokens": 64}
ABORT_S = 30


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Its address and its model."""
    for package in NEEDS:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'transformers[serving]'")
    model = make_model(tmp_path_factory.mktemp("model"), [TEXT, QUESTION])
    with serving(model) as address:
        yield address, model


def settings_of(address: str, model: Path, strategy: str, **agents: Any) -> Settings:
    return load_settings(
        model=str(model),
        base_url=f"{address}/v1",
        api_key="sk-none",
        tokenizer=str(model / "tokenizer.json"),
        policy=f"fixed:{strategy}",
        allowed=(strategy,),
        embedding_model="none",
        rag_budget_tokens=400,
        max_output_tokens=24,
        agents=AGENTS | agents,
    )


def profile(name: str) -> ModelProfile:
    return ModelProfile(name, WINDOW, 32, input_usd_per_mtok=Decimal(10), output_usd_per_mtok=Decimal(40))


def router_of(address: str, model: Path, strategy: str, **agents: Any) -> Router:
    return Router(settings_of(address, model, strategy, **agents), profile_of=profile)


@contextmanager
def asking(address: str, model: Path, strategy: str) -> Iterator[Router]:
    router = router_of(address, model, strategy)
    yield router
    asyncio.run(router.aclose())


def documents(n: int = 1) -> list[Document]:
    return [Document(TEXT, f"book-{number}") for number in range(n)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_way_to_ask_gives_the_same_answer(engine: tuple[str, Path], strategy: str) -> None:
    async def asynchronously(router: Router) -> tuple[Answer, list[str | Answer]]:
        whole = await router.aanswer(QUESTION, documents())
        async with aclosing(router.astream(QUESTION, documents())) as pieces:
            return whole, [piece async for piece in pieces]

    with asking(*engine, strategy) as router:
        whole = router.answer(QUESTION, documents())
        with closing(router.stream(QUESTION, documents())) as streaming:
            streamed = list(streaming)
        awaited, astreamed = asyncio.run(asynchronously(router))
    assert whole.text
    assert len(whole.calls) >= (1 if strategy == "self_route" else 3 if strategy == "chain_of_agents" else 2)
    assert whole.usage.prompt_tokens == sum(call.usage.prompt_tokens for call in whole.calls)
    assert whole.usage.prompt_tokens > 0
    for others in (streamed, astreamed):
        *pieces, last = others
        assert isinstance(last, Answer)
        assert last.text == whole.text
        assert "".join(map(str, pieces)) == whole.text
        assert [call.purpose for call in last.calls] == [call.purpose for call in whole.calls]
    assert awaited.text == whole.text


@pytest.mark.parametrize("strategy", ["chain_of_agents", "retrieve_then_reason"])
def test_prompts_are_within_the_window_as_the_engine_counts_them(engine: tuple[str, Path], strategy: str) -> None:
    with asking(*engine, strategy) as router:
        answer = router.answer(QUESTION, documents(2))
    limit = AGENTS["window_tokens"] if strategy == "chain_of_agents" else WINDOW
    assert max(call.usage.prompt_tokens + 64 for call in answer.calls[:-1]) <= limit
    assert answer.calls[-1].usage.prompt_tokens + 24 <= WINDOW


class Relay:
    """Passes bytes to an engine and back; all but the first few requests never get their answer.

    held: connections whose client waits for an answer that does not come. left: how many of these went away.
    """

    def __init__(self, port: int, answered: int) -> None:
        self._port = port
        self._answered = answered
        self.held: set[asyncio.StreamWriter] = set()
        self.left = 0
        self._changed = asyncio.Event()

    async def until_held(self, n: int) -> None:
        """Until so many clients wait for an answer that does not come."""
        async with asyncio.timeout(ABORT_S):
            while len(self.held) != n:
                self._changed.clear()
                await self._changed.wait()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, to_upstream = await asyncio.open_connection("127.0.0.1", self._port)
        asked = False

        async def back() -> None:
            nonlocal asked
            while piece := await upstream.read(1 << 16):
                asked = False
                if writer not in self.held:
                    writer.write(piece)

        returning = asyncio.create_task(back())
        with suppress(ConnectionError):
            while piece := await reader.read(1 << 16):
                if not asked:
                    asked, self._answered = True, self._answered - 1
                    if self._answered < 0:
                        self.held.add(writer)
                        self._changed.set()
                to_upstream.write(piece)
        if writer in self.held:
            self.left += 1
            self.held.remove(writer)
            self._changed.set()
        returning.cancel()
        for end in (to_upstream, writer):
            end.close()


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("strategy", "agents", "answered", "outstanding"),
    [
        ("chain_of_agents", {}, 1, 1),
        ("chain_of_agents", {"variant": "permutation", "paths": 3}, 4, 2),
        ("retrieve_then_reason", {}, 0, 2),
        ("self_route", {}, 0, 1),
    ],
)
def test_cancelling_in_the_middle_stops_every_outstanding_call(
    engine: tuple[str, Path], strategy: str, agents: dict[str, Any], answered: int, outstanding: int, streamed: bool
) -> None:
    """answered: requests that get their answer before the engine falls silent. outstanding: that are then under way."""

    async def cancelled() -> Relay:
        relay = Relay(int(engine[0].rpartition(":")[2]), answered)
        server = await asyncio.start_server(relay.accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        router = router_of(f"http://127.0.0.1:{port}", engine[1], strategy, **agents)

        async def ask() -> None:
            if streamed:
                async with aclosing(router.astream(QUESTION, documents(2))) as pieces:
                    async for _ in pieces:
                        pass
            else:
                await router.aanswer(QUESTION, documents(2))

        under_way = asyncio.create_task(ask())
        await relay.until_held(outstanding)
        assert not under_way.done()
        under_way.cancel()
        with suppress(asyncio.CancelledError):
            await under_way
        await relay.until_held(0)
        await router.aclose()
        server.close()
        return relay

    assert asyncio.run(cancelled()).left == outstanding
    with asking(*engine, strategy) as router:
        assert router.answer(QUESTION, [Document(TEXT[:2000], "book")]).text  # the engine lives on


@pytest.mark.parametrize("strategy", ["chain_of_agents", "retrieve_then_reason"])
def test_money_that_runs_out_in_the_middle_leaves_an_answer_that_says_so(
    engine: tuple[str, Path], strategy: str
) -> None:
    with asking(*engine, strategy) as router:
        everything = router.answer(QUESTION, documents(3))
    assert everything.usage.cost_usd is not None
    assert not everything.unread
    request, decision = router.prepare(QUESTION, documents(3))
    limit = everything.usage.cost_usd * Decimal("0.7")
    backend = make_backend(settings_of(*engine, strategy))
    plan = router.plan(replace(request, goal=Goal(max_cost_usd=limit)), decision)
    answer = run(plan, backend)
    asyncio.run(backend.aclose())
    paid = 10 * answer.usage.prompt_tokens + 40 * answer.usage.completion_tokens
    assert Decimal(paid) / 1_000_000 <= limit
    assert 1 < len(answer.calls) < len(everything.calls)
    assert answer.text
    unread = sum(passage.end - passage.start for passage in answer.unread)
    assert 0 < unread < 3 * len(TEXT)
    assert any("max_cost_usd" in note or "for want of money" in note for note in answer.notes)
