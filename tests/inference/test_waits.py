"""Prediction on a GPU: the CPU waits for it once for a batch, when the boxes that can be detections are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from detector.inference.predictor import Predictor
from detector.inference.runtime import RuntimeConfig, TorchRuntime
from detector.ops import cuda
from detector.structures import transfer
from detector.structures.canvas import InputConfig
from detector.structures.selection import SelectConfig, taken_to_host
from detector.structures.types import Detections
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import build_model

GPU = torch.device("cuda", 0)
EVERY = pytest.mark.parametrize("experiment", ["mish-n", "yolox", "darknet"], indirect=True)


@EVERY
def test_canvases_become_boxes_without_a_wait(
    experiment: Callable[..., DetectionConfig], fake_gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wait once, at the end, for the count of the boxes that can be detections; suppression follows on the CPU."""
    monkeypatch.setattr(cuda, "available", lambda device: False)  # its kernels need the memory of a GPU
    model = build_model(experiment(), 6)
    with fake_gpu:
        with fake_gpu.setting_up():
            runtime = TorchRuntime(model, GPU, RuntimeConfig(precision="bf16"))
        boxes, scores = runtime.boxes(np.zeros((2, 64, 64, 3), np.uint8))
        assert boxes.device == scores.device == GPU
        with pytest.raises(DynamicOutputShapeException, match="nonzero"):
            taken_to_host(boxes, scores, [SelectConfig(), SelectConfig()])


SELECTIONS = (
    SelectConfig(confidence=0.02),
    SelectConfig(confidence=0.02, best_class=True, nms="diou", max_detections=5),
    SelectConfig(confidence=0.9, class_confidence=(0.02, 0.5, 0.03), class_agnostic=True),
    SelectConfig(confidence=1.0),
)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_selection_from_the_boxes_that_a_gpu_sends_is_the_same(
    selection: SelectConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    corners = torch.rand(3, 200, 2) * 40
    boxes, scores = torch.cat([corners, corners + 20 * torch.rand(3, 200, 2)], dim=2), torch.rand(3, 200, 3) ** 6
    boxes[0, 3] = scores[0, 4] = torch.nan

    class Given:
        num_classes, precision = 3, "fp32"
        notes: tuple[str, ...] = ()
        selection: SelectConfig | None = None

        def check_image_hw(self, image_hw: tuple[int, int]) -> None:
            pass

        def boxes(self, canvases: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
            return boxes, scores

    def found() -> list[Detections]:
        predictor = Predictor(Given(), InputConfig(64), list("abc"), [1, 2, 3], batch_size=3)
        return predictor.detect([np.zeros((64, 64, 3), np.uint8)] * 2, selection)

    usual = found()
    monkeypatch.setattr(transfer, "runs_ahead", lambda tensor: True)
    for ours, theirs in zip(found(), usual, strict=True):
        assert torch.equal(ours.source_xyxy, theirs.source_xyxy)
        assert torch.equal(ours.scores, theirs.scores)
        assert torch.equal(ours.labels, theirs.labels)
    assert sum(map(len, usual)) > 5 or selection.confidence == 1
