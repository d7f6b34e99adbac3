from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from detector.cli.diagnose import _text
from detector.cli.main import run
from detector.evaluation.run_evidence import RunEvidence
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import load_detection
from detector.tasks.requests import Observer
from detector.workflows.diagnose import Diagnosis, diagnose, has_finer_levels, smallest_stride
from detector.workflows.train import train
from tests.workflows.damaged_runs import DAMAGES, diagnosed


@pytest.fixture(scope="module")
def trained_once(tiny_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a tiny run of four steps and return its folder."""
    listed = ", ".join(
        f"{name}: {{annotations: {tiny_shapes}/annotations/{name}.json, images: {tiny_shapes}/images/{name}}}"
        for name in ("train", "val")
    )
    overrides = [
        f"data={{name: coco, {listed}}}",
        *("model.width=0.125", "model.depth=0.1", "model.max_channels=64", "input.size=64", "loader.workers=0"),
        *("loader.batch_size=4", "augment.albumentations=[]", "evaluate.batch_size=4", "train.iterations=4"),
        *("train.evaluations=2", "train.precision=fp32", "device=cpu"),
        f"train.project={tmp_path_factory.mktemp('runs')}",
    ]
    return train(load_detection("mish-n", overrides)).folder.path


@pytest.fixture
def finished(trained_once: Path, tmp_path: Path) -> Path:
    """Return a copy of the folder of a tiny run."""
    return Path(shutil.copytree(trained_once, tmp_path / "run"))


def test_a_run_is_measured_on_samples_of_both_splits(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(path.name for path in finished.rglob("*"))
    diagnosis = diagnose(finished, num_images=5)
    found = diagnosis.evidence
    assert found.val is not None
    assert (found.train.num_images, found.train.num_measured) == (12, 5)
    assert (found.val.num_images, found.val.num_measured) == (6, 5)
    assert (found.canvas_px, found.source_px, found.stride) == (64, 64.0, 8)
    assert len(found.steps) == len(found.aps) == len(found.losses) == 2
    assert found.num_steps == 4
    assert 0 < found.num_images_of["circle"] <= 12
    assert set(found.train.looks) == {"brightness", "contrast", "saturation", "sharpness"}
    assert sorted(path.name for path in finished.rglob("*")) == before
    monkeypatch.setattr("detector.cli.diagnose.diagnose", lambda *words, **options: diagnosis)
    assert run(["diagnose", str(finished), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["evidence"] == json.loads(json.dumps(found.to_plain()))
    assert run(["diagnose", str(finished)]) == 0
    text = capsys.readouterr().out
    assert "on 5 images of 12" in text
    assert all(cause["sentence"] in text for cause in printed["causes"])


def test_run_without_weights_is_diagnosed_from_its_files(finished: Path) -> None:
    shutil.rmtree(finished / "weights")
    (finished / "results.csv").unlink()
    found = diagnose(finished, ("optimizer.lr=3",))
    assert [cause.code for cause in found.causes] == ["rate-high"]
    assert math.isnan(found.evidence.train.ap)


def test_steps_of_epochs_count_images_without_annotations(finished: Path, tiny_shapes: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_shapes / "images/val", tmp_path / "more")
    length = ("train.iterations=null", "train.min_iterations=null", "train.epochs=2")
    shutil.rmtree(finished / "weights")
    assert diagnose(finished, length).evidence.num_steps == 6
    assert diagnose(finished, (*length, f"data.unlabelled={tmp_path / 'more'}")).evidence.num_steps == 9
    assert diagnose(finished, (*length, f"data.unlabelled={tmp_path / 'gone'}")).evidence.num_steps == 6


def test_run_that_ended_before_its_first_evaluation_is_to_be_continued(finished: Path) -> None:
    (finished / "weights/best.safetensors").unlink()
    notes: list[str] = []
    diagnose(finished, num_images=1, observer=Observer(note=notes.append))
    assert f"the run ended before its first evaluation: continue it with detector train --resume {finished}" in notes


def test_validation_images_without_objects_are_left_out(finished: Path, tiny_shapes: Path, tmp_path: Path) -> None:
    empty = json.loads((tiny_shapes / "annotations/val.json").read_text())
    (tmp_path / "empty.json").write_text(json.dumps({**empty, "annotations": []}))
    diagnosis = diagnose(finished, (f"data.val.annotations={tmp_path / 'empty.json'}",), num_images=3)
    assert diagnosis.evidence.val is None
    assert diagnosis.evidence.train.num_measured == 3


def test_other_paths_and_damaged_files_are_answered(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["diagnose", str(tmp_path)]) == 2
    assert "expected the folder of a training run" in capsys.readouterr().err
    assert run(["diagnose", "a", "b"]) == 2
    (finished / "results.csv").write_text("step,x\none,2\n")
    assert run(["diagnose", str(finished), "-q"]) == 3
    assert "results.csv: the numbers cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("experiment", ["yolox", "darknet"], indirect=True)
def test_smallest_stride_is_that_of_the_finest_map(experiment: Callable[..., DetectionConfig]) -> None:
    config = experiment()
    assert smallest_stride(config, 6) in (8, 16, 32)


@pytest.mark.nightly
def test_trainings_on_damaged_sets_get_the_right_first_answer(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    found = {name: [cause.code for cause in diagnosed(folder, name).causes] for name in DAMAGES}
    assert found["sound"] == []
    right = [name for name, damage in DAMAGES.items() if found[name] and found[name][0] in damage.answers]
    assert len(right) >= 9, found


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), True),
        (("model.levels=[4,8,16,32]",), False),  # no level of 2 px
        (("model.levels=[16,32,64]",), True),
        (("model.head=anchor",), False),  # nine anchors for four levels
    ],
)
def test_finer_levels_are_proposed_where_the_network_takes_them(overrides: tuple[str, ...], expected: bool) -> None:
    config = load_detection("mish-n", ["model.depth=0.1", "model.width=0.125", "input.size=64", *overrides])
    assert has_finer_levels(config, smallest_stride(config, 1)) is expected


def test_network_of_a_cfg_takes_no_other_levels() -> None:
    config = load_detection(str(Path(__file__).parents[1] / "darknet/tiny.cfg"))
    assert not has_finer_levels(config, 8)


def test_low_ap_without_a_known_cause_is_not_called_sound() -> None:
    path = Path(__file__).parents[1] / "fixtures/run_evidence/sound.json"
    sound = RunEvidence.of_plain(json.loads(path.read_text()))
    low = replace(sound, train=replace(sound.train, ap=0.05))
    assert _text(Diagnosis(sound, ())).endswith("what usually helps next.")
    assert "No known cause explains so low an AP" in _text(Diagnosis(low, ()))
