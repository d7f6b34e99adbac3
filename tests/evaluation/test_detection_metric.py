from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.cli.main import run
from detector.config import registry
from detector.errors import ConfigError
from detector.evaluation.coco_ap import CocoMetric
from detector.evaluation.coco_metrics import score_results
from detector.evaluation.darknet_map import DarknetMetric, darknet_map
from detector.evaluation.detection_metric import MetricConfig
from detector.evaluation.scoring_arrays import GroundTruth, Results
from detector.evaluation.voc_ap import VocMetric, voc_map

TOY_METRIC = """
from dataclasses import dataclass

from detector import register
from detector.evaluation.detection_metric import DetectionMetric, MetricConfig


@dataclass(frozen=True)
class Ratio:
    value: float

    def to_plain(self):
        return {"metric": "detections_per_object", "value": self.value}

    def to_text(self):
        return f"detections per object {self.value:.2f}"


@register("detections_per_object")
class DetectionsPerObject(DetectionMetric):
    @dataclass(frozen=True)
    class Config(MetricConfig):
        points: int = 1

    def __init__(self, config):
        self.config = config

    def score(self, truth, results):
        return Ratio(self.config.points * len(results) / len(truth.areas))
"""


@pytest.fixture
def toy_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a metric, which is removed from the registry after the test."""
    registry.names(MetricConfig)
    monkeypatch.setattr(registry, "_PARTS", {kind: dict(parts) for kind, parts in registry._PARTS.items()})
    monkeypatch.setattr(registry, "_PART_OF_CONFIG", dict(registry._PART_OF_CONFIG))
    path = tmp_path / "toy_metric.py"
    path.write_text(TOY_METRIC)
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    truth = {
        "images": [{"id": 5, "file_name": "5.jpg", "height": 100, "width": 100}],
        "categories": [{"id": 7, "name": "circle"}],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 7, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}],
    }
    results = [{"image_id": 5, "category_id": 7, "bbox": [i, 0, 9, 9], "score": 0.5} for i in range(3)]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    return ["--results", str(tmp_path / "results.json"), "--annotations", str(tmp_path / "truth.json")]


def drawn(random_set: Any) -> tuple[GroundTruth, Results]:
    mapping, records = random_set(4)
    truth = GroundTruth.of_mapping(mapping)
    image_rank = {identifier: rank for rank, identifier in enumerate(truth.image_ids)}
    category_rank = {identifier: rank for rank, identifier in enumerate(truth.category_ids)}
    return truth, Results(
        np.array([image_rank[r["image_id"]] for r in records]),
        np.array([category_rank[r["category_id"]] for r in records]),
        np.array([r["bbox"] for r in records]),
        np.array([r["score"] for r in records]),
    )


def test_the_metrics_of_the_package_are_listed_by_name() -> None:
    assert registry.names(MetricConfig) == ["coco", "darknet", "voc"]


def test_registered_metrics_return_the_numbers_of_their_functions(random_set: Any) -> None:
    truth, results = drawn(random_set)
    coco = registry.build(CocoMetric.Config(backend="pycocotools", limits=(300,)))
    expected = score_results(truth, results, backend="pycocotools", other_limits=(300,))
    assert coco.score(truth, results).to_plain() == expected.to_plain()
    voc = registry.build(VocMetric.Config(points=11, match_iou=0.6)).score(truth, results)
    assert voc == voc_map(truth, results, points=11, iou_threshold=0.6)
    darknet = registry.build(DarknetMetric.Config(points=101)).score(truth, results)
    assert darknet == darknet_map(truth, results, points=101)


def test_options_of_coco_are_overrides_of_the_experiment() -> None:
    assert CocoMetric(CocoMetric.Config()).overrides() == []
    metric = CocoMetric(CocoMetric.Config(backend="fast", limits=(1, 300)))
    assert metric.overrides() == ["evaluate.backend=fast", "evaluate.other_limits=[1, 300]"]


def test_a_metric_in_an_imported_file_is_listed_and_used(
    toy_metric: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--import", str(toy_metric), "--metric", "detections_per_object", *files]
    assert run([*words, "--points", "2"]) == 0
    assert capsys.readouterr().out.endswith("detections per object 6.00\n")
    assert registry.names(MetricConfig) == ["coco", "darknet", "detections_per_object", "voc"]
    words = ["evaluate", "--metric", "detections_per_object", *files]
    assert run([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["value"] == 3.0
    assert run([*words, "--match-iou", "0.6"]) == 2
    assert "--match-iou belongs to --metric darknet and voc, got detections_per_object" in capsys.readouterr().err
    assert run([*words, "--report", "x"]) == 2
    assert "--report and --store-thresholds belong to --metric coco" in capsys.readouterr().err


def test_a_misspelt_metric_is_rejected_with_the_nearest_name(
    files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", "--metric", "darknt", *files]) == 2
    assert "no metric is named 'darknt'; did you mean 'darknet'?" in capsys.readouterr().err


@pytest.mark.parametrize("config", [VocMetric.Config, DarknetMetric.Config])
def test_options_out_of_range_are_rejected(config: Any) -> None:
    with pytest.raises(ValueError, match=r"match_iou: expected a number between 0 and 1, got 0"):
        config(match_iou=0.0)
    with pytest.raises(ConfigError, match="points of recall"):
        config(points=1)
    with pytest.raises(ValueError, match=r"limits: expected numbers of at least 1, got \[0\]"):
        CocoMetric.Config(limits=(0,))
