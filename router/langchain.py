"""LangChain's door: a Runnable, a retriever, a document compressor. The only module that subclasses theirs.

The other direction, a LangChain chat model as the one that answers, is `backends/langchain.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun, Callbacks
from langchain_core.documents import BaseDocumentCompressor
from langchain_core.documents import Document as LangChainDocument
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import ConfigDict

from ..compressors.compression import Compressor
from .assemble import make_compressor, make_retriever
from .core import Answer, Document, Retriever
from .router import BaseRouter
from .settings import load_settings


class LongrouteRunnable(Runnable[Mapping[str, Any], Answer]):
    """Answers `{"question": str, "documents": [...], **options}` with an `Answer`; invoke, ainvoke, stream, batch.

    documents: texts, longroute's or LangChain's Documents. Options are those of `router.Options`. Streaming yields
    Answers that hold a piece of the text each, then the whole Answer, last.
    """

    def __init__(self, router: BaseRouter) -> None:
        self._router = router

    def invoke(self, input: Mapping[str, Any], config: RunnableConfig | None = None, **kwargs: Any) -> Answer:
        return self._router.answer(**_arguments(input))

    async def ainvoke(self, input: Mapping[str, Any], config: RunnableConfig | None = None, **kwargs: Any) -> Answer:
        return await self._router.aanswer(**_arguments(input))

    def stream(
        self, input: Mapping[str, Any], config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> Iterator[Answer]:
        for piece in self._router.stream(**_arguments(input)):
            yield Answer(piece) if isinstance(piece, str) else piece

    async def astream(
        self, input: Mapping[str, Any], config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> AsyncIterator[Answer]:
        async for piece in self._router.astream(**_arguments(input)):
            yield Answer(piece) if isinstance(piece, str) else piece


class LongrouteRetriever(BaseRetriever):
    """Finds passages of a fixed set of documents; metadata holds document, start, end and score of each."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    documents: Sequence[Any]
    budget_tokens: int = 1500
    retriever: Any = None  # a core.Retriever; None means the configured default

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        self.retriever = self.retriever or make_retriever(load_settings())

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[LangChainDocument]:
        retriever: Retriever = self.retriever
        found = retriever.retrieve(query, to_documents(self.documents), budget_tokens=self.budget_tokens)
        return [
            LangChainDocument(
                page_content=passage.text,
                metadata={
                    "document": passage.document_id,
                    "start": passage.start,
                    "end": passage.end,
                    "score": passage.score,
                },
            )
            for passage in found
        ]


class LongrouteCompressor(BaseDocumentCompressor):
    """Shortens documents to what matters to the query; those of which nothing is left are dropped.

    compressor: by its name, see `assemble.make_compressor`. keep_rate: tokens after / tokens before of each document.
    budget_tokens: of all together, in place of keep_rate. Metadata gains `tokens_before` and `tokens_after`.
    """

    compressor: str = "question_aware"
    keep_rate: float = 0.33
    budget_tokens: int | None = None

    def compress_documents(
        self, documents: Sequence[LangChainDocument], query: str, callbacks: Callbacks | None = None
    ) -> list[LangChainDocument]:
        limit: dict[str, Any] = {"keep_rate": self.keep_rate}
        if self.budget_tokens is not None:
            limit = {"budget_tokens": self.budget_tokens}
        results = self._ready.compress(
            [document.page_content for document in documents],
            question=query,
            **limit,
        )
        return [
            document.model_copy(
                update={
                    "page_content": result.text,
                    "metadata": document.metadata
                    | {"tokens_before": result.tokens_before, "tokens_after": result.tokens_after},
                }
            )
            for document, result in zip(documents, results, strict=True)
            if result.text.strip()
        ]

    @cached_property
    def _ready(self) -> Compressor:
        return make_compressor(load_settings(), self.compressor)


def to_documents(documents: Sequence[str | Document | LangChainDocument]) -> list[Document]:
    """Texts and LangChain Documents as ours, named by their id, else their source, else their place in the list."""
    return [_to_document(document, f"document-{number}") for number, document in enumerate(documents, start=1)]


def _to_document(document: str | Document | LangChainDocument, name: str) -> Document:
    if isinstance(document, Document):
        return document
    if isinstance(document, str):
        return Document(document, id=name)
    source = document.id or document.metadata.get("source")
    return Document(document.page_content, id=str(source) if source else name)


def _arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    documents = given["documents"]
    single = isinstance(documents, str | Document | LangChainDocument)
    return {**given, "documents": to_documents([documents] if single else documents)}
