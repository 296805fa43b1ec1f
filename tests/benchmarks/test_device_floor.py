from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from longroute.benchmarks import device_floor  # noqa: E402
from longroute.benchmarks.device_floor import decode_bytes, measure, name_of, prefill_flops  # noqa: E402
from longroute.benchmarks.random_llama import GEOMETRIES, Geometry, random_llama  # noqa: E402
from longroute.router.runner.model import LanguageModel  # noqa: E402

CPU = torch.device("cpu")


def _model(geometry: Geometry) -> LanguageModel:
    return LanguageModel(random_llama(geometry, CPU, torch.float32))


def test_a_decoding_step_reads_all_weights_but_the_embedding_table_and_each_rows_keys_and_values() -> None:
    model = _model(Geometry(100, 32, 48, 2, 4, 2))
    table = 100 * 32 * 4
    keys_and_values = 2 * 2 * 16 * 4  # of one token: both, of two layers, 16 numbers wide
    assert decode_bytes(model, []) == model.weight_bytes - table
    assert decode_bytes(model, [10, 5]) == model.weight_bytes - table + 15 * keys_and_values
    tied = _model(Geometry(100, 32, 48, 2, 4, 2, tie_word_embeddings=True))
    assert decode_bytes(tied, []) == tied.weight_bytes  # the table is the output head, which is read whole


def test_prefill_counts_each_linear_weight_twice_a_token_and_half_the_square_of_attention() -> None:
    model = _model(Geometry(100, 32, 48, 2, 4, 2))
    layer = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48  # queries and output, keys and values, the three of the MLP
    assert prefill_flops(model, 10) == 2 * 2 * layer * 10 + 2 * 10**2 * 32 * 2 + 2 * 32 * 100


def test_the_published_geometries_have_the_published_numbers_of_weights() -> None:
    from transformers import LlamaForCausalLM

    for name, billions in (("8b", 8.03), ("1b", 1.236)):
        model = random_llama(GEOMETRIES[name], torch.device("meta"), torch.bfloat16)
        assert isinstance(model, LlamaForCausalLM)
        assert model.num_parameters() / 1e9 == pytest.approx(billions, rel=0.002)


def test_every_drafter_has_the_vocabulary_of_its_target() -> None:
    for geometry in GEOMETRIES.values():
        if geometry.drafter is not None:
            assert GEOMETRIES[geometry.drafter].vocab_size == geometry.vocab_size


def test_rates_are_measured_on_the_device_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_floor, "_CPU_BYTES", 1 << 20)
    rates = measure(_model(Geometry(100, 32, 48, 2, 4, 2)))
    assert min(rates.bytes_per_s, rates.flops, rates.launch_s) > 0
    assert name_of(CPU).startswith("cpu")
