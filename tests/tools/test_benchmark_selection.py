from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from detector.config.schema import config_to_plain
from detector.models.checkpoint import ModelFile, save_model
from detector.tasks.detection_model import build_model, load_detection

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import benchmark_selection


def test_both_branches_of_a_model_are_timed_side_by_side(
    tmp_path: Path, tiny_shapes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("model.width=0.125", "model.depth=0.1", "model.max_channels=64", "input.size=64", "device=cpu")
    config = load_detection("mish-n", [*small, "model.head={name: dual, objects_per_image: 1000}"])
    torch.manual_seed(0)
    model, path = build_model(config, 2), tmp_path / "dual.safetensors"
    save_model(path, ModelFile(config_to_plain(config), ("a", "b"), (1, 2), dict(model.state_dict())))
    words = [str(path), str(tiny_shapes / "images" / "val"), "--num-images", "2", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["benchmark_selection.py", *words])
    benchmark_selection.main()
    rows = [re.split(r" *\| *", line)[1:-1] for line in capsys.readouterr().out.splitlines()]
    assert [row[1] for row in rows[2:]] == 2 * list(benchmark_selection.BRANCHES)
    assert [row[0] for row in rows[2:]] == ["0.25", "0.25", "0.001", "0.001"]
    assert float(rows[4][2]) == float(rows[5][2]) > float(rows[4][3])  # the branches of a new head are alike
    assert rows[2][5] == rows[4][7] == "1.00"
