"""The forms of assignment and loss for a GPU, which do not wait for it, against those of the CPU, on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from detector.config import registry
from detector.losses import task_aligned_assignment
from detector.losses.loss import LossParts
from detector.structures import transfer
from detector.structures.types import Targets
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import build_model


def crowded(num_objects: int, seed: int) -> Targets:
    """Return objects of three images, in the first one many that overlap, and crowd regions; the last one is empty."""
    draw = torch.Generator().manual_seed(seed)
    corner = torch.rand(num_objects, 2, generator=draw) * 40
    boxes = torch.cat([corner, corner + 2 + 30 * torch.rand(num_objects, 2, generator=draw)], dim=1)
    boxes[num_objects // 2 : num_objects // 2 + 1] = boxes[:1]  # a duplicate
    ignore = torch.rand(num_objects, generator=draw) > 0.9
    image = (torch.arange(num_objects) > 0.8 * num_objects).long()
    return Targets(boxes, torch.randint(0, 6, (num_objects,), generator=draw), image, ignore, 3)


@pytest.mark.parametrize("experiment", ["mish-n", "dual", "yolox", "darknet"], indirect=True)
@pytest.mark.parametrize("num_objects", [0, 2, 40])
def test_parts_and_gradients_are_those_of_the_cpu(
    experiment: Callable[..., DetectionConfig], num_objects: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(num_objects)
    model = build_model(experiment(), 6)
    with torch.no_grad():
        raw_maps = model(torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8))
    loss, targets = registry.build(experiment().loss, model), crowded(num_objects, num_objects)

    def run() -> tuple[LossParts, list[Tensor]]:
        leaves = tuple((raw + torch.randn_like(raw)).requires_grad_() for raw in raw_maps)
        parts = loss(leaves, targets)
        return parts, list(torch.autograd.grad(parts.total(), leaves))

    torch.manual_seed(1)
    usual, gradients = run()
    monkeypatch.setattr(transfer, "runs_ahead", lambda tensor: True)
    monkeypatch.setattr(task_aligned_assignment, "_MAX_ROUNDS", 40)
    torch.manual_seed(1)
    padded, padded_gradients = run()
    assert float(padded.count) == pytest.approx(float(usual.count))
    for name, value in usual.items():
        assert float(padded[name].detach()) == pytest.approx(float(value.detach()), rel=1e-5, abs=1e-7), name
    for ours, theirs in zip(padded_gradients, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("num_objects", [2, 60])
def test_the_same_cells_are_assigned(
    num_objects: int, assignment_inputs: Callable[[int], tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = assignment_inputs(num_objects)
    usual = task_aligned_assignment.assign_task_aligned(*arguments)
    monkeypatch.setattr(transfer, "runs_ahead", lambda tensor: True)
    found = task_aligned_assignment.assign_task_aligned(*arguments)

    def qualities(assignment: task_aligned_assignment.Assignment) -> dict[tuple[int, ...], float]:
        kept = assignment.counts
        fields = (assignment.image_index, assignment.cell_index, assignment.object_index)
        keys = zip(*(values[kept].tolist() for values in fields), strict=True)
        return dict(zip(keys, assignment.quality[kept].tolist(), strict=True))

    assert qualities(found) == pytest.approx(qualities(usual), rel=1e-5)  # torch rounds a power by its place in memory
    assert len(qualities(usual)) > num_objects


@pytest.fixture
def assignment_inputs() -> Callable[[int], tuple]:
    """Return a function that draws predictions and objects of two images."""

    def drawn(num_objects: int) -> tuple:
        torch.manual_seed(num_objects)
        points = torch.cartesian_prod(torch.arange(16) * 8.0 + 4, torch.arange(16) * 8.0 + 4)
        half = 4 + 20 * torch.rand(2, 256, 2)
        objects = 20 + 70 * torch.rand(2, num_objects, 2)
        sides = 6 + 20 * torch.rand(2, num_objects, 2)
        valid = torch.ones(2, num_objects, dtype=torch.bool)
        valid[1, num_objects // 2 :] = False
        return (
            torch.rand(2, 256, 3),
            torch.cat([points - half, points + half], dim=2),
            points,
            torch.full((256,), 8.0),
            task_aligned_assignment.PaddedObjects(
                torch.cat([objects - sides, objects + sides], dim=2) * valid[..., None],
                torch.randint(0, 3, (2, num_objects)) * valid,
                valid,
            ),
            task_aligned_assignment.Alignment(10, 0.5, 6.0),
        )

    return drawn
