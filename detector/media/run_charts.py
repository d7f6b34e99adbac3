"""Charts of a training run: its curves so far, and its planned learning rate."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from detector.media import charts
from detector.media.captions import caption, lay
from detector.media.charts import GRID, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (*charts.COLOURS, "#E69F00", "#56B4E9")  # two more of the same palette
# From this ratio of the largest to the smallest value on, losses are drawn on a logarithmic axis.
_LOGARITHMIC_FROM = 20.0
_STRIP_PX = 32  # height of a title above a picture
# Lines differ by their dashes too, for prints without colour and for readers who do not see it.
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
_TITLE: dict[str, Any] = {"loc": "left", "fontsize": 12, "fontweight": "bold", "color": INK}
_MARGINS = {"left": 0.06, "right": 0.985, "top": 0.95, "bottom": 0.075, "wspace": 0.14, "hspace": 0.28}


def results_chart(rows: Sequence[Mapping[str, str]]) -> bytes:
    """Draw losses, learning rate, average precision, precision and recall over the steps of a run, as a PNG.

    Args:
        rows: rows of `results.csv`, one per evaluation; at least one.
    """
    steps = [int(row["step"]) for row in rows]

    def column(name: str) -> list[float]:
        return [float(row.get(name) or "nan") for row in rows]

    figure = _figure(11, 6.4)
    losses, rate, precision, recall = figure.subplots(2, 2).flatten()
    for panel, title in zip(
        (losses, rate, precision, recall),
        ("Training loss", "Learning rate", "AP", "At the best F1"),
        strict=True,
    ):
        _prepare(panel, title)
        panel.set_xlabel("optimiser step", fontsize=10, color=INK, loc="right", labelpad=1)

    parts = [name for name in rows[-1] if name.startswith("train/")]
    curves = {name.removeprefix("train/").removesuffix("_loss"): column(name) for name in parts}
    _draw_lines(losses, steps, curves)
    seen = [value for values in curves.values() for value in values if value > 0]
    if seen and max(seen) > _LOGARITHMIC_FROM * min(seen):
        losses.set_yscale("log")
        losses.yaxis.set_major_formatter(lambda value, position: f"{value:g}")
    _draw_lines(rate, steps, {"learning rate": column("lr/pg0")}, has_legend=False)
    rate.set_ylim(bottom=0)
    best = column("metrics/mAP50-95(B)")
    _draw_lines(precision, steps, {"AP": best, "AP50": column("metrics/mAP50(B)")})
    _mark_best(precision, steps, best)
    rates = {"precision": column("metrics/precision(B)"), "recall": column("metrics/recall(B)")}
    _draw_lines(recall, steps, rates)
    for panel in (precision, recall):
        panel.set_ylim(-0.02, 1.02)
    return _png(figure)


@dataclass(frozen=True)
class SchedulePlan:
    """Plan of a schedule.

    Attributes:
        name: names of the schedule and the optimiser.
        steps: some or all steps of the run, 0-based, ascending.
        rates: the learning rate at each of these steps.
        warmup_steps: steps of the warm-up.
        closing_from: the first step of the closing part, or `num_steps` if there is none.
        evaluations: numbers of completed steps at which the run is evaluated.
        num_steps: steps of the run.
        num_epochs: passes over the data set.
    """

    name: str
    steps: Sequence[int]
    rates: Sequence[float]
    warmup_steps: int
    closing_from: int
    evaluations: Sequence[int]
    num_steps: int
    num_epochs: float


def schedule_chart(plan: SchedulePlan) -> bytes:
    """Draw the learning rate of a run with warm-up, evaluations and closing part, as the bytes of a PNG."""
    figure = _figure(10, 4.4)
    figure.subplots_adjust(left=0.075, right=0.98, top=0.8, bottom=0.12)
    panel = figure.subplots()
    _prepare(panel)
    figure.text(0.075, 0.93, plan.name, fontsize=11, fontweight="bold", color=INK)
    peak = max(plan.rates)
    summary = f"{plan.num_steps:,} steps ({plan.num_epochs:.1f} epochs), peak {peak:.4g}, last {plan.rates[-1]:.3g}"
    figure.text(0.075, 0.875, summary, fontsize=9, color="#555555")
    panel.plot(plan.steps, plan.rates, color=COLOURS[0], linewidth=2)
    panel.set_xlim(0, plan.num_steps)
    panel.set_ylim(0, peak * 1.12)
    parts = (
        (0, plan.warmup_steps, COLOURS[1], f"warm-up: {plan.warmup_steps:,} steps"),
        (plan.closing_from, plan.num_steps, COLOURS[2], f"closing part: from step {plan.closing_from:,}"),
    )
    for first, last, colour, label in parts:
        if last > first:
            panel.axvspan(first, last, color=colour, alpha=0.15, linewidth=0, label=label)
    if plan.evaluations:
        panel.plot(
            plan.evaluations,
            [0.012] * len(plan.evaluations),
            "^",
            color=COLOURS[3],
            markersize=6,
            clip_on=False,
            transform=panel.get_xaxis_transform(),
            label=f"evaluations: {len(plan.evaluations)}",
        )
    panel.xaxis.set_major_formatter(lambda value, position: f"{value:,.0f}")
    panel.set_xlabel("step", fontsize=9, color=INK)
    panel.set_ylabel("learning rate", fontsize=9, color=INK)
    if panel.get_legend_handles_labels()[0]:
        figure.legend(loc="upper right", bbox_to_anchor=(0.985, 0.985), frameon=False, fontsize=9)
    return _png(figure)


def side_by_side(titled: Mapping[str, bytes]) -> bytes:
    """Join pictures, each the bytes of a PNG, in one row on white, each below its title."""
    decoded = []
    for title, picture in titled.items():
        plain = np.asarray(cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR), np.uint8)
        below = np.pad(plain, ((_STRIP_PX, 0), (0, 0), (0, 0)), constant_values=255)
        lay(below, caption(title, _STRIP_PX // 2, (255, 255, 255)), (4, 4))
        decoded.append(below)
    height = max(picture.shape[0] for picture in decoded)
    padded = [np.pad(p, ((0, height - p.shape[0]), (0, 12), (0, 0)), constant_values=255) for p in decoded]
    return bytes(cv2.imencode(".png", np.concatenate(padded, axis=1))[1])


def _figure(width_in: float, height_in: float) -> Figure:
    """Make a figure with fixed margins, because computing them takes half of the time of a chart."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=100, facecolor="white")
    figure.subplots_adjust(**_MARGINS)
    return figure


