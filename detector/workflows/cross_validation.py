"""Cross-validation: a run for each fold, every image predicted by the run that did not see it, and one score of all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from detector.data.folds import FoldConfig
from detector.errors import ConfigError
from detector.evaluation.coco_metrics import CocoMetrics, score_results
from detector.evaluation.evaluator import detect_split
from detector.evaluation.results_file import read_results
from detector.evaluation.scoring_arrays import GroundTruth, Results
from detector.io.folders import absolute
from detector.models.checkpoint import load_training_state
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import build_predictor, load_model, matched, read_split
from detector.tasks.task import TaskConfig
from detector.training.events import Noted, Report
from detector.training.run_folder import RunFolder, removed_if_empty
from detector.workflows.train import TrainingResult, open_run, train

OUT_OF_FOLD = "out_of_fold.json"  # the detections of the images of a fold, in the folder of its run


@dataclass(frozen=True)
class CrossValidation:
    """Outcome of a cross-validation.

    Attributes:
        folder: the folder with a run folder for each fold.
        aps: AP of each fold, by the run that held it out.
        metrics: the numbers of all images together, each predicted by the run that did not see it; None if the
            cross-validation was stopped before its end.
        num_skipped: images and boxes that were skipped in the first run.
        num_warnings: images and boxes that were used with a warning in the first run.
    """

    folder: Path
    aps: tuple[float, ...]
    metrics: CocoMetrics | None
    num_skipped: int
    num_warnings: int

    def to_plain(self) -> dict[str, object]:
        """Return the outcome as plain data for JSON."""
        metrics = self.metrics.to_plain() if self.metrics else None
        return {**vars(self), "folder": str(self.folder), "aps": list(self.aps), "metrics": metrics}


def cross_validate(
    config: TaskConfig,
    num_folds: int,
    group: str | None = None,
    *,
    go_on: bool = False,
    report: Report = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> CrossValidation:
    """Train a run for each fold of the training split, then score the detections of all held-out images together.

    Every run is evaluated once, at its end, so that no weights are chosen by the images that they are scored on. The
    splits `val` and `test` are not read. The run folder of the experiment holds a run folder for each fold, the results
    file `predictions.json` and the numbers `metrics.json`.

    Args:
        config: the experiment of the runs.
        num_folds: number of folds.
        group: what keeps images in one fold, as in `FoldConfig`.
        go_on: whether to continue the cross-validation of this name; finished folds are not trained again.
        report: receives every event.
        should_stop: called after each step; if true, the run is saved and the cross-validation ends.

    Raises:
        ConfigError: the experiment is not one of detection, has early stopping, or runs in several processes.
        DetectorError: as `train`.
    """
    config = _checked(config)
    project, name = absolute(config.train.project), config.train.run_name
    folder = project / name
    if (folder / "weights").is_dir() and go_on:
        raise ConfigError(f"{folder}: expected a cross-validation to continue, got a single run; give another --out")
    if not go_on:
        folder = RunFolder.create(project, name, subfolders=()).path
    results, aps = list[TrainingResult](), []
    with removed_if_empty(folder, folder if go_on else None):
        for index in range(1, num_folds + 1):
            fold = FoldConfig(index, num_folds, group)
            settings = replace(config.train, fold=fold, project=folder, run_name=f"fold{index}")
            own = replace(config, train=settings)
            report(Noted(f"fold {index} of {num_folds}"))
            run = RunFolder(folder / f"fold{index}")
            if _is_done(run, own):
                aps.append(float(load_training_state(run.last)["best_ap"]))
                continue
            result = _trained(run, own, report, should_stop)
            results.append(result)
            if not result.finished:
                break
            _write_detections(result.folder, own)
            aps.append(result.best)
    first = results[0] if results else None
    skipped, warned = (first.num_skipped, first.num_warnings) if first else (0, 0)
    metrics = _scored(config, folder, num_folds) if len(aps) == num_folds else None
    return CrossValidation(folder, tuple(aps), metrics, skipped, warned)


def _checked(config: TaskConfig) -> DetectionConfig:
    """Return an experiment with one evaluation, at the end of its run."""
    if not config.has_folds:
        raise ConfigError("--folds: expected an experiment for a detector, got one for a classifier; leave it out")
    if config.train.patience or config.train.val_share != (0.0, 1.0):
        raise ConfigError(
            "--folds: expected no train.patience and no train.val_share, since a run is evaluated once, on its whole "
            "fold; leave them out"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("--folds: expected a single process, got several by torchrun; start it without torchrun")
    return cast("DetectionConfig", replace(config, train=replace(config.train, evaluations=1)))


def _is_done(run: RunFolder, config: DetectionConfig) -> bool:
    """Return whether the detections of a fold are there; reject those of another experiment."""
    if not (run.path / OUT_OF_FOLD).is_file():
        return False
    open_run(run.path, config)
    return True


def _trained(
    run: RunFolder, config: DetectionConfig, report: Report, should_stop: Callable[[], bool]
) -> TrainingResult:
    """Train the run of a fold, from its last save on if there is one."""
    if run.saved_state is None:
        return train(config, report=report, should_stop=should_stop, reuse_folder=True)
    found, folder, state = open_run(run.path, config)
    return train(found, resume=(folder, state), report=report, should_stop=should_stop)


def _write_detections(run: RunFolder, config: DetectionConfig) -> None:
    """Write the detections of the run of a fold on the images that it held out, as a COCO results file."""
    assert config.train.fold is not None
    _, held_out = config.train.fold.divided(read_split(config, "train"))
    loaded = replace(load_model(run.best), config=config)
    loaded, held_out = matched(loaded, held_out, lambda text: None)
    found = detect_split(build_predictor(loaded, config.evaluate.batch_size), held_out, config.evaluate)
    run.write_file(OUT_OF_FOLD, json.dumps(found.results).encode())


def _scored(config: DetectionConfig, folder: Path, num_folds: int) -> CocoMetrics:
    """Return the numbers of the detections of all folds together, and write both."""
    annotations = read_split(config, "train")
    truth = GroundTruth.of_annotations(annotations)
    parts = [read_results(folder / f"fold{n}" / OUT_OF_FOLD, truth)[0] for n in range(1, num_folds + 1)]
    columns = zip(*((p.image_ranks, p.category_ranks, p.boxes_xywh, p.scores) for p in parts), strict=True)
    found = Results(*map(np.concatenate, columns))
    metrics = score_results(truth, found, backend=config.evaluate.backend, other_limits=config.evaluate.other_limits)
    whole = RunFolder(folder)
    whole.write_file("predictions.json", json.dumps(found.to_records(truth)).encode())
    whole.write_file("metrics.json", json.dumps(metrics.to_plain(), indent=1).encode())
    return metrics
