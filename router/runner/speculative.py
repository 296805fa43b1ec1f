"""Speculative decoding with two contexts (RAPID): one model drafts on retrieved text, one verifies on the full text.

One `SpeculativeDecoding` is one answer. The two sides share nothing but the tokens of the answer so far: prompts,
positions and caches are their own, even where one model does both. `laws.py` says which drafts are kept and
`draft_length.py` how many to make; this module feeds the models, keeps the caches in step and ends the text. Several
answers at once are several of these, whose passes are shared (`passes.py`): each row keeps as many drafts as it may.

Source: RAPID, arXiv 2502.20330; written anew, as `generate(assistant_model=...)` gives both models the same prompt.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import BackendError, ConfigError
from .draft_length import DraftLength, Round
from .generation import FinishReason, SamplingOptions, TokenChoice
from .laws import Law, acceptance, greedy_choice, probabilities, reference, replacement
from .passes import DecodingModel, Pass, Step, run_alone
from .sampling import Sampler

_REPRODUCIBLE_DRAFT = 4  # drafted where measured times must not have a say; good for acceptances of 0.6 to 0.9
_FEW = 4  # tokens that a pass reads in about the time of one; a wholly accepted draft leaves one unread
_SHORTER = 8  # times that the text must be longer than the drafter's, where the drafter is no smaller
_LONGEST_DRAFT = 32  # a sliding-window cache takes back 64 tokens; no speed model asks for more than 16


@dataclass(frozen=True, slots=True)
class Side:
    """One model with the prompt it reads.

    cache: a cache that already holds the first tokens of exactly this prompt (a reused prefix), or None. It is owned by
    the decoding from here on.
    """

    model: DecodingModel
    prompt: Sequence[int]
    cache: Any = None


@dataclass(frozen=True, slots=True)
class Speculation:
    """How to speculate.

    draft_tokens: length of a draft, or `auto`: what the measured acceptance and step times promise most of, and plain
        decoding where they promise nothing. Where the same request must give the same text (a seed, or temperature 0)
        and the length of drafts can change the text (see `SpeculativeDecoding`), `auto` is a fixed 4, as measured times
        differ from run to run.
    least_confidence: a draft ends after a token that the draft model gave less probability than this. The token itself
        is still judged, as dropping it would change the law.
    """

    law: Law = field(default_factory=Law)
    draft_tokens: int | Literal["auto"] = "auto"
    least_confidence: float = 0.1

    def __post_init__(self) -> None:
        if self.draft_tokens != "auto" and not 1 <= self.draft_tokens <= _LONGEST_DRAFT:
            raise ConfigError(f"draft_tokens must be 'auto' or 1 to {_LONGEST_DRAFT}, not {self.draft_tokens!r}.")
        if not 0 <= self.least_confidence <= 1:
            raise ConfigError(f"least_confidence must lie in [0, 1], not {self.least_confidence}.")


_DEFAULT = Speculation()
_PLAIN = SamplingOptions()


@dataclass(frozen=True, slots=True)
class Block:
    """What one step emitted.

    choices: one or more tokens, an end token included. Log-probabilities are the target's, whatever the mode.
    drafted, accepted: tokens drafted and tokens kept by the verdict; both 0 for a plain step.
    reason: why the text ends here, or None while it goes on. `stop`: an end token, or the caller's own stop.
    """

    choices: tuple[TokenChoice, ...]
    drafted: int
    accepted: int
    reason: FinishReason | None

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(choice.token for choice in self.choices)


@dataclass(frozen=True, slots=True)
class Tally:
    """Tokens and steps so far. Prefill counts leave out what a reused cache already held."""

    prefill_target: int = 0
    prefill_draft: int = 0
    drafted: int = 0
    accepted: int = 0
    rounds: int = 0
    plain_steps: int = 0
    emitted: int = 0

    @property
    def acceptance(self) -> float | None:
        """Share of drafted tokens that were kept; None where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None


