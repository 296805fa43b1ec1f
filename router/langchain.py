"""LangChain's door: a Runnable, a retriever, a document compressor, and a chat model for the runner. The only module
that subclasses theirs.

The other direction, a LangChain chat model as the one that answers, is `backends/langchain.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, closing
from dataclasses import replace
from functools import cached_property
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForChainRun,
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForChainRun,
    CallbackManagerForLLMRun,
    CallbackManagerForRetrieverRun,
    Callbacks,
    adispatch_custom_event,
    dispatch_custom_event,
)
from langchain_core.documents import BaseDocumentCompressor
from langchain_core.documents import Document as LangChainDocument
from langchain_core.language_models.chat_models import (
    BaseChatModel,
    agenerate_from_stream,
    generate_from_stream,
)
from langchain_core.messages import AIMessageChunk, BaseMessage, convert_to_openai_messages
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import ConfigDict

from ..compressors.compression import Compressor
from .assemble import make_compressor, make_local_model, make_retriever
from .core import Answer, Call, Document, Outcome, Reply, Retriever, Usage
from .errors import ConfigError
from .router import BaseRouter
from .run import Listener
from .settings import load_settings

CALL_EVENT = "longroute_call"
"""Name of the custom event that LangChain's callbacks get for every model call, as it ends: a dict of `purpose`,
`final` (its text is the answer), `text`, `error` (empty where it went well), `prompt_tokens`, `completion_tokens`."""


class LongrouteRunnable(Runnable[Mapping[str, Any], Answer]):
    """Answers `{"question": str, "documents": [...], **options}` with an `Answer`; invoke, ainvoke, stream, batch.

    documents: texts, longroute's or LangChain's Documents. Options are those of `router.Options`, and `strategy`, the
    name of the one to use. Those given here hold for every input that does not say otherwise, those of `bind` come
    between. Streaming yields Answers that hold a piece of the text each, then the whole Answer, last. Callbacks get a
    custom event CALL_EVENT for each model call, so the work of strategies of several calls can be watched.
    """

    def __init__(self, router: BaseRouter, **options: Any) -> None:
        self._router = router
        self._options = options

    def invoke(self, input: Mapping[str, Any], config: RunnableConfig | None = None, **kwargs: Any) -> Answer:
        def answer(given: Mapping[str, Any], run_manager: CallbackManagerForChainRun, config: RunnableConfig) -> Answer:
            return self._router.answer(**given, listener=_telling(config))

        return self._call_with_config(answer, self._arguments(input, kwargs), config, run_type="chain")

    async def ainvoke(self, input: Mapping[str, Any], config: RunnableConfig | None = None, **kwargs: Any) -> Answer:
        async def answer(
            given: Mapping[str, Any], run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig
        ) -> Answer:
            async with _atelling(config) as listener:
                return await self._router.aanswer(**given, listener=listener)

        return await self._acall_with_config(answer, self._arguments(input, kwargs), config, run_type="chain")

    def stream(
        self, input: Mapping[str, Any], config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> Iterator[Answer]:
        def answers(
            inputs: Iterator[Mapping[str, Any]], run_manager: CallbackManagerForChainRun, config: RunnableConfig
        ) -> Iterator[Answer]:
            for given in inputs:
                for piece in self._router.stream(**given, listener=_telling(config)):
                    yield Answer(piece) if isinstance(piece, str) else piece

        given = iter([self._arguments(input, kwargs)])
        yield from self._transform_stream_with_config(given, answers, config, run_type="chain")

    async def astream(
        self, input: Mapping[str, Any], config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> AsyncIterator[Answer]:
        async def answers(
            inputs: AsyncIterator[Mapping[str, Any]],
            run_manager: AsyncCallbackManagerForChainRun,
            config: RunnableConfig,
        ) -> AsyncIterator[Answer]:
            async for given in inputs:
                async with _atelling(config) as listener:
                    async for piece in self._router.astream(**given, listener=listener):
                        yield Answer(piece) if isinstance(piece, str) else piece

        async def inputs() -> AsyncIterator[Mapping[str, Any]]:
            yield self._arguments(input, kwargs)

        async for answer in self._atransform_stream_with_config(inputs(), answers, config, run_type="chain"):
            yield answer

    def _arguments(self, input: Mapping[str, Any], bound: Mapping[str, Any]) -> dict[str, Any]:
        """What the router is called with: the input's options, else the bound ones, else ours."""
        given: dict[str, Any] = {}
        for options in (self._options, bound, input):
            if "strategy" in options:  # it and `allowed` say the same, so the nearer one counts
                options = {**options, "allowed": [options["strategy"]]}
                del options["strategy"]
            given |= options
        documents = given["documents"]
        single = isinstance(documents, str | Document | LangChainDocument)
        return {**given, "documents": to_documents([documents] if single else documents)}


