"""Any LangChain chat model as a backend. LangChain's types and `Any` stay in here; retries are left to `wrappers.py`.

The model was configured by whoever made it, so its own name, temperature and limits hold: a call adds only its stop
strings, and the rest where the constructor says under which name this model takes it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

from ..core import Backend, Call, Reply, Usage
from ..errors import BackendError, BackendTimeout, BackendUnavailable, BadReply, RouterError
from .complaint import Complaint, retry_after_s

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage, BaseMessage


_FINISH_REASONS = ("finish_reason", "stop_reason", "done_reason")  # OpenAI and Google, Anthropic, Ollama
# Tokens put into a prompt cache: of any lifetime, or by lifetime, where langchain-anthropic sets the first to 0.
_WRITTEN = ("cache_creation", "ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")


class LangChainChat(Backend):
    """Wraps a `BaseChatModel`."""

    def __init__(
        self,
        model: BaseChatModel,
        *,
        max_tokens_argument: str | None = None,
        temperature_argument: str | None = None,
    ) -> None:
        """max_tokens_argument, temperature_argument: the keyword this model takes (`max_tokens`, `num_predict`, ...).

        None leaves the model's own setting, because many models break on a keyword they do not know.
        """
        self._model = model
        self._max_tokens_argument = max_tokens_argument
        self._temperature_argument = temperature_argument

    async def generate(self, call: Call) -> Reply:
        try:
            message = await self._model.ainvoke(_messages(call), **self._arguments(call))
        except Exception as error:
            raise self._translated(error, call) from error
        return _reply([message], call)

    async def stream(self, call: Call) -> AsyncGenerator[str | Reply, None]:
        # It is an async generator, though typed as a mere iterator.
        arriving = cast(
            "AsyncGenerator[AIMessage, None]", self._model.astream(_messages(call), **self._arguments(call))
        )
        chunks: list[AIMessage] = []
        async with aclosing(arriving):
            while True:
                try:
                    chunk = await anext(arriving, None)
                except Exception as error:
                    raise self._translated(error, call) from error
                if chunk is None:
                    break
                chunks.append(chunk)
                if piece := _text(chunk):
                    yield piece
        yield _reply(chunks, call)

    async def aclose(self) -> None:
        """The model belongs to whoever made it."""

    def _arguments(self, call: Call) -> dict[str, Any]:
        arguments: dict[str, Any] = {"stop": list(call.stop)} if call.stop else {}
        if self._max_tokens_argument:
            arguments[self._max_tokens_argument] = call.max_output_tokens
        if self._temperature_argument and call.temperature is not None:
            arguments[self._temperature_argument] = call.temperature
        return arguments

    def _translated(self, error: Exception, call: Call) -> RouterError:
        """By what the provider libraries have in common: `status_code`, `response`, `code`, and telling class names."""
        name = type(self._model).__name__
        status = getattr(error, "status_code", None)
        if isinstance(status, int):
            code = getattr(error, "code", None)
            headers = getattr(getattr(error, "response", None), "headers", {})
            return Complaint(str(error), frozenset([code]) if isinstance(code, str) else frozenset()).error(
                status,
                call,
                server=name,
                key=f"the credentials that {name} was made with",
                retry_after_s=retry_after_s(headers, time.time()),
            )
        kinds = " ".join(kind.__name__ for kind in type(error).__mro__)
        message = f"{name} failed ({type(error).__name__}). {Complaint(str(error)).quoted(call)}"
        if "Timeout" in kinds:
            return BackendTimeout(f"{message} Raise its timeout, or send less text.")
        if "Connect" in kinds:
            return BackendUnavailable(f"{message} Check that its server is running and its address right.")
        return BackendError(f"{message} See the error this one was raised from.")


def _messages(call: Call) -> list[BaseMessage]:
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

    kinds = {"system": SystemMessage, "user": HumanMessage, "assistant": AIMessage}
    return [kinds[message.role](content=message.content) for message in call.messages]


def _text(message: AIMessage) -> str:
    """Content is a string or a list of blocks; blocks of reasoning and tool use are not part of the answer."""
    if isinstance(message.content, str):
        return message.content or _refusal(message)
    texts = (
        block if isinstance(block, str) else block.get("text", "") if block.get("type") == "text" else ""
        for block in message.content
    )
    return "".join(texts) or _refusal(message)


def _refusal(message: AIMessage) -> str:
    """Why the model does not answer, where OpenAI's models say so beside the content or in a block of its own."""
    beside = message.additional_kwargs.get("refusal") or ""
    blocks = message.content if isinstance(message.content, list) else []
    return str(beside) or "".join(block.get("refusal") or "" for block in blocks if isinstance(block, dict))


def _reply(messages: Sequence[AIMessage], call: Call) -> Reply:
    """From one message or from all chunks of one; their usages add up, and later metadata replace earlier."""
    text = "".join(map(_text, messages))
    metadata: dict[str, Any] = {}
    usage = Usage()
    for message in messages:
        metadata |= {key: value for key, value in message.response_metadata.items() if value}
        if counted := message.usage_metadata:
            details: Mapping[str, Any] = counted.get("input_token_details", {})
            written = sum(details.get(key) or 0 for key in _WRITTEN)
            cached = details.get("cache_read") or 0
            usage += Usage(counted["input_tokens"], cached, counted["output_tokens"], written_tokens=written)
    reason = next((str(metadata[key]) for key in _FINISH_REASONS if key in metadata), "stop")
    tool = any(message.tool_calls for message in messages)
    if not text and (tool or reason.lower() not in ("stop", "end_turn", "stop_sequence")):
        raise BadReply(
            f"{call.model!r} answered with {'a call of a tool' if tool else 'no text'} (finish reason {reason!r}). "
            "Give it more output tokens, or a model without tools."
        )
    refused = any(map(_refusal, messages))
    notes: tuple[str, ...] = ("the model refused to answer",) if refused else ()
    if not any(message.usage_metadata for message in messages):
        notes += ("the model reported no usage",)
    return Reply(
        text,
        usage,
        finish_reason=reason,
        model=str(metadata.get("model_name") or metadata.get("model") or call.model),
        answered=not refused,
        notes=notes,
    )
