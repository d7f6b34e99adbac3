"""The one way out for boxes: score filter and non-maximum suppression."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import nms

from detector.errors import ConfigError

# More candidates than this cannot end among the kept ones in practice, and make suppression quadratic in time.
MAX_CANDIDATES = 30_000


@dataclass(frozen=True)
class SelectConfig:
    """Which of a model's boxes become detections.

    Attributes:
        confidence: lowest score kept, 0..1.
        iou: overlap above which the lower-scoring box of a class is suppressed, 0..1.
        max_detections: most detections kept per image, best first.
        class_agnostic: whether boxes of different classes suppress each other.
        classes: class indices to keep, or None for all.
    """

    confidence: float = 0.25
    iou: float = 0.7
    max_detections: int = 300
    class_agnostic: bool = False
    classes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.confidence <= 1 and 0 <= self.iou <= 1):
            raise ValueError(f"confidence and iou want to be within 0..1, found {self.confidence} and {self.iou}")
        if self.max_detections < 1:
            raise ValueError(f"max_detections wants to be at least 1, found {self.max_detections}")
        if self.classes and min(self.classes) < 0:
            raise ValueError(f"classes wants indices of at least 0, found {min(self.classes)}")


def select(canvas_xyxy: Tensor, scores: Tensor, config: SelectConfig) -> tuple[Tensor, Tensor, Tensor]:
    """The detections of one image: filtered by score, suppressed by overlap, best first.

    A box counts once for every class whose score passes. Boxes or scores that are not finite are never detections.

    Args:
        canvas_xyxy: float32 (A, 4), any frame.
        scores: float32 (A, classes), 0..1.
        config: what to keep.

    Returns:
        boxes float32 (N, 4) in the frame given, scores float32 (N,) descending, labels int64 (N,).

    Raises:
        ConfigError: `config.classes` names a class that the scores do not have.
    """
    passing = scores >= config.confidence
    passing &= torch.isfinite(canvas_xyxy).all(dim=1)[:, None]  # a NaN score compares false by itself
    passing &= torch.isfinite(scores)
    if config.classes is not None:
        num_classes = scores.shape[1]
        if config.classes and max(config.classes) >= num_classes:
            raise ConfigError(
                f"select wants classes of 0 to {num_classes - 1}, found {max(config.classes)}; "
                "name classes of this model"
            )
        allowed = torch.zeros(num_classes, dtype=torch.bool, device=scores.device)
        allowed[list(config.classes)] = True
        passing &= allowed
    row, label = passing.nonzero(as_tuple=True)
    score = scores[row, label]
    # A stable order makes equal scores come out the same on every run.
    order = score.sort(descending=True, stable=True).indices[:MAX_CANDIDATES]
    row, label, score = row[order], label[order], score[order]
    boxes = canvas_xyxy[row]
    kept = _suppress(boxes, score, None if config.class_agnostic else label, config.iou)[: config.max_detections]
    return boxes[kept], score[kept], label[kept]


def _suppress(boxes: Tensor, scores: Tensor, labels: Tensor | None, iou: float) -> Tensor:
    """Indices of the boxes that no better one (of the same label) overlaps by more than `iou`, ascending.

    One label at a time: torchvision's `batched_nms` shifts the labels apart instead, which rounds the coordinates and
    lets boxes beyond the canvas meet those of another label, and it orders equal scores at random.

    Args:
        boxes: float32 (K, 4), best first.
        scores: float32 (K,), descending.
        labels: int64 (K,), or None for one label.
        iou: overlap above which a box is suppressed.
    """
    if labels is None:
        labels = torch.zeros_like(scores, dtype=torch.int64)
    kept = [torch.zeros(0, dtype=torch.int64, device=boxes.device)]
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero().squeeze(1)
        kept.append(members[nms(boxes[members], scores[members], iou)])
    return torch.cat(kept).sort().values
