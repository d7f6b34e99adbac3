"""The target `openvino`: a graph in NAME.xml and its weights in NAME.bin, converted from the ONNX graph."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from detector.config.registry import register
from detector.errors import CheckpointError
from detector.export.export_runtime import Array, ExportRuntime
from detector.export.export_target import Contents, Encode, ExportJob, ExportTarget, ExportTargetConfig, FileVariant
from detector.export.metadata import DOCUMENT_KEY, Description
from detector.export.onnx import convert_job, read_bounded, with_outputs
from detector.export.signal_stack import kept_signal_stack

if TYPE_CHECKING:
    from onnx import ModelProto
    from openvino import CompiledModel, Model

# The last line of the graph's file is a comment with the digests of all bytes before it and of the weights.
SEAL = re.compile(rb"<!-- detector sha256 ([0-9a-f]{64}) ([0-9a-f]{64}) -->\n\Z")
_DAMAGED = "is truncated, damaged or was changed after its export; export the model again"


@register("openvino")
class OpenVinoTarget(ExportTarget):
    """OpenVINO's intermediate representation: NAME.xml with the graph, NAME.bin with the weights."""

    suffix = ".xml"
    companion_suffixes = (".bin",)
    write_libraries = ("onnx", "onnxscript", "openvino")
    open_libraries = ("openvino",)
    precisions = ("fp32", "fp16", "int8")
    can_select = True
    has_opset = True
    has_runner = True
    halves_network = False

    @dataclass(frozen=True)
    class Config(ExportTargetConfig):
        """No settings."""

    def convert(self, job: ExportJob) -> Encode:
        """Convert a network by way of ONNX, and return a function that encodes its variants."""
        network, num_classes = convert_job(job), job.graph.model.num_classes

        def encode(variant: FileVariant) -> Contents:
            model = converted(with_outputs(network, variant, num_classes, takes_equal=True))
            return save(model, variant.document, halves_weights=job.precision == "fp16")

        return encode

    def open_file(self, path: Path) -> ExportRuntime:
        """Open files that `save` wrote.

        Raises:
            CheckpointError: one of the files is missing, damaged, changed or from another program.
        """
        text, compiled = _compiled(path)
        request = compiled.create_infer_request()

        def run(canvases: Array) -> Sequence[Array]:
            outputs = request.infer([canvases])
            return [np.array(outputs[index]) for index in range(len(compiled.outputs))]

        return ExportRuntime(Description.of_json(text, str(path)), run)


def converted(onnx_model: ModelProto) -> Model:
    """Return the OpenVINO model of an ONNX model."""
    import openvino

    model = openvino.Core().read_model(onnx_model.SerializeToString())
    _order_equal_scores(model)
    return model


def _order_equal_scores(model: Model) -> None:
    """Make TopK return equal values in the order of their positions, as ONNX defines it."""
    from openvino import opset15

    for node in model.get_ordered_ops():
        if node.get_type_name() == "TopK":
            values, count = (node.input_value(index) for index in range(2))
            ordered = opset15.topk(values, count, node.get_attributes()["axis"], "max", "value", "i64", stable=True)
            for index in range(2):
                node.output(index).replace(ordered.output(index))


def save(model: Model, document: str, *, halves_weights: bool) -> tuple[bytes, bytes]:
    """Return the bytes of the graph's file and of the weights' file."""
    import openvino

    model.set_rt_info(document, [DOCUMENT_KEY])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        openvino.save_model(model, path, compress_to_fp16=halves_weights)
        graph, weights = path.read_bytes(), path.with_suffix(".bin").read_bytes()
    digests = hashlib.sha256(graph).hexdigest(), hashlib.sha256(weights).hexdigest()
    return graph + f"<!-- detector sha256 {digests[0]} {digests[1]} -->\n".encode(), weights


def _compiled(path: Path) -> tuple[str, CompiledModel]:
    """Return the metadata and the compiled model of a file whose digests fit.

    Raises:
        CheckpointError: a file is missing, damaged, changed or from another program.
    """
    import openvino

    graph = read_bounded(path)
    seal = SEAL.search(graph[-200:])
    if seal is None:
        raise CheckpointError(f"{path} does not describe its model; give a whole file that `detector export` wrote")
    weights = read_bounded(path.with_suffix(".bin"))
    bare = graph[: len(graph) - len(seal[0])]
    for file, content, digest in ((path, bare, seal[1]), (path.with_suffix(".bin"), weights, seal[2])):
        if hashlib.sha256(content).hexdigest().encode() != digest:
            raise CheckpointError(f"{file} {_DAMAGED}")
    core = openvino.Core()
    try:
        model = core.read_model(graph, weights)
        text: str = model.get_rt_info([DOCUMENT_KEY]).astype(str)
        # Without the first setting, processors with bfloat16 compute in it.
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        with kept_signal_stack():
            return text, core.compile_model(model, "CPU", settings)
    except (RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} {_DAMAGED} ({str(error).splitlines()[0][:200]})") from error
