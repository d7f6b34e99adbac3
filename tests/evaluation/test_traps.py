"""Single mistakes that change AP, each compared with the whole path of this package, which does not make it.

The scene is drawn so that every mistake changes the numbers: crowds, images without objects and without detections, ids
that do not start at 0, masks smaller than their boxes, high and low scores, and overlaps just above a threshold. The
expected numbers are those of pycocotools for the boxes of the model, in float64 and without any image in between.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from detector.data.coco import CocoAnnotations, read_coco
from detector.data.problems import Findings
from detector.errors import DatasetError
from detector.evaluation.coco_metrics import STAT_NAMES, score_results
from detector.evaluation.evaluator import EvaluateConfig, Evaluation, evaluate
from detector.evaluation.matching import match
from detector.evaluation.results_file import checked_results
from detector.evaluation.scoring_arrays import GroundTruth
from detector.evaluation.voc_ap import average_precision
from detector.inference.predictor import Predictor
from detector.inference.runtime import TorchRuntime
from detector.media.images import write_image
from detector.models.contracts import DetectionModel
from detector.structures.canvas import InputConfig
from detector.structures.letterbox import Letterbox

Records: TypeAlias = "list[dict[str, Any]]"
CATEGORY_IDS = (3, 7, 90)
CANVAS = 96
NUM_IMAGES = 24
SHOWS = 1e-3  # a mistake must change AP by more to be detected


class Meant(DetectionModel):
    """Model with fixed boxes for each image, recognised by its grey, placed where its pixels are on the canvas."""

    max_stride, image_channels, num_classes = 32, 3, len(CATEGORY_IDS)

    def __init__(self, answers: dict[int, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (images[:, 0, CANVAS // 2, CANVAS // 2],)

    def decode(self, raw_maps: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        found = [self.answers.get(int(grey), (torch.zeros(0, 4), torch.zeros(0, 3))) for grey in raw_maps[0]]
        most = max(len(boxes) for boxes, _ in found)
        boxes, scores = torch.zeros(len(found), most, 4), torch.zeros(len(found), most, 3)
        for row, (own_boxes, own_scores) in enumerate(found):
            boxes[row, : len(own_boxes)], scores[row, : len(own_boxes)] = own_boxes, own_scores
        return boxes, scores


@dataclass(frozen=True)
class Scene:
    """A split on disk, the boxes of the model, and the numbers of this package."""

    truth: dict[str, Any]
    results: Records
    annotations: CocoAnnotations
    evaluation: Evaluation
    expected: list[float]


def draw(rng: np.random.Generator) -> tuple[dict[str, Any], Records]:
    truth: dict[str, Any] = {"images": [], "annotations": []}
    truth["categories"] = [{"id": i, "name": f"class {i}"} for i in CATEGORY_IDS]
    results: Records = []
    for index in range(NUM_IMAGES):
        height, width = (int(v) for v in rng.integers(70, 420, 2))
        image_id = 500 - 7 * index
        truth["images"].append({"id": image_id, "file_name": f"{index}.png", "height": height, "width": width})
        for _ in range(0 if index % 8 == 1 else int(rng.integers(2, 6))):
            w, h = rng.uniform(0.2, 0.45, 2) * (width, height)
            x, y = rng.uniform(0.16, 0.38, 2) * (width, height)
            category, is_crowd = int(rng.choice(CATEGORY_IDS)), int(rng.random() < 0.12)
            box, area = [x, y, w, h], w * h * rng.uniform(0.3, 1)
            annotation = {"id": len(truth["annotations"]), "image_id": image_id, "category_id": category, "bbox": box}
            truth["annotations"].append({**annotation, "area": area, "iscrowd": is_crowd})
            if index % 8 == 2 or rng.random() < 0.15:
                continue  # no detection in a whole image, or not of this object
            just_above = rng.choice([0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]) + 1e-4
            moved = [x + w * (1 - just_above) / (1 + just_above) * rng.choice([-1, 1]), y, w, h]
            results.append({"image_id": image_id, "category_id": category, "bbox": moved})
        for _ in range(0 if index % 8 == 2 else int(rng.integers(0, 3))):
            w, h = rng.uniform(0.05, 0.1, 2) * (width, height)
            stray = [rng.uniform(0, width - w), rng.uniform(0, height - h), w, h]
            results.append({"image_id": image_id, "category_id": int(rng.choice(CATEGORY_IDS)), "bbox": stray})
    for result in results:
        result["bbox"] = [float(v) for v in result["bbox"]]
        result["score"] = float(np.float32(rng.uniform(0.005, 1) ** 2 + 0.002))
    return truth, results


def answers_of(truth: dict[str, Any], results: Records, fit: str) -> dict[int, tuple[Tensor, Tensor]]:
    answers = {}
    for index, image in enumerate(truth["images"]):
        letterbox = Letterbox.fit((image["height"], image["width"]), (CANVAS, CANVAS), fit)
        (height, width), (top, left) = letterbox.resized_hw, letterbox.offset_top_left
        own = [r for r in results if r["image_id"] == image["id"]]
        xywh = np.array([r["bbox"] for r in own]).reshape(-1, 4)
        ratio = np.array([width / image["width"], height / image["height"]])
        low = xywh[:, :2] * ratio + [left, top]
        boxes = torch.from_numpy(np.concatenate([low, low + xywh[:, 2:] * ratio], axis=1).astype(np.float32))
        scores = torch.zeros(len(own), len(CATEGORY_IDS))
        for row, record in enumerate(own):
            scores[row, CATEGORY_IDS.index(record["category_id"])] = record["score"]
        answers[grey_of(index)] = boxes, scores
    return answers


def grey_of(index: int) -> int:
    return 5 + 10 * index


def stats_of(truth: dict[str, Any], results: Records, limits: tuple[int, ...] = (1, 10, 100)) -> list[float]:
    """The numbers of pycocotools alone."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "bbox")
        evaluation.params.maxDets = list(limits)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


