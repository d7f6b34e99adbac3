"""Requests and outcomes of the verbs that every task has: evaluation and prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from detector.evaluation.confidence import Target
from detector.evaluation.detection_metric import MetricConfig
from detector.inference.prediction_run import PredictionOptions
from detector.inference.prediction_summary import PredictionSummary
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
        split: train, val or test; None for val, or for the only split of other data.
        thresholds: file to write the model to with its best thresholds, or None.
        check_views: called with the views of the opened model; it may reject options that have no effect.
    """

    weights: Path
    overrides: tuple[str, ...] = ()
    cfg: str | None = None
    names: Path | None = None
    split: str | None = None
    thresholds: Path | None = None
    check_views: Callable[[ViewsConfig], None] = lambda views: None

    @property
    def is_other_data(self) -> bool:
        """True if an override names the data set."""
        return any(override.startswith(("data=", "data.")) for override in self.overrides)


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
        warn: called with each line that changes the meaning of the numbers.
        report: called with each event of reading a split.
        on_image: called after each image with the number of images done and of all images.
    """

    note: Callable[[str], None] = lambda text: None
    warn: Callable[[str], None] = lambda text: None
    report: Callable[[Event], None] = lambda event: None
    on_image: Callable[[int, int], None] = lambda done, total: None


SILENT = Observer()


@dataclass(frozen=True, kw_only=True)
class PredictionRequest:
    """Prediction with a model file.

    Attributes:
        weights: the model file, an export or Darknet's .weights.
        sources: a path, address, glob or list file, or a list of these.
        options: the files to write and the treatment of videos.
        selection: keys of `SelectConfig`; `confidence` may be `best` or `best-overall`, and `classes` may be names.
        overrides: texts such as `predict.confidence=0.4`.
        cfg: the .cfg of a .weights file, or None for the one beside it.
        names: the class names of a .weights file, or None for those beside it.
        annotations: a COCO file with the images and their ids, or None.
        allow_url: whether the network may be used for an address.
        check_views: called with the views of the opened model; it may reject options that have no effect.
        check_frames: called before any file is made, with true if a source is a video or stream; it may reject options.
    """

    weights: Path
    sources: str | Sequence[str]
    options: PredictionOptions
    selection: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    cfg: str | None = None
    names: Path | None = None
    annotations: Path | None = None
    allow_url: bool = False
    check_views: Callable[[ViewsConfig], None] = lambda views: None
    check_frames: Callable[[bool], None] = lambda has_frames: None


class TaskRun(Protocol):
    """A run of a model over sources: a context manager and, once, an iterable of records.

    Attributes:
        has_frames: true if a source is a video or stream.
    """

    has_frames: bool

    def __enter__(self) -> TaskRun: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def __iter__(self) -> Iterator[Any]:
        """Yield a record of each image and frame, in order."""

    @staticmethod
    def to_record(prediction: Any) -> dict[str, Any]:
        """Return a record as plain data, as files of results have it."""

    @staticmethod
    def to_line(prediction: Any) -> str:
        """Return a record as a line of text."""

    def stop(self) -> None:
        """Read no further."""

    @property
    def summary(self) -> PredictionSummary:
        """Result of the run so far; complete once the block has ended."""
