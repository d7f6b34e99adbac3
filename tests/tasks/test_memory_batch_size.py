from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detector.cli.main import run
from detector.config.schema import config_to_yaml
from detector.models.checkpoint import load_training_state
from detector.tasks import memory_batch_size
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import load_detection
from detector.tasks.memory_batch_size import with_batch_size
from detector.tasks.task import load_experiment
from detector.training import memory_probe
from detector.training.distributed import World
from detector.training.memory_probe import FittedBatch, ProbedTraining

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured through /proc")


def experiment(data: Path, folder: Path, *overrides: str) -> DetectionConfig:
    listed = f"{{annotations: {data}/annotations/train.json, images: {data}/images/train}}"
    own = [
        f"data={{name: coco, train: {listed}}}",
        f"train.project={folder}/runs",
        *(
            "model.width=0.125",
            "model.depth=0.1",
            "input.size=64",
            "loader.workers=0",
            "train.iterations=2",
            "device=cpu",
        ),
    ]
    return load_detection("mish-n", [*own, *overrides])


def write(config: DetectionConfig, folder: Path) -> str:
    (folder / "run.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    return str(folder / "run.yaml")


def test_measured_batch_size_is_reported_saved_and_kept_on_resume(
    tiny_shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(experiment(tiny_shapes, tmp_path, "loader.memory_share=0.5"), tmp_path)
    assert run(["train", path]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "loader.batch_size=12 was chosen: loader.memory_share=0.5 allows a step" in said
    )  # all images of the data set
    assert "an image of 64 x 64 px takes" in said
    written = load_experiment(str(tmp_path / "runs/train/config.yaml"))
    assert (written.loader.batch_size, written.loader.memory_share) == (12, 0.0)
    monkeypatch.setattr(memory_probe, "free_bytes", lambda device: 0)  # resuming measures nothing
    assert run(["train", path, "--continue", "--quiet"]) == 0
    loader: Any = load_training_state(tmp_path / "runs/train/weights/last.safetensors")["config"][
        "loader"
    ]  # plain data
    assert loader["batch_size"] == 12


def test_batch_size_and_dry_run_use_the_largest_canvas(
    tiny_shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    share = ("loader.memory_share=0.5", "input.multi_scale=0.5")
    path = write(experiment(tiny_shapes, tmp_path, *share), tmp_path)
    assert run(["train", path, "--dry-run", "--json"]) == 0
    said = capsys.readouterr()
    assert "an image of 96 x 96 px takes" in " ".join(said.err.split())
    found = json.loads(said.out)
    assert found["largest_hw"] == [96, 96]
    assert found["images_per_step"] == 12
    assert not (tmp_path / "runs").exists()
    assert run(["train", path, "--dry-run", "--quiet", "input.multi_scale=0"]) == 0
    assert "canvas" not in capsys.readouterr().out


def test_probe_has_as_many_objects_as_a_mosaic_of_the_fullest_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[ProbedTraining] = []

    def fit(training: ProbedTraining, **others: object) -> FittedBatch:
        probed.append(training)
        return FittedBatch(4, 1, 1, 10, (1, 2))

    monkeypatch.setattr(memory_batch_size, "fit_batch_size", fit)
    boxes = [{"id": n, "image_id": 1, "category_id": 1, "bbox": [n % 50, n // 50, 9, 9]} for n in range(1, 701)]
    images = [{"id": n, "file_name": f"{n:06d}.jpg", "width": 64, "height": 64} for n in (1, 2)]
    document = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "dot"}]}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/train.json").write_text(json.dumps(document))
    (tmp_path / "images/train").mkdir(parents=True)
    for image in images:
        cv2.imwrite(str(tmp_path / "images/train" / str(image["file_name"])), np.zeros((64, 64, 3), np.uint8))
    config = experiment(tmp_path, tmp_path, "loader.memory_share=0.5")
    with_batch_size(config, World(), lambda event: None)
    assert probed[0].objects_per_image == 1400
