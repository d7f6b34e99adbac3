"""The contract of a detection data set: named splits, each read as `CocoAnnotations`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from detector.config.registry import FileReader, PartConfig
from detector.data.coco import CocoAnnotations
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


@dataclass(frozen=True)
class DatasetConfig(PartConfig[Dataset]):
    """The kind `data set`: base class of the settings of every detection data set; COCO is the default format."""

    folders = ("data",)
    fallback_name = "coco"


def required_file(file: Path | None, what: str) -> Path:
    """Return the file that describes a data set.

    Raises:
        DatasetError: none is configured.
    """
    if file is None:
        raise DatasetError(f"data.file: expected {what}, got none; give data.file")
    return file
