"""Small cases of the task-aligned assignment, each with a few boxes and cells."""

from __future__ import annotations

import pytest
import torch

from detector.losses.task_aligned_assignment import (
    Alignment,
    PaddedObjects,
    assign_task_aligned,
    cells_in_crowds,
    pairwise_iou,
)

Box = list[float]


def test_one_to_one_an_object_whose_best_cell_another_one_has_keeps_its_second_best() -> None:
    first, second = [0.0, 0, 20, 8], [0.0, 0, 24, 8]
    points, strides = torch.tensor([[4.0, 4], [12.0, 4], [20.0, 4]]), torch.full((3,), 8.0)
    predicted, scores = torch.tensor([[first, [0.0, 0, 16, 8], second]]), torch.tensor([[[0.9], [0.1], [0.1]]])
    boxes, labels = torch.tensor([[first, second]]), torch.zeros(1, 2, dtype=torch.int64)
    objects = PaddedObjects(boxes, labels, torch.ones(1, 2, dtype=torch.bool))
    for one_to_one, wanted in ((False, {0: 0, 1: 0, 2: 1}), (True, {0: 0, 2: 1})):  # both align best with cell 0
        found = assign_task_aligned(
            scores, predicted, points, strides, objects, Alignment(10, 6.0, 1.0, False, one_to_one)
        )
        assert dict(zip(found.cell_index.tolist(), found.object_index.tolist(), strict=True)) == wanted


def test_iou_with_an_empty_or_inverted_box_is_finite_and_within_0_to_1() -> None:
    boxes = torch.tensor([[5.0, 5, 5, 5], [9.0, 9, 1, 1], [0.0, 0, 10, 10]])
    found = pairwise_iou(boxes[:, None], boxes[None])
    assert found.isfinite().all()
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize(
    ("crowds", "wanted"),
    [
        ([[0.0, 0, 4, 8], [4.0, 0, 8, 8]], True),  # half under each of two
        ([[0.0, 0, 4, 8], [0.0, 0, 4, 8]], False),  # the same half twice
        ([[0.0, 0, 3, 8], [2.0, 0, 4, 8]], False),
        ([[0.0, 0, 3, 8], [2.0, 0, 4.01, 8]], True),
        ([[0.0, 0, 8, 3], [0.0, 5, 8, 8]], True),
        ([[0.0, 0, 2, 2], [6.0, 6, 8, 8], [0.0, 6, 2, 8]], False),
    ],
)
def test_a_cell_under_several_crowds_counts_by_their_union(crowds: list[Box], wanted: bool) -> None:
    found = cells_in_crowds(
        torch.tensor([[4.0, 4.0]]), torch.tensor([8.0]), torch.tensor([crowds]), torch.ones(1, len(crowds)).bool()
    )
    assert found.tolist() == [[wanted]]


def test_a_cell_half_inside_a_crowd_is_not_mostly_inside() -> None:
    points, strides = torch.tensor([[4.0, 4.0]]), torch.tensor([8.0])
    valid = torch.ones(1, 1, dtype=torch.bool)
    for right, wanted in ((4.0, False), (4.01, True), (8.0, True)):
        crowd = torch.tensor([[[0.0, 0, right, 8]]])
        assert cells_in_crowds(points, strides, crowd, valid).tolist() == [[wanted]]
