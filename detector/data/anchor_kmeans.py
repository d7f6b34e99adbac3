"""Anchors by k-means on the boxes of a data set at the scale of the canvas.

Widths and heights are clustered by the distance 1 - IoU of boxes about one centre: J. Redmon and A. Farhadi, YOLO9000
(CVPR 2017), section 2. Seeds are drawn as in k-means++ (Arthur and Vassilvitskii, 2007).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detector.data.coco import CocoAnnotations
from detector.errors import DatasetError
from detector.media.images import image_hw
from detector.structures.letterbox import Letterbox

METRICS = ("iou", "euclidean")
RECALL_IOU = 0.5
_NUM_RESTARTS = 5
_MAX_ROUNDS = 200
# With more boxes than this the centres no longer move by a pixel. A random sample is clustered, all boxes are measured.
_MAX_CLUSTERED = 50_000

Sizes = npt.NDArray[np.float64]  # (N, 2): width and height in pixels of the canvas


@dataclass(frozen=True)
class Anchors:
    """Anchors and how well they cover the boxes of a data set.

    Attributes:
        wh: int64 (K, 2), width and height in whole pixels of the canvas, sorted by area.
        average_iou: mean over the boxes of the IoU with the best anchor.
        recall: share of the boxes whose best anchor has an IoU above `RECALL_IOU`.
        num_boxes: number of boxes that they were measured on.
    """

    wh: npt.NDArray[np.int64]
    average_iou: float
    recall: float
    num_boxes: int

    def to_plain(self) -> dict[str, object]:
        """Return the anchors and their figures as plain data."""
        figures = {"average_iou": self.average_iou, "recall": self.recall, "num_boxes": self.num_boxes}
        return {"anchors": self.wh.tolist(), **figures}


def canvas_sizes(annotations: CocoAnnotations, canvas_hw: tuple[int, int], fit: str, arithmetic: str) -> Sizes:
    """Return width and height of every object on the canvas, float64 (N, 2); crowd regions are left out.

    Raises:
        MediaError: the size of an image is not annotated and its file cannot be read.
    """
    sizes = [np.zeros((0, 2), np.float64)]
    for index in range(len(annotations)):
        source_xyxy = annotations.source_xyxy(index)[~annotations.is_crowd_of(index)].astype(np.float64)
        if not len(source_xyxy):
            continue
        height, width = annotations.image_hw[index].tolist()
        source_hw = (height, width) if height and width else image_hw(annotations.path(index))
        scale_y, scale_x = Letterbox.fit(source_hw, canvas_hw, fit, arithmetic=arithmetic).scale_hw
        sizes.append((source_xyxy[:, 2:] - source_xyxy[:, :2]) * (scale_x, scale_y))
    return np.concatenate(sizes)


def centred_iou(ours: Sizes, theirs: Sizes) -> npt.NDArray[np.float64]:
    """Return the IoU of boxes about one centre, each of `ours` (N, 2) with each of `theirs` (K, 2): float64 (N, K)."""
    shared = np.minimum(ours[:, None], theirs[None]).prod(axis=2)
    return np.asarray(shared / (ours.prod(axis=1)[:, None] + theirs.prod(axis=1)[None] - shared))


def measure_anchors(wh: npt.NDArray[np.int64], sizes: Sizes) -> Anchors:
    """Return anchors (K, 2) in whole pixels with their figures on boxes (N, 2)."""
    parts = np.array_split(sizes, max(1, len(sizes) // _MAX_CLUSTERED))
    best = np.concatenate([centred_iou(part, wh.astype(np.float64)).max(axis=1) for part in parts])
    return Anchors(wh, float(best.mean()), float((best > RECALL_IOU).mean()), len(sizes))


def find_anchors(sizes: Sizes, num: int, metric: str = "iou", seed: int = 0) -> Anchors:
    """Return the best anchors of several runs of k-means, in whole pixels, sorted by area.

    Args:
        sizes: float64 (N, 2), width and height of the boxes on the canvas, above 0.
        num: number of anchors.
        metric: `iou` for the distance 1 - IoU, `euclidean` for pixels, as in Darknet's `calc_anchors`.
        seed: seed of the random starts.

    Raises:
        DatasetError: there are fewer different boxes than anchors.
        ValueError: the metric is unknown, or `num` is below 1.
    """
    if metric not in METRICS or num < 1:
        raise ValueError(
            f"find_anchors: expected a metric of {METRICS} and at least 1 anchor, got {metric!r} and {num}"
        )
    num_different = len(np.unique(sizes, axis=0))
    if num_different < num:
        raise DatasetError(f"expected at least {num} boxes of different size, got {num_different}; use fewer anchors")
    rng = np.random.default_rng(seed)
    clustered = sizes if len(sizes) <= _MAX_CLUSTERED else rng.choice(sizes, _MAX_CLUSTERED, replace=False)
    candidates = [_clusters(clustered, num, metric, rng) for _ in range(_NUM_RESTARTS)]
    best = min(candidates, key=lambda centres: _distances(clustered, centres, metric).min(axis=1).mean())
    whole = np.maximum(best.round(), 1).astype(np.int64)
    return measure_anchors(whole[np.lexsort((whole[:, 0], whole.prod(axis=1)))], sizes)


def _distances(sizes: Sizes, centres: Sizes, metric: str) -> npt.NDArray[np.float64]:
    if metric == "iou":
        return 1 - centred_iou(sizes, centres)
    return np.asarray(np.linalg.norm(sizes[:, None] - centres[None], axis=2))


def _clusters(sizes: Sizes, num: int, metric: str, rng: np.random.Generator) -> Sizes:
    """Return the centres of one run of k-means: float64 (num, 2)."""
    centres = sizes[rng.integers(len(sizes))][None]
    nearest = np.full(len(sizes), np.inf)
    while len(centres) < num:
        nearest = np.minimum(nearest, _distances(sizes, centres[-1:], metric)[:, 0])
        weights = np.where(nearest > 1e-12, nearest, 0.0) ** 2  # rounding leaves a tiny distance of a box to itself
        if not weights.any():  # boxes differ by rounding only
            weights = np.ones(len(sizes))
        centres = np.concatenate([centres, sizes[rng.choice(len(sizes), p=weights / weights.sum())][None]])
    belongs = np.full(len(sizes), -1)
    for _ in range(_MAX_ROUNDS):
        distances = _distances(sizes, centres, metric)
        before, belongs = belongs, distances.argmin(axis=1)
        if (belongs == before).all():
            break
        counts = np.bincount(belongs, minlength=num)
        sums = np.stack([np.bincount(belongs, sizes[:, axis], num) for axis in range(2)], axis=1)
        # A centre without boxes moves to the box that is farthest from its centre.
        worst = sizes[distances.min(axis=1).argmax()]
        centres = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], worst)
    return np.asarray(centres)
