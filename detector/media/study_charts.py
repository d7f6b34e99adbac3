"""Charts of a study, each as the bytes of a PNG: differences from a baseline, means along an axis, single runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from detector.media.charts import INK, as_png, new_panel, shortened
from detector.media.run_charts import COLOURS

_SOFT = "#8A939C"


@dataclass(frozen=True)
class ValuesOfCell:
    """Runs of one combination of settings; missing numbers are NaN.

    Attributes:
        values: values of the runs.
        mean: mean of the values.
        low: lower end of the interval of the mean.
        high: upper end of the interval of the mean.
    """

    values: Sequence[float]
    mean: float
    low: float
    high: float


def effect_chart(rows: Sequence[tuple[str, float, float, float, bool]], label: str) -> bytes:
    """Draw differences with their intervals, one per row; those that a test supports are coloured.

    Args:
        rows: name, difference, both ends of its interval, and whether a test supports it.
        label: label of the axis.
    """
    figure, panel = new_panel(height_in=0.9 + 0.3 * len(rows))
    for number, (_, difference, low, high, is_supported) in enumerate(rows):
        place, colour = len(rows) - 1 - number, COLOURS[0] if is_supported else _SOFT
        panel.plot([low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="round")
        panel.plot([difference], [place], "o", color=colour, markersize=6)
    panel.axvline(0, color=INK, linewidth=1)
    panel.set_yticks(range(len(rows))[::-1], [shortened(name) for name, *_ in rows], parse_math=False)
    panel.set_ylim(-0.6, len(rows) - 0.4)
    panel.grid(axis="y", visible=False)
    return as_png(figure, panel, f"{label} (blue: the test supports it)", "", False)


def trend_chart(
    places: Sequence[str], lines: Mapping[str, Sequence[ValuesOfCell]], x_label: str, y_label: str
) -> bytes:
    """Draw means along an axis, a line for each recipe, with intervals and the runs themselves.

    Args:
        places: names along the x axis; if all are numbers, they are placed at their values and joined by lines.
        lines: for each recipe, one cell per place.
        x_label: label of the x axis.
        y_label: label of the y axis.
    """
    figure, panel = new_panel()
    numbers = _numbers(places)
    x = numbers if numbers is not None else [float(i) for i in range(len(places))]
    step = min((abs(b - a) for a, b in itertools.pairwise(x)), default=1.0)
    for number, (name, cells) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        own = [at + step * 0.06 * (number - (len(lines) - 1) / 2) for at in x]  # next to each other
        style = "o" if numbers is None else "o-"  # names are not joined by lines
        panel.plot(own, [cell.mean for cell in cells], style, color=colour, linewidth=1.8, markersize=4.5, label=name)
        for at, cell in zip(own, cells, strict=True):
            if not math.isnan(cell.low):
                panel.plot([at, at], [cell.low, cell.high], color=colour, linewidth=1.4, alpha=0.8)
            panel.plot([at] * len(cell.values), cell.values, "o", color=colour, markersize=2.5, alpha=0.35)
    panel.set_xticks(x, [shortened(place) for place in places], parse_math=False)
    return as_png(figure, panel, x_label, y_label, True)


def value_chart(cells: Mapping[str, ValuesOfCell], label: str) -> bytes:
    """Draw every run as a dot, one row per combination, with means and intervals."""
    figure, panel = new_panel(height_in=0.9 + 0.28 * len(cells))
    for number, cell in enumerate(cells.values()):
        place = len(cells) - 1 - number
        if not math.isnan(cell.low):
            panel.plot([cell.low, cell.high], [place, place], color=COLOURS[0], linewidth=2)
        panel.plot(cell.values, [place] * len(cell.values), "o", color=INK, markersize=4.5, alpha=0.5, zorder=3)
        panel.plot([cell.mean], [place], "|", color=COLOURS[0], markersize=13, markeredgewidth=2.4)
    panel.set_yticks(range(len(cells))[::-1], [shortened(name) for name in cells], parse_math=False)
    panel.set_ylim(-0.6, len(cells) - 0.4)
    panel.grid(axis="y", visible=False)
    return as_png(figure, panel, label, "", False)


def _numbers(texts: Sequence[str]) -> list[float] | None:
    try:
        return [float(text) for text in texts]
    except ValueError:
        return None
