"""The contract of augmentations: the built-in steps fulfil it, and a new one is one file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.config import registry
from detector.config.registry import import_parts
from detector.config.schema import config_from_plain, config_to_plain, config_to_yaml, load_config
from detector.data.albumentations_chain import AlbumentationsChain
from detector.data.augment.augment_config import AugmentConfig
from detector.data.augment.augmentation import Augmentation
from detector.data.augment.augmenter import AugmentationRecipe, Source
from detector.data.augment.colour import degrade, random_hsv
from detector.data.augment.patches import cut_out, paste_objects
from detector.data.augmentation_preview import alone_tiles
from detector.data.coco import read_coco
from detector.data.loader import SampleKey, TrainingSamples
from detector.errors import ConfigError
from detector.evaluation.run_comparison import recipe_sha256
from detector.structures.canvas import Canvas
from detector.structures.types import ImageObjects
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import load_detection

CANVAS = Canvas((64, 96), 3, "letterbox")
STILL = AugmentConfig(mosaic=0, scale=0, translate=0, flip_horizontal=0, hue=0, saturation=0, value=0)
TOY_AUGMENTATION = """
from dataclasses import dataclass

from detector.config.registry import register
from detector.data.augment.augmentation import Augmentation, AugmentationConfig


@register("stripe")
class Stripe(Augmentation):
    @dataclass(frozen=True)
    class Config(AugmentationConfig):
        width: int = 3
        flat: bool = False

    def __init__(self, config):
        self.config = config

    def __call__(self, image, objects, rng):
        if self.config.flat:
            return image[..., 0], objects
        left = int(rng.integers(image.shape[1] - self.config.width))
        image[:, left : left + self.config.width] = (255, 0, 255)
        return image, objects
