"""Eight-bit convolutions: ONNX Runtime's static quantisation, with the ranges of activations taken from images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detector.export.export_runtime import Array
from detector.export.graph import INPUT
from detector.export.pt2 import quietly

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

NUM_CALIBRATION_IMAGES = 64


class _Reader:
    """Canvases in the form that ONNX Runtime's calibration reads."""

    def __init__(self, canvases: Sequence[Array]) -> None:
        self._left: Iterator[Array] = iter(canvases)

    def get_next(self) -> dict[str, Array] | None:
        """Return one canvas as a batch, or None after the last."""
        canvas = next(self._left, None)
        return None if canvas is None else {INPUT: canvas[None]}


def quantized(model: ModelProto, canvases: Sequence[Array]) -> ModelProto:
    """Return a copy of a model whose convolutions compute in 8 bits, between a quantising and a dequantising operator.

    Weights have a symmetric range of 7 bits for each output channel, activations one range of 8 bits for each map. The
    last convolution before a raw map stays float32, because its outputs are coordinates and scores themselves.

    x86 processors without VNNI add two products of 8 bits in 16 bits and saturate (Intel's instruction `vpmaddubsw`):
    255 * 127 * 2 exceeds 2^15 - 1, 255 * 64 * 2 does not.

    Args:
        model: the network in float32.
        canvases: canvases (H, W, C) that the ranges of activations are taken from.
    """
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
            reduce_range=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        result = onnx.load_model(done)
    del result.graph.value_info[:], result.metadata_props[:]
    return result


def _last_convolutions(graph: GraphProto) -> list[str]:
    """Return the names of the last convolutions before the outputs, sorted."""
    maker = {output: node for node in graph.node for output in node.output}
    waiting = [output.name for output in graph.output]
    last: set[str] = set()
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in maker:
            continue
        seen.add(name)
        node = maker[name]
        if node.op_type == "Conv":
            last.add(node.name)
        else:
            waiting.extend(node.input)
    return sorted(last)
