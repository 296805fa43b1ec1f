"""A causal language model: token ids and a cache in, logits out. Nothing here samples, schedules or knows text.

One primitive carries everything: `forward` appends tokens to a cache and returns logits only where they are wanted.
`forward_rows` is the same for a few tokens each of several requests at once: the weights are read once for all of them,
while each row attends to its own cache, so rows may differ in length and nothing is padded. It works through an
attention function of our own, which falls back to transformers' for everything else; `batches_rows` tells whether the
model at hand goes along (it is tried, and compared with `forward`, when the model is loaded).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, sdpa_mask

from ..errors import ConfigError
from .kv_cache import KVCache, RowsCache, RowStates
from .memory import available_bytes, check_weights_fit

Attention = Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"]
Wanted = Literal["last", "all"] | int

_OURS = "longroute_sdpa"
_LITTLE = 64  # queries up to which a mask costs next to nothing
_BLOCK = 256  # queries that one mask serves: it grows with them, and so does what they compute and then mask
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class LanguageModel:
    """A loaded model on one device. Not safe across threads: one owner calls it, as `engine.py` does.

    vocab_size:    columns of the logits; may exceed the tokenizer's length by padding rows.
    eos_ids:       tokens that end a text, from the generation config; may be empty.
    max_positions: longest text the model was made for, or None where it does not say.
    weight_bytes:  memory of the weights, all of which a decoding step reads.
    """

    def __init__(self, model: Any, *, name: str = "", attention: Attention = "sdpa") -> None:
        """model: a transformers causal language model, already on its device and in its dtype."""
        self._model = model.eval()
        self.name = name or type(model).__name__
        text_config = model.config.get_text_config(decoder=True)
        self._accepts = frozenset(inspect.signature(model.forward).parameters)
        if "past_key_values" not in self._accepts:
            raise ConfigError(
                f"{type(model).__name__} keeps no keys and values, so the runner cannot drive it. "
                "Use a model with attention, or serve this one with another engine and point longroute to it."
            )
        # torch's fused attention has no soft cap on its scores (Gemma 2), so such models take the plain way.
        capped = getattr(text_config, "attn_logit_softcapping", None)
        if attention == "sdpa" and (capped or not getattr(model, "_supports_sdpa", True)):
            attention = "eager"
        model.set_attn_implementation(_OURS if attention == "sdpa" else attention)
        self.attention = attention
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.max_positions: int | None = getattr(text_config, "max_position_embeddings", None)
        self.eos_ids = _eos_ids(model)
        self.weight_bytes = _weight_bytes(model)
        trial = self.new_cache()
        self.vocab_size = self.forward(self.tokens([0, 0]), trial).shape[-1]
        self._trial = trial  # tells what a cache costs
        self.can_roll_back = trial.can_roll_back
        self.is_windowed = trial.is_windowed
        self.batches_rows = self._rows_agree()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str = "auto",
        dtype: str = "auto",
        attention: Attention = "sdpa",
    ) -> LanguageModel:
        """Load a model folder as Hugging Face lays it out.

        device: `cpu`, `cuda`, `cuda:1`, ...; `auto` takes CUDA where there is one.
        dtype: `float32`, `bfloat16`, `float16`; `auto` takes what the weights are stored in.
        Raises ConfigError with what to change.
        """
        if dtype != "auto" and dtype not in _DTYPES:
            raise ConfigError(f"dtype is {dtype!r}; choose one of auto, {', '.join(_DTYPES)}.")
        chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        if chosen.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(f"device is {device!r}, but torch sees no CUDA device here. Use device='cpu' or 'auto'.")
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=_DTYPES.get(dtype, "auto"))
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())  # of an unknown architecture it has several lines
            raise ConfigError(f"There is no causal language model that can be read in {folder}: {reason}") from error
        if chosen != "cpu":
            check_weights_fit(_weight_bytes(model), torch.device(chosen), available_bytes(torch.device(chosen)))
        return cls(model.to(chosen), name=Path(folder).name, attention=attention)

    @property
    def transformer(self) -> Any:
        """transformers' own model, for those who watch it work by its public hooks (`attention.py`)."""
        return self._model

    def tokens(self, ids: Sequence[int]) -> Tensor:
        """Ids of one row as a tensor of shape (1, T) on the model's device."""
        return torch.tensor([list(ids)], dtype=torch.long).to(self.device, non_blocking=True)

    def new_cache(self, room: int = 0) -> KVCache:
        """An empty cache. room: tokens that will come in all, if known, so that its buffers are made once."""
        cache = KVCache(self._model.config)
        cache.reserve(room)
        return cache

    def forward(self, tokens: Tensor, cache: KVCache, *, logits: Wanted = "last") -> Tensor:
        """Append tokens to the cache and return float32 logits of the last, of all, or of the last n positions.

        tokens: shape (B, T), int64; all rows continue the same number of cached tokens.
        Returns shape (B, n, V): n is 1 for "last", T for "all". The logits at a position are for the token after it.
        After an exception call `cache.undo()`, which brings the cache back or says that it is lost.
        """
        wanted = 1 if logits == "last" else 0 if logits == "all" else min(logits, tokens.shape[1])
        kept = {"logits_to_keep": wanted} if "logits_to_keep" in self._accepts else {}
        with torch.inference_mode():
            out: Tensor = self._model(input_ids=tokens, past_key_values=cache, use_cache=True, **kept).logits
            found = (out if wanted == 0 else out[:, -wanted:]).float()
            cache.n_tokens += tokens.shape[1]  # only now: where memory runs out above, `undo` takes the tokens back
            return found

    def forward_rows(
        self, rows: Sequence[Sequence[int]], caches: Sequence[KVCache], wanted: Sequence[int] | None = None
    ) -> Tensor:
        """Append each row's tokens to its own cache, which may be of any length.

        wanted: how many of its last tokens each row wants logits behind; None for all of them.
        Returns float32 logits, shape (tokens wanted by all rows together, V), row after row. Only where `batches_rows`
        is true. After an exception, every cache must be cut back to what it was.
        """
        lengths = [len(row) for row in rows]
        places = [range(cache.n_tokens, cache.n_tokens + new) for cache, new in zip(caches, lengths, strict=True)]
        ends = accumulate(lengths)
        shown = [i for end, n in zip(ends, wanted or lengths, strict=True) for i in range(end - n, end)]
        some = len(shown) < sum(lengths)
        kept = {"logits_to_keep": self.tokens(shown)[0]} if some and "logits_to_keep" in self._accepts else {}
        with torch.inference_mode():
            out: Tensor = self._model(
                input_ids=self.tokens([token for row in rows for token in row]),
                past_key_values=RowsCache(caches, lengths),
                position_ids=self.tokens([place for row in places for place in row]),
                use_cache=True,
                **kept,
            ).logits[0]
            found = (out[shown] if some and not kept else out).float()
            for cache, new in zip(caches, lengths, strict=True):
                cache.n_tokens += new
            return found

    def crop(self, cache: KVCache, n_tokens: int) -> None:
        """Cut the cache to its first n_tokens tokens (the number that stays). Raises ConfigError where it cannot.

        A sliding-window layer goes back at most `kv_cache.ROLLBACK_TOKENS`; recurrent layers not at all.
        """
        cache.keep_first(n_tokens)

    def cache_bytes(self, n_tokens: int, chunk_tokens: int = 1) -> int:
        """Bytes that the cache of one request takes after n_tokens tokens, prefilled at most chunk_tokens at a time."""
        return self._trial.nbytes_with(n_tokens, chunk_tokens)

    def work_bytes(self, n_new: int, n_tokens: int) -> int:
        """Bytes that running n_new tokens behind a cache of n_tokens takes for a moment, roughly and from above.

        Counts the widest activations of a layer twice over, the attention mask, and one row of float32 logits.
        """
        config = self._model.config.get_text_config(decoder=True)
        item = self.dtype.itemsize
        wide = int(getattr(config, "intermediate_size", 0) or 4 * config.hidden_size)
        activations = n_new * (6 * config.hidden_size + 3 * wide) * item
        keys = n_new + n_tokens
        masked = n_new if self.is_windowed else min(n_new, _BLOCK)  # windows have a mask over all that is new
        mask = masked * keys * (3 + item) if n_new > 1 else 0  # two are kept, one is in use as numbers
        scores = n_new * keys * int(config.num_attention_heads) * 4 * 2 if self.attention == "eager" else 0
        # Without a kernel for grouped heads, keys and values of one layer are repeated for each group.
        groups = int(config.num_attention_heads) // int(getattr(config, "num_key_value_heads", None) or 1)
        layer = self.cache_bytes(keys) // len(self._trial.layers)
        spared = n_new == 1 or self.device.type == "cpu" or _knows_causal(self.device, self.dtype)
        repeated = 0 if spared else layer * groups
        return int(activations + mask + scores + repeated + 3 * self.vocab_size * 4)

    def _rows_agree(self) -> bool:
        """Try `forward_rows` on rows of different lengths and compare with `forward`."""
        if self.attention != "sdpa" or "position_ids" not in self._accepts or not self.can_roll_back:
            return False
        text_config = self._model.config.get_text_config(decoder=True)
        if _rotates_by_length(text_config) or getattr(text_config, "attention_chunk_size", None):
            return False  # rows know sliding windows, not those that start anew every so many tokens (Llama 4)
        prompts = [[i % self.vocab_size for i in range(n)] for n in (3, 5)]
        rows = [[7 % self.vocab_size], [11 % self.vocab_size, 2 % self.vocab_size]]
        slow, fast = [self.new_cache() for _ in prompts], [self.new_cache() for _ in prompts]
        for prompt, one, other in zip(prompts, slow, fast, strict=True):
            self.forward(self.tokens(prompt), one)
            self.forward(self.tokens(prompt), other)
        alone = zip(rows, slow, strict=True)
        expected = torch.cat([self.forward(self.tokens(row), cache, logits="all")[0] for row, cache in alone])
        try:
            found = self.forward_rows(rows, fast)
        except (TypeError, AttributeError, ValueError, RuntimeError):  # the model does more with keys than pass them on
            return False
        return bool((found - expected).norm() <= 0.05 * expected.norm())


