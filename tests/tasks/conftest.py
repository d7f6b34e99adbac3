"""Fixtures of the tests of the tasks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from detector.tasks.task import TaskConfig, load_experiment

# A very small run: some hundredths of a second per step.
TINY = (
    "model.width=0.125",
    "model.depth=0.1",
    "data.num_train=40",
    "data.num_val=20",
    "loader.batch_size=8",
    "evaluate.batch_size=16",
    "train.iterations=6",
    "train.evaluations=2",
    "train.precision=fp32",
    "schedule.warmup_iterations=2",
    "device=cpu",
)


@pytest.fixture
def classifier_experiment(tmp_path: Path) -> Callable[..., TaskConfig]:
    """Return a function that builds a tiny classification experiment in the test's folder, with overrides."""

    def make(*overrides: str) -> TaskConfig:
        return load_experiment("classify", [*TINY, f"train.project={tmp_path}/runs", *overrides])

    return make
