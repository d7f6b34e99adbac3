"""CIFAR-10 and CIFAR-100, read from files of the user."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from detector.config.registry import register
from detector.data.classification_split import ImageSet, ImageSetConfig, LabelledImages, fit_all
from detector.errors import DatasetError
from detector.structures.canvas import Canvas


@register("cifar")
class CifarSet(ImageSet):
    """50,000 training images and 10,000 validation images of 32 x 32 px (Krizhevsky 2009), read by torchvision.

    Nothing is downloaded. torchvision unpickles the files only after checking their MD5 sums.
    """

    @dataclass(frozen=True)
    class Config(ImageSetConfig):
        """Path of the files, and which of the two sets to read.

        Attributes:
            root: the folder that holds `cifar-10-batches-py` or `cifar-100-python`, as unpacked from the archives.
            num_classes: 10 or 100.
        """

        root: Path = Path("data/cifar")
        num_classes: Literal[10, 100] = 10

    def __init__(self, config: Config) -> None:
        self.config = config

    def split_names(self) -> tuple[str, ...]:
        """Return `train`, and `val`, which is the test batch of the authors."""
        return ("train", "val")

    def split(self, name: str, canvas: Canvas) -> LabelledImages:
        """Return the images of a split.

        Raises:
            DatasetError: the split does not exist, the files are missing or damaged, or the canvas has neither 3
                channels nor 1.
        """
        if name not in self.split_names():
            raise DatasetError(f"CIFAR has the splits train and val, got {name!r}; use one of them")
        from torchvision import datasets

        read = datasets.CIFAR10 if self.config.num_classes == 10 else datasets.CIFAR100
        try:
            images = read(str(self.config.root), train=name == "train", download=False)
        except (RuntimeError, OSError) as error:
            raise DatasetError(
                f"{self.config.root}: expected {read.base_folder} in it, complete and as published by its "
                f"authors ({error}); unpack the archive of https://www.cs.toronto.edu/~kriz/cifar.html there"
            ) from error
        sources = tuple(f"{name}:{index}" for index in range(len(images.targets)))
        return LabelledImages(
            fit_all(images.data, canvas),
            np.array(images.targets, np.int64),
            tuple(images.classes),
            sources,
            origin=f"{self.config.root / read.base_folder}, {name}",
        )
