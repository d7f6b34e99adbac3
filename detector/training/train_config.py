"""Settings of training."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from detector.data.folds import FoldConfig
from detector.errors import ConfigError
from detector.models.precision import PrecisionName
from detector.training.logger import LoggerConfig

Train = TypeVar("Train", bound="TrainConfig")
MIN_DEFAULT_STEPS = 2000  # mish-n on 205 images of blood cells: AP 0.574 after a fifth of these steps, 0.625 at the end


@dataclass(frozen=True)
class TrainConfig:
    """Length of training and its settings.

    Attributes:
        epochs: passes over the data set; nothing stands for 100.
        iterations: optimiser steps; overrides `epochs` and `min_iterations`.
        min_iterations: least number of steps; by default 2,000 if `epochs` is not given, so that a small data set is
            trained long enough, else 0.
        accumulate: batches per optimiser step.
        clip_norm: largest norm of the whole gradient.
        ema_horizon: share of the run that the averaged weights cover.
        evaluations: evaluations during the run, the last at its end.
        val_share: part of the validation images that evaluations of the run use, as start and end in a fixed drawn
            order, 0..1: `[0, 0.5]` is one half and `[0.5, 1]` the other. `detector tune` searches on one part and
            reports on another.
        fold: the fold of the training split that this run of a cross-validation (`--folds`) holds out and is evaluated
            on, in place of the split `val`; None for any other run.
        patience: early stopping: evaluations in a row without a better AP after which the run ends, before the closing
            part of its schedule and augmentation; 0 switches it off.
        precision: number format: auto, fp32, bf16 or fp16.
        seed: seed of initialisation, order and augmentation.
        sync_batch_norm: whether the statistics of batch norm cover the batches of all processes; on GPUs only, and
            without the fused batch norm + Mish.
        timeout_s: seconds that a process waits for another one before the run ends with an error.
        weights: a model file, run folder or name of published weights (yolox-s) to start from, or None for random
            weights.
        weights_partial: whether to start also from weights that fit less than a tenth of the model's parameters.
        teacher: a detector whose boxes and scores on the training images are learnt besides the annotations: a model
            file, run folder, export or name of published weights (yolox-s); its classes are matched by name.
        teacher_weight: weight of a detection of the teacher relative to an object of the annotations.
        freeze: names of modules or parameters that are not trained, such as backbone, including everything below them.
        tensorboard: whether the rows of `results.csv` are also written for TensorBoard; needs the extra `log`.
        loggers: programs that get the rows of `results.csv`, each a name (tensorboard, mlflow, wandb) or
            `{name: ..., setting: value}`; nothing leaves the machine unless a setting says so.
        project: parent of the run folders.
        run_name: name of the run folder.
    """

    epochs: float | None = None
    iterations: int | None = None
    min_iterations: int | None = None
    accumulate: int = 1
    clip_norm: float = 10.0
    ema_horizon: float = 0.05
    evaluations: int = 20
    val_share: tuple[float, float] = (0.0, 1.0)
    fold: FoldConfig | None = None
    patience: int = 0
    precision: PrecisionName = "auto"
    seed: int = 0
    sync_batch_norm: bool = False
    timeout_s: float = 600.0
    weights: Path | None = None
    weights_partial: bool = False
    teacher: Path | None = None
    teacher_weight: float = 1.0
    freeze: tuple[str, ...] = ()
    tensorboard: bool = False
    loggers: tuple[LoggerConfig, ...] = ()
    project: Path = Path("runs/detect")
    run_name: str = "train"

    def __post_init__(self) -> None:
        if self.min_iterations is None:
            object.__setattr__(self, "min_iterations", MIN_DEFAULT_STEPS if self.epochs is None else 0)
        if self.epochs is None:
            object.__setattr__(self, "epochs", 100.0)
        self._require_ranges()

    def _require_ranges(self) -> None:
        if (self.epochs or 0) <= 0 or (self.iterations is not None and self.iterations < 1):
            raise ValueError("train: expected epochs > 0 and iterations >= 1")
        if min(self.min_iterations or 0, self.evaluations, self.patience, self.seed) < 0 or self.accumulate < 1:
            raise ValueError("train: expected min_iterations, evaluations, patience and seed >= 0 and accumulate >= 1")
        if self.clip_norm <= 0 or self.timeout_s <= 0 or not 0 < self.ema_horizon <= 1:
            raise ValueError("train: expected clip_norm > 0, timeout_s > 0 and ema_horizon within 0..1")
        if self.teacher_weight <= 0:
            raise ValueError(f"train.teacher_weight: expected a weight above 0, got {self.teacher_weight}")
        if not 0 <= self.val_share[0] < self.val_share[1] <= 1:
            raise ValueError(f"train.val_share: expected 0 <= start < end <= 1, got {list(self.val_share)}")

    def num_steps(self, num_images: int, batch_size: int) -> int:
        """Return the optimiser steps of a run over `num_images` images."""
        if self.iterations is not None:
            return self.iterations
        return max(self._steps_of_epochs(num_images, batch_size), self.min_iterations or 0)

    def val_images(self, num_images: int) -> npt.NDArray[np.int64]:
        """Return the positions of the validation images that evaluations of the run use, ascending: int64 (n,).

        Raises:
            ConfigError: `val_share` has none of them.
        """
        start, end = (round(share * num_images) for share in self.val_share)
        if start >= end:
            raise ConfigError(
                f"train.val_share: expected a part with images, got {list(self.val_share)} of {num_images} validation "
                f"images; widen it"
            )
        return np.sort(np.random.default_rng(0).permutation(num_images)[start:end]).astype(np.int64)

    def notes(self, num_images: int, batch_size: int) -> tuple[str, ...]:
        """Return sentences about a run over `num_images` images that is longer than its epochs."""
        num_steps, asked = self.num_steps(num_images, batch_size), self._steps_of_epochs(num_images, batch_size)
        if self.iterations is not None or num_steps == asked:
            return ()
        return (
            f"the run has {num_steps:,} steps (train.min_iterations) instead of the {asked:,} of {self.epochs:g} epochs"
            f", because the training split is small; train.epochs=N trains N epochs",
        )

    def _steps_of_epochs(self, num_images: int, batch_size: int) -> int:
        return max(math.ceil((self.epochs or 0) * num_images / (batch_size * self.accumulate)), 1)

    def resumed_as(self, asked: Train) -> Train:
        """Return the settings asked for, with the least number of steps of this run if it is an old one.

        A run of an earlier version has at least 2,000 steps, also if its number of epochs was given.
        """
        if (asked.epochs, asked.min_iterations, self.min_iterations) == (self.epochs, 0, MIN_DEFAULT_STEPS):
            return replace(asked, min_iterations=MIN_DEFAULT_STEPS)
        return asked
