"""Benchmark of the label loop: damaged labels found in the first tenth of the list, and AP per hundred added images.

    python tools/benchmark_labels.py found WEIGHTS data=data/bccd.yaml --split val
    python tools/benchmark_labels.py found --results results.json --annotations instances_val.json
    python tools/benchmark_labels.py added data=data/bccd.yaml --seeds 3

`found` damages a tenth of the boxes on purpose, a third each moved, removed and given another class, lists all labels
by suspicion, and counts the damaged ones in the first tenth of the list. Random order of the same list is the baseline.
The detections do not depend on the labels, so many draws of the damage cost one prediction.

`added` simulates a data set that grows: from some labelled images of the training split, a detector is trained; further
images are added by their value or at random; a detector is trained on each set and evaluated on `val`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from detector.data.coco import CocoAnnotations, read_coco
from detector.data.coco_extras import no_extras
from detector.data.conversion import write_coco
from detector.data.dataset_editing import Portion, take
from detector.evaluation.evaluator import detect_split
from detector.evaluation.label_suspects import Suspect, overlaps, rank_suspects
from detector.evaluation.results_file import read_results
from detector.evaluation.scoring_arrays import GroundTruth, Results
from detector.tasks.detection_model import (
    build_predictor,
    evaluate_model,
    load_detection,
    load_model,
    matched,
    read_split,
)
from detector.workflows.train import train
from detector.workflows.unlabelled_images import UnlabelledRequest, rank_images

DAMAGED_SHARE, LOOKED_AT_SHARE = 0.1, 0.1
KINDS = ("moved", "removed", "swapped")
_Row = dict[str, Any]
_Damaged = tuple[str, _Row, _Row | None]  # kind, the row before and after; None if it is removed
_SAME_PLACE_IOU = 0.5
_STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}  # 97.5 % quantiles, by the number of values
# Short runs of the network that is shipped, so that the simulation fits into minutes of two cores.
_RECIPE = (
    *("input.size=128", "train.weights=yolox-nano", "optimizer.fine_tuning_lr=0.003", "loader.batch_size=8"),
    *("loader.workers=0", "augment.mosaic=0", "train.evaluations=1", "schedule.warmup_iterations=10"),
)


def damaged(truth: Mapping[str, Any], rng: np.random.Generator) -> tuple[dict[str, Any], list[_Damaged]]:
    """Return a COCO dictionary with a tenth of its boxes damaged, and the damages."""
    rows = [dict(row) for row in truth["annotations"]]
    size_of = {image["id"]: (image["width"], image["height"]) for image in truth["images"]}
    categories = [category["id"] for category in truth["categories"]]
    chosen = rng.choice(len(rows), round(DAMAGED_SHARE * len(rows)), replace=False).tolist()
    kind_of = {row: KINDS[number % len(KINDS)] for number, row in enumerate(chosen)}
    kept, damages = [], list[_Damaged]()
    for number, row in enumerate(rows):
        kind = kind_of.get(number)
        after: _Row | None = dict(row)
        if kind == "removed":
            after = None
        elif kind == "swapped":
            others = [category for category in categories if category != row["category_id"]]
            after = {**row, "category_id": int(rng.choice(others))}
        elif kind == "moved":
            after = {**row, "bbox": _moved(row["bbox"], size_of[row["image_id"]], rng)}
        if kind is not None:
            damages.append((kind, row, after))
        if after is not None:
            kept.append(after)
    return {**truth, "annotations": kept}, damages


def _moved(box: Sequence[float], image_wh: tuple[int, int], rng: np.random.Generator) -> list[float]:
    """Return a box moved by 0.4 to 1 of its sides, within the image."""
    left, top, width, height = box
    room = max(image_wh[0] - width, 0.0), max(image_wh[1] - height, 0.0)
    for _ in range(50):
        angle, share = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 1.0)
        x, y = left + share * width * np.cos(angle), top + share * height * np.sin(angle)
        if 0 <= x <= room[0] and 0 <= y <= room[1]:
            break
    return [float(np.clip(x, 0, room[0])), float(np.clip(y, 0, room[1])), width, height]


def num_found(damages: Sequence[_Damaged], looked_at: Sequence[Suspect]) -> dict[str, int]:
    """Return how many damages of each kind a person sees who looks at some places of the list.

    A damage is seen where the label itself is looked at, or a proposal at the place where the true box was.
    """
    labels = {(s.image_id, s.category_id, s.bbox) for s in looked_at if s.bbox is not None}
    proposals: dict[int, list[tuple[float, ...]]] = {}
    for suspect in looked_at:
        if suspect.proposed_bbox is not None:
            proposals.setdefault(suspect.image_id, []).append(suspect.proposed_bbox)
    counts = dict.fromkeys(KINDS, 0)
    for kind, before, after in damages:
        is_listed = after is not None and (
            (after["image_id"], after["category_id"], tuple(map(float, after["bbox"]))) in labels
        )
        near = proposals.get(before["image_id"], [])
        iou = overlaps(np.array([before["bbox"]], np.float64), np.array(near, np.float64).reshape(-1, 4))
        counts[kind] += is_listed or bool((iou >= _SAME_PLACE_IOU).any())
    return counts


def shares_found(truth: Mapping[str, Any], records: Results, num_draws: int) -> dict[str, float]:
    """Return the mean shares of damages found over some draws of the damage, of the list and of random order."""
    numbers: dict[str, list[float]] = {}
    for seed in range(num_draws):
        rng = np.random.default_rng(seed)
        labels, damages = damaged(truth, rng)
        listed = rank_suspects(GroundTruth.of_mapping(labels), records)
        num_looked_at = round(LOOKED_AT_SHARE * len(listed))
        found = num_found(damages, listed[:num_looked_at])
        shuffled = [listed[place] for place in rng.permutation(len(listed))[:num_looked_at].tolist()]
        num_labels = round(LOOKED_AT_SHARE * len(labels["annotations"]))
        row = {
            "list": sum(found.values()) / len(damages),
            "random": sum(num_found(damages, shuffled).values()) / len(damages),
            "list, as many places as a tenth of the labels": sum(num_found(damages, listed[:num_labels]).values())
            / len(damages),
            "places": len(listed),
            "damages": len(damages),
        }
        row |= {kind: found[kind] / max(sum(each[0] == kind for each in damages), 1) for kind in KINDS}
        for name, value in row.items():
            numbers.setdefault(name, []).append(value)
    means = {name: float(np.mean(values)) for name, values in numbers.items()}
    return {**means, "least": min(numbers["list"]), "ratio": means["list"] / max(means["random"], 1e-9)}


def _found(arguments: argparse.Namespace, weights: Path | None, overrides: Sequence[str]) -> None:
    if weights is None:
        annotations = read_coco(arguments.annotations, None)
        results, _ = read_results(arguments.results, GroundTruth.of_annotations(annotations))
    else:
        loaded = load_model(weights, overrides)
        loaded, annotations = matched(loaded, read_split(loaded.config, arguments.split), print)
        predictor = build_predictor(loaded, loaded.config.evaluate.batch_size)
        results = detect_split(predictor, annotations, loaded.config.evaluate).detections
    truth = annotations.ground_truth()
    truth["annotations"] = [row for row in truth["annotations"] if not row["iscrowd"]]
    print(json.dumps(shares_found(truth, results, arguments.draws), indent=1))


def _added(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Print AP after adding images by value and at random, for each seed, and the difference per hundred images."""
    gains = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(arguments.seeds):
            first, by_value, at_random = simulated(Path(temporary) / str(seed), overrides, seed, arguments)
            gains.append([100 * (ap - first) / arguments.added for ap in (by_value, at_random)])
            print(f"seed {seed}: AP {first:.4f}; by value {by_value:.4f}, at random {at_random:.4f}", flush=True)
    columns = np.array(gains).T
    for name, values in (("by value", columns[0]), ("at random", columns[1]), ("difference", columns[0] - columns[1])):
        low, high = interval(values)
        print(f"{name}: {values.mean():+.4f} AP per hundred images ({low:+.4f} to {high:+.4f}, 95 % over seeds)")


