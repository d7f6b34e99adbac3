from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from detector.data.augment.augment_config import AugmentConfig
from detector.data.canvas_sizes import training_canvases
from detector.data.coco import CocoAnnotations, read_coco
from detector.data.loader import BatchRange, LoaderConfig, SampleKey, StreamSampler, TrainingSamples, training_loader
from detector.errors import ConfigError
from detector.structures.canvas import Canvas, InputConfig
from detector.structures.types import Batch

CANVASES = ((32, 64), (64, 128), (96, 192))


@pytest.fixture(scope="module", name="annotations")
def training_annotations(tiny_shapes: Path) -> CocoAnnotations:
    return read_coco(tiny_shapes / "annotations" / "train.json", tiny_shapes / "images" / "train")


def sampler_of(seed: int = 0, **options: int) -> StreamSampler:
    batches = BatchRange(**{"start": 0, "stop": 300, "closing_from": 300, **options})
    return StreamSampler(12, 4, seed, batches, canvases=CANVASES)


@pytest.mark.parametrize(
    ("canvas_hw", "multi_scale", "wanted"),
    [
        ((320, 320), 0.2, [(s, s) for s in (256, 288, 320, 352, 384)]),
        ((320, 320), 0.1, [(s, s) for s in (288, 320, 352)]),
        ((640, 640), 0.25, [(s, s) for s in range(480, 801, 32)]),
        ((64, 128), 0.5, [(32, 64), (64, 128), (96, 192)]),
        ((96, 160), 0.4, [(64, 96), (96, 160), (128, 224)]),  # 106.7 and 213.3 px wide would keep the aspect ratio
        ((64, 64), 0.99, [(32, 32), (64, 64), (96, 96)]),
        ((320, 320), 0.0, []),
    ],
)
def test_sides_are_the_multiples_of_the_stride_within_reach(
    canvas_hw: tuple[int, int], multi_scale: float, wanted: list[tuple[int, int]]
) -> None:
    assert list(training_canvases(canvas_hw, multi_scale, 32)) == wanted


def test_a_change_too_small_for_another_size_is_refused_with_the_smallest_one_that_works() -> None:
    with pytest.raises(ConfigError, match=r"input\.multi_scale=0\.05 leaves .* raise it to 0\.1 or more"):
        training_canvases((320, 320), 0.05, 32)
    assert len(training_canvases((320, 320), 0.1, 32)) == 3


@pytest.mark.parametrize("multi_scale", [-0.1, 1.0, float("nan")])
def test_a_change_out_of_range_is_refused(multi_scale: float) -> None:
    with pytest.raises(ValueError, match=r"0 <= multi_scale < 1"):
        InputConfig(multi_scale=multi_scale)


def test_a_batch_has_one_size_and_every_size_occurs() -> None:
    batches = list(sampler_of())
    assert all(len({key.canvas_hw for key in batch}) == 1 for batch in batches)
    counts = Counter(batch[0].canvas_hw for batch in batches)
    assert set(counts) == set(CANVASES)
    assert min(counts.values()) > 60  # 100 each on average, standard deviation 8


def test_sizes_depend_on_the_seed_and_the_batch_alone() -> None:
    whole = [batch[0].canvas_hw for batch in sampler_of()]
    assert [batch[0].canvas_hw for batch in sampler_of(start=123)] == whole[123:]
    assert [batch[0].canvas_hw for batch in sampler_of(rank=1, world_size=3)] == whole
    assert [batch[0].canvas_hw for batch in sampler_of(seed=1)] != whole


def test_the_closing_part_has_the_configured_size() -> None:
    batches = list(sampler_of(stop=20, closing_from=12))
    assert all(key.canvas_hw is None and key.closing for batch in batches[12:] for key in batch)
    assert all(key.canvas_hw in CANVASES for batch in batches[:12] for key in batch)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_on_another_canvas_is_that_of_a_set_with_that_canvas(
    annotations: CocoAnnotations, workers: int
) -> None:
    augment = AugmentConfig(perspective=0.1)

    def samples_of(canvas_hw: tuple[int, int]) -> TrainingSamples:
        canvas = Canvas(canvas_hw, 3, "letterbox")
        return TrainingSamples(annotations, canvas, augment, 0, cache_mb=8, reduced_decode=True)

    sampler = sampler_of(stop=6, closing_from=5)
    batches = training_loader(samples_of((64, 128)), sampler, LoaderConfig(batch_size=4, workers=workers))
    sizes = set()
    for keys, batch in zip(sampler, batches, strict=True):
        canvas_hw = keys[0].canvas_hw or (64, 128)
        sizes.add(canvas_hw)
        assert tuple(batch.images.shape[2:]) == canvas_hw
        own = samples_of(canvas_hw)
        wanted = Batch.of([own[SampleKey(key.epoch, key.image_index, key.closing)] for key in keys])
        assert np.array_equal(batch.images.numpy(), wanted.images.numpy())
        assert np.array_equal(batch.targets.canvas_xyxy.numpy(), wanted.targets.canvas_xyxy.numpy())
    assert len(sizes) >= 2
