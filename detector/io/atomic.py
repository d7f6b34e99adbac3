"""Atomic saves of a run, with the errors that a user gets when the disk refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from detector.errors import CheckpointError, SaveError
from detector.io import files


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write beside `path`, force the bytes to disk, then rename, so that a crash leaves one whole file.

    Raises:
        SaveError: the disk refuses; an existing file at `path` stays whole.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(path, write)
    except (OSError, RuntimeError) as error:
        # torch.save reports a full disk as a RuntimeError, with the true cause as its context.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        if isinstance(cause, FileExistsError | NotADirectoryError | IsADirectoryError):
            fault = "a folder has this name" if isinstance(cause, IsADirectoryError) else "its folder is a file"
            raise SaveError(f"{path} is not saved: {fault}; choose another path") from error
        raise SaveError(f"{path} is not saved ({cause.strerror}), an old one is whole: check the disk") from error


def sweep_temporary(folder: Path) -> None:
    """Remove the leftovers of interrupted saves from a folder; call it before the first save of a run.

    Raises:
        CheckpointError: the folder cannot be listed or a leftover cannot be removed.
    """
    try:
        files.sweep_temporary(folder)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be cleared of interrupted saves ({error})") from error
