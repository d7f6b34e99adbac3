"""Image folders: the name of a folder is the class of its images."""

from __future__ import annotations

import itertools
import operator
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detector.config.registry import register
from detector.data.classification_split import ImageSet, ImageSetConfig, LabelledImages
from detector.data.file_reader import FoundData
from detector.data.path_contents import PathContents
from detector.data.problems import MAX_SKIPPED_SHARE, Findings
from detector.errors import DatasetError, MediaError
from detector.io.folders import files_below
from detector.media.images import IMAGE_SUFFIXES, load_image
from detector.structures.canvas import Canvas
from detector.structures.letterbox import Image, Letterbox

_SPLITS = ("train", "val", "test")
_NUM_READERS = 2  # threads; decoding releases the interpreter lock
_READ_AT_ONCE = 256  # images decoded at a time


@register("folders")
class FolderSet(ImageSet):
    """Folders `root/train/<class>/*.jpg`, `root/val/...`; or `root/<class>/*.jpg`, with a share kept for validation.

    `train`, `val` and `test` are splits where they hold folders, and classes where they hold images only. Without
    `train` they are splits only if there is no other folder beside them.

    Images are decoded when a split is read, fitted to the canvas, and kept in memory.
    """

    @dataclass(frozen=True)
    class Config(ImageSetConfig):
        """Path of the folders, and how they are read.

        Attributes:
            root: the folder that holds `train`, `val` and optionally `test`, or the classes themselves.
            val_share: share of each class kept for validation where `root` holds the classes themselves.
            seed: seed of the choice of validation images.
            memory_mb: megabytes that the images of a split may take.
        """

        root: Path = Path("data/images")
        val_share: float = 0.2
        seed: int = 0
        memory_mb: int = 4096

        def __post_init__(self) -> None:
            if not 0 <= self.val_share < 1:
                raise ValueError(f"folders: expected 0 <= val_share < 1, got {self.val_share}")
            if self.seed < 0 or self.memory_mb < 1:
                raise ValueError(
                    f"folders: expected seed >= 0 and memory_mb >= 1, got {self.seed} and {self.memory_mb}"
                )

    path_key = "root"

    @classmethod
    def recognise(cls, contents: PathContents) -> FoundData | None:
        """Return the folders of classes that hold the images of a folder; a guess where other files lie beside them."""
        names = [name.split("/") for name in contents.images]
        has_splits = contents.is_folder and _has_split_folders(contents.path)
        classes = {parts[has_splits] for parts in names if len(parts) > 1 + has_splits}
        words = (lambda parts: parts[0]) if has_splits else (lambda parts: "")
        splits = Counter(words(parts) for parts in names if parts[0] in _SPLITS or not has_splits)
        if len(classes) < 2 or not contents.is_folder:
            return None
        others = len(contents.names) - len(contents.images)
        is_plain = others <= len(classes) and not contents.ending(".xml", ".json", ".yaml", ".csv")
        found = {name: splits[name] for name in ("", *_SPLITS) if splits[name]}
        label = "folders of classes"
        return FoundData(label, {"root": str(contents.path)}, found, len(classes), is_certain=is_plain)

    def __init__(self, config: Config) -> None:
        self.config = config
        self._has_split_folders = _has_split_folders(config.root)

    def split_names(self) -> tuple[str, ...]:
        """Return the splits that have a folder, or into which the classes are divided."""
        if self._has_split_folders:
            return tuple(name for name in _SPLITS if (self.config.root / name).is_dir())
        return ("train", "val") if self.config.val_share else ("train",)

    def split(self, name: str, canvas: Canvas) -> LabelledImages:
        """Return the images of a split; images that cannot be read are skipped and counted.

        Raises:
            DatasetError: there is no such split, it has no class or no image, too many images cannot be read, or they
                do not fit into `memory_mb`.
        """
        if name not in self.split_names():
            raise DatasetError(
                f"{self.config.root}: expected one of the splits {', '.join(self.split_names())}, got {name!r}; add a "
                f"folder {name}"
            )
        root = self.config.root / name if self._has_split_folders else self.config.root
        findings = Findings(str(root))
        class_names, files = _listed(root, findings)
        if not self._has_split_folders:
            by_class = itertools.groupby(files, key=operator.itemgetter(1))
            files = [file for label, own in by_class for file in self._chosen(list(own), label, name)]
        if not files:
            raise DatasetError(f"{root}: expected images in folders named by their classes, got none; check data.root")
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
        """Return the images of a class that belong to a split, in order; a single image belongs to training."""
        order = np.random.default_rng((self.config.seed, label)).permutation(len(own))
        num_val = max(1, round(self.config.val_share * len(own))) if self.config.val_share and len(own) > 1 else 0
        is_val = order < num_val
        return [file for file, in_val in zip(own, is_val.tolist(), strict=True) if in_val == (name == "val")]


def _has_split_folders(root: Path) -> bool:
    """Tell whether a folder holds the folders of splits, not those of classes."""
    try:
        folders = {entry.name: entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
        splits = [folders[name] for name in _SPLITS if name in folders]
        are_alone = "train" in folders or len(splits) == len(folders)
        return are_alone and any(entry.is_dir() for split in splits for entry in split.iterdir())
    except OSError:
        return False  # reading a split reports the error


def _listed(root: Path, findings: Findings) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    """Return class names, and each image with its label, sorted by name; hidden folders are left out.

    Raises:
        DatasetError: the folder cannot be listed.
    """
    try:
        entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
        folders = [entry for entry in entries if entry.is_dir()]
        files = list[tuple[Path, int]]()
        for label, folder in enumerate(folders):
            own = [path for path in files_below(folder) if _is_image(path)]
            if not own:
                findings.accept("class without images", folder.name)
            files += [(path, label) for path in own]
    except OSError as error:
        raise DatasetError(f"{root}: the folder cannot be read, {error.strerror}; check data.root") from error
    for entry in entries:
        if _is_image(entry):
            findings.skip("image outside the folders of the classes", entry.name)
    # The name of a folder may not be valid UTF-8, which files and terminals need for a class name.
    return tuple(folder.name.encode("utf-8", "backslashreplace").decode() for folder in folders), files


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def _read(files: list[tuple[Path, int]], canvas: Canvas, findings: Findings) -> Iterator[Image | None]:
    """Yield each image fitted to the canvas, or None where it cannot be read."""

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