def _rotates_by_length(text_config: Any) -> bool:
    """Whether the rotation of positions depends on the longest text in a pass: company would then change a row."""
    given = getattr(text_config, "rope_parameters", None) or {}
    kinds = [given, *(one for one in given.values() if isinstance(one, dict))]  # one for each kind of layer
    return any(kind.get("rope_type") in ("dynamic", "longrope") for kind in kinds)


def _attend(
    module: torch.nn.Module, query: Tensor, key: Any, value: Any, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention of queries (B, H, T, D), for transformers' registry: by torch's fused kernels, rows one by one.

    Masks are taken as they come: those of sliding windows, and of callers who pad.
    """
    if isinstance(key, RowStates):
        parts = zip(torch.split(query, key.new, 2), key, value, strict=True)
        rows = [_attend_behind(module, part, keys, values, key.window, options) for part, keys, values in parts]
        return torch.cat(rows, 1), None
    if attention_mask is not None or query.shape[2] in (1, key.shape[2]):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return _attend_behind(module, query, key, value, None, options), None


def _attend_behind(
    module: torch.nn.Module, query: Tensor, keys: Tensor, values: Tensor, window: int | None, options: dict[str, Any]
) -> Tensor:
    """Attention of the last tokens of a text, causal from the lower right corner; shape (B, T, H, D).

    Where a kernel knows that shape no mask is made; elsewhere one of a block of queries at a time.
    """
    new, all_keys = query.shape[2], keys.shape[2]
    if new == 1:
        return _fused(query, keys, values, None, options)
    if window is None and _knows_causal(query.device, query.dtype):
        return _fused(query, keys, values, causal_lower_right(new, all_keys), options)
    on_cpu = query.device.type == "cpu"
    same_sizes = query.shape[3] == values.shape[3]  # DeepSeek's values are smaller, which that kernel refuses
    if on_cpu and window is None and _LITTLE < new < all_keys and same_sizes and _joins(query.dtype):
        return _joined(query, keys, values, options.get("scaling"))
    blocks = []
    for start in range(0, new, _BLOCK):
        block = query[:, :, start : start + _BLOCK]
        seen = all_keys - new + start + block.shape[2]  # no token of the block looks further
        looked_at = keys[:, :, :seen], values[:, :, :seen]
        mask = _visible(block.shape[2], seen, window, query.device)
        if on_cpu:  # the CPU's kernel takes a mask and grouped heads together, without copies
            blocks.append(_fused(block, *looked_at, mask, options))
        else:
            blocks.append(sdpa_attention_forward(module, block, *looked_at, mask, **options)[0])
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)


def _fused(query: Tensor, keys: Tensor, values: Tensor, mask: Any, options: dict[str, Any]) -> Tensor:
    attended = torch.nn.functional.scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=mask,
        scale=options.get("scaling"),
        enable_gqa=query.shape[1] != keys.shape[1],
    )
    return attended.transpose(1, 2).contiguous()


def _joined(query: Tensor, keys: Tensor, values: Tensor, scale: float | None) -> Tensor:
    """`_attend_behind` on a CPU, without a mask: attention to the past and among the new tokens, weighted by their sums
    of exponentials. A third faster for long texts. The kernel tells these sums, which torch's public function does not.
    """
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    past = keys.shape[2] - query.shape[2]
    before, before_log = attend(query, keys[:, :, :past], values[:, :, :past], scale=scale)
    among, among_log = attend(query, keys[:, :, past:], values[:, :, past:], is_causal=True, scale=scale)
    share = torch.sigmoid(before_log - among_log).unsqueeze(-1).to(among.dtype)
    return torch.lerp(among, before, share).transpose(1, 2).contiguous()


@lru_cache
def _joins(dtype: torch.dtype) -> bool:
    """Whether `_joined` works with this torch, whose kernel it calls by an internal name: tried and compared."""
    query, keys, values = (torch.arange(n * 8.0).sin().to(dtype).view(1, -1, n, 4) for n in (3, 5, 5))
    query = torch.cat((query, query.flip(2)), 1)  # grouped heads
    expected = _fused(query, keys, values, _visible(3, 5, None, query.device), {})
    try:
        found = _joined(query, keys, values, None)
    except (AttributeError, TypeError, RuntimeError, NotImplementedError):
        return False
    return found.shape == expected.shape and bool((found - expected).norm() <= 0.05 * expected.norm())


@lru_cache(maxsize=2)  # all layers of a pass ask for the same, sliding ones for another; more would hold memory
def _visible(new: int, all_keys: int, window: int | None, device: torch.device) -> Tensor:
    """Which keys each of the last `new` tokens may look at: bool, shape (new, all_keys)."""
    seen = torch.ones(new, all_keys, dtype=torch.bool, device=device)
    seen[:, all_keys - new :].tril_()
    return seen if window is None else seen.triu_(all_keys - new - window + 1)


@lru_cache
def _knows_causal(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's flash kernel runs here: causal from any corner and grouped heads, without a mask or copies."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    return torch.cuda.get_device_capability(device)[0] >= 8


def _mask(*, dtype: torch.dtype, device: Any, **options: Any) -> Tensor | None:
    """The mask for `_attend`: none where the shape is causal, which it sees to itself, else what sdpa takes.

    A model that adds to its masks wants one in any case and says so (Doge).
    """
    plain = options.get("attention_mask") is None and options.get("local_size") is None
    can_go = options.get("allow_is_causal_skip", True)
    if plain and can_go and options.get("mask_function") is causal_mask_function:
        return None
    return sdpa_mask(dtype=dtype, device=device, **options)


AttentionInterface.register(_OURS, _attend)
AttentionMaskInterface.register(_OURS, _mask)


def _weight_bytes(model: Any) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def _eos_ids(model: Any) -> frozenset[int]:
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if found is None:
        found = model.config.get_text_config(decoder=True).eos_token_id
    return frozenset() if found is None else frozenset([found] if isinstance(found, int) else found)
