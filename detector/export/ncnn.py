"""The target `ncnn`: a graph in NAME.param and its weights in NAME.ncnn.bin, which pnnx makes of a traced program."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from detector.config.registry import register
from detector.errors import CheckpointError
from detector.export.export_runtime import Array, ExportRuntime
from detector.export.export_target import Contents, Encode, ExportJob, ExportTarget, ExportTargetConfig, FileVariant
from detector.export.graph import DetectionGraph
from detector.export.metadata import DOCUMENT_KEY, Description
from detector.export.onnx import read_bounded
from detector.export.pt2 import quietly
from detector.models.yolox import FocusStem

if TYPE_CHECKING:
    from ncnn import Net

_INPUT = "in0"  # pnnx numbers inputs and outputs: in0, out0, out1, ...
_TIMEOUT_S = 1800
# ncnn reads as many layers as the second line says, so the two lines after them are free.
_TAIL = re.compile(rb"#detector ([^\n]*)\n#detector sha256 ([0-9a-f]{64}) ([0-9a-f]{64})\n\Z")
_UNKNOWN = re.compile(rb"^(\w+(?:\.|::)\S+)", re.MULTILINE)  # layers that pnnx keeps under torch's name
_DAMAGED = "is truncated, damaged or was changed after its export; export the model again"


@register("ncnn")
class NcnnTarget(ExportTarget):
    """Files of ncnn, which runs on phones and small boards: NAME.param with the graph, NAME.ncnn.bin with the weights.

    Its input `in0` is (height, width, channels) in float32, 0..255; its outputs `out0` and `out1` are boxes and scores.
    """

    suffix = ".param"
    companion_suffixes = (".ncnn.bin",)
    write_libraries = ("pnnx",)
    open_libraries = ("ncnn",)
    install_command = 'pip install "detector-toolkit[ncnn]"'

    @dataclass(frozen=True)
    class Config(ExportTargetConfig):
        """No settings."""

    def convert(self, job: ExportJob) -> Encode:
        """Return a function that traces and converts each variant of a network.

        Raises:
            ConfigError: canvases of any size are asked for.
        """
        job.require_one_size("ncnn")

        replace_focus_stems(job.graph)

        def encode(variant: FileVariant) -> Contents:
            job.graph.with_raw_maps = variant.with_raw_maps
            graph, weights = converted(_FloatInput(job.graph, job.canvas_dtype), job)
            body = graph.rstrip(b"\n") + f"\n#{DOCUMENT_KEY} {variant.document}\n".encode()
            digests = hashlib.sha256(body).hexdigest(), hashlib.sha256(weights).hexdigest()
            return body + f"#{DOCUMENT_KEY} sha256 {digests[0]} {digests[1]}\n".encode(), weights

        return encode

    def open_file(self, path: Path) -> ExportRuntime:
        """Open files of an export.

        Raises:
            CheckpointError: one of the files is missing, damaged, changed or from another program.
        """
        text, net = _opened(path, path.with_suffix(self.companion_suffixes[0]))

        def run(canvases: Array) -> Sequence[Array]:
            rows = [_outputs(net, canvas) for canvas in canvases]
            return [np.stack(parts) for parts in zip(*rows, strict=True)]

        return ExportRuntime(Description.of_json(text, str(path)), run)


class _FloatInput(nn.Module):
    """Network that takes the levels of uint8 canvases as float32, because ncnn has no type for whole numbers."""

    def __init__(self, graph: DetectionGraph, dtype: torch.dtype) -> None:
        super().__init__()
        self.graph, self._is_uint8 = graph, dtype == torch.uint8

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of the graph for canvases (1, H, W, C)."""
        outputs: tuple[Tensor, ...] = self.graph(images / 255 if self._is_uint8 else images)
        return outputs


