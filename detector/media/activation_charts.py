"""Charts of activation functions and their derivatives."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from detector.errors import ConfigError, DetectorError
from detector.models.activations.activation_curves import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURE_FORMATS = (".png", ".svg", ".pdf")
# The palette of Okabe and Ito 2008, "Color universal design", without black and with a darker yellow for white paper.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C7A00")
_FUNCTIONS = {"value": "f(x)", "slope": "f '(x)", "curvature": "f ''(x)"}
_BOUNDS = {
    "value": (-2.0, 4.0),
    "slope": (-1.1, 1.6),
    "curvature": (-1.0, 1.3),
}  # of the axes; values beyond are cut off
_JUMP = 0.05  # a larger difference between neighbouring samples is a jump, and no line joins them


def draw_curves(curves: Mapping[str, Curve], path: Path) -> None:
    """Draw functions with their first and second derivatives.

    Up to seven functions share three panels, with the first one emphasised; more functions get a panel each.

    Args:
        curves: the functions by name, each sampled at evenly spaced points.
        path: the picture to write, `.png`, `.svg` or `.pdf`.

    Raises:
        ConfigError: the file name has another suffix.
        DetectorError: the file cannot be written.
    """
    if path.suffix.lower() not in PICTURE_FORMATS:
        raise ConfigError(f"{path}: expected a file name that ends in {', '.join(PICTURE_FORMATS)}; rename it")
    from matplotlib.figure import Figure

    figure = Figure(dpi=100, layout="constrained", facecolor="white")
    (_draw_together if len(curves) <= len(_COLOURS) else _draw_apart)(figure, curves)
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:].lower())
    try:
        path.write_bytes(picture.getvalue())
    except OSError as error:
        raise DetectorError(f"{path}: the picture cannot be written, {error.strerror}; choose another path") from error


def _draw_together(figure: Figure, curves: Mapping[str, Curve]) -> None:
    """Draw one panel for the functions and one for each derivative."""
    figure.set_size_inches(13, 4.4)
    panels = figure.subplots(1, 3)
    for panel, (attribute, title), bounds in zip(panels, _FUNCTIONS.items(), _BOUNDS.values(), strict=True):
        _prepare(panel, title)
        for number, (name, curve) in enumerate(curves.items()):
            width, order = (2.8, 3) if number == 0 else (1.6, 2)
            _plot(panel, curve, attribute, label=name, color=_COLOURS[number], linewidth=width, zorder=order)
        values = torch.cat([getattr(curve, attribute) for curve in curves.values()])
        lowest, highest = max(float(values.min()), bounds[0]), min(float(values.max()), bounds[1])
        margin = 0.06 * max(highest - lowest, 1.0)
        panel.set_ylim(lowest - margin, highest + margin)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=12)


def _draw_apart(figure: Figure, curves: Mapping[str, Curve]) -> None:
    """Draw one panel for each function with its derivatives, all on the same scale."""
    num_columns = 6
    num_rows = math.ceil(len(curves) / num_columns)
    figure.set_size_inches(13, 2.15 * num_rows + 0.4)
    panels = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False).flatten()
    for panel, (name, curve) in zip(panels, curves.items(), strict=False):
        _prepare(panel, name)
        for number, (attribute, title) in reversed(list(enumerate(_FUNCTIONS.items()))):
            _plot(panel, curve, attribute, label=title, color=_COLOURS[number], linewidth=2.4 - 0.6 * number)
        panel.set_ylim(-1.2, 2.2)
    for panel in panels[len(curves) :]:
        panel.set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=3, frameon=False, fontsize=12)


def _prepare(panel: Axes, title: str) -> None:
    panel.set_title(title, loc="left", fontsize=12, fontweight="bold", color="#333333")
    panel.axhline(0, color="#AAAAAA", linewidth=0.9, zorder=1)
    panel.axvline(0, color="#AAAAAA", linewidth=0.9, zorder=1)
    panel.grid(color="#EAEAEA", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0, labelsize=9, labelcolor="#666666")
    panel.margins(x=0)


def _plot(panel: Axes, curve: Curve, attribute: str, **style: Any) -> None:
    panel.plot(curve.x.numpy(), _with_gaps(getattr(curve, attribute)).numpy(), solid_capstyle="round", **style)


def _with_gaps(y: Tensor) -> Tensor:
    """Replace the value before each jump by NaN, so that no line is drawn across the jump."""
    jumps = torch.cat([y.diff().abs() > _JUMP, torch.tensor([False])])
    return y.masked_fill(jumps, math.nan)
