"""Cache of decoded images in memory and on disk, so that each file is decoded once instead of once per use.

A decoded image takes height x width x channels bytes: 0.9 MB for 640 x 480 in colour, 107 GB for the 118,287 training
images of COCO 2017. Every worker has its own cache in memory; the files on disk are shared by all workers and by later
runs, and the operating system keeps them in free memory.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np

from detector.data.coco import CocoAnnotations
from detector.errors import ConfigError
from detector.io.files import write_whole
from detector.io.tar_members import file_holding
from detector.media.images import load_image
from detector.structures.letterbox import Image

# A cached file is this header, then the pixels row by row. Size and modification time are those of the image file.
_HEADER = struct.Struct("<8sQQIII28x")  # magic, size in bytes, time in nanoseconds, height, width, channels
_MAGIC = b"DETIMG1\n"


class ImageCache:
    """Reader of images that uses decoded ones from memory or from a folder if they still match their file."""

    def __init__(self, channels: int, memory_mb: int, folder: Path | None) -> None:
        """Prepare a cache of at most `memory_mb` megabytes of memory in each process, and of a folder or None."""
        self._channels, self._memory_mb, self._folder = channels, memory_mb, folder
        self._empty()

    def _empty(self) -> None:
        self._kept: dict[tuple[Path, int], Image] = {}
        self._room_bytes = self._memory_mb * 2**20

    def __getstate__(self) -> tuple[int, int, Path | None]:
        """Return the settings without the images, for a spawned worker."""
        return self._channels, self._memory_mb, self._folder

    def __setstate__(self, state: tuple[int, int, Path | None]) -> None:
        self._channels, self._memory_mb, self._folder = state
        self._empty()

    def read(self, path: Path, reduction: int = 1, warned: list[str] | None = None) -> Image:
        """Return the image that `read_image(path, channels, reduction)` gives; it may be cached, so do not change it.

        Warnings about the file are added to `warned` when it is decoded, not when it comes from the cache.

        Raises:
            MediaError: the image cannot be read.
        """
        key = (path, reduction)
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        image = self._from_folder(path, reduction, [] if warned is None else warned)
        if image.nbytes <= self._room_bytes:
            self._kept[key] = image
            self._room_bytes -= image.nbytes
        return image

    def _decode(self, path: Path, reduction: int, warned: list[str]) -> Image:
        loaded = load_image(path, self._channels, reduction=reduction)
        warned.extend(loaded.warnings)
        return loaded.pixels

    def _from_folder(self, path: Path, reduction: int, warned: list[str]) -> Image:
        if self._folder is None:
            return self._decode(path, reduction, warned)
        try:
            status = file_holding(path).stat()
        except (OSError, ValueError):  # the reader reports the error
            return self._decode(path, reduction, warned)
        stamp = (_MAGIC, status.st_size, status.st_mtime_ns)
        name = hashlib.sha256(f"{os.path.abspath(path)}\n{self._channels} {reduction}".encode("utf-8", "replace"))
        own = self._folder / name.hexdigest()[:2] / f"{name.hexdigest()[2:32]}.pixels"
        image = _load(own, stamp, self._channels)
        if image is None:
            image = self._decode(path, reduction, warned)
            try:
                _save(own, stamp, image)
            except OSError as error:
                warnings.warn(
                    f"loader.disk_cache: {self._folder} cannot hold more images ({error.strerror}); they are decoded "
                    f"again each time",
                    RuntimeWarning,
                    stacklevel=2,
                )
                self._folder = None
        return image


def _load(path: Path, stamp: tuple[bytes, int, int], channels: int) -> Image | None:
    """Return the pixels of a cached file; None where it is missing, incomplete or belongs to another image file."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if len(content) < _HEADER.size:
        return None
    *written, height, width, planes = _HEADER.unpack_from(content)
    if tuple(written) != stamp or planes != channels or len(content) != _HEADER.size + height * width * planes:
        return None
    return np.frombuffer(content, np.uint8, offset=_HEADER.size).reshape(height, width, planes)


def _save(path: Path, stamp: tuple[bytes, int, int], image: Image) -> None:
    """Write a cached file atomically, so that no other process reads a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(file: BinaryIO) -> None:
        file.write(_HEADER.pack(*stamp, *image.shape))
        file.write(image.data)

    write_whole(path, write, durable=False)


def prepare_cache_folder(folder: Path, annotations: Path, images: Path | None, key: str = "loader.disk_cache") -> None:
    """Create a folder of derived files.

    Args:
        folder: the folder.
        annotations: the annotation file of the data set.
        images: the folder of its images, or None.
        key: the key that names the folder, for messages.

    Raises:
        ConfigError: the folder lies inside the data set, which is never written to, or cannot be created.
    """
    labels = annotations.parent
    is_inside = images is not None and folder.resolve().is_relative_to(images.resolve())
    if is_inside or folder.resolve() == labels.resolve():
        raise ConfigError(
            f"{key}: {folder} lies inside the data set ({images if is_inside else labels}), which is "
            f"never written to; name a folder elsewhere"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{key}: {folder} cannot be created, {error.strerror}; name another folder") from error


def stated_cost(annotations: CocoAnnotations, channels: int, folder: Path) -> str:
    """Return a line about the disk space that the decoded images of a data set take."""
    num_bytes = int(annotations.image_hw.prod(axis=1).sum()) * channels
    free_bytes = shutil.disk_usage(folder).free
    return (
        f"loader.disk_cache: up to {num_bytes / 1e9:.1f} GB of decoded images in {folder} ({free_bytes / 1e9:.1f} GB "
        f"are free); remove the folder when it is no longer needed"
    )
