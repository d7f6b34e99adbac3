"""`detector evaluate`, also `detector val`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from detector.cli import classify
from detector.cli.model_file import add_darknet_options, add_runtime_options, load
from detector.cli.report import add_report_options, check_report_options, store_thresholds, write
from detector.cli.views import add_view_options, view_overrides
from detector.errors import ConfigError, DetectorError

if TYPE_CHECKING:
    from detector.data.coco import CocoAnnotations
    from detector.evaluation.coco_metrics import CocoMetrics
    from detector.evaluation.darknet_map import DarknetMap
    from detector.evaluation.evaluator import Conditions
    from detector.evaluation.scoring_arrays import GroundTruth, Results
    from detector.evaluation.voc_ap import VocMetrics
    from detector.tasks.detection_model import LoadedModel


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="WEIGHTS key=value",
        help="a model file, then overrides such as data=my.yaml evaluate.iou=0.6",
    )
    add_darknet_options(parser)
    add_runtime_options(parser)
    parser.add_argument("--split", default="val", help="train, val or test (default val)")
    parser.add_argument("--results", type=Path, metavar="FILE", help="score a COCO results file instead of a model")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="with --results: the COCO ground truth")
    parser.add_argument(
        "--ignore-unknown",
        action="store_true",
        help="with --results: skip and count results of images or categories that the ground truth does not list",
    )
    parser.add_argument(
        "--metric", choices=("coco", "voc", "darknet"), default="coco", help="whose numbers (default coco)"
    )
    parser.add_argument(
        "--backend", choices=("auto", "pycocotools", "fast"), help="coco: pycocotools, or fast for the same bits sooner"
    )
    parser.add_argument(
        "--limits", metavar="N,N", help="coco: AP for other numbers of detections per class and image, besides 100"
    )
    parser.add_argument(
        "--points", type=int, metavar="N", help="voc: 11 or 0; darknet: 0, 11, 101; recalls of the AP, 0 for the area"
    )
    parser.add_argument(
        "--match-iou", type=float, metavar="0..1", help="voc, darknet: overlap of a match (default 0.5)"
    )
    add_view_options(parser)
    parser.add_argument("--save-dir", type=Path, metavar="DIR", help="where results go (default runs/detect/val)")
    add_report_options(parser)
    parser.add_argument(
        "--strict", action="store_true", help="exit with 5 when images or boxes were skipped or warned of"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")


@dataclass(frozen=True)
class _Measured:
    """The numbers, and what stands beside them."""

    metrics: CocoMetrics | VocMetrics | DarknetMap
    annotations: CocoAnnotations
    conditions: Conditions | None
    results: Path | None
    skipped: tuple[str, ...]
    truth: GroundTruth
    detections: Results
    num_unscored: int = 0  # results of a file that were skipped
    folder: Path | None = None
    loaded: LoadedModel | None = None
    warnings: tuple[str, ...] = ()


def run(arguments: argparse.Namespace) -> int:
    """Measures; returns the exit code."""
    from detector.cli.metrics_text import coco_text, conditions_text, darknet_text, file_entry, file_text, voc_text
    from detector.cli.progress import say
    from detector.data.problems import num_accepted, num_skipped
    from detector.evaluation.coco_metrics import CocoMetrics
    from detector.evaluation.run_comparison import recipe_sha256
    from detector.evaluation.voc_ap import VocMetrics

    _check(arguments)
    names = [word for word in arguments.words if "=" not in word]
    if len(names) == 1 and not arguments.results and classify.is_classifier_file(Path(names[0])):
        return classify.evaluate(arguments, Path(names[0]), [word for word in arguments.words if "=" in word])
    measured = (_score_file if arguments.results else _measure)(arguments)
    for what, reasons in (("skipped", measured.skipped), ("warning", measured.warnings)):
        for reason in reasons[:10]:
            say(f"{what}: {reason}", arguments.quiet)
        if len(reasons) > 10:
            say(f"{what}: {len(reasons) - 10} more images", arguments.quiet)
    truth_file = file_entry(measured.annotations.annotations)
    results_file = file_entry(measured.results) if measured.results else None
    document = {
        **measured.metrics.to_plain(),
        "num_skipped": len(measured.skipped) + measured.num_unscored,
        "conditions": dataclasses.asdict(measured.conditions) if measured.conditions else None,
        "ground_truth": truth_file,
        "results": results_file,
    }
    if measured.loaded is not None:
        document["model"] = {"recipe_sha256": recipe_sha256(measured.loaded.file.config)}
    if measured.folder is not None:
        path = measured.folder / "metrics.json"
        _write(path, json.dumps(document, indent=1))
        say(f"numbers: {path}", arguments.quiet)
    facts = [file_text("ground truth", truth_file)]
    if measured.conditions is not None:
        facts.append(conditions_text(measured.conditions))
    elif results_file is not None:
        facts.append(file_text("scored as written:", results_file))
    metrics = measured.metrics
    if arguments.report and isinstance(metrics, CocoMetrics):
        title = str(arguments.results or next(word for word in arguments.words if "=" not in word))
        scored = measured.annotations, measured.truth, measured.detections
        page, said = write(arguments, title, metrics, *scored, document, [*facts, _provenance(metrics)])
        say(f"{said}\nreport: {page}", arguments.quiet)
    if arguments.store_thresholds and measured.loaded is not None:
        point = store_thresholds(arguments, measured.loaded, measured.annotations, measured.truth, measured.detections)
        say(f"threshold for {point.target}: {point.overall:.3f}; {arguments.store_thresholds}", arguments.quiet)
    if arguments.json:
        print(json.dumps(document))
    else:
        print("\n".join(facts))
        if isinstance(metrics, CocoMetrics):
            print(coco_text(metrics))
        else:
            print(voc_text(metrics) if isinstance(metrics, VocMetrics) else darknet_text(metrics))
    num_faults = len(measured.skipped) + measured.num_unscored + len(measured.warnings)
    num_faults += num_skipped(measured.annotations.problems) + num_accepted(measured.annotations.problems)
    return 5 if arguments.strict and num_faults else 0


def _provenance(metrics: CocoMetrics) -> str:
    return f"scored by {metrics.backend}; ground truth as scored: sha256 {metrics.ground_truth_sha256}"


def _check(arguments: argparse.Namespace) -> None:
    """Refuses options that the metric does not have."""
    check_report_options(arguments)
    for name, metrics in (
        ("backend", ("coco",)),
        ("limits", ("coco",)),
        ("points", ("voc", "darknet")),
        ("match_iou", ("voc", "darknet")),
    ):
        if getattr(arguments, name) is not None and arguments.metric not in metrics:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} belongs to --metric {' and '.join(metrics)}, found {arguments.metric}")
    if arguments.match_iou is not None and not 0 < arguments.match_iou < 1:
        raise ConfigError(f"--match-iou wants to be within 0..1, found {arguments.match_iou:g}")
    if arguments.ignore_unknown and not arguments.results:
        raise ConfigError("--ignore-unknown belongs to --results; leave it out")


def _limits(arguments: argparse.Namespace) -> list[int]:
    words = (arguments.limits or "").split(",") if arguments.limits else []
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise ConfigError(f"--limits wants numbers of at least 1 such as 300,1000, found {arguments.limits!r}")
    return [int(word) for word in words]


def _scored(
    arguments: argparse.Namespace, truth: GroundTruth, results: Results
) -> CocoMetrics | VocMetrics | DarknetMap:
    """The numbers of detections, by the metric asked for."""
    from detector.evaluation.coco_metrics import score_results
    from detector.evaluation.voc_ap import voc_map

    if arguments.metric == "coco":
        limits = _limits(arguments)
        return score_results(truth, results, backend=arguments.backend or "auto", other_limits=limits)
    iou = 0.5 if arguments.match_iou is None else arguments.match_iou
    if arguments.metric == "voc":
        return voc_map(truth, results, points=arguments.points or 0, iou_threshold=iou)
    from detector.evaluation.darknet_map import darknet_map

    return darknet_map(truth, results, points=arguments.points or 0, iou_threshold=iou)


def _score_file(arguments: argparse.Namespace) -> _Measured:
    """The numbers of a results file, as written."""
    from detector.cli.progress import say
    from detector.data.coco import read_coco
    from detector.data.problems import num_skipped
    from detector.evaluation.results_file import read_results
    from detector.evaluation.scoring_arrays import GroundTruth

    if arguments.annotations is None or arguments.words:
        raise ConfigError("--results wants --annotations FILE and no model; the two files are all it needs")
    annotations = read_coco(arguments.annotations, arguments.images)
    truth = GroundTruth.of_annotations(annotations)
    results, problems = read_results(arguments.results, truth, ignore_unknown=arguments.ignore_unknown)
    for file, found in ((arguments.annotations, annotations.problems), (arguments.results, problems)):
        for problem in found:
            say(f"{file}: {problem}", arguments.quiet)
    metrics = _scored(arguments, truth, results)
    folder = None
    if arguments.save_dir:
        from detector.training.run_folder import results_folder

        folder = results_folder(arguments.save_dir, "val")
    return _Measured(metrics, annotations, None, arguments.results, (), truth, results, num_skipped(problems), folder)


def _measure(arguments: argparse.Namespace) -> _Measured:
    """The numbers of a model on a split; its results are written down."""
    from tqdm import tqdm

    from detector.cli.progress import TrainingProgress, say
    from detector.tasks.detection_model import evaluate_model, map_detections, read_split
    from detector.training.run_folder import results_folder

    names = [word for word in arguments.words if "=" not in word]
    if len(names) != 1:
        raise ConfigError(f"one model file is wanted, found {', '.join(names) or 'none'}; give best.safetensors")
    overrides = [*(word for word in arguments.words if "=" in word), *view_overrides(arguments)]
    if arguments.backend is not None:
        overrides.append(f"evaluate.backend={arguments.backend}")
    if limits := _limits(arguments):
        overrides.append(f"evaluate.other_limits={limits}")
    loaded = load(arguments, Path(names[0]), overrides)
    annotations = read_split(loaded.config, arguments.split, TrainingProgress(arguments.quiet, arguments.verbose))
    folder = results_folder(arguments.save_dir or arguments.report, "val")
    show = sys.stderr.isatty() and not arguments.quiet
    path = folder / "results.json"
    with tqdm(total=len(annotations), unit="image", disable=not show) as bar:

        def on_image(done: int) -> None:
            bar.update(done - bar.n)

        warnings: tuple[str, ...] = ()
        if arguments.metric == "darknet":
            found = map_detections(loaded, annotations, on_image)
            records, conditions, skipped = found.detections.to_records(found.truth), found.conditions, found.skipped
            truth, detections = found.truth, found.detections
            metrics = _scored(arguments, truth, detections)
        else:
            evaluation = evaluate_model(loaded, annotations, on_image)
            records, conditions, skipped = evaluation.results, evaluation.conditions, evaluation.skipped
            metrics, warnings = evaluation.metrics, evaluation.warnings
            truth, detections = evaluation.truth, evaluation.detections
            if arguments.metric == "voc":
                metrics = _scored(arguments, truth, detections)
    _write(path, json.dumps(records))
    say(f"results: {path}", arguments.quiet)
    return _Measured(
        metrics,
        annotations,
        conditions,
        path,
        skipped,
        truth,
        detections,
        folder=folder,
        loaded=loaded,
        warnings=warnings,
    )


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DetectorError(f"{path} cannot be written: {error.strerror}; check the disk") from error
