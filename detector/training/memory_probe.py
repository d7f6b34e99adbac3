"""A batch size from measured memory: a few training steps at small batches, and a straight line through their peaks."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from detector.errors import ConfigError
from detector.io.machine import kibibytes_of
from detector.losses.loss import LossParts
from detector.models.precision import Precision
from detector.models.yolo import DetectionModel
from detector.structures.types import Targets
from detector.training.averaging import averaged_model
from detector.training.optimizers import OptimizerConfig, build_optimizer

MAX_BATCH_SIZE = 256  # beyond it a step has too few others beside it, whatever the memory
_PROBED = (1, 2, 4, 8)  # images of a batch; each is tried only where half of it says that it fits
_ENOUGH_BYTES = 2**29  # between two peaks, so that what else comes and goes does not count


@dataclass(frozen=True)
class FittedBatch:
    """What the probe found.

    Attributes:
        batch_size: images of a batch that fit, 1 to `MAX_BATCH_SIZE`.
        image_bytes: what an image of the batch takes.
        fixed_bytes: what a step takes whatever its batch: weights, their averages, gradients, the optimiser's memory.
        budget_bytes: what it was to take at most.
        probed: the batch sizes that were measured.
    """

    batch_size: int
    image_bytes: int
    fixed_bytes: int
    budget_bytes: int
    probed: tuple[int, ...]


def free_bytes(device: torch.device, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that can still be had: of a GPU what its driver says, of the CPU what system and control group leave.

    Args:
        device: where to train.
        proc: the proc file system.
        cgroups: where control groups are mounted, of either version.

    Raises:
        ConfigError: the system does not tell.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [kibibytes_of(proc / "meminfo", "MemAvailable"), *_left_by_cgroups(proc, cgroups)]
    known = [value for value in found if value is not None]
    if found[0] is None:
        raise ConfigError(
            "loader.memory_share wants a system that tells its free memory, found no MemAvailable in /proc/meminfo; "
            "give loader.batch_size instead"
        )
    return max(0, min(known))


def _left_by_cgroups(proc: Path, cgroups: Path) -> Iterator[int]:
    """What the limits of the process's control group and of those above it leave, where there are any."""
    try:
        entries = [line.split(":", 2) for line in (proc / "self/cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, group in entries:
        if controllers and "memory" not in controllers.split(","):
            continue
        root = cgroups / "memory" if controllers else cgroups
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        own = root / group.strip("/")
        for folder in (own, *own.parents):
            try:
                limit, used = ((folder / name).read_text().strip() for name in names)
            except OSError:  # a container may not show the groups above its own
                limit = used = ""
            if limit.isdigit() and used.isdigit():  # version 2 says max where there is none
                yield int(limit) - int(used)
            if folder == root:
                break


def _peak_bytes(device: torch.device) -> int:
    """The most memory held since `_forget_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    peak = kibibytes_of(Path("/proc/self/status"), "VmHWM")  # the number that `_forget_peak` resets
    if peak is None:
        raise ConfigError("loader.memory_share cannot be measured on this system; give loader.batch_size instead")
    return peak


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    gc.collect()  # the peak would hide in what an earlier one has left, with Python or with the C library
    with contextlib.suppress(OSError, AttributeError):  # a C library without that call
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak of the resident memory
    except OSError as error:
        raise ConfigError(
            f"loader.memory_share cannot be measured on this system ({error.strerror}); give loader.batch_size instead"
        ) from error


def fit_batch_size(
    model: DetectionModel,
    loss: Callable[[tuple[Tensor, ...], Targets], LossParts],
    optimizer: OptimizerConfig,
    precision: Precision,
    device: torch.device,
    *,
    canvas_hw: tuple[int, int],
    objects_per_image: int,
    share: float,
    waiting_batches: int = 0,
    reserved_bytes: int = 0,
    most: int = MAX_BATCH_SIZE,
) -> FittedBatch:
    """The largest batch whose training step keeps to a share of the memory that is free now.

    Steps are made at 1, 2, 4 and 8 images, as far as they fit; the peaks of the last two give what an image takes.

    Args:
        model: a model that nobody needs afterwards: it is trained on noise.
        loss: raw maps and targets to named parts.
        optimizer: the optimiser.
        precision: of the run.
        device: where to train.
        canvas_hw: height and width of the largest canvas, pixels.
        objects_per_image: boxes of an image, as many as the fullest has.
        share: of the free memory to take at most, above 0 and at most 1.
        waiting_batches: batches that wait in the same memory to be trained on.
        reserved_bytes: of the free memory, what something else will take.
        most: largest batch size.

    Raises:
        ConfigError: one image does not fit, or the system does not tell its memory.
    """
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub gap
    state = build_optimizer(optimizer, model, model.parts_in_order()), averaged_model(model, 100)

    def train(batch_size: int) -> None:
        for _ in range(2):  # the first makes the optimiser's memory
            _noise_step(model, loss, *state, precision, device, batch_size, canvas_hw, objects_per_image)

    _forget_peak(device)
    held_bytes = _peak_bytes(device)
    budget_bytes = held_bytes + int(share * max(0, free_bytes(device) - reserved_bytes))
    waiting_bytes = waiting_batches * model.image_channels * canvas_hw[0] * canvas_hw[1]
    peaks: dict[int, int] = {}
    image_bytes = 0
    for batch_size in _PROBED:
        if peaks and max(peaks.values()) + image_bytes * batch_size > budget_bytes:
            break
        train(batch_size)
        peaks[batch_size] = _peak_bytes(device)
        if len(peaks) > 1:
            image_bytes = max(1, (peaks[batch_size] - peaks[batch_size // 2]) // (batch_size - batch_size // 2))
            if peaks[batch_size] - peaks[batch_size // 2] > _ENOUGH_BYTES:
                break
    last, image_bytes = max(peaks), max(image_bytes, 1) + waiting_bytes
    fixed_bytes = peaks[last] - (image_bytes - waiting_bytes) * last
    fits = (budget_bytes - fixed_bytes) // image_bytes if len(peaks) > 1 else int(peaks[last] <= budget_bytes)
    if fits < 1:
        raise ConfigError(
            f"loader.memory_share={share:g} wants a batch of one image of {canvas_hw[0]} x {canvas_hw[1]} px within "
            f"{budget_bytes / 2**30:.2f} GiB on {device}, found {peaks[min(peaks)] / 2**30:.2f} GiB; free memory or "
            f"take a smaller input.size"
        )
    if fits > 4:
        fits -= fits % 4
    return FittedBatch(min(fits, most), image_bytes, fixed_bytes - held_bytes, budget_bytes - held_bytes, tuple(peaks))


def _noise_step(
    model: DetectionModel,
    loss: Callable[[tuple[Tensor, ...], Targets], LossParts],
    optimizer: torch.optim.Optimizer,
    averaged: torch.optim.swa_utils.AveragedModel,
    precision: Precision,
    device: torch.device,
    batch_size: int,
    canvas_hw: tuple[int, int],
    objects_per_image: int,
) -> None:
    """A training step on grey images that are full of boxes."""
    height, width = canvas_hw
    images = torch.full((batch_size, model.image_channels, height, width), 114, dtype=torch.uint8, device=device)
    num_boxes = batch_size * objects_per_image
    draw = torch.Generator().manual_seed(0)
    corner = torch.rand(num_boxes, 2, generator=draw) * torch.tensor([width, height]) * 0.75
    side = (0.05 + 0.2 * torch.rand(num_boxes, 2, generator=draw)) * torch.tensor([width, height])
    targets = Targets(
        torch.cat([corner, corner + side], dim=1),
        torch.randint(0, model.num_classes, (num_boxes,), generator=draw),
        torch.arange(batch_size).repeat_interleave(objects_per_image),
        torch.zeros(num_boxes, dtype=torch.bool),
        batch_size,
    ).to(device)
    model.train()
    with precision.autocast():
        raw_maps = model(images.contiguous(memory_format=torch.channels_last))
    total = torch.stack(list(loss(raw_maps, targets).values())).sum()
    precision.scaler.scale(total).backward()  # type: ignore[no-untyped-call]  # untyped in torch
    precision.scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    precision.scaler.step(optimizer)
    precision.scaler.update()
    optimizer.zero_grad(set_to_none=True)
    averaged.update_parameters(model)
