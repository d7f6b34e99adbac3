"""A batch size from measured memory: a few training steps with small batches and a line through their peaks."""

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
from detector.models.contracts import DetectionModel
from detector.models.precision import Precision, on_device
from detector.structures.types import Targets
from detector.training.averaging import MovingAverage
from detector.training.batch_norm import is_refusal
from detector.training.optimizers import OptimizerConfig, build_optimizer

MAX_BATCH_SIZE = 256  # larger batches leave a run too few steps
_PROBED = (1, 2, 4, 8)  # batch sizes; each is tried only if the one before it predicts that it fits
_ENOUGH_BYTES = 2**29  # difference of two peaks beside which other allocations do not matter


@dataclass(frozen=True)
class FittedBatch:
    """Result of the probe.

    Attributes:
        batch_size: images of a batch that fit, 1 to `MAX_BATCH_SIZE`.
        image_bytes: memory per image of the batch.
        fixed_bytes: memory of a step apart from its batch: weights, their averages, gradients, optimiser state.
        budget_bytes: the limit.
        probed: the batch sizes that were measured.
    """

    batch_size: int
    image_bytes: int
    fixed_bytes: int
    budget_bytes: int
    probed: tuple[int, ...]


def free_bytes(device: torch.device, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the free memory: of a GPU by its driver, of the CPU by the system and its control group.

    Args:
        device: the device of training.
        proc: the proc file system.
        cgroups: the mount point of control groups, of either version.

    Raises:
        ConfigError: the system does not report it.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [kibibytes_of(proc / "meminfo", "MemAvailable"), *_left_by_cgroups(proc, cgroups)]
    known = [value for value in found if value is not None]
    if found[0] is None:
        raise ConfigError(
            "loader.memory_share: expected a system that reports its free memory, got no MemAvailable in "
            "/proc/meminfo; give loader.batch_size instead"
        )
    return max(0, min(known))


def _left_by_cgroups(proc: Path, cgroups: Path) -> Iterator[int]:
    """Yield the memory left by the limit of the process's control group and of each group above it."""
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
            if limit.isdigit() and used.isdigit():  # version 2 says max without a limit
                yield int(limit) - int(used)
            if folder == root:
                break


def _peak_bytes(device: torch.device) -> int:
    """Return the peak memory since `_forget_peak`."""
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
    gc.collect()  # memory kept by Python or the C library would hide the next peak
    with contextlib.suppress(OSError, AttributeError):  # a C library without that call
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak of the resident memory
    except OSError as error:
        raise ConfigError(
            f"loader.memory_share cannot be measured on this system ({error.strerror}); give loader.batch_size instead"
        ) from error


@dataclass(frozen=True)
class ProbedTraining:
    """Training whose memory is measured: the model is trained on noise and not needed afterwards.

    Attributes:
        model: the model.
        loss: from raw maps and targets to named parts.
        optimizer: the optimiser.
        precision: number format of the run.
        device: the device of training.
        canvas_hw: height and width of the largest canvas in pixels.
        objects_per_image: boxes of the image that has most.
    """

    model: DetectionModel
    loss: Callable[[tuple[Tensor, ...], Targets], LossParts]
    optimizer: OptimizerConfig
    precision: Precision
    device: torch.device
    canvas_hw: tuple[int, int]
    objects_per_image: int


class _Stepper:
    """Training steps of a `ProbedTraining` on noise."""

    def __init__(self, probed: ProbedTraining) -> None:
        self._probed = probed
        self._model = on_device(probed.model, probed.device)
        self._optimizer = build_optimizer(probed.optimizer, self._model, self._model.parts_in_order())
        self._averaged = MovingAverage(self._model, 100)

    def step(self, batch_size: int) -> None:
        """Make a training step on grey images with many boxes."""
        probed, model, precision, optimizer = self._probed, self._model, self._probed.precision, self._optimizer
        height, width = probed.canvas_hw
        shape = (batch_size, model.image_channels, height, width)
        images = torch.full(shape, 114, dtype=torch.uint8, device=probed.device)
        num_boxes = batch_size * probed.objects_per_image
        draw = torch.Generator().manual_seed(0)
        corner = torch.rand(num_boxes, 2, generator=draw) * torch.tensor([width, height]) * 0.75
        side = (0.05 + 0.2 * torch.rand(num_boxes, 2, generator=draw)) * torch.tensor([width, height])
        targets = Targets(
            torch.cat([corner, corner + side], dim=1),
            torch.randint(0, model.num_classes, (num_boxes,), generator=draw),
            torch.arange(batch_size).repeat_interleave(probed.objects_per_image),
            torch.zeros(num_boxes, dtype=torch.bool),
            batch_size,
        ).to(probed.device)
        model.train()
        with precision.autocast():
            raw_maps = model(images.contiguous(memory_format=torch.channels_last))
        torch.autograd.backward(precision.scaler.scale(probed.loss(raw_maps, targets).total()))
        precision.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        precision.scaler.step(optimizer)
        precision.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        self._averaged.update_parameters(model)


def _measure_peaks(stepper: _Stepper, budget_bytes: int, device: torch.device) -> tuple[dict[int, int], int]:
    """Return the peak memory by batch size, as far as batches fit, and the memory per image from the last two."""
    peaks: dict[int, int] = {}
    image_bytes = 0
    for batch_size in _PROBED:
        if peaks and max(peaks.values()) + image_bytes * batch_size > budget_bytes:
            break
        try:
            for _ in range(2):  # the first step allocates the optimiser's state
                stepper.step(batch_size)
        except ValueError as error:
            if not is_refusal(error):
                raise
            continue  # one image is too small for batch norm, two are enough
        peaks[batch_size] = _peak_bytes(device)
        if len(peaks) > 1:
            image_bytes = max(1, (peaks[batch_size] - peaks[batch_size // 2]) // (batch_size - batch_size // 2))
            if peaks[batch_size] - peaks[batch_size // 2] > _ENOUGH_BYTES:
                break
    return peaks, image_bytes


def fit_batch_size(
    probed: ProbedTraining,
    *,
    share: float,
    waiting_batches: int = 0,
    reserved_bytes: int = 0,
    most: int = MAX_BATCH_SIZE,
) -> FittedBatch:
    """Return the largest batch whose training step stays within a share of the memory that is free now.

    Steps are made at 1, 2, 4 and 8 images, as far as they fit; the peaks of the last two give the memory per image.

    Args:
        probed: the training to measure.
        share: largest share of the free memory, above 0 and at most 1.
        waiting_batches: loaded batches that wait in the same memory.
        reserved_bytes: part of the free memory that something else will take.
        most: largest batch size.

    Raises:
        ConfigError: one image does not fit, or the system does not report its memory.
    """
    device, canvas_hw = probed.device, probed.canvas_hw
    stepper = _Stepper(probed)
    _forget_peak(device)
    held_bytes = _peak_bytes(device)
    budget_bytes = held_bytes + int(share * max(0, free_bytes(device) - reserved_bytes))
    waiting_bytes = waiting_batches * probed.model.image_channels * canvas_hw[0] * canvas_hw[1]
    peaks, image_bytes = _measure_peaks(stepper, budget_bytes, device)
    last, image_bytes = max(peaks), max(image_bytes, 1) + waiting_bytes
    fixed_bytes = peaks[last] - (image_bytes - waiting_bytes) * last
    fits = (budget_bytes - fixed_bytes) // image_bytes if len(peaks) > 1 else int(peaks[last] <= budget_bytes)
    if fits < 1:
        raise ConfigError(
            f"loader.memory_share={share:g}: expected a batch of one image of {canvas_hw[0]} x {canvas_hw[1]} px to "
            f"fit into {budget_bytes / 2**30:.2f} GiB on {device}, got {peaks[min(peaks)] / 2**30:.2f} GiB; free "
            f"memory or take a smaller input.size"
        )
    if fits > 4:
        fits -= fits % 4
    return FittedBatch(min(fits, most), image_bytes, fixed_bytes - held_bytes, budget_bytes - held_bytes, tuple(peaks))
