"""Content-addressed cache of bytes that are dear to make and safe to lose: embeddings and indexes.

A key is a hash of the content together with the version of what made the value (`key_of`), so nothing is ever
invalidated: a new model asks under new keys, and old entries leave by least recent use. Nothing here knows what the
bytes mean, and document text is never among them.

Losing the cache costs time, never an answer: an entry that fails its checksum is a miss, a database that is no
database is started anew, and a directory that cannot be used is like no directory. Values are raw bytes and pickles
are refused, so that whoever can write to the directory can spoil it, but cannot run code.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import diskcache

T = TypeVar("T")
log = logging.getLogger(__name__)

DIGEST_BYTES = 16
DISK_BYTES = 1 << 30
MEMORY_BYTES = 64 << 20  # 40,000 vectors of 384 dimensions
LOCK_TIMEOUT_S = 0.05  # longer than any transaction of ours, shorter than making the value again


def key_of(*parts: str) -> str:
    """One key for several parts, in order. No two different lists of parts share a key."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


class Cache(Protocol):
    """Maps keys to bytes and may forget any of them at any time. Never raises; safe to share between threads."""

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The value of each key, in order; None where there is none."""

    def put_many(self, items: Mapping[str, bytes]) -> None:
        """Keep these values, if possible."""


def open_cache(directory: str | Path | None, *, namespace: str = "", size_bytes: int = DISK_BYTES) -> Cache:
    """A cache in `directory`, or one in memory, gone with the process, where that is None."""
    return MemoryCache() if directory is None else DiskCache(directory, namespace=namespace, size_bytes=size_bytes)


class MemoryCache:
    """The least recently used values within `size_bytes` of memory."""

    def __init__(self, size_bytes: int = MEMORY_BYTES) -> None:
        self._free = size_bytes
        self._values: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        with self._lock:
            for key in keys:
                if key in self._values:
                    self._values.move_to_end(key)
            return [self._values.get(key) for key in keys]

    def put_many(self, items: Mapping[str, bytes]) -> None:
        with self._lock:
            for key, value in items.items():
                self._free += len(self._values.pop(key, b"")) - len(value)
                self._values[key] = value
            while self._free < 0:
                self._free += len(self._values.popitem(last=False)[1])


class DiskCache:
    """The least recently used values within `size_bytes` of disk; several processes may share one directory.

    namespace: values are seen only by caches of the same namespace (one per tenant); the size limit is common to all.
    """

    def __init__(self, directory: str | Path, *, namespace: str = "", size_bytes: int = DISK_BYTES) -> None:
        # A folder of our own, because recovery deletes it whole.
        self._directory = Path(directory).expanduser() / "longroute-cache-1"
        self._namespace = namespace
        self._size_bytes = size_bytes
        self._database: diskcache.Cache | None = None
        self._lock = threading.Lock()
        self._complained = False

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        missing: list[bytes | None] = [None] * len(keys)

        def read(database: diskcache.Cache) -> list[bytes | None]:
            with database.transact():  # one lock and one commit for all keys, not one each
                return [self._checked(name, database.get(name)) for name in names]

        names = [key_of(self._namespace, key) for key in keys]
        return self._try(read, missing) if keys else missing

    def put_many(self, items: Mapping[str, bytes]) -> None:
        def write(database: diskcache.Cache) -> None:
            with database.transact():  # killed in the middle, it never happened
                for key, value in items.items():
                    name = key_of(self._namespace, key)
                    database.set(name, _digest(name, value) + value)

        if items:
            self._try(write, None)

    def close(self) -> None:
        """Close the calling thread's connection. The cache stays usable."""
        if self._database is not None:
            self._database.close()

    @staticmethod
    def _checked(name: str, entry: object) -> bytes | None:
        if not isinstance(entry, bytes):
            return None
        digest, value = entry[:DIGEST_BYTES], entry[DIGEST_BYTES:]
        return value if digest == _digest(name, value) else None

    def _try(self, work: Callable[[diskcache.Cache], T], otherwise: T) -> T:
        """What `work` returns, or `otherwise` where the disk will not have it."""
        import diskcache

        try:
            return work(self._open())
        except (diskcache.Timeout, sqlite3.OperationalError, OSError) as error:  # locked, full, read-only, gone
            self._complain(error)
        except Exception as error:  # whatever the bytes on disk made sqlite3 or diskcache stumble over
            self._complain(error)
            self._discard()
        return otherwise

    def _open(self) -> diskcache.Cache:
        with self._lock:
            if self._database is None:
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # embeddings can betray their text
                self._probe()
                self._database = _open_database(self._directory, self._size_bytes)
            return self._database

    def _probe(self) -> None:
        """Raise at once what opening would meet: diskcache waits a minute for a lock when it opens."""
        connection = sqlite3.connect(self._directory / "cache.db", timeout=LOCK_TIMEOUT_S, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        finally:
            connection.close()

    def _discard(self) -> None:
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None
            shutil.rmtree(self._directory, ignore_errors=True)

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            log.warning(
                "The cache in %s cannot be used at the moment (%s: %s); answers are right but slower. Check that the "
                "folder is writable and the disk not full.", self._directory, type(error).__name__, error
            )  # fmt: skip


def _digest(name: str, value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=DIGEST_BYTES, key=name.encode()).digest()


def _open_database(directory: Path, size_bytes: int) -> diskcache.Cache:
    import diskcache

    class BytesOnly(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types
        """Never unpickles: a row that claims to be a pickle was not written by us."""

        def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> Any:
            if mode == diskcache.core.MODE_PICKLE:
                return None
            return super().fetch(mode, filename, value, read)

    return diskcache.Cache(
        str(directory),
        timeout=LOCK_TIMEOUT_S,
        disk=BytesOnly,
        size_limit=size_bytes,
        eviction_policy="least-recently-used",
        disk_min_file_size=1 << 28,  # in the database up to here: a file of its own would survive a killed transaction
        # No mapped files (WAL has one too): when another process truncates one, SIGBUS kills this process.
        sqlite_mmap_size=0,
        sqlite_journal_mode="truncate",
        sqlite_synchronous=0,  # a power cut may spoil the file; recovering from that costs less than waiting for disks
    )
