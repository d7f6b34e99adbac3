"""Metrics as text: numbers, aligned columns and the note that explains n/a."""

from __future__ import annotations

import math
from collections.abc import Sequence

_MAX_CLASSES_SHOWN = 200  # as in the pages of reports


def number_text(value: float, digits: int = 3) -> str:
    """Return a metric as text, or n/a where there was no ground truth to measure it on (NaN)."""
    return "n/a" if math.isnan(value) else f"{value:.{digits}f}"


def class_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table of classes, which ends after the first 200 with the number of the others."""
    more = len(rows) - _MAX_CLASSES_SHOWN
    note = [f"and {more} more classes, which --json lists"] if more > 0 else []
    return columns([header, *rows[:_MAX_CLASSES_SHOWN]]) + note


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table: the first column aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(text.rjust(w) for text, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def with_note(text: str) -> str:
    """Return a text, followed by a line that explains n/a if it occurs."""
    return f"{text}\n\nn/a: no ground truth" if " n/a" in text else text
