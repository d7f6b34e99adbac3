"""Files of TorchScript, which torch 2.9 and later deprecate and many programs still read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from detector.errors import CheckpointError
from detector.export.export_runtime import Run
from detector.export.graph import DetectionGraph
from detector.export.metadata import DOCUMENT_KEY, Description
from detector.export.pt2 import quietly
from detector.export.torch_archive import check_archive

_ENTRY = f"{DOCUMENT_KEY}.json"


def traced(graph: DetectionGraph, canvas_hw: tuple[int, int], dtype: torch.dtype) -> Any:
    """The graph as `torch.jit.trace` records it; shapes are recorded as what they are computed from."""
    with quietly(), torch.no_grad():
        example = graph.canvases(canvas_hw, 2, dtype)
        return torch.jit.trace(graph, example, check_trace=False)  # type: ignore[no-untyped-call]  # untyped in torch


def save(script: Any, document: str) -> bytes:
    """The file."""
    content = io.BytesIO()
    with quietly():
        torch.jit.save(script, content, _extra_files={_ENTRY: document})
    return content.getvalue()


def open_file(path: Path) -> tuple[Description, Run]:
    """Reads a file that `save` wrote.

    Raises:
        CheckpointError: it is another, or damaged.
    """
    check_archive(path, may_compress=True)
    found: dict[str, Any] = {_ENTRY: ""}
    try:
        with quietly():
            script: Any = torch.jit.load(path, map_location="cpu", _extra_files=found)  # type: ignore[no-untyped-call]
        text = found[_ENTRY].decode() if isinstance(found[_ENTRY], bytes) else found[_ENTRY]
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no TorchScript file: export the model again") from error

    @torch.inference_mode()
    def run(canvases: Any) -> list[Any]:
        return [output.float().numpy() for output in script(torch.from_numpy(canvases))]

    return Description.of_json(text, str(path)), run
