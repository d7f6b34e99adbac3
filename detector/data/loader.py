"""Training samples and their order: both are functions of (seed, epoch, index), whatever the workers do."""

from __future__ import annotations

import functools
import math
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from detector.config.registry import ImportedFiles
from detector.data.augment.augment_config import AugmentConfig
from detector.data.augment.augmenter import AugmentationRecipe, Source, greatest_zoom
from detector.data.coco import CocoAnnotations
from detector.data.image_cache import ImageCache, prepare_cache_folder
from detector.data.worker_processes import SHARED_MEMORY, Parcel, fits_shared_memory, guard_hint, lost_worker_reason
from detector.errors import DatasetError, DetectorError, MediaError
from detector.io.child_process import safe_path
from detector.io.remote import PermittedAddresses
from detector.media.images import size_warning
from detector.structures.canvas import Canvas
from detector.structures.letterbox import Letterbox
from detector.structures.types import Batch, ImageObjects, Sample

# Far above what any machine holds: a mistyped number must not exhaust the memory or start a million processes.
MAX_BATCH_SIZE, MAX_WORKERS = 65_536, 1024
PREFETCHED = 4  # batches that a worker prepares in advance
_NUM_HELD = 2  # batches that the training process holds: the one it trains on and the next one
# After this many unreadable images in a row the data set is considered broken, not the image.
_MAX_REPLACEMENTS = 16


class SampleKey(NamedTuple):
    """Key of a training sample: the sample is a function of the key and the seed.

    Attributes:
        epoch: pass over the data set.
        image_index: image within the data set.
        closing: whether training is in its closing share, where images are only letterboxed, mirrored and recoloured.
        copy: repetition index of the image within the epoch, above 0 where images of rare classes are repeated.
        canvas_hw: height and width of the batch's canvas, or None for the configured one.
    """

    epoch: int
    image_index: int
    closing: bool
    copy: int = 0
    canvas_hw: tuple[int, int] | None = None


@dataclass(frozen=True)
class LoaderConfig:
    """Settings of the batches and of the workers that make them.

    Attributes:
        batch_size: images in a batch.
        workers: processes that make batches; 0 makes them in the training process.
        cache_mb: megabytes of decoded images that each worker keeps in memory.
        disk_cache: a folder for decoded images, outside the data set, shared by workers and runs, or None. An image
            takes height x width x channels bytes there and is decoded again when its file changes.
        reduced_decode: whether a JPEG that training shows at a half, a quarter or an eighth of its size or less is
            decoded at that size. It changes pixels slightly (they are averaged first) and never changes boxes.
        repeat_factor: a class in less than this share of the images is rare, and its images are repeated by the square
            root of the ratio (the threshold t of Gupta et al. 2019, LVIS, section 4.2); 0 shows every image once per
            epoch. Partners of mosaic, mixup and copy-paste are drawn in the same proportions. The number of steps stays
            the same: rare classes take the place of frequent ones.
        timeout_s: seconds to wait for a batch before a worker is considered to hang.
        memory_share: share of the free memory of the device that a training step may take, 0..1: batch_size is then
            measured before the run starts, reported, and written into the run's configuration. It changes results, as
            every batch size does; 0 uses batch_size as given.
    """

    batch_size: int = 16
    workers: int = 2
    cache_mb: int = 512
    disk_cache: Path | None = None
    reduced_decode: bool = False
    repeat_factor: float = 0.0
    timeout_s: float = 120.0
    memory_share: float = 0.0

    def __post_init__(self) -> None:
        if self.cache_mb < 0 or self.timeout_s <= 0:
            raise ValueError(
                f"loader: expected cache_mb >= 0 and timeout_s > 0, got {self.cache_mb} and {self.timeout_s}"
            )
        if not (1 <= self.batch_size <= MAX_BATCH_SIZE and 0 <= self.workers <= MAX_WORKERS):
            raise ValueError(
                f"loader: expected batch_size within 1..{MAX_BATCH_SIZE} and workers within 0..{MAX_WORKERS}, got "
                f"{self.batch_size} and {self.workers}"
            )
        if not 0 <= self.memory_share <= 1:
            raise ValueError(f"loader.memory_share: expected a share of the free memory, 0..1, got {self.memory_share}")
        if not 0 <= self.repeat_factor <= 1:
            raise ValueError(f"loader.repeat_factor: expected a share of the images, 0..1, got {self.repeat_factor}")


