"""`detector evaluate`, also `detector val`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from detector.cli.model_file import add_darknet_options, load
from detector.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from typing import TypeAlias

    from detector.data.coco import CocoAnnotations
    from detector.evaluation.coco_metrics import CocoMetrics

    # The numbers, why images were skipped, what is odd about others, and the annotations.
    _Measured: TypeAlias = tuple[CocoMetrics, tuple[str, ...], tuple[str, ...], CocoAnnotations]


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="WEIGHTS key=value",
        help="a model file, then overrides such as data=my.yaml evaluate.iou=0.6",
    )
    add_darknet_options(parser)
    parser.add_argument("--split", default="val", help="train, val or test (default val)")
    parser.add_argument("--results", type=Path, metavar="FILE", help="score a COCO results file instead of a model")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="with --results: the COCO ground truth")
    parser.add_argument("--save-dir", type=Path, metavar="DIR", help="where results go (default runs/detect/val)")
    parser.add_argument(
        "--strict", action="store_true", help="exit with 5 when images or boxes were skipped or warned of"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Measures; returns the exit code."""
    from detector.cli.progress import metrics_table, say
    from detector.data.problems import num_accepted, num_skipped

    metrics, skipped, warnings, annotations = (_score_file if arguments.results else _measure)(arguments)
    for what, reasons in (("skipped", skipped), ("warning", warnings)):
        for reason in reasons[:10]:
            say(f"{what}: {reason}", arguments.quiet)
        if len(reasons) > 10:
            say(f"{what}: {len(reasons) - 10} more images", arguments.quiet)
    print(json.dumps({**metrics.to_plain(), "num_skipped": len(skipped)}) if arguments.json else metrics_table(metrics))
    num_faults = len(skipped) + len(warnings) + num_skipped(annotations.problems) + num_accepted(annotations.problems)
    return 5 if arguments.strict and num_faults else 0


def _score_file(arguments: argparse.Namespace) -> _Measured:
    """The numbers of a results file, as written."""
    from detector.cli.progress import say
    from detector.data.coco import read_coco
    from detector.evaluation.coco_metrics import score_results

    if arguments.annotations is None or arguments.words:
        raise ConfigError("--results wants --annotations FILE and no model; the two files are all it needs")
    try:
        results = json.loads(arguments.results.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{arguments.results}: a COCO results file is wanted, it cannot be read: {error}") from error
    if not isinstance(results, list):
        raise DatasetError(f"{arguments.results}: a list of results is wanted, found {type(results).__name__}")
    annotations = read_coco(arguments.annotations, None)
    for problem in annotations.problems:
        say(f"{annotations.annotations}: {problem}", arguments.quiet)
    return score_results(annotations.ground_truth(), results), (), (), annotations


def _measure(arguments: argparse.Namespace) -> _Measured:
    """The numbers of a model on a split; its results are written down."""
    from tqdm import tqdm

    from detector.cli.progress import TrainingProgress, say
    from detector.experiment import evaluate_model, read_split, results_folder

    names = [word for word in arguments.words if "=" not in word]
    if len(names) != 1:
        raise ConfigError(f"one model file is wanted, found {', '.join(names) or 'none'}; give best.safetensors")
    loaded = load(arguments, Path(names[0]), [word for word in arguments.words if "=" in word])
    annotations = read_split(loaded.config, arguments.split, TrainingProgress(arguments.quiet, arguments.verbose))
    folder = results_folder(arguments.save_dir, "val")
    show = sys.stderr.isatty() and not arguments.quiet
    with tqdm(total=len(annotations), unit="image", disable=not show) as bar:

        def on_image(done: int) -> None:
            bar.update(done - bar.n)

        evaluation = evaluate_model(loaded, annotations, on_image)
    path = folder / "results.json"
    path.write_text(json.dumps(evaluation.results), encoding="utf-8")
    say(f"results: {path}", arguments.quiet)
    return evaluation.metrics, evaluation.skipped, evaluation.warnings, annotations
