"""`detector new`."""

from __future__ import annotations

import argparse
from pathlib import Path

from detector.errors import ConfigError
from detector.workflows.part_templates import USES, write_template


def run(arguments: argparse.Namespace) -> int:
    """Write a file with a working part of a kind, to be changed; return the exit code."""
    *kind, file = arguments.words or [""]
    if not kind:
        raise ConfigError(
            f"expected a kind of part and a file, got {file or 'neither'}; give one such as: detector new backbone "
            f"my_backbone.py. Kinds: {', '.join(USES)}"
        )
    use = write_template(" ".join(kind), Path(file))
    print(f"{file} holds a working part; change it, and use it with\n{use}")
    return 0
