"""Evaluation of detections: score a model or a results file, write the numbers, the report and the thresholds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detector.config import registry
from detector.config.schema import config_to_plain
from detector.data.coco import CocoAnnotations, read_coco
from detector.data.problems import num_accepted, num_skipped
from detector.errors import ConfigError, DetectorError
from detector.evaluation.analysis import analyse
from detector.evaluation.coco_metrics import CocoMetrics
from detector.evaluation.confidence import Target
from detector.evaluation.detection_metric import MetricNumbers
from detector.evaluation.evaluation_report import write_report
from detector.evaluation.evaluator import Conditions
from detector.evaluation.operating_point import OperatingPoint
from detector.evaluation.ranking import Ranking
from detector.evaluation.results_file import read_results
from detector.evaluation.run_comparison import recipe_sha256
from detector.evaluation.scoring_arrays import GroundTruth, Results
from detector.export.export_runtime import ExportRuntime
from detector.io.files import sha256_of_files
from detector.models.checkpoint import save_model
from detector.tasks.detection_model import LoadedModel, load_model, matched, measure_model, read_split
from detector.tasks.requests import SILENT, EvaluationOutcome, EvaluationRequest, ModelRequest, Observer, ResultsRequest
from detector.tasks.task import split_to_evaluate
from detector.training.run_folder import removed_if_empty, results_folder

_NUM_LISTED = 10  # skipped images and warnings that are named one by one


@dataclass(frozen=True)
class _Measured:
    """Numbers with everything that is written beside them.

    Attributes:
        results: the results file that was scored or written.
        conditions: the conditions of a model; None for a results file.
        skipped: images that could not be read.
        num_unscored: results of a file that were skipped.
        folder: folder for results, or None.
    """

    numbers: MetricNumbers
    annotations: CocoAnnotations
    truth: GroundTruth
    detections: Results
    results: Path
    conditions: Conditions | None = None
    skipped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    num_unscored: int = 0
    folder: Path | None = None


def evaluate_results(request: ResultsRequest, note: Callable[[str], None] = lambda text: None) -> EvaluationOutcome:
    """Score a results file as written.

    Args:
        request: the settings.
        note: called with each line on the progress and on oddities of the files.

    Raises:
        DatasetError: a file cannot be read, or holds a result that cannot be scored.
        DetectorError: a file cannot be written.
    """
    annotations = read_coco(request.annotations, request.images)
    truth = GroundTruth.of_annotations(annotations)
    results, problems = read_results(request.results, truth, ignore_unknown=request.ignore_unknown)
    for file, of_file in ((request.annotations, annotations.problems), (request.results, problems)):
        for problem in of_file:
            note(f"{file}: {problem}")
    measured = _Measured(
        registry.build(request.metric).score(truth, results),
        annotations,
        truth,
        results,
        request.results,
        num_unscored=num_skipped(problems),
        folder=results_folder(request.save_dir, "val") if request.save_dir else None,
    )
    return _written(request, measured, None, note)


def evaluate_detector(request: ModelRequest, observer: Observer = SILENT) -> EvaluationOutcome:
    """Evaluate a detector on a split.

    Args:
        request: the settings.
        observer: receives notes and progress.

    Raises:
        CheckpointError: the model file cannot be read.
        DatasetError: the split cannot be used.
        ConfigError: an override is wrong, or thresholds are to be stored with an export.
        DetectorError: a file cannot be written.
    """
    metric = registry.build(request.metric)
    overrides = [*request.overrides, *metric.overrides()]
    opened = load_model(request.weights, overrides, cfg=request.cfg, names=request.names)
    request.check_views(opened.config.views)
    for text in opened.model.notes:
        observer.note(text)
    if isinstance(opened.model, ExportRuntime) and opened.model.selection is not None:
        lowest = opened.config.evaluate.confidence
        observer.note(
            f"{request.weights} selects by itself: evaluated with its confidence {lowest:g}; boxes of lower scores are "
            f"missing from the numbers"
        )
    split = split_to_evaluate(opened.config, request.split, request.is_other_data, observer.note)
    annotations = read_split(opened.config, split, observer.report)
    loaded, annotations = matched(opened, annotations, observer.note, observer.warn)
    folder = results_folder(request.save_dir or request.report, "val")
    num_images = len(annotations)
    with removed_if_empty(folder, request.save_dir or request.report):
        numbers, found = measure_model(loaded, annotations, metric, lambda done: observer.on_image(done, num_images))
    path = folder / "results.json"
    _write(path, json.dumps(found.results))
    observer.note(f"results: {path}")
    measured = _Measured(
        numbers,
        annotations,
        found.truth,
        found.detections,
        path,
        conditions=found.conditions,
        skipped=found.skipped,
        warnings=found.warnings,
        folder=folder,
    )
    outcome = _written(request, measured, recipe_sha256(loaded.file.config), observer.note)
    if request.thresholds is not None:
        point = _store_thresholds(request.thresholds, opened, loaded.file.category_ids, request.target, measured)
        observer.note(f"threshold for {point.target}: {point.overall:.3f}; {request.thresholds}")
    return outcome


def _written(
    request: EvaluationRequest, measured: _Measured, recipe: str | None, note: Callable[[str], None]
) -> EvaluationOutcome:
    """Write `metrics.json` and the report."""
    for text in (*_listed("skipped", measured.skipped), *_listed("warning", measured.warnings)):
        note(text)
    truth_file, results_file = _file_entry(measured.annotations.annotations), _file_entry(measured.results)
    document = {
        **measured.numbers.to_plain(),
        "num_skipped": len(measured.skipped) + measured.num_unscored,
        "conditions": dataclasses.asdict(measured.conditions) if measured.conditions else None,
        "ground_truth": truth_file,
        "results": results_file,
    }
    if recipe is not None:
        document["model"] = {"recipe_sha256": recipe}
    if measured.folder is not None:
        path = measured.folder / "metrics.json"
        _write(path, json.dumps(document, indent=1))
        note(f"numbers: {path}")
    facts = (
        _file_text("ground truth", truth_file),
        measured.conditions.to_text() if measured.conditions else _file_text("scored as written:", results_file),
    )
    if request.report is not None:
        _write_report(request, request.report, measured, document, facts, note)
    num_faults = len(measured.skipped) + measured.num_unscored + len(measured.warnings)
    num_faults += num_skipped(measured.annotations.problems) + num_accepted(measured.annotations.problems)
    return EvaluationOutcome(measured.numbers, document, facts, num_faults)


def _listed(what: str, reasons: tuple[str, ...]) -> Iterator[str]:
    for reason in reasons[:_NUM_LISTED]:
        yield f"{what}: {reason}"
    if len(reasons) > _NUM_LISTED:
        yield f"{what}: {len(reasons) - _NUM_LISTED} more images"


def _write_report(
    request: EvaluationRequest,
    folder: Path,
    measured: _Measured,
    document: dict[str, Any],
    facts: tuple[str, ...],
    note: Callable[[str], None],
) -> None:
    metrics = measured.numbers
    if not isinstance(metrics, CocoMetrics):
        raise ConfigError("a report needs COCO's numbers; leave the report out, or choose the metric coco")
    analysis = analyse(measured.truth, measured.detections, request.target)
    provenance = f"scored by {metrics.backend}; ground truth as scored: sha256 {metrics.ground_truth_sha256}"
    page = write_report(folder, request.title, metrics, analysis, measured.annotations, document, [*facts, provenance])
    intervals = analysis.intervals
    stats = ", ".join(f"{name} {interval}" for name, interval in intervals.stats.items())
    note(f"{intervals.level:.0%} intervals over images: {stats}\nreport: {page}")


def _store_thresholds(
    path: Path, loaded: LoadedModel, split_ids: Sequence[int], target: Target, measured: _Measured
) -> OperatingPoint:
    """Write the model with its best thresholds to a file; `split_ids` are the category ids of its classes."""
    if isinstance(loaded.model, ExportRuntime):
        raise ConfigError("--store-thresholds: expected a model file, got an export; give the model file it came from")
    ranking = Ranking.of(measured.truth, measured.detections)
    point = OperatingPoint.chosen(measured.truth, ranking, target, split_ids)
    save_model(path, replace(loaded.file, config=config_to_plain(loaded.config), operating_point=point.to_plain()))
    return point


def _file_entry(path: Path) -> dict[str, str | None]:
    """Return the path of a file that numbers were computed from and, of a JSON file, the sha256 of its bytes."""
    if path.suffix != ".json" or path.is_dir():  # a description of a data set, whose labels are in other files
        return {"file": str(path), "sha256": None}
    return {"file": str(path), "sha256": sha256_of_files([path])}


def _file_text(what: str, entry: dict[str, str | None]) -> str:
    return f"{what} {entry['file']}" + (f", sha256 {entry['sha256']}" if entry["sha256"] else "")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DetectorError(f"{path} cannot be written: {error.strerror}; check the disk") from error
