from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

import pytest

from detector.io.machine import are_cores_busy, kibibytes_of, machine, peak_bytes, resident_bytes

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the proc file system is Linux's")


def test_an_entry_of_the_proc_file_system_is_read_in_bytes(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t  2048 kB\nVmRSS:\t    17 kB\n")
    assert kibibytes_of(status, "VmHWM") == 2048 * 1024
    assert kibibytes_of(status, "VmRSS") == 17 * 1024
    assert kibibytes_of(status, "VmSwap") is None
    assert kibibytes_of(tmp_path / "missing", "VmRSS") is None


@linux_only
def test_peak_memory_includes_freed_memory() -> None:
    peak, before_bytes = peak_bytes(), resident_bytes()
    assert peak is not None
    assert before_bytes is not None
    # Memory that the process returns meanwhile lowers the new peak, so 256 MiB are added to reach the old one.
    # It is mapped, because training in this process may have told malloc to keep what is freed.
    with mmap.mmap(-1, max(0, peak - before_bytes) + 2**28) as held:
        for offset in range(0, len(held), mmap.PAGESIZE):
            held[offset] = 1
        held_bytes = resident_bytes()
    after_bytes = resident_bytes()
    assert held_bytes is not None
    assert after_bytes is not None
    assert after_bytes < held_bytes - 2**27
    grown = peak_bytes(since_bytes=after_bytes)
    assert grown is not None
    assert grown >= held_bytes - after_bytes - 2**20  # the kernel counts in batches of pages


def test_the_machine_is_named_with_its_threads_and_versions() -> None:
    assert ", torch " in machine()
    assert " thread" in machine()


def test_busy_cores_are_told_by_the_load_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    for load, is_busy in ((2.9, False), (3.1, True)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 9.0, 9.0), raising=False)
        assert are_cores_busy() is is_busy
    monkeypatch.delattr(os, "getloadavg")  # Windows
    assert not are_cores_busy()
