"""Llamas of real geometry with random weights: as fast as the trained ones, and nothing to fetch.

What such a model says is noise, so nothing about answers or acceptance can be learned from it; how long its steps take
depends on shapes alone. `Scripted` makes one say what it is told to, after it has done all its work.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from longroute.router.runner.model import LanguageModel

_CERTAIN = 20.0  # a logit beside zeros: probability 0.999 and more, for vocabularies up to half a million


@dataclass(frozen=True, slots=True)
class Geometry:
    """Values of LlamaConfig. drafter: the geometry of a smaller model of the same vocabulary, or None."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    tie_word_embeddings: bool = False
    drafter: str | None = None


GEOMETRIES: Mapping[str, Geometry] = MappingProxyType(
    {
        "8b": Geometry(128_256, 4096, 14_336, 32, 32, 8, drafter="1b"),  # Llama-3.1-8B
        "1b": Geometry(128_256, 2048, 8192, 16, 32, 8, tie_word_embeddings=True),  # Llama-3.2-1B
        "tiny": Geometry(2048, 256, 768, 6, 8, 8, drafter="tiny-draft"),  # the shape of rapid_speed.py
        "tiny-draft": Geometry(2048, 128, 384, 2, 4, 4),
    }
)


def random_llama(geometry: Geometry, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Any:
    """A transformers LlamaForCausalLM with random weights, made on its device; nothing ends its texts."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=geometry.vocab_size,
        hidden_size=geometry.hidden_size,
        intermediate_size=geometry.intermediate_size,
        num_hidden_layers=geometry.num_hidden_layers,
        num_attention_heads=geometry.num_attention_heads,
        num_key_value_heads=geometry.num_key_value_heads,
        tie_word_embeddings=geometry.tie_word_embeddings,
        max_position_embeddings=1 << 18,  # beyond what is measured: a prompt of 128k tokens and its answer
        bos_token_id=None,
        eos_token_id=None,
        dtype=dtype,
    )
    torch.manual_seed(seed)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()  # type: ignore[no-untyped-call]


class Scripted(LanguageModel):
    """A model that runs as it is, and then says what the script says next, each token right with a fixed chance.

    So acceptance is set by construction, and rounding in half precision cannot change a text.
    """

    _script: Sequence[int] = ()  # already there while LanguageModel tries the model out
    _prompt_tokens = 0
    _chance = 1.0

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._draws = random.Random(0)  # goes on from answer to answer, so that repeats are not all alike lucky

    def follow(self, script: Sequence[int], prompt_tokens: int, chance: float = 1.0) -> None:
        """From now on, say `script` behind a prompt of so many tokens; a wrong token is the right one plus one."""
        self._script, self._prompt_tokens, self._chance = script, prompt_tokens, chance

    def forward(self, tokens: Tensor, cache: Any, *, logits: Any = "last") -> Tensor:
        found = super().forward(tokens, cache, logits=logits)
        end = cache.n_tokens - self._prompt_tokens + 1
        start = end - found.shape[1]
        if start < 0 or end > len(self._script):
            return found  # still in the prompt
        said = [(token + (self._draws.random() >= self._chance)) % self.vocab_size for token in self._script[start:end]]
        return torch.zeros_like(found).scatter_(2, self.tokens(said)[..., None], _CERTAIN)
