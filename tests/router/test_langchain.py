from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.documents import Document as LangChainDocument
from langchain_core.runnables import RunnableLambda

from longroute import Router
from longroute.router.backends.scripted import Scripted
from longroute.router.errors import BackendUnavailable
from longroute.router.langchain import CALL_EVENT, LongrouteCompressor, LongrouteRetriever, LongrouteRunnable
from longroute.tests.router.fakes import Chain

DOCUMENTS = [
    LangChainDocument("The flat is in Vienna.", metadata={"source": "flat.txt"}),
    LangChainDocument("The rent is 900 euros.", metadata={"source": "rent.txt"}),
]


def test_runnable_composes_with_others_and_answers() -> None:
    router = Router(backend=Scripted(["900 euros [1]."]), cache=False, embedding_model="none")
    chain = LongrouteRunnable(router) | RunnableLambda(lambda answer: answer.citations[0].document_id)
    asked = {"question": "How much is the rent?", "documents": DOCUMENTS, "allowed": ["rag"]}
    assert chain.invoke(asked) == "rent.txt"


def test_runnable_streams_pieces_then_the_whole_answer() -> None:
    async def main() -> list[str]:
        router = Router(backend=Scripted(["nine hundred euros"]), cache=False, embedding_model="none")
        asked = {"question": "How much is the rent?", "documents": "The rent is 900 euros."}
        return [answer.text async for answer in LongrouteRunnable(router).astream(asked)]

    *pieces, whole = asyncio.run(main())
    assert "".join(pieces) == whole == "nine hundred euros"
    assert len(pieces) > 1


# ---- strategies of several calls and options that hold for every call ------------------------------------------------

ASKED = {"question": "How much is the rent?", "documents": "The flat is in Vienna. The rent is 900 euros."}
WORK = ["nothing", "900 euros", "nothing", "It is 900 euros."]


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> None:
    from longroute.router import assemble

    monkeypatch.setattr(assemble, "_STRATEGIES", {**assemble._STRATEGIES, "chain": lambda parts: Chain()})


class Told(BaseCallbackHandler):
    def __init__(self) -> None:
        self.calls: list[tuple[str, str, str]] = []

    def on_custom_event(self, name: str, data: Any, *, run_id: UUID, **kwargs: Any) -> None:
        assert name == CALL_EVENT
        self.calls.append((data["purpose"], data["text"], data["error"]))


class AsyncTold(AsyncCallbackHandler):
    def __init__(self) -> None:
        self.calls: list[tuple[str, str, str]] = []

    async def on_custom_event(self, name: str, data: Any, *, run_id: UUID, **kwargs: Any) -> None:
        await asyncio.sleep(0)
        self.calls.append((data["purpose"], data["text"], data["error"]))


def chained(script: list[Any]) -> tuple[LongrouteRunnable, Scripted]:
    backend = Scripted(script)
    return LongrouteRunnable(Router(backend=backend, cache=False, embedding_model="none"), strategy="chain"), backend


@pytest.mark.usefixtures("chain")
def test_callbacks_hear_of_every_call_of_a_strategy() -> None:
    told = Told()
    runnable, _ = chained(["nothing", BackendUnavailable("gone"), "900 euros", "It is 900 euros."])
    answer = runnable.invoke(ASKED, {"callbacks": [told]})
    assert (answer.text, answer.strategy) == ("It is 900 euros.", "chain")
    assert told.calls == [
        ("worker 1 of 3", "nothing", ""),
        ("worker 2 of 3", "", "BackendUnavailable: gone"),
        ("worker 3 of 3", "900 euros", ""),
        ("answer", "It is 900 euros.", ""),
    ]


@pytest.mark.usefixtures("chain")
def test_callbacks_hear_of_calls_below_other_runnables_and_while_streaming() -> None:
    told = Told()
    runnable, _ = chained(WORK)
    text = (runnable | RunnableLambda(lambda answer: answer.text)).invoke(ASKED, {"callbacks": [told]})
    assert text == "It is 900 euros." and len(told.calls) == 4
    runnable, _ = chained(WORK)
    *pieces, whole = runnable.stream(ASKED, {"callbacks": [told]})
    assert "".join(piece.text for piece in pieces) == whole.text and len(told.calls) == 8


@pytest.mark.usefixtures("chain")
def test_asynchronous_callbacks_have_heard_of_all_calls_when_the_answer_is_there() -> None:
    async def main() -> None:
        told, plain = AsyncTold(), Told()
        runnable, _ = chained(WORK * 2)
        answer = await runnable.ainvoke(ASKED, {"callbacks": [told, plain]})
        assert answer.text == "It is 900 euros." and len(told.calls) == len(plain.calls) == 4
        pieces = [piece async for piece in runnable.astream(ASKED, {"callbacks": [told, plain]})]
        assert pieces[-1].text == answer.text and len(told.calls) == len(plain.calls) == 8
        events = [e async for e in chained(WORK)[0].astream_events(ASKED, version="v2")]
        assert sum(event["event"] == "on_custom_event" for event in events) == 4

    asyncio.run(main())


@pytest.mark.usefixtures("chain")
def test_without_callbacks_nobody_is_told_and_nothing_breaks() -> None:
    assert chained(WORK)[0].invoke(ASKED).text == "It is 900 euros."


@pytest.mark.usefixtures("chain")
def test_many_are_answered_at_once() -> None:
    runnable, _ = chained(WORK * 6)
    told = Told()
    assert len(runnable.batch([ASKED] * 3, {"max_concurrency": 2, "callbacks": [told]})) == 3
    assert len(asyncio.run(runnable.abatch([ASKED] * 3, {"callbacks": [told]}))) == 3
    assert len(told.calls) == 24


@pytest.mark.usefixtures("chain")
def test_the_nearest_option_counts() -> None:
    backend = Scripted(lambda call: call.model)
    router = Router(backend=backend, cache=False, embedding_model="none")
    runnable = LongrouteRunnable(router, strategy="full", model="ours")
    assert runnable.invoke(ASKED).text == "ours"
    bound = runnable.bind(model="bound", strategy="chain")
    assert (bound.invoke(ASKED).text, bound.invoke(ASKED).strategy) == ("bound", "chain")
    nearest = bound.invoke({**ASKED, "model": "input", "allowed": ["rag"]})
    assert (nearest.text, nearest.strategy) == ("input", "rag")


def test_retriever_returns_exact_slices_with_their_place() -> None:
    found = LongrouteRetriever(documents=DOCUMENTS).invoke("How much is the rent?")
    best = found[0]
    assert best.metadata["document"] == "rent.txt"
    assert "The rent is 900 euros."[best.metadata["start"] : best.metadata["end"]] == best.page_content


def test_compressor_shortens_documents_and_drops_what_says_nothing() -> None:
    text = " ".join(f"House {n} in the old town has a garden and {n} windows to the street." for n in range(80))
    documents = [LangChainDocument(f"{text} The rent is 900 euros. {text}", metadata={"source": "rent.txt"})]
    [short] = LongrouteCompressor(keep_rate=0.2).compress_documents(documents, "How much is the rent?")
    assert "rent is 900 euros" in short.page_content
    assert short.metadata["source"] == "rent.txt"
    assert short.metadata["tokens_after"] <= 0.2 * short.metadata["tokens_before"]
    few = LongrouteCompressor(budget_tokens=40).compress_documents([*documents, *documents], "How much is the rent?")
    assert sum(document.metadata["tokens_after"] for document in few) <= 40
    assert LongrouteCompressor(budget_tokens=0).compress_documents(documents, "How much is the rent?") == []
