"""Batches that are too small for batch norm, which needs more than one value per channel to train."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from detector.errors import ConfigError

_REFUSAL = "value per channel"  # in torch's message and in that of the fused batch norm


def is_refusal(error: ValueError) -> bool:
    """Return True for the error of a batch norm that has one value per channel."""
    return _REFUSAL in str(error)


def require_values(model: nn.Module, max_stride: int, batch_size: int, canvas_hw: tuple[int, int]) -> None:
    """Reject a batch whose smallest maps have one value per channel, where the model has batch norm.

    Args:
        model: the model in training.
        max_stride: its largest stride, canvas pixels per cell.
        batch_size: images of a batch of one process.
        canvas_hw: height and width of the smallest canvas.

    Raises:
        ConfigError: it is too small.
    """
    is_single = batch_size == (canvas_hw[0] // max_stride) * (canvas_hw[1] // max_stride) == 1
    if is_single and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise _too_small(batch_size, canvas_hw)


@contextlib.contextmanager
def batch_norm_in_words(batch_size: int, canvas_hw: tuple[int, int]) -> Iterator[None]:
    """Turn the error of a batch norm with one value per channel into advice; other errors pass unchanged.

    Raises:
        ConfigError: the batch is too small.
    """
    try:
        yield
    except ValueError as error:
        if not is_refusal(error):
            raise
        raise _too_small(batch_size, canvas_hw) from error


def _too_small(batch_size: int, canvas_hw: tuple[int, int]) -> ConfigError:
    return ConfigError(
        f"loader.batch_size={batch_size} with images of {canvas_hw[0]} x {canvas_hw[1]} px: expected more than one "
        f"value per channel in every batch norm, got one in the smallest map; raise loader.batch_size to 2 or more, or "
        f"input.size"
    )
