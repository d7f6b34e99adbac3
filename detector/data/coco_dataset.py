"""Data sets in COCO format: one annotation file and one folder of images for each split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from detector.config.registry import register
from detector.data.coco import CocoAnnotations, read_coco
from detector.data.dataset import Dataset, DatasetConfig
from detector.errors import DatasetError


@dataclass(frozen=True)
class SplitConfig:
    """Paths of one split in COCO format.

    Attributes:
        annotations: the COCO JSON file.
        images: the folder that its file names start from.
    """

    annotations: Path
    images: Path


@register("coco")
class CocoDataset(Dataset):
    """Splits in COCO format, each in a place of its own."""

    @dataclass(frozen=True)
    class Config(DatasetConfig):
        """Paths of the splits.

        Attributes:
            train: the split that training learns from.
            val: the split that `evaluate` measures on, and training while it runs.
            test: a split kept for the final evaluation.
            ignore_unknown: count and skip annotations of categories that the file does not list, instead of refusing.
            allow_outside: whether file names of images may lead out of the folder of images.
        """

        train: SplitConfig | None = None
        val: SplitConfig | None = None
        test: SplitConfig | None = None
        ignore_unknown: bool = False
        allow_outside: bool = False

    def __init__(self, config: Config) -> None:
        self.config = config

    def _splits(self) -> dict[str, SplitConfig]:
        """Return the splits that are configured, by name."""
        splits = {"train": self.config.train, "val": self.config.val, "test": self.config.test}
        return {name: split for name, split in splits.items() if split is not None}

    def split_names(self) -> tuple[str, ...]:
        """Return the names of the splits that are configured."""
        return tuple(self._splits())

    def split(self, name: str) -> CocoAnnotations:
        """Return the annotations of a split.

        Raises:
            DatasetError: the split is not configured, or its file is refused.
        """
        split = self._splits().get(name)
        if split is None:
            raise DatasetError(
                f"the data set has no split {name!r}; give data.{name}.annotations and data.{name}.images"
            )
        return read_coco(
            split.annotations,
            split.images,
            ignore_unknown=self.config.ignore_unknown,
            allow_outside=self.config.allow_outside,
        )
