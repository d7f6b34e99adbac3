"""Distributed training with torchrun and gloo."""

from __future__ import annotations

import copy
import csv
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

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


def forked(fork: Callable[..., Any], config: DetectionConfig, folder: Path, *words: str) -> list[tuple[int, str, str]]:
    """Run `detector train` in two forked processes, as torchrun would; return exit code, stdout and stderr of each."""
    (folder / "run.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    ranks = ({"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"} for rank in "01")
    running = [fork("train", str(folder / "run.yaml"), "--json", *words, **address, **rank) for rank in ranks]
    printed = [process.communicate(timeout=500) for process in running]
    return [(process.returncode, *texts) for process, texts in zip(running, printed, strict=True)]


def last_state(project: Path, name: str = "train") -> TrainingState:
    return load_training_state(project / name / "weights" / "last.safetensors")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "experiment",
    ["mish-n", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("dual", "darknet", "yolox"))],
    indirect=True,
)
def test_two_processes_equal_one_process_with_two_batches_per_step(
    experiment: Make, tmp_path: Path, fork: Callable[..., Any]
) -> None:
    from detector.workflows.train import train

    # Running statistics differ, so that another selection would keep other boxes.
    alike = [*ALIKE, "evaluate.confidence=0", "evaluate.iou=1"]
    alone = train(experiment(*alike, "train.accumulate=2", "train.run_name=alone"))
    (code, printed, told), (other_code, other_printed, _) = forked(fork, experiment(*alike), tmp_path)
    assert (code, other_code, other_printed) == (0, 0, ""), told
    summary = json.loads(printed)  # only one process prints the result
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


def test_two_processes_with_a_teacher_equal_one_process(
    experiment: Make, tmp_path: Path, teacher_weights: Path, fork: Callable[..., Any]
) -> None:
    alike = [*ALIKE, f"train.teacher={teacher_weights}", "train.iterations=3"]
    path = tmp_path / "alone.yaml"  # in a process of its own too: rounding may change what a random teacher finds
    path.write_text(config_to_yaml(experiment(*alike, "train.accumulate=2", "train.run_name=alone")), encoding="utf-8")
    alone = fork("train", str(path), "--quiet")
    _, said = alone.communicate(timeout=500)
    assert alone.returncode == 0, said
    (code, _, told), (other_code, _, _) = forked(fork, experiment(*alike), tmp_path)
    assert (code, other_code) == (0, 0), told
    wanted, found = last_state(tmp_path / "runs", "alone"), last_state(tmp_path / "runs")
    for name, tensor in wanted["model"].items():
        if "running" not in name and tensor.is_floating_point():
            torch.testing.assert_close(
                found["model"][name], tensor, rtol=0, atol=1e-6, msg=partial("{}: {}".format, name)
            )


# Batches of four images: many objects, none, one of less than a pixel, none; split among processes and micro-batches.
# The processes are forked after the imports, which take most of the time. Batch norm is frozen, because its statistics
# cover one micro-batch.
PARTS_OF_A_STEP = """
import os, sys
from pathlib import Path
from typing import Any
import torch, torch.distributed as dist
from detector.config import registry
from detector.config.schema import config_to_plain
from detector.structures.types import Batch, Targets
from detector.tasks.detection_model import build_model, load_detection
from detector.training.distributed import World
from detector.training.run_folder import RunFolder
from detector.training.trainer import Recipe, RunPlan, Trainer

folder, *overrides = sys.argv[1:]
torch.set_num_threads(1)

def batch_of(step, images):
    draw = torch.Generator().manual_seed(step)
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=draw)
    corner = torch.rand(5, 2, generator=draw) * 16
    corners = torch.cat([corner, corner + 4 + torch.rand(5, 2, generator=draw) * 12], dim=1)
    objects = [corners, corners[:0], torch.tensor([[9.0, 9.0, 9.5, 9.5]]), corners[:0]]
    boxes = torch.cat([objects[image] for image in images])
    index = torch.cat([torch.full((len(objects[image]),), n) for n, image in enumerate(images)])
    labels = torch.cat([torch.arange(len(objects[image])) % 3 for image in images])
    crowd = torch.zeros(len(boxes), dtype=torch.bool)
    return Batch(pixels[images], Targets(boxes, labels, index, crowd, len(images)), tuple(images))

def train(name, world, accumulate):
    size = 4 // (world.size * accumulate)
    config = load_detection("mish-n", [*overrides, f"train.accumulate={accumulate}", f"loader.batch_size={size}"])
    torch.manual_seed(3)
    model = build_model(config, 3).double()  # with float32 weights, rounding alone exceeds the tolerance
    norms = [n for n, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    config = load_detection("mish-n", [*overrides, f"train.accumulate={accumulate}", f"train.freeze={norms}"])
    identity = {"config": config_to_plain(config), "class_names": list("abc"), "category_ids": [0, 1, 2]}
    plan = RunPlan(config.train.num_steps(4, 4), 4, size, torch.device("cpu"), identity)
    recipe = Recipe(config.train, config.optimizer, config.schedule)
    run = RunFolder.create(Path(folder), f"{name}{world.rank}")
    loss = registry.build(config.loss, model)
    trainer = Trainer(model, loss, recipe, plan, run, evaluate=None, report=lambda event: None, world=world)
    before = [p.detach().clone() for p in model.parameters()]
    parts = [list(range(first, first + size)) for first in range(0, 4, size)][world.rank :: world.size]
    trainer.run(batch_of(step, images) for step in range(plan.num_steps) for images in parts)
    if world.is_main:
        moved = max(float((p.detach() - b).abs().max()) for p, b in zip(model.parameters(), before))
        torch.save({"state": model.state_dict(), "moved": moved}, f"{folder}/{name}.pt")

runs = ("one_batch", 1, 1), ("four_parts", 1, 4), ("two_processes", 2, 1), ("four_processes", 4, 1)
for name, size, accumulate in runs:
    children = []
    for rank in range(size):
        children.append(os.fork())
        if not children[-1]:
            if size > 1:
                dist.init_process_group("gloo", init_method=f"file://{folder}/{name}.store", rank=rank, world_size=size)
            train(name, World(rank, size, rank), accumulate)
            if size > 1:
                dist.destroy_process_group()
            sys.stdout.flush()
            os._exit(0)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert not any(codes), (name, codes)
"""


