import os
import pickle
import sqlite3
import subprocess
import sys
import textwrap
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.retrievers.cache import DiskCache, MemoryCache, key_of, open_cache

VALUE = b"\x00\x01 a vector" * 100


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[DiskCache]:
    cache = DiskCache(tmp_path)
    yield cache
    cache.close()


def database_of(directory: Path) -> Path:
    (path,) = directory.rglob("cache.db")
    return path


def run_script(script: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def assert_usable(directory: Path) -> None:
    cache = DiskCache(directory)
    cache.put_many({"after": VALUE})
    assert cache.get_many(["after"]) == [VALUE]
    cache.close()


# ---- keys ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.text()), st.lists(st.text()))
def test_keys_are_equal_only_for_equal_parts(one: list[str], other: list[str]) -> None:
    assert (key_of(*one) == key_of(*other)) == (one == other)


def test_parts_of_a_key_do_not_run_together() -> None:
    assert key_of("ab", "c") != key_of("a", "bc")


def test_text_with_lone_surrogates_has_a_key() -> None:
    assert key_of("\ud800") != key_of("?")


# ---- in memory -------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.one_of(st.none(), st.binary(max_size=6)))))
def test_memory_keeps_the_most_recently_used_values_within_its_bound(steps: list[tuple[str, bytes | None]]) -> None:
    cache, model = MemoryCache(size_bytes=10), OrderedDict[str, bytes]()
    for key, value in steps:
        if value is None:
            assert cache.get_many([key]) == [model.get(key)]
            if key in model:
                model.move_to_end(key)
        else:
            cache.put_many({key: value})
            model.pop(key, None)
            model[key] = value
            while sum(map(len, model.values())) > 10:
                model.popitem(last=False)
    assert cache.get_many("abcd") == [model.get(key) for key in "abcd"]


def test_without_a_directory_nothing_is_written() -> None:
    cache = open_cache(None)
    cache.put_many({"key": VALUE})
    assert cache.get_many(["key", "other"]) == [VALUE, None]
    assert list(Path.cwd().iterdir()) == []


# ---- on disk ---------------------------------------------------------------------------------------------------------


def test_values_outlive_the_cache_that_stored_them(tmp_path: Path) -> None:
    first = open_cache(tmp_path)
    first.put_many({"a": VALUE, "b": b""})
    assert DiskCache(tmp_path).get_many(["b", "missing", "a"]) == [b"", None, VALUE]


def test_namespaces_do_not_see_each_other(tmp_path: Path) -> None:
    ours, theirs = DiskCache(tmp_path, namespace="ours"), DiskCache(tmp_path, namespace="theirs")
    ours.put_many({"key": VALUE})
    assert theirs.get_many(["key"]) == [None]
    theirs.put_many({"key": b"other"})
    assert ours.get_many(["key"]) == [VALUE]


def test_old_values_leave_when_the_size_is_reached(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, size_bytes=1_000_000)
    keys = [f"key {i}" for i in range(100)]
    for key in keys:
        cache.put_many({key: os.urandom(50_000)})
    kept = [value is not None for value in cache.get_many(keys)]
    assert kept[-1] and not kept[0] and sum(kept) <= 20
    assert database_of(tmp_path).stat().st_size < 1_500_000


def test_the_folder_is_closed_to_other_users(cache: DiskCache, tmp_path: Path) -> None:
    cache.put_many({"key": VALUE})
    assert database_of(tmp_path).parent.stat().st_mode & 0o077 == 0


# ---- what may go wrong on disk ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    ["value = substr(value, 1, 40)", "value = zeroblob(length(value))", "value = 'text'", "value = NULL", "mode = 2"],
)
def test_a_damaged_entry_is_a_miss_and_can_be_replaced(cache: DiskCache, tmp_path: Path, damage: str) -> None:
    cache.put_many({"key": VALUE, "other": VALUE})
    with sqlite3.connect(database_of(tmp_path)) as connection:
        connection.execute(f"UPDATE Cache SET {damage}")  # noqa: S608
    connection.close()
    assert cache.get_many(["key"]) == [None]
    cache.put_many({"key": VALUE})
    assert cache.get_many(["key"]) == [VALUE]


def test_an_entry_under_the_wrong_key_is_a_miss(cache: DiskCache, tmp_path: Path) -> None:
    cache.put_many({"one": b"first"})
    cache.put_many({"two": b"second"})
    with sqlite3.connect(database_of(tmp_path)) as connection:
        connection.execute("UPDATE Cache SET value = (SELECT value FROM Cache ORDER BY rowid LIMIT 1)")
    connection.close()
    assert cache.get_many(["one", "two"]) == [b"first", None]


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_a_planted_pickle_is_not_run(cache: DiskCache, tmp_path: Path) -> None:
    cache.put_many({"key": VALUE})
    bomb = pickle.dumps(_Bomb(tmp_path / "exploded"))
    with sqlite3.connect(database_of(tmp_path)) as connection:
        connection.execute("UPDATE Cache SET mode = 4, value = ?", (bomb,))
    connection.close()
    assert cache.get_many(["key"]) == [None]
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("garbage", [b"", b"not a database" * 1000, b"SQLite format 3\0" + bytes(5000)])
@pytest.mark.parametrize("is_open", [True, False])
def test_an_overwritten_database_is_started_anew(tmp_path: Path, garbage: bytes, is_open: bool) -> None:
    first = DiskCache(tmp_path)
    first.put_many({f"{i}": VALUE for i in range(50)})
    if not is_open:
        first.close()
    database_of(tmp_path).write_bytes(garbage)
    for sidecar in tmp_path.rglob("cache.db-*"):
        sidecar.write_bytes(garbage)
    cache = first if is_open else DiskCache(tmp_path)
    assert cache.get_many(["1"]) in ([None], [VALUE])  # an open connection may still hold the page
    cache.put_many({"1": VALUE})
    cache.close()
    assert DiskCache(tmp_path).get_many(["2"]) in ([None], [VALUE])
    assert_usable(tmp_path)


