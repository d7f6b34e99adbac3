"""Benchmark of the start: `from detector import Detector` and `detector predict` against `import torch`.

    python tools/benchmark_startup.py --rounds 9

Each turn is a new process, with byte code and files in the cache. The processes alternate, so that a change in the
speed of the machine affects all of them. Processor time is the user and system time of a process; other work on the
machine changes it less than the time on the clock.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from detector.data.synthetic_detection import draw_shapes

BASE = "import torch"


def turn(command: Sequence[str]) -> tuple[float, float]:
    """Run a program, and return the seconds on the clock and of the processor."""
    before, started_s = os.times(), time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    clock_s, after = time.monotonic() - started_s, os.times()
    return clock_s, after.children_user + after.children_system - before.children_user - before.children_system


def commands_of(folder: Path, model: str) -> dict[str, list[str]]:
    """Return the programs by name; the predictions use one drawn image of 640 x 640 below a folder."""
    draw_shapes(folder / "shapes", num_train=1, num_val=1, image_size=640)
    photo = next((folder / "shapes/images/val").iterdir())
    predict = [sys.executable, "-m", "detector", "predict", model, str(photo), "-q"]
    return {
        BASE: [sys.executable, "-c", BASE],
        "from detector import Detector": [sys.executable, "-c", "from detector import Detector"],
        f"detector predict {model} photo.jpg --json": [*predict, "--json"],
        f"detector predict {model} photo.jpg --out FOLDER": [*predict, "--out"],
    }


def main() -> None:
    """Print the median times of the programs and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--model", default="yolox-nano", help="a model file or the name of published weights")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    with tempfile.TemporaryDirectory() as name:
        commands = commands_of(Path(name), options.model)
        times: dict[str, list[tuple[float, float]]] = {what: [] for what in commands}
        for round_ in range(options.rounds + 1):
            for what, command in commands.items():
                spent = turn([*command, f"{name}/{round_}"] if command[-1] == "--out" else command)
                if round_:  # the first one writes the byte code
                    times[what].append(spent)
    print(f"{os.cpu_count()} cores, load before {load:.1f}, median of {options.rounds} turns\n")
    print("| program | s | ratio | processor s | ratio |\n|---|---:|---:|---:|---:|")
    clock_s, processor_s = (statistics.median(column) for column in zip(*times[BASE], strict=True))
    for what, spent_s in times.items():
        clock, processor = (statistics.median(column) for column in zip(*spent_s, strict=True))
        ratios = clock / clock_s, processor / processor_s
        print(f"| `{what}` | {clock:.2f} | {ratios[0]:.2f} | {processor:.2f} | {ratios[1]:.2f} |")


if __name__ == "__main__":
    main()
