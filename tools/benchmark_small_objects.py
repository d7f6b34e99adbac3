"""Benchmark of small objects: AP and time of levels and assignments on drawn objects of 4 to 12 px.

    python tools/benchmark_small_objects.py                                (images of 640 px; hours on a CPU)
    python tools/benchmark_small_objects.py --size 192 --iterations 2000 --seeds 3        (the same on crops)
    python tools/benchmark_small_objects.py --only "levels 4" augment.scale=0.2        (rows by name, other settings)

The images are those of the embedded data set with smaller and more objects. Shapes of 4 px cannot be told apart, so
there is one class. Smaller images have the same objects, as many for each square pixel. The rows differ in nothing but
`model.levels` and `loss.enlarge_small`. Times are those of one processor core. 300 steps on crops of 64 or 128 px are
too few: AP is then below 0.02 and says nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detector.data.coco import CocoAnnotations, read_coco
from detector.data.synthetic_detection import draw_scene
from detector.media.images import write_image
from detector.structures.boxes import xyxy_to_xywh
from detector.tasks.detection_model import evaluate_model, load_model
from detector.tasks.task import load_experiment
from detector.training.events import Event, StepDone
from detector.workflows.train import train

SIDES_PX = (4.0, 12.0)
OBJECTS_AT_640 = (100, 250)
_ENLARGED = "loss.enlarge_small=true"
# Name of a row and its overrides.
ROWS: dict[str, tuple[str, ...]] = {
    "levels 8, 16, 32 (default)": (),
    "levels 4, 8, 16, 32": ("model.levels=[4,8,16,32]",),
    "levels 8, 16, 32, small enlarged": (_ENLARGED,),
    "levels 4, 8, 16, 32, small enlarged": ("model.levels=[4,8,16,32]", _ENLARGED),
    "levels 4, 8, 16": ("model.levels=[4,8,16]",),
    "levels 4, 8, 16, small enlarged": ("model.levels=[4,8,16]", _ENLARGED),
}


def draw_split(folder: Path, split: str, num_images: int, size: int) -> CocoAnnotations:
    """Draw a split: images `000001.png` ... in `folder/split` and `folder/split.json`."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    few, many = (max(1, round(num * (size / 640) ** 2)) for num in OBJECTS_AT_640)
    (folder / split).mkdir(parents=True, exist_ok=True)
    for index in range(num_images):
        image_id, name = index + 1, f"{index + 1:06d}.png"
        scene = draw_scene(0, split, index, size, sides_px=SIDES_PX, num_objects=(few, many))
        write_image(folder / split / name, scene.image)
        images.append({"id": image_id, "file_name": name, "width": size, "height": size})
        for painted in scene.objects:
            x, y, width, height = xyxy_to_xywh(painted.box_xyxy[None])[0].tolist()
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "bbox": [x, y, width, height]}
            annotations.append({**annotation, "category_id": 1, "area": width * height, "iscrowd": 0})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    (folder / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return read_coco(folder / f"{split}.json", folder / split)


@dataclass(frozen=True)
class Measured:
    """One trained detector.

    Attributes:
        ap: AP on the validation images.
        ap50: AP50 on the same.
        step_s: median time of a training step.
        image_s: time of an image in evaluation.
    """

    ap: float
    ap50: float
    step_s: float
    image_s: float


def measure(folder: Path, overrides: list[str], val: CocoAnnotations) -> Measured:
    """Train a detector and evaluate it."""
    ends_s: list[float] = []

    def note(event: Event) -> None:
        if isinstance(event, StepDone):
            ends_s.append(time.process_time())

    splits = ", ".join(f"{s}: {{annotations: {folder / s}.json, images: {folder / s}}}" for s in ("train", "val"))
    fixed = [f"data={{name: coco, {splits}}}", f"train.project={folder / 'runs'}", "device=cpu", "loader.workers=0"]
    fixed += ["train.evaluations=1", "train.precision=fp32", "evaluate.max_detections=300"]
    run = train(load_experiment("mish-n", [*fixed, *overrides]), report=note)
    loaded = load_model(run.folder.last, ["evaluate.batch_size=4"])
    begun_s = time.process_time()
    stats = evaluate_model(loaded, val).metrics.stats
    image_s = (time.process_time() - begun_s) / len(val)
    return Measured(stats["AP"], stats["AP50"], float(np.median(np.diff(ends_s))), image_s)


def row_of(name: str, found: list[Measured]) -> str:
    """Return a row of the table: means over the seeds, and each AP."""

    def mean(what: str) -> float:
        return statistics.fmean(getattr(one, what) for one in found)

    each = ", ".join(f"{one.ap:.3f}" for one in found)
    return (
        f"| {name} | {mean('ap'):.3f} | {each} | {mean('ap50'):.3f} | {1e3 * mean('step_s'):.0f} | "
        f"{1e3 * mean('image_s'):.1f} |"
    )


def main() -> None:
    """Print the table that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=640, help="side of the images in pixels (default 640)")
    parser.add_argument("--train", type=int, default=400, help="number of training images (default 400)")
    parser.add_argument("--val", type=int, default=100, help="number of validation images (default 100)")
    parser.add_argument("--iterations", type=int, default=2000, help="training steps (default 2000)")
    parser.add_argument("--batch", type=int, default=8, help="images in a batch (default 8)")
    parser.add_argument("--width", type=float, default=0.25, help="model.width (default 0.25, that of mish-n)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each row (default 1)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="only rows whose name begins with NAME (repeatable)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of all rows")
    arguments = parser.parse_args()
    names = [name for name in ROWS if name.startswith(tuple(arguments.only or [""]))]
    torch.set_num_threads(1)
    common = [f"input.size={arguments.size}", f"train.iterations={arguments.iterations}"]
    common += [f"loader.batch_size={arguments.batch}", f"model.width={arguments.width}", *arguments.overrides]
    found: dict[str, list[Measured]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        draw_split(folder, "train", arguments.train, arguments.size)
        val = draw_split(folder, "val", arguments.val, arguments.size)
        for seed in range(arguments.seeds):  # all rows of a seed first, so that an interrupted benchmark has pairs
            for name in names:
                found[name].append(measure(folder, [*common, *ROWS[name], f"train.seed={seed}"], val))
                print(f"{name}, seed {seed}: {found[name][-1]}", file=sys.stderr, flush=True)
    print(f"{len(val)} validation images of {arguments.size} px, {val.num_boxes} objects\n")
    print("| row | AP | AP of each seed | AP50 | ms a step | ms an image |\n|---|---|---|---|---|---|")
    print("\n".join(row_of(name, found[name]) for name in names))


if __name__ == "__main__":
    main()