def _told(call: Call, outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, Reply):
        said, error, usage = outcome.text, "", outcome.usage
    else:
        said, error, usage = "", f"{type(outcome).__name__}: {outcome}", Usage()
    return {
        "purpose": call.purpose,
        "final": call.final,
        "text": said,
        "error": error,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
    }


def _telling(config: RunnableConfig) -> Listener:
    """A listener that hands every call on to the callbacks of a run."""

    def tell(call: Call, outcome: Outcome) -> None:
        dispatch_custom_event(CALL_EVENT, _told(call, outcome), config=config)

    return tell


@asynccontextmanager
async def _atelling(config: RunnableConfig) -> AsyncIterator[Listener]:
    """The same for asynchronous callbacks; all of them have been told when it ends."""
    telling: list[asyncio.Task[None]] = []

    def tell(call: Call, outcome: Outcome) -> None:
        told = adispatch_custom_event(CALL_EVENT, _told(call, outcome), config=config)
        telling.append(asyncio.ensure_future(told))

    try:
        yield tell
    finally:
        await asyncio.gather(*telling)


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


class LongrouteChatModel(BaseChatModel):
    """A Hugging Face model of this machine, run in this process: invoke, stream, batch, and all of them asynchronous.

        LongrouteChatModel(model="models/qwen3-0.6b", temperature=0).invoke("Who was Ada?")

    model: its folder. None leaves an option to what the model's authors recommend. Options can be bound or given to a
    call, those of `SamplingOptions` besides. local: a `LocalModel` that is loaded already, to be shared.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    model: str = ""
    max_tokens: int = 1024
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    local: Any = None

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        if self.local is None:
            self.local = make_local_model(load_settings(), self.model)

    @property
    def _llm_type(self) -> str:
        return "longroute-local"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {"model_name": self.local.name, "max_tokens": self.max_tokens, "temperature": self.temperature}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, run_manager, **kwargs))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return await agenerate_from_stream(self._astream(messages, stop, run_manager, **kwargs))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        handle = self.local.engine.submit(self._generation(messages, stop, kwargs))
        with closing(iter(handle)) as events:  # leaving early cancels the request
            for event in events:
                chunk = self._chunk(event)
                if run_manager is not None:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        generation = await asyncio.to_thread(self._generation, messages, stop, kwargs)
        async with aclosing(aiter(self.local.engine.submit(generation))) as events:
            async for event in events:
                chunk = self._chunk(event)
                if run_manager is not None:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _generation(self, messages: list[BaseMessage], stop: list[str] | None, options: Mapping[str, Any]) -> Any:
        from .runner.generation import Generation, SamplingOptions

        shown = convert_to_openai_messages(messages, text_format="string")
        for message in shown:
            if not isinstance(message["content"], str):
                raise ConfigError("A message holds something other than text, which a local model cannot be shown.")
        given = {name: getattr(self, name) for name in ("temperature", "top_p", "seed", "max_tokens")} | dict(options)
        max_tokens = given.pop("max_tokens")
        if unknown := given.keys() - SamplingOptions.__dataclass_fields__.keys():
            known = ", ".join(("max_tokens", *SamplingOptions.__dataclass_fields__))
            raise ConfigError(f"{min(unknown)!r} is no option of a local model. There are {known}; leave it out.")
        sampling = replace(self.local.sampling, **{name: v for name, v in given.items() if v is not None})
        ids = self.local.tokenizer.chat_ids(shown)
        shared = self.local.shared_head(ids)
        return Generation(ids, sampling, max_tokens, tuple(stop or ()), self.local.end_ids, shared_tokens=shared)

    def _chunk(self, event: Any) -> ChatGenerationChunk:
        """From a Piece, or from Done, which comes last and knows what it took."""
        from .runner.generation import Done

        message = AIMessageChunk(content=event.text)
        if isinstance(event, Done):
            used = event.usage
            message.usage_metadata = UsageMetadata(
                input_tokens=used.prompt_tokens,
                output_tokens=used.completion_tokens,
                total_tokens=used.prompt_tokens + used.completion_tokens,
                input_token_details={"cache_read": used.reused_tokens},
            )
            message.response_metadata = {"finish_reason": event.reason, "model_name": self.local.name}
        return ChatGenerationChunk(message=message)


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
