"""ONNX files, and ONNX Runtime to run them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detector.errors import CheckpointError
from detector.export.export_config import extra
from detector.export.export_runtime import Run
from detector.export.graph import BOXES, INPUT, SCORES, DetectionGraph
from detector.export.metadata import DOCUMENT_KEY, Description
from detector.export.pt2 import quietly

_LENGTH_KEY, _DIGEST_KEY = "detector_length", "detector_sha256"
_MAX_BYTES = (1 << 31) - 1  # what protobuf holds
# The exceptions of ONNX Runtime, which have no base of their own.
_STATES = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException", "EPFail")
_DAMAGED = "is truncated, damaged or was changed after its export: export the model again"


def converted(program: Any, graph: DetectionGraph, opset: int) -> Any:
    """An `onnx.ModelProto` of an exported program, with the outputs of the graph."""
    with extra("an export to ONNX"):
        import onnx
        import onnxscript  # noqa: F401 (torch's exporter is written in it)
    with quietly():
        written = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT],
            output_names=graph.output_names,
            verbose=False,
        )
        model: Any = written.model_proto  # type: ignore[union-attr]  # of dynamo=True
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise CheckpointError("the network is larger than the 2 GiB that one ONNX file holds; export to openvino")
    del model.graph.value_info[:], model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]  # names of source files
        node.doc_string = ""
    _name_dimensions(model)
    model.producer_name = "detector"
    return model


def _name_dimensions(model: Any) -> None:
    """Words for the symbols of the free sizes."""
    names = {INPUT: ("batch", "height", "width"), BOXES: ("batch", "boxes"), SCORES: ("batch", "boxes")}
    for value in (*model.graph.input, *model.graph.output):
        words = names.get(value.name, ("batch", "", f"{value.name}_height", f"{value.name}_width"))
        for size, word in zip(value.type.tensor_type.shape.dim, words, strict=False):
            if size.dim_param:
                size.dim_param = word


def without_raw_maps(model: Any) -> Any:
    """A copy with boxes and scores for its only outputs."""
    import onnx

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    del copied.graph.output[2:]
    return copied


def save(model: Any, document: str) -> bytes:
    """The file: the model, then its metadata with a SHA-256 of all before, which reads as one message.

    Raises:
        CheckpointError: the checker of ONNX refuses the model.
    """
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
        body = model.SerializeToString()
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise CheckpointError(f"the exported graph is not sound: {str(error).splitlines()[0]}") from error
    tail = onnx.ModelProto()
    digest = hashlib.sha256(body + document.encode()).hexdigest()
    for key, value in ((DOCUMENT_KEY, document), (_LENGTH_KEY, str(len(body))), (_DIGEST_KEY, digest)):
        tail.metadata_props.add(key=key, value=value)
    return bytes(body + tail.SerializeToString())


def open_file(path: Path) -> tuple[Description, Run]:
    """Reads a file that `save` wrote and makes it ready to run.

    Raises:
        CheckpointError: it is another, was changed, or names other files.
        DetectorError: a library is missing.
    """
    with extra("an ONNX file"):
        import onnx
        import onnxruntime
        from google.protobuf.message import DecodeError
        from onnxruntime.capi import onnxruntime_pybind11_state as states
    content = read_bounded(path)
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise CheckpointError(f"{path} {_DAMAGED}") from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    description = Description.of_json(metadata.get(DOCUMENT_KEY), str(path))
    length = metadata.get(_LENGTH_KEY, "")
    if not (length.isascii() and length.isdecimal() and len(length) <= 12 and int(length) <= len(content)):
        raise CheckpointError(f"{path} {_DAMAGED}")
    body = content[: int(length)]
    tail = onnx.ModelProto()
    for entry in model.metadata_props:
        tail.metadata_props.add(key=entry.key, value=entry.value)
    is_whole = body + tail.SerializeToString() == content
    digest = hashlib.sha256(body + metadata[DOCUMENT_KEY].encode()).hexdigest()
    if not is_whole or digest != metadata.get(_DIGEST_KEY):
        raise CheckpointError(f"{path} {_DAMAGED}")
    if _names_files(model):
        raise CheckpointError(f"{path} keeps weights in other files, as no export does: export the model again")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is raised
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except tuple(getattr(states, name) for name in _STATES) as error:
        raise CheckpointError(f"{path} {_DAMAGED} ({str(error).splitlines()[0]})") from error

    def run(canvases: Any) -> list[Any]:
        return [np.asarray(output) for output in session.run(None, {INPUT: canvases})]

    return description, run


def read_bounded(path: Path) -> bytes:
    """The bytes of a regular file of at most 2 GiB.

    Raises:
        CheckpointError: it is another, or cannot be read.
    """
    try:
        if not path.is_file():
            what = "is not a regular file" if path.exists() else "does not exist"
            raise CheckpointError(f"{path} {what}: give a file that `detector export` wrote")
        if not 0 < path.stat().st_size <= _MAX_BYTES:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes: give a file that `detector export` wrote")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error


def _names_files(model: Any) -> bool:
    """Whether a model keeps tensors in other files, in nodes and their subgraphs too."""
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
