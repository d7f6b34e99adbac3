"""Benchmark of training end to end, loader and step together: the cost of the loader and the gain of the kernels.

    python tools/benchmark_training.py --data data/bccd.yaml --size 320 --rounds 5

The variants alternate, each a process of its own, so that a change in the speed of the machine affects all of them: the
default path with the real loader, the same step on batches in memory (`memory`), and nn.BatchNorm2d + F.mish in fp32
NCHW with the real loader (`plain`). The first steps of a turn are not timed, because their batches were made while the
others ran. Prints images/s, the ratios and the processor time that the workers need per image.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from turns import take_turns

BATCH_SIZE = 16
NUM_KEPT = 8  # batches in memory, used again and again
OURS, MEMORY, PLAIN = "default, real loader", "default, batches in memory", "fp32 NCHW F.mish, real loader"
# Activation, precision, memory format and source of the batches of each variant.
VARIANTS = {
    OURS: ("mish", "bf16", "channels_last", "loader"),
    MEMORY: ("mish", "bf16", "channels_last", "memory"),
    PLAIN: ("torch_mish", "fp32", "contiguous", "loader"),
}
KERNELS = {OURS: "auto", MEMORY: "auto", PLAIN: "native"}
AGAINST = {"memory": MEMORY, "plain": PLAIN}


def workers_s() -> float:
    """Return the processor seconds of the child processes; 0 unless on Linux."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    if not children.is_file():
        return 0.0
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in children.read_text().split()]
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / os.sysconf("SC_CLK_TCK")


def worker(variant: tuple[str, str, str, str], options: argparse.Namespace) -> None:
    """Train `steps` timed steps for each line on stdin and print the milliseconds per step."""
    from steps import Step

    from detector.data.loader import BatchRange, LoaderConfig, StreamSampler, TrainingSamples, training_batches
    from detector.structures.canvas import Canvas
    from detector.structures.types import Batch
    from detector.tasks.detection_model import load_detection, read_split

    activation, precision, layout, source = variant
    config = load_detection("mish-n", [f"data={options.data}", f"input.size={options.size}"])
    annotations = read_split(config, "train")
    loader = LoaderConfig(BATCH_SIZE, options.workers)
    canvas = Canvas(config.input.canvas_hw, 3, config.input.fit)
    samples = TrainingSamples(annotations, canvas, config.augment, 0, loader.cache_mb)
    sampler = StreamSampler(len(annotations), BATCH_SIZE, 0, BatchRange(0, 10**6, closing_from=10**6))
    batches: Iterator[Batch] = training_batches(samples, sampler, loader)
    if source == "memory":
        batches = itertools.cycle(
            [Batch.of([samples[key] for key in keys]) for keys in itertools.islice(sampler, NUM_KEPT)]
        )
    step = Step(activation, precision, layout, len(annotations.class_names))
    num_made = 4 * options.workers  # batches that the loader can have made while the others ran
    for _ in sys.stdin:
        for number, batch in enumerate(itertools.islice(batches, num_made + options.steps)):
            if number == num_made:
                started_s, workers_started_s = time.perf_counter(), workers_s()
            step(batch.images, batch.targets)
        took_s = time.perf_counter() - started_s
        loading_ms = (workers_s() - workers_started_s) / (options.steps * BATCH_SIZE) * 1e3
        print(f"{source}: {loading_ms:.2f} ms of the workers an image", file=sys.stderr)
        print(f"{took_s / options.steps * 1e3:.3f}", flush=True)


def main() -> None:
    """Run every variant in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", default="shapes", help="a data set, as in data=...")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", choices=AGAINST, nargs="+", default=list(AGAINST))
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(VARIANTS[options.worker], options)
        return
    settings = {name: str(getattr(options, name)) for name in ("data", "size", "workers", "steps")}
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    others = [AGAINST[name] for name in options.against]
    commands = {name: [sys.executable, __file__, *words, "--worker", name] for name in (OURS, *others)}
    environments = {name: {"DETECTOR_MISH": kernels} for name, kernels in KERNELS.items()}
    times = take_turns(commands, options.rounds, warmup=1, environments=environments)
    rates = {name: [BATCH_SIZE * 1e3 / step_ms for step_ms in values] for name, values in times.items()}
    print(f"mish-n, {options.data}, {options.size} px, batch {BATCH_SIZE}, {options.workers} workers, ", end="")
    print(f"{os.cpu_count()} cores, {platform.machine()}, median of {options.rounds} turns of {options.steps} steps\n")
    print("| variant | images/s |\n|---|---|")
    for name, values in rates.items():
        print(f"| {name} | {statistics.median(values):.1f} |")
    for name in others:
        ratios = [ours / other for ours, other in zip(rates[OURS], rates[name], strict=True)]
        print(f"\n{OURS} : {name} = {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
