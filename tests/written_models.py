"""Model files that tests write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from detector.config.schema import config_to_plain
from detector.models.checkpoint import ModelFile, save_model
from detector.tasks.detection_model import build_model, load_detection


def written_teacher(
    networks: Mapping[str, Sequence[str]],
    path: Path,
    *overrides: str,
    network: str = "mish-n",
    names: tuple[str, ...] = ("square", "circle", "robot"),
) -> Path:
    """Write a detector with random weights and scores around a half, and return its path."""
    preset, *settings = networks[network]
    config = load_detection(preset, [*settings, "input.size=64", "device=cpu", *overrides])
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = build_model(config, len(names))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0  # statistics of one pass, so that the outputs vary
        model(torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)[:, : config.input.channels])
    state = model.state_dict()
    for name in model.class_rows():
        state[name] = torch.zeros_like(state[name]) if state[name].ndim == 1 else 2 * state[name]  # no prior of a class
    plain = {key: value for key, value in config_to_plain(config).items() if key not in ("data", "train")}
    save_model(path, ModelFile(plain, names, tuple(range(1, len(names) + 1)), state))
    return path
