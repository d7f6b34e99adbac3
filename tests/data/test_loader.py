from __future__ import annotations

import multiprocessing
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detector.data import image_cache
from detector.data import loader as module
from detector.data.albumentations_chain import AlbumentationsChain
from detector.data.augment import augmenter
from detector.data.augment.augment_config import AugmentConfig
from detector.data.augment.colour import Degradation
from detector.data.augment.patches import CutOut
from detector.data.coco import CocoAnnotations, read_coco
from detector.data.loader import BatchRange, LoaderConfig, SampleKey, StreamSampler, TrainingSamples, training_loader
from detector.errors import DatasetError
from detector.media.images import LoadedImage, read_image
from detector.structures.canvas import Canvas
from detector.structures.letterbox import Letterbox
from detector.structures.types import Batch

# Everything at once; HorizontalFlip moves boxes, GaussNoise draws many numbers.
FULL = AugmentConfig(
    mosaic=0.7,
    mosaic_nine=0.3,
    crop=0.5,
    mixup=0.5,
    degrees=10,
    shear=2,
    flip_vertical=0.5,
    perspective=0.2,
    copy_paste=0.5,
    grayscale=0.3,
    blur=2,
    noise=9,
    jpeg=60,
    degraded_share=0.4,
    cutout=0.2,
    albumentations=({"name": "GaussNoise", "p": 0.5}, {"name": "HorizontalFlip", "p": 0.5}),
)
PLAIN = AugmentConfig(mosaic=0, scale=0, translate=0, flip_horizontal=0, hue=0, saturation=0, value=0)
CANVAS_HW = (64, 96)


@pytest.fixture(scope="module", name="annotations")
def training_annotations(tiny_shapes: Path) -> CocoAnnotations:
    return read_coco(tiny_shapes / "annotations" / "train.json", tiny_shapes / "images" / "train")


@pytest.fixture
def own_copy(tiny_shapes: Path, tmp_path: Path) -> Path:
    """A copy whose files a test may damage."""
    return Path(shutil.copytree(tiny_shapes, tmp_path / "copy"))


def read(root: Path) -> CocoAnnotations:
    return read_coco(root / "annotations" / "train.json", root / "images" / "train")


def samples_of(annotations: CocoAnnotations, augment: AugmentConfig = FULL, **options: Any) -> TrainingSamples:
    usual = {"canvas": Canvas(CANVAS_HW, 3, "letterbox"), "seed": 0, "cache_mb": 64}
    return TrainingSamples(annotations, augment=augment, **{**usual, **options})


def sampler_of(num_samples: int, batch_size: int = 4, seed: int = 0, **options: int) -> StreamSampler:
    batches = BatchRange(**{"start": 0, "stop": 6, "closing_from": 10**9, **options})
    return StreamSampler(num_samples, batch_size, seed, batches)


def batches_of(samples: TrainingSamples, sampler: StreamSampler, workers: int = 0) -> list[Batch]:
    config = LoaderConfig(batch_size=4, workers=workers, timeout_s=60)
    return [batch for batch in training_loader(samples, sampler, config) if isinstance(batch, Batch)]


def assert_equal(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.images, b.images)
        for name in ("canvas_xyxy", "labels", "image_index", "ignore"):
            assert torch.equal(getattr(a.targets, name), getattr(b.targets, name)), name
        assert a.image_ids == b.image_ids
        assert a.skipped == b.skipped


# ---- the order


def indices(sampler: StreamSampler) -> list[int]:
    return [key.image_index for keys in sampler for key in keys]


def test_every_image_comes_once_per_epoch_in_an_order_of_its_own() -> None:
    found = np.array(indices(sampler_of(12, 4, stop=12))).reshape(4, 12)  # four epochs
    assert (np.sort(found, axis=1) == np.arange(12)).all()
    orders = {tuple(epoch) for epoch in found.tolist()} | {tuple(range(12))}
    assert len(orders) == 5  # all differ, and from the order of the file


