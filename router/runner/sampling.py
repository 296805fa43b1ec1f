"""From logits to a token, for one request each, with one transfer from the device for a whole batch.

The chance of a request is its own: one uniform number a token from a generator on the host, turned into a token through
the cumulative distribution. So a seed means the same on every device, alone or in a batch. (Logits themselves may
differ in the last digits with the shape of a batch; where two tokens are that close, so may the pick.)
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from .generation import SamplingOptions, TokenChoice


class Sampler:
    """The options of one request on the device, its source of chance, and the tokens that a penalty must know."""

    def __init__(
        self, options: SamplingOptions, prompt_ids: Sequence[int], vocab_size: int, device: torch.device
    ) -> None:
        self.options = options
        # As a text, because Random takes -1 and 1 for the same seed.
        self.chance = random.Random(None if options.seed is None else str(options.seed))
        self.plain = not options.logit_bias and options.repetition_penalty == 1  # nothing to do before temperature
        self._bias: Tensor | None = None
        self._seen: Tensor | None = None
        if options.logit_bias:
            bias = torch.zeros(vocab_size)
            bias[list(options.logit_bias)] = torch.tensor(list(options.logit_bias.values()), dtype=torch.float32)
            self._bias = bias.to(device)
        if options.repetition_penalty != 1:
            seen = torch.zeros(vocab_size, dtype=torch.bool)
            seen[list(prompt_ids)] = True
            self._seen = seen.to(device)

    def adjusted(self, logits: Tensor) -> Tensor:
        """Logits of one position, shape (V,), after all options; tokens that are ruled out are at -inf.

        Where the most likely token is taken only bias and penalty apply.
        """
        options = self.options
        if self._bias is not None:
            logits = logits + self._bias
        if self._seen is not None:
            penalised = torch.where(
                logits > 0, logits / options.repetition_penalty, logits * options.repetition_penalty
            )
            logits = torch.where(self._seen, penalised, logits)
        if options.is_greedy:
            return logits
        logits = logits / options.temperature
        if 0 < options.top_k < logits.shape[-1]:
            logits = logits.masked_fill(logits < logits.topk(options.top_k).values[-1], -torch.inf)
        if options.top_p < 1:
            ordered, order = logits.sort(descending=True)
            before = ordered.softmax(-1).cumsum(-1).roll(1)  # probability of all more likely tokens
            before[0] = 0
            out = torch.zeros_like(logits, dtype=torch.bool).scatter(0, order, before >= options.top_p)
            logits = logits.masked_fill(out, -torch.inf)
        if options.min_p > 0:
            probabilities = logits.softmax(-1)
            logits = logits.masked_fill(probabilities < options.min_p * probabilities.max(), -torch.inf)
        return logits

    def pick(self, logits: Tensor) -> Tensor:
        """One token from logits of shape (V,), as a tensor of shape (1,) that stays on the device."""
        logits = self.adjusted(logits)
        if self.options.is_greedy:
            token = logits.argmax(-1, keepdim=True)
        else:
            # The first token whose cumulative probability exceeds the number: never one of probability zero. In double
            # precision, as the sum of 128k small floats is off by more than many a token's share.
            total = logits.double().softmax(-1).cumsum(-1)
            token = torch.searchsorted(total, total[-1:] * self.chance.random(), right=True)
            token = torch.where(token < len(total), token, logits.argmax(-1, keepdim=True))  # rounding at the very end
        if self._seen is not None:
            self._seen[token] = True
        return token


def choose(logits: Tensor, samplers: Sequence[Sampler]) -> list[TokenChoice | None]:
    """One token for each row. logits: float32, shape (B, V), one sampler a row.

    None stands for a row whose logits are no numbers (an overflow in half precision, broken weights).
    """
    with torch.inference_mode():
        if all(sampler.plain and sampler.options.is_greedy for sampler in samplers):
            tokens = logits.argmax(-1, keepdim=True)
        else:
            tokens = torch.stack([sampler.pick(row) for sampler, row in zip(samplers, logits, strict=True)])
        columns = [tokens.double(), logits.amax(-1, keepdim=True).isfinite().double()]
        wanted = [sampler.options.logprobs for sampler in samplers]
        most = min(max((n for n in wanted if n is not None), default=0), logits.shape[-1])
        if any(n is not None for n in wanted):
            logprobs = logits.log_softmax(-1)
            top = logprobs.topk(most)
            columns += [logprobs.gather(-1, tokens).double(), top.indices.double(), top.values.double()]
        rows: list[list[float]] = torch.cat(columns, -1).tolist()  # the one transfer: ids are exact in a double
    return [_choice(row, n, most) for row, n in zip(rows, wanted, strict=True)]


def _choice(row: list[float], wanted: int | None, most: int) -> TokenChoice | None:
    token, finite, *rest = row
    if not finite:
        return None
    if wanted is None:
        return TokenChoice(int(token))
    logprob, ids, values = rest[0], rest[1 : 1 + most], rest[1 + most :]
    top = tuple((int(i), value) for i, value in zip(ids[:wanted], values[:wanted], strict=True))
    return TokenChoice(int(token), logprob, top)
