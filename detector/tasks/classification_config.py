"""The configuration of classification."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from detector.data.classification_batches import BatchConfig, ImageAugmentConfig
from detector.data.classification_split import ImageSetConfig
from detector.inference.predictor import InputConfig
from detector.losses.cross_entropy import ClassificationLossConfig, CrossEntropyLoss
from detector.models.image_classifier import Classifier, ClassifierConfig
from detector.tasks.task import TaskConfig
from detector.training.optimizers import Muon, OptimizerConfig
from detector.training.schedules import Cosine, ScheduleConfig
from detector.training.train_config import TrainConfig


@dataclass(frozen=True)
class ClassifyEvaluateConfig:
    """How a classifier is measured.

    Attributes:
        batch_size: images in a batch.
    """

    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"evaluate.batch_size wants to be at least 1, found {self.batch_size}")


@dataclass(frozen=True)
class ClassifyInputConfig(InputConfig):
    """What the network of a classifier sees: images are fitted to it once and kept in memory."""

    size: int | tuple[int, int] = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.multi_scale:
            raise ValueError(f"input.multi_scale is for detection, found {self.multi_scale}; leave it 0")
        if self.arithmetic != "opencv":
            raise ValueError(f"input.arithmetic is opencv for classification, found {self.arithmetic!r}")


@dataclass(frozen=True)
class ClassifyTrainConfig(TrainConfig):
    """How long and how training of a classifier runs: small data sets get no more steps than their epochs have."""

    epochs: float = 20
    min_iterations: int = 0
    evaluations: int = 10
    project: Path = Path("runs/classify")


@dataclass(frozen=True)
class ClassificationConfig(TaskConfig):
    """Everything that a run of classification is a function of.

    Attributes:
        model: the network.
        loss: what training minimises.
        data: the images and their classes; None in presets that leave them to the user.
        input: what the network sees.
        augment: how training images are varied.
        loader: how batches are made.
        optimizer: the optimiser.
        schedule: the learning-rate schedule.
        train: how long and how training runs.
        evaluate: how it is measured.
        device: auto, cpu, cuda or cuda:N.
    """

    model: ClassifierConfig = Classifier.Config()  # noqa: RUF009 (frozen: shared safely)
    loss: ClassificationLossConfig = CrossEntropyLoss.Config()  # noqa: RUF009 (frozen: shared safely)
    data: ImageSetConfig | None = None
    input: ClassifyInputConfig = field(default_factory=ClassifyInputConfig)
    augment: ImageAugmentConfig = field(default_factory=ImageAugmentConfig)
    loader: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = Muon.Config()  # noqa: RUF009 (frozen: shared safely)
    schedule: ScheduleConfig = Cosine.Config()  # noqa: RUF009 (frozen: shared safely)
    train: ClassifyTrainConfig = field(default_factory=ClassifyTrainConfig)
    evaluate: ClassifyEvaluateConfig = field(default_factory=ClassifyEvaluateConfig)
    device: str = "auto"
