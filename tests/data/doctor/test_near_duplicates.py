from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest

from detector.data.doctor.near_duplicates import MAX_BITS, MIN_CORRELATION, Look, look_at, near_duplicates


def test_hash_compares_neighbouring_cells():
    image = np.arange(9, dtype=np.uint8)[None, :, None].repeat(9, axis=0) * 20  # brighter towards the right
    assert look_at(image).bits.tolist() == [True] * 64 + [False] * 64
    assert look_at(image.swapaxes(0, 1)).bits.tolist() == [False] * 64 + [True] * 64


@pytest.mark.parametrize("channels", [1, 3])
def test_changed_copy_is_a_near_duplicate(paint, channels):
    image = paint("one")[..., :channels]
    blurred = cv2.GaussianBlur(image, (0, 0), 2).reshape(image.shape)
    darker = (image * 0.8).astype(np.uint8)
    small = cv2.resize(image, (100, 70), interpolation=cv2.INTER_AREA).reshape(70, 100, channels)
    looks = [look_at(i) for i in (image, blurred, darker, small, paint("two"))]
    assert near_duplicates(looks) == [(a, b) for a, b in itertools.combinations(range(4), 2)]


def test_near_duplicates_equal_those_of_a_double_loop():
    rng = np.random.default_rng(3)
    thumbnail = rng.integers(0, 256, (16, 16), dtype=np.uint8)
    base = rng.integers(0, 2, 128).astype(bool)
    looks = []
    for number in range(60):
        bits = base.copy()
        bits[rng.choice(128, number % 16, replace=False)] ^= True
        noise = rng.normal(0, 30 if number % 7 == 0 else 2, (16, 16))
        looks.append(Look(bits, (thumbnail + noise).clip(0, 255).astype(np.uint8)))
    expected = []
    for a, b in itertools.combinations(range(60), 2):
        correlation = np.corrcoef(looks[a].thumbnail.ravel(), looks[b].thumbnail.ravel())[0, 1]
        if (looks[a].bits != looks[b].bits).sum() <= MAX_BITS and correlation >= MIN_CORRELATION:
            expected.append((a, b))
    assert 100 < len(expected) < 1000
    assert near_duplicates(looks) == expected


def test_different_photos_are_not_near_duplicates(data_folder):
    paths = sorted((data_folder / "coco128" / "images").glob("*.jpg"))
    assert len(paths) == 128
    looks = [look_at(cv2.imread(str(path), cv2.IMREAD_REDUCED_COLOR_4)) for path in paths]
    assert near_duplicates(looks) == []


def test_different_drawn_images_are_not_near_duplicates(tiny_shapes):
    looks = [look_at(cv2.imread(str(path))) for path in sorted((tiny_shapes / "images").rglob("*.jpg"))]
    assert len(looks) == 18
    assert near_duplicates(looks) == []


def test_no_images_have_no_near_duplicates():
    assert near_duplicates([]) == []
    assert near_duplicates([look_at(np.zeros((5, 5, 3), np.uint8))] * 3) == []


def test_all_of_hundreds_of_frames_of_one_scene_are_near_duplicates(paint):
    rng = np.random.default_rng(1)
    scene = look_at(paint("scene"))
    frames = []
    for _ in range(800):
        bits = scene.bits.copy()
        bits[rng.choice(128, 4, replace=False)] ^= True
        frames.append(Look(bits, (scene.thumbnail + rng.integers(0, 3, (16, 16))).clip(0, 255).astype(np.uint8)))
    pairs = near_duplicates(frames)
    assert {position for pair in pairs for position in pair} == set(range(800))
    assert len(pairs) < 800 * 64 * 12
