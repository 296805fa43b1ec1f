"""Who is next: a fair queue, prefill chunks in turn, and everybody who decodes in every step. No tensors here.

Requests start in the order they came. One that shares a long head with a request still reading its prompt lets others
pass and waits, because that head will be there for the taking. A step runs one chunk of one prompt, then one token for
each request that decodes, so neither a long prompt nor a long answer holds up the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .prefixes import Ids, as_ids, shared_length

if TYPE_CHECKING:
    from .detokenize import Detokenizer, StopFilter
    from .generation import Generation
    from .handle import Handle
    from .kv_cache import KVCache
    from .sampling import Sampler
    from .speculative import SpeculativeDecoding


class Job:
    """One request on its way. fed: how many of its tokens are in the cache. All times are of the engine's clock."""

    def __init__(self, generation: Generation, handle: Handle, max_tokens: int, submitted_at: float) -> None:
        self.generation = generation
        self.handle = handle
        self.prompt: Ids = as_ids(generation.prompt_ids)
        self.max_tokens = max_tokens
        self.submitted_at = submitted_at
        self.started_at: float | None = None
        self.first_token_at: float | None = None
        self.new_ids: list[int] = []
        self.reused_tokens = 0
        self.reserved_bytes = 0
        self.cache: KVCache | None = None
        self.sampler: Sampler | None = None
        self.decoding: SpeculativeDecoding | None = None  # instead of a sampler, where there is a draft
        self.detokenizer: Detokenizer | None = None
        self.stop_filter: StopFilter | None = None
        self._shared: dict[Job, int] = {}

    @property
    def fed(self) -> int:
        return self.cache.n_tokens if self.cache is not None else 0

    @property
    def unread_tokens(self) -> int:
        """Tokens of the prompt that are still to be read before the first token of the answer can be decoded.

        With a draft there are two prompts, and the last token of each is read in the first decoding step.
        """
        unread = len(self.prompt) - self.fed
        if self.decoding is None or self.generation.draft is None:
            return unread
        return unread - 1 + len(self.generation.draft.prompt_ids) - 1 - int(self.decoding.caches[1].n_tokens)

    @property
    def total_tokens(self) -> int:
        """Most tokens that the cache will hold: the last one generated is never fed."""
        return len(self.prompt) + self.max_tokens - 1

    @property
    def cached_ids(self) -> Ids:
        """The tokens that are in the cache."""
        return as_ids([*self.generation.prompt_ids, *self.new_ids][: self.fed])

    def shared_with(self, other: Job) -> int:
        """Tokens of this prompt that the other could save it: all they share, but the last token must be read."""
        if other not in self._shared:  # asked in every step while waiting, and prompts are long
            self._shared[other] = min(shared_length(other.prompt, self.prompt), len(self.prompt) - 1)
        return self._shared[other]

    def next_chunk(self, chunk_tokens: int) -> int:
        """How many tokens of the prompt to feed next; a chunk ends where the shared head ends."""
        to_read = len(self.prompt) - (self.decoding is not None)  # with a draft, the last one waits for decoding
        to_mark = min(self.generation.shared_tokens, to_read) - self.fed
        return min(chunk_tokens, self.unread_tokens, to_mark if to_mark > 0 else chunk_tokens)


class Scheduler:
    """The queue and the requests that have a slot. Owned by the engine's thread."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.waiting: deque[Job] = deque()
        self.prefilling: deque[Job] = deque()
        self.decoding: list[Job] = []

    @property
    def running(self) -> list[Job]:
        return [*self.prefilling, *self.decoding]

    def __bool__(self) -> bool:
        return bool(self.waiting or self.prefilling or self.decoding)

    @property
    def has_slot(self) -> bool:
        return len(self.prefilling) + len(self.decoding) < self.slots

    def start(self, job: Job) -> None:
        self.waiting.remove(job)
        self.prefilling.append(job)

    def next_prefill(self) -> Job | None:
        """The request whose turn it is to read a chunk of its prompt; it goes to the end of the line."""
        if not self.prefilling:
            return None
        self.prefilling.rotate(-1)
        return self.prefilling[-1]

    def decode(self, job: Job) -> None:
        """The prompt of this request is read."""
        self.prefilling.remove(job)
        self.decoding.append(job)

    def drop(self, job: Job) -> None:
        for line in (self.waiting, self.prefilling, self.decoding):
            if job in line:
                line.remove(job)

    def cancelled(self) -> list[Job]:
        return [job for job in (*self.waiting, *self.running) if job.handle.cancelled]

    def worth_waiting(self, job: Job, saved_now: int, gain_tokens: int, *, forgets: bool) -> bool:
        """Whether a request that is still reading will soon leave at least gain_tokens more of this prompt's head.

        forgets: caches lose their past, so that only the declared shared head of the other prompt will be kept.
        """
        return any(_promised(other, job, forgets=forgets) - saved_now >= gain_tokens for other in self.prefilling)


def _promised(other: Job, job: Job, *, forgets: bool) -> int:
    common = job.shared_with(other)
    if not forgets:
        return common
    mark = other.generation.shared_tokens
    return mark if other.fed < mark <= common else 0


def longest_live(job: Job, others: Iterable[Job]) -> tuple[Job | None, int]:
    """Of the running requests, the one whose cache already holds most of this prompt's head, and how much of it.

    Appending never changes what is there, so a copy can be taken while the other goes on.
    """
    found: Job | None = None
    saved = 0
    for other in others:
        n = min(job.shared_with(other), other.fed)
        if n > saved and other.cache is not None and other.cache.can_keep(n):
            found, saved = other, n
    return found, saved
