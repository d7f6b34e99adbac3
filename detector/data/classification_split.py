"""Classification data sets: labelled images in memory, and the contract of their readers."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from detector.config.registry import PartConfig
from detector.data.file_reader import FileReader
from detector.data.problems import Problem
from detector.errors import DatasetError
from detector.structures.canvas import Canvas
from detector.structures.letterbox import Letterbox


@dataclass(frozen=True)
class LabelledImages:
    """Images of one split with one class each.

    Attributes:
        images: uint8 (N, H, W, C), RGB when C is 3.
        labels: int64 (N,), 0-based.
        class_names: name of each class.
        sources: name of each image: its file, or its place in the split.
        problems: kinds of faults that were skipped or accepted.
        origin: name of the split in a message.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    sources: tuple[str, ...]
    problems: tuple[Problem, ...] = ()
    origin: str = ""

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"LabelledImages: expected uint8 (N, H, W, C), got {self.images.dtype} {self.images.shape}"
            )
        if not len(self.images) == len(self.labels) == len(self.sources):
            raise ValueError(
                f"LabelledImages: expected one label and name per image, got {len(self.images)} images, "
                f"{len(self.labels)} labels, {len(self.sources)} names"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self) -> str:
        """Return the SHA-256 of the class and the name of each image, as 64 hex digits."""
        return hashlib.sha256(json.dumps((self.class_names, self.labels.tolist(), self.sources)).encode()).hexdigest()

    def taken(self, positions: npt.NDArray[np.int64]) -> LabelledImages:
        """Return the images at some positions, int64 (n,)."""
        sources = tuple(self.sources[position] for position in positions.tolist())
        return replace(self, images=self.images[positions], labels=self.labels[positions], sources=sources)

    def with_classes(self, class_names: tuple[str, ...]) -> LabelledImages:
        """Return the same images with labels that count the given classes.

        Raises:
            DatasetError: a class of the images is not among the given ones.
        """
        if self.class_names == class_names:
            return self
        if unknown := [name for name in self.class_names if name not in class_names]:
            raise DatasetError(
                f"{self.origin}: expected images of the classes {', '.join(class_names)}, got also "
                f"{', '.join(unknown)}; name the folders as the classes of the model, or remove them"
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
    """The kind `image set`: base class of the settings of every classification data set; folders are the default."""

    folders = ("data",)
    fallback_name = "folders"


def fit_all(images: npt.NDArray[np.uint8], canvas: Canvas) -> npt.NDArray[np.uint8]:
    """Return images (N, H, W, 3) of one size fitted to a canvas; they become grey where it has one channel.

    Raises:
        DatasetError: the canvas has neither 3 channels nor 1.
    """
    if canvas.channels not in (1, 3):
        raise DatasetError(f"input.channels: expected 3, or 1 for grey images, got {canvas.channels}")
    if canvas.channels == 1:
        images = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images])[..., None]
    image_hw = images.shape[1], images.shape[2]
    if image_hw == canvas.canvas_hw:
        return images
    letterbox = Letterbox.fit(image_hw, canvas.canvas_hw, canvas.fit)
    return np.stack([letterbox.apply(image) for image in images])