def test_recovery_leaves_other_files_of_the_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    DiskCache(tmp_path).put_many({"key": VALUE})
    database_of(tmp_path).write_bytes(b"garbage" * 1000)
    DiskCache(tmp_path).get_many(["key"])
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_a_directory_that_is_a_file_is_no_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "file"
    path.write_text("")
    cache = DiskCache(path)
    cache.put_many({"key": VALUE})
    assert cache.get_many(["key"]) == [None]
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # once, not at every request


def test_a_read_only_directory_is_no_cache() -> None:
    script = """
        import os, sys, tempfile
        from pathlib import Path
        import diskcache
        from longroute.retrievers.cache import DiskCache
        tempfile.tempdir = "/tmp"
        with tempfile.TemporaryDirectory() as folder:
            DiskCache(folder).put_many({"key": b"value"})
            for path in [*Path(folder).rglob("*"), Path(folder)]:
                path.chmod(0o555 if path.is_dir() else 0o444)
            child = os.fork()
            if not child:
                if os.geteuid() == 0:
                    os.setuid(65534)  # root may write anywhere
                cache = DiskCache(folder)
                cache.put_many({"key": b"other"})
                os._exit(0 if cache.get_many(["key"]) == [None] else 3)
            _, status = os.waitpid(child, 0)
            for path in [Path(folder), *Path(folder).rglob("*")]:
                path.chmod(0o700)
        sys.exit(os.waitstatus_to_exitcode(status))
    """
    result = run_script(script)
    assert result.returncode == 0, result.stderr


def test_a_full_disk_is_no_cache(tmp_path: Path) -> None:
    script = """
        import resource, signal, sys
        from longroute.retrievers.cache import DiskCache
        cache = DiskCache(sys.argv[1])
        cache.put_many({"before": b"value"})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        cache.put_many({"large": bytes(1_000_000)})
        assert cache.get_many(["large"]) == [None]
    """
    result = run_script(script, tmp_path)
    assert result.returncode == 0, result.stderr
    assert DiskCache(tmp_path).get_many(["before"]) == [b"value"]
    assert_usable(tmp_path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("is_open", [True, False])
def test_a_locked_database_is_a_miss_and_not_a_wait(tmp_path: Path, is_open: bool) -> None:
    first = DiskCache(tmp_path)
    first.put_many({"key": VALUE})
    cache = first if is_open else DiskCache(tmp_path)
    lock = sqlite3.connect(database_of(tmp_path), isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    assert cache.get_many(["key"]) == [None]
    cache.put_many({"key": b"lost"})
    lock.execute("ROLLBACK")
    lock.close()
    assert cache.get_many(["key"]) == [VALUE]
    cache.close()


def test_two_processes_share_one_directory(tmp_path: Path) -> None:
    script = """
        import sys
        from longroute.retrievers.cache import DiskCache
        cache = DiskCache(sys.argv[1])
        for i in range(100):
            cache.put_many({f"{sys.argv[2]} {i}": bytes([i]) * 500, f"common {i}": bytes([i]) * 500})
            assert cache.get_many([f"common {i}"])[0] in (None, bytes([i]) * 500)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    workers = [subprocess.Popen([*command, name], stderr=subprocess.PIPE) for name in ("left", "right")]
    for worker in workers:
        assert worker.communicate(timeout=60)[1] == b""
        assert worker.returncode == 0
    for name in ("left", "right", "common"):
        values = DiskCache(tmp_path).get_many([f"{name} {i}" for i in range(100)])
        # A write may lose a race for the lock: then it is a miss, never another value.
        assert all(value in (None, bytes([i]) * 500) for i, value in enumerate(values))
        assert sum(value is not None for value in values) > 50


def test_a_process_killed_while_writing_leaves_a_usable_cache(tmp_path: Path) -> None:
    script = """
        import sys, time
        from longroute.retrievers.cache import DiskCache

        class Stuck(dict):
            def items(self):
                for item in super().items():
                    yield item
                    print("written", flush=True)
                    time.sleep(60)

        cache = DiskCache(sys.argv[1])
        cache.put_many({"before": b"value"})
        cache.put_many(Stuck(half=b"value" * 1000, whole=b"value" * 1000))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        writer.kill()
    assert DiskCache(tmp_path).get_many(["before", "half", "whole"]) == [b"value", None, None]
    assert_usable(tmp_path)


def test_diskcache_loads_on_first_use_only(tmp_path: Path) -> None:
    script = """
        import sys
        from longroute.retrievers.cache import DiskCache
        DiskCache(sys.argv[1])
        assert "diskcache" not in sys.modules
    """
    result = run_script(script, tmp_path)
    assert result.returncode == 0, result.stderr