"""


@pytest.fixture
def stripe(tmp_path: Path) -> None:
    """Registers a toy augmentation of one file for the time of a test."""
    (tmp_path / "stripe.py").write_text(TOY_AUGMENTATION, encoding="utf-8")
    import_parts(tmp_path / "stripe.py")


def samples_of(root: Path, augment: AugmentConfig) -> TrainingSamples:
    annotations = read_coco(root / "annotations/train.json", root / "images/train")
    return TrainingSamples(annotations, CANVAS, augment, seed=0, cache_mb=8)


def num_striped_columns(image: np.ndarray) -> int:
    return int((image == (255, 0, 255)).all(axis=(0, 2)).sum())


def test_an_augmentation_of_one_file_shows_in_a_training_image(stripe: None, tiny_shapes: Path) -> None:
    config = load_detection("base", ["data=shapes", "augment.extra=[stripe, {name: stripe, width: 9}]"])
    extra = config.augment.extra
    assert [registry.name_of(part) for part in extra] == ["stripe", "stripe"]
    assert all(isinstance(registry.build(part), Augmentation) for part in extra)
    plain, striped = samples_of(tiny_shapes, STILL), samples_of(tiny_shapes, replace(STILL, extra=extra))
    for index in range(4):
        key = SampleKey(0, index, closing=False)
        assert num_striped_columns(plain[key].image) == 0
        assert 9 <= num_striped_columns(striped[key].image) <= 12
        assert np.array_equal(striped[key].image, striped[key].image)  # a function of the key
        assert np.array_equal(striped[key].canvas_xyxy, plain[key].canvas_xyxy)
    assert num_striped_columns(striped[SampleKey(0, 0, closing=True)].image) == 0


def test_extra_augmentations_are_saved_and_read_back(stripe: None, tmp_path: Path) -> None:
    config = load_detection("base", ["data=shapes", "augment.extra=[{name: stripe, width: 9}]"])
    plain = config_to_plain(config)
    assert isinstance(plain["augment"], dict)
    assert plain["augment"]["extra"] == [{"name": "stripe", "width": 9, "flat": False}]
    assert config_from_plain(DetectionConfig, plain, "last.safetensors") == config
    (tmp_path / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    assert load_config(DetectionConfig, str(tmp_path / "config.yaml")) == config


def test_an_extra_augmentation_has_its_picture_in_the_preview(stripe: None, tiny_shapes: Path) -> None:
    config = load_detection("base", ["data=shapes", "augment.extra=[stripe]"]).augment
    tiles = alone_tiles(samples_of(tiny_shapes, config), config, CANVAS, seed=0)
    [tile] = [tile for tile in tiles if tile.title == "stripe"]
    assert num_striped_columns(tile.sample.image) == 3


def test_an_augmentation_that_changes_the_shape_is_refused(stripe: None, tiny_shapes: Path) -> None:
    config = load_detection("base", ["data=shapes", "augment.extra=[{name: stripe, flat: true}]"]).augment
    with pytest.raises(ConfigError, match=r"Stripe turns a canvas of uint8 \(64, 96, 3\) into uint8 \(64, 96\)"):
        samples_of(tiny_shapes, replace(STILL, extra=config.extra))[SampleKey(0, 0, closing=False)]


def test_an_unknown_extra_augmentation_is_refused_with_the_nearest_name(stripe: None) -> None:
    with pytest.raises(ConfigError, match="no augmentation is named 'strip'; did you mean 'stripe'"):
        load_detection("base", ["data=shapes", "augment.extra=[strip]"])


def test_a_configuration_saved_before_the_key_existed_resumes_and_keeps_its_hash() -> None:
    config = load_detection("base", ["data=shapes"])
    saved = config_to_plain(config)
    assert isinstance(saved["augment"], dict)
    assert saved["augment"].pop("extra") == []
    assert config_from_plain(DetectionConfig, saved, "last.safetensors") == config
    assert recipe_sha256(saved) == recipe_sha256(config_to_plain(config))


def source(index: int) -> Source:
    rng = np.random.default_rng((9, index))
    noise = rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)
    image = np.asarray(cv2.GaussianBlur(noise, (0, 0), 1.5), np.uint8)
    boxes = np.array([[5, 6, 40, 50], [30, 20, 80, 60]], np.float32)
    return image, ImageObjects(boxes, np.array([index, index + 1]), np.array([False, True]))


@pytest.mark.parametrize("seed", range(12))
def test_every_step_draws_as_it_did_before_steps_became_parts(seed: int) -> None:
    """The order of steps and draws as it was written down in one function; published numbers depend on it."""
    config = replace(
        STILL, scale=0.4, hue=0.1, saturation=0.5, value=0.4, mixup=0.5, copy_paste=0.5, grayscale=0.3, blur=2, noise=9,
        jpeg=60, degraded_share=0.5, cutout=0.2, albumentations=({"name": "GaussNoise", "p": 0.6},),
    )  # fmt: skip
    recipe = AugmentationRecipe(config, CANVAS, 12)
    image, objects = recipe.varied(seed, source, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    wanted, boxes = recipe._warped(seed, source, rng)
    if rng.random() < config.mixup:
        other, other_boxes = recipe._warped(int(rng.integers(12)), source, rng)
        share = rng.beta(32.0, 32.0)
        wanted = np.asarray(cv2.addWeighted(wanted, share, other, 1 - share, 0), np.uint8)
        boxes = ImageObjects.joined([boxes, other_boxes])
    boxes = paste_objects(wanted, boxes, *source(int(rng.integers(12))), config, rng)
    wanted, boxes = AlbumentationsChain(config.albumentations, (64, 96), 3)(wanted, boxes, rng)
    wanted = degrade(random_hsv(wanted, config, rng), config, rng)
    cut_out(wanted, boxes, config.cutout, rng)
    assert np.array_equal(image, wanted)
    assert np.array_equal(objects.xyxy, boxes.xyxy)
    assert np.array_equal(objects.labels, boxes.labels)
