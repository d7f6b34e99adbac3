"""Distributed training with torchrun and gloo."""

from __future__ import annotations

import copy
import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from detector.cli.main import run
from detector.config.schema import config_to_yaml
from detector.errors import ConfigError
from detector.evaluation.coco_metrics import CocoMetrics
from detector.models.checkpoint import TrainingState, load_training_state
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import build_model, load_detection
from detector.training.distributed import World, joined, with_shared_statistics

Make = Callable[..., DetectionConfig]

# Batch norm uses each batch separately in both cases, and plain SGD keeps rounding errors small.
ALIKE = (
    "optimizer={name: sgd, lr: 0.01, momentum: 0.9, weight_decay: 0.0005}",
    "schedule={name: constant, warmup_iterations: 0}",
    "train.iterations=20",
    "train.evaluations=1",
    "train.clip_norm=1000",
)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Use one thread, as each of several processes does: another number changes rounding and thus the assignment."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def torchrun(config: DetectionConfig, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "run.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*command, "-m", "detector", "train", str(folder / "run.yaml"), "--json", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def last_state(project: Path, name: str = "train") -> TrainingState:
    return load_training_state(project / name / "weights" / "last.pt")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("experiment", ["mish-n", pytest.param("darknet", marks=pytest.mark.nightly)], indirect=True)
def test_two_processes_equal_one_process_with_two_batches_per_step(experiment: Make, tmp_path: Path) -> None:
    from detector.workflows.train import train

    alone = train(experiment(*ALIKE, "train.accumulate=2", "train.run_name=alone"))
    done = torchrun(experiment(*ALIKE), tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)  # only one process prints the result
    assert isinstance(alone.metrics, CocoMetrics)
    assert summary["metrics"]["AP"] == pytest.approx(alone.metrics.ap, abs=1e-3)
    assert summary["metrics"]["num_images"] == alone.metrics.num_images  # each image was evaluated once
    assert summary["metrics"]["num_detections"] == alone.metrics.num_detections
    wanted, found = last_state(tmp_path / "runs", "alone"), last_state(tmp_path / "runs")
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["alone", "train"]
    moved = 0.0
    for name, tensor in wanted["model"].items():
        if "running" in name or not tensor.is_floating_point():
            continue  # running statistics come from the batches of one process
        torch.testing.assert_close(found["model"][name], tensor, rtol=0, atol=1e-6, msg=partial("{}: {}".format, name))
        moved = max(moved, float(tensor.abs().max()))
    assert moved > 0.1


