"""Darknet's `map` against numbers that Darknet printed, and against its rules implemented one by one.

The embedded network and images replace Darknet's own, which may be missing: their expected numbers are computed here by
loops over the raw boxes of the network, from the candidates to the last digit.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch

from detector.darknet.network import CfgText, DarknetNet
from detector.data.coco import CocoAnnotations
from detector.data.problems import Findings
from detector.errors import ConfigError
from detector.evaluation.darknet_map import DarknetMap, DarknetMetric, darknet_map
from detector.evaluation.evaluator import annotated_sources
from detector.evaluation.results_file import checked_results
from detector.evaluation.scoring_arrays import GroundTruth, Results
from detector.inference.predictor import RawBoxes
from detector.media.images import write_image
from detector.tasks.detection_model import LoadedModel, build_predictor, load_model, measure_model, read_split

SetOf: TypeAlias = Callable[[int], tuple[dict[str, Any], list[dict[str, Any]]]]
CFG = """[net]
width=64
height=64
channels=3
letter_box={letter_box}
[convolutional]
filters=24
size=3
stride=8
pad=1
activation=linear
[yolo]
classes=3
num=3
mask=0,1,2
anchors=10,14,20,20,30,24
{nms}
"""


@dataclass
class Found:
    """A detection as Darknet keeps it."""

    image: int
    label: int
    score: np.float32
    box: tuple[np.float32, ...]  # centre, width and height in shares of the image
    target: int = -1
    overlap: float = 0.0  # a float32


def iou(a: tuple[np.float32, ...], b: tuple[np.float32, ...]) -> np.float32:
    sides = []
    for axis in (0, 1):
        low = max(a[axis] - a[axis + 2] / np.float32(2), b[axis] - b[axis + 2] / np.float32(2))
        high = min(a[axis] + a[axis + 2] / np.float32(2), b[axis] + b[axis + 2] / np.float32(2))
        sides.append(high - low)
    if min(sides) < 0 or sides[0] * sides[1] == 0:
        return np.float32(0)
    shared = sides[0] * sides[1]
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def relative(box: list[float], hw: tuple[int, int]) -> tuple[np.float32, ...]:
    (x, y, w, h), (height, width) = box, (max(hw[0], 1), max(hw[1], 1))
    return tuple(map(np.float32, ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)))


def by_the_rules(
    truth: GroundTruth, detections: list[Found], points: int, threshold: float
) -> tuple[list[float], list[tuple[int, int]], float]:
    """AP of each class, TP and FP above 0.25, and the mean overlap; detections in Darknet's order, by image."""
    objects = [
        (image, label, relative(box, tuple(truth.image_hw[image].tolist())))
        for image, label, box in zip(
            truth.image_ranks.tolist(), truth.category_ranks.tolist(), truth.boxes_xywh.tolist(), strict=True
        )
    ]
    hits: set[int] = set()
    counts = [[0, 0] for _ in truth.category_ids]
    overlap_sum = 0.0
    for found in detections:
        for index, (image, label, box) in enumerate(objects):
            if image == found.image and label == found.label:
                value = float(iou(found.box, box))
                if value > float(np.float32(threshold)) and value > found.overlap:
                    found.overlap, found.target = value, index
        if found.score > np.float32(0.25):
            is_hit = found.target >= 0 and found.target not in hits
            counts[found.label][0 if is_hit else 1] += 1
            overlap_sum += found.overlap if is_hit else 0.0
        hits.add(found.target)
    aps = []
    for label in range(len(truth.category_ids)):
        num_wanted = sum(o[1] == label for o in objects)
        taken: set[int] = set()
        tp = fp = 0
        curve = []
        for found in sorted(detections, key=lambda d: -d.score):
            if found.label != label:
                continue
            if found.target >= 0 and found.target not in taken:
                tp += 1
            else:
                fp += 1
            taken.add(found.target)
            curve.append((tp / num_wanted if num_wanted else 0.0, tp / (tp + fp)))
        if points:
            best = [max((p for r, p in curve if r >= k / (points - 1)), default=0.0) for k in range(points)]
            aps.append(sum(best) / points if num_wanted else 0.0)
            continue
        ap, last_recall, last_precision = 0.0, 0.0, 0.0
        for recall, precision in reversed(curve):  # from the highest recall down, under the best precision so far
            ap += (last_recall - recall) * last_precision if last_precision else 0.0
            last_recall, last_precision = recall, max(last_precision, precision)
        aps.append(ap + last_recall * last_precision if num_wanted else 0.0)
    num_shown = sum(map(sum, counts))
    return aps, [(c[0], c[1]) for c in counts], overlap_sum / num_shown if num_shown else 0.0


