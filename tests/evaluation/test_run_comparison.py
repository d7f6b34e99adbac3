from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.data.class_matching import with_categories
from detector.data.coco import read_coco
from detector.errors import ConfigError, DatasetError
from detector.evaluation.accuracy import classification_metrics
from detector.evaluation.coco_metrics import score_results
from detector.evaluation.ranking import Ranking
from detector.evaluation.resampling import paired_test
from detector.evaluation.results_file import read_results
from detector.evaluation.run_comparison import MeasuredRun, compare, read_run, recipe_sha256
from detector.evaluation.scoring_arrays import GroundTruth

Scored = tuple[dict[str, Any], list[dict[str, Any]]]
HEAD = "epoch,step,metrics/mAP50(B),metrics/mAP50-95(B)\n"


def evaluated(folder: Path, truth: Path, results: list[dict[str, Any]], **changes: Any) -> Path:
    """A folder as `detector evaluate` writes it."""
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results))
    metrics = score_results(GroundTruth.of_annotations(read_coco(truth, None)), results)
    document = {**metrics.to_plain(), "ground_truth": {"file": str(truth)}, **changes}
    (folder / "metrics.json").write_text(json.dumps(document))
    return folder


@pytest.fixture
def pair(random_set: Callable[[int], Scored], tmp_path: Path) -> tuple[Path, Path]:
    truth, results = random_set(4)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    worse = [{**r, "bbox": [r["bbox"][0] + (n % 3 == 0) * 300, *r["bbox"][1:]]} for n, r in enumerate(results)]
    recipe = {"model": {"recipe_sha256": "x"}}
    return (
        evaluated(tmp_path / "a", tmp_path / "truth.json", worse, **recipe),
        evaluated(tmp_path / "b", tmp_path / "truth.json", results, **recipe),
    )


def test_two_evaluations_of_one_recipe_are_tested_and_grouped_as_seeds(pair: tuple[Path, Path], tmp_path: Path) -> None:
    runs = [read_run(folder) for folder in pair]
    found = compare(runs, num_resamples=50, seed=3)
    truth = GroundTruth.of_annotations(read_coco(tmp_path / "truth.json", None))
    rankings = [Ranking.of(truth, read_results(folder / "results.json", truth)[0]) for folder in pair]
    assert found.tests == {str(pair[1]): paired_test(*rankings, num_resamples=50, seed=3)}
    test = found.tests[str(pair[1])]
    assert test.difference.value == pytest.approx(runs[1].stats["AP"] - runs[0].stats["AP"], abs=1e-12)
    assert test.difference.value > 0
    ((names, seeds),) = found.seeds
    assert names == tuple(map(str, pair))
    assert seeds.mean == pytest.approx((runs[0].stats["AP"] + runs[1].stats["AP"]) / 2, abs=1e-12)
    assert set(runs[0].of_class) == set(json.loads((pair[0] / "metrics.json").read_text())["class_ap"])


def test_evaluations_that_left_out_a_category_are_compared_on_the_others(
    random_set: Callable[[int], Scored], tmp_path: Path
) -> None:
    truth, results = random_set(4)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    annotations = read_coco(tmp_path / "truth.json", None)
    is_kept = np.arange(len(annotations.category_ids)) > 0
    part = GroundTruth.of_annotations(with_categories(annotations, is_kept))
    known = [r for r in results if r["category_id"] in part.category_ids]
    runs = []
    for name, found in (("a", known[::2]), ("b", known)):
        plain = score_results(part, found).to_plain()
        evaluated(tmp_path / name, tmp_path / "truth.json", found)
        (tmp_path / name / "metrics.json").write_text(
            json.dumps({**plain, "ground_truth": {"file": str(tmp_path / "truth.json")}})
        )
        runs.append(read_run(tmp_path / name))
    rankings = [Ranking.of(part, read_results(tmp_path / name / "results.json", part)[0]) for name in "ab"]
    found_tests = compare(runs, num_resamples=50, seed=3).tests
    assert found_tests == {str(tmp_path / "b"): paired_test(*rankings, num_resamples=50, seed=3)}


