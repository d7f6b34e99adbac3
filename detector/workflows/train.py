"""Training from an experiment to a run folder, for new and for interrupted runs of any task."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from detector.config.schema import config_from_plain, config_to_plain, config_to_yaml, differences
from detector.darknet.darknet_model_file import is_darknet_weights, load_darknet_file
from detector.darknet.network import DarknetNet
from detector.data.problems import num_accepted, num_skipped
from detector.errors import CheckpointError, ConfigError
from detector.models.checkpoint import (
    ModelFile,
    RunIdentity,
    TrainingState,
    load_model_file,
    load_state,
    load_training_state,
)
from detector.models.class_rows import is_named
from detector.models.contracts import TrainableModel
from detector.models.precision import choose_device, keep_freed_memory
from detector.structures.metrics import Metrics
from detector.tasks.task import TaskConfig, open_task, task_of
from detector.training.distributed import World, joined, with_shared_statistics
from detector.training.events import Noted, Report
from detector.training.run_folder import RunFolder
from detector.training.scalar_log import ScalarLog, summary_writer
from detector.training.trainer import Recipe, RunPlan, Trainer


@dataclass(frozen=True)
class TrainingResult:
    """Outcome of a training run.

    Attributes:
        folder: the run folder.
        finished: false if the run was stopped before its end.
        metrics: the metrics of the last evaluation, or None.
        best: the best headline number of the run (AP, or top-1 accuracy), or -1.
        num_skipped: images and boxes that were skipped: not readable, or refused by the annotation reader.
        num_warnings: images and boxes that were used with a warning.
        is_main: whether this process is the one that reports.
        ended_at: the step at which early stopping (`train.patience`) ended the run, or None.
        batch_size: images of a batch of one process, given or measured.
    """

    folder: RunFolder
    finished: bool
    metrics: Metrics | None
    best: float
    num_skipped: int
    num_warnings: int
    is_main: bool = True
    ended_at: int | None = None
    batch_size: int = 0


def open_run(run: Path, asked: TaskConfig | None = None) -> tuple[TaskConfig, RunFolder, TrainingState]:
    """Return the experiment, folder and state of an interrupted run.

    Args:
        run: the run folder, or its `weights/last.safetensors`.
        asked: an experiment that must agree with that of the run, so that the same command can be given again.
            Settings that change no number may differ and are taken from it: the device, the workers, caches and
            timeout of the loader, and the timeout between processes.

    Raises:
        CheckpointError: there is no state to resume, or `asked` differs; every difference is listed.
    """
    last = _state_file(run)
    state = load_training_state(last)
    config = config_from_plain(TaskConfig, state["config"], str(last))
    if asked is not None:
        config = config.resumed_as(asked)
        asked = asked.with_batch_size(config.loader.batch_size)  # the one measured when the run began stays
        found = differences(config_to_plain(asked), config_to_plain(config))
        if found:
            raise CheckpointError(
                f"{last}: expected the configuration that the run began with, got {len(found)} differences: "
                f"{'; '.join(found)}; drop them or start a new run"
            )
    return config, RunFolder(last.parent.parent), state


def _state_file(run: Path) -> Path:
    """Return the training state of a run folder; `last.pt`, which older versions wrote, may have been replaced."""
    folder = RunFolder(run if run.is_dir() else run.parent.parent)
    if run.is_dir() or (run == folder.superseded and not run.exists()):
        return folder.saved_state or folder.last
    return run


def train(
    config: TaskConfig,
    *,
    resume: tuple[RunFolder, TrainingState] | None = None,
    start: ModelFile | None = None,
    report: Report = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
    reuse_folder: bool = False,
) -> TrainingResult:
    """Train an experiment of any task.

    Args:
        config: the experiment, with a data set.
        resume: the folder and state of an interrupted run of the same experiment.
        start: weights to start from; tensors that do not fit stay random and are named in a report.
        report: receives every event.
        should_stop: called after each step; if true, the run is saved and ends.
        reuse_folder: whether a new run may use an existing folder of its name that holds no save.

    Raises:
        DatasetError: the data set cannot be used.
        CheckpointError: the state does not fit the experiment.
        ConfigError: the model cannot be trained.
        DivergenceError: a loss or gradient is not finite.
    """
    with joined(config.train.timeout_s) as world:
        told = report if world.is_main else _say_nothing
        config = task_of(type(config)).choose_batch_size(config, world, told)
        return _train(config, world, resume, start, told, should_stop, reuse_folder)


def _say_nothing(event: object) -> None:
    pass


def _train(
    config: TaskConfig,
    world: World,
    resume: tuple[RunFolder, TrainingState] | None,
    start: ModelFile | None,
    report: Report,
    should_stop: Callable[[], bool],
    reuse_folder: bool,
) -> TrainingResult:
    writer = summary_writer() if config.train.tensorboard else None
    task = open_task(config, report)
    if not task.has_val:
        report(Noted("no val split is configured: nothing is measured, the last weights count as the best"))
    device = choose_device(config.device)
    if world.size > 1 and device.type == "cuda":
        device = torch.device("cuda", world.local_rank)
        torch.cuda.set_device(device)
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.train.seed)
    given = start or (config.train.weights if resume is None else None)
    model = _prepared(task.model(), task.class_names, config, device, given, report)
    identity: RunIdentity = {
        "config": config_to_plain(config),
        "class_names": list(task.class_names),
        "category_ids": list(task.category_ids),
    }
    if resume is not None:
        _require_same_classes(resume[1], identity, resume[0].last)
    folder = resume[0] if resume is not None else _new_folder(config, world, reuse_folder)
    if world.is_main:
        folder.write_config(config_to_yaml(config))
    num_steps = config.train.num_steps(task.num_images, task.batch_size * world.size)
    scalars = ScalarLog(folder, writer, report) if writer and world.is_main else None
    trainer = Trainer(
        model,
        task.loss(model),
        Recipe(config.train, config.optimizer, config.schedule),
        RunPlan(num_steps, task.num_images, task.batch_size, device, identity),
        folder,
        evaluate=functools.partial(task.measure, device=device, world=world) if task.has_val else None,
        report=task.drawn_reports(folder, scalars or report) if world.is_main else report,
        world=world,
    )
    torch.manual_seed(config.train.seed + world.rank)  # what a network draws in training differs between processes
    if resume is not None:
        trainer.restore(resume[1])
    finished = trainer.run(task.batches(model, trainer.step, num_steps, folder, world, report), should_stop)
    if scalars:
        scalars.close()
    if world.is_main and finished and task.has_val:
        load_state(model, load_model_file(folder.best).state, str(folder.best))
        task.draw_end(model, device)
    num_left_out = trainer.num_skipped + num_skipped(task.problems)
    num_odd = trainer.num_warnings + num_accepted(task.problems)
    ended_at = trainer.step if trainer.ended_early else None
    best, metrics = trainer.best, trainer.metrics
    return TrainingResult(
        folder, finished, metrics, best, num_left_out, num_odd, world.is_main, ended_at, task.batch_size
    )


def _prepared(
    model: TrainableModel,
    class_names: Sequence[str],
    config: TaskConfig,
    device: torch.device,
    start: ModelFile | Path | None,
    report: Report,
) -> TrainableModel:
    """Return a new model as it is trained: with the tensors that fit of the weights to start from.

    Raises:
        ConfigError: the model cannot be trained.
    """
    if config.train.sync_batch_norm:
        model = with_shared_statistics(model, device)
    for note in model.notes:
        report(Noted(note))
    if reasons := model.reasons_against_training():
        raise ConfigError("\n".join(reasons))
    if isinstance(start, Path):  # read only now, because it may draw random numbers
        start = read_start(start, config)
    if start is not None:
        report(Noted(f"starting from given weights; {load_matching(model, start, class_names)}"))
    return model


def _new_folder(config: TaskConfig, world: World, reuse: bool) -> RunFolder:
    """Create the folder of a new run in process 0 and return it in every process."""
    project, name = config.train.project.resolve(), config.train.run_name
    return RunFolder(world.shared(RunFolder.create(project, name, reuse=reuse).path if world.is_main else project))


def _require_same_classes(state: TrainingState, identity: RunIdentity, last: Path) -> None:
    found = [
        f"{what}: {identity[what]!r} in the data set, {state[what]!r} in the run"
        for what in ("class_names", "category_ids")
        if list(state[what]) != identity[what]
    ]
    if found:
        raise CheckpointError(
            f"{last}: expected the classes that the run began with, got {'; '.join(found)}; start a new run"
        )


@dataclass(frozen=True)
class Taken:
    """The tensors that a model took from a model file.

    Attributes:
        left: the tensors that did not change.
        known: the classes that both have, if class rows were copied by name.
        new: the classes whose rows did not change.
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


def read_start(weights: Path, config: TaskConfig) -> ModelFile:
    """Read a file to start training from: a model file, or .weights, whole or partial, of the experiment's network.

    Raises:
        CheckpointError: the file cannot be read.
        DarknetError: the .weights file cannot be read, or is of another network.
        ConfigError: the file is Darknet's and the model of the experiment is not.
    """
    if not is_darknet_weights(weights):
        return load_model_file(weights)
    if not isinstance(config.model, DarknetNet.Config):
        raise ConfigError(
            f"train.weights={weights}: expected a model file, got Darknet's .weights for another kind of model; "
            f"choose model={{name: darknet, cfg: FILE.cfg}}"
        )
    return load_darknet_file(weights, config.model.cfg, partial=True)


def load_matching(model: TrainableModel, file: ModelFile, class_names: Sequence[str]) -> Taken:
    """Copy the tensors of a model file whose names and shapes fit, with class rows matched by class name.

    If the classes differ, every other tensor is copied, and classes that both have keep their rows. If one side has no
    class names, all rows are copied if there are as many classes, else only rows that belong to no class.
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
