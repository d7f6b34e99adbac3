from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.path import Path as PolygonPath
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from detector.data import synthetic_detection as module
from detector.errors import DatasetError

SMALL = {"num_train": 6, "num_val": 4, "image_size": 64, "seed": 3}
Scenes = list[module.Scene]
Objects = list[tuple[module.Scene, int, module.PaintedObject]]
# Of labels and boxes of the first twenty images of version 1.
DIGEST = "6447e74908afdf90a02f29e83be954d23aaf5b5d13e0ff8515b7e158c623b1e6"


@pytest.fixture(scope="module")
def val_scenes() -> Scenes:
    return [module.draw_scene(0, "val", index) for index in range(160)]


@pytest.fixture(scope="module")
def val_objects(val_scenes: Scenes) -> Objects:
    return [(scene, i, painted) for scene in val_scenes for i, painted in enumerate(scene.objects)]


def _files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def _longer_side(painted: module.PaintedObject) -> float:
    return float((painted.box_xyxy[2:] - painted.box_xyxy[:2]).max())


def _grown(mask: npt.NDArray[np.bool_], radius: int) -> npt.NDArray[np.bool_]:
    square = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    return cv2.dilate(mask.astype(np.uint8), square) > 0


def test_equal_arguments_draw_equal_files_into_an_empty_folder_and_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    module.draw_shapes(tmp_path / "empty", **SMALL)
    module.SHAPES.ensure(tmp_path / "new" / "deep", **SMALL)
    first, second = _files(tmp_path / "empty"), _files(tmp_path / "new" / "deep")
    assert len(first) == SMALL["num_train"] + SMALL["num_val"] + 3
    assert first == second


def test_an_image_does_not_depend_on_what_was_drawn_before_it(val_scenes: Scenes) -> None:
    for index in range(9, -1, -1):  # one of these ten is empty
        image, boxes_xywh, labels, visible_share = module.draw_image(0, "val", index)
        scene, num_objects = val_scenes[index], len(val_scenes[index].objects)
        assert (image == scene.image).all()
        assert labels.tolist() == [painted.label for painted in scene.objects]
        assert (visible_share == scene.visible_share).all()
        expected = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in (o.box_xyxy.tolist() for o in scene.objects)]
        assert boxes_xywh.tolist() == expected
        assert (image.shape, image.dtype) == ((320, 320, 3), np.uint8)
        assert (boxes_xywh.shape, boxes_xywh.dtype) == ((num_objects, 4), np.float64)
        assert (labels.shape, labels.dtype) == ((num_objects,), np.int64)
        assert (visible_share.shape, visible_share.dtype) == ((num_objects,), np.float64)


def test_seed_split_and_index_each_change_the_image() -> None:
    of_image = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    images = [module.draw_image(seed, split_name, index, 64)[0] for seed, split_name, index in of_image]
    assert min((images[i] != images[j]).mean() for i in range(4) for j in range(i)) > 0.9


def test_version_1_still_draws_what_it_drew(val_scenes: Scenes) -> None:
    """Whoever changes the drawing raises GENERATOR_VERSION and renews the digest: reported numbers depend on it."""
    digest = hashlib.sha256()
    for scene in val_scenes[:20]:
        boxes_xywh = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in (o.box_xyxy.tolist() for o in scene.objects)]
        digest.update(f"{[painted.label for painted in scene.objects]} {boxes_xywh};".encode())
    assert (module.GENERATOR_VERSION, digest.hexdigest()) == (1, DIGEST)


def test_six_classes_are_balanced(val_objects: Objects) -> None:
    counts = np.bincount([painted.label for _, _, painted in val_objects], minlength=len(module.CLASS_NAMES))
    assert len(counts) == len(module.CLASS_NAMES) == len(set(module.CATEGORY_IDS.values())) == 6
    assert counts.sum() > 500
    assert 0.75 * counts.mean() < counts.min() < counts.max() < 1.25 * counts.mean()


