"""Embedded data set of classification: small pictures of ten shapes, drawn into memory without a download.

Ten classes that differ by shape alone: the six of the embedded detection set, and ring, arrow, heart, pentagon. As in
that set, colour carries no information, and every mirror image keeps its class. Difficulties at 32 px: a shape lies
anywhere, turned by up to 30 degrees and stretched by up to a quarter, with a longer side of 18 to 28 px; up to two
strokes of any colour lie under it and, in one picture of five, one lies over it; the distance of its colour from that
of the background may be as small as 110 of 441 (Euclidean distance in RGB); noise of up to 12 grey values covers the
picture. Small convolutional networks classify 65 to 95 % of them correctly after a minute or two on one CPU core. Sizes
scale with the side of the picture, noise and colours do not.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from detector.config.registry import register
from detector.data.classification_split import ImageSet, ImageSetConfig, LabelledImages, fit_all
from detector.data.synthetic_detection import OUTLINES
from detector.errors import DatasetError
from detector.structures.canvas import Canvas
from detector.structures.letterbox import Image

# Increased with every change that alters a pixel; results on different versions cannot be compared.
GENERATOR_VERSION = 1
REFERENCE_SIDE = 32
SIDE_RANGE, MAX_TURN, MAX_STRETCH = (18.0, 28.0), np.pi / 6, 1.25  # pixels of 32; radians; a factor
MIN_CONTRAST, MAX_NOISE = 110.0, 12.0  # RGB distance; grey values
CROSSED_SHARE, NUM_STROKES_RANGE = 0.2, (0, 2)
_SHIFT = 4  # OpenCV's coordinates are whole numbers of 1 / 2^4 pixel
_BLOCK = 1000  # images whose noise is drawn at once

Points = npt.NDArray[np.float64]


def _circle(num_points: int) -> Points:
    angles = np.linspace(0, 2 * np.pi, num_points, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _contours() -> dict[str, tuple[Points, ...]]:
    """Return the closed contours of each class; a second contour is a hole."""
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    heart_x, heart_y = 16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    arrow = [[-1, 0.25], [0.1, 0.25], [0.1, 0.75], [1, 0], [0.1, -0.75], [0.1, -0.25], [-1, -0.25]]
    return {
        **{name: (outline,) for name, outline in OUTLINES.items()},
        "ring": (_circle(48), 0.5 * _circle(32)),
        "arrow": (np.array(arrow, np.float64),),
        "heart": (np.stack([heart_x, -heart_y], axis=1) / 16,),
        "pentagon": (_circle(5),),
    }


CONTOURS = _contours()
CLASS_NAMES = tuple(CONTOURS)


@register("drawn")
class DrawnSet(ImageSet):
    """The embedded data set: drawn into memory on first use, once per process."""

    @dataclass(frozen=True)
    class Config(ImageSetConfig):
        """Contents of the drawn data set.

        Attributes:
            num_train: training images.
            num_val: validation images.
            image_size: side of the square images in pixels.
            seed: seed of the drawing.
        """

        num_train: int = 6000
        num_val: int = 2000
        image_size: int = REFERENCE_SIDE
        seed: int = 0

        def __post_init__(self) -> None:
            if min(self.num_train, self.num_val) < 1 or self.image_size < 16 or self.seed < 0:
                raise ValueError(
                    "drawn: expected num_train and num_val >= 1, image_size >= 16 and seed >= 0, got "
                    f"{self.num_train}, {self.num_val}, {self.image_size} and {self.seed}"
                )

    def __init__(self, config: Config) -> None:
        self.config = config

    def split_names(self) -> tuple[str, ...]:
        """Return the names of the splits, `train` and `val`."""
        return ("train", "val")

    def split(self, name: str, canvas: Canvas) -> LabelledImages:
        """Return the images of `train` or `val`.

        Raises:
            DatasetError: the split does not exist, or the canvas has neither 3 channels nor 1.
        """
        if name not in self.split_names():
            raise DatasetError(f"the embedded data set has the splits train and val, got {name!r}; use one of them")
        config = self.config
        num_images = config.num_train if name == "train" else config.num_val
        images, labels = draw(num_images, config.image_size, config.seed, name)
        fitted = fit_all(images, canvas)
        return LabelledImages(
            fitted, labels, CLASS_NAMES, tuple(f"{name}:{i}" for i in range(len(labels))), origin=f"drawn, {name}"
        )


@functools.lru_cache(maxsize=4)
def draw(
    num_images: int, image_size: int, seed: int, split_name: str
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Draw pictures, uint8 (N, side, side, 3), and their classes, int64 (N,), both read-only.

    Equal arguments give equal bytes.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=tuple(split_name.encode())))
    labels = rng.permutation(np.arange(num_images) % len(CLASS_NAMES))  # classes of equal size, as far as possible
    images = np.stack([_picture(rng, CLASS_NAMES[label], image_size) for label in labels.tolist()])
    for first in range(0, num_images, _BLOCK):
        block = images[first : first + _BLOCK]
        strength = rng.uniform(0, MAX_NOISE, (len(block), 1, 1, 1)).astype(np.float32)
        noise = rng.standard_normal(block.shape, dtype=np.float32) * strength
        block[:] = np.clip(block + noise, 0, 255).astype(np.uint8)
    images.flags.writeable = labels.flags.writeable = False
    return images, labels


def _picture(rng: np.random.Generator, class_name: str, side: int) -> Image:
    scale = side / REFERENCE_SIDE
    cells = rng.uniform(0, 255, (3, 3, 3)).astype(np.float32)
    cells = cells.mean(axis=(0, 1)) + (cells - cells.mean(axis=(0, 1))) * rng.uniform(0.1, 0.6)
    canvas: Image = cv2.resize(cells, (side, side), interpolation=cv2.INTER_LINEAR).astype(np.uint8)
    for _ in range(rng.integers(*NUM_STROKES_RANGE, endpoint=True)):
        _stroke(rng, canvas, rng.uniform(0, side, 2), scale)
    # The pixels where the shape will be; its colour must differ from their mean.
    longest = float(np.exp(rng.uniform(*np.log(SIDE_RANGE)))) * scale
    centre = rng.uniform(0.4 * longest, side - 0.4 * longest, 2)
    x, y = centre.astype(int).tolist()
    reach = max(1, int(longest / 3))
    ground = canvas[max(0, y - reach) : y + reach, max(0, x - reach) : x + reach].reshape(-1, 3).mean(axis=0)
    colour = rng.uniform(0, 255, 3)
    while np.linalg.norm(colour - ground) < MIN_CONTRAST:
        colour = rng.uniform(0, 255, 3)
    angle, stretch = rng.uniform(-MAX_TURN, MAX_TURN), np.sqrt(np.exp(rng.uniform(-1, 1) * np.log(MAX_STRETCH)))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn = np.diag([stretch, 1 / stretch]) @ turn
    turned = [contour @ turn for contour in CONTOURS[class_name]]
    factor = longest / np.ptp(turned[0], axis=0).max()
    offset = centre - factor * (turned[0].min(axis=0) + turned[0].max(axis=0)) / 2
    polygons = [_fixed(points * factor + offset) for points in turned]
    cv2.fillPoly(canvas, polygons, colour.tolist(), cv2.LINE_AA, _SHIFT)
    if rng.random() < CROSSED_SHARE:
        _stroke(rng, canvas, centre + rng.uniform(-0.4, 0.4, 2) * longest, scale)
    return canvas


def _stroke(rng: np.random.Generator, canvas: Image, centre: npt.NDArray[np.float64], scale: float) -> None:
    """Draw a straight or bent bar of any colour over a point."""
    angle, bend = rng.uniform(0, 2 * np.pi), rng.uniform(-1, 1)
    half = rng.uniform(4, 14) * scale
    ends = np.array([[np.cos(angle), np.sin(angle)], [0, 0], [-np.cos(angle + bend), -np.sin(angle + bend)]])
    thickness = int(rng.integers(1, 3, endpoint=True) * max(1.0, scale))
    colour = rng.uniform(0, 255, 3).tolist()
    cv2.polylines(canvas, [_fixed(ends * half + centre)], False, colour, thickness, cv2.LINE_AA, _SHIFT)


def _fixed(points: Points) -> npt.NDArray[np.int32]:
    """Return points in pixels, with pixel centres at halves, as fixed-point coordinates of OpenCV."""
    return np.rint((points - 0.5) * (1 << _SHIFT)).astype(np.int32)
