from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from detector.errors import CheckpointError, ConfigError
from detector.models.checkpoint import load_model_file, load_training_state
from detector.tasks.detection_config import DetectionConfig
from detector.training.events import Event, Noted
from detector.training.run_folder import RunFolder
from detector.workflows.train import open_run, train

Make = Callable[..., DetectionConfig]
Assert = Callable[..., None]
# Run a test on each kind of network.
BOTH = pytest.mark.parametrize("experiment", ["mish-n", "darknet"], indirect=True)
NIGHTLY_YOLOX = pytest.param("yolox", marks=pytest.mark.nightly)
ALL = pytest.mark.parametrize("experiment", ["mish-n", "darknet", NIGHTLY_YOLOX], indirect=True)


def rows(folder: RunFolder) -> list[dict[str, str]]:
    with (folder.path / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def plain_state(folder: RunFolder) -> dict[str, Any]:
    """Return the training state of a run as a dictionary from which tests may remove keys."""
    return {**load_training_state(folder.last)}


def stop_after(num_steps: int) -> Callable[[], bool]:
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) == num_steps

    return should_stop


def test_run_on_tiles_with_a_finer_level_resumes_to_the_same_bits(experiment: Make, assert_same: Assert) -> None:
    tiles = ("augment.tile=40", "views.tile=40", "model.levels=[4,8,16]", "loss.enlarge_small=true")
    config = experiment("augment.mosaic=0.5", "augment.closing_share=0.4", "train.iterations=4", *tiles)
    whole, stopped = train(config), train(config, should_stop=stop_after(2))
    found, folder, state = open_run(stopped.folder.path, config)
    resumed = train(found, resume=(folder, state))
    ours, theirs = plain_state(resumed.folder), plain_state(whole.folder)
    for key in ("elapsed_s", "config"):
        ours.pop(key), theirs.pop(key)
    assert_same(ours, theirs)
    assert load_model_file(resumed.folder.best).config["model"]["levels"] == [4, 8, 16]  # type: ignore[index]


@ALL
@pytest.mark.parametrize(
    "overrides",
    [
        ("loader.workers=2", "train.precision=bf16", "augment.albumentations=[{name: CLAHE, p: 0.5}]"),
        ("train.accumulate=2", "loader.batch_size=2", "optimizer={name: adamw}", "augment.mixup=0.5"),
        ("optimizer={name: sgd}", "train.evaluations=6"),
        ("loader.repeat_factor=0.9", "input.multi_scale=0.5", "loader.workers=2"),
    ],
    ids=["muon-bf16-workers", "adamw-accumulate", "sgd-evaluations", "repeats-and-scales"],
)
def test_stopped_run_resumes_to_the_same_bits(
    overrides: tuple[str, ...], experiment: Make, assert_same: Assert
) -> None:
    config = experiment("augment.mosaic=1.0", "train.ema_horizon=0.5", "augment.closing_share=0.2", *overrides)
    whole = train(config)
    assert whole.finished
    stopped = train(config, should_stop=stop_after(3))
    assert not stopped.finished
    assert load_training_state(stopped.folder.last)["step"] == 3
    found, folder, state = open_run(stopped.folder.path, config)
    assert found == config.for_canvas()
    resumed = train(found, resume=(folder, state))
    assert resumed.finished
    assert resumed.folder.path == stopped.folder.path

    ours, theirs = plain_state(resumed.folder), plain_state(whole.folder)
    assert ours.pop("elapsed_s") != theirs.pop("elapsed_s")  # the only value that may differ
    assert ours.pop("config") == theirs.pop("config")
    assert ours["step"] == 6
    assert len(ours["optimizer"]["state"]) > 15
    assert any((ours["ema"][name] != tensor).any() for name, tensor in ours["model"].items())
    assert_same(ours, theirs)
    assert_same(load_model_file(resumed.folder.best).state, load_model_file(whole.folder.best).state)
    without_time = [[{k: v for k, v in r.items() if k != "time"} for r in rows(x.folder)] for x in (resumed, whole)]
    assert without_time[0] == without_time[1]


