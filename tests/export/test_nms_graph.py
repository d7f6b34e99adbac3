"""The suppression within a file against `selection.select`, in both runtimes that support it."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx import TensorProto, helper

from detector.data.coco import read_coco
from detector.errors import ConfigError
from detector.export.export_runtime import NOT_SELECTED
from detector.export.nms_graph import append_suppression
from detector.export.openvino import converted
from detector.export.signal_stack import kept_signal_stack
from detector.structures.selection import SelectConfig, require_within, select
from detector.tasks.detection_model import build_predictor, evaluate_model, load_model

NUM_CLASSES = 3
CONFIGS = [
    SelectConfig(0.25),
    SelectConfig(0.0, iou=0.45, max_detections=1000),
    SelectConfig(0.3, iou=0.6, max_detections=7),
    SelectConfig(0.2, class_agnostic=True),
    SelectConfig(0.2, iou=1.0, class_agnostic=True, max_detections=50),
    SelectConfig(0.2, classes=(0, 2)),
    SelectConfig(0.2, class_confidence=(0.1, 0.9, 0.5)),
    SelectConfig(0.99),
    SelectConfig(0.2, best_class=True),
    SelectConfig(0.0, best_class=True, classes=(0, 2), max_detections=1000),
    SelectConfig(0.2, nms="none", max_detections=50),
    SelectConfig(0.0, nms="none", class_agnostic=True, classes=(0, 2), max_detections=1000),
]


def graph(
    config: SelectConfig, shape: tuple[Any, Any] = ("batch", "boxes"), *, takes_equal: bool = False
) -> onnx.ModelProto:
    """Return a model that passes boxes and scores to a suppression."""
    names = {"boxes": 4, "scores": NUM_CLASSES}
    values = {f"{prefix}{name}": (*shape, last) for name, last in names.items() for prefix in ("given_", "")}
    infos = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in values.items()}
    nodes = [helper.make_node("Identity", [f"given_{name}"], [name]) for name in names]
    made = helper.make_graph(nodes, "g", [infos["given_boxes"], infos["given_scores"]], [infos[n] for n in names])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    append_suppression(model, config, NUM_CLASSES, takes_equal=takes_equal)
    onnx.checker.check_model(model, full_check=True)
    return model


def crowd(seed: int, num: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes and scores of two images: whole pixels, so that overlaps and scores tie; some are not finite."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 40, (2, num, 2))
    boxes = np.concatenate([corner, corner + rng.integers(0, 24, (2, num, 2))], axis=2).astype(np.float32)
    scores = (rng.integers(0, 21, (2, num, NUM_CLASSES)) / np.float32(20)).astype(np.float32)
    boxes[0, 3, 2], boxes[1, 5, 0], boxes[1, 6, 1] = np.inf, np.nan, -np.inf
    scores[0, 8, 1], scores[1, 9, 0] = np.nan, np.inf
    return boxes, scores


def by_onnxruntime(model: onnx.ModelProto, boxes: np.ndarray, scores: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"given_boxes": boxes, "given_scores": scores})


def by_openvino(model: onnx.ModelProto, boxes: np.ndarray, scores: np.ndarray) -> list[np.ndarray]:
    with kept_signal_stack():
        compiled = openvino.Core().compile_model(converted(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = compiled([boxes, scores])
    return [outputs[index] for index in range(4)]


@pytest.mark.parametrize("runs", [by_onnxruntime, by_openvino])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_suppression_selects_the_same_boxes_in_the_same_order(config, runs):
    num_selected, model = 0, graph(config, takes_equal=runs is by_openvino)
    for seed in range(3):
        all_boxes, all_scores = crowd(seed)
        boxes, scores, labels, counts = runs(model, all_boxes, all_scores)
        for image in range(2):
            expected = select(torch.from_numpy(all_boxes[image]), torch.from_numpy(all_scores[image]), config)
            count = int(counts[image])
            num_selected += count
            assert count == len(expected[1])
            assert boxes[image, :count].tolist() == expected[0].tolist()
            assert scores[image, :count].tolist() == expected[1].tolist()
            assert labels[image, :count].tolist() == expected[2].tolist()
            assert (scores[image, count:] == NOT_SELECTED).all()
    assert num_selected > 3


@pytest.mark.parametrize("runs", [by_onnxruntime, by_openvino])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.6, 0.45, 0.7, 1 / 3, 1.0])
def test_overlap_at_the_threshold_is_treated_as_torchvision_treats_it(threshold, runs):
    """Compare pairs of boxes of 10 x 1 pixels that share 0 to 10 pixels, also with overlaps next to the threshold."""
    at = np.float32(10 - 20 * threshold / (1 + threshold))
    shifts = [*np.linspace(0, 10, 41, dtype=np.float32), at, *(np.nextafter(at, np.float32(s)) for s in (-99, 99))]
    boxes = np.asarray([[(0, 0, 10, 1), (x, 0, 10 + x, 1)] for x in shifts], np.float32)
    scores = np.asarray([[[0.9, 0, 0], [0.8, 0, 0]]] * len(shifts), np.float32)
    config = SelectConfig(0.1, iou=threshold)
    counts = runs(graph(config, takes_equal=runs is by_openvino), boxes, scores)[3].tolist()
    expected = [len(select(*map(torch.from_numpy, pair), config)[1]) for pair in zip(boxes, scores, strict=True)]
    assert counts == expected
    assert set(expected) == ({1, 2} if threshold < 1 else {2})


def test_fewer_boxes_than_max_detections_are_all_returned():
    boxes, scores = crowd(0, 10)
    outputs = by_onnxruntime(graph(SelectConfig(0.0, iou=1.0, max_detections=500), (1, 10)), boxes[:1], scores[:1])
    assert outputs[0].shape == (1, 30, 4)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (SelectConfig(nms="greedy"), "no suppression of the kind 'greedy'"),
        (SelectConfig(class_confidence=(0.5,)), "a value for each of 3 classes, got 1"),
        (SelectConfig(classes=(3,)), "indices of 0 to 2, got 3"),
    ],
)
def test_inexpressible_selection_is_rejected(config, says):
    with pytest.raises(ConfigError, match=says):
        graph(config)


# Selecting twice


def test_selecting_file_returns_the_detections_of_a_file_without_suppression(selecting_onnx, exported):
    config = load_model(selecting_onnx).config.predict
    assert (config.confidence, config.max_detections) == (0.3, 20)
    rng = np.random.default_rng(2)
    pictures = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(3)]
    both = [build_predictor(load_model(f), 3) for f in (exported("onnx").exported.files[0], selecting_onnx)]
    for expected, detections in zip(*(predictor.detect(pictures, config) for predictor in both), strict=True):
        assert len(detections) == 20
        assert detections.labels.tolist() == expected.labels.tolist()
        torch.testing.assert_close(detections.source_xyxy, expected.source_xyxy, rtol=0, atol=1e-4)
        torch.testing.assert_close(detections.scores, expected.scores, rtol=0, atol=1e-6)
    higher = SelectConfig(0.5, iou=config.iou, max_detections=5)
    for expected, detections in zip(*(predictor.detect(pictures, higher) for predictor in both), strict=True):
        assert detections.labels.tolist() == expected.labels.tolist()


def test_selecting_file_is_evaluated_with_its_own_selection_unless_asked_otherwise(selecting_onnx, tiny_shapes):
    boxes = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40], "area": 1200, "iscrowd": 0}]
    document = {"images": [{"id": 1, "file_name": "0.png", "width": 64, "height": 64}], "annotations": boxes}
    path = selecting_onnx.with_name("truth.json")
    path.write_text(json.dumps({**document, "categories": [{"id": 1, "name": "ball"}]}))
    folder = selecting_onnx.with_name("pictures")
    folder.mkdir()
    shutil.copy(next((tiny_shapes / "images/val").iterdir()), folder / "0.png")
    loaded = load_model(selecting_onnx)
    found = evaluate_model(loaded, read_coco(path, folder))
    assert (found.conditions.confidence, found.conditions.max_detections) == (0.3, 20)
    assert found.conditions.iou == loaded.config.predict.iou
    assert len(found.results) > 0
    assert load_model(selecting_onnx, ["evaluate.confidence=0.4"]).config.evaluate.confidence == 0.4
    with pytest.raises(ConfigError, match=r"gives boxes for confidence of at least 0.3 only"):
        evaluate_model(load_model(selecting_onnx, ["evaluate.confidence=0.2"]), read_coco(path, folder))


def test_selecting_file_rejects_a_wider_selection_and_raw_boxes(selecting_onnx, darknet_file):
    predictor = build_predictor(load_model(selecting_onnx))
    picture = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(ConfigError, match=r"confidence of at least 0.3, iou=0.45, max_detections of at most 20 only"):
        predictor.detect([picture], load_model(darknet_file).config.evaluate)
    with pytest.raises(ConfigError, match="got a file that selects by itself"):
        predictor.raw_boxes([picture])


@pytest.mark.parametrize(
    ("selected", "asked", "says"),
    [
        ({"iou": 0.7}, {"iou": 0.5}, "iou=0.7"),
        ({}, {"class_agnostic": True}, "class_agnostic=False"),
        ({}, {"nms": "diou"}, "nms=plain"),
        ({"nms": "none"}, {}, "nms=none"),
        ({"classes": (1,)}, {}, r"classes=\(1,\)"),
        ({"classes": (1, 2), "class_agnostic": True}, {"classes": (1,), "class_agnostic": True}, "classes="),
        ({"class_confidence": (0.1, 0.5, 0.3)}, {"confidence": 0.3}, r"at least \[0.1, 0.5, 0.3\]"),
        ({}, {"confidence": 0.2}, "at least 0.25"),
    ],
)
def test_wider_selection_is_rejected(selected, asked, says):
    with pytest.raises(ConfigError, match=says):
        require_within(SelectConfig(**selected), SelectConfig(**asked))


@pytest.mark.parametrize(
    ("selected", "asked"),
    [
        ({}, {}),
        ({}, {"confidence": 0.4, "max_detections": 3, "classes": (0,)}),
        ({"classes": (1, 2)}, {"classes": (2,)}),
        ({"confidence": 0.1}, {"class_confidence": (0.1, 0.5, 0.3)}),
        ({"nms": "none", "iou": 0.7}, {"nms": "none", "iou": 0.5, "class_agnostic": True}),
    ],
)
def test_narrower_selection_is_accepted(selected, asked):
    require_within(SelectConfig(**selected), SelectConfig(**asked))
