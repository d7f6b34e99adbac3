from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from detector.io.files import put_in_place, sweep_temporary, write_whole


def new(file: BinaryIO) -> None:
    file.write(b"new")


@pytest.mark.parametrize("durable", [True, False])
def test_old_file_stays_until_the_new_one_is_whole(durable: bool, tmp_path: Path) -> None:
    path, seen = tmp_path / "a", list[bytes]()
    path.write_bytes(b"old")

    def write(file: BinaryIO) -> None:
        new(file)
        seen.append(path.read_bytes())

    write_whole(path, write, durable=durable)
    assert seen == [b"old"]
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("a", b"new")]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="what a descriptor is of is read in /proc")
def test_bytes_are_forced_to_disk_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    path_of = "/proc/self/fd/{}".format

    def forced(descriptor: int) -> None:
        order.append("folder" if os.path.isdir(os.readlink(path_of(descriptor))) else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", forced)

    def renamed(source: Path, target: Path) -> None:
        order.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "replace", renamed)
    write_whole(tmp_path / "a", new)
    assert order == ["file", "rename", "folder"]
    order.clear()
    write_whole(tmp_path / "a", new, durable=False)
    assert order == ["rename"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_failed_write_leaves_the_old_file_and_no_temporary_file(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a", new)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("a", b"old")]


@pytest.mark.parametrize("refused", [errno.EINVAL, errno.ENOTSUP])
def test_file_system_that_cannot_sync_a_folder_is_accepted(
    refused: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(descriptor: int) -> None:
        raise OSError(refused, "no such call")

    (tmp_path / "part").write_bytes(b"new")
    monkeypatch.setattr(os, "fsync", cannot)
    put_in_place(tmp_path / "part", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_interrupt_leaves_no_temporary_file_and_is_raised(tmp_path: Path) -> None:
    def interrupted(file: BinaryIO) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a", interrupted)
    assert list(tmp_path.iterdir()) == []


def test_sweep_removes_leftovers_and_keeps_files_of_the_user(tmp_path: Path) -> None:
    for name in (f".last.pt.{'0a' * 16}.tmp", "mine.tmp", ".mine.tmp", f"last.pt.{'0a' * 16}.tmp"):
        (tmp_path / name).touch()
    (tmp_path / f".folder.{'0a' * 16}.tmp").mkdir()
    sweep_temporary(tmp_path)
    left = sorted(entry.name for entry in tmp_path.iterdir())
    assert left == [f".folder.{'0a' * 16}.tmp", ".mine.tmp", f"last.pt.{'0a' * 16}.tmp", "mine.tmp"]
    sweep_temporary(tmp_path / "missing")