def test_the_epoch_in_a_key_counts_passes_over_the_data_set() -> None:
    keys = [key for keys in sampler_of(10, 4, stop=10) for key in keys]
    assert [key.epoch for key in keys] == [position // 10 for position in range(40)]


def test_another_seed_gives_another_order() -> None:
    assert indices(sampler_of(12)) == indices(sampler_of(12))
    assert indices(sampler_of(12)) != indices(sampler_of(12, seed=1))


def test_every_batch_is_full_although_the_epoch_is_no_multiple_of_it() -> None:
    sampler = sampler_of(10, 4, stop=7)
    batches = list(sampler)
    assert len(sampler) == len(batches) == 7
    assert {len(batch) for batch in batches} == {4}


@pytest.mark.parametrize("num_samples", [1, 3])
def test_a_data_set_smaller_than_a_batch_is_repeated_within_a_batch(num_samples: int) -> None:
    batches = list(sampler_of(num_samples, 8, stop=3))
    assert [len(batch) for batch in batches] == [8] * 3
    counts = np.bincount([key.image_index for batch in batches for key in batch])
    assert counts.max() - counts.min() <= 1
    repeated = [key for batch in batches for key in batch]
    assert len(set(repeated)) == len(repeated)  # another epoch, so another augmentation


@pytest.mark.parametrize("start", [1, 3, 5])
def test_a_resumed_stream_equals_the_rest_of_the_whole_stream(start: int) -> None:
    whole = list(sampler_of(10, 4, closing_from=4))
    assert list(sampler_of(10, 4, closing_from=4, start=start)) == whole[start:]


def test_batches_from_the_closing_one_on_are_marked() -> None:
    marks = [{key.closing for key in batch} for batch in sampler_of(10, 4, closing_from=4)]
    assert marks == [{False}] * 4 + [{True}] * 2


# ---- the samples


def test_a_sample_is_a_function_of_its_key_alone(annotations: CocoAnnotations) -> None:
    samples = samples_of(annotations)
    keys = [SampleKey(epoch, index, False) for epoch in range(2) for index in range(4)]
    first = [samples[key] for key in keys]
    again = samples_of(annotations, cache_mb=0)
    second = [again[key] for key in reversed(keys)][::-1]
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.image, b.image)
        assert np.array_equal(a.canvas_xyxy, b.canvas_xyxy)
    assert len({sample.image.tobytes() for sample in first}) == len(keys)  # epochs differ too
    other = samples_of(annotations, seed=1)
    assert not np.array_equal(other[keys[0]].image, first[0].image)


def test_images_and_boxes_fit_the_canvas(annotations: CocoAnnotations) -> None:
    samples = samples_of(annotations)
    for index in range(len(annotations)):
        sample = samples[SampleKey(0, index, False)]
        assert sample.image.shape == (*CANVAS_HW, 3)
        assert sample.image_id == annotations.image_ids[index]
        assert sample.letterbox is None
        boxes = sample.canvas_xyxy
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= np.array(CANVAS_HW[::-1])).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_without_augmentation_a_sample_is_the_letterboxed_image(annotations: CocoAnnotations) -> None:
    samples = samples_of(annotations, PLAIN)
    for index in range(3):
        source = read_image(annotations.path(index))
        letterbox = Letterbox.fit(source.shape[:2], CANVAS_HW)
        boxes = letterbox.boxes_to_canvas(annotations.source_xyxy(index))
        for closing in (False, True):
            sample = samples[SampleKey(0, index, closing)]
            assert np.abs(sample.canvas_xyxy - boxes).max() <= 1e-4
            assert np.array_equal(sample.labels, annotations.labels_of(index))
            wanted = letterbox.apply(source).astype(int)
            assert np.abs(sample.image.astype(int) - wanted).mean() <= (0 if closing else 0.5)


