"""Images of one class each, in memory, and where they come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from detector.config.registry import FileReader, PartConfig
from detector.data.problems import Problem
from detector.errors import DatasetError
from detector.structures.canvas import Canvas
from detector.structures.letterbox import Letterbox


@dataclass(frozen=True)
class LabelledImages:
    """One split.

    Attributes:
        images: uint8 (N, H, W, C), RGB when C is 3.
        labels: int64 (N,), 0-based.
        class_names: name of each class.
        sources: what each image is called: its file, or its place in the split.
        problems: what was left out, and what is odd.
        origin: what the split is called in a message.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    sources: tuple[str, ...]
    problems: tuple[Problem, ...] = ()
    origin: str = ""

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(f"LabelledImages wants uint8 (N, H, W, C), found {self.images.dtype} {self.images.shape}")
        if not len(self.images) == len(self.labels) == len(self.sources):
            raise ValueError(
                f"LabelledImages wants one label and name per image, found {len(self.images)} images, "
                f"{len(self.labels)} labels, {len(self.sources)} names"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def with_classes(self, class_names: tuple[str, ...]) -> LabelledImages:
        """The same images with the labels that their classes have among others.

        Raises:
            DatasetError: a class is not among them.
        """
        if self.class_names == class_names:
            return self
        if unknown := [name for name in self.class_names if name not in class_names]:
            raise DatasetError(
                f"{self.origin}: images of the classes {', '.join(class_names)} are wanted, found also "
                f"{', '.join(unknown)}; name the folders as the model's classes, or leave those out"
            )
        label_of = np.array([class_names.index(name) for name in self.class_names], np.int64)
        return replace(self, labels=label_of[self.labels], class_names=class_names)


class ImageSet(FileReader, ABC):
    """A classification data set, constructed from its config alone."""

    @abstractmethod
    def split_names(self) -> tuple[str, ...]:
        """Return the names of the splits, in the order in which they are listed."""

    @abstractmethod
    def split(self, name: str, canvas: Canvas) -> LabelledImages:
        """Return the images of a split, fitted to a canvas.

        Raises:
            DatasetError: the set has no such split, or its images cannot be used.
        """


@dataclass(frozen=True)
class ImageSetConfig(PartConfig[ImageSet]):
    """The kind `image set`: base class of the settings of every classification data set."""

    folders = ("data",)


def fit_all(images: npt.NDArray[np.uint8], canvas: Canvas) -> npt.NDArray[np.uint8]:
    """Images (N, H, W, 3) of one size on a canvas: themselves where they fit, grey where it has one channel.

    Raises:
        DatasetError: the canvas has another number of channels.
    """
    if canvas.channels not in (1, 3):
        raise DatasetError(f"the images have 3 channels or, in grey, 1, found input.channels={canvas.channels}")
    if canvas.channels == 1:
        images = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images])[..., None]
    image_hw = images.shape[1], images.shape[2]
    if image_hw == canvas.canvas_hw:
        return images
    letterbox = Letterbox.fit(image_hw, canvas.canvas_hw, canvas.fit)
    return np.stack([letterbox.apply(image) for image in images])
