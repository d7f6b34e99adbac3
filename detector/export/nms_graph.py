"""Score filter and non-maximum suppression as ONNX operators, equal to `selection.select`.

One thing is not in the graph: the bound of 30,000 candidates, beyond which `select` drops the lowest scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from detector.errors import ConfigError
from detector.export.export_runtime import NOT_SELECTED
from detector.export.graph import BOXES, LABELS, NUM_DETECTIONS, SCORES
from detector.structures.selection import SelectConfig

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

_PREFIX = "select/"


def require_expressible(config: SelectConfig, num_classes: int) -> None:
    """Reject a selection that ONNX's operators cannot compute.

    Raises:
        ConfigError: the kind of suppression is neither `plain` nor `none`, or classes or thresholds do not fit the
            model.
    """
    if config.nms not in ("plain", "none"):
        raise ConfigError(
            f"--nms: ONNX has no suppression of the kind {config.nms!r}; leave --nms out, or export with "
            "predict.nms=plain, which keeps other boxes"
        )
    if config.class_confidence is not None and len(config.class_confidence) != num_classes:
        raise ConfigError(
            f"class_confidence: expected a value for each of {num_classes} classes, got {len(config.class_confidence)}"
        )
    if config.classes and max(config.classes) >= num_classes:
        raise ConfigError(f"classes: expected indices of 0 to {num_classes - 1}, got {max(config.classes)}")


class _Writer:
    """Writer of operators at the end of a graph, each under a name of its own."""

    def __init__(self, graph: GraphProto) -> None:
        self._graph, self._count = graph, 0

    def constant(self, values: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        """Add a constant and return its name."""
        from onnx import numpy_helper

        name = self._name("constant")
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def __call__(self, operator: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """Add an operator and return the name of its output."""
        from onnx import helper

        out = out or self._name(operator)
        self._graph.node.append(helper.make_node(operator, inputs, [out], name=f"{_PREFIX}{out}", **attributes))
        return out

    def _name(self, stem: str) -> str:
        self._count += 1
        return f"{_PREFIX}{stem}_{self._count}"


def append_suppression(model: ModelProto, config: SelectConfig, num_classes: int, *, takes_equal: bool = False) -> None:
    """Append score filter and suppression to a model with the outputs `boxes` and `scores`, in place.

    The new outputs are, best first and with K the lesser of `max_detections` and the number of candidates: boxes
    float32 (B, K, 4), scores float32 (B, K), which are -1 after the last detection, labels int64 (B, K),
    num_detections int64 (B,).

    Args:
        model: the model.
        config: the selection.
        num_classes: number of columns of the scores.
        takes_equal: whether the runtime also suppresses a box whose overlap equals the threshold, as OpenVINO does.

    Raises:
        ConfigError: the selection cannot be expressed.
    """
    from onnx import TensorProto, helper

    require_expressible(config, num_classes)
    graph = model.graph
    _rename(graph, {BOXES: f"all_{BOXES}", SCORES: f"all_{SCORES}"})
    op = _Writer(graph)
    boxes, all_scores = f"all_{BOXES}", f"all_{SCORES}"
    scores = _masked(op, boxes, all_scores, config, num_classes)
    flat = op("Reshape", scores, op.constant([0, -1], np.int64))  # (B, A * classes), as `select` numbers candidates
    kept = flat
    if config.nms == "plain":
        picked = _suppressed(op, boxes, scores, config, num_classes, _overlap(config.iou, takes_equal))
        empty = op("Expand", op.constant(NOT_SELECTED, np.float32), op("Shape", flat))
        kept = op("ScatterND", empty, picked, op("GatherND", flat, picked))
    wanted = op.constant([config.max_detections], np.int64)
    num_candidates = op("Slice", op("Shape", flat), op.constant([1], np.int64), op.constant([2], np.int64))
    # TopK returns equal scores in the order of their numbers, as `select` does.
    best, number = _top(graph, kept, op("Min", wanted, num_candidates))
    row = op("Div", number, op.constant(num_classes, np.int64))
    columns = op("Tile", op("Unsqueeze", row, op.constant([2], np.int64)), op.constant([1, 1, 4], np.int64))
    op("GatherElements", boxes, columns, out=BOXES, axis=1)
    op("Identity", best, out=SCORES)
    op("Sub", number, op("Mul", row, op.constant(num_classes, np.int64)), out=LABELS)
    is_found = op("Cast", op("Greater", best, op.constant(NOT_SELECTED / 2, np.float32)), to=TensorProto.INT64)
    op("ReduceSum", is_found, op.constant([1], np.int64), out=NUM_DETECTIONS, keepdims=0)
    del graph.output[:]
    sizes: tuple[tuple[str, int, Sequence[str | int]], ...] = (
        (BOXES, TensorProto.FLOAT, ("batch", "detections", 4)),
        (SCORES, TensorProto.FLOAT, ("batch", "detections")),
        (LABELS, TensorProto.INT64, ("batch", "detections")),
        (NUM_DETECTIONS, TensorProto.INT64, ("batch",)),
    )
    graph.output.extend(helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in sizes)


def _masked(op: _Writer, boxes: str, scores: str, config: SelectConfig, num_classes: int) -> str:
    """Return scores (B, A, classes), with `NOT_SELECTED` in place of those that the filter rejects."""
    lowest = np.full(num_classes, config.confidence, np.float32)
    if config.class_confidence is not None:
        lowest[:] = config.class_confidence
    if config.classes is not None:
        lowest[[c for c in range(num_classes) if c not in config.classes]] = np.inf
    passing = op("GreaterOrEqual", scores, op.constant(lowest, np.float32))
    is_finite = op("LessOrEqual", scores, op.constant(np.finfo(np.float32).max, np.float32))
    if config.best_class:
        finite = op("Where", is_finite, scores, op.constant(NOT_SELECTED, np.float32))
        best = op("ArgMax", finite, axis=2, keepdims=1)  # the first of equal scores, as `select` takes
        passing = op("And", passing, op("Equal", best, op.constant(np.arange(num_classes), np.int64)))
    zero = op.constant(0, np.float32)
    # 0 times a coordinate is 0, or NaN if the coordinate is not finite.
    residue = op("ReduceSum", op("Mul", boxes, zero), op.constant([2], np.int64), keepdims=1)
    passing = op("And", op("And", passing, is_finite), op("Equal", residue, zero))
    return op("Where", passing, scores, op.constant(NOT_SELECTED, np.float32))


def _suppressed(
    op: _Writer, boxes: str, scores: str, config: SelectConfig, num_classes: int, overlap: np.float32
) -> str:
    """Return image and number, int64 (N, 2), of each candidate that no better one suppresses."""
    if config.class_agnostic:  # each candidate gets a box of its own, and all are of one class
        wide = op("Unsqueeze", boxes, op.constant([2], np.int64))
        wide = op("Tile", wide, op.constant([1, 1, num_classes, 1], np.int64))
        boxes = op("Reshape", wide, op.constant([0, -1, 4], np.int64))
        by_class = op("Reshape", scores, op.constant([0, 1, -1], np.int64))
    else:
        by_class = op("Transpose", scores, perm=[0, 2, 1])
    chosen = op(
        "NonMaxSuppression",
        boxes,
        by_class,
        op.constant([config.max_detections], np.int64),
        op.constant([overlap], np.float32),
        op.constant([NOT_SELECTED / 2], np.float32),
    )  # image, class, row
    image, label, row = (op("Gather", chosen, op.constant([column], np.int64), axis=1) for column in range(3))
    if not config.class_agnostic:
        row = op("Add", op("Mul", row, op.constant(num_classes, np.int64)), label)
    return op("Concat", image, row, axis=1)


def _overlap(threshold: float, takes_equal: bool) -> np.float32:
    """Return the float32 threshold that passes the same float32 overlaps as torchvision's float64 comparison."""
    rounded = np.float32(threshold)
    below = np.nextafter(rounded, np.float32(-1)) if float(rounded) > threshold else rounded
    if not takes_equal:
        return below
    return max(np.nextafter(below, np.float32(2)), np.finfo(np.float32).tiny)  # a runtime may flush smaller values to 0


def _top(graph: GraphProto, values: str, count: str) -> tuple[str, str]:
    from onnx import helper

    best, number = f"{_PREFIX}best", f"{_PREFIX}number"
    graph.node.append(helper.make_node("TopK", [values, count], [best, number], name=f"{_PREFIX}top", axis=1))
    return best, number


def _rename(graph: GraphProto, names: dict[str, str]) -> None:
    for node in graph.node:
        for values in (node.input, node.output):
            for index, name in enumerate(values):
                if name in names:
                    values[index] = names[name]
