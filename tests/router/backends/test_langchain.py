from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import Field

from longroute.router.backends.langchain import LangChainChat
from longroute.router.core import Call, Message, Reply, Usage
from longroute.router.errors import (
    BackendError,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    BadReply,
    ContextTooLong,
    RateLimited,
    RouterError,
)

CALL = Call(
    (Message("system", "Be brief."), Message("user", "The word is marzipan."), Message("assistant", "So?")),
    "some-model",
    max_output_tokens=64,
    temperature=0.0,
    stop=("END",),
)
NO_USAGE = ("the model reported no usage",)


class Recorder(BaseChatModel):
    """Answers with the given chunks, or raises; keeps what it was asked."""

    chunks: list[AIMessageChunk] = Field(default_factory=list)
    error: Exception | None = None
    asked: list[tuple[list[BaseMessage], dict[str, Any]]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "recorder"

    def _generate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        self.asked.append((messages, {"stop": stop} | kwargs))
        if self.error:
            raise self.error
        whole = self.chunks[0]
        for chunk in self.chunks[1:]:
            whole = whole + chunk
        return ChatResult(generations=[ChatGeneration(message=AIMessage(**whole.model_dump(exclude={"type"})))])

    async def _astream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        self.asked.append((messages, {"stop": stop} | kwargs))
        for chunk in self.chunks:
            yield ChatGenerationChunk(message=chunk)
        if self.error:
            raise self.error


def generate(model: BaseChatModel, call: Call = CALL, **options: str) -> Reply:
    return asyncio.run(LangChainChat(model, **options).generate(call))


def stream(model: BaseChatModel, into: list[str | Reply] | None = None) -> list[str | Reply]:
    into = [] if into is None else into

    async def main() -> None:
        async with aclosing(LangChainChat(model).stream(CALL)) as pieces:
            async for piece in pieces:
                into.append(piece)

    asyncio.run(main())
    return into


def test_an_answer_becomes_a_reply() -> None:
    assert generate(FakeListChatModel(responses=["hello"])) == Reply("hello", model="some-model", notes=NO_USAGE)


def test_a_stream_gives_pieces_and_then_the_reply() -> None:
    got = stream(GenericFakeChatModel(messages=iter(["hello there"])))
    assert got == ["hello", " ", "there", Reply("hello there", model="some-model", notes=NO_USAGE)]


def test_a_model_that_cannot_stream_gives_one_piece() -> None:
    class Whole(Recorder):
        _astream = BaseChatModel._astream

    assert stream(Whole(chunks=[AIMessageChunk(content="hello")]))[0] == "hello"


def test_roles_become_message_types_and_stop_is_the_only_argument() -> None:
    model = Recorder(chunks=[AIMessageChunk(content="x")])
    generate(model)
    stream(model)
    expected = [SystemMessage("Be brief."), HumanMessage("The word is marzipan."), AIMessage("So?")]
    assert model.asked == [(expected, {"stop": ["END"]})] * 2


def test_limits_and_temperature_are_passed_under_the_names_that_were_given() -> None:
    model = Recorder(chunks=[AIMessageChunk(content="x")])
    generate(model, max_tokens_argument="num_predict", temperature_argument="temperature")
    generate(model, Call((), "m"), temperature_argument="temperature")
    assert [arguments for _, arguments in model.asked] == [
        {"stop": ["END"], "num_predict": 64, "temperature": 0.0},
        {"stop": None},
    ]


def test_usage_reason_and_model_are_taken_from_whole_replies_and_from_chunks() -> None:
    first = AIMessageChunk(
        content="hel",
        usage_metadata={
            "input_tokens": 9, "output_tokens": 0, "total_tokens": 9,
            "input_token_details": {"cache_read": 4, "cache_creation": 3},
        },
    )  # fmt: skip
    last = AIMessageChunk(
        content="lo",
        usage_metadata={"input_tokens": 0, "output_tokens": 2, "total_tokens": 2},
        response_metadata={"finish_reason": "length", "model_name": "some-model-01"},
    )
    reply = Reply("hello", Usage(9, 4, 2, written_tokens=3), "length", "some-model-01")
    assert generate(Recorder(chunks=[first, last])) == reply
    assert stream(Recorder(chunks=[first, last])) == ["hel", "lo", reply]


def test_cache_writes_that_are_told_by_lifetime_are_added_up() -> None:
    details: Any = {"cache_creation": 0, "ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 2}
    usage: Any = {"input_tokens": 9, "output_tokens": 1, "total_tokens": 10, "input_token_details": details}
    chunk = AIMessageChunk(content="hello", usage_metadata=usage)
    assert generate(Recorder(chunks=[chunk])).usage == Usage(9, 0, 1, written_tokens=5)


@pytest.mark.parametrize(
    "chunk",
    [
        AIMessageChunk(content="", additional_kwargs={"refusal": "I would rather not."}),
        AIMessageChunk(content=[{"type": "refusal", "refusal": "I would rather not."}]),
    ],
)
def test_a_refusal_is_an_answer_that_does_not_answer(chunk: AIMessageChunk) -> None:
    reply = generate(Recorder(chunks=[chunk]))
    assert (reply.text, reply.answered) == ("I would rather not.", False)


@pytest.mark.parametrize("key", ["finish_reason", "stop_reason", "done_reason"])
def test_every_provider_has_its_own_word_for_the_reason(key: str) -> None:
    assert (
        generate(Recorder(chunks=[AIMessageChunk(content="x", response_metadata={key: "why"})])).finish_reason == "why"
    )


def test_only_text_blocks_are_the_answer() -> None:
    blocks: list[str | dict[str, str]] = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "hel"}, "lo"]
    assert generate(Recorder(chunks=[AIMessageChunk(content=blocks)])).text == "hello"