def test_closing_samples_are_letterboxed_and_never_joined(
    annotations: CocoAnnotations, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> Any:
        raise AssertionError("a closing sample joined or moved images")

    samples = samples_of(annotations, replace(FULL, mosaic=1.0, mixup=1.0))
    for step in (Degradation, CutOut, AlbumentationsChain):
        monkeypatch.setattr(step, "__call__", refuse)
    for name in ("mosaic_places", "random_affine", "warp_into", "paste_objects", "crop_to"):
        monkeypatch.setattr(augmenter, name, refuse)
    mirrored = set()
    for epoch in range(12):
        sample = samples[SampleKey(epoch, 0, True)]
        source_hw = (int(annotations.image_hw[0, 0]), int(annotations.image_hw[0, 1]))
        assert sample.letterbox == Letterbox.fit(source_hw, CANVAS_HW)
        assert len(sample.labels) == len(annotations.labels_of(0))
        mirrored.add(tuple(sample.canvas_xyxy[0].tolist()))
    assert len(mirrored) == 4  # left, right, upright, upside down
    with pytest.raises(AssertionError, match="joined"):
        samples[SampleKey(0, 0, False)]


def test_a_mirrored_closing_box_is_where_its_pixels_are(annotations: CocoAnnotations) -> None:
    samples = samples_of(annotations, replace(PLAIN, flip_horizontal=1.0))
    plain, mirrored = samples_of(annotations, PLAIN)[SampleKey(0, 0, True)], samples[SampleKey(0, 0, True)]
    assert np.array_equal(mirrored.image, plain.image[:, ::-1])
    assert np.allclose(mirrored.canvas_xyxy[:, 0], CANVAS_HW[1] - plain.canvas_xyxy[:, 2], atol=1e-4)


def test_a_mosaic_holds_objects_of_several_images_and_mixup_joins_two(annotations: CocoAnnotations) -> None:
    def mean_objects(**changes: Any) -> float:
        samples = samples_of(annotations, replace(PLAIN, **changes))
        return float(np.mean([len(samples[SampleKey(0, i, False)].labels) for i in range(12)]))

    single = mean_objects()
    assert mean_objects(mosaic=1.0, scale=0.5) > 1.2 * single
    assert mean_objects(mixup=1.0) > 1.5 * single


@pytest.mark.parametrize("channels", [1, 5])
def test_images_of_other_channel_counts_pass_through(
    channels: int, annotations: CocoAnnotations, monkeypatch: pytest.MonkeyPatch
) -> None:
    grey = [read_image(annotations.path(i), 1) for i in range(len(annotations))]
    paths = {annotations.path(i): i for i in range(len(annotations))}
    if channels == 5:  # no common format holds five planes: a reader for one is stood in for

        def load_planes(path: Path, wanted: int, reduction: int) -> LoadedImage:
            planes = np.repeat(grey[paths[path]], wanted, axis=2)
            return LoadedImage(planes, planes.shape[:2])

        monkeypatch.setattr(image_cache, "load_image", load_planes)
    canvas = Canvas(CANVAS_HW, channels, "letterbox")
    samples = samples_of(annotations, FULL, canvas=canvas)
    for closing in (False, True):
        sample = samples[SampleKey(0, 3, closing)]
        assert sample.image.shape == (*CANVAS_HW, channels)
    batch = Batch.of([samples[SampleKey(0, i, False)] for i in range(3)])
    assert batch.images.shape == (3, channels, *CANVAS_HW)
    plain = samples_of(
        annotations, replace(PLAIN, mosaic=1.0, mixup=1.0), canvas=Canvas(CANVAS_HW, channels, "letterbox")
    )
    image = plain[SampleKey(0, 3, False)].image
    assert all(np.array_equal(image[..., 0], image[..., c]) for c in range(channels))
    assert image.std() > 0


# ---- batches


@pytest.mark.filterwarnings("ignore:This DataLoader will create 8 worker processes")
def test_batches_are_the_same_bits_for_every_number_of_workers_and_when_resumed(annotations: CocoAnnotations) -> None:
    samples = samples_of(annotations)
    sampler = sampler_of(len(annotations), closing_from=4)
    alone = batches_of(samples, sampler)
    assert len(alone) == 6
    for workers in (2, 8):
        assert_equal(alone, batches_of(samples_of(annotations), sampler, workers))
    resumed = sampler_of(len(annotations), closing_from=4, start=2)
    assert_equal(alone[2:], batches_of(samples_of(annotations), resumed))


def test_a_batch_holds_what_its_samples_hold(annotations: CocoAnnotations) -> None:
    samples, sampler = samples_of(annotations), sampler_of(len(annotations), stop=1)
    (batch,), (keys,) = batches_of(samples, sampler), list(sampler)
    assert batch.images.shape == (4, 3, *CANVAS_HW)
    assert batch.images.dtype == torch.uint8
    for number, key in enumerate(keys):
        sample = samples[key]
        own = batch.targets.image_index == number
        assert np.array_equal(batch.images[number].permute(1, 2, 0).numpy(), sample.image)
        assert np.array_equal(batch.targets.canvas_xyxy[own].numpy(), sample.canvas_xyxy)
        assert np.array_equal(batch.targets.labels[own].numpy(), sample.labels)


def test_the_samples_pickle(annotations: CocoAnnotations) -> None:
    samples = samples_of(annotations)
    wanted = samples[SampleKey(1, 2, False)]
    copy: TrainingSamples = pickle.loads(pickle.dumps(samples))
    assert np.array_equal(copy[SampleKey(1, 2, False)].image, wanted.image)
    assert len(copy) == len(samples) == 12


@pytest.mark.parametrize("method", sorted({"spawn", "forkserver"} & {*multiprocessing.get_all_start_methods()}))
def test_a_spawned_worker_makes_the_same_batch(method: str, annotations: CocoAnnotations) -> None:
    samples, sampler = samples_of(annotations), sampler_of(len(annotations), stop=1)
    loader = training_loader(samples, sampler, LoaderConfig(batch_size=4, workers=1, timeout_s=60))
    loader.multiprocessing_context = method
    assert_equal(batches_of(samples, sampler), list(loader))  # type: ignore[arg-type]


# ---- images that cannot be read


def damage(root: Path, *indices: int) -> list[Path]:
    annotations = read(root)
    paths = [annotations.path(index) for index in indices]
    for path in paths:
        path.write_bytes(b"no image")
    return paths


@pytest.mark.parametrize("closing", [False, True])
def test_an_unreadable_image_is_replaced_by_its_successor_and_named(closing: bool, own_copy: Path) -> None:
    annotations = read(own_copy)
    sound = samples_of(annotations, PLAIN)[SampleKey(0, 4, closing)]
    (path,) = damage(own_copy, 3)
    sample = samples_of(annotations, PLAIN)[SampleKey(0, 3, closing)]
    assert np.array_equal(sample.image, sound.image)
    assert np.array_equal(sample.canvas_xyxy, sound.canvas_xyxy)
    assert np.array_equal(sample.labels, sound.labels)
    assert len(sample.skipped) == 1
    assert str(path) in sample.skipped[0]
    assert sound.skipped == ()


def test_the_successor_of_the_last_image_is_the_first(own_copy: Path) -> None:
    annotations = read(own_copy)
    damage(own_copy, 11)
    samples = samples_of(annotations, PLAIN)
    assert np.array_equal(samples[SampleKey(0, 11, True)].image, samples[SampleKey(0, 0, True)].image)


@pytest.mark.parametrize("workers", [0, 1])
def test_reasons_of_skipped_images_are_in_the_batch(workers: int, own_copy: Path) -> None:
    annotations = read(own_copy)
    paths = damage(own_copy, 3, 7)
    batches = batches_of(samples_of(annotations), sampler_of(len(annotations), stop=3), workers)
    reasons = {reason for batch in batches for reason in batch.skipped}
    assert len(reasons) == 2
    assert all(any(str(path) in reason for reason in reasons) for path in paths)
    assert all(len(batch.image_ids) == 4 for batch in batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_set_whose_images_are_all_unreadable_is_refused(workers: int, own_copy: Path) -> None:
    annotations = read(own_copy)
    damage(own_copy, *range(12))
    with pytest.raises(DatasetError, match=r"16 images in a row cannot be read.*check the folder of images"):
        batches_of(samples_of(annotations), sampler_of(12), workers)


def test_an_error_in_a_worker_arrives_as_one_sentence(own_copy: Path) -> None:
    annotations = read(own_copy)
    damage(own_copy, *range(12))
    batches = module.training_batches(samples_of(annotations), sampler_of(12), LoaderConfig(batch_size=4, workers=1))
    with pytest.raises(DatasetError) as caught:
        next(batches)
    assert str(caught.value).startswith(str(annotations.annotations))
    assert "\n" not in str(caught.value)


# ---- settings and memory


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"batch_size": 0}, r"batch_size within 1\.\.65536"),
        ({"batch_size": 10**12}, r"batch_size within 1\.\.65536"),
        ({"workers": -1}, r"workers within 0\.\.1024"),
        ({"workers": 10**6}, r"workers within 0\.\.1024"),
        ({"cache_mb": -1}, "cache_mb >= 0"),
        ({"timeout_s": 0}, "timeout_s > 0"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        LoaderConfig(**settings)
