"""`detector export`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from detector.cli.model_file import add_darknet_options, load
from detector.cli.progress import say
from detector.errors import ConfigError
from detector.export.export_config import ExportSettings
from detector.export.export_target import find_export_target
from detector.workflows.export import ExportReport, export_model


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="WEIGHTS key=value",
        help="a model file, then overrides such as input.size=320 predict.confidence=0.4",
    )
    add_darknet_options(parser)
    # No choices: a target may come from a file of --import, which runs after the options are parsed.
    parser.add_argument(
        "--to",
        metavar="TARGET",
        required=True,
        help="the runtime to write for: onnx, openvino, torchscript, pt2, or one of --import",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file (default: beside WEIGHTS, under its name)")
    parser.add_argument(
        "--nms", action="store_true", help="put score filter and suppression, as predict has them, into the file"
    )
    parser.add_argument("--dynamic", action="store_true", help="accept canvases of any size (the batch is always free)")
    parser.add_argument("--raw-maps", action="store_true", help="output the raw maps too")
    parser.add_argument(
        "--opset", type=int, default=18, metavar="N", help="onnx, openvino: version of the operators (default 18)"
    )
    parser.add_argument(
        "--mish-form", choices=("mish", "softplus", "sigmoid"), help="how Mish is written (default: the fastest)"
    )
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="fp32", help="default fp32")
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FOLDER",
        help="int8: images to take the ranges of activations from (default: the train split)",
    )
    parser.add_argument(
        "--check-images",
        type=Path,
        metavar="FOLDER",
        help="images to compare the export with its model on (default: the val split, else drawn ones)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--json", action="store_true", help="print the differences from the model as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Export a model; return the exit code."""
    names = [word for word in arguments.words if "=" not in word]
    if len(names) != 1:
        raise ConfigError(f"expected one model file, got {', '.join(names) or 'none'}; give best.safetensors")
    settings = _settings(arguments)
    target = find_export_target(settings.target)
    path = arguments.out or Path(names[0]).with_suffix(target.suffix)
    for file in target.files_of(path):
        if file.exists() and not arguments.overwrite:
            raise ConfigError(f"{file}: already exists; choose another --out or give --overwrite")
    loaded = load(arguments, Path(names[0]), [word for word in arguments.words if "=" in word])
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
