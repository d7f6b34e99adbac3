"""Unpacking of valid, damaged and malicious archives."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from detector.errors import DetectorError
from detector.io import archive
from detector.io.archive import unpack

FILES = {"images/a.jpg": b"a" * 3000, "images/deep/b.jpg": b"", "labels/a.txt": "0 .5 .5 .1 .1 ü".encode()}
LIMIT = 10_000


def make_zip(path: Path, files: dict[str, bytes], **attributes: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("images/", b"")
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            for attribute, value in attributes.items():
                setattr(info, attribute, value)
            made.writestr(info, content, zipfile.ZIP_DEFLATED)
    return path


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w", **attributes: object) -> Path:
    with tarfile.open(path, mode) as made:  # type: ignore[call-overload]
        folder = tarfile.TarInfo("images")
        folder.type = tarfile.DIRTYPE
        made.addfile(folder)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for attribute, value in attributes.items():
                setattr(info, attribute, value)
            made.addfile(info, io.BytesIO(content))
    return path


def everything_below(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(path: Path, tmp_path: Path, max_bytes: int = LIMIT) -> str:
    before = everything_below(tmp_path)
    with pytest.raises(DetectorError) as caught:
        unpack(path, tmp_path / "out", max_bytes=max_bytes)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert everything_below(tmp_path) == before
    return message


@pytest.mark.parametrize("mode", ["zip", "w", "w:gz", "w:bz2", "w:xz"])
def test_unpacked_files_equal_the_archived_ones(tmp_path, mode):
    path = tmp_path / "some.archive"  # the suffix does not matter
    make_zip(path, FILES) if mode == "zip" else make_tar(path, FILES, mode)
    seen: list[int] = []
    for _ in range(2):  # a second time over the first
        assert unpack(path, tmp_path / "out", max_bytes=LIMIT, progress=seen.append) == 3
    assert everything_below(tmp_path / "out") == FILES
    assert seen[2] == sum(map(len, FILES.values()))


@pytest.mark.parametrize("name", ["../a", "/etc/a", "images/../../a", "..\\a", "C:\\a", "\\\\host\\a", "C:a"])
def test_name_outside_the_folder_is_refused_before_anything_is_written(tmp_path, name):
    files = {"good.txt": b"good", name: b"bad"}
    for path in (make_zip(tmp_path / "x.zip", files), make_tar(tmp_path / "x.tar", files)):
        assert "leads out of the folder it is unpacked into" in refused(path, tmp_path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_a_link_or_device_is_refused(tmp_path, kind):
    path = make_tar(tmp_path / "x.tar", {"good.txt": b"good"})
    with tarfile.open(path, "a") as made:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc/passwd"
        made.addfile(info)
    assert "'link' in it is a link or a device" in refused(path, tmp_path)


def test_a_link_in_a_zip_is_refused(tmp_path):
    path = make_zip(tmp_path / "x.zip", {"link": b"/etc/passwd"}, external_attr=(stat.S_IFLNK | 0o777) << 16)
    assert "'link' in it is a link or a device" in refused(path, tmp_path)


def test_nothing_is_written_through_an_existing_link(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.txt").write_bytes(b"mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "images").symlink_to(elsewhere)
    assert "would be written through a link" in refused(
        make_zip(tmp_path / "x.zip", {"images/a.txt": b"bad"}), tmp_path
    )
    (tmp_path / "out" / "a.txt").symlink_to(elsewhere / "a.txt")
    unpack(make_zip(tmp_path / "y.zip", {"a.txt": b"new"}), tmp_path / "out", max_bytes=LIMIT)
    assert (elsewhere / "a.txt").read_bytes() == b"mine"
    assert (tmp_path / "out" / "a.txt").read_bytes() == b"new"


def test_archive_larger_than_the_limits_or_the_disk_is_refused(tmp_path, monkeypatch):
    bomb = {"zeros": bytes(10_000_000)}
    for path in (make_zip(tmp_path / "x.zip", bomb), make_tar(tmp_path / "x.tgz", bomb, "w:gz")):
        assert path.stat().st_size < 20_000
        assert "more than the 2000000 files or 10000 bytes" in refused(path, tmp_path)
    many = make_zip(tmp_path / "many.zip", {str(i): b"" for i in range(30)})
    monkeypatch.setattr(archive, "MAX_MEMBERS", 20)
    assert "more than the 20 files" in refused(many, tmp_path)
    monkeypatch.setattr(archive, "MAX_MEMBERS", 40)
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda folder: namedtuple("usage", "free")(100))
    with pytest.raises(DetectorError, match=r"3000 bytes are needed in .*, 100 are free"):
        unpack(make_zip(tmp_path / "z.zip", {"a": b"a" * 3000}), tmp_path / "out", max_bytes=LIMIT)


def test_zip_with_understated_length_is_refused(tmp_path):
    path = make_zip(tmp_path / "x.zip", {"zeros": bytes(5_000)})
    content = path.read_bytes().replace((5000).to_bytes(4, "little"), (50).to_bytes(4, "little"))
    path.write_bytes(content)
    with pytest.raises(DetectorError, match=r"damaged or no archive|longer than it says"):
        unpack(path, tmp_path / "out", max_bytes=LIMIT)
    assert sum(map(len, everything_below(tmp_path / "out").values())) <= 50


@pytest.mark.parametrize(
    "content", [b"", b"no archive at all", b"PK\x03\x04" + bytes(50), b"\x1f\x8b\x08garbage", bytes(99)]
)
def test_file_that_is_not_an_archive_is_refused_with_its_name(tmp_path, content):
    path = tmp_path / "x.zip"
    path.write_bytes(content)
    assert "damaged or no archive" in refused(path, tmp_path)


@pytest.mark.parametrize("kind", ["zip", "w", "w:gz", "w:xz"])
def test_a_damaged_archive_never_crashes(tmp_path, kind):
    path = tmp_path / "x"
    make_zip(path, FILES) if kind == "zip" else make_tar(path, FILES, kind)
    whole = path.read_bytes()
    num_refused = 0
    for position in range(0, len(whole), max(1, len(whole) // 60)):
        for damaged in (whole[:position], whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :]):
            path.write_bytes(damaged)
            try:
                unpack(path, tmp_path / "out", max_bytes=LIMIT)
            except DetectorError:
                num_refused += 1
    assert num_refused > 20


def test_missing_archive_is_reported_in_one_sentence(tmp_path):
    with pytest.raises(DetectorError, match=r"cannot be unpacked into .*: No such file"):
        unpack(tmp_path / "none.zip", tmp_path / "out", max_bytes=LIMIT)
