from __future__ import annotations

import asyncio

from langchain_core.documents import Document as LangChainDocument
from langchain_core.runnables import RunnableLambda

from longroute import Router
from longroute.router.backends.scripted import Scripted
from longroute.router.langchain import LongrouteRetriever, LongrouteRunnable

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
