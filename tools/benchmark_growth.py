"""Benchmark of the growth of time and memory with the number of images.

    python tools/benchmark_growth.py --images 100,1000,10000

Each row is a command in a process of its own, on a COCO data set of images of 64 x 48 pixels with three boxes each:
`detector check`; the start of a training, which ends after one step; a training of one epoch; `detector evaluate`;
`detector predict` without pictures. The network is a mish-n of an eighth of the width on a canvas of 32 px, so that the
time is spent around it. Times are seconds of processor time, user and system, of the command and its child processes,
so that other work on the machine adds little. The exponent of a command is that of its time from the second largest to
the largest number of images, after its time for the smallest number, which is its start, is subtracted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

_IMAGE_HW = (48, 64)
_TINY = ("input.size=32", "model.width=0.125", "device=cpu", "train.seed=0")


@dataclass(frozen=True)
class Cost:
    """Cost of a command.

    Attributes:
        cpu_s: seconds of processor time of the process and of its children.
        peak_mb: largest resident memory of the process or of one of its children, in megabytes.
    """

    cpu_s: float
    peak_mb: float


def draw_set(folder: Path, num_images: int) -> Path:
    """Write a data set of `num_images` images for training and validation, and return its data.yaml."""
    images, generator = folder / "images", np.random.default_rng(0)
    images.mkdir(parents=True)
    height, width = _IMAGE_HW
    for index in range(num_images):  # noise, because look-alikes cost more than other images
        cv2.imwrite(str(images / f"{index:07d}.jpg"), generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
    content = {
        "images": [
            {"id": index, "file_name": f"{index:07d}.jpg", "height": height, "width": width}
            for index in range(num_images)
        ],
        "annotations": [
            {
                "id": 3 * index + number,
                "image_id": index,
                "category_id": 1 + (index + number) % 5,
                "bbox": [4.0 + 16 * number, 6.0 + index % 20, 12.0, 14.0],
                "area": 168.0,
                "iscrowd": 0,
            }
            for index in range(num_images)
            for number in range(3)
        ],
        "categories": [{"id": number, "name": f"class {number}"} for number in range(1, 6)],
    }
    few = {**content, "images": content["images"][:16], "annotations": content["annotations"][:48]}
    for name, part in (("all", content), ("few", few)):
        (folder / f"{name}.json").write_text(json.dumps(part))
    split = "{{annotations: {}/{}.json, images: {}}}"
    for name, val in (("train", "few"), ("val", "all")):
        lines = (f"train: {split.format(folder, 'all', images)}", f"val: {split.format(folder, val, images)}")
        (folder / f"{name}.yaml").write_text("\n".join(("name: coco", *lines, "")))
    return folder / "train.yaml"


def cost_of(words: Sequence[str], folder: Path) -> Cost:
    """Run a command of `detector` in a folder and return its cost; its output ends the benchmark if it fails."""
    command = [sys.executable, "-m", "detector", *words]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{output.read()[-2000:].decode()}")
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def commands(folder: Path, weights: Path) -> dict[str, list[str]]:
    """Return the measured commands on a data set of `draw_set`, by name."""
    train = ["train", "mish-n", f"data={folder}/train.yaml", *_TINY, "loader.batch_size=64"]
    return {
        "check": ["check", f"{folder}/train.yaml"],
        "start of training": [*train, "train.iterations=1", "--out", str(folder / "start")],
        "one epoch": [*train, "train.epochs=1", "--out", str(folder / "epoch")],
        "evaluate": ["evaluate", str(weights), f"data={folder}/val.yaml", "loader.batch_size=64"],
        "predict": ["predict", str(weights), str(folder / "images"), "--no-pictures", "--out", str(folder / "found")],
    }


def exponent(sizes: Sequence[int], costs: Sequence[Cost]) -> float | None:
    """Return the exponent from the second largest to the largest size; None with fewer than three sizes."""
    if len(sizes) < 3:
        return None
    start_s = costs[0].cpu_s
    grown = [max(cost.cpu_s - start_s, 1e-3) for cost in costs[-2:]]
    return math.log(grown[1] / grown[0]) / math.log(sizes[-1] / sizes[-2])


def main() -> None:
    """Measure every command at every size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="100,1000,10000", help="numbers of images, ascending")
    parser.add_argument("--only", help="the commands to measure, separated by commas (default: all)")
    options = parser.parse_args()
    sizes = [int(word) for word in options.images.split(",")]
    costs: dict[str, list[Cost]] = {}
    with tempfile.TemporaryDirectory() as root:
        for size in sizes:
            folder = Path(root) / str(size)
            draw_set(folder, size)
            weights = Path(root) / str(sizes[0]) / "start"
            chosen = commands(folder, weights)
            for name in options.only.split(",") if options.only else chosen:
                costs.setdefault(name, []).append(cost_of(chosen[name], folder))
                print(f"{size:,} images, {name}: {costs[name][-1].cpu_s:.1f} s", file=sys.stderr, flush=True)
    print(f"| command | {' | '.join(f'{size:,}: s, MB' for size in sizes)} | exponent |")
    print("|---" * (len(sizes) + 2) + "|")
    for name, of_command in costs.items():
        cells = " | ".join(f"{cost.cpu_s:.1f}, {cost.peak_mb:.0f}" for cost in of_command)
        power = exponent(sizes, of_command)
        print(f"| {name} | {cells} | {'' if power is None else f'{power:.2f}'} |")


if __name__ == "__main__":
    main()
