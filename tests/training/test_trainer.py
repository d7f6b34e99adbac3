from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detector.config import registry
from detector.config.schema import config_to_plain
from detector.data.coco import read_coco
from detector.data.loader import BatchRange, StreamSampler, TrainingSamples
from detector.data.synthetic_detection import draw_shapes
from detector.errors import ConfigError, DatasetError, DivergenceError
from detector.evaluation.coco_metrics import CocoMetrics
from detector.losses.loss import LossParts
from detector.media.images import read_image
from detector.models.checkpoint import RunIdentity, load_model_file, load_training_state
from detector.models.yolo import Yolo
from detector.structures.canvas import Canvas
from detector.structures.types import Batch, Targets
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import build_model
from detector.tasks.task import load_experiment
from detector.training.events import Evaluated, Event, Noted, Started, StepDone
from detector.training.run_folder import RunFolder
from detector.training.train_config import TrainConfig
from detector.training.trainer import Recipe, RunPlan, Trainer
from detector.workflows.train import TrainingResult, train

Make = Callable[..., DetectionConfig]
# Run a test on both kinds of network.
BOTH = pytest.mark.parametrize("experiment", ["mish-n", "darknet"], indirect=True)
Assert = Callable[..., None]


def rows(folder: RunFolder) -> list[dict[str, str]]:
    with (folder.path / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def loaded_samples(config: DetectionConfig) -> TrainingSamples:
    data = config.data.train  # type: ignore[union-attr]  # the experiment of these tests has a COCO data set
    annotations = read_coco(data.annotations, data.images)
    canvas = Canvas(config.input.canvas_hw, 3, config.input.fit)
    return TrainingSamples(annotations, canvas, config.augment, config.train.seed, cache_mb=1)


def batches_of(config: DetectionConfig, num_batches: int, size: int = 2) -> list[Batch]:
    samples = loaded_samples(config)
    batches = BatchRange(0, num_batches, closing_from=num_batches)
    sampler = StreamSampler(len(samples), size, config.train.seed, batches)
    return [Batch.of([samples[key] for key in keys]) for keys in sampler]


def bare_trainer(
    config: DetectionConfig,
    folder: Path,
    loss: Callable[[Yolo], Callable[[tuple[Tensor, ...], Targets], LossParts]] | None = None,
) -> Trainer:
    """Return a trainer without data or evaluation; tests pass batches to it."""
    torch.manual_seed(3)
    model = build_model(config, 6)
    assert isinstance(model, Yolo)
    names, ids = list("abcdef"), list(range(6))
    identity = RunIdentity(
        config=config_to_plain(config), class_names=names, category_ids=ids, provenance={}, data_digest=""
    )
    return Trainer(
        model,
        loss(model) if loss else registry.build(config.loss, model),
        Recipe(config.train, config.optimizer, config.schedule),
        RunPlan(config.train.num_steps(12, 2), 12, 2, torch.device("cpu"), identity),
        RunFolder.create(folder, "bare"),
        evaluate=None,
        report=lambda event: None,
    )


# --- a step ----------------------------------------------------------------------------------------------------------

PLAIN_SGD = ("optimizer={name: sgd, lr: 0.1, momentum: 0, weight_decay: 0}", "schedule={name: constant}")


class Counted:
    """Loss whose parts are means over 1 object in the first call, over 2 in the second, and so on."""

    def __init__(self, model: Yolo, config: DetectionConfig) -> None:
        self.loss, self.calls = registry.build(config.loss, model), 0

    def __call__(self, raw_maps: tuple[Tensor, ...], targets: Targets) -> LossParts:
        self.calls += 1
        return LossParts(self.loss(raw_maps, targets), torch.tensor(float(self.calls)))


def test_accumulated_batches_give_the_mean_gradient_weighted_by_count(experiment: Make, tmp_path: Path) -> None:
    config = experiment(
        *PLAIN_SGD,
        "train.accumulate=2",
        "train.iterations=1",
        "train.clip_norm=1000000",
        "schedule.warmup_iterations=0",
    )
    batches = batches_of(config, 2)
    trainer = bare_trainer(config, tmp_path, loss=lambda model: Counted(model, config))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}

    reference = bare_trainer(config, tmp_path)
    gradients: list[dict[str, Tensor]] = []
    for batch in batches:
        reference.model.zero_grad()
        parts = registry.build(config.loss, reference.model)(reference.model.train()(batch.images), batch.targets)
        torch.stack(list(parts.values())).sum().backward()
        gradients.append(
            {name: p.grad.double() for name, p in reference.model.named_parameters() if p.grad is not None}
        )

    trainer.run(batches)
    largest = 0.0
    for name, parameter in trainer.model.named_parameters():
        mean = (gradients[0][name] + 2 * gradients[1][name]) / 3
        step = (before[name].double() - parameter.detach().double()) / 0.1
        torch.testing.assert_close(step, mean, rtol=1e-3, atol=2e-5, msg=partial("{}: {}".format, name))
        largest = max(largest, float((gradients[0][name] - gradients[1][name]).abs().max()))
    assert largest > 0.1  # the two batches differ


