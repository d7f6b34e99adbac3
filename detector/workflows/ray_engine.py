"""Prediction in parts on Ray: a pool of actors, each with a model, on this machine or on a cluster."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from detector.errors import ConfigError, DetectorError
from detector.tasks.requests import SILENT, PredictionRequest
from detector.workflows.prediction_parts import PartCounts, open_parts

# A Ray of this machine alone listens on the loopback interface, and holds numbers of parts only, which are small.
_LOCAL: dict[str, Any] = {"_node_ip_address": "127.0.0.1", "object_store_memory": 80 * 2**20}


def _ray() -> Any:
    """Return Ray with Ray Data.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        importlib.import_module("ray.data")
        return importlib.import_module("ray")
    except ImportError as error:
        raise ConfigError(
            f"--engine ray: Ray Data cannot be imported ({error}); install it with: pip install 'detector-toolkit[ray]'"
        ) from error


@dataclass(frozen=True)
class RayPool:
    """Pool of Ray actors that write parts.

    Attributes:
        request: the model and the images; every machine finds them, and the folder of the parts, under the same paths.
        images_per_part: as in `open_parts`.
        num_workers: actors; None for one on each GPU, or on each CPU core of a cluster without GPUs.
        address: a running cluster, or None to start Ray on this machine.
    """

    request: PredictionRequest
    images_per_part: int | None = None
    num_workers: int | None = None
    address: str | None = None

    def written(self, parts: Sequence[int]) -> Iterator[PartCounts]:
        """Write parts and yield the counts of each, in the order in which they are done.

        Ray starts a lost actor, or one of a lost machine, again and gives its part to it; a part is a function of the
        manifest, so one that is written twice has the same content.

        Raises:
            ConfigError: Ray is missing.
            DetectorError: a part could not be written.
        """
        if not parts:
            return
        ray = _ray()
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
            own = {"address": self.address} if self.address else _LOCAL
            ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False, **own)
        resources = ray.cluster_resources()
        num_gpus = int(resources.get("GPU", 0))
        num_workers = min(self.num_workers or num_gpus or max(int(resources.get("CPU", 1)), 1), len(parts))
        listed = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts))
        written = listed.map(
            _PartWriter,
            fn_constructor_args=(self.request, self.images_per_part, num_gpus == 0),
            concurrency=num_workers,
            num_cpus=0 if num_gpus else 1,
            num_gpus=min(1.0, num_gpus / num_workers) if num_gpus else 0,
        )
        try:
            for row in written.iter_rows():
                yield PartCounts(**{name: int(row[name]) for name in asdict(PartCounts())})
        except ray.exceptions.RayError as error:
            reason = getattr(error, "cause", None) or error
            raise DetectorError(f"--engine ray: {reason}; the same command continues with the missing parts") from error


class _PartWriter:
    """Actor that opens the model once and writes the parts that it is given."""

    def __init__(self, request: PredictionRequest, images_per_part: int | None, is_one_core: bool) -> None:
        if is_one_core:
            torch.set_num_threads(1)
        self._job = open_parts(request, SILENT, images_per_part)

    def __call__(self, row: dict[str, Any]) -> dict[str, int]:
        """Return the counts of the part that a row names, after writing it where it is missing."""
        part = int(row["part"])
        return asdict(self._job.finished(part) or self._job.write(part))
