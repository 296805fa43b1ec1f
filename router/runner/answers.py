"""What clients get: bodies and chunks of the OpenAI API, from what the engine says. Pure.

A `Shape` is one of the two kinds of completions; whoever sends them need not know which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .generation import GenerationUsage, TokenChoice

Json = dict[str, Any]
Spelled = Callable[[int], str]

_LEAST_LOGPROB = -9999.0  # JSON has no minus infinity; this is what OpenAI sends


class Shape(Protocol):
    """One kind of completions. choices: tokens with log-probabilities, or None where none were asked for."""

    def whole_choice(self, index: int, text: str, choices: Sequence[TokenChoice] | None, reason: str) -> Json: ...

    def whole(self, choices: Sequence[Json], usage: Json) -> Json: ...

    def first_chunk(self, index: int) -> Json | None: ...

    def chunk(self, index: int, text: str, choices: Sequence[TokenChoice] | None, reason: str | None) -> Json: ...

    def usage_chunk(self, usage: Json) -> Json: ...


@dataclass(frozen=True, slots=True)
class ChatShape:
    """/v1/chat/completions. spelled: text of a single token."""

    id: str
    created: int
    model: str
    spelled: Spelled

    def whole_choice(self, index: int, text: str, choices: Sequence[TokenChoice] | None, reason: str) -> Json:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": self._logprobs(choices), "finish_reason": reason}

    def whole(self, choices: Sequence[Json], usage: Json) -> Json:
        return self._head("chat.completion") | {"choices": list(choices), "usage": usage}

    def first_chunk(self, index: int) -> Json | None:
        return self._chunk(index, {"role": "assistant", "content": ""}, None, None)

    def chunk(self, index: int, text: str, choices: Sequence[TokenChoice] | None, reason: str | None) -> Json:
        return self._chunk(index, {"content": text} if text or reason is None else {}, choices, reason)

    def usage_chunk(self, usage: Json) -> Json:
        return self._head("chat.completion.chunk") | {"choices": [], "usage": usage}

    def _chunk(self, index: int, delta: Json, choices: Sequence[TokenChoice] | None, reason: str | None) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": self._logprobs(choices), "finish_reason": reason}
        return self._head("chat.completion.chunk") | {"choices": [choice]}

    def _head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _logprobs(self, choices: Sequence[TokenChoice] | None) -> Json | None:
        if choices is None:
            return None
        content = [
            self._token(choice.token, choice.logprob)
            | {"top_logprobs": [self._token(token, logprob) for token, logprob in choice.top]}
            for choice in choices
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float | None) -> Json:
        text = self.spelled(token)
        # A token may be a part of a character; its bytes are then not known from its text.
        known = None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
        return {"token": text, "logprob": _sendable(logprob), "bytes": known}


@dataclass(frozen=True, slots=True)
class TextShape:
    """/v1/completions. spelled: text of a single token."""

    id: str
    created: int
    model: str
    spelled: Spelled

    def whole_choice(self, index: int, text: str, choices: Sequence[TokenChoice] | None, reason: str) -> Json:
        return {"index": index, "text": text, "logprobs": self._logprobs(choices), "finish_reason": reason}

    def whole(self, choices: Sequence[Json], usage: Json) -> Json:
        return self._head() | {"choices": list(choices), "usage": usage}

    def first_chunk(self, index: int) -> Json | None:
        return None

    def chunk(self, index: int, text: str, choices: Sequence[TokenChoice] | None, reason: str | None) -> Json:
        choice = {"index": index, "text": text, "logprobs": self._logprobs(choices), "finish_reason": reason}
        return self._head() | {"choices": [choice]}

    def usage_chunk(self, usage: Json) -> Json:
        return self._head() | {"choices": [], "usage": usage}

    def _head(self) -> Json:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}

    def _logprobs(self, choices: Sequence[TokenChoice] | None) -> Json | None:
        if choices is None:
            return None
        return {
            "tokens": [self.spelled(choice.token) for choice in choices],
            "token_logprobs": [_sendable(choice.logprob) for choice in choices],
            "top_logprobs": [
                {self.spelled(token): _sendable(logprob) for token, logprob in choice.top} for choice in choices
            ],
        }


def usage_body(usages: Sequence[GenerationUsage], choices_per_prompt: int) -> Json:
    """Usage of all choices together, in order; a prompt counts once, however many choices were made of it.

    What drafts were made from is a prompt as well, and counts.
    """
    firsts = usages[::choices_per_prompt]
    prompt = sum(usage.prompt_tokens for usage in firsts)
    prompt += sum(usage.speculation.prefill_draft for usage in firsts if usage.speculation is not None)
    completion = sum(usage.completion_tokens for usage in usages)
    body: Json = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(usage.reused_tokens for usage in firsts)},
    }
    tallies = [usage.speculation for usage in usages if usage.speculation is not None]
    if tallies:
        accepted, drafted = sum(tally.accepted for tally in tallies), sum(tally.drafted for tally in tallies)
        body["completion_tokens_details"] = {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": drafted - accepted,
        }
    return body


def model_body(name: str, created: int, context_window: int | None) -> Json:
    """One entry of /v1/models. max_model_len: as other servers say how long a prompt may be."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "longroute",
        "max_model_len": context_window,
    }


def _sendable(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, _LEAST_LOGPROB)
