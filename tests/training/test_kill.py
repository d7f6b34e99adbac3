"""Runs that are killed at any moment and continued by the same command end with the bits of an uninterrupted run."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detector.cli.main import run
from detector.config.schema import config_to_yaml
from detector.models.checkpoint import load_model_file, load_training_state
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import load_detection

# Settings with all state that a resume restores, and a save every other step.
SETTINGS = (
    *("model.width=0.125", "model.depth=0.1", "model.max_channels=64", "model.head=dual"),
    "input.size=64",
    "loader.workers=2",
    "loader.batch_size=2",
    "augment.mosaic=1.0",
    "augment.mixup=0.3",
    "augment.closing_share=0.2",
    "evaluate.batch_size=6",
    "train.accumulate=2",
    "train.iterations=16",
    "train.evaluations=8",
    "train.ema_horizon=0.3",
    "train.precision=bf16",
    "device=cpu",
)
pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")


def command(config: DetectionConfig, folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.yaml"
    path.write_text(config_to_yaml(config), encoding="utf-8")
    return ["train", str(path), "--continue", "--quiet"]


def finish(process: Any) -> None:
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error


class Runs:
    """Runs of one experiment, each in its own project folder."""

    def __init__(self, root: Path, data: Path, fork: Callable[..., Any], *settings: str) -> None:
        self._root, self.fork, self._settings = root, fork, settings
        self._data = ", ".join(
            f"{name}: {{annotations: {data}/annotations/{name}.json, images: {data}/images/{name}}}"
            for name in ("train", "val")
        )
        began_s = time.monotonic()
        finish(fork(*self.words("whole")))
        self.duration_s = time.monotonic() - began_s

    def words(self, name: str) -> list[str]:
        own = (f"data={{name: coco, {self._data}}}", f"train.project={self._root / name}")
        return command(load_detection("mish-n", [*SETTINGS, *own, *self._settings]), self._root / name)

    def weights(self, name: str) -> Path:
        return self._root / name / "train" / "weights"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_shapes: Path, fork: Callable[..., Any]) -> Runs:
    return Runs(tmp_path_factory.mktemp("kill"), tiny_shapes, fork)


def wait_for_a_save(process: Any, folder: Path, number: int) -> None:
    """Return while the file of save `number` is being written."""
    seen: set[str] = set()
    while process.poll() is None and len(seen) < number:
        seen |= {entry.name for entry in folder.glob(".*.tmp")}
        time.sleep(0.0005)


def kill(runs: Runs, number: int) -> str:
    """Start a run, kill it (odd numbers: during a save, even numbers: at a random moment) and return its name."""
    chance = random.Random(number)
    share, num_saves = chance.uniform(0.05, 0.95), chance.randint(1, 10)
    for attempt in range(5):  # if the run ends before its kill, try again earlier in another folder
        name = f"killed{number}_{attempt}"
        process = runs.fork(*runs.words(name))
        if number % 2:
            wait_for_a_save(process, runs.weights(name), max(1, num_saves >> attempt))
            time.sleep(chance.uniform(0, 0.01) / 2**attempt)
        else:
            time.sleep(share * runs.duration_s / 2**attempt)
        process.kill()
        _, error = process.communicate(timeout=60)
        if process.returncode == -signal.SIGKILL:
            return name
        assert process.returncode == 0, error
    raise AssertionError("every run ended before it could be killed")


@pytest.mark.parametrize("number", [0, 1, *(pytest.param(n, marks=pytest.mark.nightly) for n in range(2, 20))])
def test_killed_run_resumes_to_the_same_bits(number: int, runs: Runs, assert_same: Callable[..., None]) -> None:
    name = kill(runs, number)
    words, weights = runs.words(name), runs.weights(name)
    # Every file under its final name is complete, whenever the run was killed.
    step = (
        load_training_state(weights / "last.safetensors")["step"] if (weights / "last.safetensors").exists() else None
    )
    leftovers = len(list(weights.glob(".*.tmp")))
    print(f"kill {number}: last save at step {step}, {leftovers} unfinished saves")
    if (weights / "best.safetensors").exists():
        load_model_file(weights / "best.safetensors")
    finish(runs.fork(*words))
    projects = sorted(path.name for path in weights.parent.parent.iterdir())
    assert projects == ["run.yaml", "train"]  # it continued in its own folder
    assert sorted(path.name for path in weights.iterdir()) == ["best.safetensors", "last.safetensors"]
    ours, theirs = (load_training_state(runs.weights(of) / "last.safetensors") for of in (name, "whole"))
    for key in ("step", "model", "ema", "ema_updates", "optimizer", "random", "best_ap", "metrics", "loss_sums"):
        assert_same(ours[key], theirs[key], key)
    found, wanted = (load_model_file(runs.weights(of) / "best.safetensors") for of in (name, "whole"))
    assert_same(found.state, wanted.state)


def test_killed_run_with_a_teacher_resumes_to_the_same_bits(
    tmp_path: Path,
    tiny_shapes: Path,
    teacher_weights: Path,
    fork: Callable[..., Any],
    assert_same: Callable[..., None],
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(tiny_shapes / "images" / "train" / "000001.jpg", photos / "photo.jpg")
    own = "model.head=decoupled", "train.iterations=8"  # the head dual takes no teacher
    taught = f"train.teacher={teacher_weights}", f"data.unlabelled={photos}", *own
    test_killed_run_resumes_to_the_same_bits(1, Runs(tmp_path / "runs", tiny_shapes, fork, *taught), assert_same)


def test_run_killed_before_its_first_save_restarts_in_its_folder(tmp_path: Path, tiny_shapes: Path) -> None:
    listed = f"{{annotations: {tiny_shapes}/annotations/train.json, images: {tiny_shapes}/images/train}}"
    own = (
        f"data={{name: coco, train: {listed}}}",
        f"train.project={tmp_path}",
        "loader.workers=0",
        "train.iterations=1",
    )
    words = command(load_detection("mish-n", [*SETTINGS, *own, "train.evaluations=0"]), tmp_path)
    (tmp_path / "train" / "weights").mkdir(parents=True)
    (tmp_path / "train" / "config.yaml").write_text("seed", encoding="utf-8")
    assert run(words) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.yaml", "train"]
    assert load_training_state(tmp_path / "train" / "weights" / "last.safetensors")["step"] == 1
