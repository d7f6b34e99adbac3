"""The embedded detection data set as a part: `data: shapes`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from detector.config.registry import register
from detector.data.coco import CocoAnnotations, read_coco
from detector.data.dataset import Dataset, DatasetConfig
from detector.data.synthetic_detection import ensure_shapes
from detector.errors import DatasetError


@register("shapes")
class ShapesDataset(Dataset):
    """The embedded data set: drawn into `root` on first use, without a network."""

    @dataclass(frozen=True)
    class Config(DatasetConfig):
        """Contents and place of the drawn data set.

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
        """Return the names of the splits, `train` and `val`."""
        return ("train", "val")

    def split(self, name: str) -> CocoAnnotations:
        """Return the annotations of `train` or `val`, after drawing the data set where it is missing.

        Raises:
            DatasetError: the name is another one, or the folder holds something else.
        """
        if name not in self.split_names():
            raise DatasetError(f"the embedded data set has the splits train and val, got {name!r}; use one of them")
        root = self.config.root.resolve()
        ensure_shapes(
            root,
            num_train=self.config.num_train,
            num_val=self.config.num_val,
            image_size=self.config.image_size,
            seed=self.config.seed,
        )
        return read_coco(root / "annotations" / f"{name}.json", root / "images" / name)