def common_vocabulary(target: Mapping[str, int], draft: Mapping[str, int]) -> int:
    """Number of ids that two tokenizers share, given each one's token → id; pass it as `vocab_size`.

    Probabilities are compared id by id, so the two must be one vocabulary. Only the padding rows of the models' output
    heads may differ. Raises ConfigError otherwise.
    """
    if dict(target) == dict(draft):
        return max(target.values()) + 1
    other = sum(draft.get(token) != index for token, index in target.items())
    raise ConfigError(
        f"The target's vocabulary has {len(target)} tokens, the draft model's {len(draft)}, and {other} of the "
        "target's have another id there, or none. Speculation compares id by id: choose a draft model of the same "
        "family, or let the target draft for itself."
    )


class SpeculativeDecoding:
    """One answer, decoded in steps: `prefill` until it returns False, then `step` until a block says why it ends.

    With `law.mode` exact the text has the target's own law, and at temperature 0 it is the target's greedy text, for
    any draft length. In the other modes the extra token after a wholly accepted draft follows the plain target, so the
    text depends on where drafts end. A seed gives the same text for the same mode, draft length and models.
    """

    def __init__(
        self,
        target: Side,
        draft: Side,
        *,
        max_tokens: int,
        speculation: Speculation = _DEFAULT,
        sampling: SamplingOptions = _PLAIN,
        stop_ids: frozenset[int] | None = None,
        stop: Callable[[int], bool] | None = None,
        vocab_size: int | None = None,
        length: DraftLength | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Nothing runs yet.

        max_tokens: most tokens to emit, at least 1; the caller sees to it that the target has room for them.
        sampling: applied to both sides alike; a repetition penalty is refused, as the two read different texts.
        stop_ids: tokens that end the text; the target's own by default.
        stop: told every emitted token in order; where it returns True the text ends behind that token.
        vocab_size: from `common_vocabulary`, for two different models; needed where their output heads differ in size.
        length: chooses draft lengths where they are automatic; one with other limits than the default, or a test's.
        Raises ConfigError where the two sides cannot work together.
        """
        self._vocabulary = _shared_columns(target.model, draft.model, vocab_size)
        if max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, not {max_tokens}.")
        self._target, self._draft = _Feed(target, max_tokens), _Feed(draft, max_tokens)
        self._max_tokens = max_tokens
        self._law, self._speculation = speculation.law, speculation
        if sampling.repetition_penalty != 1:
            raise ConfigError(
                f"repetition_penalty is {sampling.repetition_penalty}, but speculation supports only 1: the target and "
                "the draft have read different texts, so they would be penalised for different tokens. Leave it out, "
                "or use plain decoding."
            )
        if max(sampling.logit_bias, default=0) >= self._vocabulary:
            raise ConfigError(
                f"logit_bias names token {max(sampling.logit_bias)}, but the models share only the {self._vocabulary} "
                "tokens from 0 on. Leave it out."
            )
        self._sampling, self._greedy = sampling, sampling.is_greedy
        self._samplers = [
            Sampler(sampling, (), self._vocabulary, model.device) for model in (target.model, draft.model)
        ]
        # Drafts and verdicts must not share their chance: a verdict would then depend on how its draft was drawn.
        self._verdicts = random.Random(None if sampling.seed is None else f"verdicts on {sampling.seed}")
        self._drafts = random.Random(None if sampling.seed is None else f"drafts of {sampling.seed}")
        self._stop_ids = target.model.eos_ids if stop_ids is None else stop_ids
        self._stop, self._clock = stop, clock
        self.length = length or DraftLength()  # of this company: others may come and go, and step times with them
        # A step reads weights and text. With no fewer weights than the target and more than an eighth of its text, a
        # drafter's steps are hardly cheaper: a trial cannot pay.
        as_large = draft.model.weight_bytes >= target.model.weight_bytes
        self._hopeless = as_large and len(draft.prompt) * _SHORTER > len(target.prompt)
        self._fixed: int | None = None
        if speculation.draft_tokens != "auto":
            self._fixed = speculation.draft_tokens
        elif (self._greedy or sampling.seed is not None) and not (self._greedy and self._law.mode == "exact"):
            self._fixed = _REPRODUCIBLE_DRAFT
        self._reason: FinishReason | None = None
        self._drafted = self._accepted = self._rounds = self._plain_steps = 0
        self._prefill_target = self._target.unread
        self._prefill_draft = self._draft.unread if self.drafts else 0

    @property
    def drafts(self) -> bool:
        """Whether anything may be drafted at all; where not, plain decoding does the same for less."""
        return self._fixed is not None or not self._hopeless

    @property
    def tokens(self) -> tuple[int, ...]:
        """All tokens emitted so far."""
        return tuple(self._target.ids[self._target.prompt_tokens :])

    @property
    def _emitted(self) -> int:
        return len(self._target.ids) - self._target.prompt_tokens

    @property
    def tally(self) -> Tally:
        return Tally(
            prefill_target=self._prefill_target,
            prefill_draft=self._prefill_draft,
            drafted=self._drafted,
            accepted=self._accepted,
            rounds=self._rounds,
            plain_steps=self._plain_steps,
            emitted=self._emitted,
        )

    @property
    def caches(self) -> tuple[Any, Any]:
        """The caches of target and draft. After a step each holds no more than all known tokens but the newest."""
        return self._target.cache, self._draft.cache

    def prefill(self, chunk_tokens: int = 2048) -> bool:
        """Read at most one chunk of one prompt, the target's first; returns whether there is more to read."""
        side = self._target if self._target.unread else self._draft
        if side.unread and (side is self._target or self.drafts):  # not where prompts are short, or were reused whole
            side.read(chunk_tokens)
        return bool(self._target.unread or (self.drafts and self._draft.unread))

    def step(self) -> Block:
        """Emit at least one token: a round of speculation, or a plain step of the target. Prefills what is left."""
        return run_alone(self.passes(), self._clock)

    def passes(self) -> Step[Block]:
        """The passes of one `step`, for those who run several answers together."""
        assert self._reason is None, "the text has ended"
        while self._target.unread:
            yield self._target.next_chunk()
        known, length = self._emitted, self.length
        drafted: list[int] = []
        offered: list[Tensor] = []
        catching_up = drafting = 0.0
        wanted = self._wanted(length)
        while wanted and self._draft.unread > _FEW:
            _, began = yield self._draft.next_chunk()
            catching_up += self._clock() - began
        while len(drafted) < wanted:
            logits, began = yield self._draft.next_pass(1)
            more = self._offer(logits, drafted, offered)
            drafting += self._clock() - began
            if not more:
                break
        self._target.ids.extend(drafted)
        raw, began = yield self._target.next_pass(len(drafted) + 1, last=True)
        if raw.shape[1] > self._vocabulary:
            raw = raw[:, : self._vocabulary]
        accepted, extra = self._judge(raw, drafted, offered)
        block = self._cut(drafted, accepted, extra, raw)
        for side in (self._target, self._draft):
            del side.ids[side.prompt_tokens + known :]
            side.ids.extend(block.tokens)
            side.forget(len(side.ids) - 1)
        self._account(block, length, catching_up, drafting, self._clock() - began)
        return block

    def _wanted(self, length: DraftLength) -> int:
        remaining = self._max_tokens - self._emitted
        if self._fixed is not None:
            wanted = min(self._fixed, remaining - 1)
        else:
            wanted = 0 if self._hopeless else length.choose(remaining)
        return max(0, min(wanted, self._draft.room))

    def _offer(self, logits: Tensor, drafted: list[int], offered: list[Tensor]) -> bool:
        """Draft one more token from logits (1, V) of the draft model; returns whether another may follow."""
        shaped = _shaped(logits[:, : self._vocabulary], self._samplers[1])[0]
        distribution = probabilities(shaped)
        token = shaped.argmax(-1, keepdim=True) if self._greedy else _drawn(distribution, self._drafts)
        # One transfer for both; an id is exact in a double.
        chosen, confidence = torch.cat((token.double(), distribution[token].double())).tolist()
        if math.isnan(confidence):
            return False  # a broken draft model costs speed, never the answer
        drafted.append(int(chosen))
        offered.append(distribution)
        self._draft.ids.append(int(chosen))
        return not (confidence < self._speculation.least_confidence or int(chosen) in self._stop_ids)

    def _judge(self, raw: Tensor, drafted: Sequence[int], offered: Sequence[Tensor]) -> tuple[int, int]:
        """(drafts kept, the token emitted behind them), from raw target logits (len(drafted) + 1, V): for the place of
        each draft and the one behind the last.
        """
        logits, n = _shaped(raw, self._samplers[0]), len(drafted)
        most, likeliest = logits.max(-1)
        if not math.isfinite(float(most.sum() if n else most)):
            raise BackendError(
                "The target's logits are no numbers: an overflow in half precision, or broken weights. "
                "Try dtype='bfloat16' or 'float32'."
            )
        if not n:
            return 0, int(likeliest) if self._greedy else self._from_target(logits[0])
        draft = torch.stack(list(offered)).to(logits.device)
        tokens = torch.tensor(drafted, device=logits.device)
        if self._greedy:
            choice = greedy_choice(logits[:n], draft, self._law)
            kept = _leading(choice == tokens)
            return kept, int((choice if kept < n else likeliest)[kept])
        judged = reference(logits[:n], draft, self._law)
        draws = torch.tensor([self._verdicts.random() for _ in drafted], dtype=torch.float64, device=logits.device)
        kept = _leading(draws < acceptance(judged, draft, tokens))
        if kept == n:
            return n, self._from_target(logits[n])
        spare = replacement(probabilities(logits[kept]), judged[kept], draft[kept], self._law)
        return kept, int(_drawn(spare, self._verdicts))

    def _from_target(self, logits: Tensor) -> int:
        return int(_drawn(probabilities(logits.double()), self._verdicts))

    def _cut(self, drafted: Sequence[int], accepted: int, extra: int, raw: Tensor) -> Block:
        """The tokens to emit, up to the first that ends the text; an accepted end token gets no extra one behind it."""
        tokens: list[int] = []
        remaining = self._max_tokens - (self._emitted - len(drafted))
        for token in (*drafted[:accepted], extra):
            tokens.append(token)
            stopped = self._stop is not None and self._stop(token)
            if stopped or token in self._stop_ids:
                self._reason = "stop"
            elif len(tokens) == remaining:
                self._reason = "length"
            if self._reason:
                break
        return Block(self._choices(tokens, raw), len(drafted), accepted, self._reason)

    def _choices(self, tokens: Sequence[int], raw: Tensor) -> tuple[TokenChoice, ...]:
        wanted = self._sampling.logprobs
        if wanted is None:
            return tuple(TokenChoice(token) for token in tokens)
        logprobs = raw[: len(tokens)].log_softmax(-1)
        chosen = logprobs.gather(-1, torch.tensor(tokens, device=raw.device)[:, None])[:, 0].tolist()
        top = logprobs.topk(min(wanted, self._vocabulary))
        rows = zip(tokens, chosen, top.indices.tolist(), top.values.tolist(), strict=True)
        return tuple(TokenChoice(token, own, tuple(zip(ids, values, strict=True))) for token, own, ids, values in rows)

    def _account(
        self, block: Block, length: DraftLength, catching_up: float, drafting: float, verifying: float
    ) -> None:
        target, draft = self._target, self._draft
        assert target.cache.n_tokens == len(target.ids) - 1
        assert draft.cache.n_tokens <= len(draft.ids) - 1
        assert len(target.ids) - target.prompt_tokens == len(draft.ids) - draft.prompt_tokens
        self._drafted += block.drafted
        self._accepted += block.accepted
        if not block.drafted:
            self._plain_steps += 1
            length.saw_plain_step(verifying)
            return
        self._rounds += 1
        if self._fixed is None:
            refused = block.accepted < block.drafted
            emitted = len(block.choices)
            length.saw_round(Round(block.drafted, block.accepted, refused, emitted, drafting, verifying, catching_up))


class _Feed:
    """One side while it runs: all its ids, and a cache that holds the first of them."""

    def __init__(self, side: Side, max_tokens: int) -> None:
        if not side.prompt:
            raise ConfigError(
                "A prompt is empty; give each side at least one token, such as the one that begins a text."
            )
        self.model = side.model
        self.ids = list(side.prompt)
        self.prompt_tokens = len(self.ids)
        self.cache = side.model.new_cache(len(self.ids) + max_tokens) if side.cache is None else side.cache
        if self.cache.n_tokens >= len(self.ids):  # a whole prompt was reused: its last token is fed again for logits
            self.model.crop(self.cache, len(self.ids) - 1)

    @property
    def unread(self) -> int:
        """Tokens to read before the newest one, which is fed when its logits are wanted."""
        return len(self.ids) - 1 - int(self.cache.n_tokens)

    @property
    def room(self) -> int:
        """Tokens that may be appended before the model's positions end."""
        most = self.model.max_positions
        return _LONGEST_DRAFT if most is None else most - len(self.ids)

    def read(self, chunk_tokens: int) -> None:
        """Feed at most a chunk of what is unread; its logits are not wanted."""
        chunk = self.next_chunk(chunk_tokens)
        self.model.forward(self.model.tokens(chunk.ids), self.cache)

    def next_chunk(self, chunk_tokens: int = 2048) -> Pass:
        """A chunk of what is unread."""
        there = self.cache.n_tokens
        return Pass(self.model, self.cache, self.ids[there : there + min(self.unread, chunk_tokens)])

    def next_pass(self, wanted: int, *, last: bool = False) -> Pass:
        """All ids that the cache lacks, with logits behind the last `wanted` of them."""
        return Pass(self.model, self.cache, self.ids[self.cache.n_tokens :], wanted, last)

    def forget(self, n_tokens: int) -> None:
        """Keep at most the first n_tokens tokens."""
        if self.cache.n_tokens > n_tokens:
            self.model.crop(self.cache, n_tokens)


def _shared_columns(target: DecodingModel, draft: DecodingModel, vocab_size: int | None) -> int:
    for model, role in ((target, "target"), (draft, "draft model")):
        if not model.can_roll_back:
            raise ConfigError(
                f"The {role}'s cache cannot take back tokens (recurrent layers), as speculation must when a draft is "
                "refused. Use plain decoding, or a model with plain or sliding-window attention."
            )
    sizes = target.vocab_size, draft.vocab_size
    if vocab_size is None and sizes[0] != sizes[1]:
        raise ConfigError(
            f"The target has {sizes[0]} tokens, the draft model {sizes[1]}. If only padding differs, pass vocab_size "
            "from common_vocabulary(); else choose a draft model of the same family, or let the target draft itself."
        )
    if vocab_size is not None and not 1 <= vocab_size <= min(sizes):
        raise ConfigError(
            f"vocab_size is {vocab_size}, but the models' outputs have {sizes[0]} and {sizes[1]} columns."
        )
    return sizes[0] if vocab_size is None else vocab_size


def _shaped(logits: Tensor, sampler: Sampler) -> Tensor:
    """Logits (n, V) after bias, temperature, top-k and top-p; at temperature 0 after bias only."""
    if sampler.plain and sampler.options.is_greedy:
        return logits
    return torch.stack([sampler.adjusted(row) for row in logits])


def _drawn(distribution: Tensor, chance: random.Random) -> Tensor:
    """One token id, shape (1,), from a distribution (V,), drawn as `sampling.Sampler.pick` does on any device."""
    total = distribution.double().cumsum(-1)
    token = torch.searchsorted(total, total[-1:] * chance.random(), right=True)
    return torch.where(token < len(total), token, distribution.argmax(-1, keepdim=True))  # rounding at the very end


def _leading(kept: Tensor) -> int:
    """Number of True before the first False of a vector."""
    return int(kept.long().cumprod(0).sum())
