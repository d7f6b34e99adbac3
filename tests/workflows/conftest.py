"""Fixtures of the tests of workflows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detector.config.schema import config_to_plain
from detector.models.checkpoint import ModelFile, save_model
from detector.tasks.detection_model import build_model, load_detection


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model file with random weights, which detect something in every image at a low confidence."""
    config = load_detection(
        "mish-n", ["model.width=0.125", "model.depth=0.1", "model.max_channels=64", "input.size=64", "device=cpu"]
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    model = build_model(config, 3)
    plain = {key: value for key, value in config_to_plain(config).items() if key not in ("data", "train")}
    save_model(path, ModelFile(plain, ("circle", "square", "triangle"), (1, 2, 3), model.state_dict()))
    return path
