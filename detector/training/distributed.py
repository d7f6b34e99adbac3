"""The processes of a run: a single one, or several started by torchrun on one or more machines."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detector.errors import ConfigError

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class World:
    """This process among the processes of its run.

    All processes must call the collective methods in the same order; a single process communicates with nobody.

    Attributes:
        rank: index of the process; process 0 reports and writes.
        size: number of processes.
        local_rank: index of the process on its machine, which is also the index of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """True for the process that reports and writes."""
        return self.rank == 0

    def wrap(self, model: nn.Module, *, may_skip_parameters: bool) -> nn.Module:
        """Return the model wrapped to average its gradients over the processes in every backward pass outside `alone`.

        Args:
            model: the model, on its device.
            may_skip_parameters: whether a step may leave parameters without a gradient.
        """
        if self.size == 1:
            return model
        devices = [next(model.parameters()).device] if next(model.parameters()).is_cuda else None
        return DistributedDataParallel(model, devices, find_unused_parameters=may_skip_parameters)

    @staticmethod
    def alone(model: nn.Module, active: bool) -> contextlib.AbstractContextManager[None]:
        """Return a context in which, if active, backward passes of a wrapped model do not average gradients."""
        if active and isinstance(model, DistributedDataParallel):
            return model.no_sync()
        return contextlib.nullcontext()

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes."""
        if self.size == 1:
            return value
        value = value.detach().clone()
        dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Return True if the flag is true in any process."""
        return flag if self.size == 1 else bool(self.total(torch.tensor(int(flag))))

    def gathered(self, items: list[T]) -> list[T]:
        """Return the items of all processes, in the order of their ranks."""
        if self.size == 1:
            return items
        lists: list[list[T]] = [[] for _ in range(self.size)]
        dist.all_gather_object(lists, items)
        return [item for part in lists for item in part]

    def shared(self, value: T) -> T:
        """Return the value of process 0."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def equalise(self, module: nn.Module) -> None:
        """Copy the parameters and buffers of process 0 to every process."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)


def with_shared_statistics(model: M, device: torch.device) -> M:
    """Return the model with torch's SyncBatchNorm, whose mean and variance cover the batches of all processes.

    Parameters, statistics and their names do not change, so that model files fit either way.

    Args:
        model: the model; its batch norms are replaced.
        device: the device to train on.

    Raises:
        ConfigError: the device is not a GPU, which torch requires.
    """
    if device.type != "cuda":
        raise ConfigError(
            f"train.sync_batch_norm: expected a CUDA device, since torch synchronises batch norm on GPUs only, got "
            f"{device}; leave it out, or train with larger batches in fewer processes"
        )
    synchronised: M = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]  # in torch
    return synchronised


@contextlib.contextmanager
def joined(timeout_s: float) -> Iterator[World]:
    """Join the processes that torchrun's environment describes and leave them at the end.

    Without that environment there is one process.

    GPU tensors are sent by NCCL, all others by gloo. A process that waits for another one longer than the timeout
    raises, and torchrun ends the others.

    Args:
        timeout_s: seconds to wait for another process.

    Yields:
        This process among the others.

    Raises:
        ConfigError: variables of torchrun's environment are missing.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"training in several processes: expected the environment of torchrun, got WORLD_SIZE without "
            f"{', '.join(missing)}; start it as: torchrun --nproc-per-node=2 -m detector train ..."
        )
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    try:
        yield World(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"]))
    finally:
        dist.destroy_process_group()
