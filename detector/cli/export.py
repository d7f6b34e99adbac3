"""`detector export`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from detector.cli.model_file import load
from detector.cli.progress import say
from detector.cli.usage import split_words
from detector.export.export_config import ExportSettings
from detector.export.export_target import find_export_target
from detector.models.published_weights import resolve_weights
from detector.workflows.export import ExportReport, export_model, require_new_files


def run(arguments: argparse.Namespace) -> int:
    """Export a model; return the exit code."""
    names, overrides = split_words(arguments)
    weights = resolve_weights(Path(names[0]))
    settings = _settings(arguments)
    target = find_export_target(settings.target)
    path = arguments.out or weights.with_suffix(target.suffix)
    if not arguments.overwrite:
        require_new_files(path, settings, "choose another --out or give --overwrite")
    loaded = load(arguments, weights, overrides)
    report = export_model(
        loaded, path, settings, check_images=arguments.check_images, calibration=arguments.calibration
    )
    say(f"checked on {report.checked_on}", arguments.quiet)
    if report.calibrated_on:
        say(f"ranges from {report.calibrated_on}", arguments.quiet)
    print(_document(report) if arguments.json else _text(report, settings))
    return 0


def _settings(arguments: argparse.Namespace) -> ExportSettings:
    return ExportSettings(
        arguments.to,
        nms=arguments.nms,
        dynamic=arguments.dynamic,
        raw_maps=arguments.raw_maps,
        opset=arguments.opset,
        mish_form=arguments.mish_form,
        precision=arguments.precision,
        max_ap_loss=arguments.max_ap_loss,
        runner=arguments.runner,
    )


def _document(report: ExportReport) -> str:
    exported = report.exported
    files = [str(file) for file in exported.files]
    return json.dumps({"files": files, "difference": asdict(exported.difference), "ap": report.ap})


def _text(report: ExportReport, settings: ExportSettings) -> str:
    """Return the differences, the loss of AP where it was measured, and the files, each on a line."""
    lines = [str(report.exported.difference)]
    if report.ap is not None:
        before, after = report.ap
        lines.append(f"AP on val {before:.3f}, of the export {after:.3f} ({after - before:+.3f})")
        if before - after > 0.01:
            lines.append(
                "the export loses more than 0.01 AP: give --calibration more images like those it will be used on, or "
                "use fp16"
            )
    elif settings.precision == "int8":
        lines.append("the loss of AP with int8 was not measured; detector evaluate measures it")
    return "\n".join([*lines, *map(str, report.exported.files)])
