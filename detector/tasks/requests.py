"""Requests and outcomes of the verbs that every task has: evaluation and prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from detector.evaluation.confidence import Target
from detector.evaluation.detection_metric import MetricConfig
from detector.inference.views import ViewsConfig
from detector.training.events import Event


class Numbers(Protocol):
    """Metrics of an evaluation as text."""

    def to_text(self) -> str:
        """Return the metrics as a table for people."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """Settings that the evaluation of a model and of a results file share.

    Attributes:
        metric: the metric and its options.
        title: title of the report.
        save_dir: folder for results; None for a new folder of a model, and for none of a results file.
        report: folder for the report, or None for no report.
        target: the target that thresholds are chosen for.
    """

    metric: MetricConfig
    title: str
    save_dir: Path | None = None
    report: Path | None = None
    target: Target = field(default_factory=Target)


@dataclass(frozen=True, kw_only=True)
class ResultsRequest(EvaluationRequest):
    """Evaluation of a COCO results file.

    Attributes:
        results: the file.
        annotations: the COCO ground truth.
        images: folder of the images, for the pictures of the report; None for a report without pictures.
        ignore_unknown: skip and count results of images or categories that the ground truth does not list, instead of
            rejecting the file.
    """

    results: Path
    annotations: Path
    images: Path | None = None
    ignore_unknown: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelRequest(EvaluationRequest):
    """Evaluation of a model on a split of its data set.

    Attributes:
        weights: the model file, an export or Darknet's .weights.
        overrides: texts such as `evaluate.iou=0.6`.
        cfg: the .cfg of a .weights file, or None for the one beside it.
        names: the class names of a .weights file, or None for those beside it.
        split: train, val or test.
        thresholds: file to write the model to with its best thresholds, or None.
        check_views: called with the views of the opened model; it may reject options that have no effect.
    """

    weights: Path
    overrides: tuple[str, ...] = ()
    cfg: str | None = None
    names: Path | None = None
    split: str = "val"
    thresholds: Path | None = None
    check_views: Callable[[ViewsConfig], None] = lambda views: None


@dataclass(frozen=True)
class EvaluationOutcome:
    """Result of one evaluation.

    Attributes:
        numbers: the numbers.
        document: the content of `metrics.json`: the numbers, and the conditions and files that they belong to.
        facts: the conditions and files in words.
        num_faults: images, boxes and results that were skipped, or accepted although they are odd.
    """

    numbers: Numbers
    document: dict[str, Any]
    facts: tuple[str, ...]
    num_faults: int


@dataclass(frozen=True)
class Observer:
    """Callbacks of a verb.

    Attributes:
        note: called with each line on the progress and on unusual input.
        report: called with each event of reading a split.
        on_image: called after each image with the number of images done and of all images.
    """

    note: Callable[[str], None] = lambda text: None
    report: Callable[[Event], None] = lambda event: None
    on_image: Callable[[int, int], None] = lambda done, total: None


SILENT = Observer()
