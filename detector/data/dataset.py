"""The contract of a detection data set: named splits, each read as `CocoAnnotations`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from detector.config.registry import PartConfig
from detector.data.coco import CocoAnnotations
from detector.data.file_reader import FileReader
from detector.data.path_contents import shown_path
from detector.errors import DatasetError


class Dataset(FileReader, ABC):
    """A detection data set, constructed from its config alone.

    A data set that reads a file of another program overrides `claims`, and its config has the key `file`.
    """

    @abstractmethod
    def split_names(self) -> tuple[str, ...]:
        """Return the names of the splits, in the order in which they are listed.

        Raises:
            DatasetError: the file that describes the data set cannot be read.
        """

    @abstractmethod
    def split(self, name: str) -> CocoAnnotations:
        """Return the annotations of a split.

        Raises:
            DatasetError: the data set has no such split, or its annotations are refused.
        """

    def notes(self) -> Sequence[str]:
        """Return what the reader assumed about the data set, in sentences for people; none by default."""
        return ()


@dataclass(frozen=True)
class DatasetConfig(PartConfig[Dataset]):
    """The kind `data set`: base class of the settings of every detection data set; COCO is the default format.

    Attributes:
        unlabelled: a folder, glob or list file of images without annotations, which `train.teacher` labels in training;
            None for none.
    """

    folders = ("data",)
    fallback_name = "coco"

    unlabelled: Path | None = field(default=None, kw_only=True)


def required_file(file: Path | None, what: str, key: str = "file") -> Path:
    """Return the file or folder that a data set is read from, which `data.KEY` gives.

    Raises:
        DatasetError: none is configured, or it is not there any longer.
    """
    if file is None:
        raise DatasetError(f"data.{key}: expected {what}, got none; give data.{key}")
    require_place(file, key)
    return file


def require_place(path: Path, key: str) -> None:
    """Reject the path of a configuration or saved run that does not exist (any longer).

    Raises:
        DatasetError: it does not exist; the message names the key `data.KEY` that gives its new place.
    """
    try:
        is_there = path.exists()
    except (OSError, ValueError):  # reading it reports the reason
        return
    if not is_there:
        raise DatasetError(f"data.{key}: there is no {shown_path(path)}; if it was moved, give data.{key}=NEW_PLACE")
