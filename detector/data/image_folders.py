"""Image folders: the name of a folder is the class of the images in it."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detector.config.registry import register
from detector.data.classification_split import ImageSet, ImageSetConfig, LabelledImages
from detector.data.problems import MAX_SKIPPED_SHARE, Findings
from detector.errors import DatasetError, MediaError
from detector.media.images import IMAGE_SUFFIXES, load_image
from detector.structures.canvas import Canvas
from detector.structures.letterbox import Image, Letterbox

_SPLITS = ("train", "val", "test")
_NUM_READERS = 2  # threads; decoding releases the interpreter lock
_READ_AT_ONCE = 256  # images decoded ahead of those that are fitted


@register("folders")
class FolderSet(ImageSet):
    """`root/train/<class>/*.jpg`, `root/val/...`; or `root/<class>/*.jpg`, of which a share is kept for validation.

    `train`, `val` and `test` are splits where folders lie in them, and classes where images alone do. Without `train`
    they are splits if no other folder stands beside them.

    Images are decoded when a split is read, fitted to the canvas, and kept in memory.
    """

    @dataclass(frozen=True)
    class Config(ImageSetConfig):
        """Where the folders lie.

        Attributes:
            root: the folder of `train`, `val` and, where there is one, `test`; or of the classes themselves.
            val_share: share of each class kept for validation where `root` holds the classes themselves.
            seed: seed of that choice.
            memory_mb: megabytes that the images of a split may take.
        """

        root: Path = Path("data/images")
        val_share: float = 0.2
        seed: int = 0
        memory_mb: int = 4096

        def __post_init__(self) -> None:
            if not 0 <= self.val_share < 1:
                raise ValueError(f"folders wants val_share within 0 <= val_share < 1, found {self.val_share}")
            if self.seed < 0 or self.memory_mb < 1:
                raise ValueError("folders wants seed >= 0 and memory_mb >= 1")

    def __init__(self, config: Config) -> None:
        self.config = config
        self._has_split_folders = _has_split_folders(config.root)

    def split_names(self) -> tuple[str, ...]:
        """The splits that have a folder, or that the classes are divided into."""
        if self._has_split_folders:
            return tuple(name for name in _SPLITS if (self.config.root / name).is_dir())
        return ("train", "val") if self.config.val_share else ("train",)

    def split(self, name: str, canvas: Canvas) -> LabelledImages:
        """The images of a split; what cannot be read is left out and counted.

        Raises:
            DatasetError: there is no such split, no class or no image in it, too many images cannot be read, or they
                do not fit into `memory_mb`.
        """
        if name not in self.split_names():
            raise DatasetError(
                f"{self.config.root}: the splits {', '.join(self.split_names())} are wanted, found {name!r}; add a "
                f"folder {name}"
            )
        root = self.config.root / name if self._has_split_folders else self.config.root
        findings = Findings(str(root))
        class_names, files = _listed(root, findings)
        if not self._has_split_folders:
            by_class = itertools.groupby(files, key=operator.itemgetter(1))
            files = [file for label, own in by_class for file in self._chosen(list(own), label, name)]
        if not files:
            raise DatasetError(
                f"{root}: images in folders named by their classes are wanted, found none; check data.root"
            )
        shape = (*canvas.canvas_hw, canvas.channels)
        megabytes = len(files) * int(np.prod(shape)) / 1e6
        if megabytes > self.config.memory_mb:
            raise DatasetError(
                f"{root}: {len(files)} images of {canvas.canvas_hw[0]} x {canvas.canvas_hw[1]} px take "
                f"{megabytes:.0f} MB, at most {self.config.memory_mb} are allowed; use a smaller input.size or a "
                "larger data.memory_mb"
            )
        images, kept = np.zeros((len(files), *shape), np.uint8), list[tuple[Path, int]]()
        for (path, label), image in zip(files, _read(files, canvas, findings), strict=True):
            if image is not None:
                images[len(kept)] = image
                kept.append((path, label))
        if len(files) - len(kept) > MAX_SKIPPED_SHARE * len(files):
            raise DatasetError(
                f"{root}: {len(files) - len(kept)} of {len(files)} images cannot be read, at most "
                f"{MAX_SKIPPED_SHARE:.0%} may be skipped ({'; '.join(map(str, findings.problems))}); repair the "
                "data set"
            )
        labels = np.array([label for _, label in kept], np.int64)
        sources = tuple(path.relative_to(root).as_posix() for path, _ in kept)
        origin = str(root) if self._has_split_folders else f"{root}, {name}"
        return LabelledImages(images[: len(kept)], labels, class_names, sources, findings.problems, origin)

    def _chosen(self, own: list[tuple[Path, int]], label: int, name: str) -> list[tuple[Path, int]]:
        """Those of a class that belong to a split, in their order; one image is for training."""
        order = np.random.default_rng((self.config.seed, label)).permutation(len(own))
        num_val = max(1, round(self.config.val_share * len(own))) if self.config.val_share and len(own) > 1 else 0
        is_val = order < num_val
        return [file for file, in_val in zip(own, is_val.tolist(), strict=True) if in_val == (name == "val")]


def _has_split_folders(root: Path) -> bool:
    """Whether a folder holds the folders of splits, and not those of classes."""
    try:
        folders = {entry.name: entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
        splits = [folders[name] for name in _SPLITS if name in folders]
        are_alone = "train" in folders or len(splits) == len(folders)
        return are_alone and any(entry.is_dir() for split in splits for entry in split.iterdir())
    except OSError:
        return False  # reading a split says what is wrong


def _listed(root: Path, findings: Findings) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    """Class names, and each image with its label, by name; a folder of a dot is none of a class.

    Raises:
        DatasetError: the folder cannot be listed.
    """
    try:
        entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
        folders = [entry for entry in entries if entry.is_dir()]
        files = list[tuple[Path, int]]()
        for label, folder in enumerate(folders):
            inside = sorted(folder.rglob("*"))
            own = [path for path in inside if _is_image(path)]
            for link in (path for path in inside if path.is_symlink() and path.is_dir()):
                findings.skip("link to a folder in the folder of a class", link.relative_to(root).as_posix())
            if not own:
                findings.accept("class without images", folder.name)
            files += [(path, label) for path in own]
    except OSError as error:
        raise DatasetError(f"{root}: the folder cannot be read, {error.strerror}; check data.root") from error
    for entry in entries:
        if _is_image(entry):
            findings.skip("image outside the folders of the classes", entry.name)
    # A folder's name may be no UTF-8; that of a class goes into files and onto screens, which want it to be.
    return tuple(folder.name.encode("utf-8", "backslashreplace").decode() for folder in folders), files


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def _read(files: list[tuple[Path, int]], canvas: Canvas, findings: Findings) -> Iterator[Image | None]:
    """Each image fitted to the canvas, or None where it cannot be read."""

    def load(path: Path) -> tuple[Image | None, tuple[str, ...], str]:
        try:
            loaded = load_image(path, canvas.channels)
        except MediaError as error:
            return None, (), str(error)
        letterbox = Letterbox.fit((loaded.pixels.shape[0], loaded.pixels.shape[1]), canvas.canvas_hw, canvas.fit)
        return letterbox.apply(loaded.pixels), loaded.warnings, ""

    with ThreadPoolExecutor(_NUM_READERS) as pool:
        for first in range(0, len(files), _READ_AT_ONCE):
            paths = [path for path, _ in files[first : first + _READ_AT_ONCE]]
            for image, warnings, error in pool.map(load, paths):
                if error:
                    findings.skip("image that cannot be read", error)
                for warning in warnings:
                    findings.accept("odd image", warning)
                yield image
