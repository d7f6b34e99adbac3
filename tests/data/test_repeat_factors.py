from __future__ import annotations

import math
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.data.augment.augment_config import AugmentConfig
from detector.data.augment.augmenter import AugmentationRecipe, Source
from detector.data.coco import CocoAnnotations, read_coco
from detector.data.loader import BatchRange, LoaderConfig, SampleKey, StreamSampler, TrainingSamples, training_loader
from detector.data.repeat_factors import repeat_factors
from detector.structures.canvas import Canvas
from detector.structures.types import Batch, ImageObjects

FACTORS = np.array([1.0, 2.5, 1.0, 4.0, 1.25])


@pytest.fixture(scope="module", name="annotations")
def training_annotations(tiny_shapes: Path) -> CocoAnnotations:
    return read_coco(tiny_shapes / "annotations" / "train.json", tiny_shapes / "images" / "train")


def sampler_of(stop: int, batch_size: int = 4, factors: Any = FACTORS, **options: int) -> StreamSampler:
    batches = BatchRange(**{"start": 0, "stop": stop, "closing_from": 10**9, **options})
    return StreamSampler(len(FACTORS), batch_size, 3, batches, factors=factors)


def keys_of(sampler: StreamSampler) -> list[SampleKey]:
    return list(chain.from_iterable(sampler))


def test_factors_are_those_of_the_formula_on_real_annotations(annotations: CocoAnnotations) -> None:
    threshold = 0.9
    share = {
        label: np.mean([label in annotations.labels_of(i) for i in range(len(annotations))])
        for label in range(len(annotations.class_names))
    }
    wanted = [
        max([1.0, *(math.sqrt(threshold / share[int(label)]) for label in annotations.labels_of(i))])
        for i in range(len(annotations))
    ]
    of_image = repeat_factors(annotations, threshold)[1]
    assert of_image.tolist() == pytest.approx(wanted, rel=1e-12)
    assert of_image.max() > 1.2


def test_each_image_comes_as_often_as_its_factor_says() -> None:
    keys = keys_of(sampler_of(4000))
    last = keys[-1].epoch
    for epoch in range(last):
        counts = Counter(key.image_index for key in keys if key.epoch == epoch)
        assert [counts[0], counts[2], counts[3]] == [1, 1, 4]
        assert counts[1] in (2, 3)
        assert counts[4] in (1, 2)
    mean = [sum(k.image_index == i for k in keys if k.epoch < last) / last for i in range(5)]
    # 1,600 epochs: the standard deviation of the mean is at most 0.5 / 40.
    assert mean == pytest.approx(FACTORS.tolist(), abs=4 * 0.5 / 40)


def test_repetitions_of_an_image_have_different_keys() -> None:
    keys = keys_of(sampler_of(300))
    assert len(set(keys)) == len(keys)
    for epoch in range(keys[-1].epoch):
        copies = sorted(key.copy for key in keys if key.epoch == epoch and key.image_index == 3)
        assert copies == [0, 1, 2, 3]


@pytest.mark.parametrize("start", [1, 3, 17, 60])
def test_a_resumed_stream_is_the_rest_of_the_whole_one(start: int) -> None:
    assert list(sampler_of(70, start=start)) == list(sampler_of(70))[start:]


def test_processes_share_one_stream() -> None:
    whole = list(sampler_of(40))
    shares = [list(sampler_of(20, rank=rank, world_size=2)) for rank in range(2)]
    assert [batch for pair in zip(*shares, strict=True) for batch in pair] == whole


def test_another_seed_draws_other_repetitions() -> None:
    def counts(seed: int) -> list[tuple[int, int]]:
        sampler = StreamSampler(5, 4, seed, BatchRange(0, 200, closing_from=999), factors=FACTORS)
        return sorted((k.epoch, k.image_index) for k in chain.from_iterable(sampler))

    assert counts(0) == counts(0)
    assert counts(0) != counts(1)


def test_without_factors_every_image_comes_once_in_the_same_order() -> None:
    keys = keys_of(sampler_of(10, factors=None))
    wanted = [
        SampleKey(epoch, int(index), False)
        for epoch in range(8)
        for index in np.random.default_rng((3, epoch)).permutation(5)
    ]
    assert keys == wanted


@pytest.mark.parametrize("workers", [0, 2])
def test_repetitions_of_an_image_are_augmented_differently(annotations: CocoAnnotations, workers: int) -> None:
    samples = TrainingSamples(annotations, Canvas((64, 64), 3, "letterbox"), AugmentConfig(), 0, cache_mb=8)
    factors = np.ones(len(annotations))
    factors[5] = 3.0
    sampler = StreamSampler(len(annotations), 7, 0, BatchRange(0, 2, closing_from=99), factors=factors)
    config = LoaderConfig(batch_size=7, workers=workers)
    batches = [b for b in training_loader(samples, sampler, config) if isinstance(b, Batch)]
    shown = [
        image.numpy()
        for batch in batches
        for image, image_id in zip(batch.images, batch.image_ids, strict=True)
        if image_id == annotations.image_ids[5]
    ]
    assert len(shown) == 3
    assert not np.array_equal(shown[0], shown[1])
    wanted = [samples[key].image for key in keys_of(sampler) if key.image_index == 5]
    for ours, theirs in zip(shown, wanted, strict=True):
        assert np.array_equal(ours, theirs.transpose(2, 0, 1))


@pytest.mark.parametrize(
    "steps",
    [{"mosaic": 1.0}, {"mosaic": 1.0, "mosaic_nine": 1.0}, {"mosaic": 0.0, "mixup": 1.0}, {"copy_paste": 1.0}],
    ids=["mosaic", "mosaic_nine", "mixup", "copy_paste"],
)
@pytest.mark.parametrize("factors", [FACTORS, None])
def test_sources_of_training_images_are_shown_as_often_as_their_factors_say(steps: Any, factors: Any) -> None:
    recipe = AugmentationRecipe(AugmentConfig(**steps), Canvas((8, 8), 3, "letterbox"), len(FACTORS), factors)
    shown: Counter[int] = Counter()

    def read(index: int) -> Source:
        shown[index] += 1
        return np.zeros((8, 8, 3), np.uint8), ImageObjects(np.zeros((0, 4), np.float32), *np.zeros((2, 0), np.int64))

    for key in keys_of(sampler_of(300, factors=factors)):
        recipe.varied(key.image_index, read, np.random.default_rng((key.epoch, key.image_index, key.copy)))
    weights = np.ones(5) if factors is None else FACTORS
    share = weights / weights.sum()
    number = sum(shown.values())
    assert number > 1200
    # Five standard deviations of independent draws; the images of the sampler itself vary less.
    assert [shown[i] / number for i in range(5)] == pytest.approx(share, abs=5 * math.sqrt(0.25 / number))


@pytest.mark.parametrize("threshold", [-0.1, 1.5])
def test_a_threshold_outside_0_to_1_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"loader\.repeat_factor: expected a share"):
        LoaderConfig(repeat_factor=threshold)
