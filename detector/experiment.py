"""The composition root: the only file that knows every part and puts them together."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from detector import registry
from detector.config import config_from_plain, config_to_plain, config_to_yaml, differences, load_config
from detector.data.coco import CocoAnnotations
from detector.data.dataset import DatasetConfig
from detector.data.loader import LoaderConfig, StreamSampler, TrainingSamples, training_batches
from detector.data.problems import num_skipped
from detector.data.transforms import AugmentConfig
from detector.engine.checkpoint import ModelFile, load_model_file, load_state, load_training_state
from detector.engine.events import Noted, Report
from detector.engine.optim import Muon, OptimizerConfig
from detector.engine.precision import choose_device, keep_freed_memory
from detector.engine.predictor import InputConfig, Predictor
from detector.engine.run import RunFolder
from detector.engine.schedule import Cosine, ScheduleConfig
from detector.engine.trainer import TrainConfig, Trainer
from detector.errors import CheckpointError, ConfigError, DatasetError, DetectorError
from detector.evaluation.coco_metrics import CocoMetrics
from detector.evaluation.evaluate import EvaluateConfig, Evaluation, evaluate
from detector.losses.task_aligned import LossConfig, TaskAlignedLoss
from detector.media.drawing import draw_batch
from detector.media.images import write_image
from detector.models.yolo import DetectionModel, ModelConfig, Yolo
from detector.nodes import presets_dir
from detector.postprocess import SelectConfig

NUM_DRAWN_BATCHES = 3  # the first training batches, drawn into the run folder


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
        device: auto, cpu, cuda or cuda:N.
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
    device: str = "auto"


def load_experiment(name: str, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """An experiment from a YAML file or a shipped preset, with `key=value` overrides.

    Raises:
        ConfigError: every mistake found, each with file and line.
    """
    return load_config(ExperimentConfig, name, overrides)


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
    model: DetectionModel = registry.build(config.model, num_classes, config.input.channels)
    try:
        model.check_image_hw(config.input.canvas_hw)
    except ValueError as error:
        raise ConfigError(f"input.size: {error}") from error
    return model


@dataclass(frozen=True)
class LoadedModel:
    """A model file, read: its experiment, its model and what its classes are called."""

    config: ExperimentConfig
    model: DetectionModel
    file: ModelFile


def load_model(weights: Path, overrides: Sequence[str] = ()) -> LoadedModel:
    """A trained model from a model file, with overrides on the experiment it carries.

    Raises:
        CheckpointError: the file cannot be read or does not fit its own configuration.
        ConfigError: an override is wrong.
    """
    file = load_model_file(weights)
    try:
        config_from_plain(ExperimentConfig, file.config, str(weights))
    except ConfigError as error:
        raise CheckpointError(f"{weights}: carries a configuration that this version cannot read: {error}") from error
    config = config_from_plain(ExperimentConfig, file.config, str(weights), overrides)
    model = build_model(config, len(file.class_names))
    load_state(model, file.state, str(weights))
    return LoadedModel(config, model, file)


def build_predictor(loaded: LoadedModel, batch_size: int = 1) -> Predictor:
    """A predictor over a loaded model."""
    return Predictor(
        loaded.model,
        loaded.config.input,
        loaded.file.class_names,
        loaded.file.category_ids,
        device=choose_device(loaded.config.device),
        batch_size=batch_size,
    )


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


def evaluate_model(
    loaded: LoadedModel, annotations: CocoAnnotations, on_image: Callable[[int], None] = lambda done: None
) -> Evaluation:
    """Measures a loaded model on a split."""
    predictor = build_predictor(loaded, loaded.config.evaluate.batch_size)
    return evaluate(predictor, annotations, loaded.config.evaluate, on_image)


@dataclass(frozen=True)
class TrainingResult:
    """What a training run leaves behind.

    Attributes:
        folder: the run folder.
        finished: false when it was asked to stop before its end.
        metrics: the numbers of the last evaluation, or None.
        best_ap: the best AP of the run, or -1.
        num_skipped: images and boxes that were left out: not read, or refused by the annotation reader.
    """

    folder: RunFolder
    finished: bool
    metrics: CocoMetrics | None
    best_ap: float
    num_skipped: int


def open_run(run: Path, asked: ExperimentConfig | None = None) -> tuple[ExperimentConfig, RunFolder, dict[str, Any]]:
    """The experiment, folder and state of an interrupted run.

    Args:
        run: the run folder, or its `weights/last.pt`.
        asked: an experiment that must agree with the run's, so that the same command can be given again; the device and
            the number of workers may differ and are taken from it.

    Raises:
        CheckpointError: there is no state to resume, or `asked` differs from it; every difference is listed.
    """
    last = run / "weights" / "last.pt" if run.is_dir() else run
    state = load_training_state(last)
    config = config_from_plain(ExperimentConfig, state["config"], str(last))
    if asked is not None:
        workers = asked.loader.workers
        config = replace(config, device=asked.device, loader=replace(config.loader, workers=workers))
        found = differences(config_to_plain(asked), config_to_plain(config))
        if found:
            raise CheckpointError(
                f"{last}: a run resumes under the configuration it began with, found {len(found)} differences: "
                f"{'; '.join(found)}; drop them or start a new run"
            )
    return config, RunFolder(last.parent.parent), state


def train(
    config: ExperimentConfig,
    *,
    resume: tuple[RunFolder, dict[str, Any]] | None = None,
    start: ModelFile | None = None,
    report: Report = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainingResult:
    """Trains an experiment.

    Args:
        config: the experiment, with a data set.
        resume: the folder and state of an interrupted run of the same experiment.
        start: weights to start from; tensors that do not fit are left random and named in a report.
        report: told of every event.
        should_stop: asked after each step; true saves and ends the run.

    Raises:
        DatasetError: the data set cannot be used.
        CheckpointError: the state does not fit the experiment.
        DivergenceError: a loss or gradient is not finite.
    """
    annotations = read_split(config, "train", report)
    has_val = config.data is not None and getattr(config.data, "val", True) is not None
    val = read_split(config, "val", report) if has_val else None
    if val is None:
        report(Noted("no val split is configured: nothing is measured, the last weights count as the best"))
    device = choose_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.train.seed)
    model = build_model(config, len(annotations.class_names))
    if start is None and config.train.weights is not None and resume is None:
        start = load_model_file(config.train.weights)
    if start is not None:
        left = load_matching(model, start)
        report(Noted(f"starting from given weights; {len(left)} of {len(model.state_dict())} tensors stay random"))

    identity: dict[str, Any] = {
        "config": config_to_plain(config),
        "class_names": list(annotations.class_names),
        "category_ids": list(annotations.category_ids),
    }
    if resume is not None:
        _require_same_classes(resume[1], identity, resume[0].last)
    folder = resume[0] if resume else RunFolder.create(config.train.project.resolve(), config.train.run_name)
    folder.write_config(config_to_yaml(config))
    num_steps = config.train.num_steps(len(annotations), config.loader.batch_size)

    def measure(averaged: DetectionModel, split: CocoAnnotations) -> CocoMetrics:
        predictor = Predictor(
            averaged,
            config.input,
            annotations.class_names,
            annotations.category_ids,
            device=device,
            batch_size=config.evaluate.batch_size,
        )
        return evaluate(predictor, split, config.evaluate).metrics

    trainer = Trainer(
        model,
        registry.build(config.loss, model),
        config.train,
        config.optimizer,
        config.schedule,
        num_steps=num_steps,
        num_images=len(annotations),
        batch_size=config.loader.batch_size,
        device=device,
        folder=folder,
        identity=identity,
        evaluate=None if val is None else functools.partial(measure, split=val),
        report=report,
    )
    if resume is not None:
        trainer.restore(resume[1])
    samples = TrainingSamples(
        annotations,
        config.input.canvas_hw,
        config.input.channels,
        config.input.fit,
        config.augment,
        config.train.seed,
        config.loader.cache_mb,
    )
    num_batches = num_steps * config.train.accumulate
    sampler = StreamSampler(
        len(annotations),
        config.loader.batch_size,
        config.train.seed,
        start=trainer.step * config.train.accumulate,
        stop=num_batches,
        closing_from=num_batches - int(config.augment.closing_share * num_batches),
    )
    if trainer.step == 0:
        _draw_first_batches(samples, sampler, annotations.class_names, folder)
    finished = trainer.run(training_batches(samples, sampler, config.loader), should_stop)
    problems = [*annotations.problems, *(val.problems if val is not None else ())]
    num_left_out = trainer.num_skipped + num_skipped(problems)
    return TrainingResult(folder, finished, trainer.metrics, trainer.best_ap, num_left_out)


def _require_same_classes(state: dict[str, Any], identity: dict[str, Any], last: Path) -> None:
    found = [
        f"{what}: {identity[what]!r} in the data set, {state[what]!r} in the run"
        for what in ("class_names", "category_ids")
        if list(state[what]) != identity[what]
    ]
    if found:
        raise CheckpointError(
            f"{last}: a run resumes on the classes it began with, found {'; '.join(found)}; start a new run"
        )


def load_matching(model: DetectionModel, file: ModelFile) -> list[str]:
    """Copies the tensors of a model file whose names and shapes fit; returns the names of those left as they were."""
    own = model.state_dict()
    fitting = {name: t for name, t in file.state.items() if name in own and own[name].shape == t.shape}
    model.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting]


def _draw_first_batches(
    samples: TrainingSamples, sampler: StreamSampler, class_names: Sequence[str], folder: RunFolder
) -> None:
    for number, keys in zip(range(NUM_DRAWN_BATCHES), sampler, strict=False):
        picture = draw_batch([samples[key] for key in keys[:16]], class_names)
        write_image(folder.path / f"train_batch{number}.jpg", picture)


def results_folder(asked: Path | None, name: str) -> Path:
    """A folder for results: the one asked for, or a new one in the default project below the working directory.

    Raises:
        DetectorError: it cannot be made.
    """
    if asked is None:
        return RunFolder.create(TrainConfig().project, name, subfolders=()).path
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
        if config.data is not None or path.stem == "base":
            continue
        with torch.device("meta"):
            model = build_model(config, num_classes).eval()
            image = torch.zeros(1, config.input.channels, size, size, dtype=torch.uint8)
        with FlopCounterMode(display=False) as counter:
            model(image)
        num_parameters = sum(p.numel() for p in model.parameters())
        measured.append(ModelSize(path.stem, num_parameters, counter.get_total_flops() / 1e9))
    return sorted(measured, key=lambda m: m.gflops)
