"""Labels of pose estimation: the box at the start of a line counts, not the outline of all its numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detector.data.coco import CocoAnnotations
from detector.data.yolo_dataset import YoloDataset
from detector.errors import DatasetError
from detector.media.images import write_image

SIDE_PX = 100


def draw(folder: Path, lines: list[str], more: str = "") -> CocoAnnotations:
    """Read a set with one image for each line."""
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    for number, line in enumerate(lines):
        write_image(folder / "images" / f"{number:02d}.png", np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8))
        (folder / "labels" / f"{number:02d}.txt").write_text(line + "\n")
    (folder / "data.yaml").write_text(f"train: images\nnames: [a]\n{more}\n")
    return YoloDataset(YoloDataset.Config(folder / "data.yaml")).split("train")


def pose_lines(num_points: int, size: int, num_lines: int) -> tuple[list[str], np.ndarray]:
    """Lines of boxes with key points inside them, the last one not visible; and the boxes xyxy in pixels."""
    rng = np.random.default_rng(7)
    lines, boxes = [], []
    for _ in range(num_lines):
        w, h = rng.uniform(0.2, 0.4, 2)
        cx, cy = rng.uniform(0.25, 0.75, 2)
        points = np.array([cx, cy]) + rng.uniform(-0.3, 0.3, (num_points, 2)) * [w, h]
        points = np.column_stack([points, np.full(num_points, 2)])[:, :size] if size == 3 else points
        if num_points > 1:
            points[-1] = 0
        lines.append(" ".join(f"{v:g}" for v in (0, cx, cy, w, h, *points.ravel())))
        boxes.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    return lines, SIDE_PX * np.array(boxes)


def polygon_lines(num_corners: int, num_lines: int) -> tuple[list[str], np.ndarray]:
    """Lines of polygons with as many corners each; and the boxes around them in pixels."""
    rng = np.random.default_rng(8)
    lines, boxes = [], []
    for _ in range(num_lines):
        corners = rng.uniform(0.05, 0.95, 2) * 0.5 + rng.uniform(0, 0.5, (num_corners, 2))
        lines.append(" ".join(f"{v:g}" for v in (0, *corners.ravel())))
        boxes.append([*corners.min(axis=0), *corners.max(axis=0)])
    return lines, SIDE_PX * np.array(boxes)


def boxes_of(annotations: CocoAnnotations) -> np.ndarray:
    return np.concatenate([annotations.source_xyxy(index) for index in range(len(annotations))])


def kinds(annotations: CocoAnnotations) -> list[str]:
    return [problem.kind for problem in annotations.problems]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(("num_points", "size"), [(17, 3), (2, 3), (4, 2), (5, 2), (1, 2)])
def test_boxes_of_pose_labels_are_read_with_and_without_kpt_shape(
    num_points: int, size: int, named: bool, tmp_path: Path
) -> None:
    lines, wanted = pose_lines(num_points, size, 24)
    annotations = draw(tmp_path, lines, f"kpt_shape: [{num_points}, {size}]" if named else "")
    np.testing.assert_allclose(boxes_of(annotations), wanted, atol=0.01)
    said = [kind for kind in kinds(annotations) if "key points, whose boxes are taken; kpt_shape" in kind]
    assert bool(said) != named
    assert "key that is not read" not in kinds(annotations)


@pytest.mark.parametrize("num_corners", [3, 4, 7])
def test_polygons_with_as_many_corners_each_stay_polygons(num_corners: int, tmp_path: Path) -> None:
    lines, wanted = polygon_lines(num_corners, 24)
    annotations = draw(tmp_path, lines)
    np.testing.assert_allclose(boxes_of(annotations), wanted, atol=0.01)
    assert kinds(annotations) == ["polygon, the box around it is taken"]


def test_few_lines_that_may_be_either_are_polygons_and_announced(tmp_path: Path) -> None:
    lines, _ = pose_lines(4, 2, 5)
    annotations = draw(tmp_path, lines)
    assert "line of 13 numbers, read as polygons; kpt_shape in the description decides" in kinds(annotations)
    numbers = np.array([line.split()[1:] for line in lines], np.float64).reshape(5, -1, 2) * SIDE_PX
    wanted = np.concatenate([numbers.min(axis=1), numbers.max(axis=1)], axis=1)
    np.testing.assert_allclose(boxes_of(annotations), wanted, atol=0.01)


def test_kpt_shape_leaves_no_line_to_be_a_polygon(tmp_path: Path) -> None:
    lines, wanted = pose_lines(4, 2, 24)
    annotations = draw(tmp_path, [*lines, "0 0.5 0.5 0.2 0.2", "0 0.1 0.1 0.5 0.1 0.3 0.5"], "kpt_shape: [4, 2]")
    assert annotations.num_boxes == 25
    np.testing.assert_allclose(
        sorted(boxes_of(annotations).tolist()), sorted([*wanted.tolist(), [40, 40, 60, 60]]), atol=0.01
    )
    assert "line without a class and four numbers" in kinds(annotations)


@pytest.mark.parametrize("shape", ["17", "[17]", "[0, 3]", "[17, 4]", "[true, 3]", "[a, 3]"])
def test_a_wrong_kpt_shape_is_refused(shape: str, tmp_path: Path) -> None:
    lines, _ = pose_lines(4, 2, 3)
    with pytest.raises(DatasetError, match=r"data\.yaml:3: kpt_shape: expected \[17, 3\], the number of key points"):
        draw(tmp_path, lines, f"kpt_shape: {shape}")
