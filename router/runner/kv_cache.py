"""The memory of one request: keys and values of every token it has seen, layer by layer.

transformers' own dynamic cache copies everything it holds for each new token, and past a sliding window it cannot go
back. Here each layer has a buffer with room to grow: a token is written once and never moved in a layer of full
attention. A sliding layer keeps `ROLLBACK_TOKENS` more than its window, so short drafts can be taken back.

`KVCache` is a transformers `Cache`, so any causal model of that library takes it. Layers that are neither full nor
windowed attention (recurrent ones, for instance) stay as transformers makes them: such a cache can be copied whole,
but never shortened. `RowsCache` lets several caches of different lengths take part in one pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    DYNAMIC_LAYER_TYPE_MAPPING,
    Cache,
    CacheLayerMixin,
    DummyLayer,
    get_layer_types_and_kwargs,
)

from ..errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ROLLBACK_TOKENS = 64  # more than any draft we make; 64 tokens of a 4096-token window are 2 % more memory
_GROWTH = 1.25  # a buffer that must grow does so by a quarter: each token is then moved at most four times on average


class KVLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one attention layer, shape (B, H, tokens, D), in a buffer with room behind the last token.

    window: tokens that a query may look at, itself included; None where it may look at all of them.
    """

    is_croppable = True

    def __init__(self, window: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.window = window
        self.is_sliding = window is not None
        self.length = 0  # tokens seen
        self.room = 0  # tokens that the owner said will come
        self._start = 0  # where the oldest kept token lies in the buffer
        self._end = 0  # behind the newest one
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    # ---- what transformers calls ----

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append states of shape (B, H, T, D); returns what these T queries may look at, as views of the buffer."""
        new = key_states.shape[-2]
        keys, values = self._with_room(new, key_states, value_states)
        keys[..., self._end : self._end + new, :] = key_states
        values[..., self._end : self._end + new, :] = value_states
        self._end += new
        self.length += new
        self.is_initialized = True
        if self.window is None:
            return keys[..., : self._end, :], values[..., : self._end, :]
        first = max(self._start, self._end - (self.window - 1 + new))
        shown = keys[..., first : self._end, :], values[..., first : self._end, :]
        self._start = max(self._start, self._end - _kept(self.window))
        return shown

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(number of keys that `update` will return, position of the first of them)."""
        past = self.length if self.window is None else min(self.length, self.window - 1)
        return past + query_length, self.length - past

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1 if self.window is None else self.window

    # ---- what we call ----

    @property
    def nbytes(self) -> int:
        return 0 if self._keys is None or self._values is None else self._keys.nbytes + self._values.nbytes

    def nbytes_with(self, n_tokens: int, chunk_tokens: int) -> int:
        """What `nbytes` will be after n_tokens tokens that came at most chunk_tokens at a time; after a first call."""
        if self._keys is None:
            return 0
        most = n_tokens if self.window is None else _kept(self.window) + max(_kept(self.window), chunk_tokens)
        return self.nbytes // self._keys.shape[-2] * min(n_tokens, most)

    def can_keep(self, n_tokens: int) -> bool:
        """Whether the layer can become what it was after its first `n_tokens` tokens."""
        if n_tokens > self.length:
            return False
        still_there = self._end - self._start - (self.length - n_tokens)
        return still_there >= (n_tokens if self.window is None else min(n_tokens, self.window - 1))

    def keep_first(self, n_tokens: int) -> None:
        self._end -= self.length - n_tokens
        self.length = n_tokens

    def copy_first(self, n_tokens: int, room: int) -> KVLayer:
        """A layer of its own that has seen the first `n_tokens` tokens, with room for `room` in all."""
        copied = KVLayer(self.window)
        copied.room = room
        if self._keys is None or self._values is None or n_tokens == 0:
            return copied
        end = self._end - (self.length - n_tokens)
        start = self._start if self.window is None else max(self._start, end - _kept(self.window))
        new = end - start
        keys, values = copied._with_room(new, self._keys[..., :0, :], self._values[..., :0, :])
        keys[..., :new, :] = self._keys[..., start:end, :]
        values[..., :new, :] = self._values[..., start:end, :]
        copied._end, copied.length, copied.is_initialized = new, n_tokens, True
        return copied

    def _with_room(self, new: int, like_keys: Tensor, like_values: Tensor) -> tuple[Tensor, Tensor]:
        """The buffers, with room for `new` more tokens; a sliding layer first moves its window to the front."""
        held = self._end - self._start
        if self._keys is not None and self._values is not None:
            if self._end + new <= self._keys.shape[-2]:
                return self._keys, self._values
            if self._start >= held and held + new <= self._keys.shape[-2]:  # the two places do not overlap
                for buffer in (self._keys, self._values):
                    buffer[..., :held, :] = buffer[..., self._start : self._end, :]
                self._start, self._end = 0, held
                return self._keys, self._values
        if self.window is None:
            capacity = max(self.room, held + new, int(held * _GROWTH))
        else:  # twice what is kept, so that the window moves to the front once in that many tokens
            capacity = max(held + new, min(2 * _kept(self.window), max(self.room, int(held * _GROWTH))))
        keys = _grown(self._keys, like_keys, capacity, self._start, self._end)
        values = _grown(self._values, like_values, capacity, self._start, self._end)
        self._keys, self._values = keys, values  # only now: where memory runs out, the old buffers are still whole
        self._start, self._end = 0, held
        return keys, values


class KVCache(Cache):
    """All layers of one request, or of a batch of equally long ones. One owner at a time; not safe across threads."""

    layers: list[Any]

    def __init__(self, config: PreTrainedConfig, layers: Sequence[Any] | None = None) -> None:
        super().__init__(layers=list(layers) if layers is not None else _layers_of(config))
        self.config = config
        self.n_tokens = 0

    @property
    def nbytes(self) -> int:
        """Bytes of device memory that are held, room to grow included."""
        return sum(_nbytes(layer) for layer in self.layers)

    @property
    def can_roll_back(self) -> bool:
        """Whether tokens can be taken back at all; windowed layers still only go back `ROLLBACK_TOKENS`."""
        return all(isinstance(layer, KVLayer | DummyLayer) for layer in self.layers)

    @property
    def is_windowed(self) -> bool:
        """Whether some layer forgets: a prefix can then only be copied while it is the whole cache, or nearly so."""
        return not self.can_roll_back or any(isinstance(layer, KVLayer) and layer.is_sliding for layer in self.layers)

    def nbytes_with(self, n_tokens: int, chunk_tokens: int) -> int:
        """What `nbytes` of a cache like this one will be after n_tokens tokens, at most chunk_tokens at a time."""
        return sum(
            layer.nbytes_with(n_tokens, chunk_tokens) if isinstance(layer, KVLayer) else _nbytes(layer)
            for layer in self.layers
        )

    def reserve(self, n_tokens: int) -> None:
        """Say how many tokens will come in all, so that buffers are made once."""
        for layer in self.layers:
            if isinstance(layer, KVLayer):
                layer.room = n_tokens

    def can_keep(self, n_tokens: int) -> bool:
        if n_tokens == self.n_tokens:
            return True
        return self.can_roll_back and all(_can_keep(layer, n_tokens) for layer in self.layers)

    def keep_first(self, n_tokens: int) -> None:
        """Forget all but the first `n_tokens` tokens. Raises ConfigError where that is no longer possible."""
        self._check(n_tokens)
        for layer in self.layers:
            if isinstance(layer, KVLayer):
                layer.keep_first(n_tokens)
        self.n_tokens = n_tokens

    def undo(self) -> bool:
        """After a forward that failed half way: drop what it left in some of the layers. False: the cache is lost."""
        if not self.can_roll_back or not all(_can_keep(layer, self.n_tokens) for layer in self.layers):
            return False
        self.keep_first(self.n_tokens)
        return True

    def copy_first(self, n_tokens: int, room: int = 0) -> KVCache:
        """A cache of its own holding the first `n_tokens` tokens, with room for `room` in all."""
        self._check(n_tokens)
        with torch.inference_mode():
            layers = [
                layer.copy_first(n_tokens, room) if isinstance(layer, KVLayer) else copy.deepcopy(layer)
                for layer in self.layers
            ]
        copied = KVCache(self.config, layers)
        copied.n_tokens = n_tokens
        return copied

    def without_room(self) -> KVCache:
        """This cache, or where more than half of its buffers stands empty, a copy that fits."""
        mostly_used = 2 * self.nbytes_with(self.n_tokens, 1) >= self.nbytes
        return self if mostly_used else self.copy_first(self.n_tokens)

    def _check(self, n_tokens: int) -> None:
        if not 0 <= n_tokens <= self.n_tokens:
            raise ConfigError(f"The cache holds {self.n_tokens} tokens; it cannot be cut to {n_tokens}.")
        if self.can_keep(n_tokens):
            return
        if not self.can_roll_back:
            raise ConfigError(
                "This model has recurrent or otherwise special layers, whose state cannot be taken back. "
                "Speculative decoding needs a model with plain or sliding-window attention."
            )
        raise ConfigError(
            f"A sliding-window layer has already forgotten what it saw around token {n_tokens} of {self.n_tokens}; "
            f"at most {ROLLBACK_TOKENS} tokens can be taken back. Draft fewer tokens, or start from an empty cache."
        )


class RowStates(list[Tensor]):
    """Keys, or values, of several rows of different lengths: one tensor (1, H, tokens, D) for each row.

    new: how many of each row's tokens are new. window: tokens that a query may look at, or None for all.
    """

    def __init__(self, states: Iterable[Tensor], new: list[int], window: int | None) -> None:
        super().__init__(states)
        self.new = new
        self.window = window


class RowsCache(Cache):
    """Several caches behind one another for one pass: each row appends its new tokens to, and reads, its own.

    new: how many of the tokens that come belong to each row, in order.
    """

    def __init__(self, rows: Sequence[KVCache], new: Sequence[int]) -> None:
        layers: list[Any] = [_RowsLayer(layers, new) for layers in zip(*(row.layers for row in rows), strict=True)]
        super().__init__(layers=layers)


class _RowsLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    def __init__(self, rows: Sequence[KVLayer], new: Sequence[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows = rows
        self.new = list(new)
        self.is_sliding = getattr(rows[0], "is_sliding", False)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """States of shape (1, H, all new tokens, D), row after row.

        Returns (RowStates, RowStates) instead of tensors: only our own attention function can read them.
        """
        split = torch.split(key_states, self.new, 2), torch.split(value_states, self.new, 2)
        parts = zip(self.rows, *split, strict=True)
        pairs = [row.update(keys, values) for row, keys, values in parts]
        window = self.rows[0].window
        return (
            RowStates((keys for keys, _ in pairs), self.new, window),
            RowStates((values for _, values in pairs), self.new, window),
        )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0  # a mask of this size is never read: our attention function makes one for each row

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


def _layers_of(config: PreTrainedConfig) -> list[Any]:
    kinds, options = get_layer_types_and_kwargs(config.get_text_config(decoder=True))
    ours = {"full_attention", "sliding_attention", "chunked_attention"}
    return [
        KVLayer(option.get("sliding_window")) if kind in ours else DYNAMIC_LAYER_TYPE_MAPPING[kind](**option)
        for kind, option in zip(kinds, options, strict=True)
    ]


def _kept(window: int) -> int:
    """Tokens that a sliding layer holds on to between calls: what the next query sees, and what may be taken back."""
    return window - 1 + ROLLBACK_TOKENS


def _can_keep(layer: Any, n_tokens: int) -> bool:
    return not isinstance(layer, KVLayer) or not layer.is_initialized or layer.can_keep(n_tokens)


def _grown(buffer: Tensor | None, like: Tensor, capacity: int, start: int, end: int) -> Tensor:
    grown = like.new_empty((*like.shape[:-2], capacity, like.shape[-1]))
    if buffer is not None:
        grown[..., : end - start, :] = buffer[..., start:end, :]
    return grown


def _nbytes(layer: Any) -> int:
    if isinstance(layer, KVLayer):
        return layer.nbytes
    held = [value for value in vars(layer).values() if isinstance(value, Tensor)]
    for states in (v for v in vars(layer).values() if isinstance(v, dict)):
        held += [value for value in states.values() if isinstance(value, Tensor)]
    return sum(tensor.nbytes for tensor in held)
