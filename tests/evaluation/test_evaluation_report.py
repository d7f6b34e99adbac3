from __future__ import annotations

import csv
import html.parser
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.data.coco import CocoAnnotations, read_coco
from detector.data.problems import Findings
from detector.errors import DetectorError
from detector.evaluation.analysis import Analysis, analyse
from detector.evaluation.coco_metrics import CocoMetrics, score_results
from detector.evaluation.evaluation_report import write_report
from detector.evaluation.results_file import checked_results
from detector.evaluation.scoring_arrays import GroundTruth
from detector.media.images import read_image, write_image

Scored = tuple[dict[str, Any], list[dict[str, Any]]]
VOID = {"meta", "img", "br"}
HOSTILE = "<script>alert(1)</script> & 'x' $a_b$"


class Checker(html.parser.HTMLParser):
    """Parser that rejects tags not closed in order, and collects what a page would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), name
            if name in ("src", "href", "srcset", "action", "data"):
                self.addresses.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked_page(page: Path) -> tuple[str, Checker]:
    text = page.read_text("utf-8")
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(checker.seen)
    assert all(address.startswith(("data:image/", "#")) for address in checker.addresses)
    assert "url(" not in text
    assert "@import" not in text
    return text, checker


def measured(truth: dict[str, Any], results: list[dict[str, Any]], folder: Path, images: bool) -> Any:
    """Metrics, analysis and annotations of a set whose file and images are written to disk."""
    (folder / "truth.json").write_text(json.dumps(truth))
    if images:
        (folder / "images").mkdir()
        grey = np.full((480, 640, 3), 120, np.uint8)
        for image in truth["images"]:
            write_image(folder / "images" / image["file_name"], grey)
    annotations = read_coco(folder / "truth.json", folder / "images" if images else None)
    ground_truth = GroundTruth.of_annotations(annotations)
    columns = checked_results(results, ground_truth, Findings("the test"))
    return score_results(ground_truth, columns), analyse(ground_truth, columns, num_resamples=20), annotations


@pytest.fixture
def written(random_set: Callable[[int], Scored], tmp_path: Path) -> tuple[Path, CocoMetrics, Analysis, CocoAnnotations]:
    truth, results = random_set(1)
    truth["categories"][0]["name"] = HOSTILE
    metrics, analysis, annotations = measured(truth, results, tmp_path, images=True)
    page = write_report(tmp_path / "out" / "r", HOSTILE, metrics, analysis, annotations, {"AP": metrics.ap}, [HOSTILE])
    return page, metrics, analysis, annotations


def test_the_page_is_self_contained_and_escapes_names(
    written: tuple[Path, CocoMetrics, Analysis, CocoAnnotations],
) -> None:
    page, metrics, analysis, _ = written
    text, checker = checked_page(page)
    assert HOSTILE not in text
    assert "&lt;script&gt;alert(1)" in text
    assert f"AP {metrics.ap:.3f}" in text
    assert f"{analysis.intervals.stats['AP'].low:.3f} to {analysis.intervals.stats['AP'].high:.3f}" in text
    num_pictures = len(analysis.false_positives) + len(analysis.missed) + min(len(analysis.suspects), 24)
    num_charts = len(list((page.parent / "charts").iterdir()))
    assert num_pictures > 20
    assert checker.seen.count("img") == num_pictures + num_charts
    assert len(list((page.parent / "pictures").iterdir())) == num_pictures
    links = re.findall(r"<td><a href='#([^']+)'>", text)  # from classes and kinds of errors to the pictures
    assert len(links) > 3
    assert set(links) <= set(re.findall(r"<figure id='([^']+)'>", text))


def test_the_charts_and_pictures_are_images_of_a_readable_size(
    written: tuple[Path, CocoMetrics, Analysis, CocoAnnotations],
) -> None:
    folder = written[0].parent
    names = {path.stem for path in (folder / "charts").iterdir()}
    assert {"errors", "precision-recall", "precision", "recall", "f1", "confusion", "calibration", "size"} <= names
    for path in (folder / "charts").iterdir():
        picture = read_image(path)
        assert min(picture.shape[:2]) > 100, path
        assert picture.std() > 5, path
    for path in (folder / "pictures").iterdir():
        picture = read_image(path).astype(int)
        assert max(picture.shape[:2]) == 360
        drawn = np.abs(picture - 120).max(axis=2) > 60
        assert drawn.sum() > 50, path


def test_the_numbers_are_also_json_and_csv(written: tuple[Path, CocoMetrics, Analysis, CocoAnnotations]) -> None:
    page, metrics, analysis, annotations = written
    document = json.loads((page.parent / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert document["AP"] == metrics.ap
    assert document["analysis"]["intervals"]["AP"]["value"] == metrics.ap
    assert document["analysis"]["errors"]["AP50"] == metrics.stats["AP50"]
    assert document["analysis"]["thresholds"]["overall"]["confidence"] == analysis.confidence
    assert np.array(document["analysis"]["confusion"]["counts"]).tolist() == analysis.confusion.tolist()
    with (page.parent / "classes.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [c.name for c in metrics.classes]
    assert [float(row["AP"]) for row in rows if row["AP"]] == [c.ap for c in metrics.classes if not math.isnan(c.ap)]
    suspects = json.loads((page.parent / "label_errors.json").read_text())
    assert len(suspects) == len(analysis.suspects)
    assert {s["file_name"] for s in suspects} <= set(annotations.file_names)
    assert all(s["advice"] for s in suspects)


def test_without_images_there_is_a_page_without_pictures(random_set: Callable[[int], Scored], tmp_path: Path) -> None:
    metrics, analysis, annotations = measured(*random_set(2), tmp_path, images=False)
    page = write_report(tmp_path / "out", "a", metrics, analysis, annotations, {}, [])
    _, checker = checked_page(page)
    assert not (tmp_path / "out" / "pictures").exists()
    assert checker.seen.count("img") == len(list((tmp_path / "out" / "charts").iterdir()))


@pytest.mark.parametrize("what", ["no objects", "no detections", "neither", "one class of many"])
def test_an_almost_empty_set_has_a_report(what: str, random_set: Callable[[int], Scored], tmp_path: Path) -> None:
    truth, results = random_set(1)
    if what in ("no objects", "neither"):
        truth["annotations"] = []
    if what in ("no detections", "neither"):
        results = []
    if what == "one class of many":
        truth["categories"] += [{"id": 1000 + i, "name": f"unused {i}"} for i in range(60)]
    metrics, analysis, annotations = measured(truth, results, tmp_path, images=False)
    page = write_report(tmp_path / "out", what, metrics, analysis, annotations, {}, [])
    text, _ = checked_page(page)
    assert "nan" not in text.replace("unused", "").split("<h2>Errors")[0].split("<main>")[1]
    json.loads((tmp_path / "out" / "metrics.json").read_text(), parse_constant=pytest.fail)


def test_a_folder_that_cannot_be_created_is_reported(random_set: Callable[[int], Scored], tmp_path: Path) -> None:
    metrics, analysis, annotations = measured(*random_set(1), tmp_path, images=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(DetectorError, match=r"report cannot be written.*give another folder"):
        write_report(tmp_path / "file" / "out", "a", metrics, analysis, annotations, {}, [])
