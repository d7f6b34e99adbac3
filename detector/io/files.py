"""Atomic file writes: the content goes to a temporary file, is forced to disk, and the file is renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

_CHUNK_BYTES = 2**20
_TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


def sha256_of_files(paths: Iterable[Path]) -> str:
    """Return the SHA-256 of the contents of files, one after the other, as 64 hex digits; an `OSError` passes."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def write_whole(path: Path, write: Callable[[BinaryIO], object], *, durable: bool = True) -> None:
    """Write beside `path`, then rename, so that a reader sees one whole file at any time.

    Args:
        path: the file; its folder must exist.
        write: writes the content into the open file that it is given.
        durable: whether the bytes and the name are forced to disk, so that they survive a loss of power.

    Raises:
        OSError: the disk refuses; an existing file at `path` stays whole and no temporary file is left.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        put_in_place(temporary, path, durable=durable)
    finally:
        with contextlib.suppress(OSError):  # an error above matters more, and `sweep_temporary` removes leftovers
            temporary.unlink(missing_ok=True)


def put_in_place(written: Path, path: Path, *, durable: bool = True) -> None:
    """Rename a file of the same folder to `path` and replace an existing one.

    Raises:
        OSError: the disk refuses.
    """
    os.replace(written, path)
    if durable and os.name == "posix":  # a rename reaches the disk with its folder; Windows cannot open folders
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems do not support it
            raise
    finally:
        os.close(descriptor)


def sweep_temporary(folder: Path) -> None:
    """Remove the temporary files of interrupted writes from a folder; call it when no write is in progress.

    Raises:
        OSError: the folder cannot be listed or a leftover cannot be removed.
    """
    for entry in folder.iterdir() if folder.is_dir() else ():
        if _TEMPORARY_NAME.fullmatch(entry.name) and entry.is_file():
            entry.unlink(missing_ok=True)
