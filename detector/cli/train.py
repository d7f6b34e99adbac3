"""`detector train`."""

from __future__ import annotations

import argparse
import json
import math
import signal

from detector.cli.progress import say
from detector.cli.rehearse import dry_run, plot_schedule
from detector.cli.signals import noted_signals
from detector.cli.train_options import experiment_words
from detector.errors import ConfigError
from detector.evaluation.number_text import number_text
from detector.io.folders import absolute
from detector.io.nouns import plural
from detector.models.checkpoint import TrainingState
from detector.tasks.task import Headline, TaskConfig, load_experiment, task_of
from detector.training.run_folder import RunFolder
from detector.workflows.cross_validation import cross_validate
from detector.workflows.train import TrainingResult, open_run, train
from detector.workflows.training_progress import TrainingProgress


def _opened(arguments: argparse.Namespace) -> tuple[TaskConfig, tuple[RunFolder, TrainingState] | None]:
    """Return the experiment to train, and the folder and state of the run to resume, if any.

    Raises:
        ConfigError: a value of the experiment is wrong.
        CheckpointError: the run cannot be resumed.
    """
    names, overrides = experiment_words(arguments)
    config = load_experiment(names[0], overrides) if names else None
    resume, run = None, arguments.resume
    if config is not None and arguments.go_on:
        own = absolute(config.train.project) / config.train.run_name
        run = own if RunFolder(own).saved_state else None
    if run:
        config, folder, state = open_run(run, config, () if names else overrides)
        resume = (folder, state)
    if config is None:
        raise ConfigError("expected a configuration, got none; give a preset or file such as mish-n")
    return config, resume


def _run_folds(arguments: argparse.Namespace) -> int:
    """Train a run for each fold, print their AP and that of all images together, and return the exit code."""
    names, overrides = experiment_words(arguments)
    caught = noted_signals()
    progress = TrainingProgress(arguments.quiet, arguments.verbose)
    try:
        outcome = cross_validate(
            load_experiment(names[0], overrides),
            arguments.folds,
            arguments.group,
            go_on=arguments.go_on,
            report=progress,
            should_stop=lambda: bool(caught),
        )
    finally:
        progress.close()
    if outcome.metrics is None:
        say(f"stopped and saved in {outcome.folder}; continue with the same command, --out and --continue")
        return 128 + (caught[0] if caught else signal.SIGTERM)
    if arguments.json:
        print(json.dumps(outcome.to_plain()))
    else:
        if not arguments.quiet:
            print(outcome.metrics.to_text())
            print(f"AP of each fold: {', '.join(number_text(ap if ap >= 0 else math.nan) for ap in outcome.aps)}")
        print(f"AP of all images, each by the run that did not see it: {number_text(outcome.metrics.ap)}")
        print(f"results: {outcome.folder}")
    return 5 if arguments.strict and (outcome.num_skipped or outcome.num_warnings) else 0


def run(arguments: argparse.Namespace) -> int:
    """Train and return the exit code."""
    if arguments.folds is not None:
        return _run_folds(arguments)
    config, resume = _opened(arguments)
    if arguments.plot_schedule:
        plot_schedule(config, arguments.plot_schedule, arguments.quiet)
    if arguments.dry_run:
        return dry_run(config, arguments.json, arguments.quiet, arguments.verbose)
    if arguments.plot_schedule:
        return 0

    caught = noted_signals()  # the current step finishes, then the run is saved
    progress = TrainingProgress(arguments.quiet, arguments.verbose)
    try:
        result = train(
            config, resume=resume, report=progress, should_stop=lambda: bool(caught), reuse_folder=arguments.go_on
        )
    finally:
        progress.close()
    if not result.finished:
        say(f"stopped and saved; continue with: detector train --resume {result.folder.path}", not result.is_main)
        return 128 + (caught[0] if caught else signal.SIGTERM)  # another process of the run may have received it
    if result.is_main:
        _report(result, task_of(type(config)).headline, arguments)
    return 5 if arguments.strict and (result.num_skipped or result.num_warnings) else 0


def _report(result: TrainingResult, headline: Headline, arguments: argparse.Namespace) -> None:
    """Print the result of a finished run, for people or as JSON."""
    metrics = result.metrics
    if arguments.json:
        summary = {
            "run": str(result.folder.path),
            "weights": str(result.folder.best),
            headline.key: result.best,
            "metrics": metrics.to_plain() if metrics else None,
            "num_skipped": result.num_skipped,
            "num_warnings": result.num_warnings,
            "ended_early_at_step": result.ended_at,
        }
        print(json.dumps(summary))
    else:
        if metrics and not arguments.quiet:
            print(metrics.to_text())
        if result.num_skipped:
            say(f"{plural(result.num_skipped, 'image or box was', 'images or boxes were')} skipped", arguments.quiet)
        if result.ended_at is not None:
            say(
                f"ended early at step {result.ended_at}: {headline.label} had stopped rising (train.patience)",
                arguments.quiet,
            )
        best = number_text(result.best if result.best >= 0 else math.nan)
        print(f"best weights ({headline.label} {best}): {result.folder.best}")
