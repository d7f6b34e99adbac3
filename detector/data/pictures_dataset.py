"""Drawn pictures for pre-training as a part: `data: pictures`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from detector.config.registry import register
from detector.data.coco import CocoAnnotations, read_coco
from detector.data.dataset import Dataset, DatasetConfig
from detector.data.drawn_pictures import PICTURES
from detector.errors import DatasetError


@register("pictures")
class PicturesDataset(Dataset):
    """Drawn pictures of 48 classes of shapes and fractals, for pre-training: drawn into `root` on first use."""

    @dataclass(frozen=True)
    class Config(DatasetConfig):
        """Contents and place of the drawn pictures.

        Attributes:
            root: folder of the drawn pictures, relative to the working directory.
            num_train: training images; there is no upper end, and the first ones do not depend on their number.
            num_val: validation images.
            image_size: side of the square images in pixels.
            seed: seed of the drawing.
        """

        root: Path = Path("data/pictures")
        num_train: int = 3000
        num_val: int = 100
        image_size: int = 160
        seed: int = 0

    def __init__(self, config: Config) -> None:
        self.config = config

    def split_names(self) -> tuple[str, ...]:
        """Return the names of the splits, `train` and `val`."""
        return ("train", "val")

    def split(self, name: str) -> CocoAnnotations:
        """Return the annotations of `train` or `val`, after drawing the pictures where they are missing.

        Raises:
            DatasetError: the name is another one, or the folder holds something else.
        """
        if name not in self.split_names():
            raise DatasetError(f"the drawn pictures have the splits train and val, got {name!r}; use one of them")
        config, root = self.config, self.config.root.resolve()
        counts = {"num_train": config.num_train, "num_val": config.num_val}
        PICTURES.ensure(root, **counts, image_size=config.image_size, seed=config.seed)
        return read_coco(root / "annotations" / f"{name}.json", root / "images" / name)
