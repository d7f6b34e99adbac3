"""The composition root: the only file that knows every part and puts them together."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch.utils.flop_counter import FlopCounterMode

from detector.config import registry
from detector.config.nodes import presets_dir
from detector.config.schema import config_from_plain, load_config_of
from detector.darknet.darknet_model_file import find_cfg_of, is_darknet_weights, load_darknet_file
from detector.data.augment.augment_config import AugmentConfig
from detector.data.coco import CocoAnnotations
from detector.data.dataset import DatasetConfig
from detector.data.loader import LoaderConfig
from detector.errors import CheckpointError, ConfigError, DatasetError, DetectorError
from detector.evaluation.darknet_map import DarknetDetections, darknet_results, darknet_selection
from detector.evaluation.evaluator import EvaluateConfig, Evaluation, evaluate
from detector.export.export_config import target_of
from detector.export.export_runtime import ExportRuntime
from detector.export.writer import open_export
from detector.inference.predictor import InputConfig, Predictor
from detector.inference.runtime import Runtime, RuntimeConfig, TorchRuntime
from detector.inference.views import ViewsConfig
from detector.losses.loss import LossConfig
from detector.losses.task_aligned import TaskAlignedLoss
from detector.models.checkpoint import ModelFile, load_model_file, load_state
from detector.models.class_rows import is_named
from detector.models.precision import choose_device
from detector.models.yolo import DetectionModel, ModelConfig, Yolo
from detector.structures.selection import SelectConfig
from detector.tasks.configured import build_checked, config_of_file
from detector.tasks.image_classification import ClassificationConfig, is_classifier
from detector.training.events import Noted, Report
from detector.training.optimizers import Muon, OptimizerConfig
from detector.training.run_folder import RunFolder
from detector.training.schedules import Cosine, ScheduleConfig
from detector.training.train_config import TrainConfig


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything a run is a function of.

    Attributes:
        model: the network.
        loss: what training minimises.
        data: the data set; None in presets that leave it to the user.
        input: what the network sees.
        augment: how training images are varied.
        loader: how batches are made.
        optimizer: the optimiser.
        schedule: the learning-rate schedule.
        train: how long and how training runs.
        evaluate: what evaluation keeps of the model's boxes.
        predict: what prediction keeps of them.
        views: how evaluation and prediction look at each image.
        runtime: how the network runs in evaluation and prediction.
        device: auto, cpu, cuda, cuda:N or mps.
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
    predict: SelectConfig = field(default_factory=SelectConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    device: str = "auto"


Experiment: TypeAlias = "ExperimentConfig | ClassificationConfig"
# By the key `task` of a configuration; the first is the task of one without the key, and writes none.
TASKS: dict[str, type[Any]] = {"detect": ExperimentConfig, "classify": ClassificationConfig}


def load_experiment(name: str, overrides: Sequence[str] = ()) -> Experiment:
    """An experiment of any task from a YAML file, a shipped preset or a Darknet .cfg, with `key=value` overrides.

    A .cfg, by path or by the name of a shipped one such as `yolov4-tiny.cfg`, is an experiment with that network.

    Raises:
        ConfigError: every mistake found, each with file and line.
        DarknetError: the .cfg cannot be honoured.
    """
    if name.endswith(".cfg"):
        return config_from_plain(ExperimentConfig, {"model": {"name": "darknet", "cfg": name}}, name, overrides)
    experiment: Experiment = load_config_of(TASKS, name, overrides)
    return experiment


def load_detection(name: str, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """`load_experiment` where only detection will do.

    Raises:
        ConfigError: as `load_experiment`, or the experiment is of another task.
    """
    config = load_experiment(name, overrides)
    if not isinstance(config, ExperimentConfig):
        raise ConfigError(f"{name}: an experiment of detection is wanted, found task: {config.task}; give another one")
    return config


def import_parts(path: Path) -> None:
    """Runs a Python file of the user's, so that the parts it registers can be named in a configuration.

    Raises:
        ConfigError: the file is missing or is no Python file.
    """
    specification = importlib.util.spec_from_file_location(f"detector_parts_{path.stem}", path)
    if not path.is_file() or specification is None or specification.loader is None:
        raise ConfigError(f"--import wants a Python file with registered parts, found {str(path)!r}; check the path")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)


def build_model(config: ExperimentConfig, num_classes: int) -> DetectionModel:
    """A model with random weights.

    Raises:
        ConfigError: the input size does not suit the model.
    """
    model: DetectionModel = build_checked(config.model, num_classes, config.input)
    return model


@dataclass(frozen=True)
class LoadedModel:
    """A model file, read: its experiment, its model and what its classes are called."""

    config: ExperimentConfig
    model: DetectionModel | ExportRuntime
    file: ModelFile


def load_model(
    weights: Path, overrides: Sequence[str] = (), *, cfg: str | None = None, names: Path | None = None
) -> LoadedModel:
    """A trained model from a model file, Darknet's .weights or an export, with overrides on its experiment.

    Args:
        weights: the file.
        overrides: texts such as `evaluate.iou=0.6`.
        cfg: the .cfg of a .weights file, or the name of a shipped one; without it the one beside it or of its name.
        names: the class names of a .weights file; without it those beside it, or numbers.

    Raises:
        CheckpointError: the file cannot be read or does not fit its own configuration.
        DarknetError: a Darknet file cannot be read or does not fit the others.
        ConfigError: an override is wrong.
    """
    export: ExportRuntime | None = None
    if is_darknet_weights(weights):
        file = load_darknet_file(weights, find_cfg_of(weights, cfg), names)
    elif cfg is not None or names is not None:
        raise ConfigError(f"--cfg and --names belong to a Darknet .weights file, found {weights}; leave them out")
    elif target_of(weights) is not None:
        export = open_export(weights)
        file = export.description.file
    else:
        file = load_model_file(weights)
    if is_classifier(file):
        raise CheckpointError(f"{weights}: a detector is wanted, found a classifier; open it as detector.Classifier")
    carried, config = config_of_file(ExperimentConfig, file, weights, overrides)
    if export is not None:
        if config.model != carried.model:
            raise ConfigError(f"{weights}: the network of an export is what it is; leave the keys of model out")
        if config.runtime != carried.runtime:
            raise ConfigError(
                f"{weights}: an export computes as it was written, in {export.precision}; leave precision and the keys "
                "of runtime out"
            )
        export.description.require_input(config.input)
        return LoadedModel(config, export, file)
    model = build_model(config, len(file.class_names))
    load_state(model, file.state, str(weights))
    return LoadedModel(config, model, file)


def build_predictor(loaded: LoadedModel, batch_size: int = 1) -> Predictor:
    """A predictor over a loaded model."""
    runtime: Runtime
    if isinstance(loaded.model, ExportRuntime):
        loaded.model.description.require_input(loaded.config.input)
        if choose_device(loaded.config.device).type == "cuda" and loaded.config.device != "auto":
            raise ConfigError(f"device={loaded.config.device}: an export runs on the CPU here; leave the device out")
        runtime = loaded.model
    else:
        runtime = TorchRuntime(loaded.model, choose_device(loaded.config.device), loaded.config.runtime)
    names, ids = loaded.file.class_names, loaded.file.category_ids
    return Predictor(runtime, loaded.config.input, names, ids, batch_size=batch_size, views=loaded.config.views)


def read_split(config: ExperimentConfig, split: str, report: Report = lambda event: None) -> CocoAnnotations:
    """A split of the experiment's data set; what was skipped in its file is reported.

    Raises:
        DatasetError: there is none, or its file is refused.
    """
    if config.data is None:
        raise DatasetError(
            "no data set is configured; give data=FILE.yaml, or data.train.annotations, data.train.images and the same "
            "for data.val"
        )
    annotations: CocoAnnotations = registry.build(config.data).split(split)
    for problem in annotations.problems:
        report(Noted(f"{annotations.annotations}: {problem}"))
    return annotations


def with_category_ids_of(loaded: LoadedModel, annotations: CocoAnnotations) -> LoadedModel:
    """The same model with the category ids that an annotation file gives to the classes of these names.

    A model without class names takes the file's categories in their order, if there are as many. Where the names are
    not the model's, or stand twice, its own ids stay.

    Raises:
        DatasetError: the model has numbers for names and another number of classes.
    """
    names, ids = loaded.file.class_names, annotations.category_ids
    if not is_named(names):
        if len(names) != len(ids):
            raise DatasetError(
                f"{annotations.annotations}: the model has {len(names)} classes without names, the file {len(ids)} "
                f"categories; name the classes with --names"
            )
        found = tuple(ids)
    elif set(annotations.class_names) <= set(names) and len(set(annotations.class_names)) == len(ids):
        id_of = dict(zip(annotations.class_names, ids, strict=True))
        unused = itertools.count(max(ids, default=0) + 1)
        found = tuple(id_of[name] if name in id_of else next(unused) for name in names)
    else:
        return loaded
    return replace(loaded, file=replace(loaded.file, category_ids=found))


def evaluate_model(
    loaded: LoadedModel, annotations: CocoAnnotations, on_image: Callable[[int], None] = lambda done: None
) -> Evaluation:
    """Measures a loaded model on a split."""
    loaded = with_category_ids_of(loaded, annotations)
    predictor = build_predictor(loaded, loaded.config.evaluate.batch_size)
    return evaluate(predictor, annotations, loaded.config.evaluate, on_image)


def map_detections(
    loaded: LoadedModel, annotations: CocoAnnotations, on_image: Callable[[int], None] = lambda done: None
) -> DarknetDetections:
    """The detections of a loaded model that Darknet's `map` would score on a split."""
    loaded = with_category_ids_of(loaded, annotations)
    predictor = build_predictor(loaded, loaded.config.evaluate.batch_size)
    return darknet_results(predictor, annotations, darknet_selection(loaded.config.evaluate), on_image)


