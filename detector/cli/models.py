"""`detector models`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from detector.errors import ConfigError
from detector.io.nouns import plural
from detector.tasks.detection_model import measure_presets
from detector.workflows.describe import describe_model


def run(arguments: argparse.Namespace) -> int:
    """List the model presets, or describe a model file or preset; return the exit code."""
    if arguments.words:
        return _describe(arguments)
    if arguments.layers:
        raise ConfigError("--layers: expected a model file, got none; give one")
    if arguments.num_classes < 1:
        raise ConfigError(f"--num-classes: expected at least 1, got {arguments.num_classes}; give 1 or more")

    sizes = measure_presets(arguments.size, arguments.num_classes)
    if arguments.json:
        print(json.dumps([vars(size) for size in sizes]))
        return 0
    print(
        f"{'preset':<12}{'parameters':>12}{'GFLOPs':>10}   at {arguments.size} px, "
        + plural(arguments.num_classes, "class", "classes")
    )
    for size in sizes:
        print(f"{size.preset:<12}{size.num_parameters / 1e6:>10.2f} M{size.gflops:>10.1f}")
    return 0


def _describe(arguments: argparse.Namespace) -> int:
    if len(arguments.words) > 1:
        raise ConfigError(f"expected one model file, got {', '.join(arguments.words)}; describe one after the other")
    found = describe_model(Path(arguments.words[0]), arguments.cfg, arguments.names)
    if arguments.json:
        plain = dataclasses.asdict(found)
        print(json.dumps(plain if arguments.layers else {key: v for key, v in plain.items() if key != "layers"}))
        return 0
    size = found.input["size"]
    classes = ", ".join(found.class_names[:5]) + (", ..." if len(found.class_names) > 5 else "")
    origin = [f"{key.replace('_', ' ')}: {text}" for key, text in found.provenance.items()]
    rows = {
        "file": found.path,
        "network": f"{found.network} ({found.product})" + ("" if found.has_weights else ", without weights"),
        "parameters": f"{found.num_parameters:,}",
        "GFLOPs": f"{found.gflops:.2f} at {size} px",
        "input": ", ".join(f"{key} {value}" for key, value in found.input.items()),
        "classes": f"{len(found.class_names)}: {classes}",
        "metrics": ", ".join(f"{name} {value:.4g}" for name, value in found.metrics.items()) or "none in the file",
        "export": ", ".join(f"{key} {value}" for key, value in found.written.items()),
        "provenance": ("\n" + " " * 12).join(origin) or "not recorded; weights that were random at first have none",
    }
    print("\n".join(f"{name:<12}{text}" for name, text in rows.items() if text))
    if arguments.layers:
        print(f"\n{'layer':<44}{'kind':<18}{'output':<22}{'parameters':>12}")
        for layer in found.layers:
            shape = " x ".join(map(str, layer.output_shape[1:]))
            print(f"{layer.name:<44}{layer.kind:<18}{shape:<22}{layer.num_parameters:>12,}")
    return 0