def as_found(truth: GroundTruth, results: Results) -> list[Found]:
    rows = zip(
        results.image_ranks.tolist(), results.category_ranks.tolist(), results.scores, results.boxes_xywh, strict=True
    )
    return [
        Found(image, label, np.float32(score), relative(box.tolist(), tuple(truth.image_hw[image].tolist())))
        for image, label, score, box in rows
    ]


def require_equal(found: DarknetMap, aps: list[float], counts: list[tuple[int, int]], mean_iou: float) -> None:
    np.testing.assert_allclose([c.ap for c in found.classes], aps, rtol=0, atol=1e-12)
    assert [(c.num_right, c.num_wrong) for c in found.classes] == counts
    assert found.mean_ap == pytest.approx(sum(aps) / len(aps), abs=1e-12)
    assert found.mean_iou == pytest.approx(mean_iou, abs=1e-12)


# --- the numbers of a set of detections -------------------------------------------------------------------------------


@pytest.mark.parametrize(("points", "threshold"), [(0, 0.5), (11, 0.5), (101, 0.5), (0, 0.75), (5, 0.6)])
@pytest.mark.parametrize("kind", ["random_set", "tied_set"])
def test_the_numbers_equal_those_of_the_written_rules(
    kind: str, points: int, threshold: float, request: pytest.FixtureRequest
) -> None:
    draw: SetOf = request.getfixturevalue(kind)
    for seed in range(6):
        truth, records = draw(seed)
        objects = GroundTruth.of_mapping({**truth, "annotations": [{**a, "iscrowd": 0} for a in truth["annotations"]]})
        results = checked_results(records, objects, Findings("a test"))
        expected = by_the_rules(objects, as_found(objects, results), points, threshold)
        found = darknet_map(objects, results, points=points, iou_threshold=threshold)
        require_equal(found, *expected)
        assert (found.num_detections, found.num_objects) == (len(records), len(truth["annotations"]))


def scored(boxes: list[list[float]], results: list[tuple[list[float], float]], difficult: int = -1) -> DarknetMap:
    truth = {
        "images": [{"id": 1, "height": 100, "width": 100}],
        "categories": [{"id": 1, "name": "circle"}, {"id": 2, "name": "star"}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "bbox": b, "area": 1, "iscrowd": int(i == difficult)}
            for i, b in enumerate(boxes)
        ],
    }
    records = [{"image_id": 1, "category_id": 1, "bbox": box, "score": score} for box, score in results]
    objects = GroundTruth.of_mapping(truth)
    return darknet_map(objects, checked_results(records, objects, Findings("a test")))


def test_a_class_without_objects_counts_as_ap_0_in_the_mean() -> None:
    found = scored([[0, 0, 10, 10]], [([0, 0, 10, 10], 0.9)])
    assert [c.ap for c in found.classes] == [1.0, 0.0]
    assert found.mean_ap == 0.5


def test_an_overlap_of_exactly_the_threshold_is_no_match() -> None:
    assert scored([[0, 0, 50, 50]], [([0, 0, 50, 25], 0.9)]).num_right == 0
    assert scored([[0, 0, 50, 50]], [([0, 0, 50, 25.1], 0.9)]).num_right == 1


def test_an_earlier_match_of_lower_score_takes_the_object_in_the_counts_but_not_in_ap() -> None:
    found = scored([[0, 0, 10, 10]], [([0, 0, 10, 9], 0.1), ([0, 0, 10, 10], 0.9)])
    assert (found.num_right, found.num_wrong, found.num_missed) == (0, 1, 1)
    assert found.classes[0].ap == 1.0
    other_way = scored([[0, 0, 10, 10]], [([0, 0, 10, 10], 0.9), ([0, 0, 10, 9], 0.1)])
    assert (other_way.num_right, other_way.num_wrong, other_way.num_missed) == (1, 0, 0)


def test_a_detection_on_a_difficult_object_is_left_out() -> None:
    boxes = [[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 10.0, 10.0]]
    found = scored(boxes, [([50, 50, 10, 9], 0.95), ([0, 0, 10, 10], 0.9), ([70, 70, 5, 5], 0.3)], difficult=1)
    assert (found.num_detections, found.num_objects, found.num_right, found.num_wrong) == (2, 1, 1, 1)


