"""Drawn pictures for pre-training as a part: `data: pictures`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from detector.config.registry import register
from detector.data.dataset import DatasetConfig
from detector.data.drawn_folder import DrawnDataset
from detector.data.drawn_pictures import PICTURES


@register("pictures")
class PicturesDataset(DrawnDataset):
    """Drawn pictures of 48 classes of shapes and fractals, for pre-training: drawn into `root` on first use."""

    drawn = PICTURES

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
