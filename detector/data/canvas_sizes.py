"""Canvas sizes of multi-scale training."""

from __future__ import annotations

import math

from detector.errors import ConfigError


def training_canvases(canvas_hw: tuple[int, int], multi_scale: float, stride: int) -> tuple[tuple[int, int], ...]:
    """Return canvas sizes of about the aspect ratio of `canvas_hw`, smallest first; sides are multiples of a stride.

    Args:
        canvas_hw: height and width of the configured canvas, pixels, multiples of `stride`.
        multi_scale: largest relative change of the height, 0..1; 0 returns no size.
        stride: the largest stride of the model, pixels.

    Raises:
        ConfigError: the change is too small for a second size.
    """
    if not multi_scale:
        return ()
    height, width = canvas_hw
    # The tolerance of a thousandth of a stride keeps a size that rounding of the products would just exclude.
    first = max(1, math.ceil(height * (1 - multi_scale) / stride - 1e-3))
    last = math.floor(height * (1 + multi_scale) / stride + 1e-3)
    if last <= first:
        raise ConfigError(
            f"input.multi_scale={multi_scale:g} leaves no other multiple of the stride of {stride} px for a height of "
            f"{height} px; raise it to {stride / height:.3g} or more, or remove it"
        )
    return tuple(
        (units * stride, max(1, round(units * stride * width / (height * stride))) * stride)
        for units in range(first, last + 1)
    )
