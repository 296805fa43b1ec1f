"""Where a causal model looks: the attention of the last tokens of a text to all that stands before them.

All but these last tokens are read as `model.py` reads anything, by fused kernels that keep no attention. Only the
last ones go through transformers' plain ("eager") attention, which returns it: rows x keys for each head, never
keys x keys. Forward hooks on the attention modules take that layer by layer, and only what a reduction leaves is kept.
What the numbers are good for is left to those who ask for them.

Layers that see no more than a sliding window are passed over where others see everything: what stands before the window
would count for nothing with them, and what stands in it for too much.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import ConfigError, ContextTooLong
from .kv_cache import KVLayer
from .memory import available_bytes, gibibytes
from .model import LanguageModel
from .tokenizer import Tokenizer

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Take = Callable[[int, int, int, Tensor], None]
"""Is shown the number of a layer, of the first row and of the first key, and weights of shape (H, rows, keys)."""

# Stands before every text: the first tokens of a prompt draw attention that has nothing to do with what they say, and
# a text that began the prompt would have it counted for its own first words.
INTRODUCTION = "Read the text and answer the question that follows it.\n\n"

_ROWS = 128  # rows of attention at a time, lest a very long question make the largest tensor of all
_MOST_TOKENS = 1 << 15  # of one text: keys and values of a small model then take some hundred megabytes


class AttentionReader:
    """A language model and its tokenizer, asked for attention. Safe to use from any thread; texts are read one by one.

    n_layers: of the model. max_tokens: most ids that can be asked about at once.
    Ids are those of `encode`; what stands before a text (the model's own first token, the introduction) is added here
    and left out of what is returned.
    """

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, *, introduction: str = INTRODUCTION, chunk_tokens: int = 2048
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._chunk_tokens = chunk_tokens
        self._lock = threading.Lock()
        layers = enumerate(model.new_cache().layers)
        self._far_sighted = {n for n, layer in layers if isinstance(layer, KVLayer) and layer.window is None}
        self._before = (*tokenizer.text_ids(""), *tokenizer.pieces(introduction)[0])
        self.n_layers = int(model.transformer.config.get_text_config(decoder=True).num_hidden_layers)
        self.max_tokens = min(model.max_positions or _MOST_TOKENS, _MOST_TOKENS) - len(self._before)

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto", dtype: str = "auto") -> AttentionReader:
        """From a model folder as Hugging Face lays it out. Raises ConfigError with what to change."""
        tokenizer = Tokenizer.load(folder)
        return cls(LanguageModel.load(folder, device, dtype), tokenizer)

    def encode(self, text: str) -> tuple[list[int], Ints]:
        """Token ids of a text and the characters that each stands for.

        Returns n ids and offsets of shape (n, 2): starts and ends (exclusive), never descending; the tokens of one
        character have the same.
        """
        ids, offsets = self._tokenizer.pieces(text)
        return ids, np.maximum.accumulate(np.array(offsets, np.int64).reshape(-1, 2), axis=0)

    def looks(self, ids: Sequence[int], n_rows: int, depth: float = 1.0) -> Floats:
        """How much each of the last n_rows tokens looks at each token, summed over the heads of one layer.

        depth: which layer, as a share of all: the last within it, so 1 is the model's last; where no layer within it
        counts, the first that does.
        Returns shape (n_rows, len(ids)); 0 for what stands behind a row, or outside a window that all layers have.
        """
        rows = torch.zeros(n_rows, len(self._before) + len(ids), device=self._model.device)
        deepest = round(depth * self.n_layers) - 1
        taken: set[int] = set()

        def take(layer: int, row: int, key: int, weights: Tensor) -> None:
            if layer <= deepest or row not in taken:
                taken.add(row)
                rows[row : row + weights.shape[1], key : key + weights.shape[2]] = weights.sum(0)

        self._read(ids, n_rows, take)
        return self._of_text(rows)

    def strongest(self, ids: Sequence[int], row_weights: Sequence[float], first_layer: int = 0) -> Floats:
        """The most that any of the last tokens looks at each token, with any head of the layers from first_layer on.

        row_weights: what each of the last len(row_weights) tokens counts, the last one's last; >= 0.
        Returns shape (len(ids),).
        """
        counts = torch.tensor(list(row_weights), dtype=torch.float32, device=self._model.device)
        most = torch.zeros(len(self._before) + len(ids), device=self._model.device)

        def take(layer: int, row: int, key: int, weights: Tensor) -> None:
            found = (weights * counts[row : row + weights.shape[1], None]).amax((0, 1))
            here = most[key : key + len(found)]
            torch.maximum(here, found, out=here)

        self._read(ids, len(counts), take, first_layer)
        return self._of_text(most)

    def _of_text(self, found: Tensor) -> Floats:
        own: Floats = found[..., len(self._before) :].cpu().numpy().astype(np.float64)
        return own

    def _read(self, ids: Sequence[int], n_rows: int, take: Take, first_layer: int = 0) -> None:
        """Read a text and show `take` the attention of its last n_rows tokens, layer by layer, `_ROWS` at a time."""
        if not 0 < n_rows <= len(ids):
            raise ValueError(f"n_rows is {n_rows}; a text of {len(ids)} tokens has 1 to {len(ids)} rows.")
        if len(ids) > self.max_tokens:
            raise ContextTooLong(
                f"The text has {len(ids)} tokens; {self._model.name} is asked for the attention of at most "
                f"{self.max_tokens} at once. Ask about shorter parts of it."
            )
        model, tokens = self._model, [*self._before, *ids]
        quiet, layers_seen = len(tokens) - n_rows, 0
        with self._lock:
            self._check_memory(len(tokens), n_rows)
            cache = model.new_cache(len(tokens))
            for start in range(0, quiet, self._chunk_tokens):
                model.forward(model.tokens(tokens[start : min(start + self._chunk_tokens, quiet)]), cache)

            def see(layer: int, weights: Tensor) -> None:
                nonlocal layers_seen
                if layer >= first_layer and (layer in self._far_sighted or not self._far_sighted):
                    layers_seen += 1
                    before = cache.n_tokens  # the model counts its new tokens when it is through
                    take(layer, before - quiet, before + weights.shape[2] - weights.shape[3], weights[0].float())

            with showing_attention(model.transformer, see):
                for start in range(quiet, len(tokens), _ROWS):
                    model.forward(model.tokens(tokens[start : start + _ROWS]), cache)
        if not layers_seen:
            raise ConfigError(
                f"{type(model.transformer).__name__} shows no attention from layer {first_layer} on. "
                "Use a model with plain attention layers."
            )

    def _check_memory(self, n_tokens: int, n_rows: int) -> None:
        model = self._model
        heads = int(model.transformer.config.get_text_config(decoder=True).num_attention_heads)
        shown = 2 * 4 * heads * min(n_rows, _ROWS) * n_tokens  # the attention of one layer, and a float32 copy
        needed = model.cache_bytes(n_tokens, self._chunk_tokens) + shown
        needed += model.work_bytes(min(self._chunk_tokens, n_tokens), n_tokens)
        if needed > (free := available_bytes(model.device)):
            raise ContextTooLong(
                f"Reading {n_tokens} tokens takes {gibibytes(needed)} of memory on {model.device}; "
                f"{gibibytes(free)} are available. Use a smaller model or a device with more memory."
            )


@contextmanager
def showing_attention(transformer: Any, see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Within, a transformers model attends plainly, and each attention layer shows its weights as it goes.

    see: is called with the layer's number and weights of shape (B, H, new tokens, keys); where there are fewer keys
    than tokens so far, they are the last ones (a sliding window).
    """

    def hook(module: Any, _: Any, output: Any) -> None:
        shown = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if isinstance(shown, Tensor) and shown.dim() == 4:
            see(module.layer_idx, shown)

    before = transformer.config._attn_implementation
    with ExitStack() as undo:
        undo.callback(transformer.set_attn_implementation, before)
        transformer.set_attn_implementation("eager")
        for module in transformer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                undo.callback(module.register_forward_hook(hook).remove)
        yield
