"""What clients ask of the runner: bodies of the OpenAI API, checked. Nothing here knows a tokenizer or a model.

Fields that the API has and the runner cannot honour are refused where they ask for something; those that change no
answer (`user`, `metadata`, ...) are ignored; what the API does not have is refused, as OpenAI does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from .generation import SamplingOptions
from .laws import Mode
from .refusal import Refusal
from .speculative import Speculation

MOST_CHOICES = 16
MOST_STOPS = 16  # OpenAI takes 4
_LONGEST_STOP = 1000  # characters; as much of an answer is held back while one may be open
_MOST_BIASES = 1024
_LONGEST_ANSWER = 2**31 - 1  # where the window, which ends an answer earlier, does not say
_SEEDS = 2**64  # OpenAI's are whole numbers of 64 bits with a sign

_IGNORED = frozenset(
    {
        "user",
        "store",
        "metadata",
        "service_tier",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "reasoning_effort",
        "verbosity",
        "prediction",
        "tool_choice",
    }
)
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "functions": (None, []),
    "function_call": (None, "none"),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "response_format": (None, {"type": "text"}),
    "web_search_options": (None,),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "echo": (None, False),
    "suffix": (None, ""),
    "best_of": (None, 1),
}


class _Part(BaseModel):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of a conversation; of its content only text can be shown to these models."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part] | None = None

    def shown(self) -> dict[str, str]:
        """For a chat template; few of them know a developer."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class Speculative(BaseModel):
    """Speculative decoding with a drafter that reads a shorter prompt (RAPID).

    draft: the drafter's messages; or a text, which takes the place of the last user message (of the whole prompt, for
    plain completions). The other fields are those of `Law` and `Speculation`; left out, they are as the runner was set
    up, whose models they must suit.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    draft: str | Annotated[list[Message], Field(min_length=1)]
    mode: Mode | None = None
    eta: float | None = None
    alpha: float | None = None
    tail_rule: Literal["draft", "paper"] | None = None
    target_weight: float | None = None
    draft_tokens: int | Literal["auto"] | None = None
    least_confidence: float | None = None

    def speculation(self, usual: Speculation) -> Speculation:
        """Raises ConfigError for values out of range."""
        said = self.model_dump(exclude_none=True, exclude={"draft"})
        own = {name: said.pop(name) for name in ("draft_tokens", "least_confidence") if name in said}
        return replace(usual, law=replace(usual.law, **said), **own)


class Extension(BaseModel):
    """The field `longroute`: what OpenAI's API does not have."""

    model_config = ConfigDict(extra="forbid")

    speculative: Speculative | None = None


class _StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool = False


_Stop = Annotated[str, Field(min_length=1, max_length=_LONGEST_STOP)]
_Limit = Annotated[int, Field(ge=1, le=_LONGEST_ANSWER)]
_TokenId = Annotated[int, Field(strict=False, ge=0)]  # names in JSON are texts


class _Asked(BaseModel):
    """What both kinds of completions have in common. None is the same as leaving a field out."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=MOST_STOPS)] | None = None
    max_tokens: _Limit | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    logit_bias: (
        Annotated[dict[_TokenId, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=_MOST_BIASES)] | None
    ) = None
    seed: Annotated[int, Field(ge=-_SEEDS // 2, lt=_SEEDS // 2)] | None = None
    longroute: Extension | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def shows_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def speculative(self) -> Speculative | None:
        return self.longroute.speculative if self.longroute else None

    def sampling(self, usual: SamplingOptions, choice: int) -> SamplingOptions:
        """Of one of the n choices. usual: where the request says nothing.

        Choices of a request with a seed have seeds of their own, or all would be the same.
        """
        given = {
            "temperature": self.temperature,
            "top_k": max(self.top_k, 0) if self.top_k is not None else None,  # -1 is a common way to say all
            "top_p": self.top_p or None,  # 0 is a common way to say the most likely token; see below
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
        }
        options: dict[str, Any] = {name: getattr(usual, name) for name in given}
        options |= {name: value for name, value in given.items() if value is not None}
        if self.top_p == 0:
            options |= {"temperature": 0.0}
        # Python's generators take -1 for 1, so negative seeds are counted from above.
        seed = None if self.seed is None else (self.seed + choice) % _SEEDS
        return SamplingOptions(**options, seed=seed, logit_bias=self.logit_bias or {}, logprobs=self.wanted_logprobs)

    @property
    def wanted_logprobs(self) -> int | None:
        """How many of the likeliest tokens to report besides the chosen one; None reports none."""
        raise NotImplementedError


class ChatAsked(_Asked):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: _Limit | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def wanted_logprobs(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            message = "top_logprobs says how many to report, but nothing is reported unless logprobs is true."
            raise Refusal(400, "invalid_value", message, "top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def shown(self) -> list[dict[str, str]]:
        return [message.shown() for message in self.messages]

    def shown_to_drafter(self) -> list[dict[str, str]]:
        """Where there is one."""
        assert self.speculative is not None
        draft = self.speculative.draft
        if not isinstance(draft, str):
            return [message.shown() for message in draft]
        shown = self.shown()
        last = max((i for i, message in enumerate(shown) if message["role"] == "user"), default=None)
        if last is None:
            raise Refusal(
                400,
                "invalid_value",
                "longroute.speculative.draft is a text, which takes the place of the last user message, and there is "
                "no user message. Pass the drafter's messages instead.",
                "longroute.speculative.draft",
            )
        return [*shown[:last], {**shown[last], "content": draft}, *shown[last + 1 :]]


class TextAsked(_Asked):
    """The body of POST /v1/completions."""

    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def wanted_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or more; a prompt of token ids is a list of numbers."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise Refusal(400, "invalid_value", "The list of prompts is empty; it must hold at least one.", "prompt")
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


Body = TypeVar("Body", ChatAsked, TextAsked)


def read_body(kind: type[Body], data: object) -> Body:
    """A body as decoded from JSON. Raises Refusal that names the field and never quotes its value."""
    if not isinstance(data, dict):
        raise Refusal(400, "invalid_type", "The body must be a JSON object.")
    given = {name: value for name, value in data.items() if name not in _IGNORED and name not in _ONLY}
    for name, fine in _ONLY.items():
        if name in data and data[name] not in fine:
            raise Refusal(
                400, "unsupported_parameter", f"The runner does not support {name!r}; leave it out.", param=name
            )
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        # Unions report every alternative. Where the type was right, or what lies deepest, came nearest to a match.
        problem = max(
            error.errors(include_input=False, include_url=False),
            key=lambda found: (not found["type"].endswith("_type"), len(found["loc"])),
        )
        field = _field(problem["loc"])
        if problem["type"] == "extra_forbidden":
            message = f"Unrecognized request argument supplied: {field}"
            raise Refusal(400, "unknown_parameter", message, field) from None
        if problem["type"] == "missing":
            message = f"Missing required parameter: {field!r}."
            raise Refusal(400, "missing_required_parameter", message, field) from None
        raise Refusal(400, "invalid_value", f"Invalid value for {field!r}: {problem['msg']}.", field) from None


def _field(place: Sequence[str | int]) -> str:
    """Where in a body a problem lies, without the names that pydantic gives alternatives (`list[str]`, `[key]`)."""
    parts = [str(part) for part in place if part not in ("str", "int")]
    return ".".join(part for part in parts if part.isidentifier() or part.isdigit())
