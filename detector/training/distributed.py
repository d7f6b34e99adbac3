"""The processes of a run: one by itself, or several that torchrun has started, on one machine or on many."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detector.errors import ConfigError

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class World:
    """This process among those of its run.

    What several processes do together, all of them must ask for, in the same order; one by itself talks to nobody.

    Attributes:
        rank: number of the process, 0 for the one that reports and writes.
        size: number of processes.
        local_rank: number of the process on its machine, and of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that reports and writes."""
        return self.rank == 0

    def wrap(self, model: nn.Module, *, may_skip_parameters: bool) -> nn.Module:
        """The model, averaging its gradients over the processes in every backward pass outside `alone`.

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
        """Where active, backward passes of a wrapped model leave the gradients of the processes apart."""
        if active and isinstance(model, DistributedDataParallel):
            return model.no_sync()
        return contextlib.nullcontext()

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the processes."""
        if self.size == 1:
            return value
        value = value.detach().clone()
        dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        return flag if self.size == 1 else bool(self.total(torch.tensor(int(flag))))

    def gathered(self, items: list[T]) -> list[T]:
        """The items of all processes, in the order of their ranks."""
        if self.size == 1:
            return items
        lists: list[Any] = [None] * self.size
        dist.all_gather_object(lists, items)
        return [item for part in lists for item in part]

    def shared(self, value: T) -> T:
        """The value of process 0."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def equalise(self, module: nn.Module) -> None:
        """Gives every process the parameters and buffers that process 0 has."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)


def with_shared_statistics(model: M, device: torch.device) -> M:
    """The model with batch norms that take mean and variance over the batches of all processes (torch's SyncBatchNorm).

    Parameters, statistics and their names stay as they are, so that saves fit either way.

    Args:
        model: the model; its batch norms are replaced.
        device: where it will train.

    Raises:
        ConfigError: the device is no GPU; torch has no such norm for others.
    """
    if device.type != "cuda":
        raise ConfigError(
            f"train.sync_batch_norm wants CUDA devices, for torch shares statistics of batch norm on GPUs only, found "
            f"{device}; leave it out, or train with larger batches in fewer processes"
        )
    synchronised: M = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]  # in torch
    return synchronised


@contextlib.contextmanager
def joined(timeout_s: float) -> Iterator[World]:
    """The world that torchrun's environment describes, joined and left again; one process where there is none.

    Tensors of a GPU travel by NCCL, all else by gloo. A process that waits for another for longer than the timeout
    raises, and torchrun ends the others.

    Args:
        timeout_s: seconds to wait for another process.

    Raises:
        ConfigError: the environment is not whole.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"training in several processes wants torchrun's environment, found WORLD_SIZE without "
            f"{', '.join(missing)}; start it as: torchrun --nproc-per-node=2 -m detector train ..."
        )
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    try:
        yield World(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"]))
    finally:
        dist.destroy_process_group()
