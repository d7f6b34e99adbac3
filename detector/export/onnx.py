"""The target `onnx`: ONNX files, which ONNX Runtime runs."""

from __future__ import annotations

import hashlib
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
from detector.export.graph import BOXES, INPUT, SCORES, DetectionGraph
from detector.export.metadata import DOCUMENT_KEY, Description
from detector.export.nms_graph import append_suppression
from detector.export.pt2 import exported_program, quietly
from detector.export.quantization import quantized

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession

LENGTH_KEY, DIGEST_KEY = "detector_length", "detector_sha256"
_MAX_BYTES = (1 << 31) - 1  # the largest message of protobuf
# The exceptions of ONNX Runtime, which have no common base class.
_STATES = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException", "EPFail")
_DAMAGED = "is truncated, damaged or was changed after its export; export the model again"


@register("onnx")
class OnnxTarget(ExportTarget):
    """ONNX files, run by ONNX Runtime."""

    suffix = ".onnx"
    write_libraries = ("onnx", "onnxscript")  # torch's exporter is written in onnxscript
    open_libraries = ("onnx", "onnxruntime")
    precisions = ("fp32", "fp16", "int8")
    fastest_mish = "sigmoid"  # measured in docs/benchmarks/exports.md
    can_select = True
    has_opset = True
    has_runner = True

    @dataclass(frozen=True)
    class Config(ExportTargetConfig):
        """No settings."""

    def convert(self, job: ExportJob) -> Encode:
        """Convert a network, quantised with int8, and return a function that encodes its variants."""
        network = convert_job(job)

        def encode(variant: FileVariant) -> Contents:
            return (save(with_outputs(network, variant, job.graph.model.num_classes), variant.document),)

        return encode

    def open_file(self, path: Path) -> ExportRuntime:
        """Open a file that `save` wrote.

        Raises:
            CheckpointError: the file is missing, damaged, changed, from another program, or refers to other files.
        """
        content = read_bounded(path)
        description = _checked_description(path, content)
        session = _session(path, content)

        def run(canvases: Array) -> Sequence[Array]:
            return [np.asarray(output) for output in session.run(None, {INPUT: canvases})]

        return ExportRuntime(description, run)


def convert_job(job: ExportJob) -> ModelProto:
    """Return the network of a job with all boxes and raw maps, quantised with int8.

    Raises:
        CheckpointError: it is larger than one ONNX file can be.
        ConfigError: it cannot be written for canvases of any size.
    """
    program = exported_program(job.graph, job.canvas_hw, job.canvas_dtype, dynamic=job.dynamic)
    network = converted(program, job.graph, job.opset)
    return quantized(network, job.calibration_canvases) if job.precision == "int8" else network


def with_outputs(
    network: ModelProto, variant: FileVariant, num_classes: int, *, takes_equal: bool = False
) -> ModelProto:
    """Return a network with the outputs of a variant; a copy, except where nothing changes.

    Args:
        network: the network with all boxes and raw maps.
        variant: the outputs.
        num_classes: number of classes.
        takes_equal: whether the runtime's suppression also drops a box whose overlap equals the threshold.
    """
    if variant.with_raw_maps:
        return network
    copied = without_raw_maps(network)
    if variant.selection is not None:
        append_suppression(copied, variant.selection, num_classes, takes_equal=takes_equal)
    return copied


def converted(program: torch.export.ExportedProgram, graph: DetectionGraph, opset: int) -> ModelProto:
    """Return the ONNX model of an exported program, with the outputs of the graph.

    Raises:
        CheckpointError: it is larger than one ONNX file can be.
    """
    import onnx

    with quietly():
        written = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT],
            output_names=graph.output_names,
            verbose=False,
        )
        model: ModelProto = written.model_proto  # type: ignore[union-attr]  # not None with dynamo=True
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise CheckpointError("the network is larger than the 2 GiB that one ONNX file holds; export to openvino")
    del model.graph.value_info[:], model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]  # names of source files
        node.doc_string = ""
    _name_dimensions(model)
    model.producer_name = "detector"
    return model


