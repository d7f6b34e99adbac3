"""Options that name a model, shared by all commands that take a model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detector.cli.progress import say
from detector.cli.views import require_effect
from detector.tasks.detection_model import LoadedModel, load_model


def runtime_overrides(arguments: argparse.Namespace) -> list[str]:
    """Return the options on how the network runs, as overrides of the experiment."""
    precision = getattr(arguments, "runtime_precision", None)
    return [] if precision is None else [f"runtime.precision={precision}"]


def load(arguments: argparse.Namespace, weights: Path, overrides: Sequence[str]) -> LoadedModel:
    """Load the model that a command line names and print its notes."""
    overrides = [*overrides, *runtime_overrides(arguments)]
    loaded = load_model(weights, overrides, cfg=arguments.cfg, names=arguments.names)
    require_effect(arguments, loaded.config.views)
    for note in loaded.model.notes:
        say(note, arguments.quiet)
    return loaded
