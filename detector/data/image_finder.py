"""Finder of image files by the names that annotation programs write, which are often those of another machine."""

from __future__ import annotations

import functools
import os
from pathlib import Path, PurePosixPath

from detector.io.folders import files_below
from detector.media.images import IMAGE_SUFFIXES

_USUAL_FOLDERS = ("images", "image", "image_2", "imgs", "img", "jpegimages", "data")


class ImageFinder:
    """Images below a folder and, where none of that name is there, in the usual folders beside it.

    Args:
        root: the folder of the data set.
        beside: whether to look in folders such as `images` beside it too.
    """

    def __init__(self, root: Path, *, beside: bool = True) -> None:
        self._root, self._beside = root, beside

    def find(self, written: str, near: Path) -> Path | None:
        """Return the image that a name stands for; None where there is none, or several that fit equally well.

        Args:
            written: a path of this or another machine, with any slashes, with or without its suffix.
            near: the folder of the annotation file: names may be relative to it, and of equal names the nearest counts.
        """
        name = written.replace("\\", "/").removeprefix("file://")
        parts = [part for part in PurePosixPath(name).parts if part not in ("/", ".", "..") and not part.endswith(":")]
        if not parts:
            return None
        direct = [near / name] if self._is_inside(near / name) else []
        for path in (*direct, self._root / Path(*parts)):
            if path.suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(path):
                return path
        return self._best(self._own, parts, near) or (
            self._best(self._neighbours, parts, near) if self._beside else None
        )

    def _is_inside(self, path: Path) -> bool:
        """Tell whether a path is below the root or the folder that holds it."""
        return Path(os.path.normpath(path)).is_relative_to(os.path.normpath(self._root.parent))

    @functools.cached_property
    def _own(self) -> dict[str, list[Path]]:
        return _by_name(files_below(self._root))

    @functools.cached_property
    def _neighbours(self) -> dict[str, list[Path]]:
        try:
            folders = sorted(self._root.parent.iterdir())
        except OSError:
            return {}
        usual = [path for path in folders if path.name.lower() in _USUAL_FOLDERS and path != self._root]
        return _by_name([file for folder in usual if folder.is_dir() for file in files_below(folder)])

    def _best(self, known: dict[str, list[Path]], parts: list[str], near: Path) -> Path | None:
        """Return the file that shares the most folders with a name, or of equal ones with the annotation file."""
        found = known.get(parts[-1].lower()) or known.get(_stem(parts[-1]), [])
        ranked = sorted(((_num_shared(path.parts, parts), _num_common(path.parent, near)), path) for path in found)
        if not ranked or (len(ranked) > 1 and ranked[-1][0] == ranked[-2][0]):
            return None
        return ranked[-1][1]

    def stems(self) -> set[str]:
        """Return the names of all images without their suffixes, in lower case."""
        known = (self._own, self._neighbours) if self._beside else (self._own,)
        return {name[:-1] for images in known for name in images if name.endswith("/")}

    def others(self, used: set[Path]) -> list[Path]:
        """Return the images below the root that are not among those used, sorted."""
        paths = {path for found in self._own.values() for path in found}
        return sorted(paths - used)


def _by_name(files: list[Path]) -> dict[str, list[Path]]:
    """Return image files by their name and by their stem, in lower case."""
    known: dict[str, list[Path]] = {}
    for path in files:
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            known.setdefault(path.name.lower(), []).append(path)
            known.setdefault(_stem(path.name), []).append(path)
    return known


def _stem(name: str) -> str:
    """Return a name in lower case without the suffix of an image, marked as a stem."""
    suffix = PurePosixPath(name).suffix
    return f"{name[: -len(suffix)] if suffix.lower() in IMAGE_SUFFIXES else name}/".lower()


def _num_shared(parts: tuple[str, ...], written: list[str]) -> int:
    """Return how many folders above the file agree, counted from the file."""
    number = 0
    for own, other in zip(reversed(parts[:-1]), reversed(written[:-1]), strict=False):
        if own.lower() != other.lower():
            break
        number += 1
    return number


def _num_common(folder: Path, near: Path) -> int:
    """Return how many folders two paths have in common, counted from the top."""
    pairs = zip(folder.absolute().parts, near.absolute().parts, strict=False)
    return next((n for n, (own, other) in enumerate(pairs) if own != other), min(len(folder.parts), len(near.parts)))
