"""Files that are whole under their name or not there at all: written beside it, forced to disk, renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


def write_whole(path: Path, write: Callable[[BinaryIO], object], *, durable: bool = True) -> None:
    """Writes beside `path` and only then takes the name: whoever looks, and whenever, finds one whole file.

    Args:
        path: the file; its folder is there.
        write: puts the content into the file that it is given.
        durable: whether the bytes and the name are forced to disk, so that they outlive a loss of power too.

    Raises:
        OSError: the disk refuses; what was there before is whole, and nothing is left beside it.
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
        with contextlib.suppress(OSError):  # an error above matters more, and `sweep_temporary` comes by
            temporary.unlink(missing_ok=True)


def put_in_place(written: Path, path: Path, *, durable: bool = True) -> None:
    """Gives a file of the same folder the name `path`, in place of a file that has it.

    Raises:
        OSError: the disk refuses.
    """
    os.replace(written, path)
    if durable and os.name == "posix":  # the new name is on the disk only when its folder is; Windows opens no folder
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems have no such call
            raise
    finally:
        os.close(descriptor)


def sweep_temporary(folder: Path) -> None:
    """Removes what interrupted writes left in a folder; to be called when none is under way.

    Raises:
        OSError: the folder cannot be listed or a leftover cannot be removed.
    """
    for entry in folder.iterdir() if folder.is_dir() else ():
        if _TEMPORARY_NAME.fullmatch(entry.name) and entry.is_file():
            entry.unlink(missing_ok=True)
