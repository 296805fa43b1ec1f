"""Tiny causal models with random weights, one of each family that the runner must get right; nothing is downloaded."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from longroute.router.runner.model import LanguageModel

torch.set_num_threads(1)  # for matrices of this size more of them only wait for each other
VOCAB = 48
_SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "initializer_range": 0.3,  # sharp enough that argmax does not hang on rounding
}
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 16},
    "gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 16, "query_pre_attn_scalar": 8, "num_hidden_layers": 6},
    "gpt_neox": {"num_key_value_heads": None},
    "lfm2": {},
}
FAMILIES = tuple(family for family in _FAMILIES if family != "lfm2")  # those with attention alone
# A toy tokenizer: letters, pieces of two, and the bytes of a four-byte character, each a token.
_PIECES = [bytes([97 + i]) for i in range(26)] + [b" the", b"ab", b"b!", b". ", "\N{ROCKET}".encode() + b"c"]
_PIECES += [bytes([byte]) for byte in "\N{ROCKET}\N{LATIN SMALL LETTER E WITH ACUTE}".encode()]
_PIECES += [bytes([48 + i]) for i in range(VOCAB - len(_PIECES))]
LENGTH = 120  # of the texts used here: well past the windows of 16
WINDOWED = ("mistral", "gemma2", "gemma3_text")


def tiny_transformer(family: str, seed: int = 0, **changes: Any) -> Any:
    """A transformers model of this family in float32 with seeded random weights."""
    options = _SMALL | _FAMILIES.get(family, {}) | changes
    config = AutoConfig.for_model(family, **{key: value for key, value in options.items() if value is not None})
    torch.manual_seed(seed)
    return untrained(config)


def untrained(config: Any) -> Any:
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]


@lru_cache
def tiny_model(family: str, seed: int = 0) -> LanguageModel:
    """The same, as the runner sees it; shared by tests, which must not change its weights."""
    return LanguageModel(tiny_transformer(family, seed))


def decode(ids: Sequence[int]) -> str:
    """Text of token ids, as byte-level tokenizers give it: what is no whole character shows as U+FFFD."""
    return b"".join(_PIECES[i] for i in ids).decode(errors="replace")


def prompt(n: int, seed: int = 0) -> tuple[int, ...]:
    """Seeded token ids without the end token."""
    rng = random.Random(seed)
    return tuple(rng.randrange(2, VOCAB) for _ in range(n))


def text(n: int = LENGTH, seed: int = 1) -> Tensor:
    return torch.randint(0, VOCAB, (1, n), generator=torch.Generator().manual_seed(seed))


def plain_logits(model: Any, ids: Tensor) -> Tensor:
    """The slow twin: the whole text in one pass, without a cache and with transformers' own attention."""
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits.float()  # type: ignore[no-any-return]


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-4)
