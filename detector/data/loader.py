"""Training samples and the order they come in: both functions of (seed, epoch, index), whatever the workers do."""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from detector.data.augment.augment_config import AugmentConfig
from detector.data.augment.augmenter import Recipe, Source, greatest_zoom
from detector.data.augment.warp import Objects
from detector.data.coco import CocoAnnotations
from detector.data.image_cache import ImageCache, prepare_cache_folder
from detector.errors import DatasetError, DetectorError, MediaError
from detector.media.images import size_warning
from detector.structures.boxes import clip_xyxy
from detector.structures.letterbox import Letterbox
from detector.structures.types import Batch, Sample

PREFETCHED = 4  # batches that a worker makes ahead
# After this many unreadable images in a row the set is taken to be broken, not the image.
_MAX_REPLACEMENTS = 16


class SampleKey(NamedTuple):
    """What a training sample is a function of, besides the seed.

    Attributes:
        epoch: pass over the data set.
        image_index: image within the data set.
        closing: whether training is in its last part, where images are letterboxed, mirrored and recoloured only.
        copy: which showing of the image in the pass, above 0 where images of rare classes are repeated.
        canvas_hw: height and width of the batch's canvas, or None for the configured one.
    """

    epoch: int
    image_index: int
    closing: bool
    copy: int = 0
    canvas_hw: tuple[int, int] | None = None