def test_stopped_run_of_two_processes_resumes_to_the_same_bits(
    experiment: Make, tmp_path: Path, assert_same: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert torchrun(experiment("train.run_name=whole"), tmp_path).returncode == 0
    part = tmp_path / "part.py"
    part.write_text(
        "import os, signal\n"
        "from detector.training import trainer\n"
        "whole = trainer.Trainer._optimise\n"
        "def stops(self, group):\n"
        "    whole(self, group)\n"
        "    if self.step == 3 and os.environ['RANK'] == '1':\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "trainer.Trainer._optimise = stops\n"
    )
    stopped = torchrun(experiment(), tmp_path, "--import", str(part))
    assert stopped.returncode != 0
    assert last_state(tmp_path / "runs")["step"] == 3
    assert torchrun(experiment(), tmp_path, "--continue").returncode == 0
    whole, other = last_state(tmp_path / "runs", "whole"), last_state(tmp_path / "runs")
    assert_same(
        {k: whole[k] for k in ("model", "ema", "optimizer", "random")},
        {k: other[k] for k in ("model", "ema", "optimizer", "random")},
    )
    assert run(["train", "--resume", str(tmp_path / "runs" / "train")]) != 0
    assert "as many processes as the run began with, 2, got 1" in capsys.readouterr().err


def test_error_in_one_process_ends_the_run_and_is_reported(experiment: Make, tmp_path: Path) -> None:
    part = tmp_path / "part.py"
    part.write_text(
        "import os\n"
        "from detector.data import loader\n"
        "whole = loader.TrainingSamples.__getitem__\n"
        "def fails(self, key):\n"
        "    if os.environ['RANK'] == '1':\n"
        "        raise RuntimeError('the cause')\n"
        "    return whole(self, key)\n"
        "loader.TrainingSamples.__getitem__ = fails\n"
    )
    done = torchrun(experiment("train.timeout_s=60"), tmp_path, "--import", str(part))
    assert done.returncode != 0
    assert "the cause" in done.stderr


# Signal that process 1 sends to itself after its fourth step; the third was saved.
DEED = """
import os, pathlib, signal, time
from detector.training import trainer
whole = trainer.Trainer._optimise
def strays(self, group):
    whole(self, group)
    if self.step == 4 and os.environ['RANK'] == '1':
        pathlib.Path({moment!r}).write_text(str(time.time()))
        os.kill(os.getpid(), signal.{deed})
trainer.Trainer._optimise = strays
"""
HANG_S = 3  # train.timeout_s of the run that hangs


@pytest.mark.nightly
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no such signals")
# torchrun waits 30 s after SIGTERM before it sends SIGKILL; detecting and reporting the hang may take ten more.
@pytest.mark.parametrize(("deed", "within_s"), [("SIGKILL", 30), ("SIGSTOP", HANG_S + 30 + 10)])
def test_dead_or_hanging_process_ends_the_run_in_time_and_is_named(
    deed: str, within_s: float, experiment: Make, tmp_path: Path
) -> None:
    moment, part = tmp_path / "moment", tmp_path / "part.py"
    part.write_text(DEED.format(moment=str(moment), deed=deed))
    short = experiment(f"train.timeout_s={HANG_S}") if deed == "SIGSTOP" else experiment()
    done = torchrun(short, tmp_path, "--import", str(part))
    took_s = time.time() - float(moment.read_text())
    assert done.returncode != 0
    assert took_s < within_s
    if deed == "SIGKILL":
        assert "rank      : 1" in done.stderr  # torchrun names the first process that failed
        assert "exitcode  : -9" in done.stderr
    else:
        assert "Traceback" in done.stderr  # of the process that waited
        assert f"Timed out waiting {HANG_S * 1000}ms" in done.stderr
    assert last_state(tmp_path / "runs")["step"] == 3


@pytest.mark.nightly
@pytest.mark.usefixtures("one_thread")
def test_two_processes_train_thirty_steps_of_the_demo(tmp_path: Path) -> None:
    shapes = (f"data.root={tmp_path}/shapes", "data.num_train=16", "data.num_val=4", "data.image_size=64")
    small = ("input.size=64", "loader.batch_size=4", "evaluate.batch_size=4", "model.width=0.125", "device=cpu")
    length = ("train.iterations=30", "train.evaluations=1", f"train.project={tmp_path}/runs")
    demo = load_detection("demo", [*shapes, *small, *length, "loader.workers=0"])
    done = torchrun(demo, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["num_images"] == 4
    state = last_state(tmp_path / "runs")
    assert state["step"] == 30
    assert len(state["random"]) == 2
    with (tmp_path / "runs/train/results.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert math.isfinite(float(row["train/box_loss"]))


def test_sync_batch_norm_needs_cuda_and_keeps_the_state_dict_names(experiment: Make) -> None:
    from detector.workflows.train import train

    with pytest.raises(ConfigError, match=r"train.sync_batch_norm: expected a CUDA device.*got cpu"):
        train(experiment("train.sync_batch_norm=true"))
    plain = build_model(experiment(), 6)
    names = list(plain.state_dict())
    shared = with_shared_statistics(copy.deepcopy(plain), torch.device("cuda"))
    assert list(shared.state_dict()) == names
    norms = [type(module) for module in shared.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    assert set(norms) == {torch.nn.SyncBatchNorm}
    assert len(norms) == sum(isinstance(module, torch.nn.BatchNorm2d) for module in plain.modules())
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    for mode in (True, False):  # a single process shares nothing, so both models give the same numbers
        for ours, theirs in zip(shared.train(mode)(images), plain.train(mode)(images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_single_process_world_returns_its_own_values() -> None:
    with joined(1.0) as world:
        assert world == World(0, 1, 0)
        assert world.is_main
        assert world.any(True)
        assert not world.any(False)
        assert world.gathered([1, 2]) == [1, 2]
        assert world.shared("a") == "a"
        value = torch.ones(2)
        assert world.total(value) is value


def test_incomplete_torchrun_environment_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with (
        pytest.raises(ConfigError, match="the environment of torchrun, got WORLD_SIZE without RANK, LOCAL_RANK"),
        joined(1.0),
    ):
        pass
