"""The options of `detector evaluate` that go beyond numbers: the report, and thresholds stored with the model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector.errors import ConfigError

if TYPE_CHECKING:
    from detector.data.coco import CocoAnnotations
    from detector.evaluation.coco_metrics import CocoMetrics
    from detector.evaluation.operating_point import OperatingPoint
    from detector.evaluation.scoring_arrays import GroundTruth, Results
    from detector.tasks.detection_model import LoadedModel


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument(
        "--report", type=Path, metavar="FOLDER", help="write a page there: where the errors are, how sure the numbers"
    )
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="with --results and --report: images to draw")
    parser.add_argument(
        "--store-thresholds",
        type=Path,
        metavar="FILE.safetensors",
        help="write the model there with its best thresholds, for predict --confidence best",
    )
    parser.add_argument(
        "--threshold-for", metavar="TARGET", help="what thresholds are best for: f1 (default), precision=P, recall=R"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="with --store-thresholds: replace a file that is there"
    )


def check_report_options(arguments: argparse.Namespace) -> None:
    """Refuses what cannot be done before anything is measured.

    Raises:
        ConfigError: an option without the one it belongs to, or a file that is there already.
    """
    from detector.evaluation.confidence import Target

    Target.parse(arguments.threshold_for or "f1")
    target = arguments.store_thresholds
    if arguments.metric != "coco" and (arguments.report or target):
        raise ConfigError(f"--report and --store-thresholds belong to --metric coco, found {arguments.metric}")
    if arguments.images and not (arguments.results and arguments.report):
        raise ConfigError("--images belongs to --results with --report; leave it out")
    if arguments.threshold_for and not (arguments.report or target):
        raise ConfigError("--threshold-for belongs to --report or --store-thresholds; give one of them")
    if target is None:
        if arguments.overwrite:
            raise ConfigError("--overwrite belongs to --store-thresholds; leave it out")
        return
    if arguments.results:
        raise ConfigError("--store-thresholds wants a model to store them with, found --results; give its file")
    if target.suffix != ".safetensors":
        raise ConfigError(f"--store-thresholds wants NAME.safetensors, found {target}; change its name")
    if target.exists() and not arguments.overwrite:
        raise ConfigError(f"{target}: already there; choose another name or say --overwrite")


def store_thresholds(
    arguments: argparse.Namespace,
    loaded: LoadedModel,
    annotations: CocoAnnotations,
    truth: GroundTruth,
    results: Results,
) -> OperatingPoint:
    """Writes the model with the best thresholds, elsewhere unless told to replace it."""
    from detector.config.schema import config_to_plain
    from detector.evaluation.confidence import Target
    from detector.evaluation.operating_point import OperatingPoint
    from detector.evaluation.ranking import Ranking
    from detector.export.export_runtime import ExportRuntime
    from detector.models.checkpoint import save_model
    from detector.tasks.detection_model import with_category_ids_of

    if isinstance(loaded.model, ExportRuntime):
        raise ConfigError("--store-thresholds wants a model file to store them with, found an export; give its source")
    ids = with_category_ids_of(loaded, annotations).file.category_ids
    target = Target.parse(arguments.threshold_for or "f1")
    point = OperatingPoint.chosen(truth, Ranking.of(truth, results), target, ids)
    file = replace(loaded.file, config=config_to_plain(loaded.config), operating_point=point.to_plain())
    save_model(arguments.store_thresholds, file)
    return point


def write(
    arguments: argparse.Namespace,
    title: str,
    metrics: CocoMetrics,
    annotations: CocoAnnotations,
    truth: GroundTruth,
    results: Results,
    document: Mapping[str, Any],
    facts: Sequence[str],
) -> tuple[Path, str]:
    """Writes the report; returns its page and a line on how sure AP is."""
    from detector.evaluation.analysis import analyse
    from detector.evaluation.confidence import Target
    from detector.evaluation.evaluation_report import write_report

    analysis = analyse(truth, results, Target.parse(arguments.threshold_for or "f1"))
    page = write_report(arguments.report, title, metrics, analysis, annotations, document, facts)
    found = analysis.intervals
    return page, f"{found.level:.0%} intervals over images: " + ", ".join(f"{n} {i}" for n, i in found.stats.items())
