"""Run every benchmark of docs/benchmarks on this machine and write one page with all tables.

    python tools/benchmark_all.py
    python tools/benchmark_all.py --only step,growth --out tables.md

The page states the processor, the instruction set in effect, the cores, the versions and the load. It is written only
if the machine is quiet: the load average must be under 0.2 before the first benchmark, and other processes may use at
most 0.2 cores during each. The network has random weights, because times do not depend on them.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from detector.io.machine import machine
from detector.models.precision import has_native_bf16

_TOOLS = Path(__file__).parent
_MOST_LOAD = 0.2  # cores that other processes may use
BENCHMARKS: Mapping[str, Sequence[str]] = {
    "step": ("benchmark_step.py",),
    "training": ("benchmark_training.py",),
    "inference": (
        "-m",
        "detector",
        "benchmark",
        "mish-n",
        "--sizes",
        "320,640",
        "--markdown",
        "--backends",
        "reference,torch-fp32,onnx,openvino",
    ),
    "mish": ("benchmark_mish.py", "--sections", "cpu", "--device", "cpu"),
    "losses": ("benchmark_losses.py",),
    "evaluation": ("benchmark_evaluation.py", "--compare"),
    "video": ("benchmark_video.py", "weights/yolox-nano.safetensors"),
    "tracking": ("benchmark_tracking.py", "--times", "100,500"),
    "tiling": ("benchmark_tiling.py",),
    "waiting": ("benchmark_waiting.py",),
    "waiting-images": ("benchmark_waiting.py", "--images", "--rounds", "40", "--busy", "2"),
    "growth": ("benchmark_growth.py",),
    "startup": ("benchmark_startup.py",),
}


@dataclass(frozen=True)
class Measured:
    """Output of a benchmark.

    Attributes:
        command: the command, as a person types it.
        output: what it printed.
        wall_s: its time.
        other_cores: cores that other processes used meanwhile, on average; None where the system does not tell.
    """

    command: str
    output: str
    wall_s: float
    other_cores: float | None


def busy_s() -> float | None:
    """Return the processor time that all processes have used since the start of the machine; None outside Linux."""
    try:
        numbers = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, numbers[:8])  # proc(5), in ticks
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_s() -> float:
    """Return the processor time of this process and of its children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def measured(words: Sequence[str]) -> Measured:
    """Run a benchmark; its failure ends the program."""
    command = [str(_TOOLS / word) if word.startswith("benchmark_") else word for word in words]
    before, own_before_s, started_s = busy_s(), own_s(), time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    wall_s = time.perf_counter() - started_s
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-2000:]}")
    after = busy_s()
    other = None if before is None or after is None else max(0.0, (after - before - (own_s() - own_before_s)) / wall_s)
    shown = " ".join(f"tools/{word}" if word.startswith("benchmark_") else word for word in words)
    return Measured(f"python {shown}", done.stdout.strip(), wall_s, other)


def require_quiet(what: str, cores: float | None) -> None:
    """End the program if other processes use too much of the machine."""
    if cores is not None and cores > _MOST_LOAD:
        raise SystemExit(
            f"{what}: expected at most {_MOST_LOAD} cores in use by other processes, got {cores:.2f}; nothing is "
            "written, stop them and start again"
        )


def section(name: str, result: Measured) -> str:
    """Return a benchmark as Markdown: tables as they are, lines between them as text."""
    other = "" if result.other_cores is None else f", {result.other_cores:.2f} cores in use by other processes"
    return f"## {name}\n\n    {result.command}\n\nTook {result.wall_s:.0f} s{other}.\n\n{result.output}\n"


def heading(load: float | None) -> str:
    """Return the head of the page: what was measured, where and when."""
    arithmetic = f"torch uses {torch.backends.cpu.get_cpu_capability()}"
    arithmetic += f", {'with' if has_native_bf16(torch.device('cpu')) else 'without'} bf16 instructions"
    loaded = "" if load is None else f", load {load:.2f} at the start"
    return (
        "# All tables of one machine\n\n"
        f"Written by `tools/benchmark_all.py` on {datetime.date.today().isoformat()}: {machine()}; "
        f"{os.cpu_count()} cores; {arithmetic}{loaded}.\n"
    )


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(BENCHMARKS), help="names, separated by commas (default: all)")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/tables.md"), help="default: %(default)s")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := set(names) - BENCHMARKS.keys():
        parser.error(f"expected names of {', '.join(BENCHMARKS)}, got {', '.join(sorted(unknown))}; correct them")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    require_quiet("before the first benchmark", load)
    sections = []
    for name in names:
        result = measured(BENCHMARKS[name])
        print(f"{name}: {result.wall_s:.0f} s", file=sys.stderr, flush=True)
        require_quiet(name, result.other_cores)
        sections.append(section(name, result))
    options.out.write_text("\n".join((heading(load), *sections)), encoding="utf-8")
    print(options.out)


if __name__ == "__main__":
    main()