@dataclass(frozen=True)
class LoaderConfig:
    """How batches are made.

    Attributes:
        batch_size: images in a batch.
        workers: processes that make them; 0 makes them in the training process.
        cache_mb: megabytes of decoded images that each worker keeps in memory.
        disk_cache: a folder for decoded images, outside the data set, shared by workers and runs, or None. An image
            takes height x width x channels bytes there and is renewed when its file changes.
        reduced_decode: whether a JPEG of which training shows each pixel at no more than a half, a quarter or an eighth
            of its size is decoded at that size. It changes pixels a little (they are averaged first), boxes never.
        repeat_factor: share of the images under which a class is rare and its images are shown more often, by the
            square root of what is missing (the threshold t of Gupta et al. 2019, LVIS, section 4.2); 0 shows every
            image once a pass. The steps of a run stay as many: rare classes take the place of frequent ones.
        timeout_s: seconds to wait for a batch before a worker is taken to hang.
        memory_share: share of the free memory of the device that a training step may take, 0..1: batch_size is then
            measured before the run starts, told, and written into the run's configuration. It changes results, as every
            batch size does; 0 takes batch_size as it is.
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
        if self.batch_size < 1 or self.workers < 0 or self.cache_mb < 0 or self.timeout_s <= 0:
            raise ValueError("the loader wants batch_size >= 1, workers >= 0, cache_mb >= 0 and timeout_s > 0")
        if not 0 <= self.memory_share <= 1:
            raise ValueError(f"loader.memory_share wants a share of the free memory, 0..1, found {self.memory_share}")
        if not 0 <= self.repeat_factor <= 1:
            raise ValueError(f"loader.repeat_factor wants a share of the images, 0..1, found {self.repeat_factor}")


class StreamSampler(Sampler[list[SampleKey]]):
    """Batches cut from an endless stream of seeded permutations: each image once per epoch, every batch full.

    Where images have factors of repetition, each comes as often in an epoch as its factor has wholes, and once more
    with the probability of the rest, drawn anew for every epoch and image. A batch may span two epochs, so a data set
    smaller than a batch works and no batch is ever short.

    Attributes:
        num_samples: images in the data set.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        *,
        start: int,
        stop: int,
        closing_from: int,
        rank: int = 0,
        world_size: int = 1,
        factors: npt.NDArray[np.float64] | None = None,
        canvases: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Batches `start` .. `stop` - 1 of a process; those from `closing_from` on are marked as closing.

        Several processes share one stream: batch k of process r is batch k * world_size + r of it. `factors` (N,) are
        those of repetition, at least 1; None shows every image once. Each batch before the closing ones has one of
        `canvases` where there are any, the same in every process.
        """
        self.num_samples, self._batch_size, self._seed = num_samples, batch_size, seed
        self._rank, self._world_size = rank, world_size
        self._start, self._stop, self._closing_from = start, stop, closing_from
        self._factors, self._canvases = factors, canvases

    def __len__(self) -> int:
        return self._stop - self._start

    def _num_copies(self, epoch: int) -> npt.NDArray[np.int64]:
        """How often each image comes in an epoch, int64 (N,)."""
        if self._factors is None:
            return np.ones(self.num_samples, np.int64)
        wholes = self._factors.astype(np.int64)
        # More words than the order or a sample is seeded by: numpy takes missing ones for 0.
        rests = np.random.default_rng((self._seed, epoch, 0, 0, 1)).random(self.num_samples)
        return wholes + (rests < self._factors - wholes)

    def _order(self, num_copies: npt.NDArray[np.int64], epoch: int) -> list[tuple[int, int]]:
        """Images and which of their showings it is, in the order in which they come."""
        images = np.repeat(np.arange(self.num_samples), num_copies)
        copies = np.arange(len(images)) - np.repeat(np.cumsum(num_copies) - num_copies, num_copies)
        order = np.random.default_rng((self._seed, epoch)).permutation(len(images))
        return list(zip(images[order].tolist(), copies[order].tolist(), strict=True))

    def _canvas_hw(self, batch: int) -> tuple[int, int] | None:
        if batch >= self._closing_from or not self._canvases:
            return None
        # As many words as no other draw is seeded by.
        return self._canvases[int(np.random.default_rng((self._seed, batch, 0, 0, 0, 2)).integers(len(self._canvases)))]

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, begin, end = -1, 0, 0
        order: list[tuple[int, int]] = []
        for batch in range(self._start, self._stop):
            keys, canvas_hw = [], self._canvas_hw(batch)
            first = (batch * self._world_size + self._rank) * self._batch_size
            for position in range(first, first + self._batch_size):
                while position >= end:
                    epoch, begin, order = epoch + 1, end, []
                    num_copies = self._num_copies(epoch)
                    end += int(num_copies.sum())
                order = order or self._order(num_copies, epoch)
                image_index, copy = order[position - begin]
                keys.append(SampleKey(epoch, image_index, batch >= self._closing_from, copy, canvas_hw))
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
        *,
        disk_cache: Path | None = None,
        reduced_decode: bool = False,
    ) -> None:
        """Samples of `annotations` on canvases of height and width `canvas_hw`; `fit` is a mode of `Letterbox`.

        The other arguments are those of `AugmentConfig` and `LoaderConfig`.

        Raises:
            ConfigError: a listed transform or the folder of the cache cannot be used.
        """
        if disk_cache is not None:
            prepare_cache_folder(disk_cache, annotations)
        self.annotations, self._canvas_hw, self._fit, self._seed = annotations, canvas_hw, fit, seed
        self._augment, self._channels, self._reduced_decode = augment, channels, reduced_decode
        self._cache = ImageCache(channels, cache_mb, disk_cache)
        self._recipes: dict[tuple[int, int], tuple[Recipe, float]] = {}
        self._recipe_of(canvas_hw)

    def __len__(self) -> int:
        return len(self.annotations)

    def _recipe_of(self, canvas_hw: tuple[int, int]) -> tuple[Recipe, float]:
        """The recipe of a canvas and the greatest zoom that decoding may count on."""
        if canvas_hw not in self._recipes:
            recipe = Recipe(self._augment, canvas_hw, self._channels, self._fit, len(self.annotations))
            zoom = greatest_zoom(self._augment, canvas_hw) if self._reduced_decode else math.inf
            self._recipes[canvas_hw] = recipe, zoom
        return self._recipes[canvas_hw]

    def __getitem__(self, key: SampleKey) -> Sample:
        """The sample of a key: the same arrays on every call, in any process."""
        rng = np.random.default_rng((self._seed, key.epoch, key.image_index, *([key.copy] if key.copy else [])))
        skipped, warned = list[str](), list[str]()
        letterbox, canvas_hw = None, key.canvas_hw or self._canvas_hw
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
        """A source image with its objects; one that cannot be read is replaced by the next.

        Args:
            index: image within the data set.
            zoom: how much larger than fitted to the canvas it is shown at most, as far as decoding may depend on it.
            skipped: where the reason of each replacement is noted.
            warned: where it is noted what is odd about an image that is decoded.
            canvas_hw: height and width of the canvas it is shown on, by default of the configured one.

        Raises:
            DatasetError: too many images in a row cannot be read.
        """
        skipped, warned = [] if skipped is None else skipped, [] if warned is None else warned
        for _ in range(_MAX_REPLACEMENTS):
            try:
                return self._read(index, zoom, warned, canvas_hw or self._canvas_hw)
            except MediaError as error:
                skipped.append(str(error))
                index = (index + 1) % len(self.annotations)
        raise DatasetError(
            f"{self.annotations.annotations}: {_MAX_REPLACEMENTS} images in a row cannot be read, the last because "
            f"{skipped[-1]}; check the images folder"
        )

    def _read(self, index: int, zoom: float, warned: list[str], canvas_hw: tuple[int, int]) -> Source:
        path, source_xyxy = self.annotations.path(index), self.annotations.source_xyxy(index)
        height, width = self.annotations.image_hw[index].tolist()
        reduction = _reduction((height, width), canvas_hw, self._fit, zoom)
        image = self._cache.read(path, reduction, warned)
        if reduction > 1 and image.shape[:2] != (height // reduction, width // reduction):
            # It is no JPEG, or not of the size that the annotation file gives.
            reduction, image = 1, self._cache.read(path, 1, warned)
        image_hw = image.shape[0] * reduction, image.shape[1] * reduction
        warning = size_warning(path, image_hw, (height, width))
        if warning is not None:
            warned.append(warning)
            source_xyxy = clip_xyxy(source_xyxy, image_hw)
        # Whole blocks became pixels: the same frame in larger units, and a power of two divides without rounding.
        labels, is_crowd = self.annotations.labels_of(index), self.annotations.is_crowd_of(index)
        return image, Objects(source_xyxy / np.float32(reduction), labels, is_crowd)


def _reduction(image_hw: tuple[int, int], canvas_hw: tuple[int, int], fit: str, zoom: float) -> int:
    """The largest of 8, 4, 2 and 1 that divides an image's sides and leaves every pixel that is ever shown.

    Args:
        image_hw: height and width as the annotation file gives them; 0, 0 where it does not.
        canvas_hw: height and width of the canvas.
        fit: a mode of `Letterbox`.
        zoom: the greatest zoom of an image fitted to the canvas.
    """
    if not all(image_hw) or math.isinf(zoom):
        return 1
    scale = max(Letterbox.fit(image_hw, canvas_hw, fit).scale_hw) * zoom
    return next((r for r in (8, 4, 2) if scale * r <= 1 and image_hw[0] % r == image_hw[1] % r == 0), 1)


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
        prefetch_factor=PREFETCHED if config.workers else None,
        persistent_workers=config.workers
        > 0,  # with what they keep in memory, should the batches be gone through again
        # It seeds the workers, who draw nothing; without one of its own it would draw from the model's random numbers.
        generator=torch.Generator(),
    )


def training_batches(samples: TrainingSamples, sampler: StreamSampler, config: LoaderConfig) -> Iterator[Batch]:
    """The batches of `training_loader`; an error of ours in a worker arrives as it was raised.

    Raises:
        DetectorError: what a sample raised, without the worker's traceback that torch puts into its text, or that a
            worker died or sent nothing for `timeout_s`.
    """
    try:
        yield from training_loader(samples, sampler, config)
    except DetectorError as error:
        raise type(error)(str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].strip()) from error
    except RuntimeError as error:
        raise _lost_worker(error, config) from error


def _lost_worker(error: RuntimeError, config: LoaderConfig) -> Exception:
    """What became of a worker, in words, where torch's own text says that one is gone; else the error itself."""
    text = str(error)
    if "timed out after" in text:
        return DetectorError(
            f"the loader got no batch from its {config.workers} workers within {config.timeout_s:g} s; raise "
            f"loader.timeout_s if the disk is slow, or use loader.workers=0 to see where it hangs"
        )
    found = re.search(r"worker \(pid\(?s?\)? ?([\d, ]+)\) (?:is killed by signal: (.+?)\. |exited unexpectedly)", text)
    if found is None:
        return error
    how = f"was killed ({found[2]})" if found[2] else "ended without a word"
    return DetectorError(
        f"a worker of the loader, process {found[1]}, {how}, mostly for want of memory; use fewer loader.workers, a "
        f"smaller loader.cache_mb or a larger /dev/shm, or loader.workers=0 to see the cause, and resume the run"
    )