@dataclass(frozen=True)
class BatchRange:
    """Range of batches that one process takes from the stream that all processes share.

    Batch k of process r is batch k * world_size + r of the stream.

    Attributes:
        start: the first batch.
        stop: the end of the range, exclusive.
        closing_from: the first batch that is marked as closing.
        rank: the number of this process.
        world_size: the number of processes.
    """

    start: int
    stop: int
    closing_from: int
    rank: int = 0
    world_size: int = 1


class StreamSampler(Sampler[list[SampleKey]]):
    """Batches cut from an endless stream of seeded permutations: each image once per epoch, every batch full.

    An image with a repeat factor comes floor(factor) times in an epoch, and once more with the probability of the
    fraction, drawn for every epoch and image. A batch may span two epochs, so a data set smaller than a batch works and
    no batch is ever short.

    Attributes:
        num_samples: images in the data set.
        canvases: heights and widths of batches before the closing ones; none where all have the configured canvas.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        batches: BatchRange,
        *,
        factors: npt.NDArray[np.float64] | None = None,
        canvases: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Prepare the batches of one process.

        Args:
            num_samples: images in the data set.
            batch_size: images in a batch.
            seed: the seed of the run.
            batches: the range of batches that the process takes.
            factors: float64 (N,), the repeat factor of each image, at least 1; None shows every image once.
            canvases: heights and widths from which one is drawn for each batch before the closing ones, the same in
                every process; with none every batch has the configured canvas.
        """
        self.num_samples, self._batch_size, self._seed = num_samples, batch_size, seed
        self._batches, self._factors, self.canvases = batches, factors, tuple(canvases)

    def __len__(self) -> int:
        return self._batches.stop - self._batches.start

    def _num_copies(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return how often each image comes in an epoch: int64 (N,)."""
        if self._factors is None:
            return np.ones(self.num_samples, np.int64)
        wholes = self._factors.astype(np.int64)
        # Longer than the seeds of the order and of a sample: NumPy fills a shorter seed with zeros.
        rests = np.random.default_rng((self._seed, epoch, 0, 0, 1)).random(self.num_samples)
        return wholes + (rests < self._factors - wholes)

    def _order(self, num_copies: npt.NDArray[np.int64], epoch: int) -> list[tuple[int, int]]:
        """Return image and repetition index of each sample of an epoch, in order."""
        images = np.repeat(np.arange(self.num_samples), num_copies)
        copies = np.arange(len(images)) - np.repeat(np.cumsum(num_copies) - num_copies, num_copies)
        order = np.random.default_rng((self._seed, epoch)).permutation(len(images))
        return list(zip(images[order].tolist(), copies[order].tolist(), strict=True))

    def _canvas_hw(self, batch: int) -> tuple[int, int] | None:
        if batch >= self._batches.closing_from or not self.canvases:
            return None
        # No other seed is that long.
        return self.canvases[int(np.random.default_rng((self._seed, batch, 0, 0, 0, 2)).integers(len(self.canvases)))]

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, begin, end = -1, 0, 0
        order: list[tuple[int, int]] = []
        own = self._batches
        for batch in range(own.start, own.stop):
            keys, canvas_hw = [], self._canvas_hw(batch)
            first = (batch * own.world_size + own.rank) * self._batch_size
            for position in range(first, first + self._batch_size):
                while position >= end:
                    epoch, begin, order = epoch + 1, end, []
                    num_copies = self._num_copies(epoch)
                    end += int(num_copies.sum())
                order = order or self._order(num_copies, epoch)
                image_index, copy = order[position - begin]
                keys.append(SampleKey(epoch, image_index, batch >= own.closing_from, copy, canvas_hw))
            yield keys


class TrainingSamples(Dataset[Sample]):
    """Augmented training images of a split."""

    def __init__(
        self,
        annotations: CocoAnnotations,
        canvas: Canvas,
        augment: AugmentConfig,
        seed: int,
        cache_mb: int,
        *,
        factors: npt.NDArray[np.float64] | None = None,
        disk_cache: Path | None = None,
        reduced_decode: bool = False,
    ) -> None:
        """Prepare the samples of a split.

        Args:
            annotations: the split.
            canvas: the canvas of samples whose key names no other size.
            augment: how images are varied.
            seed: the seed of the run.
            cache_mb: as in `LoaderConfig`.
            factors: float64 (N,), the repeat factor of each image as in `StreamSampler`, by which partners are drawn.
            disk_cache: as in `LoaderConfig`.
            reduced_decode: as in `LoaderConfig`.

        Raises:
            ConfigError: a listed transform or the folder of the cache cannot be used.
        """
        if disk_cache is not None:
            prepare_cache_folder(disk_cache, annotations.annotations, annotations.images)
        self._imported = ImportedFiles()  # first, for the classes of augmentations in a spawned worker
        self._permitted = PermittedAddresses()
        self.annotations, self._canvas, self._augment, self._seed = annotations, canvas, augment, seed
        self._factors, self._reduced_decode = factors, reduced_decode
        self._cache = ImageCache(canvas.channels, cache_mb, disk_cache)
        self._recipes: dict[tuple[int, int], tuple[AugmentationRecipe, float]] = {}
        self._recipe_of(canvas.canvas_hw)

    def __len__(self) -> int:
        return len(self.annotations)

    def num_bytes(self, canvases: Sequence[tuple[int, int]] = ()) -> int:
        """Return the number of bytes of an image on the largest of its canvases."""
        largest = max(height * width for height, width in (self._canvas.canvas_hw, *canvases))
        return largest * self._canvas.channels

    def _recipe_of(self, canvas_hw: tuple[int, int]) -> tuple[AugmentationRecipe, float]:
        """Return the recipe of a canvas size and the greatest zoom that decoding may rely on."""
        if canvas_hw not in self._recipes:
            canvas = replace(self._canvas, canvas_hw=canvas_hw)
            recipe = AugmentationRecipe(self._augment, canvas, len(self.annotations), self._factors)
            zoom = greatest_zoom(self._augment, canvas_hw) if self._reduced_decode else math.inf
            self._recipes[canvas_hw] = recipe, zoom
        return self._recipes[canvas_hw]

    def __getitem__(self, key: SampleKey) -> Sample:
        """Return the sample of a key: the same arrays on every call, in any process."""
        rng = np.random.default_rng((self._seed, key.epoch, key.image_index, *([key.copy] if key.copy else [])))
        skipped, warned = list[str](), list[str]()
        letterbox, canvas_hw = None, key.canvas_hw or self._canvas.canvas_hw
        recipe, greatest = self._recipe_of(canvas_hw)
        zoom = math.inf if key.closing else greatest
        read = functools.partial(self.source, zoom=zoom, skipped=skipped, warned=warned, canvas_hw=canvas_hw)
        if key.closing:
            image, objects, letterbox = recipe.letterboxed(key.image_index, read, rng)
        else:
            image, objects = recipe.varied(key.image_index, read, rng)
        image_id = int(self.annotations.image_ids[key.image_index])
        left_out, odd = tuple(skipped), tuple(warned)
        return Sample(image, objects.xyxy, objects.labels, objects.ignore, image_id, letterbox, left_out, odd)

    def source(
        self,
        index: int,
        zoom: float = math.inf,
        skipped: list[str] | None = None,
        warned: list[str] | None = None,
        canvas_hw: tuple[int, int] | None = None,
    ) -> Source:
        """Return a source image with its objects; an image that cannot be read is replaced by the next one.

        Args:
            index: image within the data set.
            zoom: the greatest scale at which the image is shown, relative to its size when fitted to the canvas;
                infinite where the image must be decoded at full size.
            skipped: a list to which the reason of each replacement is added.
            warned: a list to which a warning is added for anything odd about an image that is decoded.
            canvas_hw: height and width of the canvas that it is shown on; the configured ones by default.

        Raises:
            DatasetError: too many images in a row cannot be read.
        """
        skipped, warned = [] if skipped is None else skipped, [] if warned is None else warned
        for _ in range(_MAX_REPLACEMENTS):
            try:
                return self._read(index, zoom, warned, canvas_hw or self._canvas.canvas_hw)
            except MediaError as error:
                skipped.append(str(error))
                index = (index + 1) % len(self.annotations)
        raise DatasetError(
            f"{self.annotations.annotations}: {_MAX_REPLACEMENTS} images in a row cannot be read, the last because "
            f"{skipped[-1]}; check the folder of images"
        )

    def _read(self, index: int, zoom: float, warned: list[str], canvas_hw: tuple[int, int]) -> Source:
        path = self.annotations.path(index)
        height, width = self.annotations.image_hw[index].tolist()
        reduction = _reduction((height, width), canvas_hw, self._canvas.fit, zoom)
        image = self._cache.read(path, reduction, warned)
        if reduction > 1 and image.shape[:2] != (height // reduction, width // reduction):
            # The file is not a JPEG, or its size is not the one that the annotation file gives.
            reduction, image = 1, self._cache.read(path, 1, warned)
        image_hw = image.shape[0] * reduction, image.shape[1] * reduction
        warning = size_warning(path, image_hw, (height, width))
        if warning is not None:
            warned.append(warning)
        source_xyxy = self.annotations.source_xyxy(index, image_hw)
        # A block of pixels became one pixel, so coordinates shrink by a power of two, which divides without rounding.
        labels, is_crowd = self.annotations.labels_of(index), self.annotations.is_crowd_of(index)
        return image, ImageObjects(source_xyxy / np.float32(reduction), labels, is_crowd)


def _reduction(image_hw: tuple[int, int], canvas_hw: tuple[int, int], fit: str, zoom: float) -> int:
    """Return the largest of 8, 4, 2 and 1 by which an image can be reduced without losing a pixel that is shown.

    It divides both sides of the image.

    Args:
        image_hw: height and width as the annotation file gives them; 0, 0 where it gives none.
        canvas_hw: height and width of the canvas.
        fit: a mode of `Letterbox`.
        zoom: the greatest scale at which the image is shown, relative to its size when fitted to the canvas.
    """
    if not all(image_hw) or math.isinf(zoom):
        return 1
    scale = max(Letterbox.fit(image_hw, canvas_hw, fit).scale_hw) * zoom
    return next((r for r in (8, 4, 2) if scale * r <= 1 and image_hw[0] % r == image_hw[1] % r == 0), 1)


def _start_worker(worker_id: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism
    if sys.platform != "win32":  # in a group of its own, so that Ctrl-C reaches the trainer only
        os.setsid()


def training_loader(
    samples: TrainingSamples, sampler: StreamSampler, config: LoaderConfig, by_value: bool = False
) -> DataLoader[Batch | Parcel]:
    """Return a loader of batches in the order of the sampler; they are the same bits for every number of workers.

    Args:
        samples: the samples.
        sampler: their order.
        config: settings of the batches and workers.
        by_value: whether the batches come as parcels, which workers send without shared memory.
    """
    return DataLoader(
        samples,  # type: ignore[arg-type]  # torch's stubs have one type for samples and batches
        batch_sampler=sampler,
        num_workers=config.workers,
        collate_fn=_parcel if by_value else Batch.of,
        worker_init_fn=_start_worker,
        timeout=config.timeout_s if config.workers else 0,
        prefetch_factor=PREFETCHED if config.workers else None,
        persistent_workers=config.workers > 0,  # keeps their caches when the batches are iterated again
        # The loader draws a seed for its workers, which do not use it; from here, so that it takes no random number
        # from the generator of the model.
        generator=torch.Generator(),
        # A thread copies the images into memory that a GPU reads while the CPU goes on (`Batch.pin_memory`).
        pin_memory=torch.cuda.is_available(),
    )


def _parcel(samples: Sequence[Sample]) -> Parcel:
    return Parcel.of(Batch.of(samples))


def training_batches(samples: TrainingSamples, sampler: StreamSampler, config: LoaderConfig) -> Iterator[Batch]:
    """Yield the batches of `training_loader`; a `DetectorError` raised in a worker arrives unchanged.

    Raises:
        DetectorError: the error of a sample, without the worker's traceback that torch adds to its text; or a worker
            died, or sent nothing for `timeout_s`.
    """
    try:
        by_value = _by_value(samples, sampler, config)
        with safe_path():
            batches = iter(training_loader(samples, sampler, config, by_value))
        for batch in batches:
            yield batch.opened() if isinstance(batch, Parcel) else batch
    except DetectorError as error:
        raise type(error)(str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].strip()) from error
    except RuntimeError as error:
        raise _lost_worker(error, config) from error


def _by_value(samples: TrainingSamples, sampler: StreamSampler, config: LoaderConfig) -> bool:
    """Return true if the batches on their way would not fit into the shared memory of the system, with a warning."""
    largest = config.batch_size * samples.num_bytes(sampler.canvases)
    most = (config.workers * PREFETCHED + _NUM_HELD) * largest
    if not config.workers or fits_shared_memory(most):
        return False
    warnings.warn(
        f"{SHARED_MEMORY} has no room for the batches of {config.workers} workers, {most / 1e6:.0f} MB: they are sent "
        "through pipes, which is slower; a container gets more by docker run --shm-size=2g",
        RuntimeWarning,
        stacklevel=2,
    )
    return True


def _lost_worker(error: RuntimeError, config: LoaderConfig) -> Exception:
    """Return an error that explains how a worker was lost, or the error itself where torch's text names no worker."""
    text = str(error)
    if "timed out after" in text:
        return DetectorError(
            f"the loader got no batch from its {config.workers} workers within {config.timeout_s:g} s; raise "
            f"loader.timeout_s if the disk is slow, or use loader.workers=0 to see where it hangs{guard_hint()}"
        )
    reason = lost_worker_reason(text)
    return error if reason is None else DetectorError(f"a worker of the loader, {reason}")
