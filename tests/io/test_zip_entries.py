"""Archives of untrusted origin: what is checked is what is loaded."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from detector.errors import CheckpointError
from detector.export.torch_archive import read_archive, read_pt2
from detector.io.zip_entries import pack, read_entries
from detector.models.checkpoint import load_training_state

ENTRIES = {"archive/data.pkl": b"\x80\x02N.", "archive/data/0": bytes(range(60)), "archive/version": b"3\n"}


def zipped(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return content.getvalue()


def of_torch() -> bytes:
    content = io.BytesIO()
    torch.save({"weight": torch.arange(40.0), "names": ["a", "b"]}, content, pickle_protocol=2)
    return content.getvalue()


def of_two_directories(first: bytes, second: bytes) -> bytes:
    """Return an archive that is `second` for a reader of the zip64 record, and `first` for one of the older record."""
    end = first.rindex(b"PK\x05\x06")
    moved = io.BytesIO(first[:end])
    with zipfile.ZipFile(io.BytesIO(second)) as source:
        contents = {entry.filename: source.read(entry) for entry in source.infolist()}
    moved.seek(0, io.SEEK_END)
    offsets = {}
    for name, content in contents.items():
        offsets[name] = moved.tell()
        crc = zlib.crc32(content)
        moved.write(struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 33, crc, *[len(content)] * 2, len(name), 0))
        moved.write(name.encode() + content)
    start = moved.tell()
    for name, content in contents.items():
        crc, length = zlib.crc32(content), len(content)
        fields = (20, 20, 0, 0, 0, 33, crc, length, length, len(name), 0, 0, 0, 0, 0, offsets[name])
        moved.write(struct.pack("<4s6H3L5H2L", b"PK\x01\x02", *fields) + name.encode())
    size, record = moved.tell() - start, moved.tell()
    count = len(contents)
    moved.write(struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start))
    moved.write(struct.pack("<4sLQL", b"PK\x06\x07", 0, record, 1) + first[end:])
    return moved.getvalue()


def test_entries_are_read_and_packed_without_change() -> None:
    for content in (zipped(ENTRIES), of_torch()):
        entries = read_entries(content)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert entries == {name: archive.read(name) for name in archive.namelist()}
        assert read_entries(pack(entries).getvalue()) == entries
    loaded = torch.load(pack(read_entries(of_torch())), weights_only=True)
    assert loaded["weight"].equal(torch.arange(40.0))


def test_compressed_entries_are_read_where_they_are_allowed_within_the_limit() -> None:
    content = zipped({"archive/code.py": b"x" * 5000}, zipfile.ZIP_DEFLATED)
    assert read_entries(content, may_compress=True, max_extra_bytes=5000) == {"archive/code.py": b"x" * 5000}
    for options in ({}, {"may_compress": True}, {"max_extra_bytes": 5000}):
        with pytest.raises(zipfile.BadZipFile, match="unpacks to 5000 bytes"):
            read_entries(content, **options)  # type: ignore[arg-type]


def inserted(content: bytes, offset: int) -> bytes:
    """Return an archive with eight bytes before the entry at an offset, all offsets of its directory corrected."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        start, infos = archive.start_dir, archive.infolist()
    result = bytearray(content[:offset] + b"\0" * 8 + content[offset:])
    position = start + 8
    for info in infos:
        moved = info.header_offset + (8 if info.header_offset >= offset else 0)
        struct.pack_into("<L", result, position + 42, moved)
        position += 46 + len(info.filename)
    struct.pack_into("<L", result, len(result) - 6, start + 8)
    return bytes(result)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda content: b"#!/bin/sh\n" + content, "before"),
        (lambda content: inserted(content, content.index(b"PK\x03\x04", 4)), "before 'archive/data/0'"),
        (lambda content: inserted(content, content.index(b"PK\x01\x02")), "behind"),
        (lambda content: content + b"\0", "behind|not a zip"),
        (lambda content: content[:-2] + b"\x05\0hello", "behind"),
        (lambda content: of_two_directories(content, zipped({"archive/data.pkl": b"\x80\x02K\x01."})), "before"),
        (lambda content: zipped(ENTRIES | {"ARCHIVE/data.PKL": b"N."}), "same name"),
        (lambda content: zipped(ENTRIES | {"archive/../up": b"N."}), "entry 'archive/../up'"),
        (lambda content: zipped(ENTRIES | {"/archive/up": b"N."}), "entry '/archive/up'"),
        (lambda content: zipped(ENTRIES | {"archive/b_.pkl": b"N."}).replace(b"b_.pkl", b"b\0.pkl"), "entry"),
        (lambda content: zipped(ENTRIES | {"archive/folder/": b""}), "entry 'archive/folder/'"),
    ],
)
def test_archive_that_two_readers_could_see_differently_is_refused(
    damage: Callable[[bytes], bytes], expected: str
) -> None:
    with pytest.raises(zipfile.BadZipFile, match=expected):
        read_entries(damage(zipped(ENTRIES)))


@pytest.mark.parametrize("content", [zipped(ENTRIES), of_torch()], ids=["zip", "torch"])
def test_every_flipped_bit_of_an_entry_is_refused(content: bytes) -> None:
    intact = read_entries(content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        first_of = {entry.filename: content.index(archive.read(entry)) for entry in archive.infolist()}
    for name, first in first_of.items():
        for offset in range(first, first + len(intact[name])):
            damaged = bytearray(content)
            damaged[offset] ^= 1 << offset % 8
            with pytest.raises(zipfile.BadZipFile, match="CRC"):
                read_entries(bytes(damaged))


@pytest.mark.parametrize("load", [load_training_state, read_archive, read_pt2])
def test_file_with_two_directories_is_refused_by_every_reader_of_archives(
    load: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "two.pt"
    path.write_bytes(of_two_directories(of_torch(), zipped(ENTRIES)))
    with pytest.raises(CheckpointError, match=r"data that belongs to no entry|damaged"):
        load(path)
