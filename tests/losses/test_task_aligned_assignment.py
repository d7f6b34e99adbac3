from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from detector.losses import task_aligned_assignment
from detector.losses.task_aligned_assignment import (
    Alignment,
    Assignment,
    PaddedObjects,
    assign_task_aligned,
    cells_in_boxes,
    cells_in_crowds,
    pairwise_iou,
)

NUM_CLASSES = 4
IMAGE_HW = (64, 96)
SETTINGS: dict[str, Any] = {"num_candidates": 10, "alpha": 0.5, "beta": 6.0}

Box = list[float]


class Scene(NamedTuple):
    """Predictions and padded targets, float64."""

    scores: Tensor
    canvas_xyxy: Tensor
    points_xy: Tensor
    strides: Tensor
    target_xyxy: Tensor
    labels: Tensor
    valid: Tensor

    def to(self, dtype: torch.dtype) -> Scene:
        return Scene(*(t.to(dtype) if t.is_floating_point() else t for t in self))

    def assigned(self, **settings: Any) -> Assignment:
        objects = PaddedObjects(self.target_xyxy, self.labels, self.valid)
        return assign_task_aligned(*self[:4], objects, Alignment(**{**SETTINGS, **settings}))


def grid(image_hw: tuple[int, int] = IMAGE_HW) -> tuple[Tensor, Tensor]:
    points, strides = [], []
    for stride in (8, 16, 32):
        for row in range(image_hw[0] // stride):
            for column in range(image_hw[1] // stride):
                points.append([(column + 0.5) * stride, (row + 0.5) * stride])
                strides.append(float(stride))
    return torch.tensor(points, dtype=torch.float64), torch.tensor(strides, dtype=torch.float64)


def random_boxes(num: int, generator: torch.Generator) -> Tensor:
    """Return boxes of all sizes; one in four is smaller than a cell, one in four repeats the box before it."""
    height, width = IMAGE_HW
    sides = torch.exp(torch.rand(num, 2, dtype=torch.float64, generator=generator) * math.log(16)) * 4
    sides[torch.rand(num, generator=generator) < 0.25] /= 12
    centres = torch.rand(num, 2, dtype=torch.float64, generator=generator) * torch.tensor([width, height])
    boxes = torch.cat([centres - sides / 2, centres + sides / 2], dim=1)
    for i in range(1, num):
        if torch.rand((), generator=generator) < 0.25:
            boxes[i] = boxes[i - 1]
    return boxes


def random_scene(seed: int) -> Scene:
    """Return a batch of images with 0, 2, 5 and 12 objects, and predictions near an object of their cell."""
    generator = torch.Generator().manual_seed(seed)
    points, strides = grid()
    counts = [(0, 2, 5, 12)[(image + seed) % 4] for image in range(4)]
    num_columns = max(counts)
    target_xyxy = torch.zeros(4, num_columns, 4, dtype=torch.float64)
    valid = torch.zeros(4, num_columns, dtype=torch.bool)
    predicted = []
    for image, count in enumerate(counts):
        target_xyxy[image, :count] = random_boxes(count, generator)
        valid[image, :count] = True
        near = random_boxes(len(points), generator)
        for cell, point in enumerate(points.tolist()):
            holders = [box for box in target_xyxy[image, :count] if contains(box.tolist(), point, 8.0)]
            if holders:
                near[cell] = holders[int(torch.randint(0, len(holders), (), generator=generator))]
        sides = (near[:, 2:] - near[:, :2]).repeat(1, 2)
        predicted.append(near + torch.randn(len(points), 4, dtype=torch.float64, generator=generator) * 0.15 * sides)
    scores = torch.rand(4, len(points), NUM_CLASSES, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, NUM_CLASSES, (4, num_columns), generator=generator)
    scene = Scene(scores, torch.stack(predicted), points, strides, target_xyxy, labels, valid)
    return scene.to(torch.float32).to(torch.float64)  # numbers that both formats can represent


# ---- the reference: loops over Python floats


def iou(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return intersection / max(union, 1e-9)


def contains(box: Box, point: Box, finest_stride: float) -> bool:
    return all(
        abs(point[axis] - (box[axis] + box[axis + 2]) / 2) <= max((box[axis + 2] - box[axis]) / 2, finest_stride / 2)
        for axis in (0, 1)
    )


def assigned_by_loops(
    scene: Scene,
    num_candidates: int,
    alpha: float,
    beta: float,
    enlarge_small: bool = False,
    one_to_one: bool = False,
) -> dict[tuple[int, int], Any]:
    """Return the cells with a quality above 0: (image, cell) -> (object, quality)."""
    points, finest = scene.points_xy.tolist(), sorted(set(scene.strides.tolist()))[enlarge_small]
    result: dict[tuple[int, int], Any] = {}
    for image in range(len(scene.valid)):
        wanted_by: dict[int, list[tuple[float, int, float]]] = {}  # cell -> (overlap, object, alignment)
        for column, box in enumerate(scene.target_xyxy[image].tolist()):
            if not scene.valid[image, column]:
                continue
            label = int(scene.labels[image, column])
            pairs = []
            for cell, point in enumerate(points):
                if contains(box, point, finest):
                    overlap = iou(scene.canvas_xyxy[image, cell].tolist(), box)
                    alignment = scene.scores[image, cell, label].item() ** alpha * overlap**beta
                    pairs.append((alignment, cell, overlap))
            for alignment, cell, overlap in sorted(pairs, key=lambda pair: -pair[0])[:num_candidates]:
                wanted_by.setdefault(cell, []).append((overlap, column, alignment))
        owned: dict[int, list[tuple[int, float, float]]] = {}  # object -> (cell, alignment, overlap)
        for cell, rivals in wanted_by.items():
            overlap, column, alignment = min(rivals, key=lambda rival: (-rival[0], rival[1]))
            owned.setdefault(column, []).append((cell, alignment, overlap))
        give_back_to_the_lost(owned, wanted_by)
        if one_to_one:
            owned = {column: [min(own, key=lambda c: (-c[1], c[0]))] for column, own in owned.items() if own}
        for column, cells in owned.items():
            best_alignment, best_overlap = max(c[1] for c in cells), max(c[2] for c in cells)
            for cell, alignment, _ in cells:
                quality = alignment / best_alignment * best_overlap if best_alignment else 0.0
                if quality > 1e-9:
                    result[image, cell] = column, quality
    return result


def give_back_to_the_lost(
    owned: dict[int, list[tuple[int, float, float]]], wanted_by: dict[int, list[tuple[float, int, float]]]
) -> None:
    """Give each object without a cell its best one whose owner has another.

    An owner gives one cell, to the first object that asks, before all count their cells again.
    """
    known = sorted({rival[1] for rivals in wanted_by.values() for rival in rivals})
    while True:
        owner_of = {cell: column for column, cells in owned.items() for cell, _, _ in cells}
        asked: dict[int, tuple[int, int, float, float]] = {}  # owner -> (object, cell, alignment, overlap)
        for lost in [column for column in known if not owned.get(column)]:
            offers = [
                (-alignment, cell, overlap)
                for cell, rivals in wanted_by.items()
                for overlap, column, alignment in rivals
                if column == lost and alignment > 0 and len(owned[owner_of[cell]]) > 1
            ]
            if offers:
                alignment, cell, overlap = min(offers)
                asked.setdefault(owner_of[cell], (lost, cell, -alignment, overlap))
        if not asked:
            return
        for owner, (lost, cell, alignment, overlap) in asked.items():
            owned[owner] = [c for c in owned[owner] if c[0] != cell]
            owned[lost] = [(cell, alignment, overlap)]


def as_dictionary(found: Assignment) -> dict[tuple[int, int], Any]:
    rows = zip(
        found.image_index.tolist(),
        found.cell_index.tolist(),
        found.object_index.tolist(),
        found.quality.tolist(),
        strict=True,
    )
    return {(image, cell): (column, quality) for image, cell, column, quality in rows if quality > 1e-9}


def assert_same(found: dict[tuple[int, int], Any], wanted: dict[tuple[int, int], Any], relative: float) -> None:
    assert {key: value[0] for key, value in found.items()} == {key: value[0] for key, value in wanted.items()}
    for key, (_, quality) in wanted.items():
        assert found[key][1] == pytest.approx(quality, rel=relative)


# ---- assignment


@pytest.mark.parametrize("seed", range(8))
def test_the_vectorised_assignment_equals_a_loop(seed: int) -> None:
    scene = random_scene(seed)
    wanted = assigned_by_loops(scene, **SETTINGS)
    assert len(wanted) > 30
    assert_same(as_dictionary(scene.assigned()), wanted, 1e-9)
    assert_same(as_dictionary(scene.to(torch.float32).assigned()), wanted, 1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_candidates": 1, "alpha": 0.5, "beta": 6.0},
        {"num_candidates": 3, "alpha": 1.0, "beta": 2.0},
        {"num_candidates": 10_000, "alpha": 1.0, "beta": 1.0},
        {"num_candidates": 10, "alpha": 0.5, "beta": 6.0, "enlarge_small": True},
        {"num_candidates": 10, "alpha": 0.5, "beta": 6.0, "one_to_one": True},
        {"num_candidates": 3, "alpha": 0.0, "beta": 1.0, "one_to_one": True},
    ],
)
def test_the_assignment_equals_a_loop_for_other_settings(settings: dict[str, Any]) -> None:
    scene = random_scene(11)
    assert_same(as_dictionary(scene.assigned(**settings)), assigned_by_loops(scene, **settings), 1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_one_to_one_every_trained_object_keeps_the_best_of_its_cells(seed: int) -> None:
    """The alignment is the same for both, so the target of the only cell is the best overlap that it can have."""
    scene = random_scene(seed)
    many, one = as_dictionary(scene.assigned()), as_dictionary(scene.assigned(one_to_one=True))
    objects = [(image, column) for (image, _), (column, _) in one.items()]
    assert len(set(objects)) == len(objects)
    assert set(objects) == {(image, column) for (image, _), (column, _) in many.items()}
    for (image, cell), (column, quality) in one.items():
        assert many[image, cell][0] == column
        assert many[image, cell][1] == max(q for (i, _), (c, q) in many.items() if (i, c) == (image, column))
        wanted = iou(scene.canvas_xyxy[image, cell].tolist(), scene.target_xyxy[image, column].tolist())
        assert quality == pytest.approx(wanted, rel=1e-9)


def test_every_positive_cell_is_listed_once_and_is_within_range() -> None:
    found = random_scene(3).assigned()
    pairs = list(zip(found.image_index.tolist(), found.cell_index.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert found.quality.min() > 0
    assert found.quality.max() <= 1


def test_the_best_cell_of_an_object_gets_its_best_overlap() -> None:
    scene = random_scene(5)
    found = as_dictionary(scene.assigned())
    best: dict[tuple[int, int], float] = {}
    overlaps: dict[tuple[int, int], float] = {}
    for (image, cell), (column, quality) in found.items():
        box = scene.target_xyxy[image, column].tolist()
        overlap = iou(scene.canvas_xyxy[image, cell].tolist(), box)
        best[image, column] = max(best.get((image, column), 0), quality)
        overlaps[image, column] = max(overlaps.get((image, column), 0), overlap)
    assert best == pytest.approx(overlaps, rel=1e-9)


def test_an_object_far_from_every_box_has_full_quality() -> None:
    points = torch.tensor([[20.0, 20.0], [28.0, 20.0]])
    boxes = torch.tensor([[[-40.0, -40, 80, 80], [-40.0, -40, 90, 80]]])  # over one small object: overlaps below 1 %
    target = torch.tensor([[[15.0, 15, 29, 25]]])
    positive = assign_task_aligned(
        torch.full((1, 2, 1), 1e-4),
        boxes,
        points,
        torch.full((2,), 8.0),
        PaddedObjects(target, torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool)),
        Alignment(**SETTINGS),
    )
    overlaps = [140 / 120**2, 140 / (120 * 130)]
    wanted = [overlaps[0], overlaps[0] * (overlaps[1] / overlaps[0]) ** 6]
    assert positive.quality.tolist() == pytest.approx(wanted, rel=1e-4)


def test_the_content_of_padding_columns_has_no_effect() -> None:
    scene = random_scene(2)
    junk = torch.tensor([0.0, 0, 96, 64], dtype=torch.float64).expand(4, 7, 4)
    padded = scene._replace(
        target_xyxy=torch.cat([scene.target_xyxy, junk], dim=1),
        labels=torch.cat([scene.labels, torch.full((4, 7), NUM_CLASSES - 1)], dim=1),
        valid=torch.cat([scene.valid, torch.zeros(4, 7, dtype=torch.bool)], dim=1),
    )
    assert as_dictionary(padded.assigned()) == as_dictionary(scene.assigned())


def test_the_assignment_is_independent_of_the_other_images_of_the_batch() -> None:
    scene = random_scene(2)
    whole = as_dictionary(scene.assigned())
    for image in range(4):
        part = scene._replace(
            scores=scene.scores[image : image + 1],
            canvas_xyxy=scene.canvas_xyxy[image : image + 1],
            target_xyxy=scene.target_xyxy[image : image + 1],
            labels=scene.labels[image : image + 1],
            valid=scene.valid[image : image + 1],
        )
        alone = {(image, cell): value for (_, cell), value in as_dictionary(part.assigned()).items()}
        assert alone == {key: value for key, value in whole.items() if key[0] == image}


def uniform_scene(boxes: list[Box], labels: list[int]) -> Scene:
    """Return a scene of one image in which every cell predicts the first box with equal scores."""
    points, strides = grid()
    scores = torch.full((1, len(points), NUM_CLASSES), 0.25, dtype=torch.float64)
    predicted = torch.tensor(boxes[0], dtype=torch.float64).expand(1, len(points), 4)
    target_xyxy = torch.tensor([boxes], dtype=torch.float64)
    valid = torch.ones(1, len(boxes), dtype=torch.bool)
    return Scene(scores, predicted, points, strides, target_xyxy, torch.tensor([labels]), valid)


def test_cells_that_tie_are_assigned_up_to_the_limit() -> None:
    scene = uniform_scene([[0.0, 0, 96, 64]], [1])
    found = scene.assigned(num_candidates=10)
    assert len(found.quality) == 10
    assert found.quality.tolist() == pytest.approx([1.0] * 10)
    everywhere = scene.assigned(num_candidates=10_000)
    assert sorted(everywhere.cell_index.tolist()) == list(range(len(scene.points_xy)))


def test_the_first_of_duplicate_objects_keeps_all_cells_but_one_for_each_other() -> None:
    scene = uniform_scene([[8.0, 8, 72, 56]] * 3, [1, 1, 2])
    found = scene.assigned(num_candidates=10_000)
    assert len(found.quality) > 10
    assert sorted(found.object_index.tolist(), reverse=True)[:3] == [2, 1, 0]
    assert_same(as_dictionary(found), assigned_by_loops(scene, 10_000, 0.5, 6.0), 1e-9)


# Cells of the finest stride in the first box, whose centres are 8 apart; the others lie on some of them.
@pytest.mark.parametrize(
    ("boxes", "num_owned"),
    [
        ([[8.0, 8, 24, 16], [9.0, 9, 15, 15], [17.0, 9, 23, 15]], [1, 1, 0]),  # two objects on an owner of two cells
        ([[8.0, 8, 24, 16], [17.0, 9, 23, 15], [9.0, 9, 15, 15]], [1, 1, 0]),
        ([[8.0, 8, 32, 16], [9.0, 9, 15, 15], [17.0, 9, 23, 15]], [1, 1, 1]),
        ([[8.0, 8, 32, 16], [9.0, 9, 15, 15], [9.0, 9, 15, 14]], [2, 1, 0]),  # both on the same cell
        ([[8.0, 8, 32, 16], [9.0, 9, 23, 15], [9.0, 9, 15, 15], [17.0, 9, 23, 15]], [1, 1, 0, 1]),
        ([[8.0, 8, 16, 16], [9.0, 9, 15, 15]], [1, 0]),
    ],
)
def test_an_owner_keeps_its_last_cell_when_several_objects_lost_theirs(boxes: list[Box], num_owned: list[int]) -> None:
    scene = uniform_scene(boxes, list(range(len(boxes))))
    finest = scene._replace(
        scores=scene.scores[:, :96],
        canvas_xyxy=scene.canvas_xyxy[:, :96],
        points_xy=scene.points_xy[:96],
        strides=scene.strides[:96],
    )
    found = finest.assigned().object_index.tolist()
    assert [found.count(column) for column in range(len(boxes))] == num_owned
    assert_same(as_dictionary(finest.assigned()), assigned_by_loops(finest, **SETTINGS), 1e-9)


@pytest.mark.parametrize("compared", [1, 1000, 10**9])
def test_the_assignment_is_independent_of_the_pairs_compared_at_once(
    compared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = random_scene(6).to(torch.float32)
    wanted = scene.assigned()
    monkeypatch.setattr(task_aligned_assignment, "_MAX_COMPARED", compared)
    for found, value in zip(vars(scene.assigned()).values(), vars(wanted).values(), strict=True):
        assert torch.equal(found, value)


class LargestTensor(TorchDispatchMode):
    """Number of elements of the largest tensor that an operation returns."""

    num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.num_elements = max(self.num_elements, *sizes, 0)
        return result


def test_no_tensor_of_the_assignment_has_an_element_for_every_cell_of_every_object() -> None:
    num_cells, num_objects = 20_000, 600
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(num_cells, 2, generator=generator) * 1000
    corners = torch.rand(num_objects, 2, generator=generator) * 950
    valid = torch.zeros(2, num_objects, dtype=torch.bool)
    valid[0], valid[1, 0] = True, True
    target_xyxy = torch.cat([corners, corners + 40], dim=1).expand(2, -1, 4)
    objects = PaddedObjects(target_xyxy, torch.zeros_like(valid, dtype=torch.int64), valid)
    boxes = torch.cat([points - 16, points + 16], dim=1).expand(2, -1, 4)
    scores, strides = torch.full((2, num_cells, 1), 0.5), torch.full((num_cells,), 8.0)
    with LargestTensor() as largest:
        found = assign_task_aligned(scores, boxes, points, strides, objects, Alignment(**SETTINGS))
    assert len(found.quality) > 3000
    assert largest.num_elements <= task_aligned_assignment._MAX_COMPARED < num_cells * num_objects / 5


def test_a_contested_cell_goes_to_the_larger_overlap_and_the_other_object_keeps_one() -> None:
    scene = uniform_scene([[8.0, 8, 72, 56], [8.0, 8, 72, 50]], [0, 0])
    found = scene.assigned(num_candidates=10_000).object_index.tolist()
    assert (found.count(0), found.count(1)) == (len(found) - 1, 1)
    swapped = scene._replace(target_xyxy=scene.target_xyxy.flip(1)).assigned(num_candidates=10_000)
    assert swapped.object_index.tolist().count(0) == 1


def test_a_small_object_on_a_large_one_gets_a_cell_but_never_the_only_one_of_another() -> None:
    scene = uniform_scene([[8.0, 8, 72, 56], [30.0, 30, 44, 44]], [0, 1])
    found = scene.assigned(num_candidates=10_000)
    assert found.object_index.tolist().count(1) == 1
    assert found.quality[found.object_index == 1] > 0
    point = [16.2, 16.2, 16.4, 16.4]  # both contain the same cells of the finest stride only
    alone = uniform_scene([point, point], [0, 1]).assigned(num_candidates=1)
    assert set(alone.object_index.tolist()) == {0}


@pytest.mark.parametrize("centre", [(13.0, 29.0), (16.0, 16.0), (40.3, 7.9), (95.9, 63.9)])
def test_a_box_smaller_than_a_cell_gets_a_cell(centre: tuple[float, float]) -> None:
    x, y = centre
    box = [x - 0.2, y - 0.2, x + 0.2, y + 0.2]
    points, strides = grid()
    inside = cells_in_boxes(points, strides, torch.tensor([[box]], dtype=torch.float64))[0, 0]
    assert inside[: (64 // 8) * (96 // 8)].any()  # at the finest stride
    found = uniform_scene([box], [2]).assigned()
    assert len(found.quality) >= 1
    assert found.quality.max().item() == pytest.approx(1.0)


@pytest.mark.parametrize("num_columns", [0, 3])
def test_a_batch_without_objects_has_no_positive_cells(num_columns: int) -> None:
    scene = random_scene(1)
    found = scene._replace(
        target_xyxy=torch.zeros(4, num_columns, 4, dtype=torch.float64),
        labels=torch.zeros(4, num_columns, dtype=torch.int64),
        valid=torch.zeros(4, num_columns, dtype=torch.bool),
    ).assigned()
    assert [len(t) for t in (found.image_index, found.cell_index, found.object_index, found.quality)] == [0] * 4


def test_predictions_that_overlap_nothing_are_not_positive_cells() -> None:
    scene = uniform_scene([[8.0, 8, 72, 56]], [1])
    found = scene._replace(canvas_xyxy=scene.canvas_xyxy + 1000).assigned()
    assert len(found.quality) == 0


# ---- parts of the assignment


def test_pairwise_iou_equals_the_formula() -> None:
    generator = torch.Generator().manual_seed(4)
    first, second = random_boxes(40, generator), random_boxes(30, generator)
    found = pairwise_iou(first[:, None], second[None])
    wanted = [[iou(a, b) for b in second.tolist()] for a in first.tolist()]
    assert torch.allclose(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=0)
    assert pairwise_iou(first, first).tolist() == pytest.approx([1.0] * 40)


def test_a_small_object_takes_cells_within_the_second_stride_if_it_is_enlarged() -> None:
    points, strides = grid()
    box = torch.tensor([[[37.0, 29.0, 41.0, 33.0]]], dtype=torch.float64)
    for enlarge, counts in ((False, [1, 0, 0]), (True, [4, 1, 0])):  # centres up to 4 px and 8 px away
        inside = cells_in_boxes(points, strides, box, enlarge)[0, 0]
        assert [int(inside[strides == s].sum()) for s in (8, 16, 32)] == counts


@pytest.mark.parametrize("seed", range(4))
def test_cells_in_boxes_equal_a_loop(seed: int) -> None:
    scene = random_scene(seed)
    found = cells_in_boxes(scene.points_xy, scene.strides, scene.target_xyxy)
    for image, boxes in enumerate(scene.target_xyxy.tolist()):
        for column, box in enumerate(boxes):
            wanted = [contains(box, point, 8.0) for point in scene.points_xy.tolist()]
            assert found[image, column].tolist() == wanted


@pytest.mark.parametrize("seed", range(4))
def test_cells_in_crowds_equal_a_loop_over_a_fine_raster(seed: int) -> None:
    scene = random_scene(seed)
    crowd_xyxy = (scene.target_xyxy * 2).round() / 2  # on a raster of half a pixel, which counts areas exactly
    found = cells_in_crowds(scene.points_xy, scene.strides, crowd_xyxy, scene.valid)
    for image in range(4):
        raster = torch.zeros(2 * IMAGE_HW[0], 2 * IMAGE_HW[1], dtype=torch.bool)
        for column, box in enumerate((crowd_xyxy[image] * 2).long().clamp(min=0).tolist()):
            if scene.valid[image, column]:
                raster[box[1] : box[3], box[0] : box[2]] = True
        for cell, ((x, y), stride) in enumerate(zip(scene.points_xy.tolist(), scene.strides.tolist(), strict=True)):
            left, top, side = round(2 * x - stride), round(2 * y - stride), round(2 * stride)
            share = raster[top : top + side, left : left + side].double().mean()
            assert bool(found[image, cell]) == bool(share > 0.5)