def results_folder(asked: Path | None, name: str, project: Path | None = None) -> Path:
    """A folder for results: the one asked for, or a new one in a project, by default that of detection.

    Raises:
        DetectorError: it cannot be made.
    """
    if asked is None:
        return RunFolder.create(project or TrainConfig().project, name, subfolders=()).path
    try:
        asked.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DetectorError(f"{asked}: the folder for results cannot be made, {error.strerror}") from error
    return asked


@dataclass(frozen=True)
class ModelSize:
    """A preset and what its network measures."""

    preset: str
    num_parameters: int
    gflops: float


def measure_presets(size: int, num_classes: int) -> list[ModelSize]:
    """Parameters and GFLOPs (two per multiply-add, one image of `size` x `size`) of every preset without a data set.

    Raises:
        ConfigError: the size does not suit a model.
    """
    measured = []
    for path in presets_dir().glob("*.yaml"):
        config = load_experiment(str(path), [f"input.size={size}"])
        if not isinstance(config, ExperimentConfig) or config.data is not None or path.stem == "base":
            continue
        with torch.device("meta"):
            model = build_model(config, num_classes).eval()
            image = torch.zeros(1, config.input.channels, size, size, dtype=torch.uint8)
        with FlopCounterMode(display=False) as counter:
            model(image)
        num_parameters = sum(p.numel() for p in model.parameters())
        measured.append(ModelSize(path.stem, num_parameters, counter.get_total_flops() / 1e9))
    return sorted(measured, key=lambda m: m.gflops)
