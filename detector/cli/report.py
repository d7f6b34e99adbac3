"""Options of `detector evaluate` besides the numbers: the report, and thresholds stored with the model."""

from __future__ import annotations

import argparse

from detector.errors import ConfigError
from detector.evaluation.confidence import Target


def check_report_options(arguments: argparse.Namespace, has_report: bool) -> None:
    """Reject options that cannot be honoured, before anything is measured.

    Args:
        arguments: the command line.
        has_report: whether the metric has a report.

    Raises:
        ConfigError: an option is given without the one it belongs to, or a file already exists.
    """
    Target.parse(arguments.threshold_for or "f1")
    target = arguments.store_thresholds
    if not has_report and (arguments.report or target):
        raise ConfigError(f"--report and --store-thresholds belong to --metric coco, got {arguments.metric}")
    if arguments.images and not (arguments.results and arguments.report):
        raise ConfigError("--images belongs to --results with --report; leave it out")
    if arguments.threshold_for and not (arguments.report or target):
        raise ConfigError("--threshold-for belongs to --report or --store-thresholds; give one of them")
    if target is None:
        if arguments.overwrite:
            raise ConfigError("--overwrite belongs to --store-thresholds; leave it out")
        return
    if arguments.results:
        raise ConfigError("--store-thresholds: expected a model, got --results; give a model file")
    if target.suffix != ".safetensors":
        raise ConfigError(f"--store-thresholds: expected NAME.safetensors, got {target}; change the name")
    if target.exists() and not arguments.overwrite:
        raise ConfigError(f"{target} already exists; choose another name or give --overwrite")