def replace_focus_stems(network: nn.Module) -> None:
    """Replace each folded `FocusStem` by one convolution of stride 2; ncnn cannot take every second row and column.

    A k x k convolution of the four pixel phases of an image is a 2k x 2k convolution of the image itself: its weight of
    the row 2i + r and the column 2j + s is that of the row i and the column j of the phase (r, s).
    """
    for module in list(network.modules()):
        for name, stem in module.named_children():
            if isinstance(stem, FocusStem):
                block, phased = stem.conv, stem.conv.conv
                num_out, _, side, _ = phased.weight.shape
                # `FocusStem` stacks the phases with the rows as the faster index: (0, 0), (1, 0), (0, 1), (1, 1).
                weight = phased.weight.reshape(num_out, 2, 2, -1, side, side).permute(0, 3, 4, 2, 5, 1)
                whole = nn.Conv2d(weight.shape[1], num_out, 2 * side, stride=2, padding=2 * phased.padding[0])
                whole.weight = nn.Parameter(weight.reshape(num_out, -1, 2 * side, 2 * side))
                whole.bias = phased.bias  # of the folded norm
                block.conv = whole.requires_grad_(False)
                setattr(module, name, block)


def converted(network: nn.Module, job: ExportJob) -> tuple[bytes, bytes]:
    """Return the bytes of a network's graph and weights in ncnn's formats.

    Raises:
        CheckpointError: pnnx cannot convert the network.
    """
    import pnnx

    example = job.graph.canvases(job.canvas_hw, 1, torch.float32)
    with tempfile.TemporaryDirectory() as folder, quietly(), torch.no_grad():
        traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
        traced.save(f"{folder}/model.pt")
        shape = ",".join(map(str, example.shape))
        command = [pnnx.EXEC_PATH, "model.pt", f"inputshape=[{shape}]f32", "fp16=0"]
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, errors="replace"
        )
        files = [Path(folder) / f"model.ncnn.{kind}" for kind in ("param", "bin")]
        if done.returncode or not all(file.is_file() for file in files):
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason"]
            raise CheckpointError(f"pnnx cannot convert the network to ncnn: {lines[-1][:200]}; choose another target")
        graph, weights = (file.read_bytes() for file in files)
    if unknown := _UNKNOWN.search(graph):
        raise CheckpointError(f"ncnn has no operator for {unknown[1].decode()} of this network; choose another target")
    return graph, weights


def _opened(path: Path, weights_path: Path) -> tuple[str, Net]:
    """Return the metadata and the network of files whose digests fit.

    Raises:
        CheckpointError: a file is missing, damaged, changed or from another program.
    """
    import ncnn

    graph = read_bounded(path)
    tail = _TAIL.search(graph)
    if tail is None:
        raise CheckpointError(f"{path} does not describe its model; give a whole file that `detector export` wrote")
    weights = read_bounded(weights_path)
    body = graph[: tail.end(1) + 1]
    for file, content, digest in ((path, body, tail[2]), (weights_path, weights, tail[3])):
        if hashlib.sha256(content).hexdigest().encode() != digest:
            raise CheckpointError(f"{file} {_DAMAGED}")
    net = ncnn.Net()
    options = net.opt
    options.use_vulkan_compute, options.num_threads = False, torch.get_num_threads()
    # By default ncnn computes with fewer bits where the processor can.
    options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = options.use_bf16_storage = False
    with tempfile.TemporaryDirectory() as folder:  # the checked bytes, which nobody changes before ncnn reads them
        copies = [Path(folder) / name for name in ("model.param", "model.bin")]
        for copy, content in zip(copies, (graph, weights), strict=True):
            copy.write_bytes(content)
        if net.load_param(str(copies[0])) or net.load_model(str(copies[1])):
            raise CheckpointError(f"{path} {_DAMAGED}")
    return tail[1].decode(), net


def _outputs(net: Net, canvas: Array) -> list[Array]:
    """Return the outputs of one canvas (H, W, C)."""
    import ncnn

    extractor = net.create_extractor()
    levels = np.ascontiguousarray(canvas, np.float32)  # ncnn.Mat does not keep it alive
    extractor.input(_INPUT, ncnn.Mat(levels).clone())
    outputs = []
    names = set(net.output_names())  # and blobs that nothing reads
    for name in (f"out{index}" for index in range(len(names)) if f"out{index}" in names):
        code, output = extractor.extract(name)
        if code:
            raise RuntimeError(f"ncnn returned the error {code} for the output {name}")
        outputs.append(np.array(output))
    return outputs
