"""The configuration of detection."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from detector.data.augment.augment_config import AugmentConfig
from detector.data.dataset import DatasetConfig
from detector.data.loader import LoaderConfig
from detector.evaluation.evaluator import EvaluateConfig
from detector.inference.runtime import RuntimeConfig
from detector.inference.views import ViewsConfig
from detector.losses.loss import LossConfig
from detector.losses.task_aligned import TaskAlignedLoss
from detector.models.contracts import ModelConfig
from detector.models.yolo import Yolo
from detector.structures.canvas import InputConfig
from detector.structures.selection import SelectConfig
from detector.tasks.task import TaskConfig
from detector.training.optimizers import Muon, OptimizerConfig
from detector.training.schedules import Cosine, ScheduleConfig
from detector.training.train_config import TrainConfig

_FREE_LOADER_KEYS = ("workers", "cache_mb", "disk_cache", "timeout_s")  # they change no number


@dataclass(frozen=True)
class DetectionConfig(TaskConfig):
    """Everything that a run of detection is a function of.

    Attributes:
        model: the network.
        loss: the loss that training minimises.
        data: the data set; None in presets that leave it to the user.
        input: the canvas of the network.
        augment: the augmentation of training images.
        loader: the batches and how they are loaded.
        optimizer: the optimiser.
        schedule: the learning-rate schedule.
        train: the length of training and its settings.
        evaluate: the selection of boxes in evaluation.
        device: auto, cpu, cuda, cuda:N or mps.
        predict: the selection of boxes in prediction.
        views: test-time augmentation and tiling in evaluation and prediction.
        runtime: arithmetic of the network in evaluation and prediction.
    """

    model: ModelConfig = Yolo.Config()  # noqa: RUF009 (frozen: shared safely)
    loss: LossConfig = TaskAlignedLoss.Config()  # noqa: RUF009 (frozen: shared safely)
    data: DatasetConfig | None = None
    input: InputConfig = field(default_factory=InputConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    optimizer: OptimizerConfig = Muon.Config()  # noqa: RUF009 (frozen: shared safely)
    schedule: ScheduleConfig = Cosine.Config()  # noqa: RUF009 (frozen: shared safely)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    device: str = "auto"
    predict: SelectConfig = field(default_factory=SelectConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    @property
    def closing_share(self) -> float:
        """Share of the run, at its end, whose images are augmented less."""
        return self.augment.closing_share

    @property
    def has_folds(self) -> bool:
        """True: detection can hold a fold out."""
        return True

    def resumed_as(self, asked: TaskConfig) -> DetectionConfig:
        """Return this config of an interrupted run with the settings of `asked` that change no number."""
        config = super().resumed_as(asked)
        if not isinstance(asked, DetectionConfig):
            return config
        free = {key: getattr(asked.loader, key) for key in _FREE_LOADER_KEYS}
        return replace(config, loader=replace(config.loader, **free))

    def for_canvas(self) -> DetectionConfig:
        """Return the config with the settings of the model that are left to the canvas chosen for the largest one."""
        longest_px = max(self.input.canvas_hw) * (1 + self.input.multi_scale)
        return replace(self, model=self.model.for_canvas(longest_px))

    def with_choices_of(self, run: TaskConfig) -> DetectionConfig:
        """Return the config with the batch size and the settings of the model that an interrupted run chose."""
        if not isinstance(run, DetectionConfig):
            return self
        chosen = self.with_batch_size(run.loader.batch_size)
        return replace(chosen, model=chosen.model.with_choices_of(run.model))

    def with_batch_size(self, batch_size: int) -> DetectionConfig:
        """Return the config with a measured batch size where it asks for a share of the memory, else unchanged."""
        if not self.loader.memory_share:
            return self
        return replace(self, loader=replace(self.loader, batch_size=batch_size, memory_share=0.0))
