from __future__ import annotations

import hashlib

import numpy as np
import pytest

from detector.data.classification_split import LabelledImages
from detector.data.synthetic_classification import CLASS_NAMES, CONTOURS, DrawnSet, draw
from detector.errors import DatasetError
from detector.structures.canvas import Canvas

CANVAS = Canvas((32, 32), 3, "letterbox")


def drawn(name: str = "train", canvas: Canvas = CANVAS, **settings: int) -> LabelledImages:
    return DrawnSet(DrawnSet.Config(**{"num_train": 40, "num_val": 20, **settings})).split(name, canvas)


def test_equal_arguments_draw_equal_bytes_and_others_do_not() -> None:
    first = draw(30, 32, 0, "train")
    draw.cache_clear()
    again = draw(30, 32, 0, "train")
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    others = [draw(30, 32, 1, "train")[0], draw(30, 32, 0, "val")[0]]
    assert all((other != first[0]).any() for other in others)
    digests = {hashlib.sha256(image.tobytes()).hexdigest() for image in (*first[0], *others[0], *others[1])}
    assert len(digests) == 90


def test_every_class_comes_equally_often() -> None:
    found = drawn(num_train=100)
    assert np.bincount(found.labels).tolist() == [10] * 10
    assert found.class_names == CLASS_NAMES
    assert len(CLASS_NAMES) == len(CONTOURS) == 10
    assert found.labels[:10].tolist() != sorted(found.labels[:10].tolist())


def test_colour_carries_no_information_about_the_class() -> None:
    """The nearest mean colour tells no more than chance."""
    train, val = drawn(num_train=1000), drawn("val", num_val=500)
    means = np.stack([train.images[train.labels == label].mean(axis=(0, 1, 2)) for label in range(10)])
    colours = val.images.mean(axis=(1, 2))
    nearest = np.linalg.norm(colours[:, None] - means[None], axis=2).argmin(axis=1)
    assert (nearest == val.labels).mean() < 0.17


def test_the_images_are_drawn_once_in_a_process_and_cannot_be_changed() -> None:
    assert drawn().images is drawn().images
    with pytest.raises(ValueError, match="read-only"):
        drawn().images[0] = 0


@pytest.mark.parametrize(("canvas_hw", "channels"), [((64, 64), 3), ((32, 64), 3), ((32, 32), 1)])
def test_images_are_fitted_to_the_canvas(canvas_hw: tuple[int, int], channels: int) -> None:
    found = drawn(canvas=Canvas(canvas_hw, channels, "letterbox"))
    assert found.images.shape == (40, *canvas_hw, channels)
    assert found.images.dtype == np.uint8


def test_other_splits_and_channels_are_refused() -> None:
    with pytest.raises(DatasetError, match="train and val, got 'test'"):
        drawn("test")
    with pytest.raises(DatasetError, match=r"input\.channels: expected 3, or 1 for grey images, got 4"):
        drawn(canvas=Canvas((32, 32), 4, "letterbox"))


def test_a_larger_picture_scales_its_shapes() -> None:
    assert drawn(image_size=48, canvas=Canvas((48, 48), 3, "letterbox")).images.shape == (40, 48, 48, 3)
    with pytest.raises(ValueError, match="image_size >= 16"):
        DrawnSet.Config(image_size=8)
