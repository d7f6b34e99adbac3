"""Worker processes of the loader: whether they can start, and how their batches travel."""

from __future__ import annotations

import multiprocessing
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from detector.errors import ConfigError
from detector.structures.types import Batch, Targets

SHARED_MEMORY = Path("/dev/shm")  # where torch puts tensors that processes share, on Linux
_MAIN_GUARD = 'if __name__ == "__main__":'


def start_method() -> str:
    """Return how this process starts others: fork, spawn or forkserver; the choice stays open."""
    return multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]


def require_main_guard(num_workers: int) -> None:
    """Reject a script that each worker would run again from its first line.

    A process that is started by spawn or forkserver imports the script of its parent before it does its work. Without a
    guard the script trains again there. Scripts without `__name__` are refused before anything is written, and others
    in the worker itself.

    Args:
        num_workers: worker processes that are about to start.

    Raises:
        ConfigError: the script has no guard around the training.
    """
    is_starting = getattr(multiprocessing.current_process(), "_inheriting", False)  # while the script is imported
    script = getattr(sys.modules["__main__"], "__file__", None)
    if not is_starting and (not num_workers or script is None or start_method() == "fork"):
        return
    if is_starting or not _names_itself(Path(script or "")):
        raise ConfigError(
            f"{script or 'this script'}: each worker of the loader runs the script again, because processes start by "
            f"{start_method()} here; put the calls below a line {_MAIN_GUARD}, or use loader.workers=0"
        )


def guard_hint() -> str:
    """Return the end of a message about a lost worker: the missing guard, where processes import the script."""
    if start_method() == "fork":
        return ""
    return f"; processes start by {start_method()} here, so the calls of a script must be below {_MAIN_GUARD}"


def _names_itself(script: Path) -> bool:
    """Return true if a script mentions `__name__`, as a guard does, or cannot be read."""
    try:
        return "__name__" in script.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return True


def fits_shared_memory(num_bytes: int, folder: Path | None = None) -> bool:
    """Return true if the file system of shared memory has room for so many bytes, or there is none to run out of."""
    folder = folder or SHARED_MEMORY
    return not folder.is_dir() or num_bytes < shutil.disk_usage(folder).free


class Parcel(NamedTuple):
    """Batch as arrays, which a worker sends through a pipe, by value, instead of shared memory.

    Attributes:
        images: uint8 (B, H, W, C).
        targets: the tensors of `Targets` as arrays: boxes, labels, image indices, ignore flags.
        batch: the rest: ids of the images, sources that could not be read, and warnings.
    """

    images: npt.NDArray[np.uint8]
    targets: tuple[npt.NDArray[np.generic], ...]
    batch: tuple[tuple[int, ...], tuple[str, ...], tuple[str, ...]]

    @classmethod
    def of(cls, batch: Batch) -> Parcel:
        """Return a batch of `Batch.of` without copying it."""
        targets = (batch.targets.canvas_xyxy, batch.targets.labels, batch.targets.image_index, batch.targets.ignore)
        rest = (batch.image_ids, batch.skipped, batch.warnings)
        return cls(batch.images.permute(0, 2, 3, 1).numpy(), tuple(tensor.numpy() for tensor in targets), rest)

    def opened(self) -> Batch:
        """Return the batch, with the same bits in the same order in memory."""
        boxes, labels, image_index, ignore = (torch.from_numpy(array) for array in self.targets)
        targets = Targets(boxes, labels, image_index, ignore, len(self.images))
        return Batch(torch.from_numpy(self.images).permute(0, 3, 1, 2), targets, *self.batch)


def lost_worker_reason(text: str) -> str | None:
    """Return why torch lost a worker, and what helps; None where its text names no worker."""
    if "shared memory" in text or "Bus error" in text:
        free_mb = shutil.disk_usage(SHARED_MEMORY).free // 10**6 if SHARED_MEMORY.is_dir() else 0
        return (
            f"ran out of shared memory ({SHARED_MEMORY} has {free_mb} MB free); give the container more (docker run "
            "--shm-size=2g), or use fewer loader.workers or a smaller loader.batch_size"
        )
    found = re.search(r"worker \(pid\(?s?\)? ?([\d, ]+)\) (?:is killed by signal: (.+?)\. |exited unexpectedly)", text)
    if found is None:
        return None
    if found[2] is None and (hint := guard_hint()):
        return f"process {found[1]}, ended with a message of its own, above; use loader.workers=0 to see where{hint}"
    how = f"was killed ({found[2]})" if found[2] else "exited without a message"
    return (
        f"process {found[1]}, {how}, most often because it ran out of memory; use fewer loader.workers, a smaller "
        "loader.cache_mb or a larger /dev/shm, or loader.workers=0 to see the cause, and resume the run"
    )