def test_sides_are_log_uniform_over_12_to_160_px(val_objects: Objects) -> None:
    sides = np.array([_longer_side(painted) for _, _, painted in val_objects])
    assert 12 <= sides.min() <= 13
    assert 150 <= sides.max() <= 160
    position = np.sort(np.log(sides / 12) / np.log(160 / 12))
    # Kolmogorov-Smirnov distance from the uniform distribution; objects that found no place cost a little.
    assert np.abs(position - np.arange(1, len(position) + 1) / len(position)).max() < 0.08


@pytest.mark.parametrize(("image_size", "least", "greatest"), [(64, 12, 32), (640, 24, 320)])
def test_sides_scale_with_the_image(image_size: int, least: int, greatest: int) -> None:
    scenes = [module.draw_scene(0, "val", index, image_size) for index in range(12)]
    sides = [_longer_side(painted) for scene in scenes for painted in scene.objects]
    assert len(sides) > 10
    assert least <= min(sides) < max(sides) <= greatest
    assert max(sides) > 0.6 * greatest


def test_one_image_in_each_ten_is_empty_and_the_others_hold_one_to_eight_objects(val_scenes: Scenes) -> None:
    is_empty = np.array([len(scene.objects) == 0 for scene in val_scenes]).reshape(-1, 10)
    assert (is_empty.sum(axis=1) == 1).all()
    assert len(set(is_empty.argmax(axis=1).tolist())) > 5  # nothing learns which of the ten
    for scene in val_scenes:
        assert (len(scene.objects) == 0) == bool((scene.image == scene.background).all())
    counts = np.bincount([len(scene.objects) for scene in val_scenes if scene.objects], minlength=9)
    assert len(counts) == 9
    assert counts[0] == 0
    assert counts[1:].min() >= 8


def test_objects_hide_at_most_forty_percent_of_one_another(val_scenes: Scenes) -> None:
    hidden_shares = np.zeros(0)
    for scene in val_scenes:
        for i, painted in enumerate(scene.objects):
            above = np.any([later.mask for later in scene.objects[i + 1 :]], axis=0)
            hidden = (painted.mask & above).sum() / painted.mask.sum()
            assert scene.visible_share[i] == pytest.approx(1 - hidden, abs=1e-12)
            hidden_shares = np.append(hidden_shares, hidden)
    assert hidden_shares.max() <= 0.40
    assert (hidden_shares > 0.2).mean() > 0.04
    assert (hidden_shares > 0).mean() > 0.2


def test_no_two_boxes_are_nearly_the_same(val_scenes: Scenes) -> None:
    greatest = 0.0
    for scene in val_scenes:
        boxes = np.array([painted.box_xyxy for painted in scene.objects]).reshape(-1, 4)
        boxes[:, 2:] -= boxes[:, :2]
        if len(boxes) > 1:
            iou = coco_mask.iou(boxes, boxes, [0] * len(boxes))
            greatest = max(greatest, float((iou - np.eye(len(boxes))).max()))
    assert 0.3 < greatest <= 0.6


def test_the_border_cuts_off_at_most_a_fifth(val_objects: Objects) -> None:
    cut = np.array([painted.cut_share for _, _, painted in val_objects])
    boxes = np.array([painted.box_xyxy for _, _, painted in val_objects])
    assert 0 <= cut.min() < 0.1 < cut.max() <= 0.2
    assert 0.05 < (cut > 0).mean() < 0.3
    touches = (boxes[:, :2] == 0).any(axis=1) | (boxes[:, 2:] == 320).any(axis=1)
    assert touches[cut > 0].all()
    assert 0 <= boxes.min() < boxes.max() <= 320


def test_every_box_spans_the_mask_and_every_mask_is_where_the_image_was_painted(val_scenes: Scenes) -> None:
    num_alone = 0
    for scene in val_scenes:
        differs = (scene.image != scene.background).any(axis=2)
        union = np.zeros_like(differs)
        for painted in scene.objects:
            union |= painted.mask
        assert not (differs & ~_grown(union, 1)).any()  # anti-aliased pixels reach one pixel further
        assert not union.any() or differs[union].mean() > 0.98
        for i, painted in enumerate(scene.objects):
            pixels_yx = np.argwhere(painted.mask)
            spanned = [*pixels_yx.min(axis=0)[::-1], *(pixels_yx.max(axis=0)[::-1] + 1)]
            assert painted.box_xyxy.tolist() == spanned
            others = [other.mask for j, other in enumerate(scene.objects) if j != i]
            x1, y1, x2, y2 = spanned
            around = (slice(max(y1 - 2, 0), y2 + 2), slice(max(x1 - 2, 0), x2 + 2))
            if any(_grown(other, 1)[around].any() for other in others):
                continue
            pixels_yx = np.argwhere(differs[around]) + np.array([around[0].start, around[1].start])
            found = np.array([*pixels_yx.min(axis=0)[::-1], *(pixels_yx.max(axis=0)[::-1] + 1)])
            assert np.abs(found - painted.box_xyxy).max() <= 1
            num_alone += 1
    assert num_alone > 200


