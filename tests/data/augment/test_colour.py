from __future__ import annotations

import io
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from detector.data.augment.augment_config import AugmentConfig
from detector.data.augment.colour import blurred, compressed, degrade, noisy, random_hsv

STILL = AugmentConfig(
    mosaic=0, scale=0, translate=0, flip_horizontal=0, flip_vertical=0, hue=0, saturation=0, value=0, closing_share=0
)


def noise(image_hw: tuple[int, int], channels: int = 3, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*image_hw, channels), dtype=np.uint8)


def test_recolouring_with_zero_strength_is_the_identity() -> None:
    image = noise((32, 32))
    assert np.array_equal(random_hsv(image.copy(), STILL, np.random.default_rng(0)), image)


@pytest.mark.parametrize("channels", [1, 4, 5])
def test_only_rgb_is_recoloured(channels: int) -> None:
    image = noise((32, 32), channels)
    assert np.array_equal(random_hsv(image.copy(), AugmentConfig(), np.random.default_rng(0)), image)


def test_each_part_of_the_colour_changes_by_itself() -> None:
    image = np.asarray(cv2.GaussianBlur(noise((64, 64)), (0, 0), 3), np.uint8)
    before = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(int)
    for config, plane in ((replace(STILL, saturation=0.5), 1), (replace(STILL, value=0.5), 2)):
        shifts = np.random.default_rng(3).uniform(-1, 1, 3)
        changed = random_hsv(image.copy(), config, np.random.default_rng(3))
        after = cv2.cvtColor(changed, cv2.COLOR_RGB2HSV).astype(int)
        wanted = np.clip(before[..., plane] * (1 + 0.5 * shifts[plane]), 0, 255)
        assert np.abs(after[..., plane] - wanted).mean() <= 2
    shift = np.random.default_rng(3).uniform(-1, 1, 3)[0] * 0.1 * 180
    hue = cv2.cvtColor(random_hsv(image.copy(), replace(STILL, hue=0.1), np.random.default_rng(3)), cv2.COLOR_RGB2HSV)[
        ..., 0
    ]
    away = (hue - before[..., 0] - shift + 90) % 180 - 90
    assert np.median(np.abs(away)) <= 2


def test_strips_give_what_the_whole_image_gives() -> None:
    """In place and strip by strip, for widths that do and do not fit the strips."""
    for height, width in ((640, 640), (7, 5), (100, 333), (3, 30000)):
        image, config, rng = noise((height, width)), AugmentConfig(), np.random.default_rng(4)
        shift, gain_s, gain_v = rng.uniform(-1, 1, 3)
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        levels = np.arange(256.0)
        hsv[..., 0] = ((levels + shift * config.hue * 180) % 180).astype(np.uint8)[hsv[..., 0]]
        for plane, gain in ((1, 1 + gain_s * config.saturation), (2, 1 + gain_v * config.value)):
            hsv[..., plane] = np.clip(levels * gain, 0, 255).astype(np.uint8)[hsv[..., plane]]
        wanted = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        changed = random_hsv(image, config, np.random.default_rng(4))
        assert changed is image
        assert np.array_equal(changed, wanted)


# ---- degradations


def test_an_image_without_colour_has_the_luma_of_bt_601_in_every_channel() -> None:
    image = noise((40, 50))
    grey = degrade(image, replace(STILL, grayscale=1.0), np.random.default_rng(0))
    luma = image.astype(np.float64) @ [0.299, 0.587, 0.114]
    assert np.abs(grey - luma[..., None]).max() <= 0.51
    assert grey.shape == image.shape


@pytest.mark.parametrize("deviation", [0.6, 2.0, 5.0])
def test_a_blur_is_a_gaussian_of_its_deviation(deviation: float) -> None:
    point = np.zeros((61, 61, 3), np.uint8)
    point[30, 30] = 255
    far = np.arange(61) - 30
    bell = np.exp(-(far**2) / (2 * deviation**2))
    wanted = 255 * np.outer(bell, bell) / bell.sum() ** 2
    assert np.abs(blurred(point, deviation) - wanted[..., None]).max() <= 1.5
    assert blurred(point, 0.05) is point


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_noise_has_its_deviation_and_is_independent_everywhere(channels: int) -> None:
    flat = np.full((200, 200, channels), 128, np.uint8)
    one = noisy(flat, 12.0, seed=3).astype(np.float64) - 128
    assert one.shape == flat.shape
    assert one.std() == pytest.approx(12, rel=0.03)
    assert abs(one.mean()) < 0.2
    for first, second in ((one[1:], one[:-1]), (one[:, 1:], one[:, :-1]), (one[..., :1], one[..., -1:])):
        if first is not second and not np.array_equal(first, second):
            assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.03
    assert np.array_equal(noisy(flat, 12.0, seed=3) - 128.0, one)
    assert not np.array_equal(noisy(flat, 12.0, seed=4) - 128.0, one)


def test_noise_saturates_and_never_wraps() -> None:
    assert noisy(np.full((50, 50, 3), 255, np.uint8), 20.0, 0).min() > 100
    assert noisy(np.zeros((50, 50, 3), np.uint8), 20.0, 0).max() < 155


def test_compression_agrees_with_pillow() -> None:
    smooth = np.asarray(cv2.GaussianBlur(noise((96, 128)), (0, 0), 4), np.uint8)
    out = io.BytesIO()
    Image.fromarray(smooth).save(out, "JPEG", quality=30, subsampling=2)
    wanted = np.asarray(Image.open(out)).astype(int)
    found = compressed(smooth, 30).astype(int)
    assert np.abs(found - smooth).mean() > 1
    assert np.abs(found - wanted).mean() < 1  # the tables are the same, the rounding is not
    assert np.abs(compressed(smooth, 100).astype(int) - smooth).mean() < 1


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_other_channel_counts_pass_every_degradation(channels: int) -> None:
    image = noise((24, 32), channels)
    config = replace(STILL, grayscale=1.0, blur=2, noise=9, jpeg=50, degraded_share=1.0)
    changed = degrade(image.copy(), config, np.random.default_rng(0))
    assert changed.shape == image.shape
    assert changed.dtype == np.uint8
    assert not np.array_equal(changed, image)


def test_each_degradation_acts_on_its_share_and_draws_nothing_when_off() -> None:
    image = noise((16, 16))
    rng = np.random.default_rng(0)
    config = replace(STILL, noise=50, degraded_share=0.25)
    changed = [not np.array_equal(degrade(image, config, rng), image) for _ in range(400)]
    assert 0.18 < np.mean(changed) < 0.32
    before = rng.bit_generator.state
    assert degrade(image, STILL, rng) is image
    assert rng.bit_generator.state == before
