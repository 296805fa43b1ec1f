"""The attention of the last rows, against transformers' own of the whole text."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from longroute.router.errors import ConfigError, ContextTooLong
from longroute.router.runner import attention
from longroute.router.runner.attention import AttentionReader
from longroute.router.runner.model import LanguageModel
from longroute.router.runner.tokenizer import Tokenizer
from longroute.tests.router.runner.matcher import matcher, words_tokenizer
from longroute.tests.router.runner.tiny import FAMILIES, VOCAB, prompt, tiny_model, tiny_transformer

Floats = npt.NDArray[np.float64]
WORDS = [f"w{n}" for n in range(VOCAB - 2)]
INTRODUCTION = "w3 w5 w7"
BEFORE = [5, 7, 9]  # its ids


def transformer_of(family: str) -> Any:
    """A tiny model; where all of its layers have a window, one that the texts here fit into."""
    return tiny_transformer(family, **({"sliding_window": 128} if family == "mistral" else {}))


@lru_cache
def reader(family: str) -> AttentionReader:
    model = LanguageModel(transformer_of(family))
    return AttentionReader(model, Tokenizer(words_tokenizer(WORDS)), introduction=INTRODUCTION, chunk_tokens=32)


@lru_cache
def whole(family: str) -> tuple[Tensor, ...]:
    """The slow twin: all attention of all layers, from one pass over the whole text; of each layer (H, T, T)."""
    model = transformer_of(family)
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        out = model(input_ids=torch.tensor([[*BEFORE, *prompt(120)]]), use_cache=False, output_attentions=True)
    return tuple(layer[0] for layer in out.attentions)


def counted_layers(family: str) -> list[int]:
    """Those without a window, where there are any."""
    windowed = {"gemma2": [1], "gemma3_text": [5]}
    return windowed.get(family, list(range(len(whole(family)))))


@pytest.mark.parametrize("n_rows", [1, 33])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_the_last_layer_are_those_of_the_whole_attention(family: str, n_rows: int) -> None:
    found = reader(family).looks(prompt(120), n_rows)
    expected = whole(family)[-1].sum(0)[-n_rows:, len(BEFORE) :]
    assert found.shape == (n_rows, 120)
    assert np.allclose(found, expected.numpy(), atol=1e-4)


def test_an_earlier_layer_can_be_asked() -> None:
    found = reader("gemma3_text").looks(prompt(120), 5), reader("llama").looks(prompt(120), 5, 0.5)
    assert np.allclose(found[0], whole("gemma3_text")[5].sum(0)[-5:, len(BEFORE) :].numpy(), atol=1e-4)
    assert np.allclose(found[1], whole("llama")[0].sum(0)[-5:, len(BEFORE) :].numpy(), atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("first_layer", [0, 1])
def test_the_strongest_look_is_the_maximum_over_rows_heads_and_layers(family: str, first_layer: int) -> None:
    weights = np.linspace(0, 1, 40)
    found = reader(family).strongest(prompt(120), weights.tolist(), first_layer)
    counted = [whole(family)[n] for n in counted_layers(family) if n >= first_layer]
    layers = torch.stack(counted)[:, :, -40:, len(BEFORE) :].numpy()
    assert np.allclose(found, (layers * weights[:, None]).max((0, 1, 2)), atol=1e-4)


def test_where_the_last_layers_see_a_window_only_the_last_that_sees_everything_is_asked() -> None:
    transformer = tiny_transformer("gemma3_text", num_hidden_layers=8)  # every sixth sees everything
    model = LanguageModel(transformer)
    own = AttentionReader(model, Tokenizer(words_tokenizer(WORDS)), introduction=INTRODUCTION)
    found = own.looks(prompt(120), 5)
    assert np.array_equal(own.looks(prompt(120), 5, 0.8), found)  # within 6 of 8, too
    assert np.array_equal(own.looks(prompt(120), 5, 0.3), found)  # none within that
    transformer.set_attn_implementation("eager")
    with torch.inference_mode():
        out = transformer(torch.tensor([[*BEFORE, *prompt(120)]]), use_cache=False, output_attentions=True)
    assert np.allclose(found, out.attentions[5][0].sum(0)[-5:, len(BEFORE) :].numpy(), atol=1e-4)


def logarithms(family: str, layer: int) -> Floats:
    """What the last token's query gives each key, summed over heads, less the first token's: from all attention."""
    row = whole(family)[layer][:, -1].double().log()
    summed: Floats = (row - row[:, :1]).sum(0)[len(BEFORE) :].numpy()
    return summed


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_query_is_that_of_the_whole_attention(family: str) -> None:
    own = reader(family)
    found = own.last_query(prompt(120), own.layers, products=True)
    attention_of = own.last_query(prompt(120), own.layers)
    assert found.shape == (len(own.layers), 120) and list(own.layers) == counted_layers(family)
    for layer, products, looks in zip(own.layers, found, attention_of, strict=True):
        assert np.allclose(products, logarithms(family, layer), atol=1e-3)
        assert np.allclose(looks, whole(family)[layer][:, -1, len(BEFORE) :].sum(0).numpy(), atol=1e-4)


def test_inner_products_are_those_of_queries_and_keys() -> None:
    transformer = tiny_transformer("llama")
    seen: dict[str, Tensor] = {}

    def keep(module: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        seen["hidden"] = options["hidden_states"]
        seen["cos"], seen["sin"] = options["position_embeddings"]

    attention_of_layer = transformer.model.layers[1].self_attn
    handle = attention_of_layer.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.inference_mode():
        transformer(input_ids=torch.tensor([[*BEFORE, *prompt(120)]]), use_cache=False)
        handle.remove()
        shape = (1, 123, -1, attention_of_layer.head_dim)
        queries = attention_of_layer.q_proj(seen["hidden"]).view(shape).transpose(1, 2)
        keys = attention_of_layer.k_proj(seen["hidden"]).view(shape).transpose(1, 2)
        queries, keys = apply_rotary_pos_emb(queries, keys, seen["cos"], seen["sin"])
        products = queries[:, :, -1:] @ repeat_kv(keys, 2).transpose(2, 3) * attention_of_layer.scaling
    expected = (products - products[..., :1]).sum(1)[0, 0, len(BEFORE) :]
    [found] = reader("llama").last_query(prompt(120), [1], products=True)
    assert np.allclose(found, expected.numpy(), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inner_products_survive_numbers_of_half_the_size(dtype: torch.dtype) -> None:
    half = LanguageModel(tiny_transformer("llama").to(dtype))
    own = AttentionReader(half, Tokenizer(words_tokenizer(WORDS)), introduction=INTRODUCTION)
    [found] = own.last_query(prompt(120), [0], products=True)
    assert np.corrcoef(found, logarithms("llama", 0))[0, 1] > 0.99


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_runs_behind_the_layer_that_is_asked_for(family: str) -> None:
    transformer = transformer_of(family)
    own = AttentionReader(
        LanguageModel(transformer), Tokenizer(words_tokenizer(WORDS)), introduction=INTRODUCTION, chunk_tokens=32
    )
    calls: Counter[str] = Counter()

    def tally(name: str) -> Any:
        return lambda *_: calls.update([name])

    blocks = next(module for module in transformer.modules() if isinstance(module, torch.nn.ModuleList))
    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(tally(f"began {number}"))
        block.register_forward_hook(tally(f"ended {number}"))
    transformer.get_output_embeddings().register_forward_hook(tally("vocabulary"))
    layer = own.layers[0]
    own.last_query(prompt(120), [layer], products=True)
    chunks = 4 + 1  # 122 tokens without a row to show in chunks of 32, and the last one
    began, ended = ({f"{what} {n}": chunks for n in range(m)} for what, m in (("began", layer + 1), ("ended", layer)))
    assert calls == began | ended
    calls.clear()
    own.looks(prompt(120), 3, (layer + 1) / own.n_layers)
    assert calls == began | ended


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 1), st.integers(0, 9))
def test_a_text_read_in_chunks_is_read_as_in_one_pass(n: int, chunk: int, layer: int, seed: int) -> None:
    tokenizer = Tokenizer(words_tokenizer(WORDS))
    pieces, once = (
        AttentionReader(tiny_model("qwen3"), tokenizer, introduction=INTRODUCTION, chunk_tokens=size)
        for size in (chunk, 1000)
    )
    ids = prompt(n, seed)
    assert np.allclose(
        pieces.last_query(ids, [layer], products=True), once.last_query(ids, [layer], products=True), atol=1e-3
    )
    rows = min(n, 7)
    assert np.allclose(pieces.looks(ids, rows), once.looks(ids, rows), atol=1e-5)


def test_a_text_is_no_longer_than_the_window_that_all_layers_have() -> None:
    own = AttentionReader(tiny_model("mistral"), Tokenizer(words_tokenizer(WORDS)), introduction=INTRODUCTION)
    assert own.max_tokens == 16 - len(BEFORE)
    assert own.looks(prompt(13), 1).min() > 0
    with pytest.raises(ContextTooLong, match="14 tokens"):
        own.looks(prompt(14), 1)


def test_attention_that_is_no_number_is_explained() -> None:
    transformer = tiny_transformer("llama")
    own = AttentionReader(LanguageModel(transformer), Tokenizer(words_tokenizer(WORDS)), introduction=INTRODUCTION)
    transformer.model.layers[0].self_attn.q_proj.weight.data.fill_(torch.inf)
    with pytest.raises(ConfigError, match=r"not finite.*runner\.dtype"):
        own.looks(prompt(9), 2)
    with pytest.raises(ConfigError, match=r"not finite.*runner\.dtype"):
        own.last_query(prompt(9), [1], products=True)


def test_a_text_that_the_memory_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "available_bytes", lambda device: 1000)
    with pytest.raises(ContextTooLong, match=r"Reading 103 tokens takes .* available"):
        reader("llama").looks(prompt(100), 4)


def test_layers_that_do_not_run_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    own = AttentionReader(
        LanguageModel(tiny_transformer("llama", num_hidden_layers=6)),
        Tokenizer(words_tokenizer(WORDS)),
        chunk_tokens=16,
    )
    ids = prompt(450)
    needed = []
    for layer in own.layers:
        monkeypatch.setattr(attention, "available_bytes", lambda device: 0)
        with pytest.raises(ContextTooLong, match=r"takes [\d.]+ MiB") as refused:
            own.last_query(ids, [layer])
        needed.append(float(re.findall(r"takes ([\d.]+) MiB", str(refused.value))[0]))
    keys_and_values = 2 * 2 * 8 * 4 * 450 / 2**20  # of one layer
    assert np.allclose(np.diff(needed), keys_and_values, atol=0.02)


def test_rows_come_out_the_same_in_any_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    for family in ("llama", "mistral"):
        monkeypatch.setattr(attention, "_ROWS", 128)
        once = reader(family).looks(prompt(90), 70), reader(family).strongest(prompt(90), [0.5] * 70)
        monkeypatch.setattr(attention, "_ROWS", 9)
        again = reader(family).looks(prompt(90), 70), reader(family).strongest(prompt(90), [0.5] * 70)
        assert np.allclose(once[0], again[0], atol=1e-5)
        assert np.allclose(once[1], again[1], atol=1e-5)


def test_a_model_with_layers_of_other_kinds_shows_those_that_attend() -> None:
    model = LanguageModel(tiny_transformer("lfm2", layer_types=["full_attention", "conv"]))
    mixed = AttentionReader(model, Tokenizer(words_tokenizer(WORDS)), introduction=INTRODUCTION)
    rows = mixed.looks(prompt(20), 2)
    assert rows.shape == (2, 20) and rows.min() >= 0 and rows[1].sum() > 0
    assert mixed.layers == (0,)
    with pytest.raises(ConfigError, match="no attention from layer 1 on"):
        mixed.strongest(prompt(20), [1.0], first_layer=1)


def test_a_layer_behind_one_of_another_kind_is_read_as_in_one_pass() -> None:
    transformer = tiny_transformer("lfm2", layer_types=["conv", "full_attention"])
    mixed = AttentionReader(
        LanguageModel(transformer), Tokenizer(words_tokenizer(WORDS)), introduction=INTRODUCTION, chunk_tokens=7
    )
    [found] = mixed.last_query(prompt(40), mixed.layers, products=True)
    transformer.set_attn_implementation("eager")
    with torch.inference_mode():
        out = transformer(torch.tensor([[*BEFORE, *prompt(40)]]), use_cache=False, output_attentions=True)
    row = out.attentions[-1][0, :, -1].log()
    assert np.allclose(found, (row - row[:, :1]).sum(0)[len(BEFORE) :].numpy(), atol=1e-3)


def test_the_model_attends_as_before_afterwards() -> None:
    transformer = tiny_transformer("llama")
    model = LanguageModel(transformer)
    before = model.forward(model.tokens(prompt(30)), model.new_cache())
    own = AttentionReader(model, Tokenizer(words_tokenizer(WORDS)), introduction=INTRODUCTION)
    own.looks(prompt(30), 3)
    assert torch.equal(model.forward(model.tokens(prompt(30)), model.new_cache()), before)
    assert model.batches_rows and not any(module._forward_hooks for module in transformer.modules())


def test_tokens_know_their_characters_and_spelled_out_markup_is_text() -> None:
    ids, offsets = reader("llama").encode("w1  <begin> w2\ud800")
    assert ids[0] == 3 and 0 not in ids
    assert offsets.tolist()[0] == [0, 2] and offsets.max() == 15
    assert (np.diff(offsets, axis=0) >= 0).all()
    assert reader("llama").encode("")[1].shape == (0, 2)


def test_a_text_beyond_the_window_is_refused_with_its_numbers() -> None:
    small = reader("llama")
    assert small.max_tokens == 512 - len(BEFORE)
    with pytest.raises(ContextTooLong, match="600 tokens"):
        small.looks(prompt(600), 4)
    with pytest.raises(ValueError, match="1 to 5 rows"):
        small.looks(prompt(5), 6)


def test_a_folder_is_read_and_a_missing_one_explained(tmp_path: Path) -> None:
    tiny_transformer("qwen3").save_pretrained(tmp_path)
    words_tokenizer(WORDS).save_pretrained(tmp_path)
    loaded = AttentionReader.load(tmp_path, device="cpu")
    ids, _ = loaded.encode("w1 w2 w3")
    assert loaded.looks(ids, 1).shape == (1, 3)
    with pytest.raises(ConfigError):
        AttentionReader.load(tmp_path / "none")


def test_the_model_built_by_hand_looks_at_equal_words() -> None:
    own = matcher(["Skerra", "keeper", "Read", "."])
    ids, _ = own.encode("the keeper of Skerra is old . Skerra")
    looks = own.looks(ids, 1)[0]
    assert looks[[3, 7]].sum() > 0.99 * looks.sum()


def test_a_tokenizer_that_does_not_know_places_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    blind = words_tokenizer(WORDS)
    monkeypatch.setattr(type(blind), "is_fast", False)
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        Tokenizer(blind).pieces("w1")
