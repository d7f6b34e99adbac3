"""Report of everything that needs an NVIDIA GPU: correct, how fast, and whether the targets are met; under 8 minutes.

    PYTHONPATH=. python tools/gpu_report.py --json gpu.json --document docs/benchmarks/gpu.md

Each part is a process with a time limit. Results are saved after every part, so that an interruption loses at most the
part that runs; `--parts` repeats some and keeps the others. `DETECTOR_TEST_DATA` names a folder with BCCD for the
training of 90 seconds. `--dry-run` runs every part at tiny size on the CPU, which measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_targets import judged, rows

Row = dict[str, Any]
# Seconds after which a part is stopped, in the order in which they run: 470 in all.
LIMITS = {
    "environment": 15, "kernels": 60, "norm": 60, "tests": 60, "step": 45, "copies": 15, "prediction": 30,
    "training": 125, "network": 40, "exports": 20,
}  # fmt: skip
_SPARE_S = 8.0  # the start of a process and its last result
TITLES = {
    "environment": "Machine", "tests": "Tests of `make gpu`", "kernels": "Mish", "norm": "Batch norm + Mish",
    "network": "CSP-Darknet53", "step": "Training step of mish-n, 640 px", "copies": "Copies of 64 images of 640 px",
    "prediction": "Prediction by mish-n, 640 px", "training": "BCCD, 90 seconds", "exports": "Exports",
}  # fmt: skip


def run_part(name: str, command: Sequence[str], output: Path, limit_s: float) -> Row:
    """Run a part as a process with a time limit and return its results, also those before a failure.

    Args:
        name: the part.
        command: the program and its arguments.
        output: the file that it writes its tables into.
        limit_s: seconds after which it is stopped, with all processes that it started.
    """
    output.unlink(missing_ok=True)
    started_s = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, errors = process.communicate(timeout=limit_s)
        lines = errors.strip().splitlines()
        status = "done" if process.returncode == 0 else f"failed: {lines[-1][:300] if lines else process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        status = f"stopped after {limit_s:.0f} s"
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    tables = json.loads(output.read_text("utf-8")) if output.is_file() else {}
    output.unlink(missing_ok=True)
    print(f"{name}: {status}, {time.monotonic() - started_s:.0f} s", flush=True)
    return {"status": status, "seconds": round(time.monotonic() - started_s, 1), "tables": tables}


def dry_part(name: str) -> Row:
    """Run a part at tiny size on the CPU, in this process."""
    import torch
    from gpu_parts import PARTS, Part

    part = Part(torch.device("cpu"), True, 600.0)  # sizes end a dry part, not the time
    started_s = time.monotonic()
    PARTS[name](part)
    return {"status": "dry run", "seconds": round(time.monotonic() - started_s, 1), "tables": part.tables}


def table_text(listed: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table with the columns of all of them."""
    columns = list(dict.fromkeys(column for row in listed for column in row))
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in listed:
        cells = (row.get(column, "") for column in columns)
        lines.append(f"| {' | '.join(f'{c:g}' if isinstance(c, float) else str(c) for c in cells)} |")
    return "\n".join(lines)


def document_text(results: Mapping[str, Row], is_dry: bool) -> str:
    """Return the report as Markdown."""
    facts = {row["fact"]: row["value"] for row in rows(results, "environment", "environment")}
    head = f"{facts.get('GPU', 'unknown GPU')}, torch {facts.get('torch', 'unknown')}, CUDA {facts.get('CUDA', '')}"
    parts = ["# NVIDIA GPU, measured", f"`python tools/gpu_report.py` on: {head}."]
    if is_dry:
        parts.append("This was a dry run on a CPU: no number here is a measurement.")
    parts += ["## Targets", table_text(judged({} if is_dry else results))]
    for name in [name for name in LIMITS if name in results]:
        result = results[name]
        parts.append(f"## {TITLES[name]}\n\n{result['status']}, {result['seconds']:g} s")
        for table, listed in result["tables"].items():
            text = table_text(listed)
            parts.append(text if len(result["tables"]) == 1 else f"`{table}`\n\n{text}")
    return "\n\n".join(parts) + "\n"


def save(results: Mapping[str, Row], json_path: Path, document: Path | None, is_dry: bool) -> None:
    """Write the results and the document, each as a whole."""
    texts = {json_path: json.dumps(results, indent=1)} | (
        {} if document is None else {document: document_text(results, is_dry)}
    )
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(text, "utf-8")
        partial.replace(path)


def main(words: Sequence[str] | None = None) -> None:
    """Run the parts and write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("gpu-report.json"), help="results; those of other parts stay")
    parser.add_argument("--document", type=Path, help="a Markdown file, such as docs/benchmarks/gpu.md")
    parser.add_argument("--parts", default=",".join(LIMITS), help="comma-separated; default: all")
    parser.add_argument("--seconds", type=float, default=475, help="no part runs longer than until this time")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, to check that everything runs")
    options = parser.parse_args(words)
    names = options.parts.split(",")
    if unknown := sorted(set(names) - set(LIMITS)):
        parser.error(f"--parts: expected some of {', '.join(LIMITS)}, got {', '.join(unknown)}")
    results: dict[str, Row] = json.loads(options.json.read_text("utf-8")) if options.json.is_file() else {}
    ends_s = time.monotonic() + options.seconds
    script, scratch = Path(__file__).with_name("gpu_parts.py"), options.json.with_suffix(".part.json").absolute()
    for name in [name for name in LIMITS if name in names]:
        limit_s = min(LIMITS[name], ends_s - time.monotonic())
        if options.dry_run:
            results[name] = dry_part(name)
        elif limit_s < _SPARE_S:
            results.setdefault(name, {"status": "not begun: out of time", "seconds": 0.0, "tables": {}})
        else:
            own_s = min(90.0, limit_s - _SPARE_S)
            command = [sys.executable, str(script), name, "--output", str(scratch), "--seconds", str(own_s)]
            results[name] = run_part(name, command, scratch, limit_s)
        save(results, options.json, options.document, options.dry_run)


if __name__ == "__main__":
    main()
