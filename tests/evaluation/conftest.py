"""Sets to score and the reference scorer, shared by the tests of evaluation."""

from __future__ import annotations

import contextlib
import copy
import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Scored = tuple[dict[str, Any], list[dict[str, Any]]]


def draw_random_set(seed: int) -> Scored:
    """A data set with crowds, empty images, several classes and all areas, and results of every quality."""
    rng = np.random.default_rng(seed)
    image_ids = rng.choice(10_000, int(rng.integers(3, 25)), replace=False).tolist()
    category_ids = sorted(rng.choice(90, int(rng.integers(1, 7)), replace=False).tolist())
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []

    def box(largest: float) -> list[float]:
        w, h = np.exp(rng.uniform(np.log(4), np.log(largest), 2))
        return [float(rng.uniform(0, 640 - w)), float(rng.uniform(0, 480 - h)), float(w), float(h)]

    for image_id in image_ids:
        if rng.random() < 0.15:
            continue
        for _ in range(int(rng.integers(0, 12))):
            found = box(300)
            crowd = int(rng.random() < 0.08)
            area = found[2] * found[3] * rng.uniform(0.4, 1)
            category = int(rng.choice(category_ids))
            annotations.append({"image_id": image_id, "category_id": category, "bbox": found, "area": area})
            annotations[-1] |= {"id": len(annotations), "iscrowd": crowd}
            for _ in range(int(rng.integers(0, 4 if not crowd else 8))):
                moved = (np.array(found) + rng.normal(0, 0.12, 4) * np.array(found)[[2, 3, 2, 3]]).tolist()
                label = category if rng.random() < 0.9 else int(rng.choice(category_ids))
                results.append({"image_id": image_id, "category_id": label, "bbox": moved})
    for _ in range(int(rng.integers(0, 150))):
        label, image_id = int(rng.choice(category_ids)), int(rng.choice(image_ids))
        results.append({"image_id": image_id, "category_id": label, "bbox": box(400)})
    for record in results:
        record["score"] = round(float(rng.random()), 2) if seed % 3 == 0 else float(rng.random())  # with ties
    truth = {
        "info": {},
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 480, "width": 640} for i in image_ids],
        "categories": [{"id": i, "name": f"class {i}"} for i in category_ids],
        "annotations": annotations,
    }
    return truth, results


def draw_tied_set(seed: int) -> Scored:
    """Boxes on a coarse grid, with areas at the very ends of the ranges: overlaps and scores are often equal."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []

    def box() -> list[float]:
        corner, sides = rng.choice([0, 16], 2), rng.choice([32, 40, 64], 2)
        return [*corner.astype(float).tolist(), *sides.astype(float).tolist()]

    for image_id in range(1, 7):
        for _ in range(int(rng.integers(0, 12))):
            found, area = box(), float(rng.choice([1023, 1024, 1025, 9215, 9216, 9217]))
            annotation = {"image_id": image_id, "category_id": int(rng.choice([2, 5])), "bbox": found, "area": area}
            annotations.append({**annotation, "id": len(annotations) + 1, "iscrowd": int(rng.random() < 0.15)})
        for _ in range(int(rng.integers(1, 20))):
            score, found = float(rng.choice([0.25, 0.5, 0.75])), box()
            if rng.random() < 0.05:
                found[2] = float(rng.choice([0.0, -8.0]))  # odd, but scored
            result = {"image_id": image_id, "category_id": int(rng.choice([2, 5])), "bbox": found, "score": score}
            results.append(result)
    truth = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 128, "width": 128} for i in range(1, 7)],
        "categories": [{"id": i, "name": f"class {i}"} for i in (2, 5)],
        "annotations": annotations,
    }
    return truth, results


def score_by_pycocotools(truth: dict[str, Any], results: list[dict[str, Any]]) -> COCOeval:
    """Score with the installed library alone, as its documentation says."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def draw_golden_twin() -> Scored:
    """Forty images with objects, crowds, near misses and false alarms, in numbers of two decimals."""
    draw = random.Random(20).random  # this one method gives the same numbers in every version of Python
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []

    def record(image: int, category: int, box: list[float], score: float) -> None:
        rounded = [round(v, 2) for v in box]
        results.append({"image_id": image, "category_id": category, "bbox": rounded, "score": round(score, 3)})

    for image in range(10, 50):
        for _ in range(int(7 * draw())):
            side, category = 8 * 30 ** draw(), (1, 3, 90)[int(3 * draw())]
            box = [round(300 * draw(), 2), round(200 * draw(), 2), round(side, 2), round(side * (0.5 + draw()), 2)]
            area, crowd = round(box[2] * box[3] * (0.4 + 0.6 * draw()), 2), int(draw() < 0.06)
            annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": category, "bbox": box})
            annotations[-1] |= {"area": area, "iscrowd": crowd}
            for _ in range(int(2.2 * draw()) + 3 * crowd):
                off = 0.3 * draw() ** 2
                moved = [v + off * (draw() - 0.5) * s for v, s in zip(box, [*box[2:], *box[2:]], strict=True)]
                record(image, category if draw() < 0.95 else 3, moved, 0.3 + 0.7 * draw())
        for _ in range(int(3 * draw())):
            record(image, 90, [300 * draw(), 200 * draw(), 10 + 90 * draw(), 10 + 90 * draw()], 0.7 * draw())
    images = [{"id": image, "file_name": f"{image}.jpg", "height": 480, "width": 640} for image in range(10, 50)]
    categories = [{"id": category, "name": str(category)} for category in (1, 3, 90)]
    return {"images": images, "categories": categories, "annotations": annotations}, results


@pytest.fixture(scope="session")
def random_set() -> Callable[[int], Scored]:
    """Draw a set with crowds, empty images, several classes and all areas, and results of every quality."""
    return draw_random_set


@pytest.fixture(scope="session")
def tied_set() -> Callable[[int], Scored]:
    """Draw a set full of equal scores and overlaps."""
    return draw_tied_set


@pytest.fixture(scope="session")
def golden_twin() -> Callable[[], Scored]:
    """Draw the embedded set whose numbers are known."""
    return draw_golden_twin


@pytest.fixture(scope="session")
def by_pycocotools() -> Callable[[dict[str, Any], list[dict[str, Any]]], COCOeval]:
    """Score with the installed library alone, as its documentation says."""
    return score_by_pycocotools
