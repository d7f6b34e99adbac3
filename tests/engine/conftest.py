"""Fixtures of the tests of the engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from detector.experiment import ExperimentConfig, load_experiment

# The smallest run there is: about a twentieth of a second a step.
TINY = (
    "model.width=0.125",
    "input.size=64",
    "loader.workers=0",
    "loader.batch_size=4",
    "augment.albumentations=[]",
    "evaluate.batch_size=4",
    "train.iterations=6",
    "train.evaluations=2",
    "train.precision=fp32",
    "device=cpu",
)


def data_override(root: Path) -> str:
    """The override that names the splits of a drawn data set."""
    listed = ", ".join(
        f"{name}: {{annotations: {root}/annotations/{name}.json, images: {root}/images/{name}}}"
        for name in ("train", "val")
    )
    return f"data={{name: coco, {listed}}}"


@pytest.fixture
def experiment(tiny_shapes: Path, tmp_path: Path) -> Callable[..., ExperimentConfig]:
    """Makes the experiment of a tiny run in the test's own folder, with overrides on top."""

    def make(*overrides: str, data: Path = tiny_shapes) -> ExperimentConfig:
        return load_experiment("mish-n", [*TINY, data_override(data), f"train.project={tmp_path}/runs", *overrides])

    return make
