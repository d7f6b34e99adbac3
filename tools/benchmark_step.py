"""Benchmark of a training step of mish-n on this machine: fused kernels against torch's operators.

    python tools/benchmark_step.py --size 320 --batch-size 16 --rounds 5

Each variant is a process of its own. The processes alternate step by step, so that a change in the speed of the machine
affects all of them. Prints the median step of each variant and its ratio to the first.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time

from turns import take_turns

# Name, activation, DETECTOR_MISH, precision and memory format of each variant.
VARIANTS = {
    "fused batch norm + Mish, bf16 channels_last": ("mish", "auto", "bf16", "channels_last"),
    "fused batch norm + Mish, fp32 channels_last": ("mish", "auto", "fp32", "channels_last"),
    "sliced Mish, no compiled kernels, bf16 channels_last": ("mish", "native", "bf16", "channels_last"),
    "nn.BatchNorm2d + F.mish, bf16 channels_last": ("torch_mish", "native", "bf16", "channels_last"),
    "nn.BatchNorm2d + SiLU, bf16 channels_last": ("silu", "native", "bf16", "channels_last"),
    "nn.BatchNorm2d + F.mish, fp32 NCHW": ("torch_mish", "native", "fp32", "contiguous"),
}


def worker(activation: str, precision: str, layout: str, size: int, batch_size: int) -> None:
    """Run one training step for each line on stdin and print its milliseconds."""
    from steps import Step, drawn_batch

    step = Step(activation, precision, layout, 3)
    images, targets = drawn_batch(size, batch_size)
    images = images.contiguous(memory_format=step.layout)
    for _ in sys.stdin:
        started_s = time.perf_counter()
        step(images, targets)
        print(f"{(time.perf_counter() - started_s) * 1e3:.3f}", flush=True)


def main() -> None:
    """Run every variant in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", nargs=3, metavar=("ACTIVATION", "PRECISION", "LAYOUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        activation, precision, layout = options.worker
        worker(activation, precision, layout, options.size, options.batch_size)
        return
    worker_of = [sys.executable, __file__, "--size", str(options.size), "--batch-size", str(options.batch_size)]
    commands = {
        name: [*worker_of, "--worker", act, precision, layout] for name, (act, _, precision, layout) in VARIANTS.items()
    }
    environments = {name: {"DETECTOR_MISH": mish} for name, (_, mish, _, _) in VARIANTS.items()}
    times = take_turns(commands, options.rounds, warmup=2, environments=environments)
    first = statistics.median(times[next(iter(VARIANTS))])
    print(f"mish-n training step, {options.size} px, batch {options.batch_size}, {os.cpu_count()} cores, ", end="")
    print(f"{platform.machine()}, median of {options.rounds}\n\n| variant | ms | ratio |\n|---|---|---|")
    for name, values in times.items():
        print(f"| {name} | {statistics.median(values):.0f} | {statistics.median(values) / first:.2f} |")


if __name__ == "__main__":
    main()
