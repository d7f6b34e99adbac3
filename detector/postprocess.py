"""The one way out for boxes: score filter and non-maximum suppression."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms

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


def select(canvas_xyxy: Tensor, scores: Tensor, config: SelectConfig) -> tuple[Tensor, Tensor, Tensor]:
    """The detections of one image: filtered by score, suppressed by overlap, best first.

    A box counts once for every class whose score passes. Boxes or scores that are not finite are never detections.

    Args:
        canvas_xyxy: float32 (A, 4), any frame.
        scores: float32 (A, classes), 0..1.
        config: what to keep.

    Returns:
        boxes float32 (N, 4) in the frame given, scores float32 (N,) descending, labels int64 (N,).
    """
    passing = scores >= config.confidence
    passing &= torch.isfinite(canvas_xyxy).all(dim=1)[:, None]  # a NaN score compares false by itself
    passing &= torch.isfinite(scores)
    if config.classes is not None:
        allowed = torch.zeros(scores.shape[1], dtype=torch.bool, device=scores.device)
        allowed[[c for c in config.classes if c < scores.shape[1]]] = True
        passing &= allowed
    row, label = passing.nonzero(as_tuple=True)
    score = scores[row, label]
    # A stable order makes equal scores come out the same on every run.
    order = score.sort(descending=True, stable=True).indices[:MAX_CANDIDATES]
    row, label, score = row[order], label[order], score[order]
    boxes = canvas_xyxy[row]
    groups = torch.zeros_like(label) if config.class_agnostic else label
    keep = batched_nms(boxes, score, groups, config.iou)[: config.max_detections]
    return boxes[keep], score[keep], label[keep]
