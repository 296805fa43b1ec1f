from __future__ import annotations

import asyncio

from langchain_core.documents import Document as LangChainDocument
from langchain_core.runnables import RunnableLambda

from longroute import Router
from longroute.router.backends.scripted import Scripted
from longroute.router.langchain import LongrouteCompressor, LongrouteRetriever, LongrouteRunnable

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
