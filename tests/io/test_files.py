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
def test_the_old_file_stands_until_the_new_one_is_whole(durable: bool, tmp_path: Path) -> None:
    path, seen = tmp_path / "a", list[bytes]()
    path.write_bytes(b"old")

    def write(file: BinaryIO) -> None:
        new(file)
        seen.append(path.read_bytes())

    write_whole(path, write, durable=durable)
    assert seen == [b"old"]
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("a", b"new")]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="what a descriptor is of is read in /proc")
def test_bytes_come_to_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    path_of = "/proc/self/fd/{}".format

    def forced(descriptor: int) -> None:
        order.append("folder" if os.path.isdir(os.readlink(path_of(descriptor))) else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", forced)
    monkeypatch.setattr(os, "replace", lambda *names: (order.append("rename"), replace(*names)))
    write_whole(tmp_path / "a", new)
    assert order == ["file", "rename", "folder"]
    order.clear()
    write_whole(tmp_path / "a", new, durable=False)
    assert order == ["rename"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_disk_that_refuses_leaves_the_old_file_and_nothing_beside_it(
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
def test_a_file_system_that_cannot_force_a_folder_will_do(
    refused: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(descriptor: int) -> None:
        raise OSError(refused, "no such call")

    (tmp_path / "part").write_bytes(b"new")
    monkeypatch.setattr(os, "fsync", cannot)
    put_in_place(tmp_path / "part", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_an_interruption_leaves_nothing_and_is_not_swallowed(tmp_path: Path) -> None:
    def interrupted(file: BinaryIO) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a", interrupted)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_go_and_files_of_the_user_stay(tmp_path: Path) -> None:
    for name in (f".last.pt.{'0a' * 16}.tmp", "mine.tmp", ".mine.tmp", f"last.pt.{'0a' * 16}.tmp"):
        (tmp_path / name).touch()
    (tmp_path / f".folder.{'0a' * 16}.tmp").mkdir()
    sweep_temporary(tmp_path)
    left = sorted(entry.name for entry in tmp_path.iterdir())
    assert left == [f".folder.{'0a' * 16}.tmp", ".mine.tmp", f"last.pt.{'0a' * 16}.tmp", "mine.tmp"]
    sweep_temporary(tmp_path / "missing")
