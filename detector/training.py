"""Training as a whole: an experiment in, a run folder out; new runs and interrupted ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detector import registry
from detector.config import config_from_plain, config_to_plain, config_to_yaml, differences
from detector.darknet.network import DarknetNet
from detector.data.cache import stated_cost
from detector.data.canvases import training_canvases
from detector.data.coco import CocoAnnotations
from detector.data.loader import StreamSampler, TrainingSamples, training_batches
from detector.data.problems import num_accepted, num_skipped
from detector.data.repeats import repeat_factors
from detector.engine.checkpoint import ModelFile, load_model_file, load_state, load_training_state
from detector.engine.darknet_file import is_darknet_weights, load_darknet_file
from detector.engine.distributed import World, joined
from detector.engine.events import Noted, Report
from detector.engine.pictures import RunPictures
from detector.engine.precision import choose_device, keep_freed_memory
from detector.engine.predictor import Predictor
from detector.engine.run import RunFolder
from detector.engine.runtime import TorchRuntime
from detector.engine.scalars import ScalarLog, summary_writer
from detector.engine.trainer import Trainer
from detector.errors import CheckpointError, ConfigError
from detector.evaluation.coco_metrics import CocoMetrics
from detector.evaluation.evaluate import evaluate
from detector.experiment import ExperimentConfig, build_model, read_split
from detector.media.drawing import draw_batch
from detector.media.images import write_image
from detector.models.class_rows import is_named
from detector.models.yolo import DetectionModel

NUM_DRAWN_BATCHES = 3  # the first training batches, drawn into the run folder


@dataclass(frozen=True)
class TrainingResult:
    """What a training run leaves behind.

    Attributes:
        folder: the run folder.
        finished: false when it was asked to stop before its end.
        metrics: the numbers of the last evaluation, or None.
        best_ap: the best AP of the run, or -1.
        num_skipped: images and boxes that were left out: not read, or refused by the annotation reader.
        num_warnings: images and boxes that are odd and were used.
        is_main: whether this process is the one to report it.
        ended_at: the step at which `train.patience` ended the run early, or None.
    """

    folder: RunFolder
    finished: bool
    metrics: CocoMetrics | None
    best_ap: float
    num_skipped: int
    num_warnings: int
    is_main: bool = True
    ended_at: int | None = None


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
    reuse_folder: bool = False,
) -> TrainingResult:
    """Trains an experiment.

    Args:
        config: the experiment, with a data set.
        resume: the folder and state of an interrupted run of the same experiment.
        start: weights to start from; tensors that do not fit are left random and named in a report.
        report: told of every event.
        should_stop: asked after each step; true saves and ends the run.
        reuse_folder: whether a folder of the run's name that holds no save will do for a new run.

    Raises:
        DatasetError: the data set cannot be used.
        CheckpointError: the state does not fit the experiment.
        ConfigError: the model can be run but not trained.
        DivergenceError: a loss or gradient is not finite.
    """
    with joined(config.train.timeout_s) as world:
        told = report if world.is_main else _say_nothing
        return _train(config, world, resume, start, told, should_stop, reuse_folder)


def _say_nothing(event: object) -> None:
    pass


def _train(
    config: ExperimentConfig,
    world: World,
    resume: tuple[RunFolder, dict[str, Any]] | None,
    start: ModelFile | None,
    report: Report,
    should_stop: Callable[[], bool],
    reuse_folder: bool,
) -> TrainingResult:
    writer = summary_writer() if config.train.tensorboard else None
    annotations = read_split(config, "train", report)
    has_val = config.data is not None and "val" in registry.build(config.data).split_names()
    val = read_split(config, "val", report) if has_val else None
    if val is None:
        report(Noted("no val split is configured: nothing is measured, the last weights count as the best"))
    device = choose_device(config.device)
    if world.size > 1 and device.type == "cuda":
        device = torch.device("cuda", world.local_rank)
        torch.cuda.set_device(device)
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.train.seed)
    model = build_model(config, len(annotations.class_names))
    for note in model.notes:
        report(Noted(note))
    if reasons := model.reasons_against_training():
        raise ConfigError("\n".join(reasons))
    if start is None and config.train.weights is not None and resume is None:
        start = read_start(config.train.weights, config)
    if start is not None:
        report(Noted(f"starting from given weights; {load_matching(model, start, annotations.class_names)}"))

    identity: dict[str, Any] = {
        "config": config_to_plain(config),
        "class_names": list(annotations.class_names),
        "category_ids": list(annotations.category_ids),
    }
    if resume is not None:
        _require_same_classes(resume[1], identity, resume[0].last)
    folder = resume[0] if resume is not None else _new_folder(config, world, reuse_folder)
    if world.is_main:
        folder.write_config(config_to_yaml(config))
    num_steps = config.train.num_steps(len(annotations), config.loader.batch_size * world.size)

    def predictor_of(network: DetectionModel) -> Predictor:
        names, ids = annotations.class_names, annotations.category_ids
        runtime = TorchRuntime(network, device)
        return Predictor(runtime, config.input, names, ids, batch_size=config.evaluate.batch_size, views=config.views)

    def measure(averaged: DetectionModel, split: CocoAnnotations) -> CocoMetrics:
        return evaluate(predictor_of(averaged), split, config.evaluate, world=world).metrics

    scalars = ScalarLog(folder, writer, report) if writer and world.is_main else None
    pictures = RunPictures(folder, annotations, config.input, scalars or report) if world.is_main else None
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
        report=pictures or report,
        world=world,
    )
    torch.manual_seed(config.train.seed + world.rank)  # what a network draws in training differs between processes
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
        disk_cache=config.loader.disk_cache,
        reduced_decode=config.loader.reduced_decode,
    )
    if config.loader.disk_cache is not None:
        report(Noted(stated_cost(annotations, config.input.channels, config.loader.disk_cache)))
    num_batches, repeat_factor = num_steps * config.train.accumulate, config.loader.repeat_factor
    sampler = StreamSampler(
        len(annotations),
        config.loader.batch_size,
        config.train.seed,
        start=trainer.step * config.train.accumulate,
        stop=num_batches,
        closing_from=num_batches - int(config.augment.closing_share * num_batches),
        rank=world.rank,
        world_size=world.size,
        factors=repeat_factors(annotations, repeat_factor)[1] if repeat_factor else None,
        canvases=training_canvases(config.input.canvas_hw, config.input.multi_scale, model.max_stride),
    )
    if trainer.step == 0 and world.is_main:
        _draw_first_batches(samples, sampler, annotations.class_names, folder)
    finished = trainer.run(training_batches(samples, sampler, config.loader), should_stop)
    if scalars:
        scalars.close()
    if pictures and finished and val is not None:
        load_state(model, load_model_file(folder.best).state, str(folder.best))
        pictures.draw_predictions(predictor_of(model), val, config.predict)
    problems = [*annotations.problems, *(val.problems if val is not None else ())]
    num_left_out = trainer.num_skipped + num_skipped(problems)
    num_odd = trainer.num_warnings + num_accepted(problems)
    ended_at = trainer.step if trainer.ended_early else None
    best_ap, metrics = trainer.best_ap, trainer.metrics
    return TrainingResult(folder, finished, metrics, best_ap, num_left_out, num_odd, world.is_main, ended_at)


def _new_folder(config: ExperimentConfig, world: World, reuse: bool) -> RunFolder:
    """The folder of a new run, made by process 0."""
    project, name = config.train.project.resolve(), config.train.run_name
    return RunFolder(world.shared(RunFolder.create(project, name, reuse=reuse).path if world.is_main else project))


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


@dataclass(frozen=True)
class Taken:
    """What a model took of a model file.

    Attributes:
        left: the tensors left as they were.
        known: the classes that both know, when rows of classes were taken by name.
        new: the classes whose rows were left as they were.
    """

    left: tuple[str, ...]
    known: tuple[str, ...] = ()
    new: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = ", ".join(self.left[:5]) + (f" and {len(self.left) - 5} more" if len(self.left) > 5 else "")
        tensors = f"{len(self.left)} tensors stay random: {shown}" if self.left else "every tensor was taken"
        if not (self.known or self.new):
            return tensors
        return (
            f"{tensors}; classes taken by name: {', '.join(self.known) or 'none'}; new: {', '.join(self.new) or 'none'}"
        )


def read_start(weights: Path, config: ExperimentConfig) -> ModelFile:
    """A file to start training from: a model file, or .weights of the experiment's own Darknet network, whole or not.

    Raises:
        CheckpointError: it cannot be read.
        DarknetError: it cannot be read, or is of another network.
        ConfigError: it is Darknet's and the experiment's model is not.
    """
    if not is_darknet_weights(weights):
        return load_model_file(weights)
    if not isinstance(config.model, DarknetNet.Config):
        raise ConfigError(
            f"train.weights={weights} is Darknet's, the model is not; choose model={{name: darknet, cfg: FILE.cfg}}"
        )
    return load_darknet_file(weights, config.model.cfg, partial=True)


def load_matching(model: DetectionModel, file: ModelFile, class_names: Sequence[str]) -> Taken:
    """Copies the tensors of a model file whose names and shapes fit, rows of classes by the name of the class.

    Where the classes differ, every other tensor is kept and a class that both know keeps its rows. Where a side names
    its classes by number only, all rows are copied if there are as many, else those that belong to no class.
    """
    own, rows = model.state_dict(), model.class_rows()
    by_name = list(class_names) != list(file.class_names) and is_named(class_names) and is_named(file.class_names)
    index = {name: i for i, name in enumerate(file.class_names)} if by_name else {}
    fitting: dict[str, Tensor] = {}
    for name, tensor in file.state.items():
        if name not in own or tensor.shape[1:] != own[name].shape[1:]:
            continue
        remaps = name in rows and (by_name or len(class_names) != len(file.class_names))
        if remaps and len(tensor) == rows[name].num_rows(len(file.class_names)):
            fitting[name] = rows[name].remapped(own[name], tensor, [index.get(c) for c in class_names])
        elif not remaps and tensor.shape == own[name].shape:
            fitting[name] = tensor
    model.load_state_dict(fitting, strict=False)
    left = tuple(name for name in own if name not in fitting)
    if not by_name:
        return Taken(left)
    return Taken(
        left,
        tuple(name for name in class_names if name in index),
        tuple(name for name in class_names if name not in index),
    )


def _draw_first_batches(
    samples: TrainingSamples, sampler: StreamSampler, class_names: Sequence[str], folder: RunFolder
) -> None:
    for number, keys in zip(range(NUM_DRAWN_BATCHES), sampler, strict=False):
        picture = draw_batch([samples[key] for key in keys[:16]], class_names)
        write_image(folder.path / f"train_batch{number}.jpg", picture)
