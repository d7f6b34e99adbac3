from __future__ import annotations

import math

import numpy as np
import pytest

from detector.data.repeat_factors import repeat_factors


def suggested(report):
    return {suggestion.name: suggestion for suggestion in report.suggestions}


def test_input_size_follows_the_size_of_the_objects(folder, paint):
    assert suggested(folder.report())["input.size"].value == "320"
    for split in ("train", "val"):
        for box in folder.boxes[split]:
            box["bbox"][2:] = [7, 7]
    small = suggested(folder.report())["input.size"]
    assert small.value == "416"  # not much larger than the images
    assert small.reason.startswith("100.0% of the objects are then 8 px or larger")
    for split in ("train", "val"):
        for box in folder.boxes[split]:
            box["bbox"][2:] = [4, 4]
    tiny = suggested(folder.report())["input.size"]
    assert "a larger size would only enlarge the images, of 320 px" in tiny.reason
    shares = tiny.details["share_large_enough"]
    assert (shares["320"], shares["640"]) == (0.0, 1.0)


def test_a_finer_level_is_suggested_for_many_small_objects(folder):
    assert "model.levels" not in suggested(folder.report())
    for split in ("train", "val"):
        for box in folder.boxes[split]:
            box["bbox"][2:] = [7, 7]
    small = suggested(folder.report())["model.levels"]
    assert small.value == "[4, 8, 16]"
    assert small.details == {"levels": [4, 8, 16], "share_small": 1.0}
    assert "model.levels=[4,8,16]" in small.reason
    for box in folder.boxes["train"][::2]:
        box["bbox"][2:] = [120, 90]
    assert suggested(folder.report())["model.levels"].value == "[4, 8, 16, 32]"


def test_tiles_are_suggested_where_the_canvas_makes_objects_too_small(folder):
    for split in ("train", "val"):
        for box in folder.boxes[split]:
            box["bbox"][2:] = [11, 11]
    assert "tiles" not in suggested(folder.report())  # images of 320 px are enlarged
    tiles = suggested(folder.report(canvas_hw=(160, 160)))["tiles"]
    assert tiles.value == "160"
    assert tiles.reason.startswith("100.0% of the objects are smaller than 8 px on the canvas, 0.0% in tiles")
    assert tiles.reason.endswith("train with augment.tile=160 and views.tile=160")
    for split in ("train", "val"):
        for box in folder.boxes[split]:
            box["bbox"][2:] = [5, 5]  # tiles would not help
    assert "tiles" not in suggested(folder.report(canvas_hw=(160, 160)))


def test_anchors_are_suggested_if_there_are_enough_boxes(folder):
    for box in folder.boxes["train"]:
        box["bbox"][2:] = [20 + 3 * box["id"], 90 - 2 * box["id"]]
    anchors = suggested(folder.report())["anchors"]
    assert len(anchors.details["wh"]) == 9 == anchors.value.count(", ") + 1
    assert anchors.details["average_iou"] > 0.85
    for box in folder.boxes["train"]:
        box["bbox"][2:] = [30, 40]
    assert "anchors" not in suggested(folder.report())


def test_repeat_factors_follow_the_formula(folder):
    folder.classes[3] = "bird"
    folder.box("train", 2, 3, [100, 60, 20, 30])
    splits = folder.report().annotations
    of_class, of_image = repeat_factors(splits["train"], 0.5)
    assert of_class.tolist() == pytest.approx([1, 1, math.sqrt(0.5 / (1 / 6))])
    assert of_image.tolist() == pytest.approx([1, math.sqrt(3), 1, 1, 1, 1])


def test_repeat_factors_are_suggested_for_rare_classes_only(folder):
    assert "repeat factors" not in suggested(folder.report())
    folder.classes[3] = "bird"
    for number in range(30):
        folder.add("train", f"more{number}.png", np.full((480, 640, 3), number, np.uint8))
    folder.box("train", 2, 3, [100, 60, 20, 30])
    suggestion = suggested(folder.report())["repeat factors"]
    assert suggestion.details["threshold"] == 0.1
    assert suggestion.details["classes"] == {"bird": round(math.sqrt(0.1 * 36), 2)}
    assert suggestion.details["epoch_factor"] == pytest.approx((35 + math.sqrt(3.6)) / 36, abs=1e-4)


def test_data_set_without_objects_gets_no_suggestions(folder):
    folder.boxes["train"].clear()
    assert folder.report().suggestions == ()
