"""Files inside plain tar archives, read where they lie: each has a path that says its place in the archive.

`shards/train-000000.tar/1536+4578/00000001.jpg` are the 4578 bytes from byte 1536 on of that archive. Nothing is
unpacked, so a process reads any member with one call and without a list of the others. Archives are read strictly:
links, devices, sparse members and names that lead out of a folder are rejected, and so is an archive that ends early.

The format: POSIX.1-2001, pax, "ustar Interchange Format"; GNU's long names.
"""

from __future__ import annotations

import functools
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from detector.errors import DatasetError, MediaError

_BLOCK = tarfile.BLOCKSIZE
_PLACE = re.compile(
    r"(?P<archive>.*\.tar)[/\\](?P<start>[0-9]{1,15})\+(?P<size>[0-9]{1,15})[/\\](?P<name>.+)", re.DOTALL
)
_MOST_MEMBERS = 10_000_000
_MOST_NAME_BYTES = 2**16  # of a header that holds a long name or other attributes
_MOST_READ_BYTES = 2**30
_ENCODING = ("utf-8", "surrogateescape")


@dataclass(frozen=True)
class TarMember:
    """Regular file in a tar archive.

    Attributes:
        archive: the archive.
        name: its name in the archive, relative, with slashes.
        start: position of its first byte in the archive.
        num_bytes: its length.
    """

    archive: Path
    name: str
    start: int
    num_bytes: int

    @property
    def path(self) -> Path:
        """Path that stands for the member; `member_of` reads it."""
        return self.archive / f"{self.start}+{self.num_bytes}" / self.name


def member_of(path: Path) -> TarMember | None:
    """Return the member that a path stands for; None for any other path."""
    match = _PLACE.fullmatch(str(path))
    if match is None:
        return None
    name = match["name"].replace(os.sep, "/")
    return TarMember(Path(match["archive"]), name, int(match["start"]), int(match["size"]))


def file_holding(path: Path) -> Path:
    """Return the archive of a member, or a path itself."""
    member = member_of(path)
    return path if member is None else member.archive


def read_member(member: TarMember) -> bytes:
    """Return the bytes of a member after checking that its header is still in its place.

    Raises:
        MediaError: the archive was changed, or is cut.
        OSError: the archive cannot be read.
    """
    if member.num_bytes > _MOST_READ_BYTES or member.start < _BLOCK:
        raise MediaError(f"{member.path} cannot be read: it has {member.num_bytes} bytes > limit of {_MOST_READ_BYTES}")
    with member.archive.open("rb") as file:
        file.seek(member.start - _BLOCK)
        content = file.read(_BLOCK + member.num_bytes)
    try:
        header = tarfile.TarInfo.frombuf(content[:_BLOCK], *_ENCODING)
        is_same = header.isreg() and header.size == member.num_bytes
        # The name of a pax or GNU header may be shortened, or without its letters beyond ASCII.
        is_long = not member.name.isascii() or len(member.name) > tarfile.LENGTH_NAME
        is_same &= is_long or header.name == member.name
    except tarfile.HeaderError:
        is_same = False
    if not is_same or len(content) != _BLOCK + member.num_bytes:
        raise MediaError(f"{member.path} cannot be read: {member.archive} was changed or cut; list its images again")
    return content[_BLOCK:]


def list_members(archive: Path) -> Iterator[TarMember]:
    """Yield the regular files of a plain tar archive, in order; only headers are read.

    Raises:
        DatasetError: the archive cannot be read, is compressed, damaged or cut, has too many members, or a member is
            rejected.
    """
    try:
        with archive.open("rb") as file:
            yield from _members(archive, file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise DatasetError(f"{archive} cannot be read: {error.strerror}; check the path") from error


def _members(archive: Path, file: BinaryIO, num_bytes: int) -> Iterator[TarMember]:
    position, num_members, long_name = 0, 0, ""
    while True:
        file.seek(position)
        block = file.read(_BLOCK)
        if block == bytes(_BLOCK):  # the end of the archive; another one may be joined to it, or a header was lost
            if any(chunk.strip(b"\0") for chunk in iter(functools.partial(file.read, _MOST_NAME_BYTES), b"")):
                raise DatasetError(f"{archive} goes on after its end, at byte {position}; write it as one archive")
            return
        info = _header(archive, block, position)
        start = position + _BLOCK
        if start + info.size > num_bytes:
            raise DatasetError(
                f"{archive} is cut or damaged: {info.name!r} ends at byte {start + info.size} of {num_bytes}; copy it "
                "again"
            )
        position = start + -(-info.size // _BLOCK) * _BLOCK
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE):
            long_name = _long_name(archive, info, file) or long_name
            continue
        name, long_name = long_name or info.name, ""
        _require_plain(archive, info, name)
        if info.isreg():
            num_members += 1
            if num_members > _MOST_MEMBERS:
                raise DatasetError(f"{archive} is rejected: it has more than {_MOST_MEMBERS} members; split it")
            yield TarMember(archive, name, start, info.size)


def _header(archive: Path, block: bytes, position: int) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, *_ENCODING)
    except tarfile.HeaderError as error:
        if position == 0 and block:
            kind = (
                "is compressed; unpack it to a plain .tar"
                if block[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5")
                else ""
            )
            raise DatasetError(f"{archive} {kind or 'is no tar archive; remove it'}") from error
        fault = "it has no end" if not block else "a header is damaged"
        raise DatasetError(f"{archive} is cut or damaged, at byte {position}: {fault}; copy it again") from error


def _long_name(archive: Path, info: tarfile.TarInfo, file: BinaryIO) -> str:
    """Return the name of the next member that a header gives; empty where it gives none.

    Raises:
        DatasetError: the header is too long, or gives the next member another size, as sparse ones have.
    """
    if info.size > _MOST_NAME_BYTES:
        raise DatasetError(f"{archive} is rejected: a header of {info.size} bytes > limit of {_MOST_NAME_BYTES}")
    content = file.read(info.size)
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return content.rstrip(b"\0").decode(*_ENCODING)
    name = ""
    while content:
        length, _, rest = content.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(content):
            raise DatasetError(f"{archive} is rejected: a pax header is damaged; write it again")
        key, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        if key == b"size" or key.startswith(b"GNU.sparse"):
            raise DatasetError(f"{archive} is rejected: a member is sparse or has more than 8 GB; write it without")
        name = value.decode(*_ENCODING) if key == b"path" and info.type != tarfile.XGLTYPE else name
        content = content[int(length) :]
    return name


def _require_plain(archive: Path, info: tarfile.TarInfo, name: str) -> None:
    """Reject a member that is not a file or folder with a relative name."""
    if not (info.isreg() or info.isdir()) or info.type == tarfile.GNUTYPE_SPARSE:
        raise DatasetError(f"{archive} is rejected: {name!r} in it is a link, a device or a sparse file")
    plain = PurePosixPath(name.replace("\\", "/"))
    if plain.is_absolute() or ".." in plain.parts or PureWindowsPath(name).drive or "\0" in name:
        raise DatasetError(f"{archive} is rejected: {name!r} in it leads out of its folder")