@pytest.fixture(scope="module", params=["letterbox", "stretch"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("scene")
    truth, results = draw(np.random.default_rng(14))
    (folder / "truth.json").write_text(json.dumps(truth))
    for index, image in enumerate(truth["images"]):
        pixels = np.full((image["height"], image["width"], 3), grey_of(index), np.uint8)
        write_image(folder / image["file_name"], pixels)
    annotations = read_coco(folder / "truth.json", folder)
    predictor = Predictor(
        TorchRuntime(Meant(answers_of(truth, results, request.param)), torch.device("cpu")),
        InputConfig(CANVAS, fit=request.param),
        [f"class {i}" for i in CATEGORY_IDS],
        CATEGORY_IDS,
        batch_size=7,  # the last batch is padded
    )
    numbered = {**truth, "annotations": [{**a, "id": a["id"] + 1} for a in truth["annotations"]]}
    expected = stats_of(numbered, results)
    return Scene(numbered, results, annotations, evaluate(predictor, annotations, EvaluateConfig()), expected)


def test_the_whole_path_has_the_expected_numbers(scene: Scene) -> None:
    assert list(scene.evaluation.metrics.stats.values()) == pytest.approx(scene.expected, abs=1e-12)
    assert len(scene.evaluation.results) == len(scene.results)
    assert 0.1 < scene.expected[0] < 0.9
    assert min(scene.expected) > 0  # every number is informative


# --- mistakes in what is scored ---------------------------------------------------------------------------------------

Mistake: TypeAlias = "Callable[[dict[str, Any], Records], float]"


def of_images_with_detections(truth: dict[str, Any], results: Records) -> float:
    found = {r["image_id"] for r in results}
    kept = {key: [e for e in truth[key] if e[i] in found] for key, i in (("images", "id"), ("annotations", "image_id"))}
    return stats_of({**truth, **kept}, results)[0]


def above(confidence: float) -> Mistake:
    return lambda truth, results: stats_of(truth, [r for r in results if r["score"] > confidence])[0]


def without_crowds(truth: dict[str, Any]) -> dict[str, Any]:
    return {**truth, "annotations": [a for a in truth["annotations"] if not a["iscrowd"]]}


def crowds_dropped(truth: dict[str, Any], results: Records) -> float:
    return stats_of(without_crowds(truth), results)[0]


def crowds_as_objects(truth: dict[str, Any], results: Records) -> float:
    return stats_of({**truth, "annotations": [{**a, "iscrowd": 0} for a in truth["annotations"]]}, results)[0]


def area_under_the_curve_without_crowds(truth: dict[str, Any], results: Records) -> float:
    objects = GroundTruth.of_mapping(without_crowds(truth))
    found = checked_results(results, objects, Findings("a test"))
    matches = match(objects, found)
    order = np.argsort(-found.scores[matches.rows])
    labels = found.category_ranks[matches.rows][order]
    return float(
        np.mean(
            [
                average_precision((row[order] >= 0)[labels == label], int((objects.category_ranks == label).sum()), 0)
                for row in matches.truth_rows[0]
                for label in range(3)
            ]
        )
    )


def boxes_changed(change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> Mistake:
    """AP of boxes xywh (N, 4) after a change."""

    def mistake(truth: dict[str, Any], results: Records) -> float:
        boxes = change(np.array([r["bbox"] for r in results]))
        return stats_of(truth, [{**r, "bbox": b} for r, b in zip(results, boxes.tolist(), strict=True)])[0]

    return mistake


def corners_changed(change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> Mistake:
    """AP of boxes whose corners (N, 4) were changed."""

    def changed(xywh: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        corners = change(np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)).astype(np.float64)
        return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)

    return boxes_changed(changed)


def with_duplicates(truth: dict[str, Any], results: Records) -> float:
    return stats_of(truth, [*results, *results[:20]])[0]


def of_contiguous_ids(truth: dict[str, Any], results: Records) -> float:
    contiguous = [{**r, "category_id": CATEGORY_IDS.index(r["category_id"])} for r in results]
    return stats_of(truth, contiguous)[0]


def at_300_detections(truth: dict[str, Any], results: Records) -> float:
    return stats_of(truth, results, (1, 10, 300))[0]


def of_ids_from_0(truth: dict[str, Any], results: Records) -> float:
    numbered = [{**a, "id": a["id"] - 1} for a in truth["annotations"]]
    return stats_of({**truth, "annotations": numbered}, results)[0]


MISTAKES: dict[str, Mistake] = {
    "only images with detections are evaluated": of_images_with_detections,
    "scores up to 0.05 are dropped": above(0.05),
    "scores up to 0.25 are dropped": above(0.25),
    "scores up to 0.5 are dropped": above(0.5),
    "crowds are dropped": crowds_dropped,
    "crowds count as objects": crowds_as_objects,
    "the area under the curve, without crowds": area_under_the_curve_without_crowds,
    "boxes are half a pixel off": boxes_changed(lambda xywh: np.add(xywh, [0.5, 0.5, 0, 0])),
    "width and height lack a pixel": boxes_changed(lambda xywh: xywh - [0, 0, 1, 1]),
    "corners are whole numbers": corners_changed(np.round),
    "corners have one decimal": corners_changed(lambda corners: np.round(corners, 1)),
    "corners are half precision": corners_changed(lambda corners: corners.astype(np.float16)),
    "detections of a filled-up batch count twice": with_duplicates,
    "category ids are class indices": of_contiguous_ids,
    "the limit is 300 detections": at_300_detections,
    "annotation ids count from 0": of_ids_from_0,
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_changes_the_numbers_and_is_not_made(name: str, scene: Scene) -> None:
    assert abs(MISTAKES[name](scene.truth, scene.results) - scene.expected[0]) > SHOWS
    assert scene.evaluation.metrics.ap == pytest.approx(scene.expected[0], abs=1e-12)


@pytest.mark.parametrize("rounding", [int, round])
def test_one_scale_for_both_axes_changes_the_numbers_and_is_not_used(
    rounding: Callable[[float], int], scene: Scene
) -> None:
    """Map boxes back from the canvas by one ratio, with a padding computed again instead of the one used."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in scene.truth["images"]}
    records = []
    for record in scene.results:
        height, width = sizes[record["image_id"]]
        letterbox = Letterbox.fit((height, width), (CANVAS, CANVAS), "letterbox")
        (resized_height, resized_width), (top, left) = letterbox.resized_hw, letterbox.offset_top_left
        x, y, w, h = record["bbox"]
        canvas = [x * resized_width / width + left, y * resized_height / height + top]
        ratio = min(CANVAS / height, CANVAS / width)
        padding = [(CANVAS - rounding(width * ratio)) / 2, (CANVAS - rounding(height * ratio)) / 2]
        low = [(c - p) / ratio for c, p in zip(canvas, padding, strict=True)]
        sides = [w * resized_width / width / ratio, h * resized_height / height / ratio]
        records.append({**record, "bbox": [*low, *sides]})
    assert abs(stats_of(scene.truth, records)[0] - scene.expected[0]) > SHOWS
    assert scene.evaluation.metrics.ap == pytest.approx(scene.expected[0], abs=1e-12)


def test_box_area_in_place_of_mask_area_moves_objects_between_sizes(scene: Scene) -> None:
    of_boxes = [{**a, "area": a["bbox"][2] * a["bbox"][3]} for a in scene.truth["annotations"]]
    mistaken = stats_of({**scene.truth, "annotations": of_boxes}, scene.results)
    assert mistaken[:3] == pytest.approx(scene.expected[:3], abs=1e-12)
    for name in ("APs", "APm", "APl"):
        index = STAT_NAMES.index(name)
        assert abs(mistaken[index] - scene.expected[index]) > SHOWS
        assert scene.evaluation.metrics.stats[name] == pytest.approx(scene.expected[index], abs=1e-12)


def test_another_limit_on_request_does_not_change_ap(scene: Scene) -> None:
    found = score_results(scene.annotations.ground_truth(), scene.evaluation.results, other_limits=(300,))
    assert stats_of(scene.truth, scene.results, (1, 10, 300))[0] == -1
    assert found.stats == scene.evaluation.metrics.stats
    assert found.other_limits["AP@maxDets=300"] == pytest.approx(scene.expected[0], abs=1e-12)


def test_nan_boxes_are_rejected_and_not_perfect_matches(scene: Scene) -> None:
    broken = [{**r, "bbox": [math.nan] * 4} for r in scene.results]
    assert stats_of(scene.truth, broken)[0] > scene.expected[0] + SHOWS
    with pytest.raises(DatasetError, match="expected 4 finite numbers"):
        score_results(scene.annotations.ground_truth(), broken)


def test_duplicate_results_are_scored_as_written_and_counted(scene: Scene, tmp_path: Path) -> None:
    repeated = [*scene.results, *scene.results[:20]]
    truth, findings = GroundTruth.of_annotations(scene.annotations), Findings("results.json")
    found = score_results(truth, checked_results(repeated, truth, findings))
    assert found.ap == pytest.approx(stats_of(scene.truth, repeated)[0], abs=1e-12)
    assert [(p.kind, p.count) for p in findings.problems] == [("duplicate result, a false positive", 20)]
