"""Training samples and the order they come in: both functions of (seed, epoch, index), whatever the workers do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from detector.data.coco import CocoAnnotations
from detector.data.transforms import (
    AlbumentationsChain,
    AugmentConfig,
    Objects,
    blank_canvas,
    mosaic_places,
    random_affine,
    random_hsv,
    scaling,
    transform_objects,
    translation,
    warp_into,
)
from detector.errors import DatasetError, DetectorError, MediaError
from detector.geometry import Image, Letterbox
from detector.media.images import read_image
from detector.structures import Batch, Sample

# After this many unreadable images in a row the set is taken to be broken, not the image.
_MAX_REPLACEMENTS = 16


class SampleKey(NamedTuple):
    """What a training sample is a function of, besides the seed.

    Attributes:
        epoch: pass over the data set.
        image_index: image within the data set.
        closing: whether training is in its last part, without mosaic, mixup, zoom and listed transforms.
    """

    epoch: int
    image_index: int
    closing: bool


@dataclass(frozen=True)
class LoaderConfig:
    """How batches are made.

    Attributes:
        batch_size: images in a batch.
        workers: processes that make them; 0 makes them in the training process.
        cache_mb: megabytes of decoded images that each worker keeps.
        timeout_s: seconds to wait for a batch before a worker is taken to hang.
    """

    batch_size: int = 16
    workers: int = 2
    cache_mb: int = 512
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.workers < 0 or self.cache_mb < 0 or self.timeout_s <= 0:
            raise ValueError("the loader wants batch_size >= 1, workers >= 0, cache_mb >= 0 and timeout_s > 0")


class StreamSampler(Sampler[list[SampleKey]]):
    """Batches cut from an endless stream of seeded permutations: each image once per epoch, every batch full.

    A batch may span two epochs, so a data set smaller than a batch works and no batch is ever short.

    Attributes:
        num_samples: images in the data set.
    """

    def __init__(
        self, num_samples: int, batch_size: int, seed: int, *, start: int, stop: int, closing_from: int
    ) -> None:
        """Batches `start` .. `stop` - 1 of the stream; those from `closing_from` on are marked as closing."""
        self.num_samples, self._batch_size, self._seed = num_samples, batch_size, seed
        self._start, self._stop, self._closing_from = start, stop, closing_from

    def __len__(self) -> int:
        return self._stop - self._start

    def _order(self, epoch: int) -> list[int]:
        order: list[int] = np.random.default_rng((self._seed, epoch)).permutation(self.num_samples).tolist()
        return order

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, order = -1, []
        for batch in range(self._start, self._stop):
            keys = []
            for position in range(batch * self._batch_size, (batch + 1) * self._batch_size):
                if position // self.num_samples != epoch:
                    epoch = position // self.num_samples
                    order = self._order(epoch)
                keys.append(SampleKey(epoch, order[position % self.num_samples], batch >= self._closing_from))
            yield keys


class TrainingSamples(Dataset[Sample]):
    """The augmented training images of a split."""

    def __init__(
        self,
        annotations: CocoAnnotations,
        canvas_hw: tuple[int, int],
        channels: int,
        fit: str,
        augment: AugmentConfig,
        seed: int,
        cache_mb: int,
    ) -> None:
        """Samples of `annotations` on canvases of height and width `canvas_hw`; `fit` is a mode of `Letterbox`."""
        self.annotations, self._canvas_hw, self._channels, self._fit = annotations, canvas_hw, channels, fit
        self._augment, self._seed = augment, seed
        self._cache: dict[int, Image] = {}
        self._cache_room = cache_mb * 2**20
        self._chain: AlbumentationsChain | None = None
        if augment.albumentations:
            self._chain = AlbumentationsChain(augment.albumentations, canvas_hw, channels)

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, key: SampleKey) -> Sample:
        """The sample of a key: the same arrays on every call, in any process."""
        rng = np.random.default_rng((self._seed, key.epoch, key.image_index))
        skipped: list[str] = []
        if key.closing:
            image, objects, letterbox = self._letterboxed(key.image_index, rng, skipped)
        else:
            image, objects = self._augmented(key.image_index, rng, skipped)
            letterbox = None
            if rng.random() < self._augment.mixup:
                other, other_objects = self._augmented(self._partner(rng), rng, skipped)
                share = rng.beta(32.0, 32.0)  # near one half, so that both images stay visible (Zhang et al. 2019)
                image = np.asarray(cv2.addWeighted(image, share, other, 1 - share, 0), np.uint8).reshape(image.shape)
                objects = Objects.joined([objects, other_objects])
            if self._chain is not None:
                image, objects = self._chain(image, objects, int(rng.integers(2**31)))
        image = random_hsv(image, self._augment, rng)
        image_id = int(self.annotations.image_ids[key.image_index])
        return Sample(image, objects.xyxy, objects.labels, objects.ignore, image_id, letterbox, tuple(skipped))

    def _partner(self, rng: np.random.Generator) -> int:
        return int(rng.integers(len(self.annotations)))

    def _letterboxed(
        self, index: int, rng: np.random.Generator, skipped: list[str]
    ) -> tuple[Image, Objects, Letterbox]:
        """One image as evaluation in OpenCV's arithmetic sees it, mirrored at random."""
        image, objects = self._source(index, skipped)
        letterbox = Letterbox.fit((image.shape[0], image.shape[1]), self._canvas_hw, self._fit)
        matrix = letterbox.matrix()
        canvas = letterbox.apply(image)
        height, width = self._canvas_hw
        if rng.random() < self._augment.flip_horizontal:
            canvas, matrix = canvas[:, ::-1], translation(width, 0) @ scaling(-1, 1) @ matrix
        if rng.random() < self._augment.flip_vertical:
            canvas, matrix = canvas[::-1], translation(0, height) @ scaling(1, -1) @ matrix
        return np.ascontiguousarray(canvas), transform_objects(objects, matrix, self._canvas_hw), letterbox

    def _augmented(self, index: int, rng: np.random.Generator, skipped: list[str]) -> tuple[Image, Objects]:
        """One image or a mosaic of four, each warped once from its source onto the canvas."""
        height, width = self._canvas_hw
        is_mosaic = rng.random() < self._augment.mosaic
        indices = [index, *(self._partner(rng) for _ in range(3))] if is_mosaic else [index]
        sources = [self._source(i, skipped) for i in indices]
        sizes = [(image.shape[0], image.shape[1]) for image, _ in sources]
        if is_mosaic:
            places = mosaic_places(sizes, self._canvas_hw, rng)
        else:
            fitted = Letterbox.fit(sizes[0], self._canvas_hw, self._fit)
            places = [translation(-width / 2, -height / 2) @ fitted.matrix()]
        affine = random_affine(self._augment, self._canvas_hw, rng)
        canvas = blank_canvas(self._canvas_hw, self._channels)
        parts = []
        for (image, objects), place in zip(sources, places, strict=True):
            warp_into(canvas, image, affine @ place)
            parts.append(transform_objects(objects, affine @ place, self._canvas_hw))
        return canvas, Objects.joined(parts)

    def _source(self, index: int, skipped: list[str]) -> tuple[Image, Objects]:
        """A source image with its objects; one that cannot be read is replaced by the next and noted in `skipped`."""
        for _ in range(_MAX_REPLACEMENTS):
            try:
                image = self._read(index)
            except MediaError as error:
                skipped.append(str(error))
                index = (index + 1) % len(self.annotations)
                continue
            return image, Objects(
                self.annotations.source_xyxy(index),
                self.annotations.labels_of(index),
                self.annotations.is_crowd_of(index),
            )
        raise DatasetError(
            f"{self.annotations.annotations}: {_MAX_REPLACEMENTS} images in a row cannot be read, the last because "
            f"{skipped[-1]}; check the images folder"
        )

    def _read(self, index: int) -> Image:
        if index in self._cache:
            return self._cache[index]
        image = read_image(self.annotations.path(index), self._channels)
        if image.nbytes <= self._cache_room:
            self._cache[index] = image
            self._cache_room -= image.nbytes
        return image


