"""What the numbers of an evaluation look like as text, and what stands beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector.cli.progress import number

if TYPE_CHECKING:
    from detector.evaluation.accuracy import ClassificationMetrics
    from detector.evaluation.coco_metrics import CocoMetrics
    from detector.evaluation.darknet_map import DarknetMap
    from detector.evaluation.evaluator import Conditions
    from detector.evaluation.voc_ap import VocMetrics
    from detector.structures.metrics import Metrics

_CHUNK_BYTES = 2**20
_MANY = 2**31  # detections of an image: as good as no limit


def coco_text(metrics: CocoMetrics) -> str:
    """The twelve COCO numbers, those with other limits and those of each class."""
    stats, sizes = metrics.stats, metrics.num_by_size
    lines = [
        f"{metrics.num_images} images, {metrics.num_objects} objects "
        f"({sizes['small']} small, {sizes['medium']} medium, {sizes['large']} large), "
        f"{metrics.num_crowds} crowd regions, {metrics.num_detections} detections",
        f"at most 100 detections per class and image; {metrics.num_beyond_limit} beyond that are not looked at",
        f"scored by {metrics.backend}",
        f"ground truth as scored: sha256 {metrics.ground_truth_sha256}",
        "",
        "        0.50:0.95   0.50    0.75   small  medium   large",
        "AP      " + "  ".join(f"{number(stats[n]):>7}" for n in ("AP", "AP50", "AP75", "APs", "APm", "APl")),
        "        1 per image      10     100   small  medium   large",
        "AR      " + "  ".join(f"{number(stats[n]):>7}" for n in ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl")),
        "",
        *(f"{name} {number(value)}" for name, value in metrics.other_limits.items()),
        f"precision {number(metrics.precision)}  recall {number(metrics.recall)}  (IoU 0.5, best F1 of each class)",
        "",
    ]
    rows = [
        (c.name, *map(number, (c.ap, c.ap50, c.ap75, c.ar)), str(c.num_objects), str(c.num_detections))
        for c in metrics.classes
    ]
    lines += columns([("class", "AP", "AP50", "AP75", "AR100", "objects", "detections"), *rows])
    return _said("\n".join(lines))


def classification_text(metrics: ClassificationMetrics) -> str:
    """Accuracy, of all images and of each class, with the class that each is most often taken for."""
    rows = []
    for index, (row, counts) in enumerate(zip(metrics.classes, metrics.confusion.tolist(), strict=True)):
        counts[index] = 0
        most = max(counts)
        taken_for = f"{metrics.classes[counts.index(most)].name} ({most})" if most else ""
        rows.append((row.name, number(row.accuracy), str(row.num_images), taken_for))
    without = f", {metrics.num_without_answer} without an answer" if metrics.num_without_answer else ""
    lines = [
        f"{metrics.num_images} images{without}",
        "  ".join(f"{name} {number(value, 4)}" for name, value in metrics.stats.items()),
        "",
        *columns([("class", "accuracy", "images", "most often taken for"), *rows]),
    ]
    return _said("\n".join(lines))


def metrics_text(metrics: Metrics) -> str:
    """The numbers that training measures, of either task."""
    from detector.evaluation.accuracy import ClassificationMetrics
    from detector.evaluation.coco_metrics import CocoMetrics

    if isinstance(metrics, CocoMetrics):
        return coco_text(metrics)
    assert isinstance(metrics, ClassificationMetrics)  # the other of the two
    return classification_text(metrics)


def voc_text(metrics: VocMetrics) -> str:
    """Pascal VOC's AP and that of each class."""
    how = f"{metrics.points}-point" if metrics.points else "area under the curve"
    rows = [(c.name, number(c.ap, 4), str(c.num_objects)) for c in metrics.classes]
    lines = [
        f"{metrics.num_images} images, {metrics.num_objects} objects, {metrics.num_difficult} difficult, "
        f"{metrics.num_detections} detections",
        f"ground truth as scored: sha256 {metrics.ground_truth_sha256}",
        "",
        f"Pascal VOC mAP ({how}, IoU {metrics.iou_threshold:g}) {number(metrics.mean_ap, 4)}",
        "",
        *columns([("class", "AP", "objects"), *rows]),
    ]
    return _said("\n".join(lines))


def darknet_text(metrics: DarknetMap) -> str:
    """What Darknet's `map` prints, with as many digits."""
    how = f"{metrics.points} points" if metrics.points else "area under the curve"
    at = f"above a score of {metrics.confidence:g}"
    rows = [(c.name, f"{100 * c.ap:.2f}%", str(c.num_right), str(c.num_wrong)) for c in metrics.classes]
    return "\n".join(
        [
            f"{metrics.num_images} images, {metrics.num_objects} objects, {metrics.num_detections} detections",
            f"ground truth as scored: sha256 {metrics.ground_truth_sha256}",
            "",
            f"Darknet mAP@{metrics.iou_threshold:.2f} ({how}) {metrics.mean_ap:.6f}, or {100 * metrics.mean_ap:.2f}%",
            f"{at}: precision {metrics.precision:.2f}, recall {metrics.recall:.2f}, F1 {metrics.f1:.2f}",
            f"{at}: TP {metrics.num_right}, FP {metrics.num_wrong}, FN {metrics.num_missed}, "
            f"average IoU {100 * metrics.mean_iou:.2f}%",
            "",
            *columns([("class", "AP", "TP", "FP"), *rows]),
        ]
    )


def conditions_text(conditions: Conditions) -> str:
    """Under which conditions a model was measured, on one line."""
    most = f"at most {conditions.max_detections} per image" if conditions.max_detections < _MANY else "no limit"
    height, width = conditions.input_hw
    agnostic = ", over all classes" if conditions.class_agnostic else ""
    suppression = f"suppression {conditions.nms} above IoU {conditions.iou:g}{agnostic}"
    return (
        f"confidence {conditions.confidence:g}, {'no suppression' if conditions.nms == 'none' else suppression}, "
        f"{most}; input {width} x {height}, {conditions.fit}, resized as by {conditions.arithmetic}"
        + (f"; views: {conditions.views}" if conditions.views else "")
        + (f"; computed in {conditions.precision}" if conditions.precision != "fp32" else "")
    )


def file_entry(path: Path) -> dict[str, Any]:
    """A file that numbers were computed from: its path and, of a JSON file, the sha256 of its bytes."""
    if path.suffix != ".json":  # a description of a data set, whose labels stand elsewhere
        return {"file": str(path), "sha256": None}
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return {"file": str(path), "sha256": digest.hexdigest()}


def file_text(what: str, entry: dict[str, Any]) -> str:
    """The same as a line."""
    return f"{what} {entry['file']}" + (f", sha256 {entry['sha256']}" if entry["sha256"] else "")


def _said(text: str) -> str:
    """The text, with a word on n/a where it occurs."""
    return f"{text}\n\nn/a: no ground truth" if " n/a" in text else text


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(text.rjust(w) for text, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
