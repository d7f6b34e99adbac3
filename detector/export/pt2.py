"""Files of `torch.export`: a graph of ATen operators with its weights."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from detector.errors import CheckpointError, ConfigError
from detector.export.export_runtime import Run
from detector.export.graph import INPUT, DetectionGraph
from detector.export.metadata import DOCUMENT_KEY, Description
from detector.export.torch_archive import check_pt2

_ENTRY = f"{DOCUMENT_KEY}.json"
_MAX_SIDE = 16_384  # pixels; torch wants a bound


@contextmanager
def quietly() -> Iterator[None]:
    """Keeps torch's remarks to developers, of deprecations and of shapes it specialises on, from the user."""
    logger = logging.getLogger("torch")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def exported_program(graph: DetectionGraph, canvas_hw: tuple[int, int], dtype: torch.dtype, *, dynamic: bool) -> Any:
    """The graph as `torch.export` records it, for any batch and, with `dynamic`, for any size that suits the strides.

    Raises:
        ConfigError: the model cannot be recorded for any size.
    """
    stride = graph.model.max_stride
    shape: dict[int, Any] = {0: torch.export.Dim("batch")}
    if dynamic:
        most = _MAX_SIDE // stride
        shape[1] = stride * torch.export.Dim("rows", min=2, max=most)
        shape[2] = stride * torch.export.Dim("columns", min=2, max=most)
        canvas_hw = (6 * stride, 10 * stride)  # unlike one another, so that neither is taken for the other
    try:
        with quietly(), torch.no_grad():
            example = graph.canvases(canvas_hw, 2, dtype)
            program = torch.export.export(graph, (example,), dynamic_shapes={INPUT: shape}, strict=False)
    except (torch._dynamo.exc.UserError, torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode) as error:
        raise ConfigError(
            "the network cannot be written for canvases of any size (its layers depend on it); leave --dynamic out"
        ) from error
    return program


def save(program: Any, document: str) -> bytes:
    """The file."""
    content = io.BytesIO()
    with quietly():
        torch.export.save(program, content, extra_files={_ENTRY: document})
    return content.getvalue()


def open_file(path: Path) -> tuple[Description, Run]:
    """Reads a file that `save` wrote.

    Raises:
        CheckpointError: it is another, or damaged.
    """
    check_pt2(path)
    found = {_ENTRY: ""}
    try:
        with quietly():
            program = torch.export.load(path, extra_files=found)
            program._guards_code = []  # expressions in Python, of a check that `Description.check_image_hw` makes too
            module = program.module(check_guards=False)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or of another version of torch: export the model again") from error

    @torch.inference_mode()
    def run(canvases: Any) -> list[Any]:
        return [output.float().numpy() for output in module(torch.from_numpy(canvases))]

    return Description.of_json(found[_ENTRY], str(path)), run
