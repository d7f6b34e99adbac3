"""Evidence on a training run, as plain numbers: its files, its data, and its model on samples of both splits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from detector.evaluation.coco_metrics import CocoMetrics, as_plain
from detector.evaluation.error_split import IGNORED, KINDS, MISSED, RIGHT, split_errors
from detector.evaluation.ranking import Flags, Ranking
from detector.evaluation.scoring_arrays import GroundTruth, Results

# The most confident detections, as a share of the number of objects: a sound model has hardly a wrong one among them.
CONFIDENT_SHARE = 0.25
_SHOWN_SCORE = 0.25  # lowest score of a detection that counts for recall, the one that prediction shows
_AT_50 = 0
Plain = TypeVar("Plain")


@dataclass(frozen=True)
class SplitEvidence:
    """Evidence on one split; a number that does not exist is NaN.

    Attributes:
        num_images, num_objects: of the whole split.
        num_measured: images of the sample that the model was run on.
        ap, ap50, ap75: COCO's numbers on the sample.
        class_ap: AP on the sample, by class name.
        num_confident: most confident detections, a quarter as many as there are objects.
        num_wrong: how many of them are wrong, by kind of error.
        share_below: share of the objects of the split whose size on the canvas is below the smallest stride.
        share_below_in_source: the same share if the canvas were as large as the images.
        canvas_px: median size of objects on the canvas, square root of the area.
        recall_below, recall_others: share of the objects of the sample that are detected, below the stride and others.
        looks: mean and standard deviation over images of brightness, contrast, saturation and sharpness.
    """

    num_images: int
    num_objects: int
    num_measured: int = 0
    ap: float = math.nan
    ap50: float = math.nan
    ap75: float = math.nan
    class_ap: Mapping[str, float] = field(default_factory=dict)
    num_confident: int = 0
    num_wrong: Mapping[str, int] = field(default_factory=dict)
    share_below: float = 0.0
    share_below_in_source: float = 0.0
    canvas_px: float = math.nan
    recall_below: float = math.nan
    recall_others: float = math.nan
    looks: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class RunEvidence:
    """Evidence on a run.

    Attributes:
        run: the folder.
        canvas_px: longer side of the canvas.
        source_px: median longer side of the training images.
        stride: smallest stride of the network, canvas pixels.
        fitting_px: smallest canvas of at most `source_px` on which nearly all objects reach the stride; None if none.
        has_levels: whether `model.levels` can give the network a finer map.
        optimizer, lr, usual_lr: the optimiser, its learning rate and the default one for such a run.
        mosaic: share of training images that are mosaics.
        num_steps: planned optimiser steps.
        steps, losses, aps: step, training loss and AP of each evaluation.
        num_images_of: training images that hold each class.
        train, val: the splits; no `val` if the run had none.
    """

    run: str
    canvas_px: int
    source_px: float
    stride: int
    fitting_px: int | None
    has_levels: bool
    optimizer: str
    lr: float
    usual_lr: float
    mosaic: float
    num_steps: int
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    aps: tuple[float, ...]
    num_images_of: Mapping[str, int]
    train: SplitEvidence
    val: SplitEvidence | None = None

    def to_plain(self) -> dict[str, Any]:
        """Return the evidence as plain data for JSON; NaN becomes None."""
        return as_plain(dataclasses.asdict(self))

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> RunEvidence:
        """Return the evidence that `to_plain` gave."""
        splits = {name: _split_of(plain[name]) for name in ("train", "val")}
        curves = {name: tuple(_number(v) for v in plain[name]) for name in ("losses", "aps")}
        return cls(**{**plain, **splits, **curves, "steps": tuple(plain["steps"])})


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _split_of(plain: Mapping[str, Any] | None) -> SplitEvidence | None:
    if plain is None:
        return None
    nan = ("ap", "ap50", "ap75", "canvas_px", "recall_below", "recall_others")
    changed = {name: _number(plain[name]) for name in nan}
    looks = {name: (mean, deviation) for name, (mean, deviation) in plain["looks"].items()}
    class_ap = {name: _number(value) for name, value in plain["class_ap"].items()}
    return SplitEvidence(**{**plain, **changed, "class_ap": class_ap, "looks": looks})


def measured(
    evidence: SplitEvidence, metrics: CocoMetrics, truth: GroundTruth, results: Results, is_below: Flags
) -> SplitEvidence:
    """Return the evidence on a split with that of a model on a sample of it.

    Args:
        evidence: that on the annotations.
        metrics: COCO's numbers on the sample.
        truth: the sample.
        results: the detections on it, down to low scores.
        is_below: bool (A,), objects of the sample below the smallest stride.
    """
    ranking = Ranking.of(truth, results)
    kinds = split_errors(truth, results, ranking).kinds
    counted = np.flatnonzero(kinds != IGNORED)
    is_object = ~truth.is_crowd
    num_confident = min(math.ceil(CONFIDENT_SHARE * int(is_object.sum())), len(counted))
    best = counted[np.argsort(-ranking.scores[counted], kind="stable")][:num_confident]
    wrong = {name: int((kinds[best] == kind).sum()) for kind, name in enumerate(KINDS[:MISSED])}
    is_shown = (kinds == RIGHT) & (ranking.scores >= _SHOWN_SCORE)
    is_found = np.zeros(len(truth.areas), np.bool_)
    is_found[ranking.truth_rows[_AT_50, is_shown]] = True

    def recall(chosen: Flags) -> float:
        return float(is_found[chosen].mean()) if chosen.any() else math.nan

    return dataclasses.replace(
        evidence,
        num_measured=metrics.num_images,
        ap=metrics.ap,
        ap50=metrics.stats["AP50"],
        ap75=metrics.stats["AP75"],
        class_ap=metrics.class_ap,
        num_confident=num_confident,
        num_wrong=wrong,
        recall_below=recall(is_object & is_below),
        recall_others=recall(is_object & ~is_below),
    )
