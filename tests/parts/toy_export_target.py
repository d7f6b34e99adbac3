"""Example of an export target: one file in `detector/export/`, or a file given with `--import`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from detector.config.registry import build, register
from detector.config.schema import config_from_plain
from detector.errors import CheckpointError
from detector.export.export_runtime import Array, ExportRuntime
from detector.export.export_target import Contents, Encode, ExportJob, ExportTarget, ExportTargetConfig, FileVariant
from detector.export.graph import DetectionGraph
from detector.export.metadata import DOCUMENT_KEY, Description
from detector.models.contracts import ModelConfig


@dataclass(frozen=True)
class _Network:
    """Configuration of the network in a file."""

    model: ModelConfig


@register("toy")
class TensorTarget(ExportTarget):
    """File NAME.toy with the tensors of the exported network, which is built again when the file is opened."""

    suffix = ".toy"

    @dataclass(frozen=True)
    class Config(ExportTargetConfig):
        """No settings."""

    def convert(self, job: ExportJob) -> Encode:
        """Return a function that encodes each variant of a network."""

        def encode(variant: FileVariant) -> Contents:
            state = {name: tensor.contiguous() for name, tensor in job.graph.state_dict().items()}
            metadata = {DOCUMENT_KEY: variant.document, "raw_maps": str(variant.with_raw_maps)}
            return (safetensors.torch.save(state, metadata),)

        return encode

    def open_file(self, path: Path) -> ExportRuntime:
        """Open a file that this target wrote.

        Raises:
            CheckpointError: the file is missing, damaged or from another program.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            description = Description.of_json(metadata.get(DOCUMENT_KEY), str(path))
            config = config_from_plain(_Network, {"model": description.file.config["model"]}, str(path))
            model = build(config.model, description.num_classes, description.channels)
            graph = DetectionGraph(model.eval(), "mish", is_half=False)
            graph.load_state_dict(state)
        except (OSError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{path} is damaged or no export; export the model again") from error
        graph.with_raw_maps = metadata["raw_maps"] == "True"

        @torch.inference_mode()
        def run(canvases: Array) -> Sequence[Array]:
            return [output.numpy() for output in graph(torch.from_numpy(canvases))]

        return ExportRuntime(description, run)