@BOTH
def test_same_seed_gives_the_same_bits_and_another_seed_does_not(experiment: Make, assert_same: Assert) -> None:
    results = [train(experiment("train.iterations=2", f"train.seed={seed}")) for seed in (0, 0, 1)]
    first, second, other = (load_training_state(result.folder.last)["model"] for result in results)
    assert_same(first, second)
    assert any((first[name] != tensor).any() for name, tensor in other.items())


def test_settings_without_effect_on_numbers_may_change_on_resume(
    experiment: Make, assert_same: Assert, tmp_path: Path
) -> None:
    stopped = train(experiment(), should_stop=stop_after(2))
    others = ("loader.cache_mb=1", f"loader.disk_cache={tmp_path}/cache", "loader.timeout_s=99", "train.timeout_s=77")
    config, folder, state = open_run(stopped.folder.last, experiment("loader.workers=1", *others))
    loader = config.loader
    assert (loader.workers, loader.cache_mb, loader.disk_cache) == (1, 1, tmp_path / "cache")
    assert (loader.timeout_s, config.train.timeout_s) == (99, 77)
    assert train(config, resume=(folder, state)).finished
    whole = train(experiment())
    assert_same(load_training_state(folder.last)["model"], load_training_state(whole.folder.last)["model"])


@BOTH
def test_resuming_a_finished_run_changes_nothing(experiment: Make, assert_same: Assert) -> None:
    whole = train(experiment("train.iterations=2"))
    before = plain_state(whole.folder)
    config, folder, state = open_run(whole.folder.path)
    assert train(config, resume=(folder, state)).finished
    after = plain_state(folder)
    assert after.pop("config") == before.pop("config")
    assert_same(after, before)


def test_resuming_with_another_config_reports_every_difference(experiment: Make) -> None:
    stopped = train(experiment(), should_stop=stop_after(1))
    asked = experiment("model.width=0.25", "optimizer.lr=0.5", "augment.mosaic=0.0", "input.size=96")
    with pytest.raises(ConfigError, match=r"last\.safetensors: .* got 4 differences") as caught:
        open_run(stopped.folder.path, asked)
    for difference in (
        "model.width: 0.25 here, 0.125 there",
        "optimizer.lr: 0.5 here, 0.006 there",
        "augment.mosaic: 0.0 here, 1.0 there",
        "input.size: 96 here, 64 there",
    ):
        assert difference in str(caught.value)


def test_run_that_began_with_a_floor_for_any_epochs_keeps_it(experiment: Make) -> None:
    # As a run that was saved when 2,000 steps were the least for every number of epochs.
    begun = experiment("train.iterations=null", "train.epochs=5", "train.min_iterations=2000")
    stopped = train(begun, should_stop=stop_after(1))
    config, _, _ = open_run(stopped.folder.path, experiment("train.epochs=5"))
    assert config.train == begun.train
    with pytest.raises(ConfigError, match=r"train\.epochs: 6\.0 here, 5\.0 there"):
        open_run(stopped.folder.path, experiment("train.epochs=6"))


def test_resuming_with_other_classes_is_rejected(experiment: Make, tiny_shapes: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(tiny_shapes, tmp_path / "data"))
    stopped = train(experiment(data=data), should_stop=stop_after(1))
    before = stopped.folder.last.read_bytes()
    for name in ("train", "val"):
        path = data / f"annotations/{name}.json"
        content = json.loads(path.read_text())
        content["categories"].append({"id": 91, "name": "hexagon"})
        path.write_text(json.dumps(content))
    config, folder, state = open_run(stopped.folder.path, experiment(data=data))
    with pytest.raises(CheckpointError, match="expected the classes that the run began with") as caught:
        train(config, resume=(folder, state))
    assert "class_names: " in str(caught.value)
    assert "category_ids: " in str(caught.value)
    assert "'hexagon'" in str(caught.value)
    assert stopped.folder.last.read_bytes() == before


