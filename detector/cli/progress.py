"""Lines for people, on stderr."""

from __future__ import annotations

import sys


def say(text: str, quiet: bool = False) -> None:
    """Print a line on stderr."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)


def say_warning(text: str) -> None:
    """Print a line that also matters to readers of results only."""
    say(f"warning: {text}")
