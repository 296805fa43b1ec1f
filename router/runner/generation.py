"""The runner's vocabulary: what is asked of it, what it answers. Token ids and numbers only; no tensors, no prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ..errors import ConfigError

if TYPE_CHECKING:
    from .speculative import Speculation, Tally

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How a token is picked from logits, in this order: bias, repetition penalty, temperature, top-k, top-p, min-p.

    temperature:        0 takes the most likely token; so does less than 1e-5, where float32 ends.
    top_k:              keep the k most likely tokens; 0 keeps all.
    top_p:              keep the fewest tokens that together have this much probability; 1 keeps all.
    min_p:              keep tokens at least this likely relative to the most likely one; 0 keeps all.
    repetition_penalty: divides positive, multiplies negative logits of tokens that the text has already; 1 is off.
    logit_bias:         added to the logits of single tokens.
    seed:               the same seed, prompt and options give the same tokens; None draws a fresh one.
    logprobs:           report the log-probability of each token and of this many most likely ones; None reports none.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        limits: tuple[tuple[str, float, bool, str], ...] = (
            ("temperature", self.temperature, 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_k", self.top_k, self.top_k >= 0, "0 or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "from 0 to 1"),
            ("repetition_penalty", self.repetition_penalty, 0 < self.repetition_penalty < float("inf"), "above 0"),
            ("logprobs", self.logprobs or 0, 0 <= (self.logprobs or 0) <= 20, "from 0 to 20"),
        )
        for name, value, fine, wanted in limits:
            if not fine:
                raise ConfigError(f"{name} is {value}; it must be {wanted}.")

    @property
    def is_greedy(self) -> bool:
        return self.temperature < 1e-5


@dataclass(frozen=True, slots=True)
class Draft:
    """A second, shorter prompt for the same answer, from which tokens are drafted: the same question on retrieved text.

    speculation: how drafts are made and judged; None takes the defaults of `speculative.Speculation`.
    """

    prompt_ids: tuple[int, ...]
    speculation: Speculation | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """One request to the runner.

    max_tokens:    most tokens to generate; fewer where the model's positions run out.
    stop:          texts that end the answer and are not part of it; they need an engine that can decode.
    stop_ids:      tokens that end the answer and are not part of its text; None takes the model's own.
    shared_tokens: length of the head of the prompt that other requests will start with too (system prompt, document).
                   Only models that forget (sliding windows, recurrent layers) need it: their state is kept at that
                   point, while that of other models serves any shared head.
    draft:         decode speculatively with this draft; None decodes token by token.
    """

    prompt_ids: tuple[int, ...]
    sampling: SamplingOptions = SamplingOptions()
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] | None = None
    shared_tokens: int = 0
    draft: Draft | None = None

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ConfigError(
                "prompt_ids is empty; a model needs at least one token to continue, usually the BOS token."
            )
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens is {self.max_tokens}; it must be at least 1.")
        if any(not text for text in self.stop):
            raise ConfigError("stop holds an empty text, which would end every answer at once; leave it out.")
        if not 0 <= self.shared_tokens <= len(self.prompt_ids):
            raise ConfigError(f"shared_tokens is {self.shared_tokens}; the prompt has {len(self.prompt_ids)} tokens.")


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """One token that was picked. Log-probabilities are the model's own, before bias, penalty and temperature.

    logprob: None where none were asked for.
    top:     (token, log-probability) of the most likely tokens, best first.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """One more token, and the text that became certain with it: empty while a character or a stop text may be open."""

    choice: TokenChoice
    text: str = ""


@dataclass(frozen=True, slots=True)
class GenerationUsage:
    """What a request took.

    prompt_tokens: includes reused_tokens, which came from the cache of an earlier prompt; a draft's prompt is apart.
    speculation:   counts of drafting and judging; None without a draft.
    """

    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int
    queue_s: float
    prefill_s: float
    decode_s: float
    speculation: Tally | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a request. text: what was held back until the end."""

    reason: FinishReason
    usage: GenerationUsage
    text: str = ""


@dataclass(frozen=True, slots=True)
class Generated:
    """A whole answer. The token that ended it (`stop_ids`) is among the choices, its text is not in `text`."""

    text: str
    choices: tuple[TokenChoice, ...]
    reason: FinishReason
    usage: GenerationUsage

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(choice.token for choice in self.choices)
