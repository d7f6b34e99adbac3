from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from detector.data.classification_batches import BatchConfig, ImageAugmentConfig, indices_of, training_batches, varied
from detector.data.classification_split import LabelledImages

PLAIN = ImageAugmentConfig(flip_horizontal=0.0, crop_padding=0)


def pictures(num: int = 10, side: int = 8) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (num, side, side, 3)).astype(np.uint8)


def split_of(num: int = 10) -> LabelledImages:
    return LabelledImages(pictures(num), np.arange(num), tuple(map(str, range(num))), tuple(map(str, range(num))))


def test_each_image_comes_once_per_epoch_and_no_batch_is_short() -> None:
    stream = np.concatenate([indices_of(batch, 4, 10, seed=3) for batch in range(5)])
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
    assert stream[:10].tolist() != stream[10:].tolist()
    assert len(indices_of(0, 25, 10, seed=3)) == 25  # a batch may be larger than the split
    assert np.bincount(indices_of(0, 25, 10, seed=3)).max() == 3


def test_batches_are_a_function_of_the_seed_and_their_number_alone() -> None:
    split, augment = split_of(), ImageAugmentConfig(cutout=3, mixup=0.4)

    def batches(start: int, seed: int = 1, **world: int) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
        made = training_batches(split, BatchConfig(4), augment, seed, start=start, stop=6, **world)
        return [(b.images, b.targets.labels, b.targets.share) for b in made]

    whole, resumed = batches(0), batches(4)
    assert len(whole) == 6
    for ours, theirs in zip(whole[4:], resumed, strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert ours[2] == theirs[2]
    assert any(not torch.equal(a[0], b[0]) for a, b in zip(whole, batches(0, seed=2), strict=True))
    second = batches(0, rank=1, world_size=2)
    assert torch.equal(second[1][0], whole[3][0])  # batch 1 of process 1 is batch 3 of the stream


def test_without_augmentation_the_images_are_those_of_the_split() -> None:
    split = split_of()
    batch = next(training_batches(split, BatchConfig(10), PLAIN, 0, start=0, stop=1))
    assert sorted(batch.image_ids) == list(range(10))
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    for image, label, index in zip(batch.images, batch.targets.labels, batch.image_ids, strict=True):
        assert label == index
        assert np.array_equal(image.permute(1, 2, 0).numpy(), split.images[index])


@pytest.mark.parametrize("settings", [{"flip_horizontal": 1.0}, {"flip_vertical": 1.0}])
def test_a_flip_turns_the_named_axis(settings: dict[str, float]) -> None:
    images = pictures()
    config = ImageAugmentConfig(**{"flip_horizontal": 0.0, "crop_padding": 0, **settings})  # type: ignore[arg-type]
    found, other, share = varied(images, config, np.random.default_rng(0))
    axis = 2 if "flip_horizontal" in settings else 1
    assert np.array_equal(found, np.flip(images, axis))
    assert (other.tolist(), share) == (list(range(10)), 1.0)


def test_half_of_the_images_are_flipped_at_one_half() -> None:
    images = pictures(400, 4)
    config = ImageAugmentConfig(flip_horizontal=0.5, crop_padding=0)
    found, _, _ = varied(images, config, np.random.default_rng(0))
    flipped = (found == np.flip(images, 2)).all(axis=(1, 2, 3))
    assert (flipped | (found == images).all(axis=(1, 2, 3))).all()
    assert 160 < flipped.sum() < 240


def test_a_crop_is_a_window_of_the_padded_image_and_every_window_occurs() -> None:
    images = pictures(300, 5)
    config = ImageAugmentConfig(flip_horizontal=0.0, crop_padding=1)
    found, _, _ = varied(images, config, np.random.default_rng(0))
    seen = set()
    for image, source in zip(found, images, strict=True):
        padded = np.pad(source, ((1, 1), (1, 1), (0, 0)), constant_values=114)
        windows = {(y, x): padded[y : y + 5, x : x + 5] for y in range(3) for x in range(3)}
        seen |= {place for place, window in windows.items() if np.array_equal(window, image)}
    assert len(seen) == 9


def test_cutout_greys_a_square_and_nothing_else() -> None:
    images = np.zeros((200, 8, 8, 3), np.uint8)
    config = ImageAugmentConfig(flip_horizontal=0.0, crop_padding=0, cutout=3)
    found, _, _ = varied(images, config, np.random.default_rng(0))
    areas = (found[..., 0] == 114).sum(axis=(1, 2))
    assert areas.max() == 9
    assert areas.min() >= 4  # cut off at a corner
    assert set(np.unique(found)) == {0, 114}
    for image in found[areas == 9]:
        rows, columns = np.nonzero(image[..., 0])
        assert np.ptp(rows) == np.ptp(columns) == 2


def test_mixed_images_are_the_weighted_sum_and_name_the_partner() -> None:
    images = pictures()
    config = ImageAugmentConfig(flip_horizontal=0.0, crop_padding=0, mixup=1.0)
    found, other, share = varied(images, config, np.random.default_rng(4))
    assert sorted(other.tolist()) == list(range(10))
    assert 0 < share < 1
    wanted = share * images.astype(np.float64) + (1 - share) * images[other].astype(np.float64)
    assert np.abs(found - wanted).max() <= 0.5 + 1e-4


def test_the_given_images_are_not_changed() -> None:
    images = pictures()
    before = images.copy()
    varied(images, ImageAugmentConfig(1.0, 1.0, 2, 3, 0.5), np.random.default_rng(0))
    assert np.array_equal(images, before)


@pytest.mark.parametrize("settings", [{"flip_horizontal": 1.5}, {"crop_padding": -1}, {"mixup": -0.1}, {"cutout": -2}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="augment: expected"):
        ImageAugmentConfig(**settings)  # type: ignore[arg-type]
