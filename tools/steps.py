"""A training step of mish-n in the variants that the benchmarks compare: number format, layout, kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.config import registry
from detector.losses.task_aligned import TaskAlignedLoss
from detector.models.activations import ActivationConfig
from detector.models.precision import keep_freed_memory
from detector.models.yolo import Yolo
from detector.structures.transfer import sent_aside
from detector.structures.types import Targets
from detector.training.averaging import MovingAverage
from detector.training.optimizers import Muon, build_optimizer
from detector.training.train_config import TrainConfig

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


@registry.register("torch_mish")
class TorchMish(nn.Module):
    """torch's own Mish, for comparison."""

    @dataclass(frozen=True)
    class Config(ActivationConfig):
        """No settings."""

    def __init__(self, config: Config) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Return Mish of x."""
        return F.mish(x)


def drawn_batch(size: int, batch_size: int) -> tuple[Tensor, Targets]:
    """Return random uint8 images (B, 3, size, size), and twelve objects of three classes in each."""
    images = torch.randint(0, 256, (batch_size, 3, size, size), dtype=torch.uint8)
    corners = torch.rand(12 * batch_size, 2) * size * 0.7
    targets = Targets(
        torch.cat([corners, corners + 8 + torch.rand_like(corners) * size * 0.3], dim=1),
        torch.randint(0, 3, (12 * batch_size,)),
        torch.arange(batch_size).repeat_interleave(12),
        torch.zeros(12 * batch_size, dtype=torch.bool),
        batch_size,
    )
    return images, targets


class Step:
    """Training step as the trainer makes it, which reads no number from a GPU."""

    def __init__(
        self,
        activation: str,
        precision: str,
        layout: str,
        num_classes: int,
        device: torch.device | None = None,
        *,
        compiles: bool = False,
    ) -> None:
        """Build a mish-n of `num_classes` classes with random weights.

        Args:
            activation: name of an activation; `torch_mish` keeps batch norm and activation apart.
            precision: fp32 or bf16.
            layout: a key of `LAYOUTS`.
            num_classes: number of classes.
            device: the device, by default the CPU.
            compiles: whether torch compiles the network.
        """
        keep_freed_memory()
        torch.manual_seed(0)
        config_class = registry.find_config_class(ActivationConfig, activation)
        self.layout, self._is_bf16 = LAYOUTS[layout], precision == "bf16"
        model = Yolo(Yolo.Config(activation=config_class()), num_classes)
        self._device = device or torch.device("cpu")
        self._model = model.to(self._device, memory_format=self.layout)  # type: ignore[call-overload]  # stub gap
        self._network = torch.compile(self._model, dynamic=False) if compiles else self._model
        self._loss = TaskAlignedLoss(TaskAlignedLoss.Config(), self._model)
        self._optimizer = build_optimizer(Muon.Config(), self._model)
        self._averaged = MovingAverage(self._model, 100)

    def __call__(self, images: Tensor, targets: Targets) -> None:
        """Make one optimiser step on uint8 images (B, 3, H, W)."""
        images = sent_aside(images, self._device).contiguous(memory_format=self.layout)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._is_bf16):
            raw_maps = self._network(images)
        torch.stack(list(self._loss(raw_maps, targets.to(self._device)).values())).sum().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._model.parameters(), TrainConfig().clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._averaged.update_parameters(self._model)
