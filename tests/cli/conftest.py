"""Fixtures of the tests of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from detector.tasks.task import load_experiment
from detector.workflows.train import train

# A small model, small images and no augmentation, so that training overfits in seconds.
TINY = (
    "model.width=0.125",
    "input.size=64",
    "loader.workers=0",
    "loader.batch_size=6",
    "augment={mosaic: 0, scale: 0, translate: 0, flip_horizontal: 0, hue: 0, saturation: 0, value: 0}",
    "augment.albumentations=[]",
    "evaluate.batch_size=4",
    "schedule.warmup_iterations=5",
    "train.precision=fp32",
    "device=cpu",
)


def data_override(root: Path, train_split: str = "train", val_split: str = "val") -> str:
    """Return the override that names two splits of a drawn data set."""
    splits = {"train": train_split, "val": val_split}
    listed = ", ".join(
        f"{name}: {{annotations: {root}/annotations/{split}.json, images: {root}/images/{split}}}"
        for name, split in splits.items()
    )
    return f"data={{name: coco, {listed}}}"


@dataclass(frozen=True)
class Trained:
    """Model trained on the validation images of `tiny_shapes` until its metrics are above 0.

    Attributes:
        weights: its file.
        images: the folder of those images.
        annotations: their COCO file.
        data: the override that names them as the split `val`.
    """

    weights: Path
    images: Path
    annotations: Path
    data: str


@pytest.fixture(scope="session")
def trained(tiny_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    project = tmp_path_factory.mktemp("trained")
    data = data_override(tiny_shapes, "val")
    overrides = [*TINY, data, f"train.project={project}"]
    overrides += ["train.iterations=120", "train.evaluations=1", "optimizer={name: adamw, lr: 0.01}"]
    result = train(load_experiment("mish-n", overrides))
    assert result.best > 0.1
    return Trained(result.folder.best, tiny_shapes / "images/val", tiny_shapes / "annotations/val.json", data)


@pytest.fixture
def tiny_words(tiny_shapes: Path, tmp_path: Path) -> list[str]:
    """Return the arguments of `detector train` for a very small run with run folders in the folder of the test."""
    return ["mish-n", *TINY, data_override(tiny_shapes), f"train.project={tmp_path}/runs"]
