"""A token classification model as a function: token ids in, the probability of keeping each token out.

Loads any Hugging Face token classification model (the published LLMLingua-2 checkpoints are XLM-RoBERTa large and
multilingual BERT) from a folder, never from the network. What the tokens are cut from, and which of them stay, is for
`llmlingua2.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ..router.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Probabilities = npt.NDArray[np.float32]
Pieces = Literal["##", "▁"]

PLACEHOLDERS = 100
"""How many `[NEW0]`, `[NEW1]`, ... the reference adds to the vocabulary: its `max_force_token`."""


class Classifier(Protocol):
    """Says how much each token deserves to be kept."""

    def keep_probability(self, ids: Ids, mask: Mask) -> Probabilities:
        """ids, mask: shape (B, T); False in the mask is padding. Returns float32 of the same shape, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """How one model cuts text into tokens.

    tokenizer: without truncation and padding.
    pieces: the mark of WordPiece (`##` continues a word) or of SentencePiece (`▁` begins one).
    cls, sep, pad, unk: ids of what stands before, after and beyond a text, and for what is not in the vocabulary.
    special: the special tokens as text, the way the tokenizer's configuration lists them.
    """

    tokenizer: Tokenizer
    pieces: Pieces
    cls: int
    sep: int
    pad: int
    unk: int
    special: frozenset[str]

    @classmethod
    def of(cls, tokenizer: Tokenizer, names: Mapping[str, str]) -> Vocabulary:
        """From a loaded tokenizer, which is copied.

        names: the special tokens by role, as a tokenizer's configuration has them: `cls_token`, `sep_token`,
        `pad_token`, `unk_token` and maybe more. Raises ConfigError where one of the four is missing or unknown.
        """
        from tokenizers import Tokenizer, models

        own = Tokenizer.from_str(tokenizer.to_str())
        own.no_truncation()
        own.no_padding()
        ids = []
        for role in ("cls_token", "sep_token", "pad_token", "unk_token"):
            number = own.token_to_id(names.get(role, ""))
            if number is None:
                raise ConfigError(f"The tokenizer has no {role} in its vocabulary: {names.get(role)!r}.")
            ids.append(number)
        pieces: Pieces = "##" if isinstance(own.model, models.WordPiece) else "▁"
        return cls(own, pieces, ids[0], ids[1], ids[2], ids[3], frozenset(names.values()))


class TransformersClassifier:
    """A loaded Hugging Face model. Class 1 of its two is "keep".

    dtype: what it computes in; None leaves the model as it is. "bfloat16" halves the time on processors that have it
    and moves probabilities by about 0.01.
    """

    def __init__(self, model: Any, dtype: Literal["float32", "bfloat16"] | None = None) -> None:
        import torch

        labels = getattr(model.config, "num_labels", 2)
        if labels != 2:
            raise ConfigError(f"The model has {labels} classes; LLMLingua-2 needs two, the second meaning keep.")
        self._model = model.eval() if dtype is None else model.eval().to(getattr(torch, dtype))

    def keep_probability(self, ids: Ids, mask: Mask) -> Probabilities:
        import torch

        device = self._model.device
        with torch.inference_mode():
            logits = self._model(
                input_ids=torch.from_numpy(ids).to(device), attention_mask=torch.from_numpy(mask).to(device)
            ).logits
            found: Probabilities = torch.softmax(logits.float(), dim=-1)[..., 1].cpu().numpy()
        return found


def add_placeholders(tokenizer: Tokenizer, model: Any = None) -> None:
    """Make room for the placeholders of force tokens in a tokenizer and its model, as the reference does.

    Changes both. The new embeddings are drawn with the seed of the reference: force tokens are kept whatever their
    probability, but their neighbours see them.
    """
    from tokenizers import AddedToken

    tokenizer.add_special_tokens([AddedToken(f"[NEW{i}]", normalized=False, special=True) for i in range(PLACEHOLDERS)])
    if model is None:
        return
    import torch

    with _quietly(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(42)
        model.resize_token_embeddings(tokenizer.get_vocab_size(with_added_tokens=True))


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a folder holds."""

    model: Any
    vocabulary: Vocabulary


def load(folder: str | Path, device: str = "cpu") -> Loaded:
    """A model and its vocabulary from a folder in the Hugging Face layout, in float32. Never touches the network.

    Raises ConfigError where there is none or it is of another kind, MissingExtra without transformers.
    """
    try:
        from transformers import AutoModelForTokenClassification, AutoTokenizer
    except ImportError as error:
        raise MissingExtra(
            "A token classification model needs the packages transformers and torch, which are not installed. "
            "Install them with: pip install 'longroute[embed]'"
        ) from error
    import torch

    if not (Path(folder) / "config.json").is_file():
        raise ConfigError(f"There is no model in {folder}: it should hold config.json, tokenizer.json and the weights.")
    auto_model: Any = AutoModelForTokenClassification
    auto_tokenizer: Any = AutoTokenizer  # both untyped there
    try:
        with _quietly():
            tokenizer = auto_tokenizer.from_pretrained(str(folder), local_files_only=True)
            model = auto_model.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"The model in {folder} could not be loaded: {error}") from error
    return Loaded(model.to(device), vocabulary_of(tokenizer))


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """From a fast tokenizer of transformers."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError("The tokenizer is not a fast one, so it gives no offsets; save it as tokenizer.json first.")
    return Vocabulary.of(
        backend, {role: token for role, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the progress bar of loading and the advice of resizing: they would stand in every command's output."""
    from transformers.utils import logging

    transformers_logging: Any = logging  # untyped there
    shown, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()


@lru_cache(maxsize=1)
def has_bfloat16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether this processor multiplies bfloat16 by itself; False where the system does not say.

    Where it is emulated it is slower than float32.
    """
    try:
        flags = Path(cpuinfo).read_text().split()
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)
