"""Fixtures of the tests of the command line."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from detector.cli.main import run
from detector.models.checkpoint import load_model_file

DARKNET_CFG = Path(__file__).parents[1] / "darknet/tiny.cfg"
# A small model, small images and no augmentation, so that training overfits in seconds.
TINY_MODEL = ("model.width=0.125", "model.depth=0.1", "model.max_channels=256")
TINY = (
    *TINY_MODEL,
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
    """Model trained on the validation images of `tiny_shapes` until its AP is above 0.1.

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


def train_once(experiment: str, factory: pytest.TempPathFactory, shapes: Path, *overrides: str) -> Trained:
    """Train a model on the validation images, once for all processes of pytest."""
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / f"trained-{Path(experiment).stem}"
    folder.mkdir(exist_ok=True)
    best, data = folder / "best.safetensors", data_override(shapes, "val")
    with FileLock(folder / "lock"):
        if not best.exists():
            shared = [word for word in TINY if word not in TINY_MODEL]
            own = [data, "train.evaluations=1", f"train.project={folder}/runs", *overrides]
            assert run(["train", experiment, *shared, *own, "--quiet"]) == 0
            shutil.copy(folder / "runs/train/weights/best.safetensors", best)
            assert load_model_file(best).metrics["AP"] > 0.1
    return Trained(best, shapes / "images/val", shapes / "annotations/val.json", data)


@pytest.fixture(scope="session")
def trained(tiny_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    own = (*TINY_MODEL, "train.iterations=60", "optimizer={name: adamw, lr: 0.02}")
    return train_once("mish-n", tmp_path_factory, tiny_shapes, *own)


@pytest.fixture(scope="session")
def trained_darknet(tiny_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Train a Darknet network, which has few layers and is exported in a few seconds."""
    own = ("train.iterations=150", "optimizer={name: adamw, lr: 0.02}")
    return train_once(str(DARKNET_CFG), tmp_path_factory, tiny_shapes, *own)


@pytest.fixture
def tiny_words(tiny_shapes: Path, tmp_path: Path) -> list[str]:
    """Return the arguments of `detector train` for a very small run with run folders in the folder of the test."""
    return ["mish-n", *TINY, data_override(tiny_shapes), f"train.project={tmp_path}/runs"]