def test_gradient_is_clipped_to_the_maximum_norm(experiment: Make, tmp_path: Path) -> None:
    config = experiment(*PLAIN_SGD, "train.iterations=1", "train.clip_norm=0.5", "schedule.warmup_iterations=0")
    trainer = bare_trainer(config, tmp_path)
    before = torch.cat([p.detach().flatten().double() for p in trainer.model.parameters()])
    trainer.run(batches_of(config, 1))
    after = torch.cat([p.detach().flatten().double() for p in trainer.model.parameters()])
    assert float((after - before).norm()) == pytest.approx(0.1 * 0.5, rel=1e-3)


class Failing:
    """Loss in which a part, or only the gradient, is not finite in a given call."""

    def __init__(self, model: Yolo, config: DetectionConfig, call: int, value: float | None) -> None:
        self.loss, self.call, self.value, self.calls = registry.build(config.loss, model), call, value, 0

    def __call__(self, raw_maps: tuple[Tensor, ...], targets: Targets) -> LossParts:
        parts = self.loss(raw_maps, targets)
        self.calls += 1
        if self.calls == self.call:
            zero = raw_maps[0].sum() * 0
            parts["dfl"] = parts["dfl"] + (zero.sqrt() if self.value is None else zero + self.value)
        return parts


@pytest.mark.parametrize("value", [math.nan, math.inf, None], ids=["nan", "inf", "gradient"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_loss_that_is_not_finite_stops_training_before_the_weights_change(
    value: float | None, accumulate: int, experiment: Make, assert_same: Assert, tmp_path: Path
) -> None:
    config = experiment(f"train.accumulate={accumulate}")
    last_call = 2 * accumulate + accumulate  # the last batch of the third step
    trainer = bare_trainer(config, tmp_path, lambda model: Failing(model, config, last_call, value))
    seen: dict[str, Any] = {}

    def note(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 2:
            seen["model"] = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
            seen["ema"] = {name: t.clone() for name, t in trainer.averaged.module.state_dict().items()}

    trainer._report = note
    batches = batches_of(config, 3 * accumulate)
    with pytest.raises(DivergenceError) as caught:
        trainer.run(batches)
    message = str(caught.value)
    assert "training diverged at step 2 " in message
    ids = [str(i) for batch in batches[-accumulate:] for i in batch.image_ids]
    assert f"on the images with ids {', '.join(ids)};" in message
    if value is None:
        assert "gradient norm nan" in message
    else:
        assert f"dfl {value:g}" in message
        assert "box " in message
        assert "cls " in message
    assert caught.value.exit_code == 6
    assert_same({name: p.detach() for name, p in trainer.model.named_parameters()}, seen["model"])
    assert_same(dict(trainer.averaged.module.state_dict()), seen["ema"])
    assert load_training_state(tmp_path / "bare/weights/last.safetensors")["step"] == 0  # saved before the first step


# --- images that cannot be read --------------------------------------------------------------------------------------


def damaged(tiny_shapes: Path, folder: Path, numbers: list[int]) -> Path:
    root = Path(shutil.copytree(tiny_shapes, folder))
    for number in numbers:
        (root / f"images/train/{number:06d}.jpg").write_bytes(b"no image")
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_skipped_counted_and_reported_once(
    workers: int, experiment: Make, tiny_shapes: Path, tmp_path: Path
) -> None:
    data = damaged(tiny_shapes, tmp_path / "data", [3])
    events: list[Event] = []
    config = experiment(f"loader.workers={workers}", "train.evaluations=0", data=data)
    result = train(config, report=events.append)
    assert (result.finished, result.num_skipped) == (True, 1)
    told = [event.text for event in events if isinstance(event, Noted) and "000003.jpg" in event.text]
    assert len(told) == 1
    assert told[0].startswith("skipped: ")
    assert "not an image (text)" in told[0]


def test_too_many_unreadable_images_end_the_run(experiment: Make, tiny_shapes: Path, tmp_path: Path) -> None:
    data = damaged(tiny_shapes, tmp_path / "data", [3, 7])
    with pytest.raises(DatasetError, match=r"2 of 12 training images cannot be read, at most 10% may be skipped"):
        train(experiment("train.evaluations=0", data=data))


# --- evaluations and files of a run ----------------------------------------------------------------------------------


def watched(config: DetectionConfig) -> tuple[TrainingResult, list[Event]]:
    events: list[Event] = []
    return train(config, report=events.append), events


@pytest.mark.parametrize(
    ("iterations", "evaluations", "expected"),
    [(6, 1, [6]), (6, 2, [3, 6]), (5, 2, [3, 5]), (3, 20, [1, 2, 3]), (4, 0, []), (7, 3, [3, 5, 7])],
)
def test_evaluations_are_spread_evenly_and_end_with_the_last_step(
    iterations: int, evaluations: int, expected: list[int], experiment: Make, tmp_path: Path
) -> None:
    config = experiment(f"train.iterations={iterations}", f"train.evaluations={evaluations}")
    trainer = bare_trainer(config, tmp_path)
    trainer._evaluate = lambda model: None  # type: ignore[assignment,return-value]  # only tested for being set
    due = []
    for step in range(1, iterations + 1):
        trainer.step = step
        if trainer._is_evaluation_due():
            due.append(step)
    assert due == expected


def test_run_writes_its_files(experiment: Make, tmp_path: Path) -> None:
    config = experiment()
    result, events = watched(config)
    folder = tmp_path / "runs/train"
    assert result.folder.path == folder
    assert load_experiment(str(folder / "config.yaml")) == config.for_canvas()
    for number in range(3):
        sheet = read_image(folder / f"train_batch{number}.jpg")
        assert sheet.shape == (2 * 68, 2 * 68, 3)  # four canvases of 64 pixels with margins

    assert isinstance(events[0], Noted)  # problems in the annotation files
    (started,) = (event for event in events if isinstance(event, Started))
    assert (started.folder, started.num_steps, started.first_step) == (folder, 6, 0)
    assert (started.num_epochs, started.precision, started.device) == (2.0, "fp32", "cpu")
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events if isinstance(event, Evaluated)] == [3, 6]
    assert events[-1] == next(event for event in reversed(events) if isinstance(event, Evaluated))

    table = rows(result.folder)
    assert tuple(table[0]) == CocoMetrics.first_columns
    assert [(row["step"], row["epoch"]) for row in table] == [("3", "1.00"), ("6", "2.00")]
    for row in table:
        assert all(math.isfinite(float(value)) for value in row.values())
        assert float(row["train/box_loss"]) > 0
    assert isinstance(result.metrics, CocoMetrics)
    assert float(table[-1]["metrics/mAP50-95(B)"]) == pytest.approx(result.metrics.ap, abs=1e-5)
    last_factor = registry.build(config.schedule)(1.0, 6)
    assert float(table[-1]["lr/pg0"]) == pytest.approx(config.optimizer.lr * last_factor, rel=1e-4)


@BOTH
def test_model_file_has_the_classes_and_category_ids_of_the_data_set(experiment: Make, tiny_shapes: Path) -> None:
    config = experiment("train.iterations=1")
    result = train(config)
    content = json.loads((tiny_shapes / "annotations/train.json").read_text())
    for file in (load_model_file(result.folder.best), load_model_file(result.folder.last)):
        assert file.category_ids == tuple(c["id"] for c in content["categories"]) == (3, 7, 11, 20, 42, 90)
        assert file.class_names == tuple(c["name"] for c in content["categories"])
        assert file.config == config_to_plain(config.for_canvas())


@BOTH
def test_best_file_has_the_averaged_weights_of_the_best_evaluation(experiment: Make, assert_same: Assert) -> None:
    result = train(experiment("train.evaluations=1"))
    state, best = load_training_state(result.folder.last), load_model_file(result.folder.best)
    assert_same(best.state, state["ema"])
    assert any((state["model"][name] != tensor).any() for name, tensor in best.state.items())
    assert best.metrics["AP"] == result.best == state["best_ap"]


def test_runs_with_the_same_name_get_separate_folders(experiment: Make, tmp_path: Path) -> None:
    config = experiment("train.iterations=1", "train.evaluations=0")
    folders = [train(config).folder.path for _ in range(3)]
    assert folders == [tmp_path / "runs" / name for name in ("train", "train2", "train3")]
    named = train(experiment("train.iterations=1", "train.evaluations=0", "train.run_name=mine"))
    assert named.folder.path == tmp_path / "runs/mine"


@BOTH
def test_run_without_a_val_split_saves_its_last_weights_as_best(experiment: Make, assert_same: Assert) -> None:
    result, events = watched(experiment("data.val=null", "train.iterations=2"))
    assert (result.finished, result.metrics, result.best) == (True, None, -1.0)
    assert any(isinstance(event, Noted) and "no val split is configured" in event.text for event in events)
    assert not any(isinstance(event, Evaluated) for event in events)
    state = load_training_state(result.folder.last)
    assert_same(load_model_file(result.folder.best).state, state["ema"])
    assert not (result.folder.path / "results.csv").exists()


@BOTH
def test_val_split_without_objects_saves_the_last_weights_as_best(
    experiment: Make, assert_same: Assert, tiny_shapes: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(tiny_shapes, tmp_path / "data"))
    path = data / "annotations/val.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    result, _ = watched(experiment(data=data))
    assert isinstance(result.metrics, CocoMetrics)
    assert math.isnan(result.metrics.ap)
    assert_same(load_model_file(result.folder.best).state, load_training_state(result.folder.last)["ema"])
    assert load_model_file(result.folder.best).metrics == {}


def test_number_of_steps_follows_from_the_epochs_unless_given() -> None:
    assert TrainConfig(epochs=10, min_iterations=0).num_steps(num_images=100, batch_size=16) == 63  # 62.5
    assert TrainConfig(epochs=10, min_iterations=0, accumulate=2).num_steps(100, 16) == 32  # 31.25
    assert TrainConfig(epochs=10, min_iterations=100).num_steps(100, 16) == 100
    assert TrainConfig(epochs=10, iterations=7, min_iterations=100).num_steps(100, 16) == 7
    assert TrainConfig(epochs=0.001, min_iterations=0).num_steps(1, 16) == 1


def test_floor_of_steps_applies_to_the_default_length_only() -> None:
    assert TrainConfig().num_steps(num_images=100, batch_size=16) == 2000
    assert TrainConfig(epochs=100).num_steps(100, 16) == 625
    assert TrainConfig(epochs=10).num_steps(100, 16) == 63
    assert TrainConfig(min_iterations=0).num_steps(100, 16) == 625
    assert TrainConfig().num_steps(num_images=1600, batch_size=16) == 10_000


def test_floor_of_steps_is_announced_before_the_first_step(experiment: Make) -> None:
    _, events = watched(experiment("train.iterations=null", "train.min_iterations=5", "train.epochs=1"))
    first = next(index for index, event in enumerate(events) if isinstance(event, Started))
    notes = [event.text for event in events[:first] if isinstance(event, Noted)]
    assert any("5 steps (train.min_iterations) instead of the 3 of 1 epochs" in note for note in notes)
    _, events = watched(experiment("train.iterations=null", "train.epochs=1"))
    started = next(event for event in events if isinstance(event, Started))
    assert (started.num_steps, started.num_epochs) == (3, 1.0)
    assert not any(isinstance(event, Noted) and "min_iterations" in event.text for event in events)


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 0},
        {"iterations": 0},
        {"accumulate": 0},
        {"clip_norm": 0},
        {"ema_horizon": 0},
        {"evaluations": -1},
        {"seed": -1},
    ],
)
def test_invalid_training_settings_are_rejected(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="train: expected"):
        TrainConfig(**settings)


