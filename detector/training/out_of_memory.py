"""What to change when memory runs out."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch

from detector.errors import DetectorError

# Torch has a class of its own for CUDA's allocator alone; the processor's, cuBLAS and cuDNN say it in the text.
_OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|_STATUS_ALLOC_FAILED", re.IGNORECASE
)
_AMOUNT = re.compile(r"tried to allocate ([\d.]+ ?\w+)", re.IGNORECASE)


@contextlib.contextmanager
def memory_in_words(step: int, image_shape: tuple[int, ...], accumulate: int, device: torch.device) -> Iterator[None]:
    """Turns what torch raises where memory runs out in a training step into what the user can do; all else passes.

    Args:
        step: the 0-based step.
        image_shape: of a batch of one process, (B, C, H, W).
        accumulate: batches of a step.
        device: where it trains.

    Raises:
        DetectorError: there is not enough memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        batch_size, _, height, width = image_shape
        amount = _AMOUNT.search(str(error))
        wanted = f", {amount[1]} more were wanted" if amount else ""
        smaller = "a smaller input.size"
        if batch_size > 1:
            half = (batch_size + 1) // 2
            smaller = f"loader.batch_size={half} with train.accumulate={accumulate * 2}, or {smaller}"
        raise DetectorError(
            f"the memory of {device} does not hold training step {step} (loader.batch_size={batch_size}, images of "
            f"{height} x {width} px, train.accumulate={accumulate}{wanted}); start again with {smaller}, or free "
            "memory and resume the last save"
        ) from error
