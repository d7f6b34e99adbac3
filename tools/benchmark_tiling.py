"""Benchmark of prediction in tiles: AP of a small detector on large images of small objects, for each set of views.

    python tools/benchmark_tiling.py                        (draws, trains for some minutes, evaluates; prints Markdown)
    python tools/benchmark_tiling.py --weights best.safetensors --sheets 8
    python tools/benchmark_tiling.py --only "whole"          (the rows whose name begins with "whole")

The detector is trained on the embedded data set: images of 320 x 320 px with objects of 12 to 160 px. It is evaluated
on sheets of 1280 x 1280 px with objects of 12 to 128 px. A sheet consists of 5 x 5 new images of the same kind, drawn
at 256 x 256 px, so that no tile of 320 px shows a single image. Without tiles, a sheet is reduced to the canvas of
training; tiles show it at full size, part by part. Times are seconds of one processor core.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detector.data.coco import CocoAnnotations, read_coco
from detector.data.synthetic_detection import CATEGORY_IDS, CLASS_NAMES, draw_image
from detector.media.images import write_image
from detector.tasks.detection_model import evaluate_model, load_model
from detector.tasks.task import load_experiment
from detector.workflows.train import train

CELL_PX, CELLS = 256, 5
_TILED = ("views.tile=320", "views.overlap=0.2")
# Name of a row and its overrides.
ROWS: dict[str, tuple[str, ...]] = {
    "whole on 320": (),
    "whole on 640": ("input.size=640",),
    "whole on 1280": ("input.size=1280",),
    "whole on 320, mirrored too": ("views.flip=true",),
    "whole on 320, scales 1, 2": ("views.scales=[1, 2]",),
    "tiles of 320": (*_TILED, "views.whole=false"),
    "tiles of 320 without overlap": ("views.tile=320", "views.overlap=0", "views.whole=false"),
    "tiles of 320, mirrored too": (*_TILED, "views.whole=false", "views.flip=true"),
    "tiles of 320, mirrored too, fusion": (*_TILED, "views.whole=false", "views.flip=true", "views.merge=fusion"),
    "tiles of 320 and whole": _TILED,
    "tiles of 320 and whole, fusion": (*_TILED, "views.merge=fusion"),
    "tiles of 320 and whole, mirrored too": (*_TILED, "views.flip=true"),
    "tiles of 320 and whole, mirrored too, fusion": (*_TILED, "views.flip=true", "views.merge=fusion"),
}


def draw_sheets(folder: Path, num_sheets: int, seed: int) -> CocoAnnotations:
    """Draw the sheets: images `000001.png` ... and `sheets.json`."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for sheet in range(num_sheets):
        image_id, name, side = sheet + 1, f"{sheet + 1:06d}.png", CELL_PX * CELLS
        picture = np.zeros((side, side, 3), np.uint8)
        images.append({"id": image_id, "file_name": name, "width": side, "height": side})
        for cell in range(CELLS * CELLS):
            y, x = (CELL_PX * place for place in divmod(cell, CELLS))
            pixels, boxes_xywh, labels, _ = draw_image(seed, "sheets", sheet * CELLS * CELLS + cell, CELL_PX)
            picture[y : y + CELL_PX, x : x + CELL_PX] = pixels
            for (left, top, width, height), label in zip(boxes_xywh.tolist(), labels.tolist(), strict=True):
                annotation = {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "bbox": [left + x, top + y, width, height],
                }
                annotation |= {"category_id": CATEGORY_IDS[CLASS_NAMES[label]], "area": width * height, "iscrowd": 0}
                annotations.append(annotation)
        write_image(folder / name, picture)
    categories = [{"id": identifier, "name": name} for name, identifier in CATEGORY_IDS.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "sheets.json").write_text(json.dumps(content), encoding="utf-8")
    return read_coco(folder / "sheets.json", folder)


def trained(folder: Path, iterations: int) -> Path:
    """Train a detector on the embedded data set, in a folder of its own; return its model file."""
    overrides = [f"train.iterations={iterations}", "train.evaluations=1", "loader.batch_size=8", "loader.workers=0"]
    overrides += [f"data.root={folder / 'shapes'}", f"train.project={folder / 'runs'}", "augment.mosaic=0.5"]
    return train(load_experiment("demo", overrides)).folder.best


def measure(weights: Path, annotations: CocoAnnotations, overrides: tuple[str, ...]) -> tuple[dict[str, float], float]:
    """Return the COCO metrics of a row and its seconds of one core per image."""
    loaded = load_model(weights, [*overrides, "evaluate.batch_size=4", "evaluate.max_detections=1000"])
    begun_s = time.process_time()
    metrics = evaluate_model(loaded, annotations).metrics
    return metrics.stats, (time.process_time() - begun_s) / len(annotations)


def main() -> None:
    """Print the table that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="a trained detector of the six shapes, instead of training one"
    )
    parser.add_argument("--iterations", type=int, default=500, help="training steps (default 500)")
    parser.add_argument("--sheets", type=int, default=16, help="number of sheets (default 16)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sheets")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep data, run and sheets in this folder")
    parser.add_argument("--only", default="", metavar="NAME", help="only rows whose name begins with NAME")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        (folder / "sheets").mkdir(parents=True, exist_ok=True)
        annotations = draw_sheets(folder / "sheets", arguments.sheets, arguments.seed)
        weights = arguments.weights or trained(folder, arguments.iterations)
        print(f"{len(annotations)} sheets, {annotations.num_boxes} objects\n")
        print("| views | AP | AP50 | AP small | AP medium | AP large | s per image |\n|---|---|---|---|---|---|---|")
        for name, overrides in ROWS.items():
            if name.startswith(arguments.only):
                stats, image_s = measure(weights, annotations, overrides)
                numbers = " | ".join(f"{stats[key]:.3f}" for key in ("AP", "AP50", "APs", "APm", "APl"))
                print(f"| {name} | {numbers} | {image_s:.2f} |", flush=True)


if __name__ == "__main__":
    main()
