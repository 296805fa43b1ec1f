from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from longroute.compressors import keep_head
from longroute.compressors.keep_head import WEIGHTS, load, save, shipped
from longroute.compressors.lexical_features import describe, split_words

TEXT = "The committee did not approve the budget of 12 million euros, because two members were absent. " * 40


def test_weights_are_small_and_say_what_they_were_trained_on() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.glob("*.npz")) < 700_000
    about = shipped("lexical").about
    assert "Phi-3" in about["trained_on"] and "--compressed-field summary_phi3" in about["command"]
    assert about["validation"]["encoder"]["text_auc"] > about["validation"]["lexical"]["text_auc"] > 0.7


def test_long_texts_are_scored_in_blocks_as_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = shipped("lexical")
    described = describe(TEXT, split_words(TEXT), trained.vocabulary)
    whole = trained.head.logits(described)
    monkeypatch.setattr(keep_head, "_BLOCK", 37)
    np.testing.assert_allclose(trained.head.logits(described), whole, atol=1e-4)


def test_one_word_and_none_can_be_scored() -> None:
    trained = shipped("lexical")
    for text in ("", "word", "two words"):
        words = split_words(text)
        assert trained.head.logits(describe(text, words, trained.vocabulary)).shape == (len(words),)


def test_saved_weights_load_as_they_were(tmp_path: Path) -> None:
    trained = shipped("lexical")
    save(tmp_path, trained.vocabulary, {"lexical": trained.head}, {"command": "x"})
    again = load(tmp_path, "lexical")
    assert again.about == {"command": "x"}
    assert dict(again.vocabulary.rows) == dict(trained.vocabulary.rows)
    described = describe(TEXT, split_words(TEXT), again.vocabulary)
    np.testing.assert_array_equal(again.head.logits(described), trained.head.logits(described))


def test_the_head_of_the_encoder_reads_its_states() -> None:
    trained = shipped("encoder")
    described = describe(TEXT, split_words(TEXT), trained.vocabulary)
    n, size = len(described.rows), trained.head.dimensions
    ones = trained.head.logits(described, np.ones((n, size), np.float32))
    zeros = trained.head.logits(described, np.zeros((n, size), np.float32))
    assert size == 384 and not np.allclose(ones, zeros)
    unread = replace(trained.head, project=np.zeros_like(trained.head.project))
    np.testing.assert_allclose(
        unread.logits(described, np.ones((n, size), np.float32)),
        unread.logits(described, np.zeros((n, size), np.float32)),
    )
