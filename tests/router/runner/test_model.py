"""The primitive agrees with a plain forward of the whole text, however the text is cut, copied, cropped or batched."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from longroute.router.errors import ConfigError
from longroute.router.runner import model as model_module
from longroute.router.runner import model as runner_model
from longroute.router.runner.model import LanguageModel, _attend
from longroute.tests.router.runner.tiny import (
    FAMILIES,
    LENGTH,
    VOCAB,
    close,
    plain_logits,
    text,
    tiny_model,
    tiny_transformer,
    untrained,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_in_chunks_gives_the_logits_of_the_whole(family: str) -> None:
    transformer = tiny_transformer(family)
    expected = plain_logits(transformer, text())
    model = LanguageModel(transformer)
    cache = model.new_cache()
    cuts = [0, 1, 30, 31, 32, 100, LENGTH]
    parts = [model.forward(text()[:, a:b], cache, logits="all") for a, b in pairwise(cuts)]
    assert close(torch.cat(parts, 1), expected)
    assert cache.n_tokens == LENGTH


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gemma2"])  # see the next test
def test_rows_of_different_lengths_decode_together_as_they_do_alone(family: str) -> None:
    model = tiny_model(family)
    assert model.batches_rows
    lengths = (3, 40, 17, 90)
    alone, together = [model.new_cache() for _ in lengths], [model.new_cache() for _ in lengths]
    for n, one, other in zip(lengths, alone, together, strict=True):
        model.forward(text(n, seed=n), one)
        model.forward(text(n, seed=n), other)
    for step in range(16):  # past the window for the short rows too
        rows = [text(1 + (step + i) % 4, seed=100 + step + i)[0].tolist() for i in range(len(lengths))]
        passes = zip(rows, alone, strict=True)
        expected = torch.cat([model.forward(model.tokens(row), cache, logits="all")[0] for row, cache in passes])
        wanted = [1 if step % 2 else len(row) for row in rows]
        shown = [part[-n:] for part, n in zip(torch.split(expected, [*map(len, rows)]), wanted, strict=True)]
        assert close(model.forward_rows(rows, together, wanted), torch.cat(shown))
        for row, one, other in zip(rows, alone, together, strict=True):
            for cache in (one, other):  # as a draft of which one token was kept
                model.crop(cache, cache.n_tokens - len(row) + 1)
    assert [cache.n_tokens for cache in together] == [n + 16 for n in lengths]


@pytest.mark.parametrize("joins", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_later_chunks_attend_as_with_a_mask_whichever_kernel_there_is(
    family: str, joins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert runner_model._joins(torch.float32) and runner_model._joins(torch.bfloat16)
    monkeypatch.setattr(runner_model, "_joins", lambda dtype: joins)
    monkeypatch.setattr(runner_model, "_LITTLE", 8)
    monkeypatch.setattr(runner_model, "_BLOCK", 16)
    transformer = tiny_transformer(family)
    expected = plain_logits(transformer, text())
    model = LanguageModel(transformer)
    cache = model.new_cache()
    parts = [model.forward(text()[:, a:b], cache, logits="all") for a, b in pairwise([0, 10, 12, 57, LENGTH])]
    assert close(torch.cat(parts, 1), expected)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        # Values smaller than keys, which the kernel that joins past and present refuses.
        ("deepseek_v3", {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4}),
        ("doge", {}),  # adds to its masks, so that it must get one
    ],
)
def test_models_that_attend_otherwise_read_a_text_in_chunks_too(family: str, changes: dict[str, Any]) -> None:
    ours: dict[str, Any] = {"num_key_value_heads": 4, "v_head_dim": 8, "first_k_dense_replace": 9, "head_dim": None}
    transformer = tiny_transformer(family, **{**ours, **changes})
    transformer.set_attn_implementation("eager")
    expected = plain_logits(transformer, text(180))
    model = LanguageModel(transformer)
    cache = model.new_cache()
    parts = [model.forward(part, cache, logits="all") for part in torch.split(text(180), 75, 1)]
    assert torch.allclose(torch.cat(parts, 1), expected, atol=1e-3)


def test_a_model_whose_windows_start_anew_does_not_share_a_pass() -> None:
    transformer = tiny_transformer(
        "llama4_text", attention_chunk_size=16, num_local_experts=2, intermediate_size_mlp=48
    )
    assert not LanguageModel(transformer).batches_rows


def test_a_pass_that_runs_out_of_memory_at_its_end_can_be_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    cache, whole = model.new_cache(), model.new_cache()
    model.forward(text(9), cache)
    to_float = torch.Tensor.float

    def short_of_memory(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape[-1] == VOCAB:
            raise MemoryError
        return to_float(tensor)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(torch.Tensor, "float", short_of_memory)
        model.forward(text(7), cache)
    assert cache.undo()
    assert cache.n_tokens == 9
    model.forward(text(9), whole)
    assert close(model.forward(text(7), cache), model.forward(text(7), whole))


def test_a_model_whose_positions_turn_by_the_longest_text_does_not_share_a_pass() -> None:
    transformer = tiny_transformer("llama")
    transformer.config.rope_parameters = {**transformer.config.rope_parameters, "rope_type": "dynamic", "factor": 2.0}
    assert not LanguageModel(transformer).batches_rows


def test_a_model_that_cannot_share_a_pass_says_so() -> None:
    model = tiny_model("gemma2")  # a soft cap on scores, which fused attention lacks
    assert (model.attention, model.batches_rows) == ("eager", False)


def test_logits_come_for_the_positions_asked_for() -> None:
    model = tiny_model("llama")
    whole = model.forward(text(9), model.new_cache(), logits="all")
    assert whole.shape == (1, 9, VOCAB)
    assert whole.dtype == torch.float32
    assert close(model.forward(text(9), model.new_cache()), whole[:, -1:])
    assert close(model.forward(text(9), model.new_cache(), logits=4), whole[:, -4:])
    assert model.forward(text(2), model.new_cache(), logits=4).shape == (1, 2, VOCAB)


def test_a_model_without_keys_and_values_is_refused() -> None:
    config = AutoConfig.for_model("mamba", vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(ConfigError, match="keeps no keys and values"):
        LanguageModel(untrained(config))


@pytest.mark.parametrize("groups", [1, 2])
def test_attention_without_a_mask_is_causal_from_the_lower_right(groups: int) -> None:
    """The way taken on CUDA for later chunks of a prompt, against the mask written out."""
    module = torch.nn.Module()
    module.num_key_value_groups = groups  # type: ignore[assignment]
    query, key, value = torch.randn(1, 4, 5, 8), torch.randn(1, 4 // groups, 12, 8), torch.randn(1, 4 // groups, 12, 8)
    mask = torch.ones(5, 12, dtype=torch.bool).tril(7)[None, None]
    expected, _ = _attend(module, query, key, value, mask, scaling=0.3)
    assert close(_attend(module, query, key, value, None, scaling=0.3)[0], expected)


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma3_text", "gpt_neox"])
def test_the_way_without_masks_agrees_for_whole_models(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA in half precision: layers of full attention get no mask for later chunks, sliding ones still do."""
    transformer = tiny_transformer(family)
    expected = plain_logits(transformer, text())
    monkeypatch.setattr(model_module, "_knows_causal", lambda device, dtype: True)
    model = LanguageModel(transformer)
    assert model.batches_rows
    cache, cuts = model.new_cache(), [0, 50, 51, 100, LENGTH]
    parts = [model.forward(text()[:, a:b], cache, logits="all") for a, b in pairwise(cuts)]
    assert close(torch.cat(parts, 1), expected)


def test_a_saved_model_loads_with_its_ends_and_limits(tmp_path: Path) -> None:
    transformer = tiny_transformer("qwen3")
    expected = plain_logits(transformer, text(20))
    transformer.save_pretrained(tmp_path)
    model = LanguageModel.load(tmp_path, device="cpu")
    assert close(model.forward(text(20), model.new_cache(), logits="all"), expected)
    assert (model.vocab_size, model.max_positions, model.eos_ids) == (VOCAB, 512, frozenset({1}))
    assert LanguageModel.load(tmp_path, device="cpu", dtype="bfloat16").dtype == torch.bfloat16


def test_what_cannot_be_loaded_says_what_to_change(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no causal language model"):
        LanguageModel.load(tmp_path)
    with pytest.raises(ConfigError, match="choose one of auto, float32"):
        LanguageModel.load(tmp_path, dtype="int3")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device"):
            LanguageModel.load(tmp_path, device="cuda")
