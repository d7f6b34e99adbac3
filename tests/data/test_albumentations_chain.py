from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from detector.data.albumentations_chain import AlbumentationsChain
from detector.errors import ConfigError
from detector.structures.types import ImageObjects


def objects_of(boxes: list[list[float]]) -> ImageObjects:
    num = len(boxes)
    return ImageObjects(np.array(boxes, np.float32).reshape(-1, 4), np.arange(num), np.arange(num) % 2 == 1)


def noise(image_hw: tuple[int, int], channels: int = 3, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*image_hw, channels), dtype=np.uint8)


def chain(
    *specifications: dict[str, Any], canvas_hw: tuple[int, int] = (64, 64), channels: int = 3
) -> AlbumentationsChain:
    return AlbumentationsChain(specifications, canvas_hw, channels)


def test_a_chain_is_a_function_of_its_seed() -> None:
    own = chain({"name": "GaussNoise", "p": 0.7}, {"name": "HorizontalFlip", "p": 0.5}, {"name": "Affine", "p": 0.5})
    image, objects = noise((64, 64)), objects_of([[10, 12, 30, 40]])
    first = [own(image, objects, np.random.default_rng(seed)) for seed in range(12)]
    other = chain({"name": "GaussNoise", "p": 0.7}, {"name": "HorizontalFlip", "p": 0.5}, {"name": "Affine", "p": 0.5})
    second = [other(image, objects, np.random.default_rng(seed)) for seed in reversed(range(12))][::-1]
    for (image_a, objects_a), (image_b, objects_b) in zip(first, second, strict=True):
        assert np.array_equal(image_a, image_b)
        assert np.array_equal(objects_a.xyxy, objects_b.xyxy)
    assert len({image_a.tobytes() for image_a, _ in first}) > 6


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_boxes_follow_a_listed_mirror_exactly(channels: int) -> None:
    image, objects = noise((48, 64), channels), objects_of([[10, 12, 30, 40], [0, 0, 64, 48], [50.5, 1.25, 60, 2.5]])
    flipped, found = chain({"name": "HorizontalFlip", "p": 1.0}, canvas_hw=(48, 64), channels=channels)(
        image, objects, np.random.default_rng(0)
    )
    assert np.array_equal(flipped, image[:, ::-1])
    mirrored = np.array([[34, 12, 54, 40], [0, 0, 64, 48], [4, 1.25, 13.5, 2.5]])
    assert np.allclose(found.xyxy, mirrored, rtol=0, atol=1e-4)
    assert found.labels.tolist() == [0, 1, 2]
    assert found.ignore.tolist() == [False, True, False]
    assert found.labels.dtype == np.int64
    assert found.xyxy.dtype == np.float32


def test_objects_moved_outside_by_a_transform_are_dropped_with_their_labels() -> None:
    right = {"name": "Affine", "translate_px": {"x": 40, "y": 0}, "p": 1.0}
    _, found = chain(right)(noise((64, 64)), objects_of([[30, 5, 60, 30], [5, 5, 20, 30]]), np.random.default_rng(0))
    assert found.labels.tolist() == [1]
    assert np.allclose(found.xyxy, [[45, 5, 60, 30]], rtol=0, atol=0.5)


def test_a_chain_accepts_no_objects_and_a_pixel_transform_keeps_boxes() -> None:
    rng = np.random.default_rng(0)
    assert chain({"name": "HorizontalFlip", "p": 1.0})(noise((64, 64)), objects_of([]), rng)[1].xyxy.shape == (0, 4)
    objects = objects_of([[-3, 5, 20, 30]])
    assert chain({"name": "Blur", "p": 1.0})(noise((64, 64)), objects, rng)[1] is objects


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ({"name": "HorizontalFlop"}, "no transform is named 'HorizontalFlop'; did you mean 'HorizontalFlip'"),
        ({"name": "Compose"}, "no transform is named 'Compose'"),
        ({}, "no transform is named 'None'"),
        ({"name": "Blur", "blur_limits": 5}, "Blur refuses .*'blur_limits' are not valid"),
        ({"name": "Blur", "blur_limit": -5}, "Blur refuses"),
        ({"name": "Blur", "p": 7}, "Blur refuses"),
        ({"name": "RandomCrop", "height": 32, "width": 32}, r"RandomCrop turns uint8 \(64, 64, 3\) into uint8 \(32"),
        ({"name": "RandomCrop", "height": 99, "width": 99}, "RandomCrop does not take images of shape"),
        ({"name": "ToFloat"}, "ToFloat turns uint8 .* into float32"),
        ({"name": "Mosaic"}, "Mosaic does not take images"),
    ],
)
def test_a_transform_that_cannot_be_used_is_refused_in_one_line(specification: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        chain(specification)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("augment.albumentations")


def test_a_transform_for_rgb_is_refused_before_training_on_five_channels() -> None:
    with pytest.raises(ConfigError, match=r"ToGray does not take images of shape \(64, 64, 5\)"):
        chain({"name": "ToGray", "p": 0.01}, channels=5)


def test_a_transform_is_refused_at_the_first_change_of_size() -> None:
    own = chain({"name": "RandomRotate90", "p": 1.0}, canvas_hw=(64, 64))
    square, none = noise((64, 64)), objects_of([])
    turned = [
        seed for seed in range(8) if own(square, none, np.random.default_rng(seed))[0][0, 0, 0] != square[0, 0, 0]
    ]
    with pytest.raises(ConfigError, match=r"into uint8 \(48, 32, 3\)"):
        [own(noise((32, 48)), none, np.random.default_rng(seed)) for seed in turned]


def test_building_a_chain_opens_no_connection() -> None:
    program = (
        "import sys\n"
        "def refuse(event, arguments):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo'):\n"
        "        raise SystemExit(f'{event} {arguments}')\n"
        "sys.addaudithook(refuse)\n"
        "from detector.data.albumentations_chain import AlbumentationsChain\n"
        "AlbumentationsChain([{'name': 'Blur'}], (32, 32), 3)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
