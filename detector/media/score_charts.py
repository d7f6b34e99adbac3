"""Charts of the quality of a model, each as the bytes of a PNG: curves, calibration, confusion, errors, slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from detector.media.charts import COLOURS, GRID, INK, as_png, new_panel, shortened

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_MAX_CLASSES_NAMED = 6  # there are only so many colours: the best and worst are named, the others are grey
_MAX_CELLS_WRITTEN = 25  # classes of a confusion matrix up to which its cells show numbers
_SOFT = "#C9CDD2"


def curve_chart(
    x: Floats,
    by_class: Mapping[str, Floats],
    overall: Floats,
    labels: tuple[str, str],
    mark: tuple[float, float, str] | None = None,
) -> bytes:
    """Draw a line for each class and a thick one for all; of many classes only the best and worst are named.

    Args:
        x: float64 (K,), x values of the curves.
        by_class: float64 (K,) of each class; NaN where there is no value.
        overall: float64 (K,), of all classes.
        labels: labels of the x and y axis.
        mark: x and y of a point to mark, and its text.
    """
    figure, panel = new_panel()
    known = {name: y for name, y in by_class.items() if np.isfinite(y).any()}
    by_mean = sorted(known, key=lambda name: -float(np.nan_to_num(known[name]).mean()))
    half = _MAX_CLASSES_NAMED // 2
    named = by_mean if len(by_mean) <= _MAX_CLASSES_NAMED else [*by_mean[:half], *by_mean[-half:]]
    for name in by_mean:
        if name not in named:
            panel.plot(x, known[name], color=_SOFT, linewidth=0.8)
    for number, name in enumerate(named):
        style = "-" if number < len(COLOURS) else "--"
        colour = COLOURS[number % len(COLOURS)]
        panel.plot(x, known[name], color=colour, linewidth=1.4, linestyle=style, label=_plain(shortened(name)))
    panel.plot(x, overall, color=INK, linewidth=2.6, label="all classes")
    if mark is not None and np.isfinite(mark[:2]).all():
        panel.plot([mark[0]], [mark[1]], "o", color=INK, markersize=6)
        side = -1 if mark[0] > 0.6 else 1
        panel.annotate(
            mark[2],
            mark[:2],
            xytext=(8 * side, 8),
            textcoords="offset points",
            fontsize=8.5,
            color=INK,
            ha="left" if side > 0 else "right",
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1.02)
    return as_png(figure, panel, *labels, True)


def calibration_chart(edges: Floats, precision: Floats, counts: Integers) -> bytes:
    """Draw a reliability diagram: the share of correct detections in each bin of scores, and the ideal diagonal.

    The opacity of a bar grows with its number of detections, on a logarithmic scale; the number is above the bar.
    """
    figure, panel = new_panel()
    panel.plot([0, 1], [0, 1], color="#888888", linewidth=1, linestyle="--", label="calibrated scores")
    most = max(int(counts.max(initial=0)), 1)
    for low, high, share, count in zip(edges, edges[1:], precision, counts, strict=False):
        if count:
            opacity = 0.25 + 0.75 * np.log1p(count) / np.log1p(most)
            panel.bar(
                (low + high) / 2, share, (high - low) * 0.92, color=COLOURS[0], alpha=opacity, linewidth=0, zorder=2
            )
            panel.text(
                (low + high) / 2, min(share, 0.96) + 0.015, f"{count:,}", ha="center", fontsize=7.5, color="#555555"
            )
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1.04)
    return as_png(figure, panel, "score", "share correct (IoU 0.5)", True)


def confusion_chart(matrix: Integers, names: Sequence[str]) -> bytes:
    """Draw a confusion matrix (C + 1, C + 1), coloured by share of the row; the last row and column are no object."""
    num = len(matrix)
    side_in = min(12.0, max(3.6, 1.6 + 0.42 * num))
    figure, panel = new_panel(side_in)
    figure.set_size_inches(max(5.6, side_in * 1.12), side_in)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    panel.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    panel.grid(visible=False)
    rows, columns = [*map(shortened, names), "no object"], [*map(shortened, names), "missed"]
    size = 8 if num <= _MAX_CELLS_WRITTEN else max(3.0, 200 / num)
    panel.set_xticks(range(num), columns, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    panel.set_yticks(range(num), rows, parse_math=False)
    panel.tick_params(labelsize=size)
    for row, column in zip(*np.nonzero(matrix), strict=True):
        if num <= _MAX_CELLS_WRITTEN:
            ink = "white" if shares[row, column] > 0.55 else INK
            panel.text(column, row, f"{matrix[row, column]:,}", ha="center", va="center", fontsize=size, color=ink)
    for place in (num - 1.5,):
        panel.axhline(place, color=GRID, linewidth=1.5)
        panel.axvline(place, color=GRID, linewidth=1.5)
    return as_png(figure, panel, "detected as", "annotated as", False)


def bar_chart(values: Mapping[str, float], label: str, notes: Mapping[str, str]) -> bytes:
    """Draw horizontal bars, each followed by a note; a NaN value has no bar.

    Args:
        values: values by name, the first on top.
        label: label of the axis.
        notes: text after each bar.
    """
    figure, panel = new_panel(0.9 + 0.34 * max(len(values), 1))
    places = np.arange(len(values))[::-1]
    numbers = np.nan_to_num(np.array(list(values.values()), np.float64))
    greatest = max(float(numbers.max(initial=0)), 1e-6)
    panel.barh(places, numbers, 0.66, color=COLOURS[0])
    for place, number, name in zip(places.tolist(), numbers.tolist(), values, strict=True):
        panel.text(max(number, 0) + 0.012 * greatest, place, notes[name], va="center", fontsize=8.5, color=INK)
    panel.set_yticks(places, [shortened(name) for name in values], parse_math=False)
    panel.set_xlim(min(float(numbers.min(initial=0)) * 1.1, 0), greatest * 1.28)
    panel.set_ylim(-0.6, len(values) - 0.4)
    panel.grid(axis="y", visible=False)
    return as_png(figure, panel, label, "", False)


def interval_chart(rows: Mapping[str, tuple[float, float, float]], label: str) -> bytes:
    """Draw a point and a line for each value and its interval (value, low, high); rows without a value are left out."""
    known = {name: row for name, row in rows.items() if np.isfinite(row[0])}
    figure, panel = new_panel(0.9 + 0.3 * max(len(known), 1))
    for place, (value, low, high) in zip(range(len(known) - 1, -1, -1), known.values(), strict=True):
        if np.isfinite((low, high)).all():
            panel.plot([low, high], [place, place], color=COLOURS[0], linewidth=4, alpha=0.35, solid_capstyle="round")
        panel.plot([value], [place], "o", color=COLOURS[0], markersize=6)
        panel.annotate(
            f"{value:.3f}",
            (value, place),
            xytext=(0, 6),
            textcoords="offset points",
            fontsize=8,
            ha="center",
            color=INK,
        )
    panel.set_yticks(range(len(known) - 1, -1, -1), [shortened(name) for name in known], parse_math=False)
    panel.set_ylim(-0.6, max(len(known), 1) - 0.2)
    panel.grid(axis="y", visible=False)
    return as_png(figure, panel, label, "", False)


def _plain(name: str) -> str:
    """Escape a name for matplotlib, which hides labels with a leading underscore and typesets text between dollars."""
    return (f" {name}" if name.startswith("_") else name).replace("$", r"\$")
