"""Unpacking of downloaded archives, so that nothing is written outside the folder they are unpacked into.

Members must be files and folders with relative names. Links, devices and names that lead out of the folder are rejected
before anything is written, and so is an archive that would fill the disk.
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

MAX_MEMBERS = 2_000_000  # COCO has 123,000; more names than this would fill the memory
_CHUNK_BYTES = 2**20
# Errors that the two libraries raise for a file that is damaged or not an archive.
_DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError,
    UnicodeError, ValueError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True)
class _Member:
    """A file in an archive: its path below the folder, its length and a function that opens it."""

    path: PurePosixPath
    num_bytes: int
    open: Callable[[], IO[bytes] | None]


def unpack(
    archive: Path, folder: Path, *, max_bytes: int, progress: Callable[[int], None] = lambda num_done: None
) -> int:
    """Unpack a zip or tar archive (plain, gzip, bzip2 or xz) into a folder.

    Args:
        archive: the file; its format is recognised by its content.
        folder: folder of the members, created if missing. Files of the same name are replaced.
        max_bytes: largest size of all members together, unpacked.
        progress: called after each file with the number of bytes written so far.

    Returns:
        The number of files written.

    Raises:
        DetectorError: the file is damaged or not an archive, a member is a link or a device or leads out of the folder,
            the members have more than `max_bytes`, or the disk has no room.
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
        if info.flag_bits & 1:
            raise DetectorError(f"{archive} is encrypted; unpack it with its password and give the folder")
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
    """Return the relative path of a member; both kinds of slash separate its parts on every system."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name or "\0" in name:
        raise DetectorError(f"{archive} is refused: {name!r} in it leads out of the folder it is unpacked into")
    return path


def _within(archive: Path, members: Iterator[_Member], max_bytes: int) -> list[_Member]:
    """Return the members; stop at the first one over the limits, so that an archive bomb is not listed to its end."""
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
        if not path.parent.resolve().is_relative_to(folder.resolve()):  # an existing link
            raise DetectorError(f"{archive} is refused: {member.path} in it would be written through a link")
        path.unlink(missing_ok=True)  # replaced, not written through
        source = member.open()
        if source is None:
            raise DetectorError(f"{archive} cannot be unpacked: {member.path} in it cannot be read")
        with source, open(path, "xb") as file:
            left = member.num_bytes  # a damaged header may state less than the archive holds
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
