"""Cross-validation: equal folds, detections of the run that did not see an image, and the score of all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detector.cli.main import run
from detector.config.schema import config_to_yaml
from detector.data.coco import CocoAnnotations
from detector.data.folds import FoldConfig
from detector.errors import CheckpointError, ConfigError, DatasetError
from detector.evaluation.coco_metrics import score_results
from detector.models.checkpoint import load_training_state
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import evaluate_model, load_model, read_split
from detector.tasks.task import TaskConfig
from detector.workflows.cross_validation import cross_validate
from detector.workflows.diagnose import diagnose
from detector.workflows.label_review import origin_of
from detector.workflows.train import open_run

Make = Callable[..., DetectionConfig]
SHORT = ("train.iterations=2", "schedule.warmup_iterations=0", "evaluate.confidence=0.0")


def parts(annotations: CocoAnnotations, count: int, **settings: str) -> list[set[int]]:
    held_out = []
    for index in range(1, count + 1):
        rest, own = FoldConfig(index, count, **settings).divided(annotations)  # type: ignore[arg-type]
        ids = set(own.image_ids.tolist())
        assert ids | set(rest.image_ids.tolist()) == set(annotations.image_ids.tolist())
        assert not ids & set(rest.image_ids.tolist())
        assert rest.class_names == own.class_names == annotations.class_names
        held_out.append(ids)
    return held_out


def test_folds_divide_the_images_and_are_the_same_each_time(experiment: Make) -> None:
    train = read_split(experiment(), "train")
    folds = parts(train, 4)
    assert folds == parts(train, 4)
    assert sorted(len(fold) for fold in folds) == [3, 3, 3, 3]
    assert set.union(*folds) == set(train.image_ids.tolist())
    assert FoldConfig(1, 4).divided(train)[1].digest() != FoldConfig(1, 4, seed=1).divided(train)[1].digest()


def test_images_of_a_group_stay_in_one_fold(experiment: Make) -> None:
    train = read_split(experiment(), "train")
    names = [f"{'abc'[index % 3]}/{index}.jpg" for index in range(len(train))]
    grouped = replace(train, file_names=names)
    for how in ("folder", r"^(\w)/"):
        folds = parts(grouped, 3, group=how)
        letters = [{names[train.image_ids.tolist().index(i)][0] for i in fold} for fold in folds]
        assert sorted(map(sorted, letters)) == [["a"], ["b"], ["c"]]
    with pytest.raises(DatasetError, match="expected a fold for each image at most, got"):
        FoldConfig(1, 4, "folder").divided(grouped)


def test_fold_outside_of_their_number_is_refused(experiment: Make) -> None:
    with pytest.raises(ConfigError, match=r"train\.fold: expected count >= 2 and index within 1\.\.count, got 4 and 5"):
        experiment("train.fold={index: 5, count: 4}")


def test_every_image_is_scored_by_the_run_that_did_not_see_it(experiment: Make) -> None:
    config = experiment(*SHORT)
    outcome = cross_validate(config, 3)
    annotations = read_split(config, "train")
    records, of_images = [], set[int]()
    for index in range(1, 4):
        folder = outcome.folder / f"fold{index}"
        _, held_out = FoldConfig(index, 3).divided(annotations)
        loaded = load_model(folder / "weights" / "best.safetensors")
        assert loaded.config.train.fold == FoldConfig(index, 3)
        origin = origin_of(loaded.file, folder / "weights" / "best.safetensors", annotations)
        assert f"was trained on {12 - len(held_out)} of these 12 images" in origin
        found = evaluate_model(loaded, held_out)
        assert outcome.aps[index - 1] == pytest.approx(found.metrics.ap, abs=1e-12)
        records += found.results
        of_images |= set(held_out.image_ids.tolist())
        state = load_training_state(folder / "weights" / "last.safetensors")
        for name, tensor in loaded.file.state.items():  # the weights at the end, not the best of several
            np.testing.assert_array_equal(tensor, state["ema"][name])
    assert of_images == set(annotations.image_ids.tolist())
    assert outcome.metrics is not None
    expected = score_results(annotations.ground_truth(), records)
    assert outcome.metrics.stats == expected.stats
    assert outcome.metrics.num_images == len(annotations)
    written = json.loads((outcome.folder / "predictions.json").read_text())
    assert score_results(annotations.ground_truth(), written).stats == expected.stats
    assert json.loads((outcome.folder / "metrics.json").read_text())["AP"] == expected.stats["AP"]
    evidence = diagnose(outcome.folder / "fold1").evidence
    assert evidence.val is not None
    assert evidence.train.num_images + evidence.val.num_images == 12
    for read in (diagnose, load_model, open_run):
        with pytest.raises(CheckpointError, match=r"expected a single run, got a cross-validation; .* such as .*fold1"):
            read(outcome.folder)


def test_stopped_cross_validation_continues_to_the_same_numbers(experiment: Make) -> None:
    whole = cross_validate(experiment(*SHORT), 2)
    config = experiment(*SHORT, "train.run_name=stopped")
    steps: Iterator[int] = iter(range(1, 1000))
    stopped = cross_validate(config, 2, should_stop=lambda: next(steps) == 2)  # in the second run
    assert stopped.metrics is None
    assert len(stopped.aps) == 1
    first = stopped.folder / "fold1" / "weights" / "last.safetensors"
    before = first.stat().st_mtime_ns
    resumed = cross_validate(config, 2, go_on=True)
    assert resumed.folder == stopped.folder
    assert resumed.aps == whole.aps
    assert resumed.metrics is not None
    assert whole.metrics is not None
    assert resumed.metrics.stats == whole.metrics.stats
    assert first.stat().st_mtime_ns == before  # a finished fold is not trained again
    assert [(resumed.folder / "predictions.json").read_bytes()] == [(whole.folder / "predictions.json").read_bytes()]
    with pytest.raises(ConfigError, match=r"optimizer\.lr"):
        cross_validate(experiment(*SHORT, "train.run_name=stopped", "optimizer.lr=0.5"), 2, go_on=True)


def test_experiments_that_cannot_be_divided_are_refused(
    experiment: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"--folds: expected no train\.patience and no train\.val_share"):
        cross_validate(experiment("train.patience=2"), 2)
    with pytest.raises(DatasetError, match="expected a fold for each image at most, got 99 for 12 images"):
        cross_validate(experiment("train.run_name=many"), 99)
    assert not list(tmp_path.glob("runs/many*"))  # the name is free for the next try
    from detector.tasks.task import load_experiment

    classifier: TaskConfig = load_experiment("classify", [f"train.project={tmp_path}"])
    with pytest.raises(ConfigError, match="expected an experiment for a detector"):
        cross_validate(classifier, 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="--folds: expected a single process"):
        cross_validate(experiment(), 2)


def test_command_prints_the_numbers_of_all_images(
    experiment: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(config_to_yaml(experiment("train.iterations=1")), encoding="utf-8")
    assert run(["train", str(path), "--folds", "2", "--out", str(tmp_path / "cv"), "--json", "--quiet"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["folder"] == str(tmp_path / "cv")
    assert len(printed["aps"]) == 2
    assert printed["metrics"]["num_images"] == 12
    assert run(["train", str(path), "--folds", "2", "--out", str(tmp_path / "cv"), "--continue"]) == 0
    told = capsys.readouterr()
    assert "AP of each fold: " in told.out
    assert "AP of all images, each by the run that did not see it: " in told.out
    for words, expected in (
        (["--folds", "1"], "--folds: expected at least 2, got 1"),
        (["--folds", "2", "--dry-run"], "--dry-run: expected a single run, got --folds"),
        (["--group", "folder"], "--group: expected --folds too"),
    ):
        assert run(["train", str(path), *words]) == 2
        assert expected in capsys.readouterr().err
