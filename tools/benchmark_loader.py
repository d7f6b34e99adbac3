"""Benchmark of the loader alone: mosaic, affine, HSV and flip of this package against those of albumentations.

    python tools/benchmark_loader.py data/bccd.yaml --workers 1 2 --epochs 20

Both loaders put the same images into the same batches in the same order, from the same cache of decoded images, with
one thread per process. They alternate epoch by epoch, so that a change in the speed of the machine affects both. The
first epoch of each fills the cache and is not counted. Prints images/s, the ratio and the growth of memory.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from detector.data.augment.augment_config import AugmentConfig
from detector.data.coco import CocoAnnotations
from detector.data.loader import BatchRange, LoaderConfig, SampleKey, StreamSampler, TrainingSamples, training_loader
from detector.structures.canvas import Canvas
from detector.structures.types import Sample
from detector.tasks.detection_model import load_detection, read_split

SIZE = 640
BATCH_SIZE = 16
CACHE_MB = 16384
OURS, THEIRS = "this package", "albumentations"


class AlbumentationsSamples(Dataset[Sample]):
    """Return the default augmentation in albumentations: Mosaic, Affine, HueSaturationValue, HorizontalFlip."""

    def __init__(self, samples: TrainingSamples) -> None:
        import albumentations

        self._samples, recipe = samples, AugmentConfig()
        self._compose = albumentations.Compose(
            [
                albumentations.Mosaic(
                    grid_yx=(2, 2),
                    target_size=(SIZE, SIZE),
                    cell_shape=(SIZE, SIZE),
                    fit_mode="contain",
                    fill=114,
                    p=recipe.mosaic,
                ),
                albumentations.Affine(
                    scale=(1 - recipe.scale, 1 + recipe.scale),
                    translate_percent=(-recipe.translate, recipe.translate),
                    fill=114,
                    p=1.0,
                ),
                albumentations.HueSaturationValue(
                    hue_shift_limit=recipe.hue * 180,
                    sat_shift_limit=recipe.saturation * 128,  # albumentations adds, this package multiplies
                    val_shift_limit=recipe.value * 128,
                    p=1.0,
                ),
                albumentations.HorizontalFlip(p=recipe.flip_horizontal),
            ],
            bbox_params=albumentations.BboxParams(
                format="pascal_voc", label_fields=["rows"], clip=True, min_visibility=0.1, filter_invalid_bboxes=True
            ),
        )

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, key: SampleKey) -> Sample:
        rng = np.random.default_rng((0, key.epoch, key.image_index))
        indices = [key.image_index, *rng.integers(len(self), size=3).tolist()]
        sources = [self._samples.source(index) for index in indices]
        self._compose.set_random_seed(int(rng.integers(2**31)))
        labels = np.concatenate([objects.labels for _, objects in sources])
        first = np.cumsum([0, *(len(objects.labels) for _, objects in sources)])
        items: list[dict[str, Any]] = [
            {"image": image, "bboxes": objects.xyxy, "rows": np.arange(first[i], first[i + 1])}
            for i, (image, objects) in enumerate(sources)
        ]
        found = self._compose(**items[0], mosaic_metadata=items[1:])
        rows = np.asarray(found["rows"], dtype=np.int64)
        boxes = np.asarray(found["bboxes"], np.float32).reshape(-1, 4)
        image = np.ascontiguousarray(found["image"])
        return Sample(image, boxes, labels[rows], np.zeros(len(rows), np.bool_), key.image_index)


class Epoch(Sampler[list[SampleKey]]):
    """Sampler that yields the batches of the next epoch each time it is iterated over."""

    def __init__(self, num_images: int) -> None:
        self._num_images, self._num_batches, self._epoch = num_images, num_images // BATCH_SIZE, -1

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[list[SampleKey]]:
        self._epoch += 1
        start = self._epoch * self._num_batches
        stop = start + self._num_batches
        return iter(StreamSampler(self._num_images, BATCH_SIZE, 0, BatchRange(start, stop, closing_from=stop)))


def loader_of(name: str, annotations: CocoAnnotations, workers: int) -> DataLoader[Any]:
    """Return one of the two loaders; its workers wait between epochs."""
    samples = TrainingSamples(
        annotations, Canvas((SIZE, SIZE), 3, "letterbox"), AugmentConfig(), seed=0, cache_mb=CACHE_MB
    )
    for index in range(len(samples)):  # decoded once before the workers are forked, so that they share the pages
        samples.source(index)
    chosen: Any = samples if name == OURS else AlbumentationsSamples(samples)
    sampler: Any = Epoch(len(samples))
    return training_loader(chosen, sampler, LoaderConfig(BATCH_SIZE, workers))


def resident_mb() -> float:
    """Return the memory of this process and its workers in megabytes, shared pages counted once; 0 unless on Linux."""
    own = os.getpid()
    if not Path(f"/proc/{own}/smaps_rollup").is_file():
        return 0.0
    children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    statements = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in [str(own), *children]]
    return sum(int(s.split("Pss:")[1].split()[0]) for s in statements) / 1024


def main() -> None:
    """Run the two loaders in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", help="a data set, as in data=...")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    annotations = read_split(load_detection("mish-n", [f"data={options.data}"]), "train")
    print(
        f"{options.data}, {len(annotations)} images, {SIZE} px, {os.cpu_count()} cores, {platform.machine()}, ", end=""
    )
    print(f"{options.epochs} epochs\n\n| workers | {OURS} | {THEIRS} | ratio | memory |\n|---|---|---|---|---|")
    for workers in options.workers:
        loaders = {name: loader_of(name, annotations, workers) for name in (OURS, THEIRS)}
        rates: dict[str, list[float]] = {name: [] for name in loaders}
        memory_mb = []
        for _ in range(options.epochs + 1):  # the first is not counted
            for name, loader in loaders.items():
                started_s = time.perf_counter()
                num_images = sum(len(batch.images) for batch in loader)
                rates[name].append(num_images / (time.perf_counter() - started_s))
            memory_mb.append(resident_mb())
        ours, theirs = (statistics.median(rates[name][1:]) for name in (OURS, THEIRS))
        memory = f"{memory_mb[1]:.0f} MB after epoch 1, {memory_mb[-1]:.0f} MB at the end"
        print(
            f"| {workers} | {ours:.0f} images/s | {theirs:.0f} images/s | {ours / theirs:.2f} | {memory} |", flush=True
        )


if __name__ == "__main__":
    main()
