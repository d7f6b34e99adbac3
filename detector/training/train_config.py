"""Settings of training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from detector.models.precision import PrecisionName


@dataclass(frozen=True)
class TrainConfig:
    """Length of training and its settings.

    Attributes:
        epochs: passes over the data set.
        iterations: optimiser steps; overrides `epochs` and `min_iterations`.
        min_iterations: least number of steps, so that a small data set is trained long enough.
        accumulate: batches per optimiser step.
        clip_norm: largest norm of the whole gradient.
        ema_horizon: share of the run that the averaged weights cover.
        evaluations: evaluations during the run, the last at its end.
        patience: early stopping: evaluations in a row without a better AP after which the run ends, before the closing
            part of its schedule and augmentation; 0 switches it off.
        precision: number format: auto, fp32, bf16 or fp16.
        seed: seed of initialisation, order and augmentation.
        sync_batch_norm: whether the statistics of batch norm cover the batches of all processes; on GPUs only, and
            without the fused batch norm + Mish.
        timeout_s: seconds that a process waits for another one before the run ends with an error.
        weights: a model file to start from, or None for random weights.
        weights_partial: whether to start also from weights that fit less than a tenth of the model's parameters.
        freeze: names of modules or parameters that are not trained, such as backbone, including everything below them.
        tensorboard: whether the rows of `results.csv` are also written for TensorBoard; needs the extra `log`.
        project: parent of the run folders.
        run_name: name of the run folder.
    """

    epochs: float = 100
    iterations: int | None = None
    min_iterations: int = 2000
    accumulate: int = 1
    clip_norm: float = 10.0
    ema_horizon: float = 0.05
    evaluations: int = 20
    patience: int = 0
    precision: PrecisionName = "auto"
    seed: int = 0
    sync_batch_norm: bool = False
    timeout_s: float = 600.0
    weights: Path | None = None
    weights_partial: bool = False
    freeze: tuple[str, ...] = ()
    tensorboard: bool = False
    project: Path = Path("runs/detect")
    run_name: str = "train"

    def __post_init__(self) -> None:
        if self.epochs <= 0 or (self.iterations is not None and self.iterations < 1):
            raise ValueError("train: expected epochs > 0 and iterations >= 1")
        if min(self.min_iterations, self.evaluations, self.patience, self.seed) < 0 or self.accumulate < 1:
            raise ValueError("train: expected min_iterations, evaluations, patience and seed >= 0 and accumulate >= 1")
        if self.clip_norm <= 0 or self.timeout_s <= 0 or not 0 < self.ema_horizon <= 1:
            raise ValueError("train: expected clip_norm > 0, timeout_s > 0 and ema_horizon within 0..1")

    def num_steps(self, num_images: int, batch_size: int) -> int:
        """Return the optimiser steps of a run over `num_images` images."""
        if self.iterations is not None:
            return self.iterations
        return max(math.ceil(self.epochs * num_images / (batch_size * self.accumulate)), self.min_iterations, 1)
