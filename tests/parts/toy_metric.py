"""Example of a metric: one file in `detector/evaluation/`, or a file given with `--import`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pycocotools import mask

from detector.config.registry import register
from detector.evaluation.detection_metric import DetectionMetric, MetricConfig
from detector.evaluation.scoring_arrays import GroundTruth, Results


@dataclass(frozen=True)
class CoverageNumbers:
    """Number of objects, crowd regions excluded, and of those that a detection of their class covers."""

    num_objects: int
    num_covered: int

    def to_plain(self) -> dict[str, Any]:
        """Return the numbers as plain data for JSON."""
        return {"metric": "toy", **asdict(self)}

    def to_text(self) -> str:
        """Return the numbers as text for people."""
        return f"{self.num_covered} of {self.num_objects} objects covered"


@register("toy")
class Coverage(DetectionMetric):
    """Number of objects that a detection of their class overlaps, whatever its score."""

    @dataclass(frozen=True)
    class Config(MetricConfig):
        """Options of the metric.

        Attributes:
            match_iou: lowest overlap of an object and a detection; the option --match-iou sets it.
        """

        match_iou: float = 0.5

    def __init__(self, config: Config) -> None:
        self.config = config

    def score(self, truth: GroundTruth, results: Results) -> CoverageNumbers:
        """Return the numbers of detections."""
        num_covered = 0
        for row in np.flatnonzero(~truth.is_crowd):
            is_same = results.image_ranks == truth.image_ranks[row]
            is_same &= results.category_ranks == truth.category_ranks[row]
            overlaps = mask.iou(results.boxes_xywh[is_same], truth.boxes_xywh[row][None], [0])
            num_covered += bool(np.any(np.asarray(overlaps) >= self.config.match_iou))
        return CoverageNumbers(int((~truth.is_crowd).sum()), num_covered)
