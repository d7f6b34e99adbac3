"""Advice when memory runs out in training."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch

from detector.errors import DetectorError

# Torch has an error class for CUDA's allocator only; the CPU allocator, cuBLAS and cuDNN say it in the message.
_OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|_STATUS_ALLOC_FAILED", re.IGNORECASE
)
_AMOUNT = re.compile(r"tried to allocate ([\d.]+ ?\w+)", re.IGNORECASE)


@contextlib.contextmanager
def memory_in_words(step: int, image_shape: tuple[int, ...], accumulate: int, device: torch.device) -> Iterator[None]:
    """Turn an out-of-memory error of a training step into advice for the user; other errors pass unchanged.

    Args:
        step: the 0-based step.
        image_shape: shape (B, C, H, W) of a batch of one process.
        accumulate: batches per step.
        device: the device of training.

    Raises:
        DetectorError: the memory is too small.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        batch_size, _, height, width = image_shape
        amount = _AMOUNT.search(str(error))
        requested = f", {amount[1]} more were requested" if amount else ""
        smaller = "a smaller input.size"
        if batch_size > 1:
            half = (batch_size + 1) // 2
            smaller = f"loader.batch_size={half} with train.accumulate={accumulate * 2}, or {smaller}"
        raise DetectorError(
            f"the memory of {device} does not hold training step {step} (loader.batch_size={batch_size}, images of "
            f"{height} x {width} px, train.accumulate={accumulate}{requested}); start again with {smaller}, or free "
            "memory and resume the last save"
        ) from error
