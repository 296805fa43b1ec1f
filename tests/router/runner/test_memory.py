"""Free memory is read from where the system keeps it, and errors of allocation are told from others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from longroute.router.errors import ConfigError
from longroute.router.runner.memory import (
    available_bytes,
    available_host_bytes,
    check_weights_fit,
    gibibytes,
    is_out_of_memory,
)

NOWHERE = Path("/nowhere")


def test_this_machine_has_memory() -> None:
    assert available_bytes(torch.device("cpu")) > 2**20


def test_the_tighter_of_machine_and_container_counts(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemFree: 100 kB\nMemAvailable:    4000 kB\n")
    assert available_host_bytes(meminfo, NOWHERE) == 4000 * 1024
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2500000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 400000\n")
    assert available_host_bytes(meminfo, tmp_path) == 900_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_host_bytes(meminfo, tmp_path) == 4000 * 1024


def test_without_linux_files_half_of_the_machine_is_assumed() -> None:
    assert available_host_bytes(NOWHERE, NOWHERE) > 2**20


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            True,
        ),
        (RuntimeError("shape mismatch"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_allocation_errors_are_recognised(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_a_real_allocation_that_fails_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert is_out_of_memory(caught.value)


def test_weights_that_do_not_fit_are_refused_with_numbers() -> None:
    check_weights_fit(100, torch.device("cpu"), 100)
    with pytest.raises(ConfigError, match=r"take 16.00 GiB; 8.00 GiB are free on cuda:1. Use dtype"):
        check_weights_fit(16 << 30, torch.device("cuda:1"), 8 << 30)


def test_bytes_read_well_in_messages() -> None:
    assert [gibibytes(n) for n in (1_572_864, 3 << 30)] == ["1.50 MiB", "3.00 GiB"]
