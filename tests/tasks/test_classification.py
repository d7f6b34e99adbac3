from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detector import Classifier, Detector
from detector.cli.main import run
from detector.data.classification_batches import BatchConfig, ImageAugmentConfig, training_batches
from detector.errors import CheckpointError, ConfigError, DatasetError, MediaError
from detector.media.images import write_image
from detector.models.checkpoint import load_model_file, load_training_state
from detector.tasks.classification import ClassificationTask
from detector.tasks.classification_config import ClassificationConfig
from detector.tasks.classification_model import (
    build_scorer,
    evaluate_classifier,
    load_classifier,
    measure_images,
    read_images,
)
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import load_model
from detector.tasks.task import load_experiment, load_experiment_of
from detector.training.events import Evaluated, Event, Noted
from detector.workflows.dry_run import plan_schedule
from detector.workflows.train import open_run, train

Make = Callable[..., ClassificationConfig]


def stop_after(num_steps: int) -> Callable[[], bool]:
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) == num_steps

    return should_stop


# ---- configuration


def test_key_task_selects_the_task(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("task: classify\ndata: drawn\ninput: {fit: stretch}\n", encoding="utf-8")
    config = load_experiment(str(path))
    assert isinstance(config, ClassificationConfig)
    assert (config.input.size, config.input.fit, config.train.min_iterations) == (32, "stretch", 0)
    path.write_text("task: detect\nbase: mish-n.yaml\n", encoding="utf-8")
    assert load_experiment(str(path)) == load_experiment("mish-n")
    path.write_text("task: classfy\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.yaml:1: task: no task is named .*did you mean 'classify'"):
        load_experiment(str(path))
    path.write_text("data: drawn\ntask: [classify]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.yaml:2: task: expected a task, one of classify, detect"):
        load_experiment(str(path))
    path.write_text("task: classify\nloss: {name: task_aligned}\naugment: {mosaic: 1.0}\n", encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"mine\.yaml:2: .*cross_entropy[^\n]*\n[^\n]*mine\.yaml:3: .*augment\.mosaic"
    ):
        load_experiment(str(path))


def test_settings_of_detection_are_rejected_for_classification() -> None:
    with pytest.raises(ConfigError, match=r"input\.multi_scale: expected 0 for classification"):
        load_experiment("classify", ["input.multi_scale=0.5"])
    with pytest.raises(ConfigError, match="multiple of 32"):
        train(load_experiment("classify", ["input.size=48", "data.num_train=10", "data.num_val=10"]))


# ---- a run


def test_run_writes_its_files_and_named_metrics(classifier_experiment: Make) -> None:
    events: list[Event] = []
    result = train(classifier_experiment(), report=events.append)
    assert result.finished
    with (result.folder.path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("epoch", "step", "time", "train/entropy_loss"),
        *("metrics/top1", "metrics/top5", "metrics/mean_class", "metrics/entropy", "lr/pg0"),
    ]
    assert [row["step"] for row in rows] == ["3", "6"]
    measured = [event.metrics for event in events if isinstance(event, Evaluated)]
    assert [f"{metrics.headline:.5f}" for metrics in measured] == [row["metrics/top1"] for row in rows]
    assert result.best == max(metrics.headline for metrics in measured)
    assert result.metrics is measured[-1]
    assert {path.name for path in result.folder.path.iterdir()} == {
        *("config.yaml", "results.csv", "train_batch0.jpg", "weights")
    }
    assert load_experiment(str(result.folder.path / "config.yaml")) == classifier_experiment()


def test_best_file_has_the_metrics_that_the_run_reported(classifier_experiment: Make) -> None:
    result = train(classifier_experiment("train.evaluations=1"))
    loaded = load_classifier(result.folder.best)
    metrics = evaluate_classifier(loaded, read_images(loaded.config, "val"))
    assert result.metrics is not None
    assert metrics.to_plain() == result.metrics.to_plain()
    assert load_model_file(result.folder.best).metrics["top1"] == result.best


@pytest.mark.parametrize(
    "overrides",
    [
        ("augment.mixup=0.4", "augment.cutout=6", "train.ema_horizon=0.5"),
        ("train.accumulate=2", "model.backbone=plain", "model.dropout=0.3"),
        ("optimizer=ranger", "model.backbone={name: se_resnet18, stem: small}", "train.precision=bf16"),
    ],
    ids=["mixup", "accumulate-dropout", "ranger-bf16"],
)
def test_stopped_run_resumes_to_the_same_bits(overrides: tuple[str, ...], classifier_experiment: Make) -> None:
    config = classifier_experiment(*overrides)
    whole = train(config)
    stopped = train(config, should_stop=stop_after(4))
    assert not stopped.finished
    found, folder, state = open_run(stopped.folder.path, config)
    assert found == config
    assert train(found, resume=(folder, state)).finished
    ours, theirs = (load_training_state(r.last) for r in (folder, whole.folder))
    for name in ("model", "ema"):
        assert ours[name].keys() == theirs[name].keys()
        assert all(torch.equal(ours[name][key], theirs[name][key]) for key in ours[name])
    assert ours["metrics"] == theirs["metrics"]


def test_resuming_with_another_config_is_rejected(classifier_experiment: Make) -> None:
    stopped = train(classifier_experiment(), should_stop=stop_after(1))
    with pytest.raises(ConfigError, match=r"augment\.cutout: 3 here, 0 there"):
        open_run(stopped.folder.path, classifier_experiment("augment.cutout=3"))


def test_model_overfits_a_few_images(classifier_experiment: Make) -> None:
    config = classifier_experiment(
        *("data.num_train=20", "loader.batch_size=20", "train.iterations=60", "train.evaluations=0"),
        *("augment.crop_padding=0", "augment.flip_horizontal=0", "optimizer.lr=0.003", "train.ema_horizon=0.05"),
        "model.backbone={name: plain, layers: 6, stride: 4, norm: none}",
        "model.width=0.5",
    )
    result = train(config)
    loaded = load_classifier(result.folder.best)
    assert evaluate_classifier(loaded, read_images(loaded.config, "train")).headline > 0.9


def test_image_folders_are_trained_on_and_broken_images_are_reported(
    classifier_experiment: Make, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for name, colour in (("dark", 40), ("light", 200)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(12):
            image = rng.integers(colour - 30, colour + 30, (20, 24, 3)).astype(np.uint8)
            write_image(tmp_path / "data" / name / f"{index}.png", image)
    (tmp_path / "data" / "dark" / "0.png").write_bytes(b"no image")
    events: list[Event] = []
    data = f"data={{name: folders, root: {tmp_path}/data, val_share: 0.25}}"
    network = "model.backbone={name: plain, layers: 6, stride: 4, norm: none}"
    words = ("train.iterations=40", "optimizer.lr=0.003", "model.width=0.125", "loader.batch_size=8", "device=cpu")
    config = load_experiment("classify", [data, network, *words, f"train.project={tmp_path}/runs"])
    result = train(config, report=events.append)
    assert result.num_skipped == 1
    assert any("image that cannot be read" in event.text for event in events if isinstance(event, Noted))
    assert result.best == 1.0
    assert load_model_file(result.folder.best).class_names == ("dark", "light")


def test_class_that_is_only_in_the_val_split_is_rejected(tmp_path: Path) -> None:
    for place in ("train/a", "train/b", "val/a", "val/c"):
        (tmp_path / place).mkdir(parents=True)
        write_image(tmp_path / place / "x.png", np.zeros((32, 32, 3), np.uint8))
    config = load_experiment("classify", [f"data={{name: folders, root: {tmp_path}}}"])
    assert isinstance(config, ClassificationConfig)
    with pytest.raises(DatasetError, match="got also c"):
        ClassificationTask(config, lambda event: None)


def test_data_set_with_one_class_is_rejected(tmp_path: Path) -> None:
    """This happens if the parent of the folder of classes is given."""
    for name in ("a", "b"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        write_image(tmp_path / "mine" / name / "x.png", np.zeros((32, 32, 3), np.uint8))
    config = load_experiment("classify", [f"data={{name: folders, root: {tmp_path}}}"])
    assert isinstance(config, ClassificationConfig)
    with pytest.raises(DatasetError, match="expected at least two classes, got mine alone"):
        ClassificationTask(config, lambda event: None)


# ---- evaluation


def test_logits_do_not_depend_on_the_other_images_in_the_batch(classifier_experiment: Make) -> None:
    loaded = load_classifier(train(classifier_experiment("train.iterations=1")).folder.best)
    split = read_images(loaded.config, "val")
    scorer = build_scorer(loaded, 7)
    together = scorer.logits(split.images)
    alone = np.concatenate([scorer.logits(split.images[i : i + 1]) for i in range(len(split))])
    assert np.array_equal(together, alone)
    assert measure_images(scorer, split).num_images == 20


def test_loader_makes_a_batch_within_20_ms() -> None:
    """This is a tenth of a training step on one core, for a batch of 128."""
    import time

    config = load_experiment_of(ClassificationConfig, "classify", ["data.num_train=256", "data.num_val=10"])
    split = read_images(config, "train")
    batches = training_batches(split, BatchConfig(128), ImageAugmentConfig(cutout=8, mixup=0.2), 0, start=0, stop=20)
    taken = []
    for _ in range(20):
        started_s = time.process_time()  # other work on the cores does not count
        next(batches)
        taken.append(time.process_time() - started_s)
    assert min(taken) < 0.02


# ---- the command line and the Python interface


@pytest.fixture
def trained(classifier_experiment: Make) -> Path:
    return train(classifier_experiment("train.iterations=2")).folder.best


def test_train_evaluate_compare_and_predict_from_the_command_line(
    classifier_experiment: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["model.width=0.125", "data.num_train=20", "data.num_val=20", "loader.batch_size=8", "device=cpu"]
    assert run(["train", "classify", *words, "train.iterations=2", "train.evaluations=1", "--json", "-q"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert Path(summary["run"]) == tmp_path / "runs" / "classify" / "train"
    assert summary["best_top1"] == summary["metrics"]["top1"]
    assert run(["evaluate", summary["weights"], "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == summary["best_top1"]
    assert (tmp_path / "runs" / "classify" / "val" / "metrics.json").is_file()
    assert run(["evaluate", summary["weights"], "-q"]) == 0
    assert "most often taken for" in capsys.readouterr().out
    assert run(["compare", summary["run"], "runs/classify/val"]) == 0
    assert "top1 of class  (1)    (2)" in capsys.readouterr().out
    assert run(["compare", summary["run"], "runs/classify/val", "--json"]) == 0
    assert [r["top1"] for r in json.loads(capsys.readouterr().out)["runs"]] == [summary["best_top1"]] * 2

    write_image(tmp_path / "a.png", np.full((40, 50, 3), 90, np.uint8))
    (tmp_path / "b.png").write_bytes(b"no image")
    assert run(["predict", summary["weights"], "a.png", "b.png", "--strict"]) == 5
    said = capsys.readouterr()
    assert said.out.splitlines()[1] == "b.png: not read"
    assert run(["predict", summary["weights"], "a.png", "--json", "-q"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record["classes"]) == 5
    (tmp_path / "taken" / "predictions.json").mkdir(parents=True)
    assert run(["predict", summary["weights"], "a.png", "--save-dir", "taken"]) == 3
    assert "predictions.json cannot be written: Is a directory; check the disk" in capsys.readouterr().err
    assert f"a.png: {record['classes'][0]['class']} {record['classes'][0]['probability']:.3f}" in said.out


def test_schedule_plot_and_dry_run_keep_no_run_folder(
    classifier_experiment: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_schedule(classifier_experiment())
    assert (plan.num_steps, plan.closing_from, plan.evaluations) == (6, 6, [3, 6])
    assert plan.num_epochs == pytest.approx(6 * 8 / 40)
    words = ["model.width=0.125", "data.num_train=40", "data.num_val=20", "loader.batch_size=8", "device=cpu"]
    words += ["train.iterations=3", "train.evaluations=1", "evaluate.batch_size=16", f"train.project={tmp_path}/runs"]
    picture = tmp_path / "plan.png"
    assert run(["train", "classify", *words, "--dry-run", "--json", "--plot-schedule", str(picture)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["num_classes"], found["num_images"], found["num_val_images"]) == (10, 40, 20)
    assert (found["num_objects"], found["num_val_objects"], found["largest_hw"]) == (None, None, None)
    assert (found["num_steps"], found["images_per_step"], found["evaluated_at"]) == (3, 8, [3])
    assert found["evaluations_s"] == pytest.approx(20 * found["val_image_s"])
    assert found["val_image_s"] > 0
    assert picture.stat().st_size > 0
    assert run(["train", "classify", *words, "--dry-run"]) == 0
    assert "training    40 images\nevaluation  20 images; " in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_options_of_detection_are_rejected(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", str(trained), "x.png", "--iou", "0.5", "--confidence", "0.3"]) == 2
    assert "--confidence, --iou: not supported by a classifier" in capsys.readouterr().err
    assert run(["evaluate", str(trained), "--metric", "voc"]) == 2


def test_detector_and_classifier_reject_each_others_files(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"got a classifier; open it as detector\.Classifier"):
        load_model(trained)
    with pytest.raises(CheckpointError, match="got a classifier"):
        Detector(trained)
    with pytest.raises(ConfigError, match=r"got one for a detector; use detector\.Detector"):
        Classifier("mish-n")
    with pytest.raises(ConfigError, match="got one for a classifier"):
        Detector("classify")


def test_python_interface_trains_evaluates_and_predicts(trained: Path, tmp_path: Path) -> None:
    classifier = Classifier(trained)
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3)).astype(np.uint8)
    found: Any = classifier.predict(image)
    assert sum(found.probabilities) == pytest.approx(1.0)
    assert list(found.probabilities) == sorted(found.probabilities, reverse=True)
    assert sorted(found.class_names) == sorted(classifier.class_names)
    assert found.top(1) == [(found.class_names[0], found.probabilities[0])]
    both: Any = classifier.predict([image, image[:20]])
    assert both[0].probabilities == pytest.approx(found.probabilities, abs=1e-6)
    with pytest.raises(MediaError):
        classifier.predict([tmp_path / "missing.png"])
    assert classifier.evaluate().num_images == 20
    before = load_model_file(trained).state["linear.weight"]
    drawn = {"name": "drawn", "num_train": 12, "num_val": 10}
    result = classifier.train(train={"iterations": 1, "run_name": "again"}, data=drawn)
    assert result.folder.path.name == "again"
    assert not torch.equal(load_model_file(result.folder.best).state["linear.weight"], before)
    with pytest.raises(CheckpointError, match="no weights yet"):
        Classifier("classify").predict(image)


def test_detector_starts_from_the_backbone_of_a_classifier(trained: Path, tiny_shapes: Path, tmp_path: Path) -> None:
    config = load_experiment(
        "mish-n",
        [
            *("model.width=0.125", "model.depth=0.1", "input.size=64"),
            *("loader.workers=0", "loader.batch_size=2", "train.iterations=1"),
            *("train.evaluations=0", "augment.albumentations=[]", "device=cpu", "optimizer.lr=1e-9"),
            *(f"train.weights={trained}", f"train.project={tmp_path}/detect"),
            f"data={{name: coco, train: {{annotations: {tiny_shapes}/annotations/train.json, "
            f"images: {tiny_shapes}/images/train}}}}",
        ],
    )
    assert isinstance(config, DetectionConfig)
    events: list[Event] = []
    result = train(config, report=events.append)
    start, state = load_model_file(trained).state, load_training_state(result.folder.last)["model"]
    own = [name for name in state if name.startswith("backbone.") and state[name].is_floating_point()]
    weights = [name for name in own if name.endswith("weight")]
    assert len(weights) > 20
    assert all(torch.allclose(state[name], start[name], atol=1e-5) for name in weights)
    assert any("starting from given weights" in event.text for event in events if isinstance(event, Noted))
