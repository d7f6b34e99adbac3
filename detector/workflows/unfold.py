"""Recovery of trainable batch norm for a folded model, with the loss before and after as the check."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from detector.config import registry
from detector.errors import CheckpointError, ConfigError
from detector.losses.loss import Loss
from detector.models.contracts import DetectionModel
from detector.models.unfolding import is_folded, unfold
from detector.structures.selection import select
from detector.structures.types import Targets
from detector.tasks.detection_model import LoadedModel
from detector.workflows.export import canvases_of

NUM_UNFOLD_IMAGES = 128
_BATCH_SIZE = 16  # of a training step, whose statistics the loss in training mode uses
_LARGEST_CHANGE = 1e-3  # of a raw output, relative to the largest: float32 rounding over some hundred layers


@dataclass(frozen=True)
class UnfoldReport:
    """Check of an unfolded model.

    The objects of the loss are the model's own detections, so that no annotations are needed.

    Attributes:
        images: the images, in words.
        largest_change: largest change of a raw output in evaluation mode, relative to the largest raw output.
        loss_evaluation: loss in evaluation mode, the same before and after.
        loss_before: loss in training mode before.
        loss_after: loss in training mode after.
    """

    images: str
    largest_change: float
    loss_evaluation: float
    loss_before: float
    loss_after: float

    def __str__(self) -> str:
        return (
            f"batch norm recovered from {self.images}: loss in training mode {self.loss_before:.3f} before and "
            f"{self.loss_after:.3f} after, {self.loss_evaluation:.3f} in evaluation mode; largest change of an output "
            f"{self.largest_change:.1e} of the largest"
        )


def unfold_model(loaded: LoadedModel, folder: Path) -> tuple[LoadedModel, UnfoldReport]:
    """Return a folded model with batch norm that can be trained, and the check of it.

    Args:
        loaded: the model.
        folder: a folder of images, or a glob, that the statistics are taken from.

    Raises:
        ConfigError: the model is not folded, or no image can be read.
        CheckpointError: the outputs in evaluation mode changed.
    """
    before = loaded.model
    if not isinstance(before, DetectionModel):
        raise ConfigError("--unfold: an export cannot be converted; give the model file it came from")
    if not is_folded(before):
        raise ConfigError(
            "--unfold: expected a model whose batch norm was folded, got one with statistics of its own; leave it out"
        )
    canvases, what = canvases_of(loaded.config, folder, "val", NUM_UNFOLD_IMAGES)
    batches = [
        torch.stack([torch.from_numpy(canvas).permute(2, 0, 1) for canvas in canvases[start : start + _BATCH_SIZE]])
        for start in range(0, len(canvases), _BATCH_SIZE)
    ]
    after = copy.deepcopy(before)
    unfold(after, batches)
    check = batches[0]
    targets = _own_detections(loaded, before, check)
    report = UnfoldReport(
        what,
        _largest_change(before, after, check),
        _loss_of(loaded, before, check, targets, training=False),
        _loss_of(loaded, before, check, targets, training=True),
        _loss_of(loaded, after, check, targets, training=True),
    )
    if report.largest_change > _LARGEST_CHANGE:
        raise CheckpointError(
            f"--unfold: expected the same outputs in evaluation mode, got a change of {report.largest_change:.1e}; "
            "report this model"
        )
    file = dataclasses.replace(loaded.file, state=after.state_dict())
    return dataclasses.replace(loaded, model=after, file=file), report


@torch.no_grad()
def _largest_change(before: DetectionModel, after: DetectionModel, images: Tensor) -> float:
    pairs = list(zip(before.eval()(images), after.eval()(images), strict=True))
    largest = max(float(first.abs().max()) for first, _ in pairs)
    return max(float((first - second).abs().max()) for first, second in pairs) / max(largest, 1e-9)


@torch.no_grad()
def _own_detections(loaded: LoadedModel, model: DetectionModel, images: Tensor) -> Targets:
    boxes, scores = model.eval().decode(model(images))
    found: Sequence[tuple[Tensor, Tensor, Tensor]] = [
        select(of_image, of_boxes, loaded.config.predict) for of_image, of_boxes in zip(boxes, scores, strict=True)
    ]
    counts = torch.tensor([len(labels) for _, _, labels in found])
    return Targets(
        torch.cat([xyxy for xyxy, _, _ in found]),
        torch.cat([labels for _, _, labels in found]),
        torch.arange(len(found)).repeat_interleave(counts),
        torch.zeros(int(counts.sum()), dtype=torch.bool),
        len(found),
    )


@torch.no_grad()
def _loss_of(loaded: LoadedModel, model: DetectionModel, images: Tensor, targets: Targets, training: bool) -> float:
    """Return the loss of a copy of the model, because a pass in training mode changes its statistics."""
    own = copy.deepcopy(model).train(training)
    loss: Loss[tuple[Tensor, ...], Targets] = registry.build(loaded.config.loss, own)
    return float(torch.stack(list(loss(own(images), targets).values())).sum())
