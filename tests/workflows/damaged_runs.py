"""Short trainings on drawn data sets, one sound and twelve damaged on purpose, for `detector diagnose`.

    PYTHONPATH=. python tests/workflows/damaged_runs.py FOLDER SEED [NAME ...]    # trains, writes FOLDER/NAME.json

Each class has a shape and a colour of its own, so that a fine-tuned `yolox-nano` learns them in half a minute of CPU
time and what remains missing is the effect of the damage.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detector.media.images import write_image
from detector.tasks.detection_model import load_detection
from detector.workflows.diagnose import Diagnosis, diagnose
from detector.workflows.train import train

CLASSES = {"disc": (210, 60, 50), "square": (50, 90, 210), "triangle": (60, 170, 70)}
Generator = np.random.Generator


@dataclass(frozen=True)
class Drawn:
    """Settings of a drawn split.

    Attributes:
        num_images: number of images.
        image_px: side of the images.
        sides_px: smallest and largest side of objects.
        tiny_share: share of objects of 3 to 6 pixels.
        rare: images with the class triangle; None for no limit.
    """

    num_images: int = 120
    image_px: int = 96
    sides_px: tuple[int, int] = (14, 40)
    tiny_share: float = 0.0
    rare: int | None = None


@dataclass(frozen=True)
class Damage:
    """A damaged data set or recipe.

    Attributes:
        answers: codes of right first answers of the diagnosis; empty for the sound set.
        train, val: settings of the splits.
        change_labels: changes the annotations of the training split.
        change_val: changes the pixels of the validation images.
        overrides: settings of the run that differ.
    """

    answers: tuple[str, ...]
    train: Drawn = Drawn()
    val: Drawn = Drawn(48)
    change_labels: Callable[[list[dict[str, Any]], Generator], list[dict[str, Any]]] | None = None
    change_val: Callable[[Any], Any] | None = None
    overrides: tuple[str, ...] = ()


def _swap(rows: list[dict[str, Any]], rng: Generator) -> list[dict[str, Any]]:
    others = {1: (2, 3), 2: (1, 3), 3: (1, 2)}
    swapped = [{**row, "category_id": int(rng.choice(others[row["category_id"]]))} for row in rows]
    return [new if rng.random() < 0.35 else old for old, new in zip(rows, swapped, strict=True)]


def _remove(rows: list[dict[str, Any]], rng: Generator) -> list[dict[str, Any]]:
    return [row for row in rows if rng.random() >= 0.45]


def _move(rows: list[dict[str, Any]], rng: Generator) -> list[dict[str, Any]]:
    def moved(row: dict[str, Any]) -> dict[str, Any]:
        x, y, width, height = row["bbox"]
        angle = rng.uniform(0, 2 * np.pi)
        x, y = x + 0.6 * width * np.cos(angle), y + 0.6 * height * np.sin(angle)
        left, top = max(0.0, float(x)), max(0.0, float(y))
        size = [max(2.0, min(96.0, float(x + width)) - left), max(2.0, min(96.0, float(y + height)) - top)]
        return {**row, "bbox": [min(left, 94.0), min(top, 94.0), *size]}

    return [moved(row) if rng.random() < 0.45 else row for row in rows]


def _night(image: Any) -> Any:
    return cv2.GaussianBlur((255 - image) // 3, (7, 7), 2.0)


TINY = (3, 6)
DAMAGES = {
    "sound": Damage(()),
    "few-images-of-a-class": Damage(("few-images",), train=Drawn(rare=2)),
    "tiny-objects": Damage(("below-stride",), train=Drawn(sides_px=TINY), val=Drawn(48, sides_px=TINY)),
    "half-tiny-objects": Damage(("below-stride",), train=Drawn(tiny_share=0.5), val=Drawn(48, tiny_share=0.5)),
    "canvas-of-a-quarter": Damage(
        ("canvas-small",), train=Drawn(image_px=384, sides_px=(14, 30)), val=Drawn(48, 384, (14, 30))
    ),
    "canvas-of-a-third": Damage(
        ("canvas-small",),
        train=Drawn(image_px=192, sides_px=(10, 22)),
        val=Drawn(48, 192, (10, 22)),
        overrides=("input.size=64",),
    ),
    "swapped-classes": Damage(("labels",), change_labels=_swap),
    "removed-boxes": Damage(("labels",), change_labels=_remove),
    "moved-boxes": Damage(("labels",), change_labels=_move),
    "few-images": Damage(("overfitting",), train=Drawn(6)),
    "rate-too-high": Damage(("rate-high",), overrides=("optimizer.lr=0.3", "optimizer.fine_tuning_lr=null")),
    "rate-too-low": Damage(("rate-low",), overrides=("optimizer.lr=0.000003",)),
    "val-at-night": Damage(("mismatch",), change_val=_night),
}


def _draw_object(image: Any, name: str, x: int, y: int, width: int, height: int, rng: Generator) -> None:
    colour = tuple(int(np.clip(c + rng.integers(-30, 31), 0, 255)) for c in CLASSES[name])
    if name == "square":
        cv2.rectangle(image, (x, y), (x + width - 1, y + height - 1), colour, -1)
    elif name == "disc":
        centre, axes = (x + width / 2 - 0.5, y + height / 2 - 0.5), (width - 1, height - 1)
        cv2.ellipse(image, (centre, axes, 0.0), colour, -1)
    else:
        corners = [(x, y + height - 1), (x + width - 1, y + height - 1), (x + width // 2, y)]
        cv2.fillPoly(image, [np.array(corners, np.int32)], colour)


def draw_split(folder: Path, name: str, drawn: Drawn, damage: Damage, rng: Generator) -> None:
    """Draw the images of a split and write its COCO file."""
    (folder / name).mkdir(parents=True)
    names, side = list(CLASSES), drawn.image_px
    images: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for number in range(1, drawn.num_images + 1):
        coarse = rng.integers(70, 200, (6, 6, 3)).astype(np.uint8)
        image = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
        for _ in range(4):
            ends = rng.integers(0, side, 4).tolist()
            cv2.line(image, ends[:2], ends[2:], rng.integers(0, 255, 3).tolist(), 1)
        taken = np.zeros((side, side), np.uint8)
        allowed = names if drawn.rare is None or number <= drawn.rare else names[:2]
        for _ in range(int(rng.integers(1, 5))):
            low, high = TINY if rng.random() < drawn.tiny_share else drawn.sides_px
            width, height = rng.integers(low, high + 1, 2).tolist()
            x, y = int(rng.integers(0, side - width)), int(rng.integers(0, side - height))
            label = int(rng.integers(len(allowed)))
            if taken[y : y + height, x : x + width].any():
                continue
            taken[y : y + height, x : x + width] = 1
            _draw_object(image, allowed[label], x, y, width, height, rng)
            row = {"id": len(rows) + 1, "image_id": number, "category_id": label + 1, "iscrowd": 0}
            rows.append({**row, "bbox": [x, y, width, height], "area": width * height})
        noisy = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
        if name == "val" and damage.change_val is not None:
            noisy = damage.change_val(noisy)
        write_image(folder / name / f"{number:04}.png", noisy)
        images.append({"id": number, "file_name": f"{number:04}.png", "width": side, "height": side})
    if name == "train" and damage.change_labels is not None:
        rows = damage.change_labels(rows, rng)
    for entry in rows:
        entry["area"] = entry["bbox"][2] * entry["bbox"][3]
    categories = [{"id": number, "name": each} for number, each in enumerate(names, start=1)]
    content = {"images": images, "annotations": rows, "categories": categories}
    (folder / f"{name}.json").write_text(json.dumps(content))


def trained_run(folder: Path, name: str, seed: int = 0) -> Path:
    """Draw a data set, train on it, and return the run folder."""
    damage, rng = DAMAGES[name], np.random.default_rng(seed)
    for split, drawn in (("train", damage.train), ("val", damage.val)):
        draw_split(folder / name, split, drawn, damage, rng)
    splits = ", ".join(
        f"{s}: {{annotations: {folder / name / s}.json, images: {folder / name / s}}}" for s in ("train", "val")
    )
    overrides = [
        f"data={{name: coco, {splits}}}",
        *("input.size=96", "train.weights=yolox-nano", "optimizer.fine_tuning_lr=0.003", "train.precision=fp32"),
        *("loader.workers=0", "loader.batch_size=8", "augment.mosaic=0", "augment.albumentations=[]", "device=cpu"),
        *("train.iterations=150", "train.evaluations=5", "schedule.warmup_iterations=10", f"train.seed={seed}"),
        *(f"train.project={folder / name}", *damage.overrides),
    ]
    return train(load_detection("yolox-nano", overrides)).folder.path


def diagnosed(folder: Path, name: str, seed: int = 0) -> Diagnosis:
    """Train on a damaged data set and return the diagnosis of the run."""
    return diagnose(trained_run(folder, name, seed))


def main() -> None:
    """Train, and write the evidence on each run without the paths of this machine."""
    folder, seed = Path(sys.argv[1]), int(sys.argv[2])
    for name in sys.argv[3:] or DAMAGES:
        found = diagnosed(folder, name, seed)
        plain = {**found.evidence.to_plain(), "run": name}
        (folder / f"{name}.json").write_text(json.dumps(plain, indent=1) + "\n")
        codes = [(cause.code, round(cause.held_back, 3)) for cause in found.causes]
        print(f"{name}: {codes}, right: {DAMAGES[name].answers}", flush=True)


if __name__ == "__main__":
    main()
