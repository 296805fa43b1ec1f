"""Prompts whose cache is kept for the next request that starts with the same tokens. Exact match, least used out first.

A document is read once: the second question about it finds the head of its prompt here. A cache leaves the store when a
request takes it over nearly whole (nothing is copied), and comes back when that request ends; where a request needs
only a part, it gets a copy. Nothing that is stored is ever written to. No tensors here: caches are opaque.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]

_NEARLY_WHOLE = 0.9  # a request that uses less of a stored cache gets a copy, and the longer text stays for others


class PrefixCache(Protocol):
    """What the store must know of a cache; `kv_cache.KVCache` is one."""

    n_tokens: int

    @property
    def nbytes(self) -> int: ...

    def can_keep(self, n_tokens: int) -> bool: ...

    def keep_first(self, n_tokens: int) -> None: ...

    def reserve(self, n_tokens: int) -> None: ...

    def copy_first(self, n_tokens: int, room: int = 0) -> Self: ...


C = TypeVar("C", bound=PrefixCache)


@dataclass(frozen=True, eq=False, slots=True)
class Prefix(Generic[C]):
    """Tokens and the cache that holds exactly these."""

    ids: Ids
    cache: C


class PrefixStore(Generic[C]):
    """Caches of finished requests within a number of bytes.

    forgets: whether caches lose their past (sliding windows): a longer cache then cannot stand in for a shorter one, so
    both are kept, and a request always gets a copy.
    """

    def __init__(self, max_bytes: int, *, forgets: bool = False) -> None:
        self.max_bytes = max_bytes
        self.forgets = forgets
        self._stored: list[Prefix[C]] = []  # least recently used first

    def __len__(self) -> int:
        return len(self._stored)

    @property
    def nbytes(self) -> int:
        return sum(prefix.cache.nbytes for prefix in self._stored)

    def best(self, ids: Ids, most: int) -> tuple[Prefix[C] | None, int]:
        """The stored cache that saves most of this prompt, and how many of its tokens, `most` at the utmost."""
        found: Prefix[C] | None = None
        saved = 0
        for prefix in reversed(self._stored):
            n = min(shared_length(ids, prefix.ids), most)
            if n > saved and prefix.cache.can_keep(n):
                found, saved = prefix, n
        return found, saved

    def gives_away(self, prefix: Prefix[C], n_tokens: int) -> bool:
        """Whether `take` would hand over this cache itself rather than a copy."""
        return not self.forgets and n_tokens >= _NEARLY_WHOLE * len(prefix.ids)

    def take(self, prefix: Prefix[C], n_tokens: int, room: int) -> C:
        """A cache of the first n_tokens tokens that the caller may write to, with room for `room` in all."""
        if self.gives_away(prefix, n_tokens):
            self._stored.remove(prefix)
            prefix.cache.keep_first(n_tokens)
            prefix.cache.reserve(room)
            return prefix.cache
        self._stored.remove(prefix)
        self._stored.append(prefix)  # used just now
        return prefix.cache.copy_first(n_tokens, room)

    def put(self, ids: Ids, cache: C) -> None:
        """Keep a cache that nobody writes to any more, where it fits and says something new."""
        if cache.n_tokens == 0 or cache.nbytes > self.max_bytes:
            return
        covers = [p for p in self._stored if shared_length(ids, p.ids) == len(ids)]
        if any(len(p.ids) == len(ids) or not self.forgets for p in covers):
            return
        if not self.forgets:
            self._stored = [p for p in self._stored if shared_length(ids, p.ids) < len(p.ids)]
        self._stored.append(Prefix(ids, cache))
        self.evict(self.nbytes - self.max_bytes)

    def evict(self, n_bytes: int, spare: Prefix[C] | None = None) -> int:
        """Drop the least recently used until n_bytes are free, but not `spare`. Returns the bytes that became free."""
        freed = 0
        for prefix in list(self._stored):
            if freed >= n_bytes:
                break
            if prefix is not spare:
                self._stored.remove(prefix)
                freed += prefix.cache.nbytes
        return freed


def as_ids(tokens: Sequence[int]) -> Ids:
    return np.asarray(tokens, dtype=np.int64)


def shared_length(one: Ids, other: Ids) -> int:
    """How many tokens the two have in common from the start."""
    n = min(len(one), len(other))
    different = np.flatnonzero(one[:n] != other[:n])
    return int(different[0]) if len(different) else n
