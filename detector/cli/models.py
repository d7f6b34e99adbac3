"""`detector models`."""

from __future__ import annotations

import argparse
import json

from detector.errors import ConfigError
from detector.io.nouns import plural
from detector.tasks.detection_model import measure_presets


def run(arguments: argparse.Namespace) -> int:
    """List the model presets and return the exit code."""
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
