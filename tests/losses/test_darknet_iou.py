"""Darknet's overlaps and their gradients against numbers that Darknet computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from detector.losses.darknet_iou import overlap_gradient, overlap_of
from detector.models.anchor_levels import Overlap

KINDS = get_args(Overlap)
# Predicted and true box, centre and size, and what Darknet returned: overlap and gradient along x, y, w, h.
ROWS: list[tuple[tuple[float, ...], tuple[float, ...], dict[str, tuple[float, tuple[float, ...]]]]] = [
    (
        (0.524307966, 0.701095462, 0.770528376, 0.777880907),
        (0.564974248, 0.684105933, 0.758328319, 0.714284241),
        {
            "iou": (0.828388453, (2.09269857, 0, 0.0275835991, -2.04559541)),
            "giou": (0.824878216, (2.18988705, 0, 0.133492112, -2.14695859)),
            "diou": (0.807773888, (2.15958571, -0.0271121897, 0.0285792109, -2.04367161)),
            "ciou": (0.826837242, (2.15958571, -0.0271121897, 0.0286409743, -2.04373288)),
        },
    ),
    (
        (0.625198364, 0.83248353, 0.693223596, 0.361180365),
        (0.63569212, 0.839819491, 0.214783952, 0.635489464),
        {
            "iou": (0.250813842, (0, 0, -0.585775733, 0.612905324)),
            "giou": (-0.0470963717, (0, 0, -0.971624613, 2.78498363)),
            "diou": (0.245048672, (0.0237306375, 0.0165895838, -0.58548516, 0.612905324)),
            "ciou": (0.193713576, (0.0237306375, 0.0165895838, -0.639259458, 0.716115773)),
        },
    ),
    (
        (0.735677838, 0.823224902, 0.553839505, 0.661956966),  # apart from here on
        (0.675946712, 0.419558913, 0.577166319, 0.0261835959),
        {
            "iou": (0, (0.134105608, -1.13811612, 0.101130925, 1.33493137)),
            "giou": (-0.183482617, (-1.53653181, -0.0963689834, 1.55025756, 0.109263703)),
            "diou": (-0.351745754, (-0.356448144, -1.12570238, 0.115350999, 0.137951761)),
            "ciou": (-0.235887185, (-0.356448144, -1.12570238, 0.206937373, 0.0613241941)),
        },
    ),
    (
        (0.247800842, 0.232674628, 0.80154413, 0.218765095),
        (0.31948781, 0.808138192, 0.0954653621, 0.87281847),
        {
            "iou": (0, (0, 0.361104995, 0.0181231145, 0.427507192)),
            "giou": (-0.712180257, (0, 0.153283179, -0.239198789, 1.4179883)),
            "diou": (-0.353854626, (0.0754724219, 0.814826012, 0.149388447, 0.104487441)),
            "ciou": (-0.38943392, (0.0754724219, 0.814826012, 0.072175853, 0.387390465)),
        },
    ),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", ROWS)
def test_overlap_and_gradient_equal_darknets(row: Any, kind: Overlap) -> None:
    predicted, wanted, by_kind = row
    first, second = torch.tensor([predicted]), torch.tensor([wanted])
    overlap, gradient = by_kind[kind]
    assert overlap_of(first, second, kind).item() == pytest.approx(overlap, abs=3e-7)
    assert overlap_gradient(first, second, kind)[0].tolist() == pytest.approx(gradient, rel=3e-6, abs=3e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_overlap_and_gradient_of_400_pairs_equal_darknets(darknet_numbers: Path, kind: Overlap) -> None:
    with np.load(darknet_numbers / "boxes.npz") as numbers:
        predicted, wanted = torch.from_numpy(numbers["pred"]), torch.from_numpy(numbers["truth"])
        overlap, gradient = numbers[f"box_{kind}"], numbers[f"grad_xywh_{kind}"]
    assert np.abs(overlap_of(predicted, wanted, kind).numpy() - overlap).max() < 3e-7
    # Gradients of up to 23; the tolerance is the specification's.
    assert np.abs(overlap_gradient(predicted, wanted, kind).numpy() - gradient).max() < 1.3e-5


def test_the_gradient_of_iou_is_the_derivative_with_width_and_height_doubled() -> None:
    """The difference of Darknet's gradient from the derivative is simple in this case."""
    generator = torch.Generator().manual_seed(1)
    predicted = (torch.rand(200, 4, dtype=torch.float64, generator=generator) * 0.2 + 0.4).requires_grad_()
    wanted = torch.rand(200, 4, dtype=torch.float64, generator=generator) * 0.2 + 0.4
    overlaps = overlap_of(predicted, wanted, "iou")
    (true,) = torch.autograd.grad(overlaps.sum(), predicted)
    found = overlap_gradient(predicted.detach(), wanted, "iou")
    meeting = overlaps.detach() > 0
    assert meeting.sum() > 100
    assert torch.allclose(found[meeting], true[meeting] * torch.tensor([1.0, 1, 2, 2]), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_boxes_overlap_fully_and_boxes_without_area_not_at_all(kind: Overlap) -> None:
    box = torch.tensor([[0.5, 0.5, 0.2, 0.1]])
    assert overlap_of(box, box, kind).item() == pytest.approx(1.0, abs=1e-6)
    point: Tensor = torch.tensor([[0.5, 0.5, 0.0, 1e-30]])
    assert overlap_of(point, point, kind).item() <= 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_overlaps_broadcast(kind: Overlap) -> None:
    generator = torch.Generator().manual_seed(2)
    boxes, others = torch.rand(5, 4, generator=generator), torch.rand(3, 4, generator=generator)
    table = overlap_of(boxes[:, None], others, kind)
    assert table.shape == (5, 3)
    assert table[4, 1].item() == overlap_of(boxes[4], others[1], kind).item()
