"""Fixtures of the tests of studies."""

from __future__ import annotations

from pathlib import Path

import pytest

STUDY = """\
title: a small one
experiment: classify
overrides:
  - "data={name: drawn, num_train: 40, num_val: 20, image_size: 32}"
  - loader.batch_size=10
  - model.width=0.125
  - model.depth=0.1
  - train.iterations=4
  - train.evaluations=2
  - train.precision=fp32
  - schedule.warmup_iterations=1
  - device=cpu
axes:
  size: {small: [input.size=32], large: [input.size=64]}
  activation: {relu: [model.activation=relu], mish: [model.activation=mish]}
compare: activation
baseline: relu
metric: top1
seeds: 2
"""


@pytest.fixture
def small_study(tmp_path: Path) -> Path:
    """Write a study of four combinations and two seeds that takes seconds; return its path."""
    path = tmp_path / "small.yaml"
    path.write_text(STUDY, encoding="utf-8")
    return path