def test_precision_recall_f1_and_mean_iou_follow_from_the_counts() -> None:
    hit = [0.0, 0.0, 10.0, 8.0]
    found = scored([[0, 0, 10, 10], [50, 50, 10, 10]], [(hit, 0.9), ([70, 70, 5, 5], 0.8), ([70, 70, 5, 5], 0.25)])
    assert (found.precision, found.recall, found.f1) == (0.5, 0.5, 0.5)
    assert found.mean_iou == pytest.approx(0.8 / 2, abs=1e-6)
    plain = json.loads(json.dumps(found.to_plain(), allow_nan=False))
    assert (plain["metric"], plain["num_missed"], plain["classes"][0]["num_right"]) == ("darknet", 1, 1)


def test_a_set_without_detections_has_zeros() -> None:
    found = scored([[0, 0, 10, 10]], [])
    assert (found.mean_ap, found.precision, found.recall, found.f1, found.mean_iou) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("points", [1, -11])
def test_one_or_negative_points_are_rejected(points: int) -> None:
    objects = GroundTruth.of_mapping({"images": [], "categories": [], "annotations": []})
    with pytest.raises(ConfigError, match=f"0 or at least 2 points of recall, got {points}"):
        darknet_map(objects, checked_results([], objects, Findings("a test")), points=points)


# --- the network's boxes ----------------------------------------------------------------------------------------------


def darknet_folder(folder: Path, cfg: str, num_images: int, names: str) -> tuple[LoadedModel, CocoAnnotations]:
    (folder / "m.cfg").write_text(cfg)
    (folder / "n.names").write_text(names)
    (folder / "valid.txt").write_text("".join(f"{folder}/im{i}.png\n" for i in range(num_images)))
    (folder / "m.data").write_text("classes=3\nvalid=valid.txt\nnames=n.names\n")
    loaded = load_model(folder / "m.weights", [f"data={folder}/m.data"], names=folder / "n.names")
    return loaded, read_split(loaded.config, "val")


