from __future__ import annotations

import numpy as np
import pytest

from detector.structures.canvas import InputConfig
from detector.structures.letterbox import PADDING_VALUE, Letterbox


@pytest.mark.parametrize("source_hw", [(480, 640), (640, 480), (427, 640), (33, 1000), (7, 9), (416, 416), (1, 5000)])
def test_sizes_are_cut_to_whole_pixels_and_boxes_scaled_by_one_factor(source_hw):
    letterbox = InputConfig(416, arithmetic="yolox").letterbox_of(source_hw)
    scale = min(416 / source_hw[0], 416 / source_hw[1])
    assert letterbox.resized_hw == (max(int(source_hw[0] * scale), 1), max(int(source_hw[1] * scale), 1))
    assert letterbox.scale_hw == (scale, scale)
    assert letterbox.padding_top_left == letterbox.offset_top_left == (0, 0)


def test_image_lies_in_the_top_left_corner():
    image = np.full((30, 40, 3), 7, np.uint8)
    canvas = Letterbox.fit((30, 40), (80, 80), arithmetic="yolox").apply(image)
    assert (canvas[:60] == 7).all()
    assert (canvas[60:] == PADDING_VALUE).all()


def test_boxes_return_by_division_by_the_factor():
    letterbox = Letterbox.fit((427, 640), (416, 416), arithmetic="yolox")
    boxes = np.array([[10.0, 20, 300, 277]], np.float32)
    assert letterbox.boxes_to_source(boxes) == pytest.approx(boxes / (416 / 640))
    assert letterbox.boxes_to_canvas(letterbox.boxes_to_source(boxes)) == pytest.approx(boxes)


def test_stretch_scales_each_axis():
    letterbox = Letterbox.fit((30, 40), (64, 64), "stretch", arithmetic="yolox")
    assert letterbox.scale_hw == (64 / 30, 64 / 40)


def test_small_image_stays_as_it_is_without_enlargement():
    letterbox = Letterbox.fit((30, 40), (64, 64), upscale=False, arithmetic="yolox")
    assert letterbox.resized_hw == (30, 40)
    assert letterbox.scale_hw == (1, 1)
