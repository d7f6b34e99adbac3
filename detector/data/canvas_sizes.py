"""The canvas sizes that training varies between."""

from __future__ import annotations

import math

from detector.errors import ConfigError


def training_canvases(canvas_hw: tuple[int, int], multi_scale: float, stride: int) -> tuple[tuple[int, int], ...]:
    """Canvases of about the aspect ratio of `canvas_hw` whose sides are multiples of a stride, smallest first.

    Args:
        canvas_hw: height and width of the configured canvas, pixels, multiples of `stride`.
        multi_scale: largest relative change of the height, 0..1; 0 gives no canvas: there is nothing to vary.
        stride: the largest stride of the model, pixels.

    Raises:
        ConfigError: the change is too small for a second size.
    """
    if not multi_scale:
        return ()
    height, width = canvas_hw
    # A thousandth of a stride is what rounding of the products may take off a size that is just within reach.
    first = max(1, math.ceil(height * (1 - multi_scale) / stride - 1e-3))
    last = math.floor(height * (1 + multi_scale) / stride + 1e-3)
    if last <= first:
        raise ConfigError(
            f"input.multi_scale={multi_scale:g} leaves a height of {height} px no other multiple of the model's stride "
            f"of {stride} px; raise it to {stride / height:.3g} or more, or leave it out"
        )
    return tuple(
        (units * stride, max(1, round(units * stride * width / (height * stride))) * stride)
        for units in range(first, last + 1)
    )
