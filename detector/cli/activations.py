"""`detector activations`."""

from __future__ import annotations

import argparse
import json
import math

import torch

from detector.cli.progress import say
from detector.config.registry import find_config_class, names
from detector.media.activation_charts import draw_curves
from detector.models.activations import ActivationConfig
from detector.models.activations.activation_curves import measure, sample


def run(arguments: argparse.Namespace) -> int:
    """List activations, draw them if requested, and return the exit code."""
    chosen = dict.fromkeys(arguments.words or names(ActivationConfig))
    configs = {name: find_config_class(ActivationConfig, name)() for name in chosen}
    if arguments.plot:
        places = torch.linspace(-5, 5, 2001, dtype=torch.float64)
        draw_curves({name: sample(config, places) for name, config in configs.items()}, arguments.plot)
        say(f"picture: {arguments.plot}", arguments.quiet)
    traits = {name: measure(config) for name, config in configs.items()}
    if arguments.json:
        rows = [{"name": name, **vars(trait)} for name, trait in traits.items()]
        print(json.dumps([{key: _plain(value) for key, value in row.items()} for row in rows]))
        return 0
    width = max(map(len, ["name", *traits])) + 2
    print(f"{'name':<{width}}{'range':<20}{'minimum at':<12}{'':<8}formula (settings)")
    for name, trait in traits.items():
        bounds = f"{_short(trait.lower)} .. {_short(trait.upper)}"
        lowest_at = "-" if trait.lowest_at is None else _short(trait.lowest_at)
        settings = ", ".join(f"{key}={value}" for key, value in trait.settings.items())
        formula = trait.formula + (f"   ({settings})" if settings else "")
        print(f"{name:<{width}}{bounds:<20}{lowest_at:<12}{trait.smoothness:<8}{formula}")
    print("C0: the slope is not continuous; C1: the second derivative is not continuous.")
    print("Choose one with model.activation=NAME model.activation.SETTING=VALUE")
    return 0


def _short(value: float) -> str:
    return f"{value:.4g}" if abs(value) > 1e-9 else "0"


def _plain(value: object) -> object:
    """Return a value for JSON, which has no infinity: a missing bound is null."""
    return None if isinstance(value, float) and math.isinf(value) else value
