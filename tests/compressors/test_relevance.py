"""Scorers: more relevant is higher."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from longroute.compressors.compression import Floats
from longroute.compressors.relevance import (
    EmbeddingScorer,
    FusedScorer,
    LexicalScorer,
    LogProbScorer,
    TwoStageScorer,
    words,
)
from longroute.router.errors import ConfigError, MissingExtra

PASSAGES = ["the sky is blue", "def get_user_name(): pass", "bread needs flour and water"]


def letters(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """A fake embedding: how often each letter occurs."""
    counts = np.array([[text.lower().count(chr(97 + n)) for n in range(26)] for text in texts], np.float32) + 1e-3
    return np.asarray(counts / np.linalg.norm(counts, axis=1, keepdims=True), np.float32)


def test_words_of_identifiers_are_found() -> None:
    assert words("What does getUserNames do to HTTPServer?") == ["get", "user", "name", "http", "server"]
    assert LexicalScorer()("userName", PASSAGES).argmax() == 1


def test_scores_of_words_are_those_of_bm25() -> None:
    scores = LexicalScorer(str.split, k1=1.0, b=0.0)("a b", ["a a", "c", "b c"])
    idf = np.log(1 + (3 - 1 + 0.5) / 1.5)
    np.testing.assert_allclose(scores, [idf * 2 * 2 / 3, 0, idf])


@pytest.mark.parametrize("scorer", [LexicalScorer(), EmbeddingScorer(letters), FusedScorer([LexicalScorer()])])
def test_there_may_be_nothing_to_score(scorer: Any) -> None:
    assert scorer("why?", []).shape == (0,)
    assert np.isfinite(scorer("", ["", "\ud800"])).all()


def test_a_long_passage_counts_by_its_best_window() -> None:
    scorer = EmbeddingScorer(letters, window_characters=20)
    needle = "zzzz qqqq\n"
    scores = scorer("zzzz qqqq", ["a" * 200 + "\n" + needle + "b" * 200, needle, "abc " * 30])
    assert scores[0] == pytest.approx(scores[1])
    assert scores[0] > scores[2]


def test_fusion_weighs_scorers_whatever_their_scale() -> None:
    first, second = (lambda q, p: np.array([1.0, 0.0])), (lambda q, p: np.array([-5.0, 1000.0]))
    np.testing.assert_allclose(FusedScorer([first, second], [0.25, 0.75])("", ["a", "b"]), [0.25, 0.75])
    with pytest.raises(ConfigError, match="2 scorers and 1 weights"):
        FusedScorer([first, second], [1.0])


# ---- a language model ------------------------------------------------------------------------------------------------


class Letters:
    """A tokenizer: a token is a character."""

    bos_token_id = 1

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [min(ord(character), 127) for character in text]}


@pytest.fixture(scope="module")
def tiny() -> Any:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=128, n_positions=256, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1
    )
    return transformers.GPT2LMHeadModel(config).eval()


def alone(model: Any, prefix: str, target: str) -> float:
    """Mean -log p of the target, one sequence at a time."""
    import torch

    ids = torch.tensor([[1, *map(ord, prefix + target)]])
    with torch.inference_mode():
        logp = torch.log_softmax(model(input_ids=ids).logits[0].float(), -1)
    begin = 1 + len(prefix)
    return float(np.mean([-logp[place - 1, ids[0, place]] for place in range(begin, begin + len(target))]))


def test_log_prob_scores_are_those_of_one_sequence_at_a_time(tiny: Any) -> None:
    target = "\n\nwhy? R"
    expected = np.array([alone(tiny, "", target) - alone(tiny, passage, target) for passage in PASSAGES])
    scorer = LogProbScorer(tiny, Letters(), restriction=" R", batch_tokens=80)
    np.testing.assert_allclose(scorer("why?", PASSAGES), expected, atol=1e-4)
    perplexity = LogProbScorer(tiny, Letters(), restriction=" R", form="perplexity")("why?", PASSAGES)
    before = np.exp(alone(tiny, "", target))
    np.testing.assert_allclose(perplexity, before - np.exp([alone(tiny, p, target) for p in PASSAGES]), rtol=1e-3)
    assert perplexity.argsort().tolist() == expected.argsort().tolist()


def test_a_passage_is_cut_to_the_window_and_a_question_is_not(tiny: Any) -> None:
    scorer = LogProbScorer(tiny, Letters(), restriction="", max_tokens=64)
    assert np.isfinite(scorer("why?", ["x" * 1000, ""])).all()
    assert scorer("why?", []).shape == (0,)
    with pytest.raises(ConfigError, match="The question has 102 tokens"):
        scorer("q" * 100, ["x"])


def test_a_model_is_read_from_a_folder(tiny: Any, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<s>": 1, "?": 0} | {chr(number): number for number in range(33, 127) if chr(number) not in "?"}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, unk_token="?", bos_token="<s>").save_pretrained(tmp_path)
    tiny.save_pretrained(tmp_path)
    scores = LogProbScorer.load(tmp_path, restriction="", form="perplexity")("why?", PASSAGES)
    assert scores.shape == (3,) and np.isfinite(scores).all()


def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match="nowhere"):
        LogProbScorer.load(tmp_path / "nowhere")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"longroute\[embed\]"):
        LogProbScorer.load(tmp_path)


def test_the_second_stage_looks_only_at_the_best_of_the_first() -> None:
    looked_at: list[str] = []

    def first(question: str, passages: Sequence[str]) -> Floats:
        return np.array([float(len(passage)) for passage in passages])

    def second(question: str, passages: Sequence[str]) -> Floats:
        looked_at.extend(passages)
        return np.array([1.0 if passage == "bb" else 0.5 for passage in passages])

    scores = TwoStageScorer(first, second, candidates=2)("?", ["a", "bb", "ccc", ""])
    assert looked_at == ["bb", "ccc"]
    np.testing.assert_allclose(scores, [1 / 6, (2 / 3 + 1) / 2, (1 + 0.5) / 2, 0])
