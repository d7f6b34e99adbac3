"""Training from an experiment to a run folder, for new and for interrupted runs of any task."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from detector.config import registry
from detector.config.schema import config_from_plain, config_to_plain, config_to_yaml, differences, flattened
from detector.data.canvas_sizes import training_canvases
from detector.data.problems import num_accepted, num_skipped
from detector.errors import CheckpointError, ConfigError
from detector.io.folders import absolute
from detector.io.machine import are_cores_busy
from detector.io.nouns import plural
from detector.models.checkpoint import (
    ModelFile,
    RunIdentity,
    TrainingState,
    load_model_file,
    load_state,
    load_training_state,
)
from detector.models.contracts import TrainableModel
from detector.models.precision import choose_device, keep_freed_memory
from detector.models.published_weights import require_single_run
from detector.structures.metrics import Metrics
from detector.tasks.task import Task, TaskConfig, open_task, task_of
from detector.training.batch_norm import require_values
from detector.training.distributed import World, joined, with_shared_statistics
from detector.training.events import Noted, Report
from detector.training.logger import Logger
from detector.training.run_folder import RunFolder
from detector.training.scalar_log import ScalarLog
from detector.training.tensorboard_logger import TensorBoardLogger
from detector.training.trainer import Recipe, RunPlan, Trainer
from detector.workflows.starting_weights import load_matching, read_start


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


def open_run(
    run: Path, asked: TaskConfig | None = None, moved: Sequence[str] = ()
) -> tuple[TaskConfig, RunFolder, TrainingState]:
    """Return the experiment, folder and state of an interrupted run.

    Args:
        run: the run folder, or its `weights/last.safetensors`.
        asked: an experiment that must agree with that of the run, so that the same command can be given again.
            Settings that change no number may differ and are taken from it: the device, the workers, caches and
            timeout of the loader, the timeout between processes, and the place of the data.
        moved: overrides of the key `data`, if the data have moved since the run began.

    Raises:
        CheckpointError: there is no state to resume.
        ConfigError: `asked` differs; every difference is listed.
    """
    last = _state_file(run)
    state = load_training_state(last)
    config = config_from_plain(TaskConfig, state["config"], str(last), moved)
    if asked is not None:
        config = config.resumed_as(asked)
        asked = asked.with_choices_of(config)  # such as the batch size measured when the run began
        if asked.train.weights is not None and asked.optimizer.lr != config.optimizer.lr:
            asked = asked.for_fine_tuning()
        asked = replace(asked, train=config.train.resumed_as(asked.train))
        found = differences(config_to_plain(asked), config_to_plain(config))
        if found:
            raise ConfigError(
                f"{last}: expected the configuration that the run began with, got {plural(len(found), 'difference')}: "
                f"{'; '.join(found)}; drop them or start a new run"
            )
    return config, RunFolder(last.parent.parent), state


def _state_file(run: Path) -> Path:
    """Return the training state of a run folder; `last.pt`, which older versions wrote, may have been replaced."""
    folder = RunFolder(run if run.is_dir() else run.parent.parent)
    require_single_run(run)
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
        if resume is None:
            config = chosen_settings(config, start is not None or config.train.weights is not None, told)
        config = task_of(type(config)).choose_batch_size(config, world, told)
        return _train(config, world, resume, start, told, should_stop, reuse_folder)


def chosen_settings(config: TaskConfig, is_fine_tuning: bool, report: Report) -> TaskConfig:
    """Return the experiment of a new run with the settings that are left to the run; report a lower learning rate."""
    config = config.for_canvas()
    if not is_fine_tuning:
        return config
    tuned, warmup = config.for_fine_tuning(), config.schedule.warmup_iterations
    if tuned is not config:
        report(
            Noted(
                f"fine-tuning: optimizer.lr={config.optimizer.lr:g} is lowered to {tuned.optimizer.lr:g} "
                f"(optimizer.fine_tuning_lr) after a warm-up of up to {warmup} steps (schedule.warmup_iterations), "
                f"because the run starts from given weights; optimizer.fine_tuning_lr=null keeps the rate"
            )
        )
    return tuned


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
    loggers = _loggers_of(config)
    task = open_task(config, report)
    if not task.has_val:
        report(Noted("no val split is configured: nothing is measured, the last weights count as the best"))
    device = _device_of(config, world)
    torch.manual_seed(config.train.seed)
    given = start or (config.train.weights if resume is None else None)
    model, origin = _prepared(task.model(), task.class_names, config, device, given, report, is_new=resume is None)
    identity: RunIdentity = {
        "config": config_to_plain(config),
        "class_names": list(task.class_names),
        "category_ids": list(task.category_ids),
        "provenance": {**(resume[1].get("provenance", {}) if resume is not None else origin), **task.provenance},
        "data_digest": task.data_digest,
    }
    if resume is not None:
        _require_same_data(resume[1], identity, resume[0].last, report)
    folder = resume[0] if resume is not None else _new_folder(config, world, reuse_folder)
    if world.is_main:
        folder.write_config(config_to_yaml(config))
    num_steps = _announced_steps(config, task, world, report)
    settings = flattened(identity["config"])
    scalars = ScalarLog(folder, loggers, settings, report) if loggers and world.is_main else None
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
    note_busy_cores(trainer.precision.name, device, report)
    finished = trainer.run(task.batches(model, trainer.step, num_steps, folder, world, report), should_stop)
    if scalars:
        scalars.close()
    if world.is_main and finished and task.has_val:
        load_state(model, load_model_file(folder.best).state, str(folder.best))
        task.draw_end(model, device)
    num_left_out = trainer.num_skipped + num_skipped(task.problems)
    num_odd = trainer.num_warnings + num_accepted(task.problems)
    best, ended_at = trainer.best, trainer.step if trainer.ended_early else None
    return TrainingResult(
        folder, finished, trainer.metrics, best, num_left_out, num_odd, world.is_main, ended_at, task.batch_size
    )


def note_busy_cores(precision: str, device: torch.device, report: Report) -> None:
    """Report that one thread may be faster: those of a bf16 gradient of weights wait for each other in a loop.

    Without a core for each, a thread spends its time slices waiting (docs/benchmarks/waiting.md).
    """
    num_threads = torch.get_num_threads()
    if precision == "bf16" and device.type == "cpu" and num_threads > 1 and are_cores_busy():
        report(
            Noted(
                f"other programs use the cores, and the {num_threads} threads of a bf16 step wait for each other: one "
                f"thread (OMP_NUM_THREADS=1) or train.precision=fp32 may be several times as fast"
            )
        )


def _loggers_of(config: TaskConfig) -> list[Logger]:
    """Return the loggers of an experiment, each with its library imported.

    Raises:
        ConfigError: a library is missing.
    """
    listed = list(config.train.loggers)
    if config.train.tensorboard and not any(isinstance(each, TensorBoardLogger.Config) for each in listed):
        listed.append(TensorBoardLogger.Config())
    return [registry.build(each) for each in listed]


def _device_of(config: TaskConfig, world: World) -> torch.device:
    """Return the device of this process, prepared for training."""
    device = choose_device(config.device)
    if world.size > 1 and device.type == "cuda":
        device = torch.device("cuda", world.local_rank)
        torch.cuda.set_device(device)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def _require_expressible(model: TrainableModel, config: TaskConfig) -> None:
    """Reject a model that cannot express an object as large as the largest canvas.

    Raises:
        ConfigError: the canvas is too large for it.
    """
    canvases = training_canvases(config.input.canvas_hw, config.input.multi_scale, model.max_stride)
    height, width = canvases[-1] if canvases else config.input.canvas_hw
    if max(height, width) > model.longest_side_px:
        raise ConfigError(
            f"model.head: expected a head that can express objects as large as the largest canvas, {height} x {width} "
            f"px, got one for sides of up to {model.longest_side_px:.0f} px; leave model.head.bins out, so that it "
            f"follows the canvas, or lower input.size or input.multi_scale"
        )


def _announced_steps(config: TaskConfig, task: Task[Any, Any], world: World, report: Report) -> int:
    """Return the steps of the run, and report why they are more than the steps of its epochs."""
    images_per_batch = task.batch_size * world.size
    for note in config.train.notes(task.num_images, images_per_batch):
        report(Noted(note))
    return config.train.num_steps(task.num_images, images_per_batch)


def _prepared(
    model: TrainableModel,
    class_names: Sequence[str],
    config: TaskConfig,
    device: torch.device,
    start: ModelFile | Path | None,
    report: Report,
    *,
    is_new: bool,
) -> tuple[TrainableModel, dict[str, str]]:
    """Return a new model with the tensors that fit of the weights to start from, and the provenance of these.

    Raises:
        ConfigError: the model cannot be trained, or nearly nothing of the weights fits.
    """
    if is_new:  # a run that began before the check is resumed unchanged
        _require_expressible(model, config)
    if config.train.sync_batch_norm:
        model = with_shared_statistics(model, device)
    for note in model.notes:
        report(Noted(note))
    if reasons := model.reasons_against_training():
        raise ConfigError("\n".join(reasons))
    canvases = training_canvases(config.input.canvas_hw, config.input.multi_scale, model.max_stride)
    require_values(
        model, model.max_stride, config.loader.batch_size, canvases[0] if canvases else config.input.canvas_hw
    )
    named = start if isinstance(start, Path) else None
    if isinstance(start, Path):  # read only now, because it may draw random numbers
        start = read_start(start, config)
    if start is not None:
        taken = load_matching(model, start, class_names)
        if not config.train.weights_partial:
            taken.require_enough("the weights to start from" if named is None else f"train.weights={named}")
        report(Noted(f"starting from given weights; {taken}"))
    return model, {} if start is None else start.provenance


def _new_folder(config: TaskConfig, world: World, reuse: bool) -> RunFolder:
    """Create the folder of a new run in process 0 and return it in every process."""
    project, name = absolute(config.train.project), config.train.run_name
    return RunFolder(world.shared(RunFolder.create(project, name, reuse=reuse).path if world.is_main else project))


def _require_same_data(state: TrainingState, identity: RunIdentity, last: Path, report: Report) -> None:
    """Reject another teacher or other classes, and other annotations where the data have moved; report changed ones.

    Raises:
        CheckpointError: the teacher or the data set is not that of the run.
    """
    teachers = [each.get("provenance", {}).get("teacher_sha256", "none") for each in (state, identity)]
    if teachers[0] != teachers[1]:
        raise CheckpointError(
            f"{last}: expected the teacher that the run began with, SHA-256 {teachers[0][:12]}, got {teachers[1][:12]}"
            f"; put its file back, or start a new run with train.weights={last.parent.parent}"
        )
    found = [
        f"{what}: {identity[what]!r} in the data set, {state[what]!r} in the run"
        for what in ("class_names", "category_ids")
        if list(state[what]) != identity[what]
    ]
    if found:
        raise CheckpointError(
            f"{last}: expected the classes that the run began with, got {'; '.join(found)}; start a new run"
        )
    known = state.get("data_digest")  # absent from states of older versions
    if known and known == identity["data_digest"]:
        return
    # Read as a configuration: the state of an older version lacks the keys that came later.
    before = config_to_plain(config_from_plain(TaskConfig, state["config"], str(last)))
    if before["data"] == identity["config"]["data"]:
        if known:
            report(Noted("the annotations have changed since the run began, so its numbers are those of both versions"))
        return
    got = "other images or boxes" if known else "a run of an older version, which did not note a hash of them"
    raise CheckpointError(
        f"{last}: expected the annotations that the run began with, at the new place of the data, got {got}; put the "
        f"data where they were, or start a new run with train.weights={last.parent.parent}"
    )
