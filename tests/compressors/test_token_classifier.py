"""Loading a model from a folder, and what it is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from longroute.compressors.llmlingua2 import LLMLingua2
from longroute.compressors.llmlingua2_compat import CompatLLMLingua2
from longroute.compressors.token_classifier import (
    TransformersClassifier,
    Vocabulary,
    add_placeholders,
    has_bfloat16,
    load,
    vocabulary_of,
)
from longroute.router.errors import ConfigError
from longroute.router.tokens import EstimatedCounter

STORED = Path(__file__).with_name("llmlingua2_reference.json")
SPECIAL = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of one layer with random weights."""
    import torch
    from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast
    from transformers.utils import logging

    transformers_logging: Any = logging
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    target = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer.from_str(json.dumps(json.loads(STORED.read_text("utf-8"))["bert"]["tokenizer"]))
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained(target)
    torch.manual_seed(0)
    config: Any = BertConfig
    BertForTokenClassification(
        config(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            num_labels=2,
            initializer_range=0.3,
        )
    ).save_pretrained(target)
    return target


def test_a_folder_becomes_a_compressor(folder: Path) -> None:
    text = "The council did not approve the budget of $3,200. Members vote twice. " * 20
    counter = EstimatedCounter()
    (found,) = LLMLingua2.from_folder(folder, counter).compress([text], keep_rate=0.5)
    assert 0.48 <= found.keep_rate <= 0.5
    compat = CompatLLMLingua2.from_folder(folder, counter).compress_prompt(text)
    assert 0 < compat.compressed_tokens < compat.origin_tokens


def test_padding_does_not_change_probabilities(folder: Path) -> None:
    classifier = TransformersClassifier(load(folder).model)
    ids, mask = np.array([[2, 30, 40, 3, 0, 0]]), np.array([[True] * 4 + [False] * 2])
    padded = classifier.keep_probability(ids, mask)[0, :4]
    plain = classifier.keep_probability(ids[:, :4], mask[:, :4])[0]
    assert padded.dtype == np.float32 and np.allclose(padded, plain, atol=1e-6)
    halved = TransformersClassifier(load(folder).model, "bfloat16").keep_probability(ids[:, :4], mask[:, :4])[0]
    assert np.allclose(halved, plain, atol=0.05)


def test_placeholders_grow_model_and_vocabulary_alike_every_time(folder: Path) -> None:
    import torch

    rows = []
    for _ in range(2):
        loaded = load(folder)
        before = loaded.vocabulary.tokenizer.get_vocab_size()
        add_placeholders(loaded.vocabulary.tokenizer, loaded.model)
        assert loaded.vocabulary.tokenizer.get_vocab_size() == before + 100
        rows.append(loaded.model.get_input_embeddings().weight[before:].detach())
        assert len(rows[-1]) == 100
        torch.manual_seed(7)  # whatever the caller's generator is at
    assert torch.equal(rows[0], rows[1])


def test_what_cannot_be_loaded_says_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model"):
        load(tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="could not be loaded"):
        load(broken)
    with pytest.raises(ConfigError, match="fast"):
        vocabulary_of(object())
    tokenizer = load(folder).vocabulary.tokenizer
    with pytest.raises(ConfigError, match="cls_token"):
        Vocabulary.of(tokenizer, SPECIAL | {"cls_token": "<nothing>"})


def test_a_model_of_other_classes_is_refused() -> None:
    class Three:
        class config:  # noqa: N801  # as transformers has it
            num_labels = 3

    with pytest.raises(ConfigError, match="3 classes"):
        TransformersClassifier(Three())


def test_bfloat16_is_used_only_where_the_processor_has_it(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("flags : fpu avx512_bf16 sse")
    assert has_bfloat16(str(file))
    file.write_text("flags : fpu sse")
    has_bfloat16.cache_clear()
    assert not has_bfloat16(str(file)) and not has_bfloat16(str(tmp_path / "none"))
    has_bfloat16.cache_clear()
