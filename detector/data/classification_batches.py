"""Batches of classification: taken from a split in memory and augmented in the training process, a batch at a time."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from detector.data.classification_split import LabelledImages
from detector.data.loader import MAX_BATCH_SIZE
from detector.structures.types import ClassBatch, ImageClasses

Images = npt.NDArray[np.uint8]

_FILL = 114  # the grey of the padding of `Letterbox`


@dataclass(frozen=True)
class BatchConfig:
    """Settings of the batches.

    Attributes:
        batch_size: images in a batch.
    """

    batch_size: int = 128

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= MAX_BATCH_SIZE:
            raise ValueError(f"loader: expected batch_size within 1..{MAX_BATCH_SIZE}, got {self.batch_size}")


@dataclass(frozen=True)
class ImageAugmentConfig:
    """Augmentation of training images that have one class each.

    Attributes:
        flip_horizontal: probability of a mirror image, left to right.
        flip_vertical: probability of a mirror image, top to bottom.
        crop_padding: pixels of grey padding around an image before a window of its own size is cut out at random
            (He et al. 2015, section 4.2).
        cutout: side in pixels of a grey square at a random place (DeVries and Taylor 2017), 0 for none.
        mixup: both parameters of the beta distribution of the share in which two images of a batch are mixed (Zhang et
            al. 2018, section 2), 0 for none.
    """

    flip_horizontal: float = 0.5
    flip_vertical: float = 0.0
    crop_padding: int = 4
    cutout: int = 0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.flip_horizontal <= 1 and 0 <= self.flip_vertical <= 1):
            raise ValueError(
                f"augment: expected probabilities of flips within 0..1, got {self.flip_horizontal} and "
                f"{self.flip_vertical}"
            )
        if min(self.crop_padding, self.cutout) < 0 or self.mixup < 0:
            raise ValueError(
                f"augment: expected crop_padding, cutout and mixup of at least 0, got {self.crop_padding}, "
                f"{self.cutout} and {self.mixup}"
            )


@functools.lru_cache(maxsize=2)
def _order(num_images: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(num_images)


def indices_of(batch: int, batch_size: int, num_images: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the images of a batch: int64 (batch_size,), cut from an endless stream of seeded permutations.

    Each image comes once per epoch, and no batch is ever short.
    """
    pieces = list[npt.NDArray[np.int64]]()
    position, end = batch * batch_size, (batch + 1) * batch_size
    while position < end:
        epoch, start = divmod(position, num_images)
        taken = _order(num_images, seed, epoch)[start : start + end - position]
        pieces.append(taken)
        position += len(taken)
    return np.concatenate(pieces)


def varied(
    images: Images, config: ImageAugmentConfig, rng: np.random.Generator
) -> tuple[Images, npt.NDArray[np.int64], float]:
    """Return images (B, H, W, C) augmented as a function of the random numbers alone; the given ones stay unchanged.

    Returns:
        The images, the index (B,) of the image that was mixed into each, and the share of the image itself: 1 where
        nothing was mixed.
    """
    num, height, width, _ = images.shape
    images = images.copy()
    for probability, axis in ((config.flip_horizontal, 2), (config.flip_vertical, 1)):
        chosen = rng.random(num) < probability
        images[chosen] = np.flip(images[chosen], axis)
    if margin := config.crop_padding:
        padded = np.full((num, height + 2 * margin, width + 2 * margin, images.shape[3]), _FILL, np.uint8)
        padded[:, margin : margin + height, margin : margin + width] = images
        for image, source, (y, x) in zip(
            images, padded, rng.integers(0, 2 * margin, (num, 2), endpoint=True).tolist(), strict=True
        ):
            image[:] = source[y : y + height, x : x + width]
    if side := config.cutout:
        for image, (y, x) in zip(images, rng.integers(0, (height, width), (num, 2)).tolist(), strict=True):
            top, left = y - side // 2, x - side // 2
            image[max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = _FILL
    if not config.mixup:
        return images, np.arange(num), 1.0
    other, share = rng.permutation(num), float(rng.beta(config.mixup, config.mixup))
    mixed = np.float32(share) * images + np.float32(1 - share) * images[other]
    return np.rint(mixed).astype(np.uint8), other, share


def training_batches(
    split: LabelledImages,
    config: BatchConfig,
    augment: ImageAugmentConfig,
    seed: int,
    *,
    start: int,
    stop: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[ClassBatch]:
    """Yield batches `start` .. `stop` - 1 of a process: batch k of process r is batch k * world_size + r of a stream.

    Each batch is a function of the seed and its number in the stream only.
    """
    for own in range(start, stop):
        number = own * world_size + rank
        indices = indices_of(number, config.batch_size, len(split), seed)
        # Longer than the seed of the order: NumPy fills a shorter seed with zeros.
        rng = np.random.default_rng((seed, number, 0, 1))
        images, other, share = varied(split.images[indices], augment, rng)
        labels = torch.from_numpy(split.labels[indices])
        targets = ImageClasses(labels) if share == 1.0 else ImageClasses(labels, labels[other], share)
        yield ClassBatch(torch.from_numpy(images).permute(0, 3, 1, 2), targets, tuple(indices.tolist()))
