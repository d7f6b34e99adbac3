"""`detector benchmark`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from detector.cli.progress import say
from detector.errors import ConfigError
from detector.evaluation.number_text import columns
from detector.io.machine import machine
from detector.workflows.benchmark import BenchmarkConfig, Timing, benchmark, default_backends


def run(arguments: argparse.Namespace) -> int:
    """Time back ends side by side; return the exit code."""
    overrides = [word for word in arguments.words if "=" in word]
    try:
        sizes = tuple(int(word) for word in arguments.sizes.split(",")) if arguments.sizes else ()
    except ValueError as error:
        raise ConfigError(f"--sizes: expected numbers such as 320,640, got {arguments.sizes!r}") from error
    config = BenchmarkConfig(
        models=tuple(word for word in arguments.words if word not in overrides),
        backends=tuple(arguments.backends.split(",")) if arguments.backends else default_backends(),
        sizes=sizes,
        batch_size=arguments.batch,
        num_turns=arguments.turns,
        num_threads=arguments.threads,
        overrides=tuple(overrides),
        imports=tuple(arguments.imports),
    )
    timings = benchmark(config, lambda text: say(text, arguments.quiet))
    done = [timing for timing in timings if timing.error is None]
    if not done:
        raise ConfigError(timings[0].error or "nothing was timed")
    if arguments.json:
        print(json.dumps({"machine": machine(), "timings": [_plain(timing) for timing in timings]}))
        return 0
    print(f"{machine()}; image in memory to boxes out, {config.num_turns} turns of {config.num_calls} calls\n")
    print("\n".join((_markdown if arguments.markdown else columns)(_rows(done))))
    for timing in timings:
        if timing.error is not None:
            print(f"\n{timing.model}, {timing.backend}: {timing.error}")
    return 0


_HEADS = ("model", "back end", "size", "batch", "median ms", "p95 ms", "images/s", "speed-up", "peak MB", "ready s")


def _rows(timings: Sequence[Timing]) -> list[tuple[str, ...]]:
    """Return the rows of the table; the speed-up is relative to the first row of the same size."""
    first: dict[int | None, float] = {}
    rows: list[tuple[str, ...]] = [_HEADS]
    for timing in timings:
        base_ms = first.setdefault(timing.size, timing.median_ms)
        peak = "n/a" if timing.peak_bytes is None else f"{timing.peak_bytes / 1e6:.0f}"
        speed = f"{timing.median_ms:.1f}", f"{timing.p95_ms:.1f}", f"{timing.images_per_s:.1f}"
        what = timing.model, timing.backend, str(timing.size or "own"), str(timing.batch_size)
        rows.append((*what, *speed, f"{base_ms / timing.median_ms:.2f}", peak, f"{timing.ready_s:.1f}"))
    return rows


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _plain(timing: Timing) -> dict[str, object]:
    numbers = {name: getattr(timing, name) for name in ("median_ms", "p95_ms", "images_per_s") if timing.call_ms}
    return {**vars(timing), **numbers}
