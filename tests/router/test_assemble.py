from __future__ import annotations

from pathlib import Path

import pytest

from longroute.router import assemble
from longroute.router.assemble import Router, make_compressor, make_retriever
from longroute.router.backends.scripted import Scripted
from longroute.router.core import Call, Document
from longroute.router.errors import BackendUnavailable, ConfigError
from longroute.router.settings import load_settings

PADDING = "It rains there on many days of the year, and few people mind. " * 9
PASSAGES = f"The keeper at Skerra is Jonna Eide. {PADDING}\n\nThe bakery in Vell opens at six in the morning. {PADDING}"


def test_color_asks_the_configured_model_for_each_passage(monkeypatch: pytest.MonkeyPatch) -> None:
    def reply(call: Call) -> str:
        return "Keeper of Skerra: Jonna Eide" if "Skerra" in call.messages[0].content else "Vell bakery opens six"

    monkeypatch.setattr(assemble, "make_backend", lambda settings: Scripted(reply))
    compressor = make_compressor(load_settings(model="some-model"), "color")
    [short] = compressor.compress([PASSAGES], keep_rate=1.0)
    assert "Jonna Eide" in short.text and "bakery" in short.text
    assert len(short.text) < len(PASSAGES)


def test_color_says_that_the_server_is_gone_and_that_a_model_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "make_backend", lambda settings: Scripted([BackendUnavailable("gone")] * 9))
    with pytest.raises(BackendUnavailable):
        make_compressor(load_settings(model="some-model"), "color").compress([PASSAGES], keep_rate=0.9)
    with pytest.raises(ConfigError, match="LONGROUTE_MODEL"):
        make_compressor(load_settings(), "color")


@pytest.mark.parametrize("name", ["nonsense", "llmlingua2", "llmlingua2:/no/such/folder"])
def test_a_compressor_that_cannot_be_made_is_explained(name: str) -> None:
    with pytest.raises(ConfigError):
        make_compressor(load_settings(), name)


def test_a_text_of_many_passages_is_ranked_without_embedding_all(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    text = "\n\n".join(f"House {n} has {n} windows, a red door and a garden with pear trees." for n in range(40))
    settings = load_settings(cache=False)
    [short] = make_compressor(settings, "question_aware").compress(
        [text + "\n\nThe mayor of the town is Ada Lindqvist."], question="Who runs the town?", keep_rate=0.2
    )
    assert "Ada Lindqvist" in short.text


def test_attention_of_a_local_model_retrieves_and_compresses(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from longroute.tests.router.runner.matcher import words_tokenizer
    from longroute.tests.router.runner.tiny import VOCAB, tiny_transformer

    text = " ".join(f"Line w{n % 40} says w{n % 7}." for n in range(60))
    words_tokenizer([*(f"w{n}" for n in range(VOCAB - 5)), "Line", "says", "."]).save_pretrained(tmp_path)
    tiny_transformer("llama").save_pretrained(tmp_path)
    for kind in ("specpc", "gemfilter"):
        compressor = make_compressor(load_settings(), f"{kind}:{tmp_path}")
        [short] = compressor.compress([text], question="w3?", keep_rate=0.5)
        assert 0 < short.tokens_after <= 0.5 * short.tokens_before
    retriever = make_retriever(load_settings(retriever=f"infiniretri:{tmp_path}"))
    for _ in range(2):
        found = retriever.retrieve("w3?", [Document(text, "d")], budget_tokens=100)
        assert found and all(text[p.start : p.end] == p.text for p in found)


@pytest.mark.parametrize("name", ["nonsense", "infiniretri", "hybrid:folder"])
def test_a_retriever_that_is_none_is_explained(name: str) -> None:
    with pytest.raises(ConfigError, match="infiniretri:FOLDER"):
        make_retriever(load_settings(retriever=name))


def test_deciding_loads_no_model_to_retrieve_with(tmp_path: Path) -> None:
    router = Router(load_settings(retriever=f"infiniretri:{tmp_path / 'none'}", cache=False))
    assert router.decide("Who wrote it?", ["Ada wrote it. " * 50]).strategy
    for kind in ("specpc", "gemfilter"):
        with pytest.raises(ConfigError, match=f"{kind}:FOLDER"):
            make_compressor(load_settings(), kind)
