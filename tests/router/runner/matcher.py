"""A causal model built by hand that looks at earlier tokens of the same word, and next to nowhere else.

Embeddings are random signs, queries and keys pass them on, nothing else adds to them: every layer and head attends by
whether words are equal. So what a question looks at is known: the places of its own words.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer as Words
from tokenizers import models, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast

from longroute.router.runner.attention import AttentionReader
from longroute.router.runner.model import LanguageModel
from longroute.router.runner.tokenizer import Tokenizer
from longroute.tests.router.runner.tiny import untrained

_WIDTH = 64


def words_tokenizer(vocabulary: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token for each word or mark; every other word is the same unknown one."""
    ids = {word: n for n, word in enumerate(["<begin>", "<unknown>", *dict.fromkeys(vocabulary)])}
    words = Words(models.WordLevel(ids, unk_token="<unknown>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words, bos_token="<begin>", unk_token="<unknown>"
    )


def matcher(vocabulary: Iterable[str], *, max_positions: int = 8192, layers: int = 2) -> AttentionReader:
    """Knows the words of the vocabulary; all others look alike to it, and it looks at none of them."""
    tokenizer = words_tokenizer(vocabulary)
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=_WIDTH, intermediate_size=8, num_hidden_layers=layers,
        num_attention_heads=1, num_key_value_heads=1, head_dim=_WIDTH, max_position_embeddings=max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": 1e30},  # turns next to nothing but the first pair
    )  # fmt: skip
    model = untrained(config)
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (len(tokenizer), _WIDTH), generator=generator).float() * 2 - 1
    signs[:, [0, _WIDTH // 2]] = 0  # the pair that is turned
    signs[1] *= 1e-6  # what is unknown has no direction; the norm must not give it one
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(signs)
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.copy_(2 * torch.eye(_WIDTH))
            layer.self_attn.k_proj.weight.copy_(torch.eye(_WIDTH))
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return AttentionReader(LanguageModel(model), Tokenizer(tokenizer), introduction="Read .")