# After 150 steps with one thread of an AVX2 processor, AP50 is 1.0 and AP 0.85; other roundings fit sooner or later.
SMALL = ("model.width=0.25", "model.depth=0.1", "optimizer={name: adamw, lr: 0.005}", "train.iterations=150")


@pytest.mark.parametrize(
    ("size", "overrides", "num_objects", "ap50", "ap"),
    [
        pytest.param(64, SMALL, 30, 0.8, 0.6, id="small"),
        pytest.param(160, ("train.iterations=400",), 32, 0.98, 0.80, id="whole", marks=pytest.mark.nightly),
    ],
)
def test_model_overfits_eight_images(
    size: int, overrides: tuple[str, ...], num_objects: int, ap50: float, ap: float, tmp_path: Path
) -> None:
    draw_shapes(tmp_path / "shapes", num_train=8, num_val=1, image_size=size)
    split = f"{{annotations: {tmp_path}/shapes/annotations/train.json, images: {tmp_path}/shapes/images/train}}"
    plain = (
        "{mosaic: 0, scale: 0, translate: 0, flip_horizontal: 0, hue: 0, saturation: 0, value: 0, albumentations: []}"
    )
    config = load_experiment(
        "mish-n",
        [
            f"data={{name: coco, train: {split}, val: {split}}}",
            f"input.size={size}",
            "loader={batch_size: 8, workers: 0}",
            f"augment={plain}",
            "augment.albumentations=[]",
            "train={evaluations: 1, precision: fp32}",
            f"train.project={tmp_path}/runs",
            "device=cpu",
            *overrides,
        ],
    )
    metrics = train(config).metrics
    assert isinstance(metrics, CocoMetrics)
    assert (metrics.num_images, metrics.num_objects) == (8, num_objects)
    assert metrics.stats["AP50"] >= ap50
    assert metrics.ap >= ap


@pytest.mark.parametrize("num_images", [2, 7, 100])
def test_shares_of_the_validation_images_are_disjoint_and_complete(num_images):
    parts = [TrainConfig(val_share=share).val_images(num_images).tolist() for share in ((0.0, 0.5), (0.5, 1.0))]
    assert sorted([*parts[0], *parts[1]]) == list(range(num_images))
    assert parts[0] == sorted(parts[0])
    assert TrainConfig(val_share=(0.0, 0.5)).val_images(num_images).tolist() == parts[0]
    assert TrainConfig().val_images(num_images).tolist() == list(range(num_images))


def test_a_share_without_images_is_refused():
    with pytest.raises(ConfigError, match=r"expected a part with images, got \[0\.0, 0\.1\] of 3 validation images"):
        TrainConfig(val_share=(0.0, 0.1)).val_images(3)
    for share in ((0.5, 0.5), (-0.1, 1.0), (0.0, 1.5)):
        with pytest.raises(ValueError, match="expected 0 <= start < end <= 1"):
            TrainConfig(val_share=share)
