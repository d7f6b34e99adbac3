"""`detector export`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from detector.cli.model_file import add_darknet_options, load
from detector.errors import ConfigError

_TARGETS = ("onnx", "openvino", "torchscript", "pt2")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="WEIGHTS key=value",
        help="a model file, then overrides such as input.size=320 predict.confidence=0.4",
    )
    add_darknet_options(parser)
    parser.add_argument("--to", choices=_TARGETS, required=True, help="the runtime to write for")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file (default: beside WEIGHTS, under its name)")
    parser.add_argument(
        "--nms", action="store_true", help="put score filter and suppression, as predict has them, into the file"
    )
    parser.add_argument("--dynamic", action="store_true", help="take canvases of any size (the batch is free always)")
    parser.add_argument("--raw-maps", action="store_true", help="give the raw maps too")
    parser.add_argument("--opset", type=int, default=18, metavar="N", help="onnx, openvino: operators (default 18)")
    parser.add_argument(
        "--mish-form", choices=("mish", "softplus", "sigmoid"), help="how Mish is written (default: what runs fastest)"
    )
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="fp32", help="default fp32")
    parser.add_argument(
        "--calibration", type=Path, metavar="FOLDER", help="int8: images to find ranges on (default: the train split)"
    )
    parser.add_argument(
        "--check-images",
        type=Path,
        metavar="FOLDER",
        help="images to compare the export with its model on (default: the val split, else drawn ones)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.add_argument("--json", action="store_true", help="print what was measured as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Exports; returns the exit code."""
    names = [word for word in arguments.words if "=" not in word]
    if len(names) != 1:
        raise ConfigError(f"one model file is wanted, found {', '.join(names) or 'none'}; give best.safetensors")

    from detector.cli.progress import say
    from detector.export.export_config import SUFFIXES, ExportSettings, files_of
    from detector.workflows.export import export_model

    settings = ExportSettings(
        arguments.to,
        nms=arguments.nms,
        dynamic=arguments.dynamic,
        raw_maps=arguments.raw_maps,
        opset=arguments.opset,
        mish_form=arguments.mish_form,
        precision=arguments.precision,
    )
    path = arguments.out or Path(names[0]).with_suffix(SUFFIXES[settings.target])
    for file in files_of(path):
        if file.exists() and not arguments.overwrite:
            raise ConfigError(f"{file}: already there; choose another --out or say --overwrite")
    loaded = load(arguments, Path(names[0]), [word for word in arguments.words if "=" in word])
    report = export_model(
        loaded, path, settings, check_images=arguments.check_images, calibration=arguments.calibration
    )
    difference = report.exported.difference
    say(f"checked on {report.checked_on}", arguments.quiet)
    if report.calibrated_on:
        say(f"ranges from {report.calibrated_on}", arguments.quiet)
    if arguments.json:
        document = {"files": [str(f) for f in report.exported.files], "difference": asdict(difference), "ap": report.ap}
        print(json.dumps(document))
        return 0
    print(difference)
    if report.ap is not None:
        before, after = report.ap
        print(f"AP on val {before:.3f}, of the export {after:.3f} ({after - before:+.3f})")
        if before - after > 0.01:
            print("the export loses more than 0.01 AP: give --calibration more images of the kind it will see, or fp16")
    elif settings.precision == "int8":
        print("what 8 bits cost in AP was not measured; detector evaluate tells")
    print("\n".join(map(str, report.exported.files)))
    return 0
