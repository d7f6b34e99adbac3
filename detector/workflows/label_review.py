"""Review of labels: a ranked list of suspect labels of a split, and the page on which a person decides about them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from detector.data.coco import CocoAnnotations, read_coco
from detector.data.label_decisions import sha256_of
from detector.errors import DatasetError, DetectorError
from detector.evaluation.evaluator import detect_split
from detector.evaluation.label_suspects import Suspect, rank_suspects
from detector.evaluation.results_file import read_results
from detector.evaluation.review_page import review_page
from detector.evaluation.scoring_arrays import GroundTruth, Results
from detector.io.nouns import plural
from detector.models.checkpoint import ModelFile
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import build_predictor, load_model, matched, read_split, read_train
from detector.tasks.requests import SILENT, Observer
from detector.tasks.task import config_of_file, split_to_evaluate
from detector.training.run_folder import results_folder

_MAX_WRITTEN = 20_000  # places in the list of a large data set; each takes about 250 bytes


@dataclass(frozen=True)
class ReviewRequest:
    """Settings of a list of suspect labels: from a model, or from a results file with its annotations and images.

    Attributes:
        out: folder of the page and the list; None for a new one.
        num: number of places on the page.
        weights: model file, or None.
        overrides: texts such as `data=my.yaml`.
        split: split of the data set; None for val.
        results: COCO results file of any program, or None.
        annotations: with results: the COCO file of the labels.
        images: with results: the folder of the images.
    """

    out: Path | None = None
    num: int = 200
    weights: Path | None = None
    overrides: tuple[str, ...] = ()
    split: str | None = None
    results: Path | None = None
    annotations: Path | None = None
    images: Path | None = None


@dataclass(frozen=True)
class Review:
    """Written list of suspect labels.

    Attributes:
        page: the page.
        suspects: the places on it, the most suspect first.
        num_listed: number of places of the whole list, of which the page has the first.
        num_labels: number of labels.
        origin: sentence on whether the model was trained on these images.
    """

    page: Path
    suspects: tuple[Suspect, ...]
    num_listed: int
    num_labels: int
    origin: str

    def to_plain(self) -> dict[str, object]:
        """Return the list as plain data for JSON."""
        return {
            "page": str(self.page),
            "origin": self.origin,
            "num_labels": self.num_labels,
            "num_listed": self.num_listed,
            "suspects": [suspect.to_plain() for suspect in self.suspects],
        }


def review_labels(request: ReviewRequest, observer: Observer = SILENT) -> Review:
    """Rank the labels of a split by suspicion, and write the page `review.html` and the list `suspects.json`.

    Raises:
        CheckpointError: the model file cannot be read.
        DatasetError: the labels are in no COCO file, cannot be used, or there is nothing to list.
        ConfigError: an override is wrong.
        DetectorError: a file cannot be written.
    """
    annotations, results, origin, judged = (_from_results if request.results else _detected)(request, observer)
    sha256 = sha256_of(annotations.annotations)
    ranked = rank_suspects(GroundTruth.of_annotations(annotations), results)
    listed = tuple(suspect for suspect in ranked if suspect.category_id in judged)
    if not listed:
        raise DatasetError(f"{annotations.annotations}: expected labels or detections to list, got none; check both")
    shown = listed[: request.num]
    facts = [
        f"{annotations.annotations.name}: {plural(annotations.num_boxes, 'label')} in "
        f"{plural(len(annotations), 'image')}; the first {len(shown):,} of {plural(len(listed), 'place')}, the most "
        "suspect first.",
        origin,
    ]
    folder = results_folder(request.out, "labels")
    page = folder / "review.html"
    _write(page, review_page(shown, annotations, sha256, facts))
    review = Review(page, shown, len(listed), annotations.num_boxes, origin)
    written = [suspect.to_plain() for suspect in listed[:_MAX_WRITTEN]]
    _write(folder / "suspects.json", json.dumps({**review.to_plain(), "suspects": written}))
    return review


_Listed = tuple[CocoAnnotations, Results, str, set[int | None]]  # with the origin, and the categories to judge


def _from_results(request: ReviewRequest, observer: Observer) -> _Listed:
    if request.results is None or request.annotations is None or request.images is None:
        raise DatasetError("a results file: expected its annotations and the folder of images too; give all three")
    annotations = read_coco(request.annotations, request.images)
    results, problems = read_results(request.results, GroundTruth.of_annotations(annotations))
    for problem in (*annotations.problems, *problems):
        observer.note(str(problem))
    origin = "The detections were read from a file: make sure that their model did not learn from these labels."
    return annotations, results, origin, {None, *annotations.category_ids}


def _detected(request: ReviewRequest, observer: Observer) -> _Listed:
    if request.weights is None:
        raise DatasetError("expected a model file or a results file, got neither; give one of them")
    opened = load_model(request.weights, request.overrides)
    is_other = any(override.startswith(("data=", "data.")) for override in request.overrides)
    split = split_to_evaluate(opened.config, request.split, is_other, observer.note)
    annotations = read_split(opened.config, split, observer.report)
    if annotations.annotations.suffix.lower() != ".json":
        raise DatasetError(
            f"{annotations.annotations}: expected labels in a COCO file, got another format; convert them first with "
            "detector dataset to-coco"
        )
    origin = origin_of(opened.file, request.weights, annotations)
    loaded, part = matched(opened, annotations, observer.note, observer.warn)
    predictor = build_predictor(loaded, loaded.config.evaluate.batch_size)
    found = detect_split(predictor, part, loaded.config.evaluate, lambda done: observer.on_image(done, len(part)))
    for text in found.skipped:
        observer.note(f"skipped: {text}")
    # Labels of categories that the model lacks stay: they are not judged, but nothing is missing where they are.
    ranks = np.searchsorted(annotations.category_ids, part.category_ids)[found.detections.category_ranks]
    return annotations, replace(found.detections, category_ranks=ranks), origin, {None, *part.category_ids}


def origin_of(file: ModelFile, weights: Path, annotations: CocoAnnotations) -> str:
    """Return a sentence on whether a model was trained on the images of a split, as far as its file tells."""
    try:
        carried, _ = config_of_file(DetectionConfig, file, weights)
        learnt = _real_paths(read_train(carried)[0])
    except DetectorError:
        return "It is not known which images the model was trained on: its file names no training split that is here."
    shared = len(learnt & _real_paths(annotations))
    if not shared:
        return "The model was not trained on these images: none of them is in its training split."
    return (
        f"The model was trained on {shared:,} of these {len(annotations):,} images. It has learnt from their labels, "
        "wrong ones included, so the list misses more of them: a model trained on other images finds more."
    )


def _real_paths(annotations: CocoAnnotations) -> set[str]:
    return {os.path.realpath(annotations.path(index)) for index in range(len(annotations))}


def _write(path: Path, content: str) -> None:
    try:
        path.write_bytes(content.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise DetectorError(f"{path} cannot be written: {error.strerror}; give another folder") from error
