"""Counts with their nouns, for messages and reports."""

from __future__ import annotations


def plural(count: int, one: str, many: str = "") -> str:
    """Return a count with its noun: `1 box`, `1,204 boxes`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
