"""Charts of a data set, each as the bytes of a PNG: classes, sizes, shapes and positions of objects, image sizes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

# The palette of Okabe and Ito 2008, "Color universal design"; one colour for each split.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
INK, GRID = "#333333", "#EAEAEA"
_WIDTH_IN, _HEIGHT_IN, _DPI = 5.6, 3.4, 110
MAX_CLASSES_SHOWN = 40
COCO_SMALL_PX, COCO_MEDIUM_PX = 32, 96  # sides of squares: COCO's bounds of small and medium objects


def class_chart(names: Sequence[str], counts: Mapping[str, Sequence[int]]) -> bytes:
    """Draw bars for the objects of each class, one colour per split, the most frequent class on top.

    Args:
        names: names of the classes; of more than `MAX_CLASSES_SHOWN`, the middle ones are left out.
        counts: objects of each class, by split.
    """
    totals = np.sum([counts[split] for split in counts], axis=0)
    order = np.argsort(-totals, kind="stable")
    num_hidden = max(0, len(order) - MAX_CLASSES_SHOWN)
    if num_hidden:
        half = MAX_CLASSES_SHOWN // 2
        order = np.concatenate([order[:half], order[-half:]])
    figure, panel = new_panel(height_in=max(1.6, 0.9 + 0.19 * len(order)))
    places = np.arange(len(order))[::-1].astype(np.float64)
    if num_hidden:
        places[: MAX_CLASSES_SHOWN // 2] += 1.5
        panel.text(0.02, len(order) / 2, f"... {num_hidden} more classes ...", transform=panel.get_yaxis_transform(),
                   va="center", fontsize=8, color="#888888")  # fmt: skip
    thickness = 0.8 / len(counts)
    for number, (split, of_split) in enumerate(counts.items()):
        offset = 0.4 - thickness * (number + 0.5)
        values = np.array(of_split)[order]
        bars = panel.barh(places + offset, values, thickness, color=COLOURS[number % 4], label=split)
        if len(counts) == 1:
            panel.bar_label(bars, fmt="{:,.0f}", padding=2, fontsize=8, color=INK)
            panel.margins(x=0.12)
    shown = totals[order]
    if shown.max() > 30 * max(1, shown.min()):
        panel.set_xscale("symlog", linthresh=1)
        panel.xaxis.set_major_formatter(lambda value, position: f"{value:,.0f}")
    panel.set_yticks(places, [shortened(names[i]) for i in order.tolist()], parse_math=False, fontsize=8)
    panel.set_ylim(places.min() - 0.6, places.max() + 0.6)
    panel.grid(axis="y", visible=False)
    return as_png(figure, panel, "objects", "", len(counts) > 1)


def size_chart(sides: Mapping[str, Floats], what: str, bounds: Sequence[float] = ()) -> bytes:
    """Draw a histogram of sizes on a logarithmic axis, as shares of each split.

    Args:
        sides: sizes above 0 in pixels, by split.
        what: label of the axis.
        bounds: sizes to mark.
    """
    figure, panel = new_panel()
    everything = np.concatenate([values for values in sides.values() if len(values)] or [np.ones(1)])
    everything = everything[everything > 0]
    lowest, highest = max(everything.min(), 0.5), max(everything.max(), 1.0)
    bins = np.geomspace(lowest * 0.99, highest * 1.01 + 0.1, 41).tolist()
    for number, (split, values) in enumerate(sides.items()):
        if len(values):
            weights = np.full(len(values), 100 / len(values))
            panel.hist(
                np.maximum(values, lowest),
                bins,
                weights=weights,
                histtype="stepfilled",
                alpha=0.25,
                color=COLOURS[number % 4],
            )
            panel.hist(
                np.maximum(values, lowest),
                bins,
                weights=weights,
                histtype="step",
                linewidth=1.6,
                color=COLOURS[number % 4],
                label=split,
            )
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(lambda value, position: f"{value:g}")
    for bound in bounds:
        if lowest < bound < highest:
            panel.axvline(bound, color="#888888", linewidth=1, linestyle=":")
            panel.annotate(f"{bound:g}", (bound, 1), xycoords=("data", "axes fraction"), xytext=(3, -10),
                           textcoords="offset points", fontsize=8, color="#666666")  # fmt: skip
    return as_png(figure, panel, what, "share of the split in %", len(sides) > 1)


def shape_chart(wh: Floats, marks_wh: Sequence[tuple[float, float]], what: str) -> bytes:
    """Draw the density of widths and heights, (N, 2), on logarithmic axes, with marks such as anchors."""
    figure, panel = new_panel()
    wh = np.maximum(wh, 0.5)
    if len(wh):
        lowest, highest = wh.min(), wh.max() * 1.01 + 0.1
        bins = np.geomspace(lowest * 0.99, highest, 49)
        panel.hist2d(wh[:, 0], wh[:, 1], bins=[bins, bins], cmap="Blues", norm="log", rasterized=True)
        panel.plot([lowest, highest], [lowest, highest], color="#BBBBBB", linewidth=0.9, linestyle="--")
    if marks_wh:
        panel.plot(*zip(*marks_wh, strict=True), "o", color=COLOURS[1], markersize=5, label="anchors")
    panel.set_xscale("log", base=2)
    panel.set_yscale("log", base=2)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(lambda value, position: f"{value:g}")
    return as_png(figure, panel, f"width, {what}", "height", bool(marks_wh))


def place_chart(centres_xy: Floats) -> bytes:
    """Draw a map of the centres of objects, (N, 2) as shares of image width and height."""
    figure, panel = new_panel()
    counts, _, _ = np.histogram2d(centres_xy[:, 1], centres_xy[:, 0], bins=24, range=[[0, 1], [0, 1]])
    panel.imshow(counts, cmap="Blues", extent=(0, 1, 1, 0), aspect=0.75, vmin=0)
    panel.grid(visible=False)
    panel.set_xticks([0, 0.5, 1], ["left", "middle", "right"])
    panel.set_yticks([0, 0.5, 1], ["top", "middle", "bottom"])
    return as_png(figure, panel, "", "", False)


def image_chart(image_wh: Mapping[str, Integers]) -> bytes:
    """Draw width and height of the images, (N, 2) by split; a larger dot stands for more images of one size."""
    figure, panel = new_panel()
    for number, (split, sizes) in enumerate(image_wh.items()):
        if len(sizes):
            unique, counts = np.unique(sizes, axis=0, return_counts=True)
            area = 14 + 300 * counts / sum(map(len, image_wh.values()))
            panel.scatter(
                unique[:, 0], unique[:, 1], area, color=COLOURS[number % 4], alpha=0.45, linewidths=0, label=split
            )
    panel.set_xlim(left=0)
    panel.set_ylim(bottom=0)
    return as_png(figure, panel, "width in pixels", "height in pixels", len(image_wh) > 1)


def count_chart(num_objects: Mapping[str, Integers]) -> bytes:
    """Draw a histogram of the number of objects per image, (N,) by split, as shares of the split."""
    figure, panel = new_panel()
    greatest = max((int(values.max(initial=0)) for values in num_objects.values()), default=0)
    step = max(1, -(-greatest // 40))
    bins = (np.arange(0, greatest + step + 1, step) - 0.5).tolist()
    for number, (split, values) in enumerate(num_objects.items()):
        if len(values):
            weights = np.full(len(values), 100 / len(values))
            panel.hist(values, bins, weights=weights, histtype="stepfilled", alpha=0.25, color=COLOURS[number % 4])
            panel.hist(
                values, bins, weights=weights, histtype="step", linewidth=1.6, color=COLOURS[number % 4], label=split
            )
    return as_png(figure, panel, "objects per image", "share of the split in %", len(num_objects) > 1)


def new_panel(height_in: float = _HEIGHT_IN) -> tuple[Figure, Axes]:
    """Make a figure with one panel in the style of all charts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_IN, height_in), dpi=_DPI, layout="constrained", facecolor="white")
    panel = figure.subplots()
    panel.grid(color=GRID, linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0, labelsize=9, labelcolor="#555555", which="both")
    return figure, panel


def as_png(figure: Figure, panel: Axes, x_label: str, y_label: str, has_legend: bool) -> bytes:
    """Label the axes and lines of a figure and return it as the bytes of a PNG."""
    panel.set_xlabel(x_label, fontsize=9, color=INK)
    panel.set_ylabel(y_label, fontsize=9, color=INK)
    if has_legend:
        panel.legend(frameon=False, fontsize=9)
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing"
        )  # the chart shows a box instead; the table has the name
        figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def shortened(name: str) -> str:
    """Shorten a name to the room that a chart has for it."""
    return name if len(name) <= 24 else f"{name[:23]}…"
