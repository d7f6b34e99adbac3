from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from detector.data.augment.colour import random_hsv
from detector.data.augment.settings import AugmentConfig

STILL = AugmentConfig(
    mosaic=0, scale=0, translate=0, flip_horizontal=0, flip_vertical=0, hue=0, saturation=0, value=0, closing_share=0
)


def noise(image_hw: tuple[int, int], channels: int = 3, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*image_hw, channels), dtype=np.uint8)


def test_recolouring_by_nothing_is_the_identity() -> None:
    image = noise((32, 32))
    assert np.array_equal(random_hsv(image.copy(), STILL, np.random.default_rng(0)), image)


@pytest.mark.parametrize("channels", [1, 4, 5])
def test_only_rgb_is_recoloured(channels: int) -> None:
    image = noise((32, 32), channels)
    assert np.array_equal(random_hsv(image.copy(), AugmentConfig(), np.random.default_rng(0)), image)


def test_each_part_of_the_colour_changes_by_itself() -> None:
    image = cv2.GaussianBlur(noise((64, 64)), (0, 0), 3)
    before = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(int)
    for name, plane in (("saturation", 1), ("value", 2)):
        shifts = np.random.default_rng(3).uniform(-1, 1, 3)
        changed = random_hsv(image.copy(), replace(STILL, **{name: 0.5}), np.random.default_rng(3))
        after = cv2.cvtColor(changed, cv2.COLOR_RGB2HSV).astype(int)
        wanted = np.clip(before[..., plane] * (1 + 0.5 * shifts[plane]), 0, 255)
        assert np.abs(after[..., plane] - wanted).mean() <= 2
    shift = np.random.default_rng(3).uniform(-1, 1, 3)[0] * 0.1 * 180
    hue = cv2.cvtColor(random_hsv(image.copy(), replace(STILL, hue=0.1), np.random.default_rng(3)), cv2.COLOR_RGB2HSV)[
        ..., 0
    ]
    away = (hue - before[..., 0] - shift + 90) % 180 - 90
    assert np.median(np.abs(away)) <= 2
