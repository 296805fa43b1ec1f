"""A tiny model with random weights that reads bytes, as byte-level tokenizers fall back to: every text has tokens, and
most characters outside ASCII have several. It says nothing sensible, but it reads anything."""

from __future__ import annotations

from functools import lru_cache

from tokenizers import Tokenizer as Bytes
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from longroute.router.runner.attention import AttentionReader
from longroute.router.runner.model import LanguageModel
from longroute.router.runner.tokenizer import Tokenizer
from longroute.tests.router.runner.tiny import tiny_transformer

SPECIAL = "<|end|>"


@lru_cache
def bytewise(max_positions: int = 512, family: str = "llama") -> AttentionReader:
    """Shared by tests, which must not change its weights."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    spelled = Bytes(models.BPE({SPECIAL: 0, **{piece: n + 1 for n, piece in enumerate(alphabet)}}, []))
    spelled.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=spelled, bos_token=SPECIAL, eos_token=SPECIAL
    )
    transformer = tiny_transformer(family, vocab_size=len(alphabet) + 1, max_position_embeddings=max_positions)
    return AttentionReader(LanguageModel(transformer), Tokenizer(tokenizer), introduction="Read:\n", chunk_tokens=64)
