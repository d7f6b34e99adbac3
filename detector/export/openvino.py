"""OpenVINO files: a graph in NAME.xml, its weights in NAME.bin beside it; made from the ONNX graph."""

from __future__ import annotations

import hashlib
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detector.errors import CheckpointError
from detector.export.export_config import extra
from detector.export.export_runtime import Run
from detector.export.metadata import DOCUMENT_KEY, Description
from detector.export.onnx import read_bounded
from detector.export.signal_stack import kept_signal_stack

# The last line of the graph's file, a comment, under which all bytes before it and the weights stand.
_SEAL = re.compile(rb"<!-- detector sha256 ([0-9a-f]{64}) ([0-9a-f]{64}) -->\n\Z")
_DAMAGED = "is truncated, damaged or was changed after its export: export the model again"


def converted(onnx_model: Any) -> Any:
    """An `openvino.Model` of an `onnx.ModelProto`."""
    with extra("an export to OpenVINO"):
        import openvino
    model = openvino.Core().read_model(onnx_model.SerializeToString())
    _order_equal_scores(model)
    return model


def _order_equal_scores(model: Any) -> None:
    """Makes the best values come in the order of their places where they are equal, as ONNX has it."""
    from openvino import opset15

    for node in model.get_ordered_ops():
        if node.get_type_name() == "TopK":
            values, count = (node.input_value(index) for index in range(2))
            ordered = opset15.topk(values, count, node.get_attributes()["axis"], "max", "value", "i64", stable=True)
            for index in range(2):
                node.output(index).replace(ordered.output(index))


def save(model: Any, document: str, *, halves_weights: bool) -> tuple[bytes, bytes]:
    """The files of the graph and of the weights."""
    import openvino

    model.set_rt_info(document, [DOCUMENT_KEY])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        openvino.save_model(model, path, compress_to_fp16=halves_weights)
        graph, weights = path.read_bytes(), path.with_suffix(".bin").read_bytes()
    digests = hashlib.sha256(graph).hexdigest(), hashlib.sha256(weights).hexdigest()
    return graph + f"<!-- detector sha256 {digests[0]} {digests[1]} -->\n".encode(), weights


def open_file(path: Path) -> tuple[Description, Run]:
    """Reads files that `save` wrote and makes them ready to run.

    Raises:
        CheckpointError: they are others, or were changed.
        DetectorError: a library is missing.
    """
    with extra("an OpenVINO file"):
        import openvino
    graph = read_bounded(path)
    seal = _SEAL.search(graph[-200:])
    if seal is None:
        raise CheckpointError(f"{path} does not describe its model: give a file that `detector export` wrote, whole")
    weights = read_bounded(path.with_suffix(".bin"))
    bare = graph[: len(graph) - len(seal[0])]
    for file, content, digest in ((path, bare, seal[1]), (path.with_suffix(".bin"), weights, seal[2])):
        if hashlib.sha256(content).hexdigest().encode() != digest:
            raise CheckpointError(f"{file} {_DAMAGED}")
    core = openvino.Core()
    try:
        model = core.read_model(graph, weights)
        text = model.get_rt_info([DOCUMENT_KEY]).astype(str)
        # Without the first, processors with bfloat16 compute in it.
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        with kept_signal_stack():
            compiled = core.compile_model(model, "CPU", settings)
    except (RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} {_DAMAGED} ({str(error).splitlines()[0][:200]})") from error
    request = compiled.create_infer_request()

    def run(canvases: Any) -> list[Any]:
        outputs = request.infer([canvases])
        return [np.array(outputs[index]) for index in range(len(compiled.outputs))]

    return Description.of_json(text, str(path)), run
