"""The training loop: from batches to a trained model and its metrics."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detector.data.problems import MAX_SKIPPED_SHARE
from detector.errors import CheckpointError, DatasetError, DivergenceError
from detector.losses.loss import Loss, LossParts, divisor_of
from detector.models.checkpoint import (
    ModelFile,
    RunIdentity,
    TrainingState,
    load_state,
    save_model,
    save_training_state,
)
from detector.models.contracts import TrainableModel
from detector.models.precision import Precision, on_device
from detector.structures.metrics import Metrics
from detector.structures.transfer import sent_aside
from detector.structures.types import Batch, ClassBatch
from detector.training.averaging import MovingAverage
from detector.training.batch_norm import batch_norm_in_words
from detector.training.distributed import World
from detector.training.events import Evaluated, Noted, Report, Started, StepDone
from detector.training.freezing import freeze
from detector.training.optimizers import OptimizerConfig, build_optimizer
from detector.training.out_of_memory import memory_in_words
from detector.training.run_folder import RunFolder
from detector.training.schedules import LearningRate, ScheduleConfig
from detector.training.train_config import TrainConfig


@dataclass(frozen=True)
class Recipe:
    """Settings of a run: its length, its optimiser and its learning rate.

    Attributes:
        train: the length of training and its settings.
        optimizer: the optimiser.
        schedule: the learning-rate schedule.
    """

    train: TrainConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig


@dataclass(frozen=True)
class RunPlan:
    """Size of a run, its device and the description of its model.

    Attributes:
        num_steps: optimiser steps of the whole run.
        num_images: images of the data set.
        batch_size: images of a batch of one process.
        device: the device to train on.
        identity: config, class_names and category_ids as plain data, as a model file carries them.
    """

    num_steps: int
    num_images: int
    batch_size: int
    device: torch.device
    identity: RunIdentity


# Steps on a GPU between two looks at losses and gradient norms, for which the CPU waits.
READ_EVERY = 20


class Trainer:
    """One training run.

    Attributes:
        model: the model in training.
        averaged: the moving average of its weights; `.module` is the model that is evaluated.
        step: optimiser steps done.
        best: the best headline number so far (AP, or top-1 accuracy), or -1.
        ended_early: true once `patience` evaluations in a row found no better one.
    """

    def __init__(
        self,
        model: TrainableModel,
        loss: Callable[[Any, Any], LossParts],
        recipe: Recipe,
        plan: RunPlan,
        folder: RunFolder,
        *,
        evaluate: Callable[[Any], Metrics] | None,
        report: Report,
        world: World | None = None,
    ) -> None:
        """Set a run up.

        Args:
            model: the model, on the CPU.
            loss: from the model's output and the batch's targets to named parts.
            recipe: the settings of the run.
            plan: its size and device.
            folder: the run folder.
            evaluate: evaluates a model; None without a validation split.
            report: receives every event.
            world: this process among those that train together; by default there is one.
        """
        config = recipe.train
        self._world = world or World()
        self.model = on_device(model, plan.device)
        self._frozen = freeze(self.model, config.freeze)
        self._network = self._world.wrap(self.model, may_skip_parameters=self.model.may_skip_parameters)
        self.averaged = MovingAverage(self.model, config.ema_horizon * plan.num_steps)
        self.optimizer = build_optimizer(recipe.optimizer, self.model, self.model.parts_in_order())
        self.precision = Precision(config.precision, plan.device)
        self.rate = LearningRate(recipe.schedule, plan.num_steps)
        self.step, self.best, self.ended_early = 0, -1.0, False
        self._num_worse = 0  # evaluations since the best
        self._loss, self._config, self._plan, self._folder = loss, config, plan, folder
        self._peak_lr, self._evaluate, self._report = recipe.optimizer.lr, evaluate, report
        self._metrics: Metrics | None = None
        self._restored_metrics: dict[str, float] = {}
        self._sums: dict[str, float] = {}
        self._num_summed = 0
        self._reads_late = plan.device.type != "cpu"
        self._unread: list[tuple[int, Mapping[str, Tensor], tuple[int, ...], bool]] = []  # see `_note`
        self._skipped: set[str] = set()
        self._warnings: set[str] = set()
        self._elapsed_s = 0.0

    # --- the loop ------------------------------------------------------------------------------------------------

    def run(self, batches: Iterable[Batch | ClassBatch], should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Train from the current step to the end.

        Args:
            batches: exactly those of the remaining steps, `accumulate` for each step.
            should_stop: called after each step; if true, the state is saved and the run ends.

        Returns:
            True if the run reached its end, by early stopping or not.

        Raises:
            DivergenceError: a loss or gradient is not finite; on a GPU up to 20 steps later, but before it is saved.
            DatasetError: too many images cannot be read.
            DetectorError: the memory is too small for a step.
        """
        epochs = self._plan.num_steps * self._images_per_step / self._plan.num_images
        device = str(self._plan.device)
        self._report(Started(self._folder.path, self._plan.num_steps, self.step, epochs, self.precision.name, device))
        started_s = time.monotonic() - self._elapsed_s
        stepping_s, steps_timed = 0.0, 0
        stream = iter(batches)
        if self.step == 0:
            self.save()  # so that the run can be resumed from here on
        while self.step < self._plan.num_steps and not self.ended_early:
            step_started_s = time.monotonic()
            group = list(itertools.islice(stream, self._config.accumulate))
            self._note_skipped(group)
            with memory_in_words(self.step, tuple(group[0].images.shape), self._config.accumulate, self._plan.device):
                self._optimise(group)
                if self.step % READ_EVERY == 0:
                    self._read()
            stepping_s += time.monotonic() - step_started_s
            steps_timed += 1
            self._elapsed_s = time.monotonic() - started_s
            images_per_s = steps_timed * self._images_per_step / stepping_s
            self._report(StepDone(self.step, self._plan.num_steps, self._mean_losses(), images_per_s))
            if self._is_evaluation_due():
                self._measure()
                self._elapsed_s = time.monotonic() - started_s
                self.save()
            if self.step < self._plan.num_steps and not self.ended_early and self._world.any(should_stop()):
                self.save()
                return False
        self.save()
        return True

    def _optimise(self, group: list[Batch | ClassBatch]) -> None:
        """Make one optimiser step over one or more batches."""
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = self._peak_lr * parameters.get("layer_rate", 1.0) * self.rate.factor(self.step)
        if isinstance(self._loss, Loss):
            self._loss.set_progress(self.step / self._plan.num_steps)
        self.model.train()
        for module in self._frozen:
            module.eval()
        shares = len(group) * self._world.size
        count = torch.zeros((), device=self._plan.device)
        for number, batch in enumerate(group, start=1):
            images = sent_aside(batch.images, self._plan.device).contiguous(memory_format=torch.channels_last)
            with self._world.alone(self._network, active=number < len(group)):
                with self.precision.autocast(), batch_norm_in_words(len(images), (images.shape[2], images.shape[3])):
                    raw = self._network(images)
                parts = self._loss(raw, batch.targets.to(self._plan.device))
                self._note(parts, group, are_losses=True)
                total = parts.total()
                if shares > 1:  # the sum over the batch, until the count of the whole step is known
                    total = parts.total_of_batch()
                    count += parts.count
                torch.autograd.backward(self.precision.scaler.scale(total))
        self.precision.scaler.unscale_(self.optimizer)
        if shares > 1:  # DistributedDataParallel averages the gradients
            mean = self._world.size / divisor_of(self._world.total(count))
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad *= mean
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self._config.clip_norm)
        if not self.precision.scaler.is_enabled():  # the fp16 scaler expects infinities and skips such steps
            self._note({"gradient norm": norm}, group, are_losses=False)
        self.precision.scaler.step(self.optimizer)
        self.precision.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.averaged.update_parameters(self.model)
        self.step += 1

    def _note(self, values: Mapping[str, Tensor], group: list[Batch | ClassBatch], *, are_losses: bool) -> None:
        """Note numbers of a step, scalar float32, which are read at once on the CPU."""
        own = {name: value.detach() for name, value in values.items()}
        ids = tuple(i for batch in group for i in batch.image_ids)
        self._unread.append((self.step, own, ids, are_losses))
        if not self._reads_late:
            self._read()

    def _read(self) -> None:
        """Add the losses noted to their sums, by one copy from the device.

        Raises:
            DivergenceError: a number is not finite.
        """
        unread, self._unread = self._unread, []
        tensors = [value for _, noted, _, _ in unread for value in noted.values()]
        numbers = iter(torch.stack(tensors).tolist() if tensors else [])
        for step, noted, image_ids, are_losses in unread:
            values = dict(zip(noted, numbers, strict=False))
            if not all(math.isfinite(value) for value in values.values()):
                listed = ", ".join(f"{name} {value:g}" for name, value in values.items())
                raise DivergenceError(
                    f"training diverged at step {step} ({listed}) on the images with ids "
                    f"{', '.join(map(str, image_ids))}; lower optimizer.lr, raise schedule.warmup_iterations or "
                    f"use train.precision=fp32, then train again or resume the last save"
                )
            for name, value in values.items() if are_losses else ():
                self._sums[name] = self._sums.get(name, 0.0) + value
            self._num_summed += are_losses

    def _note_skipped(self, group: list[Batch | ClassBatch]) -> None:
        new = {reason for batch in group for reason in batch.skipped} - self._skipped
        self._skipped |= new
        for reason in sorted(new):
            self._report(Noted(f"skipped: {reason}", is_of_data=True))
        new_warnings = {warning for batch in group for warning in batch.warnings} - self._warnings
        self._warnings |= new_warnings
        for warning in sorted(new_warnings):
            self._report(Noted(f"warning: {warning}", is_of_data=True))
        if len(self._skipped) > MAX_SKIPPED_SHARE * self._plan.num_images:
            raise DatasetError(
                f"{len(self._skipped)} of {self._plan.num_images} training images cannot be read, at most "
                f"{MAX_SKIPPED_SHARE:.0%} may be skipped, the last because {sorted(new)[-1]}; repair the data set"
            )

    # --- measuring and saving ------------------------------------------------------------------------------------

    @property
    def num_skipped(self) -> int:
        """Training images that could not be read so far."""
        return len(self._skipped)

    @property
    def num_warnings(self) -> int:
        """Warnings about training images that were read, since the run started or resumed."""
        return len(self._warnings)

    @property
    def metrics(self) -> Metrics | None:
        """The metrics of the latest evaluation."""
        return self._metrics

    @property
    def _images_per_step(self) -> int:
        return self._plan.batch_size * self._config.accumulate * self._world.size

    def _is_evaluation_due(self) -> bool:
        count = self._config.evaluations
        if self._evaluate is None or not count:
            return False
        # Evaluation k of n falls on step ceil(k * steps / n); the last is the last step.
        return self.step * count // self._plan.num_steps > (self.step - 1) * count // self._plan.num_steps

    def _mean_losses(self) -> dict[str, float]:
        return {name: value / max(1, self._num_summed) for name, value in self._sums.items()}

    def _measure(self) -> None:
        assert self._evaluate is not None  # for the type checker: an evaluation is due only with a validation split
        self._read()
        averaged: Any = self.averaged.module
        self._world.equalise(averaged)
        self._metrics = self._evaluate(averaged)
        headline = self._metrics.headline
        is_best = headline > self.best or math.isnan(headline)  # without ground truth, the latest counts
        self._num_worse = 0 if is_best else self._num_worse + 1
        if self._config.patience:
            self.ended_early = self._world.any(self._num_worse >= self._config.patience)
        if is_best:
            self.best = -1.0 if math.isnan(headline) else headline
            self._save_best()
        if self._world.is_main:
            self._folder.add_result(
                epoch=self.step * self._images_per_step / self._plan.num_images,
                step=self.step,
                elapsed_s=self._elapsed_s,
                losses=self._mean_losses(),
                metrics=self._metrics,
                learning_rate=self.optimizer.param_groups[0]["lr"],
            )
        self._sums, self._num_summed = {}, 0
        self._report(Evaluated(self.step, self._metrics, is_best, self._elapsed_s))

    def _plain_metrics(self) -> dict[str, float]:
        if self._metrics is None:
            return self._restored_metrics
        return {k: v for k, v in self._metrics.stats.items() if not math.isnan(v)}

    def _save_best(self) -> None:
        if not self._world.is_main:
            return
        state = {name: value.cpu() for name, value in self.averaged.module.state_dict().items()}
        identity = self._plan.identity
        save_model(
            self._folder.best,
            ModelFile(
                config=identity["config"],
                class_names=tuple(identity["class_names"]),
                category_ids=tuple(identity["category_ids"]),
                state=state,
                metrics=self._plain_metrics(),
                provenance=identity.get("provenance", {}),
            ),
        )

    def save(self) -> None:
        """Write the whole state to `weights/last.safetensors`.

        Without evaluations the averaged weights count as the best.
        """
        self._read()
        self._skipped = set(self._world.gathered(sorted(self._skipped)))
        random = self._world.gathered([torch.get_rng_state()])
        if self._world.is_main:
            save_training_state(self._folder.last, self._state(random))
            self._folder.superseded.unlink(missing_ok=True)
        if self._evaluate is None or not self._config.evaluations:
            self._save_best()

    def _state(self, random: list[Tensor]) -> TrainingState:
        return {
            **self._plan.identity,
            "model": self.model.state_dict(),
            "ema": self.averaged.module.state_dict(),
            "ema_updates": int(self.averaged.n_averaged),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "random": random,
            "step": self.step,
            "best_ap": self.best,
            "num_worse": self._num_worse,
            "metrics": self._plain_metrics(),
            "elapsed_s": self._elapsed_s,
            "loss_sums": self._sums,
            "num_summed": self._num_summed,
            "skipped": sorted(self._skipped),
        }

    def restore(self, state: TrainingState) -> None:
        """Restore a state that `save` wrote, so that the run continues as if it had not been interrupted.

        Raises:
            CheckpointError: the tensors do not fit this model, or the number of processes differs.
        """
        who = str(self._folder.last)
        if len(state["random"]) != self._world.size:
            raise CheckpointError(
                f"{who}: expected as many processes as the run began with, {len(state['random'])}, got "
                f"{self._world.size}; start as many, or a new run with train.weights"
            )
        load_state(self.model, state["model"], who)
        load_state(self.averaged.module, state["ema"], who)
        self.averaged.n_averaged.fill_(state["ema_updates"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.precision.scaler.is_enabled():
            self.precision.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"][self._world.rank])
        self.step, self.best, self._elapsed_s = state["step"], state["best_ap"], state["elapsed_s"]
        self._sums, self._num_summed = dict(state["loss_sums"]), state["num_summed"]
        self._num_worse = state.get("num_worse", 0)  # absent from states saved before `patience` existed
        self.ended_early = 0 < self._config.patience <= self._num_worse
        self._restored_metrics, self._skipped = dict(state["metrics"]), set(state["skipped"])
