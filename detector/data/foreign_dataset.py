"""The contract of data sets in annotation formats of other programs, which are read without a conversion."""

from __future__ import annotations

import functools
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from detector.data.coco import CocoAnnotations
from detector.data.coco_extras import Extras
from detector.data.dataset import Dataset, DatasetConfig, required_file
from detector.data.split_words import SPLITS
from detector.errors import DatasetError
from detector.io.folders import files_below

Splits = Mapping[str, tuple[CocoAnnotations, Extras]]


@dataclass(frozen=True)
class ForeignConfig(DatasetConfig):
    """Path of a data set of another program.

    Attributes:
        root: the annotation file, or the folder of the data set.
        images: the folder of the images; None for the usual places below or beside `root`.
    """

    root: Path | None = None
    images: Path | None = None


@dataclass(frozen=True)
class DifficultConfig(ForeignConfig):
    """Path of a data set of a format that marks objects as difficult.

    Attributes:
        difficult: treatment of objects marked as difficult: ignore (in training and in evaluation), keep or drop.
    """

    difficult: Literal["ignore", "keep", "drop"] = "ignore"


class ForeignDataset(Dataset):
    """A data set in the format of another program: the whole set is read once, with classes numbered together.

    A format is one file in `detector/data/` with a registered subclass:

        @register("labelme")
        class LabelmeFiles(ForeignDataset):
            '''A JSON file of labelme beside each image.'''

            @dataclass(frozen=True)
            class Config(ForeignConfig):
                '''Paths; the format has no settings of its own.'''

            @classmethod
            def recognise(cls, contents: PathContents) -> FoundData | None: ...

            def read(self) -> tuple[Splits, Sequence[str]]: ...

    `recognise` (see `FileReader`) returns `FoundData("labelme", {"root": str(contents.path)}, {"train": 144}, 4)`.
    """

    path_key = "root"

    def __init__(self, config: ForeignConfig) -> None:
        self.config = config

    @property
    def root(self) -> Path:
        """The annotation file or folder.

        Raises:
            DatasetError: none is configured.
        """
        return required_file(self.config.root, "a file or folder", "root")

    @abstractmethod
    def read(self) -> tuple[Splits, Sequence[str]]:
        """Return the splits `train`, `val` and `test`, as far as there are any, and notes on what was assumed.

        `detector.data.annotation_builder.assemble` builds the splits of one data set, so that their classes agree.

        Raises:
            DatasetError: the data set is refused; the message names file, place and what to do.
        """

    @functools.cached_property
    def _whole(self) -> tuple[Splits, Sequence[str]]:
        beside = self.root.parent if self.root.is_file() else None  # holds the images of a file, unless they are given
        folders = [path for path in (self.root, self.config.images or beside) if path is not None]
        return _read_once(type(self), self.config, tuple(map(_state, folders)))

    def notes(self) -> Sequence[str]:
        """Return what the reader assumed or left out, in sentences."""
        return self._whole[1]

    def split_names(self) -> tuple[str, ...]:
        """Return the names of the splits, in the order train, val, test."""
        return tuple(name for name in SPLITS if name in self._whole[0])

    def split(self, name: str) -> CocoAnnotations:
        """Return the annotations of a split.

        Raises:
            DatasetError: the data set has no such split, or is refused.
        """
        return self.portion(name)[0]

    def portion(self, name: str) -> tuple[CocoAnnotations, Extras]:
        """Return the annotations of a split and their other content, for a conversion.

        Raises:
            DatasetError: as `split`.
        """
        splits = self._whole[0]
        if name not in splits:
            raise DatasetError(f"{self.root}: expected one of the splits {', '.join(splits)}, got {name!r}")
        return splits[name]


@functools.lru_cache(maxsize=2)  # training builds the data set for each split
def _read_once(
    part: type[ForeignDataset], config: ForeignConfig, states: tuple[int, ...]
) -> tuple[Splits, Sequence[str]]:
    return part(config).read()


def _state(path: Path) -> int:
    """Return a number that changes with the names, sizes and times of the files of a data set."""
    files = files_below(path) if path.is_dir() else [path]
    found = [(str(file), stat.st_size, stat.st_mtime_ns) for file in files if (stat := _stat(file))]
    return hash(tuple(found))


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, ValueError):
        return None