def _prepare(panel: Axes, title: str = "") -> None:
    panel.set_title(title, **_TITLE)
    panel.grid(color=GRID, linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0, labelsize=10, labelcolor=INK, which="both")


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def _draw_lines(
    panel: Axes, steps: Sequence[int], curves: Mapping[str, Sequence[float]], has_legend: bool = True
) -> None:
    dots = "o" if len(steps) <= 40 else ""
    for number, (name, values) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        dashes = _DASHES[number % len(_DASHES)]
        panel.plot(
            steps, values, color=colour, linewidth=1.8, linestyle=dashes, marker=dots, markersize=3.5, label=name
        )
    panel.set_xlim(left=0)
    panel.locator_params(axis="x", integer=True)
    if has_legend and curves:
        panel.legend(frameon=False, fontsize=9, ncols=len(curves), loc="lower right", bbox_to_anchor=(1.01, 0.985))


def _mark_best(panel: Axes, steps: Sequence[int], values: Sequence[float]) -> None:
    known = [(value, -step) for step, value in zip(steps, values, strict=True) if not math.isnan(value)]
    if known:
        value, step = max(known)[0], -max(known)[1]
        panel.plot([step], [value], "o", color=COLOURS[0], markersize=8, markerfacecolor="none", markeredgewidth=1.6)
        panel.set_title(f"AP: best {value:.3f}, step {step:,}", **_TITLE)