def by_loops(raw: RawBoxes, image: int, kind: str) -> list[Found]:
    """Candidates, suppression and order as Darknet has them, one class and one box at a time."""
    (width, height), letterbox = raw.letterbox.source_hw[::-1], raw.letterbox
    source = letterbox.boxes_to_source(raw.canvas_xyxy.numpy().astype(np.float64))
    sizes = source[:, 2:] - source[:, :2]
    boxes = [
        tuple(map(np.float32, ((low[0] + s[0] / 2) / width, (low[1] + s[1] / 2) / height, s[0] / width, s[1] / height)))
        for low, s in zip(source[:, :2], sizes, strict=True)
    ]
    scores = raw.scores.numpy()
    scores = np.where(scores > np.float32(0.005), scores, 0)
    order = [row for row in range(len(boxes)) if scores[row].any()]
    for label in range(scores.shape[1]):
        order.sort(key=lambda row: -scores[row, label])  # stable: starts with the order of the class before
        for position, row in enumerate(order):
            for other in order[position + 1 :] if scores[row, label] else ():
                overlap = float(iou(boxes[row], boxes[other]))
                if kind == "greedynms" and overlap > 0.45:
                    a, b = boxes[row], boxes[other]
                    low = [min(v[k] - v[k + 2] / 2 for v in (a, b)) for k in (0, 1)]
                    high = [max(v[k] + v[k + 2] / 2 for v in (a, b)) for k in (0, 1)]
                    hull = (high[0] - low[0]) ** 2 + (high[1] - low[1]) ** 2
                    overlap -= float((((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / hull) ** 0.6)
                if overlap > 0.45:
                    scores[other, label] = 0
    return [Found(image, k, scores[row, k], boxes[row]) for row in order for k in range(3) if scores[row, k]]


@pytest.mark.parametrize(("letter_box", "kind"), [(0, "default"), (1, "greedynms")])
def test_the_detections_of_an_embedded_network_equal_those_of_darknets_own_loops(
    letter_box: int, kind: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    nms = "" if kind == "default" else f"nms_kind={kind}\nbeta_nms=0.6"
    text = CFG.format(letter_box=letter_box, nms=nms)
    for index in range(3):
        coarse = rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)
        write_image(tmp_path / f"im{index}.png", coarse.repeat(8, axis=0).repeat(8 - index, axis=1))
        objects = np.column_stack(
            [rng.integers(1, 3, 12), rng.uniform(0.05, 0.95, (12, 2)), rng.uniform(0.15, 0.5, (12, 2))]
        )
        lines = [f"{int(label)} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for label, x, y, w, h in objects]
        (tmp_path / f"im{index}.txt").write_text("".join(lines))
    torch.manual_seed(5)
    model = DarknetNet(DarknetNet.Config(CfgText("m.cfg", text)), 3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    model.save_weights(tmp_path / "m.weights")
    loaded, annotations = darknet_folder(tmp_path, text, 3, "a\nb\nc\n")
    _, found = measure_model(loaded, annotations, DarknetMetric(DarknetMetric.Config()))
    raw = build_predictor(loaded, 2).stream_raw(annotated_sources(annotations))
    expected = [d for image, (_, boxes, _) in enumerate(raw) if boxes is not None for d in by_loops(boxes, image, kind)]
    assert len(found.detections) == len(expected) > 500
    assert found.conditions.nms == ("plain" if kind == "default" else "greedy")
    for ours, theirs in zip(as_found(found.truth, found.detections), expected, strict=True):
        assert (ours.image, ours.label, ours.score) == (theirs.image, theirs.label, theirs.score)
        np.testing.assert_allclose(ours.box, theirs.box, rtol=0, atol=1e-6)
    for points in (0, 11):
        metrics = darknet_map(found.truth, found.detections, points=points)
        require_equal(
            metrics,
            *by_the_rules(found.truth, [Found(d.image, d.label, d.score, d.box) for d in expected], points, 0.5),
        )
        assert 0 < metrics.mean_ap < 1
    # The order matters: by score, other detections would be the first of their object.
    by_score = np.argsort(-found.detections.scores, kind="stable")
    columns = (
        getattr(found.detections, n)[by_score] for n in ("image_ranks", "category_ranks", "boxes_xywh", "scores")
    )
    assert darknet_map(found.truth, Results(*columns)).num_right > metrics.num_right
    # A results file of the detections has the same score, to the last digit.
    records = json.loads(json.dumps(found.detections.to_records(found.truth)))
    again = checked_results(records, found.truth, Findings("a test"))
    assert darknet_map(found.truth, again, points=11) == metrics


def test_the_objects_of_an_image_that_cannot_be_read_are_missed(tmp_path: Path) -> None:
    text = CFG.format(letter_box=0, nms="")
    for index in range(2):
        write_image(tmp_path / f"im{index}.png", np.full((40, 40, 3), 90, np.uint8))
        (tmp_path / f"im{index}.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    DarknetNet(DarknetNet.Config(CfgText("m.cfg", text)), 3).save_weights(tmp_path / "m.weights")
    loaded, annotations = darknet_folder(tmp_path, text, 2, "a\nb\nc\n")
    (tmp_path / "im1.png").write_bytes(b"<html>")
    done: list[int] = []
    _, found = measure_model(loaded, annotations, DarknetMetric(DarknetMetric.Config()), done.append)
    assert (len(found.skipped), done) == (1, [1, 2])
    assert "im1.png" in found.skipped[0]
    assert set(found.detections.image_ranks.tolist()) == {0}
    assert darknet_map(found.truth, found.detections).num_objects == 2


def test_the_numbers_that_darknet_printed_are_reproduced_digit_for_digit(data_folder: Path, tmp_path: Path) -> None:
    golden = data_folder.parent / "darknet-golden" / "map"
    if not golden.is_dir():
        pytest.skip("there is no folder darknet-golden/map beside the one DETECTOR_TEST_DATA names")
    cases = json.loads((golden / "expected.json").read_text())
    assert len(cases) == 9
    for number, case in enumerate(cases):
        folder = tmp_path / str(number)
        shutil.copytree(golden, folder, copy_function=shutil.copyfile)
        folder.chmod(0o755)
        loaded, annotations = darknet_folder(folder, case["cfg"], 12, (golden / "n.names").read_text())
        _, found = measure_model(loaded, annotations, DarknetMetric(DarknetMetric.Config()))
        metrics = darknet_map(found.truth, found.detections, points=case["points"], iou_threshold=case["iou_thresh"])
        assert f"{metrics.mean_ap:.6f}" == f"{case['mAP']:.6f}"
        assert [f"{100 * c.ap:.2f}" for c in metrics.classes] == [f"{ap:.2f}" for ap in case["AP_percent"]]
        assert [[c.num_right, c.num_wrong] for c in metrics.classes] == case["tp_fp_at_025"]
        assert (metrics.num_detections, metrics.num_objects) == (case["detections"], case["truths"])
        assert not math.isnan(metrics.f1)
