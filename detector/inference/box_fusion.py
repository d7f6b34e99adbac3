"""Weighted box fusion: the boxes of one object in several views become one box, their weighted mean.

Solovyev, Wang, Gabruseva 2021, "Weighted boxes fusion: ensembling boxes from different object detection models",
section 3.3. There every model sees the whole image; here a view may show a part of it, so the number of boxes that an
object could have had is counted for each object.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Float64s = npt.NDArray[np.float64]


def fuse(
    xyxy: Tensor, scores: Tensor, labels: Tensor, regions_xyxy: Float64s, iou: float, class_agnostic: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Fuse the boxes of one image from several views; computed in float64.

    In the order of their scores, each box joins the group of its class whose fused box it overlaps most, if by more
    than `iou`, or begins a group. The box of a group is the mean of its boxes weighted by their scores (equations 2 and
    3); its score is their mean (equation 1) times min(T, N) / N (equation 6). T is the number of its boxes; N, the
    paper's number of models, is the number of views whose region contains the fused box, at least 1.

    Args:
        xyxy: float32 (K, 4), pixels of the source.
        scores: float32 (K,), above 0.
        labels: int64 (K,).
        regions_xyxy: float64 (V, 4), the region of each view.
        iou: overlap above which boxes are the same object, 0..1.
        class_agnostic: true if boxes of different classes form groups; a group has the class of its first box.

    Returns:
        Boxes float32 (G, 4), scores float32 (G,), labels int64 (G,), in the order in which the groups began.
    """
    order = scores.sort(descending=True, stable=True).indices
    boxes, weights = xyxy[order].double().numpy(), scores[order].double().numpy()
    classes = labels[order].numpy()
    groups = np.zeros(len(boxes), np.int64) if class_agnostic else classes
    fused, sums = np.zeros((len(boxes), 4)), np.zeros((len(boxes), 4))
    total, counts = np.zeros(len(boxes)), np.zeros(len(boxes), np.int64)
    fused_labels, fused_groups = np.zeros(len(boxes), np.int64), np.zeros(len(boxes), np.int64)
    num = 0
    for box, weight, label, group in zip(boxes, weights, classes, groups, strict=True):
        place = _match(box, fused[:num], fused_groups[:num] == group, iou)
        if place is None:
            place, num = num, num + 1
            fused_labels[place], fused_groups[place] = label, group
        sums[place] += weight * box
        total[place] += weight
        counts[place] += 1
        fused[place] = sums[place] / total[place] if total[place] > 0 else box
    fused, counts = fused[:num], counts[:num]
    holds = (regions_xyxy[None, :, :2] <= fused[:, None, :2]) & (fused[:, None, 2:] <= regions_xyxy[None, :, 2:])
    num_views = np.maximum(holds.all(axis=2).sum(axis=1), 1)
    fused_scores = total[:num] / np.maximum(counts, 1) * np.minimum(counts, num_views) / num_views
    return (
        torch.from_numpy(fused.astype(np.float32)),
        torch.from_numpy(fused_scores.astype(np.float32)),
        torch.from_numpy(fused_labels[:num]),
    )


def _match(box: Float64s, fused: Float64s, is_like: npt.NDArray[np.bool_], iou: float) -> int | None:
    """Return the index of the fused box, among those of its group, that a box overlaps most, if by more than `iou`."""
    rows = np.flatnonzero(is_like)
    if not len(rows):
        return None
    others = fused[rows]
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = sides.clip(min=0).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    overlaps = np.divide(shared, areas - shared, out=np.zeros_like(shared), where=shared > 0)
    best = int(overlaps.argmax())
    return int(rows[best]) if overlaps[best] > iou else None