def _start_worker(worker_id: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism
    if hasattr(os, "setsid"):  # Ctrl-C reaches the whole process group, and is for the trainer alone to answer
        os.setsid()


def training_loader(samples: TrainingSamples, sampler: StreamSampler, config: LoaderConfig) -> DataLoader[Batch]:
    """Batches in the sampler's order; the same bits for every number of workers."""
    return DataLoader(
        samples,  # type: ignore[arg-type]  # samples in, batches out: torch's stubs know one type for both
        batch_sampler=sampler,
        num_workers=config.workers,
        collate_fn=Batch.of,
        worker_init_fn=_start_worker,
        timeout=config.timeout_s if config.workers else 0,
        prefetch_factor=4 if config.workers else None,
        # It seeds the workers, who draw nothing; without one of its own it would draw from the model's random numbers.
        generator=torch.Generator(),
    )


def training_batches(samples: TrainingSamples, sampler: StreamSampler, config: LoaderConfig) -> Iterator[Batch]:
    """The batches of `training_loader`; an error of ours in a worker arrives as it was raised.

    Raises:
        DetectorError: what a sample raised, without the worker's traceback that torch puts into its text.
    """
    try:
        yield from training_loader(samples, sampler, config)
    except DetectorError as error:
        raise type(error)(str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].strip()) from error