@pytest.mark.parametrize(
    "chunk",
    [
        AIMessageChunk(content="", response_metadata={"finish_reason": "length"}),
        AIMessageChunk(content="", tool_call_chunks=[{"name": "f", "args": "{}", "id": "1", "index": 0}]),
    ],
)
def test_a_reply_without_text_says_why(chunk: AIMessageChunk) -> None:
    with pytest.raises(BadReply, match=r"length|tool"):
        generate(Recorder(chunks=[chunk]))


class APIError(Exception):
    """As the provider libraries raise them."""

    def __init__(self, message: str, status_code: int, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.code = code
        self.response = SimpleNamespace(headers={name.replace("_", "-"): value for name, value in headers.items()})


class APITimeoutError(Exception): ...


class APIConnectionError(Exception): ...


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (APIError("no", 401), BackendRejected),
        (APIError("no", 400), BackendRejected),
        (APIError("no", 400, "context_length_exceeded"), ContextTooLong),
        (APIError("no", 429), RateLimited),
        (APIError("no", 429, "insufficient_quota"), BackendRejected),
        (APIError("no", 503), BackendUnavailable),
        (TimeoutError(), BackendTimeout),
        (APITimeoutError(), BackendTimeout),
        (APIConnectionError(), BackendUnavailable),
        (ConnectionResetError(), BackendUnavailable),
        (KeyError("bug"), BackendError),
    ],
)
def test_errors_become_ours_whole_and_streamed(error: Exception, kind: type[RouterError]) -> None:
    got: list[str | Reply] = []
    with pytest.raises(kind) as whole:
        generate(Recorder(error=error))
    with pytest.raises(kind) as streamed:
        stream(Recorder(chunks=[AIMessageChunk(content="hel")], error=error), got)
    assert got == ["hel"]
    for caught in whole, streamed:
        assert type(caught.value) is kind
        assert type(caught.value.__cause__) is type(error)
        assert "Recorder" in str(caught.value)


def test_a_wish_to_wait_is_handed_on() -> None:
    with pytest.raises(RateLimited) as caught:
        generate(Recorder(error=APIError("slow down", 429, retry_after="7")))
    assert caught.value.retry_after_s == 7


@pytest.mark.parametrize("error", [ValueError("bad: The word is marzipan."), APIError("The word is marzipan.", 400)])
def test_errors_that_repeat_the_prompt_are_not_quoted(error: Exception) -> None:
    with pytest.raises(BackendError) as caught:
        generate(Recorder(error=error))
    assert "marzipan" not in str(caught.value)


def test_cancelling_reaches_the_model() -> None:
    reached = []

    class Slow(Recorder):
        async def _astream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
            yield ChatGenerationChunk(message=AIMessageChunk(content="hel"))
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                reached.append("cancelled")
                raise

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), aclosing(LangChainChat(Slow()).stream(CALL)) as pieces:
                [piece async for piece in pieces]

    asyncio.run(main())
    assert reached == ["cancelled"]
