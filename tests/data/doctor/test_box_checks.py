from __future__ import annotations

import numpy as np
import pytest

from detector.data.doctor.box_checks import BoxTable, overlapping_pairs
from detector.structures.boxes import area_xyxy


def only(report, code):
    """The one finding of a data set with one thing wrong."""
    (finding,) = report.findings
    assert finding.code == code
    return finding


def test_correct_data_set_has_no_findings(folder):
    report = folder.report()
    assert report.findings == ()
    assert report.is_clean(strict=True)
    assert [(s.name, s.num_images, s.num_objects) for s in report.splits] == [("train", 6, 24), ("val", 3, 12)]


def test_box_beyond_the_image_is_reported_with_its_overhang(folder):
    folder.box("train", 2, 1, [300, 100, 60, 60])
    finding = only(folder.report(), "box-outside")
    assert (finding.severity, dict(finding.counts), finding.total) == ("warning", {"train": 1}, 25)
    assert finding.examples == ("train train1.png: cat, 40 px outside an image of 320 x 240",)
    (offender,) = finding.offenders
    assert (offender.split, offender.image, offender.rows) == ("train", 1, (8,))


def test_rounding_to_whole_pixels_gives_no_finding(folder):
    folder.box("train", 2, 1, [250.5, 100, 70.4, 60])
    assert folder.codes() == []


def test_worst_boxes_are_named_first(folder):
    for overhang in (5, 30, 10, 20, 7, 25):
        folder.box("train", 1, 2, [320 - 40 + overhang, 20 + overhang, 40, 40])
    finding = only(folder.report(), "box-outside")
    assert [int(e.split("dog, ")[1].split()[0]) for e in finding.examples] == [30, 25, 20, 10, 7]
    assert len(finding.offenders) == 4
    assert finding.count == 6


def test_slivers_are_reported(folder):
    folder.box("train", 1, 1, [100, 100, 1, 15])
    finding = only(folder.report(), "box-sliver")
    assert finding.examples == ("train train0.png: cat, 1 x 15 px",)
    assert finding.severity == "warning"  # one of 37 boxes is more than 1 %


def test_few_slivers_are_a_note(folder):
    for number in range(99):
        folder.box("train", 2, 1 + number % 2, [20 * (number % 10), 20 * (number // 10), 15, 15])
    folder.box("train", 1, 1, [100, 100, 1, 15])
    sliver = next(f for f in folder.report().findings if f.code == "box-sliver")
    assert sliver.severity == "note"


def test_boxes_too_small_for_the_input_are_reported(folder):
    folder.box("train", 1, 1, [100, 100, 5, 5])
    assert folder.codes() == []  # 10 x 10 at 640
    finding = only(folder.report(canvas_hw=(160, 160)), "box-tiny")
    assert finding.examples == ("train train0.png: cat, 2.5 x 2.5 px on the canvas",)
    assert folder.codes(canvas_hw=(320, 160), fit="stretch") == ["box-tiny"]


def test_boxes_over_the_whole_image_are_reported(folder):
    folder.box("train", 1, 1, [0, 0, 320, 240])
    finding = only(folder.report(), "box-huge")
    assert finding.examples == ("train train0.png: cat, 100.0% of the image",)
    assert finding.severity == "note"


def test_many_whole_image_boxes_give_a_warning(folder):
    for split in ("train", "val"):
        for box in folder.boxes[split][::2]:
            box["bbox"] = [0, 0, 320, 240]
        for number, box in enumerate(folder.boxes[split][::4]):
            box["bbox"][2] -= number + 2  # so that they are not duplicates as well
    finding = next(f for f in folder.report().findings if f.code == "box-huge")
    assert finding.severity == "warning"


def test_elongated_boxes_are_a_note(folder):
    folder.box("train", 1, 1, [100, 5, 8, 200])
    assert only(folder.report(), "box-elongated").severity == "note"


def test_duplicate_box_is_reported_once(folder):
    folder.box("train", 2, 1, [120, 100, 40, 40])
    folder.box("train", 2, 1, [120, 100, 40.2, 40.2])
    finding = only(folder.report(), "box-duplicate")
    assert (finding.severity, finding.count, finding.title) == (
        "warning",
        1,
        "1 object with a duplicate box of the same class",
    )


def test_object_with_two_classes_is_reported(folder):
    folder.box("train", 2, 1, [120, 100, 40, 40])
    folder.box("train", 2, 2, [120, 100, 40, 41])
    finding = only(folder.report(), "box-two-classes")
    assert finding.examples == ("train train1.png: dog, in the same place as cat",)


def test_overlapping_boxes_are_not_duplicates(folder):
    folder.box("train", 2, 1, [120, 100, 40, 40])
    folder.box("train", 2, 1, [124, 100, 40, 40])
    folder.box("train", 3, 1, [120, 100, 40, 40])
    folder.box("train", 2, 2, [120, 100, 40, 40], iscrowd=1)
    assert folder.codes() == []


def test_overlapping_pairs_equal_those_of_a_double_loop():
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 100, (400, 2)).round(-1)
    boxes = np.concatenate([xy, xy + rng.uniform(5, 40, (400, 2)).round(-1) + 10], axis=1)
    image = np.sort(rng.integers(0, 4, 400))
    none = np.zeros((400, 2))
    table = BoxTable(np.arange(400), image, np.zeros(400, np.int64), boxes, none, none, none)
    for least in (0.5, 0.9, 0.98):
        first, second, iou = overlapping_pairs(table, least)
        expected = {}
        for a in range(400):
            for b in range(a + 1, 400):
                sides = np.minimum(boxes[a, 2:], boxes[b, 2:]) - np.maximum(boxes[a, :2], boxes[b, :2])
                shared = sides.clip(0).prod()
                value = shared / (area_xyxy(boxes[a]) + area_xyxy(boxes[b]) - shared)
                if image[a] == image[b] and value > least:
                    expected[a, b] = value
        assert expected
        found = dict(zip(zip(first.tolist(), second.tolist(), strict=True), iou.tolist(), strict=True))
        assert found == pytest.approx(expected)


def test_crowded_images_are_a_note(folder):
    for number in range(101):
        folder.box("train", 1, 1 + number % 2, [2 * number + 50, number + 30, 30, 30])
    finding = next(f for f in folder.report().findings if f.code == "image-crowded")
    assert finding.examples == ("train train0.png: 105 objects",)


def test_centres_read_as_corners_are_recognised(folder):
    for split in ("train", "val"):
        for box in folder.boxes[split]:
            box["bbox"] = [270, 190, 90, 80]
            box["bbox"][0] -= box["id"] * 1.5
    finding = next(f for f in folder.report().findings if f.code == "box-format" and "train" in f.counts)
    assert (
        finding.title == "24 of 24 boxes of train leave the image, but would fit as centre x, centre y, width, height"
    )


def test_corners_read_as_sizes_are_recognised(folder):
    for box in folder.boxes["train"]:
        x, y, width, height = box["bbox"]
        box["bbox"] = [x, y, x + width, y + height]
    finding = next(f for f in folder.report().findings if f.code == "box-format")
    assert "looks like xyxy" in finding.title
    assert finding.severity == "warning"


def test_fractions_read_as_pixels_are_recognised(folder):
    for box in folder.boxes["val"]:
        box["bbox"] = [side / 320 for side in box["bbox"]]
    finding = next(f for f in folder.report().findings if f.code == "box-format")
    assert "looks normalised" in finding.title
    assert dict(finding.counts) == {"val": 12}
