"""The batch size of an experiment that asks for a share of the memory."""

from __future__ import annotations

import os

import numpy as np
import torch

from detector.config import registry
from detector.data.canvas_sizes import training_canvases
from detector.data.loader import PREFETCHED
from detector.models.precision import Precision, choose_device, keep_freed_memory
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import build_model, read_split
from detector.training.distributed import World
from detector.training.events import Noted, Report
from detector.training.memory_probe import MAX_BATCH_SIZE, ProbedTraining, fit_batch_size

_IMAGES_IN_ONE = 2  # a mosaic holds about as many boxes as two images


def with_batch_size(config: DetectionConfig, world: World, report: Report) -> DetectionConfig:
    """Return the experiment with a measured `loader.batch_size` if it asks for a share of the memory, else unchanged.

    The batch size changes results, so it is reported and kept by the run: resuming uses it again. It is measured on the
    largest canvas. Several processes take the smallest size that fits each of them; processes that train on the CPU of
    one machine share its memory.

    Raises:
        ConfigError: one image does not fit, or the system does not report its memory.
        DatasetError: the data set cannot be used.
    """
    loader, device = config.loader, choose_device(config.device)
    if not loader.memory_share:
        return config
    on_cpu = device.type == "cpu"
    if on_cpu:
        keep_freed_memory()
    elif world.size > 1:
        device = torch.device("cuda", world.local_rank)
    annotations = read_split(config, "train")
    model = build_model(config, len(annotations.class_names))
    canvases = training_canvases(config.input.canvas_hw, config.input.multi_scale, model.max_stride)
    height, width = canvases[-1] if canvases else config.input.canvas_hw
    num_sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if on_cpu else 1
    found = fit_batch_size(
        ProbedTraining(
            model,
            registry.build(config.loss, model),
            config.optimizer,
            Precision(config.train.precision, device),
            device,
            canvas_hw=(height, width),
            objects_per_image=_IMAGES_IN_ONE * int(np.diff(annotations.offsets).max(initial=1)),
        ),
        share=loader.memory_share / num_sharing,
        waiting_batches=loader.workers * PREFETCHED if on_cpu else 0,
        reserved_bytes=loader.workers * loader.cache_mb * 2**20 if on_cpu else 0,
        most=min(MAX_BATCH_SIZE, max(1, len(annotations))),
    )
    batch_size = min(world.gathered([found.batch_size]))
    report(
        Noted(
            f"loader.batch_size={batch_size} was chosen: loader.memory_share={loader.memory_share:g} allows a step "
            f"{found.budget_bytes / 2**20:.0f} MiB of {device}, an image of {height} x {width} px takes "
            f"{found.image_bytes / 2**20:.1f} MiB and the rest {found.fixed_bytes / 2**20:.0f} MiB, as measured with "
            f"{' and '.join(map(str, found.probed[-2:]))} images; results depend on it, so give the number to train "
            f"the same again"
        )
    )
    return config.with_batch_size(batch_size)