def moved_data(data: Path) -> list[str]:
    """Return the overrides that name the splits of a data set at another place, as the command line gives them."""
    splits = ("train", "val")
    return [f"data.{name}.annotations={data}/annotations/{name}.json" for name in splits] + [
        f"data.{name}.images={data}/images/{name}" for name in splits
    ]


@pytest.mark.parametrize("is_repeated", [False, True], ids=["overrides", "repeated-command"])
def test_run_resumes_to_the_same_bits_after_its_data_moved(
    is_repeated: bool, experiment: Make, tiny_shapes: Path, assert_same: Assert, tmp_path: Path
) -> None:
    old, new = Path(shutil.copytree(tiny_shapes, tmp_path / "old")), tmp_path / "new place"
    stopped = train(experiment(data=old), should_stop=stop_after(2))
    old.rename(new)
    given = (experiment(data=new), ()) if is_repeated else (None, moved_data(new))
    config, folder, state = open_run(stopped.folder.path, *given)
    assert train(config, resume=(folder, state)).finished
    assert str(new) in (folder.path / "config.yaml").read_text()
    whole = train(experiment())
    assert_same(load_training_state(folder.last)["model"], load_training_state(whole.folder.last)["model"])
    assert load_training_state(folder.last)["data_digest"] == state["data_digest"]


@pytest.mark.parametrize("is_old_state", [False, True])
def test_run_is_not_resumed_with_other_data_at_a_new_place(
    is_old_state: bool, experiment: Make, tiny_shapes: Path, tmp_path: Path
) -> None:
    stopped = train(experiment(), should_stop=stop_after(1))
    new = Path(shutil.copytree(tiny_shapes, tmp_path / "new"))
    if not is_old_state:
        path = new / "annotations/val.json"
        content = json.loads(path.read_text())
        content["annotations"][0]["bbox"][2] += 1
        path.write_text(json.dumps(content))
    config, folder, state = open_run(stopped.folder.path, None, moved_data(new))
    if is_old_state:
        cast("dict[str, object]", state).pop("data_digest")
    expected = "an older version" if is_old_state else "other images or boxes"
    with pytest.raises(CheckpointError, match=rf"annotations that the run began with, at the new .*{expected}"):
        train(config, resume=(folder, state))


@pytest.mark.parametrize("is_old_state", [False, True])
def test_changed_annotations_at_the_same_place_are_reported(
    is_old_state: bool, experiment: Make, tiny_shapes: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(tiny_shapes, tmp_path / "data"))
    stopped = train(experiment("train.evaluations=0", data=data), should_stop=stop_after(5))
    path = data / "annotations/train.json"
    content = json.loads(path.read_text())
    del content["annotations"][0]
    path.write_text(json.dumps(content))
    config, folder, state = open_run(stopped.folder.path)
    if is_old_state:
        cast("dict[str, object]", state).pop("data_digest")
    events: list[Event] = []
    assert train(config, resume=(folder, state), report=events.append).finished
    noted = [event.text for event in events if isinstance(event, Noted) and "annotations have changed" in event.text]
    assert len(noted) == (0 if is_old_state else 1)


def test_number_of_unreadable_images_survives_a_resume(experiment: Make, tiny_shapes: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(tiny_shapes, tmp_path / "data"))
    (data / "images/train/000003.jpg").write_bytes(b"no image")
    config = experiment("train.evaluations=0", data=data)
    stopped = train(config, should_stop=stop_after(4))
    assert stopped.num_skipped == 1
    _, folder, state = open_run(stopped.folder.path)
    events: list[Event] = []
    assert train(config, resume=(folder, state), report=events.append).num_skipped == 1
    assert not any(isinstance(event, Noted) and "skipped" in event.text for event in events)
