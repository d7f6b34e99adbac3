"""`detector evaluate`, also `detector val`."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from pathlib import Path

from detector.cli.image_bar import ImageBar
from detector.cli.model_file import runtime_overrides
from detector.cli.options import refuse_given, refuse_unsupported
from detector.cli.progress import say, say_warning
from detector.cli.report import check_report_options
from detector.cli.usage import split_words
from detector.cli.views import require_effect, view_overrides
from detector.config import registry
from detector.config.registry import PartConfig
from detector.config.schema import config_from_plain
from detector.errors import ConfigError
from detector.evaluation.confidence import Target
from detector.evaluation.detection_metric import MetricConfig
from detector.evaluation.mot_file import frames_of_tracks, read_mot_file
from detector.evaluation.track_scores import score_tracks
from detector.models.published_weights import resolve_weights
from detector.tasks.task import task_of_file
from detector.workflows.evaluate import (
    EvaluationOutcome,
    ModelRequest,
    Observer,
    ResultsRequest,
    evaluate_file,
    evaluate_results,
)
from detector.workflows.training_progress import TrainingProgress

_OF_TRACKS = {"tracks", "annotations", "words", "command", "quiet", "verbose", "debug", "imports", "strict", "json"}
_METRIC_OPTIONS = ("backend", "limits", "points", "match_iou")  # fields of the config of a metric that has them


def run(arguments: argparse.Namespace) -> int:
    """Evaluate a model or a results file; return the exit code."""
    if arguments.tracks is not None:
        return _score_tracks(arguments)
    config = _metric_config(arguments)
    check_report_options(arguments, registry.build(config).has_report)
    if arguments.results:
        outcome = _score_file(arguments, config)
    else:
        names, overrides = split_words(arguments)
        outcome = _measure_model(arguments, config, resolve_weights(Path(names[0])), overrides)
    if arguments.json:
        print(json.dumps(outcome.document))
    else:
        print("\n".join([*outcome.facts, outcome.numbers.to_text()]))
    return 5 if arguments.strict and outcome.num_faults else 0


def _score_tracks(arguments: argparse.Namespace) -> int:
    """Print the scores of a file of tracks; return the exit code.

    Raises:
        ConfigError: options were given that have no effect.
    """
    names = sorted(set(vars(arguments)) - _OF_TRACKS)
    refuse_given(arguments, names, "not for --tracks")
    frames = frames_of_tracks(read_mot_file(arguments.annotations, is_truth=True), read_mot_file(arguments.tracks))
    scores = score_tracks(frames)
    if arguments.json:
        print(json.dumps(scores.to_plain()))
        return 0
    rates = (("HOTA", scores.hota), ("DetA", scores.det_a), ("AssA", scores.ass_a), ("IDF1", scores.idf1))
    print("   ".join(f"{name} {rate:.4f}" for name, rate in (*rates, ("MOTA", scores.mota))))
    print(
        f"{scores.num_true} boxes of objects in {len(frames)} frames: {scores.num_missed} missed, "
        f"{scores.num_false} false, {scores.num_switches} switches of identity"
    )
    return 0


def _metric_config(arguments: argparse.Namespace) -> MetricConfig:
    """Return the config of the metric with the options given.

    Raises:
        ConfigError: there is no such metric, it does not have an option, or a value is out of range.
    """
    config_class = registry.find_config_class(MetricConfig, arguments.metric)
    given = {name: getattr(arguments, name) for name in _METRIC_OPTIONS if getattr(arguments, name) is not None}
    for name in [name for name in given if name not in _field_names(config_class)]:
        known = registry.config_classes(MetricConfig)
        owners = [metric for metric, each in known.items() if name in _field_names(each)]
        option = name.replace("_", "-")
        raise ConfigError(f"--{option} belongs to --metric {' and '.join(owners)}, got {arguments.metric}")
    if "limits" in given:
        given["limits"] = _limits(arguments.limits)
    config: MetricConfig = config_from_plain(config_class, given, f"--metric {arguments.metric}")
    return config


def _field_names(config_class: type[PartConfig[object]]) -> set[str]:
    return {field.name for field in dataclasses.fields(config_class)}


def _limits(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise ConfigError(f"--limits: expected numbers of at least 1 such as 300,1000, got {text!r}")
    return [int(word) for word in words]


def _target(arguments: argparse.Namespace) -> Target:
    return Target.parse(arguments.threshold_for or "f1")


def _score_file(arguments: argparse.Namespace, config: MetricConfig) -> EvaluationOutcome:
    request = ResultsRequest(
        metric=config,
        title=str(arguments.results),
        save_dir=arguments.out,
        report=arguments.report,
        target=_target(arguments),
        results=arguments.results,
        annotations=arguments.annotations,
        images=arguments.images,
        ignore_unknown=arguments.ignore_unknown,
    )
    return evaluate_results(request, lambda text: say(text, arguments.quiet))


def _measure_model(
    arguments: argparse.Namespace, config: MetricConfig, weights: Path, overrides: list[str]
) -> EvaluationOutcome:
    task = task_of_file(weights)
    refuse_unsupported(arguments, task.evaluate_options, task.product)
    request = ModelRequest(
        metric=config,
        title=str(weights),
        save_dir=arguments.out,
        report=arguments.report,
        target=_target(arguments),
        weights=weights,
        overrides=(*overrides, *runtime_overrides(arguments), *view_overrides(arguments)),
        cfg=arguments.cfg,
        names=arguments.names,
        split=arguments.split,
        thresholds=arguments.store_thresholds,
        check_views=functools.partial(require_effect, arguments),
    )
    progress = TrainingProgress(arguments.quiet, arguments.verbose)
    with ImageBar(is_shown=sys.stderr.isatty() and not arguments.quiet) as bar:
        return evaluate_file(request, Observer(lambda text: say(text, arguments.quiet), say_warning, progress, bar))
