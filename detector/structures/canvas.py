"""The canvas that images are fitted to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Canvas:
    """Size and channels of a canvas, and how images are fitted to it.

    Attributes:
        canvas_hw: height and width in pixels.
        channels: 3 for RGB, 1 for grey, any other number for images of that many planes.
        fit: a mode of `Letterbox`.
    """

    canvas_hw: tuple[int, int]
    channels: int
    fit: str
