"""Timing of several programs that alternate, so that a change in the speed of the machine affects all of them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence


def take_turns(
    commands: Mapping[str, Sequence[str]],
    rounds: int,
    warmup: int,
    environments: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, list[float]]:
    """Return the milliseconds of each program's turns.

    Args:
        commands: by name, programs that do their work for each line on stdin and print its milliseconds.
        rounds: counted turns of each program.
        warmup: turns before them that are not counted.
        environments: by name, variables added to those of this process.
    """
    workers = {
        name: subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environments or {}).get(name, {})},
        )
        for name, command in commands.items()
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(rounds + warmup):
        for name, process in workers.items():
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            milliseconds = float(process.stdout.readline())
            if turn >= warmup:
                times[name].append(milliseconds)
    for process in workers.values():
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
    return times
