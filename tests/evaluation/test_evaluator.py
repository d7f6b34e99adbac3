from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detector.data.coco import CocoAnnotations, read_coco
from detector.errors import DatasetError
from detector.evaluation.coco_metrics import score_results
from detector.evaluation.evaluator import EvaluateConfig, annotated_sources, detect_split, evaluate
from detector.inference.predictor import Predictor
from detector.inference.runtime import TorchRuntime
from detector.media.images import write_image
from detector.models.contracts import DetectionModel
from detector.structures.canvas import InputConfig
from detector.structures.letterbox import Letterbox
from detector.structures.selection import SelectConfig

CATEGORY_IDS = (3, 7, 90)
SIZES_HW = ((40, 100), (100, 40), (64, 64), (33, 77), (240, 17), (20, 20), (97, 101))
EMPTY = 2  # the image without objects


class Oracle(DetectionModel):
    """Model that returns the ground truth of an image, which it recognises by the grey of the whole image."""

    max_stride, image_channels = 32, 3

    def __init__(self, annotations: CocoAnnotations, category_ids: tuple[int, ...], canvas: InputConfig) -> None:
        super().__init__()
        self.num_classes = len(category_ids)
        self.answers: dict[int, tuple[Tensor, Tensor]] = {}
        for index in range(len(annotations)):
            fitted = Letterbox.fit(tuple(annotations.image_hw[index].tolist()), canvas.canvas_hw, canvas.fit)
            canvas_xyxy = torch.from_numpy(fitted.boxes_to_canvas(annotations.source_xyxy(index)))
            scores = torch.zeros(len(canvas_xyxy), self.num_classes)
            for row, label in enumerate(annotations.labels_of(index).tolist()):
                scores[row, category_ids.index(annotations.category_ids[label])] = 0.9
            self.answers[grey_of(index)] = canvas_xyxy, scores

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (images[:, 0, images.shape[2] // 2, images.shape[3] // 2],)

    def decode(self, raw_maps: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        found = [self.answers.get(int(grey), (torch.zeros(0, 4),) * 2) for grey in raw_maps[0]]
        boxes, scores = torch.zeros(len(found), 8, 4), torch.zeros(len(found), 8, self.num_classes)
        for row, (canvas_xyxy, own) in enumerate(found):
            boxes[row, : len(canvas_xyxy)] = canvas_xyxy
            scores[row, : len(canvas_xyxy)] = own.reshape(-1, self.num_classes)
        return boxes, scores


def grey_of(index: int) -> int:
    return 10 + 7 * index


def draw_split(folder: Path) -> dict[str, Any]:
    """Plain images of many sizes, whose ids and categories are neither 0-based nor contiguous."""
    rng = np.random.default_rng(5)
    content: dict[str, Any] = {"images": [], "annotations": []}
    content["categories"] = [{"id": i, "name": f"class {i}"} for i in reversed(CATEGORY_IDS)]
    (folder / "images").mkdir()
    for index, (height, width) in enumerate(SIZES_HW):
        image_id, name = 1000 - 3 * index, f"{index}.png"
        write_image(folder / "images" / name, np.full((height, width, 3), grey_of(index), np.uint8))
        content["images"].append({"id": image_id, "file_name": name, "height": height, "width": width})
        for number in range(0 if index == EMPTY else 1 + index % 3):
            x, y = rng.uniform(0, 0.5, 2) * (width, height)
            w, h = rng.uniform(0.3, 0.5, 2) * (width, height)
            annotation = {"id": len(content["annotations"]), "image_id": image_id, "bbox": [x, y, w, h]}
            annotation |= {"category_id": CATEGORY_IDS[(index + number) % 3], "area": w * h, "iscrowd": 0}
            content["annotations"].append(annotation)
    (folder / "truth.json").write_text(json.dumps(content))
    return content


@pytest.fixture
def split(tmp_path: Path) -> CocoAnnotations:
    draw_split(tmp_path)
    return read_coco(tmp_path / "truth.json", tmp_path / "images")


def oracle(
    annotations: CocoAnnotations, canvas: InputConfig, category_ids: tuple[int, ...] = CATEGORY_IDS
) -> Predictor:
    model = Oracle(annotations, category_ids, canvas)
    names = [f"class {i}" for i in category_ids]
    return Predictor(TorchRuntime(model, torch.device("cpu")), canvas, names, category_ids, batch_size=3)


@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
@pytest.mark.parametrize("size", [64, (96, 160), (320, 32)])
def test_a_model_that_returns_the_ground_truth_has_an_ap_of_one(
    size: int | tuple[int, int], fit: str, split: CocoAnnotations
) -> None:
    done: list[int] = []
    found = evaluate(oracle(split, InputConfig(size, fit=fit)), split, EvaluateConfig(), done.append)
    assert found.metrics.ap == pytest.approx(1.0, abs=1e-12)
    assert found.metrics.class_ap == pytest.approx({f"class {i}": 1.0 for i in CATEGORY_IDS}, abs=1e-12)
    assert found.metrics.num_images == len(SIZES_HW)
    assert found.metrics.num_detections == found.metrics.num_objects == split.num_boxes
    assert found.skipped == ()
    assert done == list(range(1, len(SIZES_HW) + 1))


def test_the_records_have_the_ids_and_boxes_of_the_annotation_file(split: CocoAnnotations, tmp_path: Path) -> None:
    found = evaluate(oracle(split, InputConfig((96, 160))), split, EvaluateConfig())
    truth = json.loads((tmp_path / "truth.json").read_text())

    def by_place(records: list[dict[str, Any]]) -> list[tuple[int, int, list[float]]]:
        return sorted((r["image_id"], r["category_id"], r["bbox"]) for r in records)

    for ours, theirs in zip(by_place(found.results), by_place(truth["annotations"]), strict=True):
        assert ours[:2] == theirs[:2]
        np.testing.assert_allclose(ours[2], theirs[2], rtol=0, atol=2e-4)
    assert all(record["score"] == float(np.float32(0.9)) for record in found.results)


def test_the_numbers_follow_from_the_records(split: CocoAnnotations) -> None:
    predictor = oracle(split, InputConfig(64))
    assert isinstance(predictor.runtime, TorchRuntime)
    model = predictor.runtime.model
    assert isinstance(model, Oracle)
    model.answers[grey_of(0)][0].add_(9)  # badly placed boxes
    found = evaluate(predictor, split, EvaluateConfig())
    assert 0.5 < found.metrics.ap < 0.99
    written = json.loads(json.dumps(found.results))
    assert score_results(split.ground_truth(), written) == found.metrics


def test_a_category_that_the_model_does_not_know_is_refused(split: CocoAnnotations) -> None:
    predictor = oracle(split, InputConfig(64))
    predictor.category_ids = (3, 7)
    with pytest.raises(DatasetError, match=r"truth\.json: the model knows the category ids \[3, 7\], .* has \[90\]"):
        evaluate(predictor, split, EvaluateConfig())


def test_categories_that_the_file_does_not_list_are_not_scored(split: CocoAnnotations) -> None:
    predictor = oracle(split, InputConfig(64), (1, *CATEGORY_IDS))
    assert isinstance(predictor.runtime, TorchRuntime)
    model = predictor.runtime.model
    assert isinstance(model, Oracle)
    for _, scores in model.answers.values():
        scores[:, 0] = 0.95  # every box has a higher score for category 1
    found = evaluate(predictor, split, EvaluateConfig())
    assert {record["category_id"] for record in found.results} == set(CATEGORY_IDS)
    assert found.metrics.ap == pytest.approx(1.0, abs=1e-12)


def test_the_objects_of_an_unreadable_image_are_missed_and_the_image_is_listed(
    split: CocoAnnotations, tmp_path: Path
) -> None:
    (tmp_path / "images/1.png").write_bytes(b"<html>not found</html>")
    (tmp_path / "images/4.png").unlink()
    done: list[int] = []
    found = evaluate(oracle(split, InputConfig(64)), split, EvaluateConfig(), done.append)
    assert len(found.skipped) == 2
    assert "1.png cannot be decoded: it is not an image (HTML)" in found.skipped[0]
    assert "4.png cannot be read: there is no such file" in found.skipped[1]
    assert done[-1] == len(SIZES_HW)
    missed = sum(len(split.labels_of(i)) for i in (1, 4))
    assert missed == 4
    assert found.metrics.num_objects == split.num_boxes
    assert found.metrics.num_detections == split.num_boxes - missed
    # All detections are right: the AP of a class is the share of the recall points up to its recall.
    aps = []
    for label in range(3):
        num = np.count_nonzero(split.labels == label)
        num_missed = sum(np.count_nonzero(split.labels_of(i) == label) for i in (1, 4))
        aps.append((math.floor(100 * (num - num_missed) / num) + 1) / 101)
    assert found.metrics.ap == pytest.approx(np.mean(aps), abs=1e-12)


def test_a_split_of_unreadable_images_has_an_ap_of_zero(split: CocoAnnotations, tmp_path: Path) -> None:
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"")
    found = evaluate(oracle(split, InputConfig(64)), split, EvaluateConfig())
    assert (found.metrics.ap, len(found.skipped), found.results) == (0.0, len(SIZES_HW), [])


def test_the_thresholds_of_the_configuration_are_applied(split: CocoAnnotations) -> None:
    assert evaluate(oracle(split, InputConfig(64)), split, EvaluateConfig(confidence=0.95)).results == []
    one = detect_split(oracle(split, InputConfig(64)), split, SelectConfig(max_detections=1)).results
    assert len({record["image_id"] for record in one}) == len(one) == len(SIZES_HW) - 1


def test_sources_keep_the_order_and_ids_of_the_file(split: CocoAnnotations) -> None:
    sources = annotated_sources(split)
    assert [source.image_id for source in sources] == [1000 - 3 * i for i in range(len(SIZES_HW))]
    assert [source.path.name for source in sources if source.path] == [f"{i}.png" for i in range(len(SIZES_HW))]


def test_the_conditions_are_returned_with_the_numbers(split: CocoAnnotations) -> None:
    config = EvaluateConfig(confidence=0.01, iou=0.6, nms="diou", nms_beta=0.8, max_detections=50)
    found = evaluate(oracle(split, InputConfig((96, 160), fit="stretch")), split, config).conditions
    assert (found.confidence, found.nms, found.iou, found.max_detections) == (0.01, "diou, beta 0.8", 0.6, 50)
    assert (found.input_hw, found.fit, found.arithmetic) == ((96, 160), "stretch", "opencv")


def test_the_configuration_chooses_the_back_end_and_other_limits(split: CocoAnnotations) -> None:
    reference = evaluate(
        oracle(split, InputConfig(64)), split, EvaluateConfig(backend="pycocotools", other_limits=(300,))
    ).metrics
    fast = evaluate(oracle(split, InputConfig(64)), split, EvaluateConfig()).metrics
    assert reference.stats == fast.stats
    assert reference.backend.startswith("pycocotools ")
    assert reference.other_limits["AP@maxDets=300"] == pytest.approx(1.0, abs=1e-12)
    assert fast.other_limits == {}
    with pytest.raises(ValueError, match=r"evaluate\.other_limits: expected numbers of at least 1, got \[0\]"):
        EvaluateConfig(other_limits=(0,))


def test_the_scored_columns_are_returned_with_the_numbers(split: CocoAnnotations) -> None:
    found = evaluate(oracle(split, InputConfig(64)), split, EvaluateConfig())
    assert found.detections.to_records(found.truth) == found.results
    assert score_results(found.truth, found.detections) == found.metrics


def test_a_batch_size_of_zero_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"evaluate\.batch_size: expected at least 1, got 0"):
        EvaluateConfig(batch_size=0)
    with pytest.raises(ValueError, match=r"confidence and iou: expected values within 0\.\.1, got 0\.001 and 2\.0"):
        EvaluateConfig(iou=2.0)
