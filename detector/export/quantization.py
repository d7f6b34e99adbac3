"""Eight-bit convolutions: ONNX Runtime's static quantisation, ranges found on images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from detector.export.export_config import extra
from detector.export.graph import INPUT
from detector.export.pt2 import quietly

NUM_CALIBRATION_IMAGES = 64


class _Reader:
    """What ONNX Runtime asks for canvases."""

    def __init__(self, canvases: Sequence[npt.NDArray[Any]]) -> None:
        self._left: Iterator[npt.NDArray[Any]] = iter(canvases)

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        """One canvas as a batch, or None after the last."""
        canvas = next(self._left, None)
        return None if canvas is None else {INPUT: canvas[None]}


def quantized(model: Any, canvases: Sequence[npt.NDArray[Any]]) -> Any:
    """A copy of an `onnx.ModelProto` whose convolutions compute in 8 bits, quantised and back around each.

    Weights are symmetric for each output channel, activations for each map. The last convolution before a raw map stays
    float32, since what it gives is read as numbers, not compared.

    Args:
        model: the network in float32.
        canvases: what the ranges are found on, each (H, W, C).
    """
    with extra("an export in 8 bits"):
        import onnx
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    with tempfile.TemporaryDirectory() as folder, quietly():
        plain, prepared, done = (Path(folder) / name for name in ("plain.onnx", "prepared.onnx", "done.onnx"))
        onnx.save_model(model, plain)
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        convolutions = onnx.load_model(prepared).graph
        quantize_static(
            prepared,
            done,
            _Reader(canvases),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=_last_convolutions(convolutions),
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        result = onnx.load_model(done)
    del result.graph.value_info[:], result.metadata_props[:]
    return result


def _last_convolutions(graph: Any) -> list[str]:
    """The names of the convolutions behind which none follows."""
    maker = {output: node for node in graph.node for output in node.output}
    waiting = [output.name for output in graph.output]
    found: set[str] = set()
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in maker:
            continue
        seen.add(name)
        node = maker[name]
        if node.op_type == "Conv":
            found.add(node.name)
        else:
            waiting.extend(node.input)
    return sorted(found)
