"""Images of one class each, in memory, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detector.data.problems import Problem
from detector.registry import PartConfig


@dataclass(frozen=True)
class ImageSetConfig(PartConfig):
    """The kind `image set`: has `split_names()` and gives `split(name, canvas)`, its images fitted to a canvas."""


@dataclass(frozen=True)
class Canvas:
    """What images are fitted to.

    Attributes:
        canvas_hw: height and width in pixels.
        channels: 3 for RGB, 1 for grey, any other number for images of that many planes.
        fit: a mode of `Letterbox`.
    """

    canvas_hw: tuple[int, int]
    channels: int
    fit: str


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
