"""The embedded detection data set as a part: `data: shapes`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from detector.config.registry import register
from detector.data.dataset import DatasetConfig
from detector.data.drawn_folder import DrawnDataset
from detector.data.synthetic_detection import SHAPES


@register("shapes")
class ShapesDataset(DrawnDataset):
    """The embedded data set: drawn into `root` on first use, without a network."""

    drawn = SHAPES

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