def test_a_run_without_a_test_has_a_reason(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (pair[1] / "results.json").unlink()
    found = compare([read_run(folder) for folder in pair])
    assert found.tests == {}
    assert "has no saved results" in found.untested[str(pair[1])]


def test_runs_on_other_ground_truths_are_neither_tested_nor_grouped_as_seeds(
    pair: tuple[Path, Path], random_set: Callable[[int], Scored], tmp_path: Path
) -> None:
    truth, results = random_set(2)
    (tmp_path / "other.json").write_text(json.dumps(truth))
    other = evaluated(tmp_path / "c", tmp_path / "other.json", results, model={"recipe_sha256": "x"})
    found = compare([read_run(pair[0]), read_run(other)])
    assert "another ground truth" in found.untested[str(other)]
    assert found.seeds == ()


def test_a_changed_or_moved_ground_truth_is_reported(pair: tuple[Path, Path], tmp_path: Path) -> None:
    runs = [read_run(folder) for folder in pair]
    moved = tmp_path / "moved.json"
    (tmp_path / "truth.json").rename(moved)
    assert compare(runs, moved, num_resamples=5).tests
    truth = json.loads(moved.read_text())
    truth["annotations"][0]["bbox"][2] += 1
    moved.write_text(json.dumps(truth))
    with pytest.raises(DatasetError, match=r"moved\.json: .* was measured on another ground truth"):
        compare(runs, moved, num_resamples=5)


def test_a_training_run_is_read_as_its_best_evaluation(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    (folder / "results.csv").write_text(f"{HEAD}1,10,0.5,0.2\n2,20,0.6,0.4\n3,30,0.7,nan\n4,40,0.8,0.3\n")
    (folder / "config.yaml").write_text("train: {seed: 3, epochs: 5}\nmodel: {name: yolo}\n")
    found = read_run(folder)
    assert (found.stats["AP"], found.stats["AP50"]) == (0.4, 0.6)
    assert math.isnan(found.stats["AP75"])
    assert found.recipe_sha256 == recipe_sha256({"model": {"name": "yolo"}, "train": {"epochs": 5, "seed": 8}})
    assert read_run(folder / "results.csv").stats["AP"] == 0.4


def test_classifiers_are_compared_over_seeds_without_a_paired_test(tmp_path: Path) -> None:
    for name, top1 in (("a", 0.5), ("b", 0.7)):
        (tmp_path / name).mkdir()
        rows = f"epoch,metrics/top1,metrics/mean_class\n1,{top1},0.4\n2,0.1,0.9\n"
        (tmp_path / name / "results.csv").write_text(rows)
        (tmp_path / name / "config.yaml").write_text(f"task: classify\ntrain: {{seed: {len(name)}}}\n")
    metrics = classification_metrics(np.eye(3), np.array([0, 1, 1]), ("x", "y", "z"))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "metrics.json").write_text(json.dumps(metrics.to_plain()))
    first, second, measured = (read_run(tmp_path / name) for name in "abc")
    assert (first.headline, first.stats["top1"], first.stats["mean_class"]) == ("top1", 0.5, 0.4)
    assert math.isnan(first.stats["top5"])
    assert measured.stats["top1"] == 2 / 3
    assert measured.of_class["y"] == 0.5
    assert math.isnan(measured.of_class["z"])
    found = compare([first, second, measured])
    assert found.tests == {}
    assert "for detections only" in found.untested[second.name]
    ((names, seeds),) = found.seeds
    assert names == (first.name, second.name)
    assert seeds.mean == pytest.approx(0.6)
    with pytest.raises(ConfigError, match=r"measure the same number, got .* with AP"):
        compare([first, MeasuredRun("d", {"AP": 0.3})])


def test_the_hash_of_a_recipe_ignores_seed_device_and_folders() -> None:
    config = {"train": {"seed": 0, "epochs": 9, "project": "a"}, "device": "cpu", "input": {"size": 64}}
    same = {"train": {"seed": 5, "epochs": 9, "project": "b"}, "device": "cuda", "input": {"size": 64}}
    assert recipe_sha256(config) == recipe_sha256(same)
    for other in (
        {**config, "input": {"size": 96}},
        {**config, "train": {**config["train"], "epochs": 10}},  # type: ignore[dict-item]
    ):
        assert recipe_sha256(other) != recipe_sha256(config)


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("nothing", "", ConfigError),
        ("metrics.json", "{", DatasetError),
        ("metrics.json", "[]", DatasetError),
        ("metrics.json", '{"metric": "voc"}', ConfigError),
        ("metrics.json", '{"metric": "coco"}', DatasetError),
        ("results.csv", HEAD, DatasetError),
        ("results.csv", "a,b\n1,2\n", DatasetError),
        ("results.csv", HEAD + "1,1,x,y\n", DatasetError),
    ],
)
def test_a_folder_without_readable_numbers_is_rejected_with_its_name(
    name: str, content: str, error: type[Exception], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(error, match=str(tmp_path)):
        read_run(tmp_path)
