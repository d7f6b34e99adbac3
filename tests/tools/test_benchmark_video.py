from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from detector.config.schema import config_to_plain
from detector.models.checkpoint import ModelFile, save_model
from detector.models.yolo import Yolo
from detector.tasks.detection_model import load_detection

TOOL = Path(__file__).parents[2] / "tools/benchmark_video.py"
SOAK = re.compile(r"soak: (\d+) frames in .* ([+-][\d.]+) MB .* handles (\d+) to (\d+)\n")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network with random weights."""
    torch.manual_seed(0)
    config = load_detection("mish-n", ["model.width=0.125", "input.size=64", "device=cpu"])
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    state = Yolo(Yolo.Config(width=0.125), 3).state_dict()
    save_model(path, ModelFile(config_to_plain(config), ("a", "b", "c"), (1, 2, 3), state))
    return path


@pytest.fixture(scope="module")
def tool() -> Any:
    """The tool as a module."""
    spec = importlib.util.spec_from_file_location("benchmark_video", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_source_is_drawn_as_asked_and_moves(tool: Any, tmp_path: Path) -> None:
    capture = cv2.VideoCapture(str(tool.draw_video(tmp_path / "source.mp4", 30, (64, 36))))
    first, *between, last = [capture.read()[1] for _ in range(30)]
    capture.release()
    assert len(between) == 28
    assert first.shape == (36, 64, 3)
    assert cv2.absdiff(first, last).mean() > 3


def test_table_names_every_stage_and_a_short_soak_uses_constant_memory(
    tool: Any, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    num_threads = torch.get_num_threads()

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["benchmark_video.py", str(weights), "--size", "64x36", *words])
        try:
            tool.main()
        finally:
            torch.set_num_threads(num_threads)
        return capsys.readouterr().out

    table = run("--frames", "20", "--rounds", "1")
    assert [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")][1:] == [
        "| decode",
        "| detect",
        "| draw",
        "| encode",
        "| all, one by one",
        "| all, at once",
    ]
    (share,) = re.findall(r"that 2 cores allow: ([\d.]+)\n", table)
    assert 0 < float(share) < 1.5
    assert SOAK.fullmatch(run("--frames", "20", "--soak", "20")) is not None
    found = SOAK.fullmatch(run("--size", "320x180", "--frames", "50", "--soak", "300"))
    assert found is not None
    assert int(found[1]) == 300
    assert float(found[2]) < 8  # it would be 31 MB if each frame were kept
    assert int(found[4]) - int(found[3]) <= 2  # one for the video that is being written


@pytest.mark.nightly
def test_memory_does_not_grow_over_a_hundred_thousand_small_frames(tmp_path: Path) -> None:
    config = load_detection("mish-n", ["model.width=0.125", "input.size=64", "device=cpu", "predict.confidence=0.99"])
    state = Yolo(Yolo.Config(width=0.125), 3).state_dict()
    save_model(tmp_path / "tiny.safetensors", ModelFile(config_to_plain(config), ("a", "b", "c"), (1, 2, 3), state))
    words = ("--size", "64x36", "--frames", "20000", "--soak", "100000")
    command = [sys.executable, str(TOOL), str(tmp_path / "tiny.safetensors"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = SOAK.fullmatch(done.stdout)
    assert found is not None
    assert float(found[2]) < 8  # 80,000 frames; it would be 85 MB with glibc's fast bins


@pytest.mark.nightly
def test_memory_and_handles_are_constant_over_five_thousand_frames(weights: Path) -> None:
    command = [sys.executable, str(TOOL), str(weights), "--frames", "500", "--soak", "6250"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = SOAK.fullmatch(done.stdout)
    assert found is not None
    assert float(found[2]) < 2
    assert int(found[4]) - int(found[3]) <= 2
