"""What prediction can be pointed at: an image, a folder, a glob, a list file, or pixels already in memory."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detector.errors import MediaError
from detector.geometry import Image
from detector.media.images import IMAGE_SUFFIXES, LoadedImage, load_image


@dataclass(frozen=True)
class ImageSource:
    """One image to look at.

    Attributes:
        name: what to call it in a report: its path, or a number where it has none.
        path: the file it is read from, or None where `pixels` holds it.
        image_id: its id in an annotation file, or None.
        pixels: the image itself, uint8 (H, W, C), RGB when C is 3.
        listed_hw: height and width that the annotation file gives it, or None.
    """

    name: str
    path: Path | None = None
    image_id: int | None = None
    pixels: Image | None = None
    listed_hw: tuple[int, int] | None = None

    def load(self, channels: int) -> LoadedImage:
        """The image with `channels` planes, and what is odd about it.

        Raises:
            MediaError: the file cannot be read or has another size than listed, or the pixels have another number of
                channels.
        """
        if self.pixels is None:
            if self.path is None:
                raise MediaError(f"{self.name}: no path and no pixels to read")
            return load_image(self.path, channels, self.listed_hw)
        if self.pixels.shape[2] != channels:
            raise MediaError(f"{self.name}: an image of {channels} channels is wanted, found {self.pixels.shape[2]}")
        return LoadedImage(self.pixels, (self.pixels.shape[0], self.pixels.shape[1]))


def find_images(source: str | Path) -> list[ImageSource]:
    """The images behind a path: a file, the images of a folder (by name), a glob pattern, or a `.txt` list of paths.

    A relative path in a list file starts from the folder of that file.

    Raises:
        MediaError: nothing is there.
    """
    text, path = str(source), Path(source)
    if path.is_dir():
        found = _images_of(path.rglob("*"))
        wanted = "an image"
    elif path.is_file() or path.is_symlink():
        found = _listed(path) if path.suffix.lower() == ".txt" else [path]
        wanted = "a line with a path"
    elif glob.has_magic(text):
        found = _images_of(Path(p) for p in glob.iglob(text, recursive=True))
        wanted = "a matching image"
    else:
        raise MediaError(f"{text}: no such image, folder, glob or list file; check the path")
    if not found:
        raise MediaError(f"{text}: {wanted} is wanted, found none; check the path")
    return [ImageSource(str(p), p) for p in found]


def _images_of(paths: Iterable[Path]) -> list[Path]:
    return sorted(p for p in paths if p.suffix.lower() in IMAGE_SUFFIXES and not p.is_dir())


def _listed(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MediaError(f"{path}: a list of image paths is wanted, it cannot be read as text: {error}") from error
    return [path.parent / line.strip() for line in lines if line.strip()]


def as_sources(given: Any) -> tuple[list[ImageSource], bool]:
    """The images behind anything the Python interface takes, and whether it was a single image.

    Args:
        given: a path (image, folder, glob, list file), an array uint8 (H, W, C) or (H, W) in RGB order, a PIL image, a
            tensor uint8 (C, H, W), or a sequence of these, where a missing file fails only when it is read.

    Raises:
        MediaError: something else, or nothing behind a path.
    """
    if isinstance(given, (str, Path)):
        found = find_images(given)
        return found, len(found) == 1 and Path(given).is_file() and Path(given).suffix.lower() != ".txt"
    if isinstance(given, Iterable) and not hasattr(given, "shape") and not hasattr(given, "convert"):
        items: Sequence[Any] = list(given)
        return [s for i, item in enumerate(items) for s in _one(item, str(i))], False
    return _one(given, "0"), True


def _one(given: Any, name: str) -> list[ImageSource]:
    if isinstance(given, (str, Path)):
        path = Path(given)
        if path.exists() or glob.has_magic(str(given)):
            return find_images(given)
        return [ImageSource(str(path), path)]  # fails when it is read, without the others
    return [ImageSource(name, pixels=_pixels(given, name))]


def _pixels(given: Any, name: str) -> Image:
    if hasattr(given, "convert"):  # a PIL image, which need not be installed
        given = np.asarray(given if given.mode in ("RGB", "L") else given.convert("RGB"))
    is_tensor = hasattr(given, "detach")
    if not isinstance(given, np.ndarray) and not is_tensor:
        raise MediaError(f"image {name}: a path, array, PIL image or tensor is wanted, found {type(given).__name__}")
    # Before any conversion: NumPy has no counterpart of some of torch's dtypes.
    dtype, shape = str(given.dtype).removeprefix("torch."), tuple(given.shape)
    if dtype != "uint8" or len(shape) not in (2, 3) or 0 in shape:
        raise MediaError(
            f"image {name}: uint8 pixels of shape (H, W, C) are wanted (a tensor as (C, H, W)), "
            f"found {dtype} {shape}; scale to 0..255 and convert"
        )
    if is_tensor:
        given = given.detach().cpu().numpy()
        given = given.transpose(1, 2, 0) if given.ndim == 3 else given
    return np.ascontiguousarray(given[..., None] if given.ndim == 2 else given)
