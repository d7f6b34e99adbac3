"""The target `torchscript`, which torch 2.9 and later deprecate and many programs still read."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from detector.config.registry import register
from detector.errors import CheckpointError
from detector.export.export_runtime import Array, ExportRuntime
from detector.export.export_target import Contents, Encode, ExportJob, ExportTarget, ExportTargetConfig, FileVariant
from detector.export.graph import DetectionGraph
from detector.export.metadata import DOCUMENT_KEY, Description
from detector.export.pt2 import quietly
from detector.export.torch_archive import read_archive
from detector.io.zip_entries import pack

_ENTRY = f"{DOCUMENT_KEY}.json"


@register("torchscript")
class TorchScriptTarget(ExportTarget):
    """Traced TorchScript programs."""

    suffix = ".torchscript"
    precisions = ("fp32", "fp16")

    @dataclass(frozen=True)
    class Config(ExportTargetConfig):
        """No settings."""

    def convert(self, job: ExportJob) -> Encode:
        """Return a function that traces and encodes each variant of a network."""

        def encode(variant: FileVariant) -> Contents:
            job.graph.with_raw_maps = variant.with_raw_maps
            return (save(traced(job.graph, job.canvas_hw, job.canvas_dtype), variant.document),)

        return encode

    def open_file(self, path: Path) -> ExportRuntime:
        """Open a file that `save` wrote.

        Raises:
            CheckpointError: the file is missing, damaged or from another program.
        """
        archive = pack(read_archive(path, may_compress=True))
        entries: dict[str, str | bytes] = {_ENTRY: ""}  # torch fills in the bytes of the entry
        try:
            with quietly():
                script: Callable[[Tensor], tuple[Tensor, ...]] = torch.jit.load(  # type: ignore[no-untyped-call]
                    archive, map_location="cpu", _extra_files=entries
                )
            content = entries[_ENTRY]
            text = content.decode() if isinstance(content, bytes) else content
        except (RuntimeError, ValueError, OSError) as error:
            raise CheckpointError(f"{path} is damaged or no TorchScript file; export the model again") from error

        @torch.inference_mode()
        def run(canvases: Array) -> Sequence[Array]:
            return [output.float().numpy() for output in script(torch.from_numpy(canvases))]

        return ExportRuntime(Description.of_json(text, str(path)), run)


def traced(graph: DetectionGraph, canvas_hw: tuple[int, int], dtype: torch.dtype) -> torch.jit.ScriptModule:
    """Return the graph as `torch.jit.trace` records it; sizes are recorded as expressions of the input's size."""
    with quietly(), torch.no_grad():
        example = graph.canvases(canvas_hw, 2, dtype)
        script: torch.jit.ScriptModule = torch.jit.trace(graph, example, check_trace=False)  # type: ignore[no-untyped-call]
        return script


def save(script: torch.jit.ScriptModule, document: str) -> bytes:
    """Return the bytes of a file."""
    content = io.BytesIO()
    with quietly():
        torch.jit.save(script, content, _extra_files={_ENTRY: document})
    return content.getvalue()
