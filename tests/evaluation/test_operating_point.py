from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from detector.data.problems import Findings
from detector.errors import CheckpointError, ConfigError, DatasetError
from detector.evaluation.confidence import Target, choose_thresholds
from detector.evaluation.operating_point import OperatingPoint
from detector.evaluation.ranking import Ranking
from detector.evaluation.results_file import checked_results
from detector.evaluation.scoring_arrays import GroundTruth
from detector.models.checkpoint import ModelFile, load_model_file, save_model
from detector.structures.selection import SelectConfig, select

Scored = tuple[dict[str, Any], list[dict[str, Any]]]
POINT = OperatingPoint("best F1", 0.4, (0.3, 0.5), 12, "ab" * 32)


def model_file(**changes: Any) -> ModelFile:
    fields: dict[str, Any] = {"config": {}, "class_names": ("cat", "dog"), "category_ids": (3, 90)}
    return ModelFile(**{**fields, "state": {"weight": torch.ones(2)}, **changes})


def test_thresholds_survive_a_round_trip_through_a_model_file(tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", model_file(operating_point=POINT.to_plain()))
    loaded = load_model_file(tmp_path / "m.safetensors")
    assert OperatingPoint.of_file(loaded, "m") == POINT
    save_model(tmp_path / "again.safetensors", loaded)
    assert load_model_file(tmp_path / "again.safetensors").operating_point == loaded.operating_point


def test_the_error_of_a_file_without_thresholds_says_how_to_store_some(tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", model_file())
    with pytest.raises(ConfigError, match="m holds no thresholds; store some with detector evaluate m"):
        OperatingPoint.of_file(load_model_file(tmp_path / "m.safetensors"), "m")
    with pytest.raises(ConfigError, match="evaluate WEIGHTS --store-thresholds FILE, WEIGHTS being the model file"):
        OperatingPoint.of_file(load_model_file(tmp_path / "m.safetensors"), "best.onnx")


@pytest.mark.parametrize(
    "changes",
    [
        {"by_class": [0.3]},
        {"by_class": "0.3"},
        {"by_class": [0.3, 1.5]},
        {"by_class": [0.3, None]},
        {"overall": "high"},
        {"overall": True},
        {"overall": float("nan")},
    ],
)
def test_invalid_thresholds_are_rejected(changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"a threshold within 0\.\.1 for each of its 2 classes"):
        OperatingPoint.of_file(model_file(operating_point={**POINT.to_plain(), **changes}), "m")


def test_thresholds_replace_the_confidence_of_a_selection() -> None:
    assert POINT.applied(SelectConfig(iou=0.6)) == SelectConfig(confidence=0.3, iou=0.6, class_confidence=(0.3, 0.5))
    overall = POINT.applied(SelectConfig(class_confidence=(0.1, 0.1)), "best-overall")
    assert overall == SelectConfig(confidence=0.4)


def test_a_class_gets_the_threshold_of_its_category_and_an_unknown_one_the_overall(
    random_set: Callable[[int], Scored],
) -> None:
    truth, results = random_set(2)
    ground_truth = GroundTruth.of_mapping(truth)
    ranking = Ranking.of(ground_truth, checked_results(results, ground_truth, Findings("the test")))
    overall, by_class = choose_thresholds(ranking, Target())
    ids = [*reversed(ground_truth.category_ids), 12345]
    found = OperatingPoint.chosen(ground_truth, ranking, Target(), ids)
    assert overall is not None
    expected = [overall.confidence if t is None else t.confidence for t in reversed(by_class)]
    assert found.by_class == (*expected, overall.confidence)
    assert len(set(found.by_class)) > 1
    assert (found.overall, found.target) == (overall.confidence, "best F1")
    assert (found.num_images, found.ground_truth_sha256) == (len(truth["images"]), ground_truth.sha256)
    empty = Ranking.of(ground_truth, checked_results([], ground_truth, Findings("the test")))
    with pytest.raises(DatasetError, match="expected objects and detections"):
        OperatingPoint.chosen(ground_truth, empty, Target(), ids)


def test_each_class_has_its_own_lowest_score() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]])
    scores = torch.tensor([[0.35, 0.35], [0.25, 0.55], [0.2, 0.2]])
    config = SelectConfig(confidence=0.9, class_confidence=(0.3, 0.5))
    _, found, labels = select(boxes, scores, config)
    assert found.tolist() == [float(torch.tensor(0.55)), float(torch.tensor(0.35))]
    assert labels.tolist() == [1, 0]
    uniform = select(boxes, scores, replace(config, class_confidence=(0.3, 0.3)))
    assert [t.tolist() for t in uniform] == [t.tolist() for t in select(boxes, scores, SelectConfig(confidence=0.3))]


def test_thresholds_out_of_range_or_of_another_number_of_classes_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"class_confidence: expected values within 0\.\.1"):
        SelectConfig(class_confidence=(0.5, 1.5))
    with pytest.raises(ConfigError, match="a value for each of 3 classes, got 2"):
        select(torch.zeros(1, 4), torch.zeros(1, 3), SelectConfig(class_confidence=(0.5, 0.5)))
