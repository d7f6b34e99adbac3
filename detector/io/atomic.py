"""Saves of a run that are whole under their name or not there at all, and what is said where the disk refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from detector.errors import CheckpointError, SaveError
from detector.io import files


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes beside `path`, forces the bytes to disk, and only then takes the name: a crash leaves one whole file.

    Raises:
        SaveError: the disk refuses; what was there before is whole.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(path, write)
    except (OSError, RuntimeError) as error:
        # torch.save reports a full disk as a RuntimeError, with the true cause as its context.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise SaveError(f"{path} is not saved ({cause.strerror}), an old one is whole: check the disk") from error


def sweep_temporary(folder: Path) -> None:
    """Removes what interrupted saves left in a folder; to be called before a run's first save, when none is under way.

    Raises:
        CheckpointError: the folder cannot be listed or a leftover cannot be removed.
    """
    try:
        files.sweep_temporary(folder)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be cleared of interrupted saves ({error})") from error