def _name_dimensions(model: ModelProto) -> None:
    """Replace the symbols of free sizes by words."""
    names = {INPUT: ("batch", "height", "width"), BOXES: ("batch", "boxes"), SCORES: ("batch", "boxes")}
    for value in (*model.graph.input, *model.graph.output):
        words = names.get(value.name, ("batch", "", f"{value.name}_height", f"{value.name}_width"))
        for size, word in zip(value.type.tensor_type.shape.dim, words, strict=False):
            if size.dim_param:
                size.dim_param = word


def without_raw_maps(model: ModelProto) -> ModelProto:
    """Return a copy whose only outputs are boxes and scores."""
    import onnx

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    del copied.graph.output[2:]
    return copied


def save(model: ModelProto, document: str) -> bytes:
    """Return the bytes of a file: the model, then its metadata with a SHA-256 of all bytes before it.

    Protobuf reads the two parts as one message.

    Raises:
        CheckpointError: ONNX's checker rejects the model.
    """
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
        body = model.SerializeToString()
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise CheckpointError(f"ONNX's checker rejects the exported graph: {str(error).splitlines()[0]}") from error
    tail = onnx.ModelProto()
    digest = hashlib.sha256(body + document.encode()).hexdigest()
    for key, value in ((DOCUMENT_KEY, document), (LENGTH_KEY, str(len(body))), (DIGEST_KEY, digest)):
        tail.metadata_props.add(key=key, value=value)
    return bytes(body + tail.SerializeToString())


def _checked_description(path: Path, content: bytes) -> Description:
    """Return the metadata of a file after comparing its digest with its bytes.

    Raises:
        CheckpointError: the bytes are not those that `save` returned, or tensors are kept in other files.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise CheckpointError(f"{path} {_DAMAGED}") from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    description = Description.of_json(metadata.get(DOCUMENT_KEY), str(path))
    length = metadata.get(LENGTH_KEY, "")
    if not (length.isascii() and length.isdecimal() and len(length) <= 12 and int(length) <= len(content)):
        raise CheckpointError(f"{path} {_DAMAGED}")
    body = content[: int(length)]
    tail = onnx.ModelProto()
    for entry in model.metadata_props:
        tail.metadata_props.add(key=entry.key, value=entry.value)
    is_whole = body + tail.SerializeToString() == content
    digest = hashlib.sha256(body + metadata[DOCUMENT_KEY].encode()).hexdigest()
    if not is_whole or digest != metadata.get(DIGEST_KEY):
        raise CheckpointError(f"{path} {_DAMAGED}")
    if _refers_to_files(model):
        raise CheckpointError(f"{path} keeps weights in other files, which no export does; export the model again")
    return description


def _session(path: Path, content: bytes) -> InferenceSession:
    """Return ONNX Runtime's session for the bytes of a file, with as many threads as torch has.

    Raises:
        CheckpointError: ONNX Runtime rejects the model.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, so they need no log
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except tuple(getattr(states, name) for name in _STATES) as error:
        raise CheckpointError(f"{path} {_DAMAGED} ({str(error).splitlines()[0]})") from error


def read_bounded(path: Path) -> bytes:
    """Return the bytes of a regular file of at most 2 GiB.

    Raises:
        CheckpointError: it is no such file, or cannot be read.
    """
    try:
        if not path.is_file():
            what = "is not a regular file" if path.exists() else "does not exist"
            raise CheckpointError(f"{path} {what}; give a file that `detector export` wrote")
        if not 0 < path.stat().st_size <= _MAX_BYTES:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes; give a file that `detector export` wrote")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error


def _refers_to_files(model: ModelProto) -> bool:
    """Return whether a model keeps tensors in other files, including those of nodes and their subgraphs."""
    import onnx

    graphs = [model.graph, *model.functions]
    while graphs:
        graph = graphs.pop()
        tensors = list(getattr(graph, "initializer", ()))
        for node in graph.node:
            for attribute in node.attribute:
                tensors += [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]
                graphs += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
        if any(t.data_location == onnx.TensorProto.EXTERNAL for t in tensors):
            return True
    return False
