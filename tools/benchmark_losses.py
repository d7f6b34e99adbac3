"""Benchmark of the detection losses on this machine: SimOTA of YOLOX against the task-aligned loss.

    python tools/benchmark_losses.py --size 416 --batch-size 16 --rounds 9

Each loss gets raw maps of its own head for the same objects. The two take turns, so that a change in the speed of the
machine affects both. Prints the median time of loss and gradient and the ratio to the task-aligned loss.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor

from detector.config.registry import build
from detector.models.contracts import DetectionModel
from detector.structures.types import Targets
from detector.tasks.detection_model import build_model, load_detection

PRESETS = {"task_aligned": "mish-n", "simota": "yolox-nano"}


def drawn_targets(batch_size: int, num_objects: int, size: int, num_classes: int) -> Targets:
    """Return random objects, as many in each image."""
    total = batch_size * num_objects
    corners = torch.rand(total, 2) * size * 0.7
    return Targets(
        torch.cat([corners, corners + 8 + torch.rand_like(corners) * size * 0.3], dim=1),
        torch.randint(0, num_classes, (total,)),
        torch.arange(batch_size).repeat_interleave(num_objects),
        torch.zeros(total, dtype=torch.bool),
        batch_size,
    )


def raw_maps_of(model: DetectionModel, batch_size: int, size: int) -> tuple[Tensor, ...]:
    """Return the raw maps of random images, which gradients are taken for."""
    with torch.no_grad():
        raw_maps = model(torch.randint(0, 256, (batch_size, 3, size, size), dtype=torch.uint8))
    return tuple(raw_map.requires_grad_() for raw_map in raw_maps)


def main() -> None:
    """Time both losses in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=416)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--num-classes", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.manual_seed(0)
    losses = {}
    for name, preset in PRESETS.items():
        config = load_detection(preset)
        model = build_model(config, options.num_classes).eval()
        losses[name] = build(config.loss, model), raw_maps_of(model, options.batch_size, options.size)
    print("| objects in an image | loss | ms | ratio |\n|---|---|---|---|")
    for num_objects in (2, 8, 32):
        targets = drawn_targets(options.batch_size, num_objects, options.size, options.num_classes)
        times: dict[str, list[float]] = {name: [] for name in losses}
        for turn in range(options.rounds + 2):
            for name, (loss, raw_maps) in losses.items():
                started_s = time.perf_counter()
                torch.autograd.grad(torch.stack(list(loss(raw_maps, targets).values())).sum(), raw_maps)
                if turn >= 2:
                    times[name].append((time.perf_counter() - started_s) * 1e3)
        first = statistics.median(times["task_aligned"])
        for name, values in times.items():
            median = statistics.median(values)
            print(f"| {num_objects} | {name} | {median:.1f} | {median / first:.2f} |")


if __name__ == "__main__":
    main()
