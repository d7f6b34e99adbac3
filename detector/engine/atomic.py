"""Files that are whole under their name or not there at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from detector.errors import CheckpointError

_TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes beside `path`, forces the bytes to disk, and only then takes the name: a crash leaves one whole file.

    Raises:
        CheckpointError: the disk refuses; what was there before is whole.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if os.name == "posix":  # Windows cannot open a folder
            _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        # torch.save reports a full disk as a RuntimeError, with the true cause as its context.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise CheckpointError(f"{path} is not saved ({cause.strerror}), an old one is whole: check the disk") from error
    finally:
        with contextlib.suppress(OSError):  # the error above matters more, and `sweep_temporary` comes by
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Forces a rename to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems have no such call
            raise
    finally:
        os.close(descriptor)


def sweep_temporary(folder: Path) -> None:
    """Removes what interrupted saves left in a folder; to be called before a run's first save, when none is under way.

    Raises:
        CheckpointError: the folder cannot be listed or a leftover cannot be removed.
    """
    try:
        for entry in folder.iterdir() if folder.is_dir() else ():
            if _TEMPORARY_NAME.fullmatch(entry.name) and entry.is_file():
                entry.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be cleared of interrupted saves ({error})") from error
