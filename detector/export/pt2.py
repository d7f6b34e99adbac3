"""The target `pt2`: files of `torch.export`, a graph of ATen operators with its weights."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from detector.config.registry import register
from detector.errors import CheckpointError, ConfigError
from detector.export.export_runtime import Array, ExportRuntime
from detector.export.export_target import Contents, Encode, ExportJob, ExportTarget, ExportTargetConfig, FileVariant
from detector.export.graph import INPUT, DetectionGraph
from detector.export.metadata import DOCUMENT_KEY, Description
from detector.export.torch_archive import read_pt2
from detector.io.zip_entries import pack

_ENTRY = f"{DOCUMENT_KEY}.json"
_MAX_SIDE = 16_384  # pixels; torch.export needs a bound


@register("pt2")
class Pt2Target(ExportTarget):
    """Programs of `torch.export`."""

    suffix = ".pt2"
    precisions = ("fp32", "fp16")

    @dataclass(frozen=True)
    class Config(ExportTargetConfig):
        """No settings."""

    def convert(self, job: ExportJob) -> Encode:
        """Return a function that records and encodes each variant of a network."""

        def encode(variant: FileVariant) -> Contents:
            job.graph.with_raw_maps = variant.with_raw_maps
            program = exported_program(job.graph, job.canvas_hw, job.canvas_dtype, dynamic=job.dynamic)
            return (save(program, variant.document),)

        return encode

    def open_file(self, path: Path) -> ExportRuntime:
        """Open a file that `save` wrote.

        Raises:
            CheckpointError: the file is missing, damaged, from another program, or contains more than tensors and
                operators on tensors.
        """
        archive = pack(read_pt2(path))
        entries = {_ENTRY: ""}
        try:
            with quietly():
                program = torch.export.load(archive, extra_files=entries)
                # Python expressions for a check that `Description.check_image_hw` makes too.
                program._guards_code = []
                module = program.module(check_guards=False)
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, OSError) as error:
            raise CheckpointError(
                f"{path} is damaged or of another version of torch; export the model again"
            ) from error

        @torch.inference_mode()
        def run(canvases: Array) -> Sequence[Array]:
            return [output.float().numpy() for output in module(torch.from_numpy(canvases))]

        return ExportRuntime(Description.of_json(entries[_ENTRY], str(path)), run)


@contextmanager
def quietly() -> Iterator[None]:
    """Hide torch's remarks to developers, on deprecations and on shapes it specialises on."""
    logger = logging.getLogger("torch")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def exported_program(
    graph: DetectionGraph, canvas_hw: tuple[int, int], dtype: torch.dtype, *, dynamic: bool
) -> torch.export.ExportedProgram:
    """Return the graph as `torch.export` records it for any batch size.

    Args:
        graph: the network.
        canvas_hw: height and width of a canvas in pixels, of no effect with `dynamic`.
        dtype: type of a canvas.
        dynamic: whether to record it for any canvas size that suits the model's strides.

    Raises:
        ConfigError: `dynamic` is set and the network depends on the canvas size.
    """
    stride = graph.model.max_stride
    shape: dict[int, torch.export.Dim] = {0: torch.export.Dim("batch")}
    if dynamic:
        most = _MAX_SIDE // stride
        shape[1] = stride * torch.export.Dim("rows", min=2, max=most)
        shape[2] = stride * torch.export.Dim("columns", min=2, max=most)
        # Two different sizes, because torch.export treats equal ones as the same variable.
        canvas_hw = 6 * stride, 10 * stride
    try:
        with quietly(), torch.no_grad():
            example = graph.canvases(canvas_hw, 2, dtype)
            program = torch.export.export(graph, (example,), dynamic_shapes={INPUT: shape}, strict=False)
    except (torch._dynamo.exc.UserError, torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode) as error:
        raise ConfigError(
            "the network cannot be written for canvases of any size (its layers depend on it); leave --dynamic out"
        ) from error
    return program


def save(program: torch.export.ExportedProgram, document: str) -> bytes:
    """Return the bytes of a file."""
    content = io.BytesIO()
    with quietly():
        torch.export.save(program, content, extra_files={_ENTRY: document})
    return content.getvalue()
