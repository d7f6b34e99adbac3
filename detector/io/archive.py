"""The one unpacker of archives from elsewhere: nothing it writes lies outside the folder it is given.

Members are files and folders with relative names; links, devices and names that climb out are refused before anything
is written, and so is an archive that would fill the disk.
"""

from __future__ import annotations

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from detector.errors import DetectorError

MAX_MEMBERS = 2_000_000  # COCO has 123,000; names alone would fill the memory beyond
_CHUNK_BYTES = 2**20
# What the two libraries raise on a file that is no archive or a damaged one.
_DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError,
    UnicodeError, ValueError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True)
class _Member:
    """A file in an archive: where it goes below the folder, how long it is, and how to read it."""

    path: PurePosixPath
    num_bytes: int
    open: Callable[[], IO[bytes] | None]


def unpack(
    archive: Path, folder: Path, *, max_bytes: int, progress: Callable[[int], None] = lambda num_done: None
) -> int:
    """Unpacks a zip or tar archive (plain, gzip, bzip2 or xz) below a folder.

    Args:
        archive: the file; its content says what it is.
        folder: where the members go; made if missing. Files of the same name are replaced.
        max_bytes: the most that all members together may take unpacked.
        progress: told how many bytes are written, after each file.

    Returns:
        The number of files written.

    Raises:
        DetectorError: it is no archive, it is damaged, a member is a link, a device or climbs out, it would unpack to
            more than `max_bytes`, or the disk has no room.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                return _write(archive, _within(archive, _in_zip(archive, opened), max_bytes), folder, progress)
        with tarfile.open(archive) as opened_tar:
            return _write(archive, _within(archive, _in_tar(archive, opened_tar), max_bytes), folder, progress)
    except _DAMAGE as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise DetectorError(f"{archive} cannot be unpacked, it is damaged or no archive: {said}; remove it") from error
    except OSError as error:
        raise DetectorError(f"{archive} cannot be unpacked into {folder}: {error.strerror or error}") from error


def _in_zip(archive: Path, opened: zipfile.ZipFile) -> Iterator[_Member]:
    for info in opened.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DetectorError(f"{archive} is refused: {info.filename!r} in it is a link or a device")
        path = _safe(archive, info.filename)
        if not info.is_dir():
            yield _Member(path, info.file_size, lambda info=info: opened.open(info))  # type: ignore[misc]  # mypy#12557


def _in_tar(archive: Path, opened: tarfile.TarFile) -> Iterator[_Member]:
    for info in opened:
        if not (info.isreg() or info.isdir()):
            raise DetectorError(f"{archive} is refused: {info.name!r} in it is a link or a device")
        path = _safe(archive, info.name)
        if info.isreg():
            yield _Member(path, info.size, lambda info=info: opened.extractfile(info))  # type: ignore[misc]  # mypy#12557


def _safe(archive: Path, name: str) -> PurePosixPath:
    """The relative path of a member; both kinds of slash count, wherever the archive was made."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name or "\0" in name:
        raise DetectorError(f"{archive} is refused: {name!r} in it leads out of the folder it is unpacked into")
    return path


def _within(archive: Path, members: Iterator[_Member], max_bytes: int) -> list[_Member]:
    """The members, as long as they keep to the limits: a bomb is not even listed to its end."""
    listed: list[_Member] = []
    num_bytes = 0
    for member in members:
        listed.append(member)
        num_bytes += member.num_bytes
        if len(listed) > MAX_MEMBERS or num_bytes > max_bytes:
            raise DetectorError(
                f"{archive} is refused: it holds more than the {MAX_MEMBERS} files or {max_bytes} bytes that are "
                "unpacked at most"
            )
    return listed


def _write(archive: Path, members: list[_Member], folder: Path, progress: Callable[[int], None]) -> int:
    num_bytes = sum(member.num_bytes for member in members)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise DetectorError(f"{archive}: {num_bytes} bytes are needed in {folder}, {free} are free; make room")
    num_done = 0
    for member in members:
        path = folder / member.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.parent.resolve().is_relative_to(folder.resolve()):  # a link that was there before
            raise DetectorError(f"{archive} is refused: {member.path} in it would be written through a link")
        path.unlink(missing_ok=True)  # replaced, not written through
        source = member.open()
        if source is None:
            raise DetectorError(f"{archive} cannot be unpacked: {member.path} in it cannot be read")
        with source, open(path, "xb") as file:
            left = member.num_bytes  # a damaged header may promise less than there is
            while chunk := source.read(min(_CHUNK_BYTES, left + 1)):
                left -= len(chunk)
                if left < 0:
                    raise DetectorError(f"{archive} is refused: {member.path} in it is longer than it says")
                file.write(chunk)
            if left:
                raise EOFError(f"{member.path} in it ends {left} bytes early")
        num_done += member.num_bytes
        progress(num_done)
    return len(members)
