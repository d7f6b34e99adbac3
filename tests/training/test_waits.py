"""Training on a GPU: the CPU never waits for it between reading a batch and the end of the optimiser's step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detector.config import registry
from detector.config.schema import config_to_plain
from detector.errors import DivergenceError
from detector.losses.loss import LossParts
from detector.models.checkpoint import RunIdentity
from detector.ops import cuda
from detector.structures.types import Batch, Targets
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import build_model
from detector.training import trainer as trainer_module
from detector.training.optimizers import OptimizerConfig, build_optimizer
from detector.training.run_folder import RunFolder
from detector.training.trainer import Recipe, RunPlan, Trainer

GPU = torch.device("cuda", 0)
Make = Callable[..., DetectionConfig]


def batch_of(num_images: int = 2, size: int = 64) -> Batch:
    """Return a batch whose first image has two objects and a crowd region, and whose last one is empty."""
    targets = Targets(
        torch.tensor([[4.0, 6, 40, 50], [30, 8, 60, 30], [0, 0, 30, 20]]),
        torch.tensor([1, 3, 0]),
        torch.zeros(3, dtype=torch.int64),
        torch.tensor([False, False, True]),
        num_images,
    )
    images = torch.randint(0, 256, (num_images, 3, size, size), dtype=torch.uint8)
    return Batch(images.contiguous(memory_format=torch.channels_last), targets, tuple(range(7, 7 + num_images)))


def trainer_on(device: torch.device, config: DetectionConfig, folder: Path) -> Trainer:
    model = build_model(config, 6)
    identity = RunIdentity(
        config=config_to_plain(config), class_names=list("abcdef"), category_ids=list(range(6)), provenance={},
        data_digest="",
    )  # fmt: skip
    return Trainer(
        model,
        registry.build(config.loss, model),
        Recipe(config.train, config.optimizer, config.schedule),
        RunPlan(config.train.num_steps(12, 2), 12, 2, device, identity),
        RunFolder.create(folder, "run"),
        evaluate=None,
        report=lambda event: None,
    )


@pytest.mark.parametrize(
    ("experiment", "optimizer", "has_kernels"),
    [("mish-n", "muon", True), ("yolox", "adamw", False), ("darknet", "sgd", False)],
    indirect=["experiment"],
)
def test_step_on_a_gpu_queues_its_work_without_a_wait(
    experiment: Make, optimizer: str, has_kernels: bool, fake_gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Assignment, loss, gradient clipping, average and optimiser included; the numbers to report are read later."""
    monkeypatch.setattr(cuda, "available", lambda device: has_kernels)
    num_batches = 2 if optimizer == "sgd" else 1
    config = experiment(f"optimizer={{name: {optimizer}}}", "train.precision=bf16", f"train.accumulate={num_batches}")
    with fake_gpu:
        with fake_gpu.setting_up():
            trainer = trainer_on(GPU, config, tmp_path)
            trainer.averaged.n_averaged.fill_(1)  # the first update of the average is a copy
        trainer._optimise([batch_of() for _ in range(num_batches)])
        assert trainer.step == 1
        assert next(trainer.model.parameters()).device == GPU
        assert [are_losses for *_, are_losses in trainer._unread] == [True] * num_batches + [False]
        with pytest.raises(Exception, match=r"value is read|local_scalar_dense"):
            trainer._read()


@pytest.mark.parametrize("name", registry.names(OptimizerConfig))
def test_optimizer_does_not_wait(name: str, fake_gpu: Any) -> None:
    config = registry.find_config_class(OptimizerConfig, name)()
    with fake_gpu:
        with fake_gpu.setting_up():
            model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Linear(4, 4)).to(GPU)
            optimizer = build_optimizer(config, model)
        for _ in range(7):  # Lookahead moves its slow weights after six
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            optimizer.zero_grad()


class Diverging:
    """Loss that is 1, 2, ... and not finite in one step."""

    def __init__(self, model: nn.Module, step: int) -> None:
        self.weight, self.step, self.calls = next(model.parameters()), step, 0

    def __call__(self, raw_maps: object, targets: Targets) -> LossParts:
        self.calls += 1
        value = float("nan") if self.calls == self.step else float(self.calls)
        return LossParts({"a": self.weight.sum() * 0 + value}, torch.tensor(2.0))


def test_losses_of_a_gpu_are_read_together_and_name_the_step_that_diverged(
    experiment: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is the CPU, but its numbers are read as late as those of a GPU."""
    read: list[int] = []
    own = Trainer._read

    def reading(self: Trainer) -> None:
        read.append(len(self._unread))
        own(self)

    monkeypatch.setattr(trainer_module, "READ_EVERY", 4)
    monkeypatch.setattr(Trainer, "_read", reading)
    config = experiment("train.iterations=6")
    trainer = trainer_on(torch.device("cpu"), config, tmp_path / "finite")
    trainer._loss, trainer._reads_late = Diverging(trainer.model, 100), True
    trainer.run([batch_of() for _ in range(6)])
    assert [number for number in read if number] == [8, 4]  # a loss and a norm of four steps, then of two
    assert trainer._mean_losses() == {"a": pytest.approx(3.5)}

    trainer = trainer_on(torch.device("cpu"), config, tmp_path / "diverging")
    trainer._loss, trainer._reads_late = Diverging(trainer.model, 3), True
    with pytest.raises(DivergenceError, match=r"diverged at step 2 \(a nan\) on the images with ids 7, 8"):
        trainer.run([batch_of() for _ in range(6)])
    assert trainer.step == 4
