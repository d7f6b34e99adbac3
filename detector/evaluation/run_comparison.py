"""Comparison of measured runs: the numbers side by side, runs of one recipe over seeds, and a paired test."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detector.config.nodes import plain_of, read_nodes
from detector.data.class_matching import with_categories
from detector.data.coco import read_coco
from detector.errors import ConfigError, DatasetError
from detector.evaluation.ranking import Ranking
from detector.evaluation.resampling import OverSeeds, PairedTest, over_seeds, paired_test
from detector.evaluation.results_file import read_results
from detector.evaluation.scoring_arrays import GroundTruth

# Keys that may differ between runs of one recipe: the seed, the device and the output folder.
_NOT_OF_THE_RECIPE = {"": ("device", "predict"), "train": ("seed", "project", "run_name"), "loader": ("workers",)}
# The compared numbers, by the number that decides which run is better.
_STATS = {
    "AP": ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100"),
    "top1": ("top1", "top5", "mean_class", "entropy"),
}
# The same numbers in the `results.csv` of a training run.
_COLUMNS = {
    "AP": {"AP": "metrics/mAP50-95(B)", "AP50": "metrics/mAP50(B)"},
    "top1": {name: f"metrics/{name}" for name in _STATS["top1"]},
}


@dataclass(frozen=True)
class MeasuredRun:
    """Numbers of one run.

    Attributes:
        name: the name that the user gave.
        stats: numbers by name; NaN if the run does not have it.
        of_class: the headline number of each class by name; empty if the run does not have them.
        recipe_sha256: hash that is the same for runs that differ only in their seed; None if unknown.
        truth_sha256: the hash of the ground truth, as scored; None if unknown.
        annotations: the ground truth, a COCO file; None if it is not a COCO file.
        category_ids: the categories that it was measured on; None if unknown.
        results: the saved results; None if there are none.
        headline: name of the number that decides which run is better: AP, or top1 of classification.
    """

    name: str
    stats: dict[str, float]
    of_class: dict[str, float] = field(default_factory=dict)
    recipe_sha256: str | None = None
    truth_sha256: str | None = None
    annotations: Path | None = None
    category_ids: tuple[int, ...] | None = None
    results: Path | None = None
    headline: str = "AP"


@dataclass(frozen=True)
class Comparison:
    """Comparison of runs with the first one.

    Attributes:
        runs: the runs in the order given.
        tests: the paired test of a later run against the first, by the name of the later run.
        untested: the reason why a later run has no test, by its name.
        seeds: the headline number over runs that differ only in their seed: their names and the numbers.
    """

    runs: tuple[MeasuredRun, ...]
    tests: dict[str, PairedTest]
    untested: dict[str, str]
    seeds: tuple[tuple[tuple[str, ...], OverSeeds], ...]


def recipe_sha256(config: Mapping[str, object]) -> str:
    """Return the hash of a plain configuration without the keys that may differ between runs of one recipe."""
    kept = {key: value for key, value in config.items() if key not in _NOT_OF_THE_RECIPE[""]}
    for section, keys in _NOT_OF_THE_RECIPE.items():
        settings = kept.get(section)
        if section and isinstance(settings, Mapping):
            kept[section] = {key: value for key, value in settings.items() if key not in keys}
    augment = kept.get("augment")
    if isinstance(augment, Mapping) and not augment.get("extra"):  # as in the files of runs older than the key
        kept["augment"] = {key: value for key, value in augment.items() if key != "extra"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def read_run(path: Path) -> MeasuredRun:
    """Read the numbers of a folder of `detector evaluate`, or the best evaluation of a training run.

    Raises:
        ConfigError: the folder is neither.
        DatasetError: its numbers cannot be read.
    """
    folder = path.parent if path.name in ("metrics.json", "results.csv") else path
    try:
        if (folder / "metrics.json").is_file():
            return _evaluated(folder, json.loads((folder / "metrics.json").read_text(encoding="utf-8")))
        if (folder / "results.csv").is_file():
            return _trained(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise DatasetError(f"{folder}: the numbers cannot be read ({error}); evaluate the run again") from error
    raise ConfigError(
        f"{path}: expected a folder with metrics.json (detector evaluate) or results.csv (train), got neither"
    )


def _evaluated(folder: Path, document: dict[str, Any]) -> MeasuredRun:
    if document.get("metric") == "classification":
        stats = {name: _number(document.get(name)) for name in _STATS["top1"]}
        of_class = {row["name"]: _number(row["accuracy"]) for row in document["classes"]}
        return MeasuredRun(str(folder), stats, of_class, headline="top1")
    if document.get("metric") != "coco":
        raise ConfigError(
            f"{folder}: expected numbers of COCO or of classification, got metric {document.get('metric')!r}"
        )
    stats = {name: _number(document.get(name)) for name in _STATS["AP"]}
    results = folder / "results.json"
    if not results.is_file():
        results = Path(str((document.get("results") or {}).get("file", "")))
    annotations = Path(document["ground_truth"]["file"])
    return MeasuredRun(
        name=str(folder),
        stats=stats,
        of_class={name: _number(value) for name, value in document.get("class_ap", {}).items()},
        recipe_sha256=(document.get("model") or {}).get("recipe_sha256"),
        truth_sha256=document["ground_truth_sha256"],
        annotations=annotations if annotations.suffix == ".json" else None,
        category_ids=tuple(row["category_id"] for row in document["classes"]) if "classes" in document else None,
        results=results if results.is_file() else None,
    )


def _trained(folder: Path) -> MeasuredRun:
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    present = rows[0].keys() if rows else ()
    headline = next((name for name, columns in _COLUMNS.items() if columns[name] in present), "AP")
    columns, names = _COLUMNS[headline], _STATS[headline]

    def judged(row: Mapping[str, str]) -> float:
        value = float(row[columns[headline]])
        return -math.inf if math.isnan(value) else value

    best = max(rows, key=judged)
    stats = {name: float(best.get(columns.get(name, ""), math.nan)) for name in names}
    config = folder / "config.yaml"
    plain = plain_of(read_nodes(config)) if config.is_file() else None
    recipe = recipe_sha256(plain) if isinstance(plain, dict) else None
    return MeasuredRun(str(folder), stats, recipe_sha256=recipe, headline=headline)


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def compare(
    runs: Sequence[MeasuredRun], annotations: Path | None = None, *, num_resamples: int = 1000, seed: int = 0
) -> Comparison:
    """Compare every run with the first, and group the runs of one recipe.

    Args:
        runs: at least two runs.
        annotations: the ground truth, if it is no longer where the runs say.
        num_resamples: number of draws of each test.
        seed: seed of the draws.

    Raises:
        DatasetError: saved results or the ground truth cannot be read.
        ConfigError: the runs are of detection and of classification.
    """
    if len({run.headline for run in runs}) > 1:
        kinds = ", ".join(f"{run.name} with {run.headline}" for run in runs)
        raise ConfigError(f"expected runs that measure the same number, got {kinds}; compare each kind by itself")
    first, tests, untested = runs[0], {}, {}
    ranking: Ranking | None = None
    for run in runs[1:]:
        reason = _why_untested(first, run, annotations)
        if reason is not None:
            untested[run.name] = reason
            continue
        ranking = ranking or _ranked(first, annotations)
        tests[run.name] = paired_test(ranking, _ranked(run, annotations), num_resamples=num_resamples, seed=seed)
    groups: dict[tuple[str, str | None], list[MeasuredRun]] = {}
    for run in runs:
        if run.recipe_sha256 is not None:
            groups.setdefault((run.recipe_sha256, run.truth_sha256), []).append(run)
    seeds = tuple(
        (tuple(run.name for run in group), over_seeds([run.stats[run.headline] for run in group]))
        for group in groups.values()
        if len(group) > 1
    )
    return Comparison(tuple(runs), tests, untested, seeds)


def _why_untested(first: MeasuredRun, run: MeasuredRun, annotations: Path | None) -> str | None:
    if first.headline != "AP":
        return "the paired test is for detections only; compare classifiers over seeds with detector study"
    for one in (first, run):
        if one.results is None:
            return f"{one.name} has no saved results; evaluate it with detector evaluate"
        if one.annotations is None and annotations is None:
            return f"the ground truth of {one.name} is not a COCO file; give one with --annotations"
    if first.truth_sha256 != run.truth_sha256:
        return f"{first.name} was measured on another ground truth"
    return None


def _ranked(run: MeasuredRun, annotations: Path | None) -> Ranking:
    path = annotations or run.annotations
    assert path is not None  # `_why_untested` has checked both
    assert run.results is not None
    found = read_coco(path, None)
    if run.category_ids is not None:  # evaluation left out the categories that are no class of the model
        measured = set(run.category_ids)
        found = with_categories(found, np.array([identifier in measured for identifier in found.category_ids]))
    truth = GroundTruth.of_annotations(found)
    if truth.sha256 != run.truth_sha256:
        raise DatasetError(
            f"{path}: {run.name} was measured on another ground truth; give its ground truth with --annotations"
        )
    return Ranking.of(truth, read_results(run.results, truth)[0])
