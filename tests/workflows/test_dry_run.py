from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch

from detector.errors import DatasetError
from detector.models.checkpoint import load_training_state
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import build_model, load_detection
from detector.training.events import Evaluated, Event, Noted
from detector.workflows import dry_run
from detector.workflows.dry_run import evaluation_steps, plan_schedule, rehearse
from detector.workflows.train import train


def experiment(data: Path, project: Path, *overrides: str) -> DetectionConfig:
    """Return the experiment of a run with a tiny network and tiny images."""
    listed = ", ".join(
        f"{n}: {{annotations: {data}/annotations/{n}.json, images: {data}/images/{n}}}" for n in ("train", "val")
    )
    own = [
        "model.width=0.125",
        "model.depth=0.1",
        "input.size=64",
        "loader={workers: 0, batch_size: 4}",
        "augment.albumentations=[]",
    ]
    own += ["evaluate.batch_size=4", "train.precision=fp32", "device=cpu", "train.iterations=40"]
    return load_detection("mish-n", [*own, f"data={{name: coco, {listed}}}", f"train.project={project}", *overrides])


# --- the plan --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.iterations=7", "train.evaluations=3"),
        ("train.iterations=3", "train.evaluations=5"),
        ("train.iterations=4", "train.evaluations=0"),
        ("train.iterations=5", "train.evaluations=2", "train.accumulate=2", "augment.closing_share=0.5"),
        ("train={epochs: 2, min_iterations: 0, evaluations: 1}",),
    ],
)
def test_run_follows_its_plan(overrides: tuple[str, ...], tiny_shapes: Path, tmp_path: Path) -> None:
    config = experiment(tiny_shapes, tmp_path, *overrides, "schedule={name: linear, warmup_iterations: 2}")
    plan = plan_schedule(config)
    assert not list(tmp_path.iterdir())
    measured: list[int] = []

    def watch(event: Event) -> None:
        if isinstance(event, Evaluated):
            measured.append(event.step)

    result = train(config, report=watch)
    assert measured == list(plan.evaluations)
    assert list(plan.steps) == list(range(plan.num_steps))
    if measured:  # the file has the rate of the step before each evaluation
        rates = [float(row["lr/pg0"]) for row in result.folder.results()]
        assert rates == [pytest.approx(plan.rates[step - 1], rel=1e-4) for step in measured]


def test_plan_equals_values_computed_by_hand(tiny_shapes: Path, tmp_path: Path) -> None:
    config = experiment(
        tiny_shapes,
        tmp_path,
        "train={iterations: 100, evaluations: 4, accumulate: 2}",
        "augment.closing_share=0.3",
        "schedule={name: constant, warmup_iterations: 9}",
        "optimizer={name: sgd, lr: 0.5}",
    )
    plan = plan_schedule(config)
    assert plan.name == "constant schedule, sgd"
    assert (plan.warmup_steps, plan.closing_from, plan.num_steps) == (9, 70, 100)
    assert plan.evaluations == [25, 50, 75, 100]
    assert plan.rates[:11] == [pytest.approx(0.05 * k) for k in range(1, 11)] + [0.5]
    images = len(list((tiny_shapes / "images/train").iterdir()))
    assert plan.num_epochs == pytest.approx(100 * 2 * 4 / images)


def test_plan_of_a_long_run_is_sampled_and_includes_both_ends(tiny_shapes: Path, tmp_path: Path) -> None:
    plan = plan_schedule(experiment(tiny_shapes, tmp_path, "train.iterations=300000"))
    assert (plan.steps[0], plan.steps[-1], len(plan.steps)) == (0, 299999, 2001)
    assert len(plan.rates) == 2001


def test_plan_without_a_val_split_has_no_evaluations(tiny_shapes: Path, tmp_path: Path) -> None:
    assert plan_schedule(experiment(tiny_shapes, tmp_path, "data.val=null")).evaluations == []


def test_plan_without_a_data_set_is_an_error() -> None:
    with pytest.raises(DatasetError, match="no data set is configured"):
        plan_schedule(load_detection("mish-n"))


def test_evaluations_are_at_different_steps() -> None:
    assert evaluation_steps(10, 4) == [3, 5, 8, 10]
    assert evaluation_steps(3, 20) == [1, 2, 3]
    assert evaluation_steps(3, 0) == []


# --- the dry run -----------------------------------------------------------------------------------------------------


def test_dry_run_reports_the_run_and_keeps_no_files(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(dry_run, "_MAX_TIMED_STEPS", 3)
    config = experiment(tiny_shapes, tmp_path / "runs", "train={iterations: 40, evaluations: 4, accumulate: 2}")
    told: list[Event] = []
    found = rehearse(config, told.append)
    assert not (tmp_path / "runs").exists()
    assert not list(temporary.iterdir())
    assert all(isinstance(event, Noted) for event in told)
    assert found.num_parameters == sum(p.numel() for p in build_model(config, 6).parameters())
    assert (found.num_classes, found.num_val_images, found.num_steps, found.images_per_step) == (6, 6, 40, 8)
    assert (found.device, found.precision, found.evaluated_at) == ("cpu", "fp32", [10, 20, 30, 40])
    assert found.num_epochs == pytest.approx(40 * 8 / found.num_images)
    assert found.peak_bytes is None or 2**26 < found.peak_bytes < 2**36
    assert found.steps_s == pytest.approx(40 * found.step_s)
    assert found.evaluations_s == pytest.approx(4 * 6 * found.val_image_s)
    assert found.step_s > 0
    assert found.val_image_s > 0


def test_first_step_is_excluded_from_the_step_time(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, 100.0, 102.0, 104.0, 106.0, *range(200, 300)])

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return float(next(now))

    monkeypatch.setattr(dry_run, "time", Clock)
    found = rehearse(experiment(tiny_shapes, tmp_path))
    assert (found.first_step_s, found.step_s) == (100, 2)  # timing stops after more than five seconds
    assert found.steps_s == 40 * 2


@pytest.mark.parametrize("num_steps", [1, 2])
def test_runs_of_one_and_two_steps_can_be_dry_run(num_steps: int, tiny_shapes: Path, tmp_path: Path) -> None:
    found = rehearse(experiment(tiny_shapes, tmp_path / "runs", f"train.iterations={num_steps}", "data.val=null"))
    assert not (tmp_path / "runs").exists()
    assert (found.num_steps, found.num_val_images, found.evaluated_at) == (num_steps, 0, [])
    assert found.step_s > 0


def test_dry_run_does_not_change_the_following_run(tiny_shapes: Path, tmp_path: Path) -> None:
    config = experiment(tiny_shapes, tmp_path, "train.iterations=2", "train.evaluations=1")
    alone = train(config)
    rehearse(config)
    after = train(config)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["train", "train2"]
    state = [load_training_state(r.folder.last)["model"] for r in (alone, after)]
    assert all(torch.equal(tensor, state[1][name]) for name, tensor in state[0].items())


def test_several_processes_share_the_steps(tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    config = experiment(tiny_shapes, tmp_path, "train={epochs: 10, min_iterations: 0}", "train.iterations=null")
    plan = plan_schedule(config)
    images = len(list((tiny_shapes / "images/train").iterdir()))
    assert plan.num_steps == -(-10 * images // 8)
