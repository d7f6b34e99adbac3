"""Work of a GPU for which the CPU does not wait: copies to it, constants on it, and masks of unknown count.

The CPU queues work on a GPU and runs ahead of it until it needs a number that the GPU computes, such as the count of
the true entries of a mask; then the GPU idles until the CPU has queued more. Therefore code that follows a mask has two
forms: on the CPU it goes on with the true entries, on a GPU with all entries, of which the others have no effect.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Record = TypeVar("Record", bound=Any)


def runs_ahead(tensor: Tensor) -> bool:
    """Return whether the CPU would have to wait for the values of a tensor: true on a GPU."""
    return tensor.is_cuda


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on a device, by way of pinned memory to a GPU, without waiting for the copy."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def sent_aside(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the same by a copy on a stream of its own, during work that is queued already; for large tensors."""
    if device.type != "cuda":
        return tensor.to(device)
    current, copies = torch.cuda.current_stream(device), _copy_stream(device)
    with torch.cuda.stream(copies):
        copied = sent(tensor, device)
    current.wait_stream(copies)
    copied.record_stream(current)  # the allocator must not give its memory to the next copy too early
    return copied


def sent_record(record: Record, device: torch.device, **changes: Any) -> Record:
    """Return a dataclass with its tensors on a device and some other fields changed."""
    tensors = {own.name: value for own in fields(record) if isinstance(value := getattr(record, own.name), Tensor)}
    moved: Record = replace(record, **{name: sent(value, device) for name, value in tensors.items()}, **changes)
    return moved


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # untyped in torch


def constant(
    values: Sequence[float] | Sequence[Sequence[float]], device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return a few numbers as a tensor of their shape on a device, without a copy from the CPU."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    full = functools.partial(torch.full, (), dtype=dtype, device=device)
    return torch.stack([full(v) if isinstance(v, (int, float)) else constant(v, device, dtype) for v in values])


def unravelled(place: Tensor, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """Return the indices of flat places in a shape; `torch.unravel_index` copies the shape to the device."""
    indices = []
    for size in reversed(shape):
        indices.append(place % size)
        place = place // size
    return tuple(reversed(indices))


def entries(mask: Tensor) -> tuple[Tensor, ...]:
    """Return the indices of the true entries of a mask, on a GPU those of all entries."""
    if not runs_ahead(mask):
        return mask.nonzero(as_tuple=True)
    return unravelled(torch.arange(mask.numel(), device=mask.device), mask.shape)


def padded_places(mask: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Return the places of the true entries of a mask in a length that does not depend on their number.

    Args:
        mask: bool (N,).
        num: the length, at least the number of true entries.

    Returns:
        Places int64 (num,), ascending and then 0, and which of them are no padding, bool (num,).
    """
    rank = mask.cumsum(0)
    slot = torch.where(mask, rank - 1, num)
    places = rank.new_zeros(num + 1).scatter_(0, slot, torch.arange(len(mask), device=mask.device))
    is_place = torch.arange(num, device=mask.device) < mask.sum()
    return places[:num].masked_fill(~is_place, 0), is_place