def interval(values: Any) -> tuple[float, float]:
    """Return the 95 % interval of the mean of 2 to 6 values, by Student's t; infinite for one value."""
    half = float("inf")
    if len(values) > 1:
        half = _STUDENT_T[len(values)] * float(np.std(values, ddof=1)) / float(np.sqrt(len(values)))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def simulated(
    folder: Path, overrides: Sequence[str], seed: int, arguments: argparse.Namespace
) -> tuple[float, float, float]:
    """Return AP on `val` of the first images, of these and the most valuable, and of these and random ones."""
    folder.mkdir(parents=True)
    config = load_detection("yolox-nano", overrides)
    whole, val = read_split(config, "train"), read_split(config, "val")
    order = np.random.default_rng(seed).permutation(len(whole))
    first, pool = order[: arguments.first], order[arguments.first :]
    start = _trained(folder / "first", whole, first, seed, arguments.steps)
    paths = {str(whole.path(index).absolute()): index for index in pool.tolist()}
    ranked = rank_images(UnlabelledRequest(start, tuple(paths)))
    by_value = np.array([paths[str(image.path)] for image in ranked[: arguments.added]])
    sets = {"value": by_value, "random": pool[: arguments.added]}  # the pool is in random order
    models = [start]
    for name, chosen in sets.items():
        images = np.concatenate([first, chosen])
        models.append(_trained(folder / name, whole, images, seed, arguments.steps))
    first_ap, value_ap, random_ap = (evaluate_model(load_model(model), val).metrics.ap for model in models)
    return first_ap, value_ap, random_ap


def _trained(folder: Path, whole: CocoAnnotations, images: Any, seed: int, steps: int) -> Path:
    """Train on some images and return the model file."""
    part = take(Portion(replace(whole, problems=()), no_extras(whole)), np.sort(images)).annotations
    folder.mkdir()
    write_coco(part, folder / "train.json")
    data = f"data={{name: coco, train: {{annotations: {folder / 'train.json'}, images: {whole.images}}}}}"
    own = [data, f"train.iterations={steps}", f"train.seed={seed}", f"train.project={folder}"]
    return train(load_detection("yolox-nano", [*_RECIPE, *own])).folder.best


def main() -> None:
    """Print the measurement that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("found", "added"))
    parser.add_argument("words", nargs="*", metavar="WEIGHTS key=value")
    parser.add_argument("--split", default="val", help="found: split whose labels are damaged (default val)")
    parser.add_argument("--results", type=Path, help="found: results file instead of a model, with --annotations")
    parser.add_argument("--annotations", type=Path, help="found: COCO file of --results")
    parser.add_argument("--draws", type=int, default=10, help="found: draws of the damage (default 10)")
    parser.add_argument("--seeds", type=int, default=3, help="added: repetitions (default 3)")
    parser.add_argument("--first", type=int, default=40, help="added: images to begin with (default 40)")
    parser.add_argument("--added", type=int, default=40, help="added: images to add (default 40)")
    parser.add_argument("--steps", type=int, default=60, help="added: training steps of each run (default 60)")
    arguments = parser.parse_args()
    overrides = [word for word in arguments.words if "=" in word]
    names = [word for word in arguments.words if "=" not in word]
    if arguments.what == "added":
        _added(arguments, overrides)
    else:
        _found(arguments, Path(names[0]) if names else None, overrides)


if __name__ == "__main__":
    main()
