"""Memory of a device: how much is free, what a request will need, and how to recognise that it was not there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import ConfigError, ContextTooLong

if TYPE_CHECKING:
    from .model import LanguageModel
    from .scheduler import Job

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_JUDGED = 17  # tokens of an answer that are judged at once: the longest draft that times call for, and one more
_UNKNOWN = 4 << 30  # what a system that does not tell its memory is trusted with


class MemoryGuard:
    """Tells whether a request fits, before it starts: its caches at their longest, and the passing needs of a step.

    available: bytes that caches may still take right now.
    """

    def __init__(
        self, model: LanguageModel, draft_model: LanguageModel, chunk_tokens: int, available: Callable[[], int]
    ) -> None:
        self.available = available
        self._model = model
        self._draft_model = draft_model
        self._chunk_tokens = chunk_tokens

    def needed_bytes(self, job: Job) -> int:
        """What must be free for the request to start with nothing reused; notes what it may take in all."""
        job.reserved_bytes = self._model.cache_bytes(job.total_tokens, self._chunk_tokens)
        if job.generation.draft is not None:
            draft_tokens = len(job.generation.draft.prompt_ids) + job.max_tokens
            job.reserved_bytes += self._draft_model.cache_bytes(draft_tokens, self._chunk_tokens)
        work = self._model.work_bytes(min(self._chunk_tokens, len(job.prompt)), job.total_tokens)
        return job.reserved_bytes + self._judging_bytes(job) + work

    def free_bytes(self, running: Iterable[Job]) -> int:
        """What is available and not already granted to a running request."""
        granted = sum(max(0, job.reserved_bytes - self.held_bytes(job)) + self._judging_bytes(job) for job in running)
        return self.available() - granted

    def _judging_bytes(self, job: Job) -> int:
        """What a draft takes until it is judged, which all answers of a shared pass hold at once: 2.5 times the float32
        logits of its tokens, as measured, for a large vocabulary 20 MiB and more.
        """
        return 0 if job.generation.draft is None else 3 * 4 * self._model.vocab_size * _JUDGED

    def refusal(self, job: Job) -> ContextTooLong:
        """For a request that does not fit even alone."""
        return ContextTooLong(
            f"A prompt of {len(job.prompt)} tokens with {job.max_tokens} tokens of answer needs "
            f"{gibibytes(self.needed_bytes(job))} of memory ({gibibytes(job.reserved_bytes)} of it cache) on "
            f"{self._model.device}; {gibibytes(max(0, self.available()))} are available. Shorten the prompt or "
            "max_tokens, lower chunk_tokens, or use a device with more memory."
        )

    def held_bytes(self, job: Job) -> int:
        """What the request's caches take now, as the device counts it."""
        assert job.cache is not None
        caches = [(self._model, job.cache)]
        if job.decoding is not None:
            caches.append((self._draft_model, job.decoding.caches[1]))
        held = 0
        for model, cache in caches:
            written = model.cache_bytes(cache.n_tokens, self._chunk_tokens)
            # Main memory counts as taken only once it is written to.
            held += min(cache.nbytes, written) if model.device.type == "cpu" else cache.nbytes
        return held


def available_bytes(device: torch.device) -> int:
    """Bytes that can still be taken on the device: what is free, and what torch holds but does not use."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return available_host_bytes()


def available_host_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Bytes of main memory that can still be taken, within the limit of a container where there is one."""
    found = [free for free in (_from_meminfo(meminfo), _from_cgroup(cgroup)) if free is not None]
    if found:
        return min(found)
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return _UNKNOWN
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # macOS: no better word than half of it all


def check_weights_fit(weight_bytes: int, device: torch.device, free: int) -> None:
    """Raise ConfigError where a model's weights do not fit into the free bytes of a device."""
    if weight_bytes > free:
        raise ConfigError(
            f"The weights of this model take {gibibytes(weight_bytes)}; {gibibytes(free)} are free on {device}. "
            "Use dtype='bfloat16', a smaller model, or another device."
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this error says that an allocation failed, on a GPU or on the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def gibibytes(n_bytes: int) -> str:
    """For messages: `1.50 GiB`, or in MiB where that reads better."""
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**29 else f"{n_bytes / 2**20:.2f} MiB"


def _from_meminfo(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _from_cgroup(cgroup: Path) -> int | None:
    """What a container's limit (cgroup version 2) leaves; file pages that can be dropped count as free."""
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        stat = (cgroup / "memory.stat").read_text().splitlines()
    except OSError:
        return None
    if limit == "max":
        return None
    droppable = next((int(line.split()[1]) for line in stat if line.startswith("inactive_file ")), 0)
    return max(0, int(limit) - used + droppable)
