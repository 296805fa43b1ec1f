"""A Llama whose first weights already look back: a stock architecture, with a head start for learning to copy.

From random weights a small model learns to look something up only after very many steps in which nothing seems to
happen (on two cores: hours). Here two layers begin as a hint at the circuit that training finds in the end, two heads
that collect the tokens before each place and heads that look for the same tokens earlier on and copy what came next
("In-context learning and induction heads", Olsson et al. 2022, arXiv 2209.11895). All weights are trained from there.
Setting weights instead of drawing them is also done in "Mimetic initialization of self-attention layers", Trockman and
Kolter 2023, arXiv 2305.09828.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_CONSTANT = 4.0  # what every embedding holds in its last place: queries and keys that do not depend on the token
_PLACE_SHARPNESS = 10.0  # in attention logits, per rotary frequency
_LOCAL, _FAR = 0.02, 4e-4  # rotary frequencies, in radians a token: above, places are told apart; below, none are
_MATCH = 2.25  # scale of queries and keys that compare tokens
_COPY, _READ = 3.0, 0.1  # how strongly copied tokens are written, and read by the output head
_NOISE = 0.02


@dataclass(frozen=True, slots=True)
class Shape:
    """hidden: a multiple of 2 * heads. rope_base: so long that most frequencies hardly turn within a text."""

    hidden: int = 160
    layers: int = 4
    heads: int = 4
    positions: int = 32768
    rope_base: float = 1e8

    @property
    def per_head(self) -> int:
        return self.hidden // self.heads


def primed_llama(shape: Shape, vocab_size: int, generator: torch.Generator, **config: Any) -> Any:
    """A transformers LlamaForCausalLM in float32. config: more of LlamaConfig's values.

    The hidden state holds four parts of equal width: the token, the one before it, the one before that, and what was
    copied, which the output head reads. An embedding fills the first part alone.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=shape.hidden,
            intermediate_size=2 * shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            vocab_size=vocab_size,
            max_position_embeddings=shape.positions,
            rope_parameters={"rope_type": "default", "rope_theta": shape.rope_base},
            tie_word_embeddings=False,
            **config,
        )
    )
    width = (shape.hidden - 4) // 4
    with torch.no_grad():
        for layer in model.model.layers:
            attention = layer.self_attn
            for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, layer.mlp.down_proj):
                part.weight.normal_(0, _NOISE, generator=generator)
        _embed(model, width, generator)
        for head in range(2):
            _collect(model.model.layers[0].self_attn, shape, width, head, distance=head + 1)
        for head in range(shape.heads):
            _look_up(model.model.layers[1].self_attn, shape, width, head, generator)
    return model


def _embed(model: Any, width: int, generator: torch.Generator) -> None:
    """A random direction for each token, all of one length, and the same for the output head in the copied part."""
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    tokens = torch.randn(len(embedding), width, generator=generator)
    tokens *= math.sqrt(width) / tokens.norm(dim=1, keepdim=True)
    embedding.zero_()
    embedding[:, :width] = tokens
    embedding[:, -1] = _CONSTANT
    head.normal_(0, _NOISE / 2, generator=generator)
    head[:, 3 * width : 4 * width] += tokens * _READ


def _collect(attention: Any, shape: Shape, width: int, head: int, distance: int) -> None:
    """A head that attends to the token `distance` places back and writes it into the part for that distance.

    Its query is the key, rotated by `distance`: their product is a sum of cos(frequency * (places apart - distance)).
    """
    frequencies = _frequencies(shape)
    local = (frequencies > _LOCAL).float()
    length = math.sqrt((width + _CONSTANT**2) / shape.hidden)  # what RMSNorm divides an embedding by
    scale = length / _CONSTANT * math.sqrt(_PLACE_SHARPNESS * math.sqrt(shape.per_head))
    start, half = head * shape.per_head, shape.per_head // 2
    rows = slice(start, start + shape.per_head)
    for part in (attention.q_proj, attention.k_proj, attention.v_proj):
        part.weight[rows] = 0
    attention.q_proj.weight[start : start + half, -1] = scale * local * torch.cos(distance * frequencies)
    attention.q_proj.weight[start + half : start + 2 * half, -1] = -scale * local * torch.sin(distance * frequencies)
    attention.k_proj.weight[start : start + half, -1] = scale * local
    for place in range(width):
        attention.v_proj.weight[start + place, place] = 1
        attention.o_proj.weight[distance * width + place, start + place] = length


def _look_up(attention: Any, shape: Shape, width: int, head: int, generator: torch.Generator) -> None:
    """A head that attends behind an earlier place where the last two tokens stood, and copies what stands there."""
    start, half = head * shape.per_head, shape.per_head // 2
    far = (_frequencies(shape) < _FAR).nonzero()[:, 0]
    rows = start + torch.cat((far, far + half))
    for wanted, there in ((0, 1), (1, 2)):  # parts: this token as the one before, the one before as the one before that
        compared = torch.randn(len(rows), width, generator=generator) * _MATCH / math.sqrt(width)
        attention.q_proj.weight[rows, wanted * width : (wanted + 1) * width] += compared
        attention.k_proj.weight[rows, there * width : (there + 1) * width] += compared
    share = range(head * width // shape.heads, (head + 1) * width // shape.heads)
    for row, place in enumerate(share, start=start):
        attention.v_proj.weight[row, place] = 1
        attention.o_proj.weight[3 * width + place, row] = _COPY


def _frequencies(shape: Shape) -> Tensor:
    """Rotary frequencies of a head, shape (D / 2,), in radians a token, largest first."""
    half = shape.per_head // 2
    return shape.rope_base ** (-torch.arange(half) / half)
