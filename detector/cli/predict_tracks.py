"""`detector predict --track`: the options for tracking and counting, and the counts as text."""

from __future__ import annotations

from collections import Counter

from detector.inference.counting import Counts


def counts_text(name: str, counts: Counts) -> list[str]:
    """Return the counts of the video of a name, a line for each."""
    lines = [
        f"{name}: line {number}: {_listed(line.to_right)} to its right, {_listed(line.to_left)} to its left"
        for number, line in enumerate(counts.lines, start=1)
    ]
    zones = [
        f"{name}: zone {number}: {_listed(zone.distinct)} in all, {_listed(zone.present)} at the end"
        for number, zone in enumerate(counts.zones, start=1)
    ]
    return [*lines, *zones]


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"
