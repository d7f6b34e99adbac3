"""`detector results`."""

from __future__ import annotations

import argparse
from pathlib import Path

from detector.cli.progress import say
from detector.io.nouns import plural
from detector.workflows.merged_parts import merge_parts


def run(arguments: argparse.Namespace) -> int:
    """Merge the parts of a prediction; return the exit code."""
    counts = merge_parts([Path(word) for word in arguments.words[1:]], arguments.out)
    say(f"{plural(counts.num_images, 'image')}, {counts.num_unread} of them could not be read", arguments.quiet)
    print(arguments.out)
    return 0