def test_every_object_stands_out_from_what_surrounds_it(val_objects: Objects) -> None:
    num_checked = 0
    for scene, i, painted in val_objects:
        rim = _grown(painted.mask, 3) & ~_grown(painted.mask, 1)
        if any((rim & _grown(later.mask, 1)).any() for later in scene.objects[i + 1 :]):
            continue  # a later object stands out from this one by the same rule
        colour = scene.image[painted.mask].mean(axis=0)
        distance = np.sqrt(((scene.image[rim] - colour) ** 2).sum(axis=1))
        # Shading and noise take a little of the 72 that the drawing keeps.
        assert np.quantile(distance, 0.25) > 55
        num_checked += 1
    assert num_checked > 300


def test_colour_carries_no_information_about_the_class(val_objects: Objects) -> None:
    labels = np.array([painted.label for _, _, painted in val_objects])
    colours = np.array([s.image[o.mask].mean(axis=0) for s, _, o in val_objects])
    means = np.array([colours[labels == label].mean(axis=0) for label in range(6)])
    assert np.abs(means - colours.mean(axis=0)).max() < 25  # of 255: three standard errors of a class's mean
    explained = ((means[labels] - colours.mean(axis=0)) ** 2).sum() / ((colours - colours.mean(axis=0)) ** 2).sum()
    assert explained < 0.03
    assert _nearest_neighbour_accuracy(colours, labels) < 1 / 6 + 0.1


