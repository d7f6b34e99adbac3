"""The `Task` contract: everything that the rest of the package asks of a task, and experiments of any task."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch

from detector.config import registry
from detector.config.registry import PartConfig
from detector.config.schema import config_from_plain, config_to_plain, load_config, merged_plain
from detector.data.problems import Problem
from detector.errors import CheckpointError, ConfigError
from detector.inference.prediction_run import OnPicture
from detector.io.announcements import announcing
from detector.models.checkpoint import ModelFile, peek_config
from detector.models.contracts import TrainableModel
from detector.models.network_size import require_bounded
from detector.models.precision import choose_device
from detector.structures.canvas import InputConfig
from detector.structures.metrics import Metrics
from detector.structures.types import Batch, ClassBatch
from detector.tasks.requests import EvaluationOutcome, ModelRequest, Observer, PredictionRequest, TaskRun
from detector.training.distributed import World
from detector.training.events import Noted, Report
from detector.training.optimizers import OptimizerConfig
from detector.training.run_folder import RunFolder
from detector.training.schedules import ScheduleConfig
from detector.training.train_config import TrainConfig

Config = TypeVar("Config", bound="TaskConfig")
Model = TypeVar("Model", bound=TrainableModel)


@dataclass(frozen=True)
class TaskConfig(PartConfig["Task[Any, Any]"]):
    """The kind `task`: everything that a run is a function of.

    The YAML key `task` selects it; a configuration without the key is one of detection.

    Attributes:
        model: the network.
        loss: the loss that training minimises.
        data: the data set; None in presets that leave it to the user.
        input: the canvas of the network.
        optimizer: the optimiser.
        schedule: the learning-rate schedule.
        train: the length of training and its settings.
        device: auto, cpu, cuda, cuda:N or mps.
    """

    folders = ("tasks",)
    name_key = "task"
    default_name = "detect"

    model: PartConfig[Any]
    loss: PartConfig[Any]
    data: PartConfig[Any] | None
    input: InputConfig
    augment: Any
    loader: Any
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    train: TrainConfig
    evaluate: Any
    device: str

    @property
    def closing_share(self) -> float:
        """Share of the run, at its end, whose images are augmented less."""
        return 0.0

    @property
    def has_val(self) -> bool:
        """True if the data set has a split `val`."""
        return self.data is not None and "val" in registry.build(self.data).split_names()

    @property
    def has_folds(self) -> bool:
        """True if the task can hold a fold of its training split out (`train.fold`)."""
        return False

    def resumed_as(self: Config, asked: TaskConfig) -> Config:
        """Return this config of an interrupted run with the settings of `asked` that change no number.

        The places of the data and of the teacher are among them: `train` compares the annotations and the hash.
        """
        train = replace(self.train, timeout_s=asked.train.timeout_s, loggers=asked.train.loggers)
        if train.teacher is not None and asked.train.teacher is not None:
            train = replace(train, teacher=asked.train.teacher)
        return replace(self, device=asked.device, data=asked.data or self.data, train=train)

    def for_canvas(self: Config) -> Config:
        """Return the config with the settings of the model that are left to the canvas chosen for it."""
        return self

    def with_choices_of(self: Config, run: TaskConfig) -> Config:
        """Return the config with what an interrupted run chose where it leaves the choice to the run."""
        return self

    def for_fine_tuning(self: Config) -> Config:
        """Return the config of a run that starts from given weights, whose learning rate is bounded."""
        bound = self.optimizer.fine_tuning_lr
        if bound is None or self.optimizer.lr <= bound:
            return self
        return replace(self, optimizer=replace(self.optimizer, lr=bound))

    def with_batch_size(self: Config, batch_size: int) -> Config:
        """Return the config with a measured batch size where it asks for a share of the memory, else unchanged."""
        return self


@dataclass(frozen=True)
class Headline:
    """The number of an evaluation that selects the best weights.

    Attributes:
        label: its name for people, such as AP.
        key: its key in the JSON summary of a run, such as best_ap.
    """

    label: str
    key: str


class Task(abc.ABC, Generic[Config, Model]):
    """Data, network, loss and evaluation of one experiment; built from its config and a reporter, it reads the splits.

    Attributes:
        evaluate_options: the options of `detector evaluate` that the task supports; None for all of them.
        predict_options: the options of `detector predict` that the task supports; None for all of them.
        product: the model of the task in one word, such as detector; its Python class has that name in title case.
        headline: the number that selects the best weights.
        class_names: name of each class.
        category_ids: the data set's own id of each class.
        num_images: training images.
        num_objects: their boxes; None where each image has one class.
        num_val_images: validation images; 0 without a split `val`.
        num_val_objects: their boxes; None where each image has one class.
        batch_size: images of a batch of one process.
        has_val: true if there is a split to evaluate on.
        problems: what the readers skipped or accepted in the splits.
        data_digest: a hash of the annotations of the splits that does not depend on where their files lie; empty where
            a task has none.
        provenance: what weights learn from besides the data set, such as a teacher, as in `ModelFile`.
    """

    evaluate_options: ClassVar[frozenset[str] | None] = None
    predict_options: ClassVar[frozenset[str] | None] = None
    product: ClassVar[str]
    headline: ClassVar[Headline]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    num_images: int
    num_objects: int | None
    num_val_images: int
    num_val_objects: int | None
    batch_size: int
    has_val: bool
    problems: tuple[Problem, ...]
    data_digest: str = ""
    provenance: Mapping[str, str] = {}

    @classmethod
    def choose_batch_size(cls, config: Config, world: World, report: Report) -> Config:
        """Return the config with a batch size measured from memory if it asks for one, else unchanged."""
        return config

    @classmethod
    @abc.abstractmethod
    def evaluate_file(cls, request: ModelRequest, observer: Observer) -> EvaluationOutcome:
        """Evaluate a model file on a split and write its results."""

    @classmethod
    @abc.abstractmethod
    def predict_file(cls, request: PredictionRequest, observer: Observer, on_picture: OnPicture | None) -> TaskRun:
        """Open a model file and sources and return the run over them."""

    @abc.abstractmethod
    def model(self) -> Model:
        """Return the network with random weights."""

    @abc.abstractmethod
    def loss(self, model: Model) -> Any:
        """Return the function from the network's outputs and a batch's targets to `LossParts`."""

    @abc.abstractmethod
    def measure(self, model: Model, device: torch.device, world: World) -> Metrics:
        """Return the metrics of a network on the validation split."""

    @abc.abstractmethod
    def seconds_per_val_image(self, model: Model, device: torch.device) -> float:
        """Return the time per image of a warm batch of validation images, scoring excluded."""

    @abc.abstractmethod
    def batches(
        self, model: Model, first_step: int, num_steps: int, folder: RunFolder, world: World, report: Report
    ) -> Iterator[Batch | ClassBatch]:
        """Yield the batches of the steps from `first_step` on; draw the first ones into the folder of a new run."""

    @abc.abstractmethod
    def drawn_reports(self, folder: RunFolder, report: Report) -> Report:
        """Return a reporter that draws into the folder what an event makes due and passes the event on."""

    @abc.abstractmethod
    def draw_end(self, model: Model, device: torch.device) -> None:
        """Draw the predictions of the best weights on validation images."""


def task_of(config: type[TaskConfig]) -> type[Task[Any, Any]]:
    """Return the class of the task that a config class belongs to."""
    task: type[Task[Any, Any]] = registry.part_of(config)
    return task


def task_of_file(path: Path) -> type[Task[Any, Any]]:
    """Return the task of a model file; one that cannot be read counts as detection, whose loader says why."""
    name = peek_config(path).get(TaskConfig.name_key, TaskConfig.default_name)
    task: type[Task[Any, Any]] = registry.find(TaskConfig, str(name))
    return task


def open_task(config: TaskConfig, report: Report) -> Task[Any, Any]:
    """Return the task of an experiment with its splits read; report what was skipped.

    Raises:
        DatasetError: a split cannot be used.
    """
    return registry.build(config, report)


def load_experiment_of(schema: type[Config], name: str, overrides: Sequence[str] = ()) -> Config:
    """Load an experiment as `load_experiment` does and require one task.

    Raises:
        ConfigError: as `load_experiment`, or the experiment is of another task.
    """
    config = load_experiment(name, overrides)
    if not isinstance(config, schema):
        expected, got = task_of(schema), task_of(type(config))
        raise ConfigError(
            f"{name}: expected an experiment for a {expected.product}, got one for a {got.product}; "
            f"use detector.{got.product.title()}"
        )
    return config


def load_experiment(name: str, overrides: Sequence[str] = (), *, are_own: bool = True) -> TaskConfig:
    """Load an experiment of any task from a YAML file, a shipped preset or a Darknet .cfg, with `key=value` overrides.

    A .cfg, by path or by the name of a shipped one such as `yolov4-tiny.cfg`, is an experiment with that network.
    Overrides that are not the user's `are_own` words, such as those of a study, cannot give a permission.

    Raises:
        ConfigError: every mistake found, each with file and line.
        DarknetError: the .cfg cannot be honoured.
    """
    if name.endswith(".cfg"):
        plain = {"model": {"name": "darknet", "cfg": name}}
        return config_from_plain(TaskConfig, plain, name, overrides, are_own=are_own)
    return load_config(TaskConfig, name, overrides, are_own=are_own)


def config_of_file(
    schema: type[Config], file: ModelFile, weights: Path, overrides: Sequence[str] = ()
) -> tuple[Config, Config]:
    """Return the experiment of a task that a model file carries, unchanged and with overrides.

    Raises:
        CheckpointError: this version cannot read it, or the file is of another task.
        ConfigError: an override is wrong.
    """
    try:
        carried = config_from_plain(TaskConfig, file.config, str(weights))
    except ConfigError as error:
        raise CheckpointError(f"{weights}: carries a configuration that this version cannot read: {error}") from error
    changed = config_from_plain(TaskConfig, file.config, str(weights), overrides) if overrides else carried
    if not isinstance(carried, schema) or not isinstance(changed, schema):
        expected, got = task_of(schema), task_of(type(carried))
        raise CheckpointError(
            f"{weights}: expected a {expected.product}, got a {got.product}; open it as detector.{got.product.title()}"
        )
    return carried, changed


def changed_config(
    config: Config, data: Any, settings: Mapping[str, Any], who: str, report: Report = lambda event: None
) -> Config:
    """Return an experiment with other data, unless they are None, and other sections or keys, given as plain data.

    What was found at the path of a data set is reported.

    Raises:
        ConfigError: a setting is wrong; `who` names where it was given.
    """
    plain = merged_plain(config_to_plain(config), dict(settings))
    if data is not None:
        plain["data"] = str(data) if isinstance(data, Path) else data
    with announcing(lambda text: report(Noted(text))):
        changed = config_from_plain(TaskConfig, plain, who, is_own=True)
    if not isinstance(changed, type(config)):
        raise ConfigError(f"{who}: expected settings of the task at hand, got another task; leave the key task out")
    return changed


def split_to_evaluate(
    config: TaskConfig, asked: str | None, is_other_data: bool, note: Callable[[str], None] = lambda text: None
) -> str:
    """Return the split to evaluate on: the one asked for, or val, or the only one of other data, with a note."""
    names: Sequence[str] = registry.build(config.data).split_names() if config.data is not None else ()
    if asked is not None or not is_other_data or "val" in names or len(names) != 1:
        return asked or "val"
    note(f"evaluated on {names[0]}, the only split of the data set")
    return names[0]


def with_device(config: Config, device: str | None) -> Config:
    """Return an experiment on a device, or unchanged for None.

    Raises:
        ConfigError: the machine has no such device.
    """
    if device is None:
        return config
    choose_device(device)
    return replace(config, device=device)


def build_checked(model: PartConfig[Model], num_classes: int, canvas: InputConfig) -> Model:
    """Return the model of a config with random weights, after checking that it takes such a canvas.

    Raises:
        ConfigError: the input size does not suit the model, or the network is too large.
    """
    require_bounded(lambda: registry.build(model, num_classes, canvas.channels))
    built = registry.build(model, num_classes, canvas.channels)
    try:
        built.check_image_hw(canvas.canvas_hw)
    except ValueError as error:
        raise ConfigError(f"input.size: {error}") from error
    return built
