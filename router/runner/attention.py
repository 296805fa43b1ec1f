"""Where a causal model looks: the attention of the last tokens of a text to all that stands before them.

All but these last tokens are read as `model.py` reads anything, by fused kernels that keep no attention. Only the
last ones go through transformers' plain ("eager") attention, which returns it: rows x keys for each head, never
keys x keys. Forward hooks on the attention modules take that layer by layer, and only what a reduction leaves is kept.
Behind the deepest layer that is asked for nothing runs: its keys are all that the last tokens need of it, so a cache
that has them ends the reading. What the numbers are good for is left to those who ask for them.

Layers that see no more than a sliding window are passed over where others see everything: what stands before the window
would count for nothing with them, and what stands in it for too much. Where all have a window, a text is no longer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import ConfigError, ContextTooLong
from .kv_cache import KVCache, KVLayer
from .memory import available_bytes, gibibytes
from .model import LanguageModel
from .tokenizer import Tokenizer

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Take = Callable[[int, int, Tensor], None]
"""Is shown the number of a layer, of the first row, and weights of shape (H, rows, keys), keys being all so far."""

# Stands before every text: the first tokens of a prompt draw attention that has nothing to do with what they say, and
# a text that began the prompt would have it counted for its own first words.
INTRODUCTION = "Read the text and answer the question that follows it.\n\n"

_ROWS = 128  # rows of attention at a time, lest a very long question make the largest tensor of all
_MOST_TOKENS = 1 << 15  # of one text: keys and values of a small model then take some hundred megabytes


class AttentionReader:
    """A language model and its tokenizer, asked for attention. Safe to use from any thread; texts are read one by one.

    n_layers: of the model. layers: those that can be asked, ascending. max_tokens: most ids that can be asked about at
    once: what the model was made for and all these layers see.
    Ids are those of `encode`; what stands before a text (the model's own first token, the introduction) is added here
    and left out of what is returned.
    """

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, *, introduction: str = INTRODUCTION, chunk_tokens: int = 2048
    ) -> None:
        """Raises ConfigError where no layer of the model attends."""
        self._model = model
        self._tokenizer = tokenizer
        self._chunk_tokens = chunk_tokens
        self._lock = threading.Lock()
        self._trial = model.new_cache()  # tells what the cache of some of the layers costs
        model.forward(model.tokens([0, 0]), self._trial)
        windows = {n: layer.window for n, layer in enumerate(self._trial.layers) if isinstance(layer, KVLayer)}
        if not windows:
            raise self._shows_nothing()
        self.layers = tuple(n for n, window in windows.items() if window is None) or tuple(windows)
        self._before = (*tokenizer.text_ids(""), *tokenizer.pieces(introduction)[0])
        self.n_layers = int(model.transformer.config.get_text_config(decoder=True).num_hidden_layers)
        seen = [window for n in self.layers if (window := windows[n]) is not None]
        self.max_tokens = min(model.max_positions or _MOST_TOKENS, _MOST_TOKENS, *seen) - len(self._before)

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

    def layer_within(self, depth: float) -> int:
        """The last of `layers` within a share of all that the model has, or where none is within it, the first."""
        deepest = round(depth * self.n_layers) - 1
        return max((n for n in self.layers if n <= deepest), default=self.layers[0])

    def looks(self, ids: Sequence[int], n_rows: int, depth: float = 1.0) -> Floats:
        """How much each of the last n_rows tokens looks at each token, summed over the heads of one layer.

        depth: which layer, see `layer_within`.
        Returns shape (n_rows, len(ids)); 0 for what stands behind a row.
        """
        rows = torch.zeros(n_rows, len(self._before) + len(ids), device=self._model.device)

        def take(_: int, row: int, weights: Tensor) -> None:
            rows[row : row + weights.shape[1], : weights.shape[2]] = weights.sum(0)

        self._read(ids, n_rows, [self.layer_within(depth)], take)
        return self._of_text(rows)

    def strongest(self, ids: Sequence[int], row_weights: Sequence[float], first_layer: int = 0) -> Floats:
        """The most that any of the last tokens looks at each token, with any head of the layers from first_layer on.

        row_weights: what each of the last len(row_weights) tokens counts, the last one's last; >= 0.
        Returns shape (len(ids),). Raises ConfigError where no such layer can be asked.
        """
        counts = torch.tensor(list(row_weights), dtype=torch.float32, device=self._model.device)
        most = torch.zeros(len(self._before) + len(ids), device=self._model.device)

        def take(_: int, row: int, weights: Tensor) -> None:
            found = (weights * counts[row : row + weights.shape[1], None]).amax((0, 1))
            here = most[: len(found)]
            torch.maximum(here, found, out=here)

        layers = [n for n in self.layers if n >= first_layer]
        if not layers:
            raise self._shows_nothing(first_layer)
        self._read(ids, len(counts), layers, take)
        return self._of_text(most)

    def last_query(self, ids: Sequence[int], layers: Sequence[int], *, products: bool = False) -> Floats:
        """How the last token looks at each token, summed over the heads of each of some layers.

        layers: some of `layers`, each once. products: the inner products of its query with the keys, scaled as the
        model does, in place of the attention that comes of them; less that of the first token read, which is the same
        before every text.
        Returns shape (len(layers), len(ids)).
        """
        found = torch.zeros(len(layers), len(self._before) + len(ids), device=self._model.device)
        places = {layer: place for place, layer in enumerate(layers)}

        def take(layer: int, _: int, weights: Tensor) -> None:
            row = weights[:, 0]
            found[places[layer]] = (_products(row) if products else row).sum(0)

        self._read(ids, 1, layers, take)
        return self._of_text(found)

    def _of_text(self, found: Tensor) -> Floats:
        if not found.isfinite().all():
            raise ConfigError(
                f"The attention of {self._model.name} in {self._model.dtype} is not finite: its numbers do not fit. "
                "Load it as bfloat16 or float32 (setting runner.dtype)."
            )
        own: Floats = found[..., len(self._before) :].cpu().numpy().astype(np.float64)
        return own

    def _read(self, ids: Sequence[int], n_rows: int, layers: Collection[int], take: Take) -> None:
        """Read a text and show `take` the attention of its last n_rows tokens in some layers, `_ROWS` at a time."""
        if not 0 < n_rows <= len(ids):
            raise ValueError(f"n_rows is {n_rows}; a text of {len(ids)} tokens has 1 to {len(ids)} rows.")
        if len(ids) > self.max_tokens:
            raise ContextTooLong(
                f"The text has {len(ids)} tokens; {self._model.name} is asked for the attention of at most "
                f"{self.max_tokens} at once. Ask about shorter parts of it."
            )
        model, tokens, deepest = self._model, [*self._before, *ids], max(layers)
        quiet, layers_seen = len(tokens) - n_rows, 0
        with self._lock:
            self._check_memory(len(tokens), n_rows, deepest)
            cache = model.new_cache(len(tokens))
            last = cache.layers[deepest] = _LastLayer(cache.layers[deepest])
            for start in range(0, quiet, self._chunk_tokens):
                self._append(tokens[start : min(start + self._chunk_tokens, quiet)], cache)
            last.ends = False

            def see(layer: int, weights: Tensor) -> None:
                nonlocal layers_seen
                if layer in layers:
                    layers_seen += 1
                    take(layer, cache.n_tokens - quiet, weights[0].float())
                if layer == deepest:
                    raise _Enough

            with showing_attention(model.transformer, see):
                for start in range(quiet, len(tokens), _ROWS):
                    self._append(tokens[start : start + _ROWS], cache)
        if not layers_seen:
            raise self._shows_nothing(min(layers))

    def _append(self, tokens: Sequence[int], cache: KVCache) -> None:
        try:
            self._model.forward(self._model.tokens(tokens), cache)
        except _Enough:
            cache.n_tokens += len(tokens)  # which the model does when it is through

    def _check_memory(self, n_tokens: int, n_rows: int, deepest: int) -> None:
        model = self._model
        heads = int(model.transformer.config.get_text_config(decoder=True).num_attention_heads)
        shown = 2 * 4 * heads * min(n_rows, _ROWS) * n_tokens  # the attention of one layer, and a float32 copy
        kept = (4 + 8) * n_rows * n_tokens  # all rows of it, and a float64 copy
        cache = KVCache(self._trial.config, self._trial.layers[: deepest + 1])
        needed = cache.nbytes_with(n_tokens, self._chunk_tokens) + shown + kept
        needed += model.work_bytes(min(self._chunk_tokens, n_tokens), n_tokens)
        if needed > (free := available_bytes(model.device)):
            raise ContextTooLong(
                f"Reading {n_tokens} tokens takes {gibibytes(needed)} of memory on {model.device}; "
                f"{gibibytes(free)} are available. Use a smaller model or a device with more memory."
            )

    def _shows_nothing(self, first_layer: int = 0) -> ConfigError:
        return ConfigError(
            f"{type(self._model.transformer).__name__} shows no attention from layer {first_layer} on. "
            "Use a model with plain attention layers."
        )


def _products(row: Tensor) -> Tensor:
    """The inner products behind attention, less the first; shape (H, keys) in and out.

    Attention is their exponential over a sum that is the same for all keys of a head. What was rounded to zero counts
    as the least that was not: its logarithm would outweigh all other heads.
    """
    least = torch.where(row > 0, row, torch.inf).amin(-1, keepdim=True)
    logarithms = torch.maximum(row, least).log()
    return logarithms - logarithms[:, :1]


class _Enough(Exception):
    """Ends a forward whose rest nobody needs."""


class _LastLayer(KVLayer):  # type: ignore[no-untyped-call]
    """Keys and values of the deepest layer that counts. Having them ends the forward, unless `ends` is false."""

    def __init__(self, like: KVLayer) -> None:
        super().__init__(like.window)
        self.room = like.room
        self.ends = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        shown = super().update(key_states, value_states, *args, **kwargs)
        if self.ends:
            raise _Enough
        return shown


@contextmanager
def showing_attention(transformer: Any, see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Within, a transformers model attends plainly, and each attention layer shows its weights as it goes.

    see: is called with the layer's number and weights of shape (B, H, new tokens, keys); where there are fewer keys
    than tokens so far, they are the last ones (a sliding window). It may raise to end the forward.
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