def test_shape_determines_the_class(val_objects: Objects) -> None:
    features, labels = [], []
    for _, _, painted in val_objects:
        if painted.cut_share > 0 or _longer_side(painted) < 24:
            continue
        contours, _ = cv2.findContours(painted.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        contour = max(contours, key=cv2.contourArea)
        area, hull = cv2.contourArea(contour), cv2.convexHull(contour)
        hull_area, (_, rectangle_wh, _) = cv2.contourArea(hull), cv2.minAreaRect(contour)
        solidity, boxiness = area / hull_area, hull_area / np.prod(rectangle_wh)
        triangularity = hull_area / cv2.minEnclosingTriangle(hull)[0]
        features.append([solidity, boxiness, triangularity, min(rectangle_wh) / max(rectangle_wh)])
        labels.append(painted.label)
    assert len(labels) > 200
    assert _nearest_neighbour_accuracy(np.array(features), np.array(labels)) > 0.95


def _nearest_neighbour_accuracy(features: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> float:
    known, asked = features[::2], features[1::2]
    nearest = ((asked[:, None] - known[None]) ** 2).sum(axis=2).argmin(axis=1)
    return float((labels[::2][nearest] == labels[1::2]).mean())


@pytest.mark.parametrize("name", module.CLASS_NAMES)
@pytest.mark.parametrize("stroke_px", [None, 3.0])
def test_coverage_agrees_with_a_float64_reference(name: str, stroke_px: float | None) -> None:
    polygon_xy = module.OUTLINES[name] * [19.3, 15.1] + [25.4, 21.7]
    coverage = module._coverage(polygon_xy, stroke_px)
    samples = 12
    y, x = ((np.mgrid[: coverage.shape[0] * samples, : coverage.shape[1] * samples]) + 0.5) / samples
    points_xy = np.stack([x.ravel(), y.ravel()], axis=1)
    inside = PolygonPath(polygon_xy).contains_points(points_xy)
    if stroke_px is not None:
        depth = np.full(len(points_xy), np.inf)
        for start, end in zip(polygon_xy, np.roll(polygon_xy, -1, axis=0), strict=True):
            along = np.clip((points_xy - start) @ (end - start) / ((end - start) ** 2).sum(), 0, 1)
            depth = np.minimum(depth, np.linalg.norm(points_xy - start - along[:, None] * (end - start), axis=1))
        inside &= depth <= stroke_px
    reference = inside.reshape(coverage.shape[0], samples, coverage.shape[1], samples).mean(axis=(1, 3))
    # A boundary may lie a subpixel off along a whole pixel; a stroke has two of them.
    assert np.abs(coverage - reference).max() < (0.4 if stroke_px is None else 0.6)
    assert coverage.sum() == pytest.approx(reference.sum(), rel=0.04)
    assert coverage[0].max() == coverage[-1].max() == coverage[:, 0].max() == coverage[:, -1].max() == 0


def test_the_files_are_coco_and_hold_the_settings(tmp_path: Path) -> None:
    parameters = {"num_train": 3, "num_val": 12, "image_size": 96, "seed": 5}
    root = tmp_path / "drawn"
    module.draw_shapes(root, **parameters)
    for split_name, num_images in (("train", 3), ("val", 12)):
        coco = COCO(str(root / "annotations" / f"{split_name}.json"))
        assert coco.dataset["info"]["version"] == "1"
        assert coco.dataset["info"]["parameters"] == parameters
        assert {category["name"]: category["id"] for category in coco.dataset["categories"]} == module.CATEGORY_IDS
        assert sorted(coco.imgs) == list(range(1, num_images + 1))
        assert sorted(coco.anns) == list(range(1, len(coco.dataset["annotations"]) + 1))
        names = sorted(path.name for path in (root / "images" / split_name).iterdir())
        assert names == [f"{image_id:06d}.jpg" for image_id in range(1, num_images + 1)]
        for image_id, entry in coco.imgs.items():
            assert entry["file_name"] == names[image_id - 1]
            image, boxes_xywh, labels, visible_share = module.draw_image(5, split_name, image_id - 1, 96)
            annotations = coco.imgToAnns[image_id]
            assert [a["bbox"] for a in annotations] == boxes_xywh.tolist()
            assert all(type(number) is float for a in annotations for number in a["bbox"])
            assert [a["area"] for a in annotations] == [w * h for _, _, w, h in boxes_xywh.tolist()]
            assert [a["iscrowd"] for a in annotations] == [0] * len(labels)
            category_ids = [{0: 3, 1: 7, 2: 11, 3: 20, 4: 42, 5: 90}[label] for label in labels.tolist()]
            assert [a["category_id"] for a in annotations] == category_ids
            assert [a["visible_share"] for a in annotations] == pytest.approx(visible_share.tolist(), abs=1e-4)
            stored = cv2.imread(str(root / "images" / split_name / entry["file_name"]))
            assert stored is not None
            assert stored.shape == (entry["height"], entry["width"], 3) == image.shape
            # Noise in colour is what JPEG takes away; red and blue swapped would differ by tens.
            assert np.abs(stored[..., ::-1].astype(int) - image).mean() < 12


def test_an_existing_data_set_is_not_changed(tmp_path: Path) -> None:
    root = tmp_path / "drawn"
    module.SHAPES.ensure(root, **SMALL)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    module.SHAPES.ensure(root, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["drawn"]  # no temporary folder is left


def test_a_drawing_stopped_by_the_user_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = module.draw_image(0, "val", 0, 64)
    with monkeypatch.context() as patch:
        patch.setattr(module, "draw_image", Mock(side_effect=[drawn] * 7 + [KeyboardInterrupt]))
        with pytest.raises(KeyboardInterrupt):
            module.draw_shapes(tmp_path / "drawn", **SMALL)
    assert list(tmp_path.iterdir()) == []
    module.SHAPES.ensure(tmp_path / "drawn", **SMALL)
    assert len(_files(tmp_path / "drawn")) == 13


def test_a_drawing_killed_halfway_is_not_taken_as_complete(tmp_path: Path) -> None:
    program = f"""
import os, sys, cv2, pathlib
from detector.data import synthetic_detection as module
encode, calls = cv2.imencode, []
def die_at_the_eighth(*arguments):
    calls.append(1)
    return os._exit(9) if len(calls) == 8 else encode(*arguments)
cv2.imencode = die_at_the_eighth
module.SHAPES.ensure(pathlib.Path(sys.argv[1]), **{SMALL})
"""
    process = subprocess.run([sys.executable, "-c", program, str(tmp_path / "drawn")], check=False)
    assert process.returncode == 9
    assert len(list(tmp_path.rglob("*.jpg"))) == 7  # what the killed process left, under another name
    assert not (tmp_path / "drawn").exists()
    module.SHAPES.ensure(tmp_path / "drawn", **SMALL)
    assert len(_files(tmp_path / "drawn")) == 13


def test_a_folder_drawn_by_another_process_meanwhile_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, num_calls = os.replace, 0

    def replace_too_late(source: Path, target: Path) -> None:
        nonlocal num_calls
        num_calls += 1
        shutil.copytree(source, target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_too_late)
    module.SHAPES.ensure(tmp_path / "drawn", **SMALL)
    assert num_calls == 1
    assert len(_files(tmp_path / "drawn")) == 13
    assert [path.name for path in tmp_path.iterdir()] == ["drawn"]


@pytest.mark.parametrize(
    ("name", "old", "new", "found"),
    [
        ("shapes.json", b'"seed": 3', b'"seed": 4', "'seed': 4"),
        ("shapes.json", b'"version": 1', b'"version": 2', "'version': 2"),
        ("shapes.json", None, b"{", "Expecting"),
        ("shapes.json", None, b"\xff", "decode"),
        ("shapes.json", None, None, "shapes.json"),
        ("images/val/000002.jpg", None, None, "000002.jpg"),
        ("images/train/000003.jpg", None, b"", "000003.jpg is empty"),
        ("annotations/train.json", None, None, "train.json"),
    ],
)
def test_a_folder_that_holds_something_else_is_refused_and_kept(
    tmp_path: Path, name: str, old: bytes | None, new: bytes | None, found: str
) -> None:
    root = tmp_path / "drawn"
    module.draw_shapes(root, **SMALL)
    if new is None:
        (root / name).unlink()
    else:
        (root / name).write_bytes(new if old is None else (root / name).read_bytes().replace(old, new))
    _assert_refused_and_kept(root, found)


def test_a_data_set_drawn_before_the_module_was_renamed_is_recognised(tmp_path: Path) -> None:
    module.draw_shapes(tmp_path / "drawn", **SMALL)
    record = json.loads((tmp_path / "drawn" / "shapes.json").read_text())
    assert record["generator"] == "detector.data.shapes"


def test_a_folder_or_file_of_the_users_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "holiday.jpg").write_bytes(b"mine")
    (tmp_path / "file").write_bytes(b"mine")
    _assert_refused_and_kept(tmp_path / "folder", "shapes.json")
    _assert_refused_and_kept(tmp_path / "file", "file")


def _assert_refused_and_kept(root: Path, found: str) -> None:
    before = _files(root.parent)
    for function in (module.SHAPES.ensure, module.draw_shapes):
        with pytest.raises(DatasetError, match="choose") as caught:
            function(root, **SMALL)
        assert str(root) in str(caught.value)
        assert function is module.draw_shapes or found in str(caught.value)
    assert _files(root.parent) == before


def test_a_place_that_cannot_be_written_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(DatasetError, match=r"file.*writable"):
        module.SHAPES.ensure(tmp_path / "file" / "drawn", **SMALL)


@pytest.mark.parametrize(
    ("name", "value"), [("num_train", 0), ("num_val", 0), ("image_size", 63), ("seed", -1), ("num_val", -5)]
)
def test_an_argument_below_its_least_value_is_refused_with_its_name(tmp_path: Path, name: str, value: int) -> None:
    for function in (module.draw_shapes, module.SHAPES.ensure):
        with pytest.raises(DatasetError, match=rf"{name} of at least .*got {value}"):
            function(tmp_path / "drawn", **{**SMALL, name: value})
    assert list(tmp_path.iterdir()) == []
