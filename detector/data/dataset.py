"""The contract of a detection data set: named splits, each read as `CocoAnnotations`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detector.config.registry import PartConfig
from detector.data.coco import CocoAnnotations
from detector.data.file_reader import FileReader
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
    """The kind `data set`: base class of the settings of every detection data set; COCO is the default format."""

    folders = ("data",)
    fallback_name = "coco"


def required_file(file: Path | None, what: str, key: str = "file") -> Path:
    """Return the file or folder that a data set is read from, which `data.KEY` gives.

    Raises:
        DatasetError: none is configured.
    """
    if file is None:
        raise DatasetError(f"data.{key}: expected {what}, got none; give data.{key}")
    return file
