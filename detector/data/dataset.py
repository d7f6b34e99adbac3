"""Data sets by name: where the splits of a data set lie, and what is in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detector.config.registry import PartConfig, register
from detector.data.coco import CocoAnnotations, read_coco
from detector.data.synthetic_detection import ensure_shapes
from detector.errors import DatasetError


@dataclass(frozen=True)
class DatasetConfig(PartConfig[Any]):
    """The kind `data set`. A data set has `split_names()` and gives each split by its name: `split("train")`."""

    folders = ("data",)


def required_file(file: Path | None, what: str) -> Path:
    """The file that describes a data set.

    Raises:
        DatasetError: none is configured.
    """
    if file is None:
        raise DatasetError(f"the data set wants {what}; give data.file")
    return file


@dataclass(frozen=True)
class SplitConfig:
    """One split in COCO format.

    Attributes:
        annotations: the COCO JSON file.
        images: the folder that its file names start from.
    """

    annotations: Path
    images: Path


@register("coco")
class CocoDataset:
    """Splits in COCO format, wherever they lie."""

    @dataclass(frozen=True)
    class Config(DatasetConfig):
        """Where the splits lie.

        Attributes:
            train: what training learns from.
            val: what `evaluate` measures on, and training while it runs.
            test: a split kept for last.
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

    def split_names(self) -> tuple[str, ...]:
        """The splits that are configured."""
        return tuple(name for name in ("train", "val", "test") if getattr(self.config, name) is not None)

    def split(self, name: str) -> CocoAnnotations:
        """The annotations of a split.

        Raises:
            DatasetError: the split is not configured, or its file is refused.
        """
        split: SplitConfig | None = getattr(self.config, name) if name in ("train", "val", "test") else None
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


@register("shapes")
class ShapesDataset:
    """The embedded data set: drawn into `root` when it is first asked for, without a network."""

    @dataclass(frozen=True)
    class Config(DatasetConfig):
        """What to draw and where.

        Attributes:
            root: folder of the drawn data set, relative to the working directory.
            num_train: training images.
            num_val: validation images.
            image_size: side of the square images in pixels.
            seed: seed of the drawing.
        """

        root: Path = Path("data/shapes")
        num_train: int = 640
        num_val: int = 160
        image_size: int = 320
        seed: int = 0

    def __init__(self, config: Config) -> None:
        self.config = config

    def split_names(self) -> tuple[str, ...]:
        """The splits that are drawn."""
        return ("train", "val")

    def split(self, name: str) -> CocoAnnotations:
        """The annotations of `train` or `val`, drawn first where they are missing.

        Raises:
            DatasetError: another name, or the folder holds something else.
        """
        if name not in ("train", "val"):
            raise DatasetError(f"the embedded data set has the splits train and val, found {name!r}; use one of them")
        root = self.config.root.resolve()
        ensure_shapes(
            root,
            num_train=self.config.num_train,
            num_val=self.config.num_val,
            image_size=self.config.image_size,
            seed=self.config.seed,
        )
        return read_coco(root / "annotations" / f"{name}.json", root / "images" / name)
