"""Score filter and non-maximum suppression on NumPy arrays, for programs without torch: equal to `selection.select`.

The bounds on overlaps are compared as torch and torchvision compare them: in float64 for `plain`, else in float32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from detector.structures.selection import GREEDY_BETA, MAX_CANDIDATES, SelectConfig

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


def select_arrays(
    canvas_xyxy: Floats, scores: Floats, config: SelectConfig, image_hw: tuple[int, int] = (1, 1)
) -> tuple[Floats, Floats, Indices]:
    """Return the detections of one image: filtered by score, suppressed by overlap, best first.

    Args:
        canvas_xyxy: float32 (A, 4), any frame.
        scores: float32 (A, classes), 0..1.
        config: settings of the selection.
        image_hw: height and width of the image in that frame, which `greedy` and `diou` measure distances by.

    Returns:
        Boxes float32 (N, 4), scores float32 (N,) descending, labels int64 (N,).
    """
    columns = np.arange(scores.shape[1])
    lowest = config.confidence if config.class_confidence is None else config.class_confidence
    is_finite = np.isfinite(scores)
    is_whole = np.asarray(np.isfinite(canvas_xyxy).all(axis=1))[:, None]
    passing = is_finite & is_whole & (scores >= np.asarray(lowest, np.float32))
    if config.best_class:
        passing &= columns == np.where(is_finite, scores, np.float32(-1)).argmax(axis=1)[:, None]
    if config.classes is not None:
        passing &= np.isin(columns, config.classes)
    row, label = passing.nonzero()
    order = np.argsort(-scores[row, label], kind="stable")[:MAX_CANDIDATES]
    row, label = row[order], label[order]
    kept = _kept(canvas_xyxy[row], label, config, image_hw)[: config.max_detections]
    row, label = row[kept], label[kept]
    return canvas_xyxy[row], scores[row, label], label


def _kept(boxes: Floats, labels: Indices, config: SelectConfig, image_hw: tuple[int, int]) -> Indices:
    """Return the indices of the boxes (K, 4), best first, that no better one (of the same label) suppresses."""
    if config.nms == "none":
        return np.arange(len(boxes))
    if config.nms != "plain":
        height, width = image_hw
        boxes = np.divide(boxes, np.array([width, height, width, height], np.float32), dtype=np.float32)
    groups = np.zeros_like(labels) if config.class_agnostic else labels
    is_kept = np.zeros(len(boxes), np.bool_)
    for group in np.unique(groups):
        left = np.flatnonzero(groups == group)
        while len(left):
            best, left = left[0], left[1:]
            is_kept[best] = True
            left = left[~_suppresses(boxes[best], boxes[left], config)]
    return np.flatnonzero(is_kept)


def _suppresses(better: Floats, others: Floats, config: SelectConfig) -> npt.NDArray[np.bool_]:
    """Return which boxes (K, 4) overlap a better one (4,) by more than the selection allows: bool (K,)."""
    (left, top, right, bottom), (lefts, tops, rights, bottoms) = better, others.T
    shared = (np.minimum(right, rights) - np.maximum(left, lefts)).clip(min=0)
    shared *= (np.minimum(bottom, bottoms) - np.maximum(top, tops)).clip(min=0)
    area, areas = (right - left) * (bottom - top), (rights - lefts) * (bottoms - tops)
    with np.errstate(divide="ignore", invalid="ignore"):  # NaN, which never passes, if neither box has an area
        iou = shared / (area + areas - shared)
        if config.nms == "plain":
            return np.asarray(iou.astype(np.float64) > config.iou)
        hull = np.maximum(better[2:], others[:, 2:]) - np.minimum(better[:2], others[:, :2])
        centres = (better[:2] + better[2:] - others[:, :2] - others[:, 2:]) / 2
        share = np.square(centres).sum(axis=1) / np.square(hull).sum(axis=1)
        beta, most = GREEDY_BETA if config.nms == "greedy" else config.nms_beta, np.float32(config.iou)
        return np.asarray((iou > most) & (iou - share ** np.float32(beta) > most))
