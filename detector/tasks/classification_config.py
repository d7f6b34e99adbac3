"""The configuration of classification."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from detector.data.classification_batches import BatchConfig, ImageAugmentConfig
from detector.data.classification_split import ImageSetConfig
from detector.losses.cross_entropy import CrossEntropyLoss
from detector.losses.loss import ClassificationLossConfig
from detector.models.contracts import ClassifierConfig
from detector.models.image_classifier import ImageClassifier
from detector.structures.canvas import InputConfig
from detector.tasks.task import TaskConfig
from detector.training.optimizers import Muon, OptimizerConfig
from detector.training.schedules import Cosine, ScheduleConfig
from detector.training.train_config import TrainConfig


@dataclass(frozen=True)
class ClassifyEvaluateConfig:
    """Settings of the evaluation of a classifier.

    Attributes:
        batch_size: images in a batch.
    """

    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"evaluate.batch_size: expected at least 1, got {self.batch_size}")


@dataclass(frozen=True)
class ClassifyInputConfig(InputConfig):
    """The canvas of a classifier; images are fitted to it once and kept in memory."""

    size: int | tuple[int, int] = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.multi_scale:
            raise ValueError(f"input.multi_scale: expected 0 for classification, got {self.multi_scale}; leave it out")
        if self.arithmetic != "opencv":
            raise ValueError(f"input.arithmetic: expected opencv for classification, got {self.arithmetic!r}")


@dataclass(frozen=True)
class ClassifyTrainConfig(TrainConfig):
    """Length of training of a classifier and its settings; small data sets get no minimum of steps."""

    epochs: float | None = 20
    min_iterations: int | None = 0
    evaluations: int = 10
    project: Path = Path("runs/classify")


@dataclass(frozen=True)
class ClassificationConfig(TaskConfig):
    """Everything that a run of classification is a function of.

    Attributes:
        model: the network.
        loss: the loss that training minimises.
        data: the images and their classes; None in presets that leave them to the user.
        input: the canvas of the network.
        augment: the augmentation of training images.
        loader: the size of batches.
        optimizer: the optimiser.
        schedule: the learning-rate schedule.
        train: the length of training and its settings.
        evaluate: settings of the evaluation.
        device: auto, cpu, cuda or cuda:N.
    """

    model: ClassifierConfig = ImageClassifier.Config()  # noqa: RUF009 (frozen: shared safely)
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
