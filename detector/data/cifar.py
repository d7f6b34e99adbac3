"""CIFAR-10 and CIFAR-100, where the user has the files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detector.config.registry import register
from detector.data.classification_split import ImageSet, ImageSetConfig, LabelledImages, fit_all
from detector.errors import DatasetError
from detector.structures.canvas import Canvas


@register("cifar")
class CifarSet(ImageSet):
    """50,000 images to train on and 10,000 to validate on, 32 px a side (Krizhevsky 2009), read by torchvision.

    Nothing is downloaded. torchvision unpickles the files only after their MD5 sums have been found right.
    """

    @dataclass(frozen=True)
    class Config(ImageSetConfig):
        """Where the files lie.

        Attributes:
            root: the folder that holds `cifar-10-batches-py` or `cifar-100-python`, as the archives unpack.
            num_classes: 10 or 100.
        """

        root: Path = Path("data/cifar")
        num_classes: Literal[10, 100] = 10

    def __init__(self, config: Config) -> None:
        self.config = config

    def split_names(self) -> tuple[str, ...]:
        """`train`, and `val`, which is the test batch of the authors."""
        return ("train", "val")

    def split(self, name: str, canvas: Canvas) -> LabelledImages:
        """The images of a split.

        Raises:
            DatasetError: another name, the files are not there, or a number of channels that is neither 3 nor 1.
        """
        if name not in self.split_names():
            raise DatasetError(f"CIFAR has the splits train and val, found {name!r}; use one of them")
        from torchvision import datasets

        read: Any = datasets.CIFAR10 if self.config.num_classes == 10 else datasets.CIFAR100
        try:
            found = read(str(self.config.root), train=name == "train", download=False)
        except (RuntimeError, OSError) as error:
            raise DatasetError(
                f"{self.config.root}: {read.base_folder} is wanted in it, whole and as its authors publish it, found "
                f"otherwise ({error}); unpack the archive of https://www.cs.toronto.edu/~kriz/cifar.html there"
            ) from error
        sources = tuple(f"{name}:{index}" for index in range(len(found.targets)))
        return LabelledImages(
            fit_all(found.data, canvas),
            np.array(found.targets, np.int64),
            tuple(found.classes),
            sources,
            origin=f"{self.config.root / read.base_folder}, {name}",
        )
