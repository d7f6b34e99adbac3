"""Benchmark of the ways in which torch's idle threads wait, on a quiet and on a busy machine.

    python tools/benchmark_waiting.py --size 320 --batch-size 16 --rounds 5 --busy 4 --precision bf16
    python tools/benchmark_waiting.py --images --rounds 40

Each variant is a process of its own that makes training steps of mish-n, or with `--images` runs its folded network on
five single images. The processes alternate step by step, first alone and then beside `--busy` processes that compute
without pause. The first table describes a quiet machine only if nothing else runs on it; the load is printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from turns import take_turns

OURS = "the package's default"
DEFAULT_SPINS = "300000"  # of libgomp without its variables
VARIANTS = {
    OURS: {"GOMP_SPINCOUNT": "30000"},
    "10,000 spins": {"GOMP_SPINCOUNT": "10000"},
    "2,000 spins": {"GOMP_SPINCOUNT": "2000"},
    "libgomp's default": {"GOMP_SPINCOUNT": DEFAULT_SPINS},
    "OMP_WAIT_POLICY=passive": {"GOMP_SPINCOUNT": "0"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
NUM_IMAGES = 5


def image_worker(size: int) -> None:
    """Run the network on single images for each line on stdin and print the milliseconds of one."""
    import torch

    from detector.inference.runtime import TorchRuntime
    from detector.tasks.detection_model import build_model, load_detection

    runtime = TorchRuntime(build_model(load_detection("mish-n"), 80), torch.device("cpu"))
    canvas = np.zeros((1, size, size, 3), np.uint8)
    for _ in sys.stdin:
        started_s = time.perf_counter()
        for _ in range(NUM_IMAGES):
            runtime.boxes(canvas)
        print((time.perf_counter() - started_s) * 1e3 / NUM_IMAGES, flush=True)


def measure(command: list[str], rounds: int, num_busy: int) -> None:
    """Print the table of all variants beside a number of busy processes."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num_busy)]
    try:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
        times = take_turns(dict.fromkeys(VARIANTS, command), rounds, warmup=2, environments=VARIANTS)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    print(f"\n{num_busy} busy processes, load before {load:.1f}\n\n| idle threads | ms | ratio |\n|---|---|---|")
    first = statistics.median(times[OURS])
    for name, values in times.items():
        print(f"| {name} | {statistics.median(values):.1f} | {statistics.median(values) / first:.2f} |", flush=True)


def main() -> None:
    """Measure alone and beside busy processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", type=int, default=2 * (os.cpu_count() or 1), help="default: two for each core")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--images", action="store_true", help="single images instead of training steps, in fp32")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        image_worker(options.size)
        return
    size = ["--size", str(options.size)]
    if options.images:
        command = [sys.executable, __file__, *size, "--worker"]
        print(f"mish-n, one image, {options.size} px, fp32, ", end="")
    else:
        step = str(Path(__file__).with_name("benchmark_step.py"))
        size += ["--batch-size", str(options.batch_size)]
        command = [sys.executable, step, *size, "--worker", "mish", options.precision, "channels_last"]
        print(f"mish-n training step, {options.size} px, batch {options.batch_size}, {options.precision}, ", end="")
    print(f"{os.cpu_count()} cores, median")
    for num_busy in (0, options.busy):
        measure(command, options.rounds, num_busy)


if __name__ == "__main__":
    main()
