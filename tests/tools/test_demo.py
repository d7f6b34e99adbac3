from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_tool", ROOT / "tools/demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their types up there
    spec.loader.exec_module(module)
    return module


def step_time(demo: ModuleType, step_s: float, fixed: float = 0.0) -> Any:
    """Return the time of a step of `step_s` seconds at 128 px, of which a share does not depend on the size."""
    return demo.StepTime(step_s * fixed, step_s * (1 - fixed) / 128**2)


@pytest.mark.parametrize("fixed", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("step_s", [0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("minutes", [2.0, 4.5, 20.0])
def test_plan_fits_into_the_budget(demo: ModuleType, step_s: float, minutes: float, fixed: float) -> None:
    step = step_time(demo, step_s, fixed)
    plan = demo.fit(minutes * 60, 15.0, step, 16, 160)
    size_step_s = step.at(plan.size)
    evaluation_s = demo.EVALUATION_SHARE * 160 / 16 * size_step_s
    needed_s = 15.0 + plan.num_steps * size_step_s + (plan.evaluations + 1) * evaluation_s + demo.LAST_COMMANDS_S
    assert plan.num_steps <= demo.FULL_STEPS
    assert plan.size in demo.SIZES
    assert needed_s <= minutes * 60 or plan.num_steps == plan.evaluations  # too slow for a step between evaluations
    assert plan.deadline_s < minutes * 60
    if plan.num_steps > plan.evaluations:
        assert 15.0 + plan.num_steps / plan.evaluations * size_step_s + evaluation_s < 60  # the first AP


def test_faster_machine_gets_larger_images_and_more_steps(demo: ModuleType) -> None:
    fast, middle, slow = (demo.fit(270.0, 15.0, step_time(demo, step_s), 16, 160) for step_s in (0.01, 0.3, 3.0))
    assert (fast.size, fast.num_steps) == (demo.FULL_SIZE, demo.FULL_STEPS)
    assert middle.size < fast.size
    assert middle.num_steps >= demo.MIN_STEPS
    assert slow.size == min(demo.SIZES)
    assert slow.num_steps < middle.num_steps


def test_step_time_is_fitted_through_two_sizes(demo: ModuleType) -> None:
    step = demo.StepTime.through((96, 192), (0.2 + 96**2 * 1e-5, 0.2 + 192**2 * 1e-5))
    assert step.at(320) == pytest.approx(0.2 + 320**2 * 1e-5)
    # Times of a busy machine: neither part becomes negative.
    assert demo.StepTime.through((96, 192), (0.5, 0.3)).at(320) == pytest.approx(0.3)
    assert demo.StepTime.through((96, 192), (0.01, 0.3)).at(96) == pytest.approx(0.3 / 4)


@pytest.mark.parametrize(("alone_s", "num_threads"), [(0.1, 1), (0.9, 3)])
def test_one_thread_is_used_on_a_busy_machine_if_it_is_faster(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, alone_s: float, num_threads: int
) -> None:
    monkeypatch.setattr(demo, "are_cores_busy", lambda: True)
    monkeypatch.setattr(demo, "step_s", lambda size, words: alone_s if torch.get_num_threads() == 1 else 0.5)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        step = demo.timed_steps(())
        assert torch.get_num_threads() == num_threads
        assert demo.threads() == ("OMP_NUM_THREADS=1 " if num_threads == 1 else "")
        assert step.at(demo.TIMED_SIZES[1]) == pytest.approx(min(alone_s, 0.5))
    finally:
        torch.set_num_threads(before)


def test_demo_stops_at_its_deadline_and_still_shows_detections(
    demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "TIMED_SIZES", (32, 64))
    monkeypatch.setattr(demo, "SIZES", (64,))
    monkeypatch.setattr(demo, "TIMED_STEPS", 1)
    data = (f"data.root={tmp_path}/shapes", "data.num_train=8", "data.num_val=4", "data.image_size=64")
    toy = ("loader={workers: 0, batch_size: 2}", "augment.albumentations=[]", "device=cpu")
    demo.demo(0.1, (*data, *toy), tmp_path / "demo")
    text = capsys.readouterr().out
    assert "the time is over; to train the rest: detector train --resume" in text
    assert re.search(r"^Reached: AP \d\.\d{3} with up to \d+ steps at 64 px$", text, re.MULTILINE)
    assert f"A faster machine: {demo.FULL_RESULT}" in text
    picture = cv2.imread(str(tmp_path / "demo/1/detections.jpg"))
    assert picture is not None
    assert picture.shape == (64, 4 * 64 + 3 * demo.GAP_PX, 3)
    for path in re.findall(r"\S+\.(?:jpg|safetensors)$", text, re.MULTILINE):
        assert Path(path).is_file(), path


def test_help_describes_the_options() -> None:
    words = [sys.executable, str(ROOT / "tools/demo.py"), "--help"]
    assert "--minutes" in subprocess.run(words, capture_output=True, text=True, check=True).stdout