@pytest.mark.parametrize("head", ["{name: decoupled, bins: 4}", "{name: dual, bins: 4}"])
def test_processes_and_micro_batches_without_objects_equal_one_batch(
    head: str, tmp_path: Path, fork: Callable[..., Any]
) -> None:
    small = ["model.width=0.125", "model.depth=0.1", "model.max_channels=64", f"model.head={head}"]
    common = ["input.size=32", "train.precision=fp32", "device=cpu", *ALIKE]
    process = fork(str(tmp_path), *common, *small, code=PARTS_OF_A_STEP)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    found = {path.stem: torch.load(path) for path in tmp_path.glob("*.pt")}
    wanted = found.pop("one_batch")
    assert wanted["moved"] > 0.01
    assert sorted(found) == ["four_parts", "four_processes", "two_processes"]
    for name, given in found.items():
        for tensor, value in wanted["state"].items():
            if not value.is_floating_point():
                continue  # each process counts its own images
            message = partial("{} of {}: {}".format, tensor, name)
            torch.testing.assert_close(given["state"][tensor], value, rtol=0, atol=1e-6, msg=message)


def test_stopped_run_of_two_processes_resumes_to_the_same_bits(
    experiment: Make,
    tmp_path: Path,
    assert_same: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    fork: Callable[..., Any],
) -> None:
    assert [end[0] for end in forked(fork, experiment("train.run_name=whole"), tmp_path)] == [0, 0]
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
    assert all(end[0] for end in forked(fork, experiment(), tmp_path, "--import", str(part)))
    assert last_state(tmp_path / "runs")["step"] == 3
    assert [end[0] for end in forked(fork, experiment(), tmp_path, "--continue")] == [0, 0]
    whole, other = last_state(tmp_path / "runs", "whole"), last_state(tmp_path / "runs")
    assert_same(
        {k: whole[k] for k in ("model", "ema", "optimizer", "random")},
        {k: other[k] for k in ("model", "ema", "optimizer", "random")},
    )
    assert run(["train", "--resume", str(tmp_path / "runs" / "train")]) != 0
    assert "as many processes as the run began with, 2, got 1" in capsys.readouterr().err


# Torchrun imports torch three times, which takes most of the time of this test.
@pytest.mark.parametrize("is_torchrun", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_error_in_one_process_ends_the_run_and_is_reported(
    is_torchrun: bool, experiment: Make, tmp_path: Path, fork: Callable[..., Any]
) -> None:
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
    config = experiment("train.timeout_s=60")
    if is_torchrun:
        done = torchrun(config, tmp_path, "--import", str(part))
        assert done.returncode != 0
        assert "the cause" in done.stderr
        return
    (code, _, _), (failed, _, told) = forked(fork, config, tmp_path, "--import", str(part))
    assert code != 0
    assert failed != 0
    assert "the cause" in told


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
