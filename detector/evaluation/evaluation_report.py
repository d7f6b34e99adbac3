"""Report of an evaluation: a self-contained page, the numbers as JSON, charts and pictures as files."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from detector.data.coco import CocoAnnotations
from detector.errors import DetectorError, MediaError
from detector.evaluation.analysis import Analysis
from detector.evaluation.coco_metrics import CocoMetrics
from detector.evaluation.number_text import number_text
from detector.evaluation.report_charts import charts_of
from detector.evaluation.worst_errors import Mistake
from detector.media.closeups import draw_closeup
from detector.media.html import chart, embedded, page_of, table, text
from detector.media.images import load_image, write_image
from detector.structures.boxes import xywh_to_xyxy

_WRONG_RGB, _LABEL_RGB, _OTHER_RGB = (230, 60, 30), (40, 160, 90), (70, 110, 200)
_MAX_SUSPECTS_DRAWN, _MAX_CLASSES_LISTED = 24, 200
_Drawn = tuple[npt.NDArray[np.float64], list[str], list[tuple[int, int, int]]]  # boxes, captions and colours
_MEANINGS = {
    "classification": "on an object of another class",
    "localisation": "of the right class, but badly placed",
    "both": "of the wrong class and badly placed",
    "duplicate": "on an object that a better detection has",
    "background": "on no annotated object",
    "missed": "objects that no detection refers to",
}


def write_report(
    folder: Path,
    title: str,
    metrics: CocoMetrics,
    analysis: Analysis,
    annotations: CocoAnnotations,
    document: Mapping[str, object],
    facts: Sequence[str],
) -> Path:
    """Write `report.html`, `metrics.json`, `classes.csv`, `label_errors.json`, `charts/` and `pictures/`.

    Args:
        folder: folder of the report; created if it does not exist.
        title: title of the page.
        metrics: the COCO numbers.
        analysis: the analysis of the same detections.
        annotations: the ground truth; without a folder of images there are no pictures.
        document: content of `metrics.json` besides the analysis.
        facts: lines on the conditions of the measurement.

    Returns:
        The page.

    Raises:
        DetectorError: a file cannot be written.
    """
    charts = list(charts_of(analysis))
    for name, _, picture in charts:
        _write(folder / "charts" / f"{name}.png", picture)
    index_of = {int(image_id): index for index, image_id in enumerate(annotations.image_ids.tolist())}
    names = {m.image_id: annotations.file_names[index_of[m.image_id]] for m in _mistakes(analysis)}
    pictures = _draw(folder / "pictures", analysis, annotations, index_of)
    parts = [
        *_head(title, metrics, analysis, facts),
        *_numbers(metrics, analysis),
        *_errors(analysis, charts),
        *_pictures("Confident false positives", analysis.false_positives, names, pictures),
        *_pictures("Missed objects, the largest first", analysis.missed, names, pictures),
        *_suspects(analysis, names, pictures),
    ]
    suspects = [{"file_name": names[m.image_id], **m.to_plain()} for m in analysis.suspects]
    _write(folder / "label_errors.json", json.dumps(suspects, indent=1).encode())
    _write(folder / "metrics.json", json.dumps({**document, "analysis": analysis.to_plain()}, indent=1).encode())
    _write(folder / "classes.csv", _class_csv(metrics, analysis).encode("utf-8"))
    _write(folder / "report.html", page_of(f"{title}: evaluation", parts).encode("utf-8"))
    return folder / "report.html"


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise DetectorError(f"{path}: the report cannot be written, {error.strerror}; give another folder") from error


def _mistakes(analysis: Analysis) -> tuple[Mistake, ...]:
    return (*analysis.false_positives, *analysis.missed, *analysis.suspects)


def _anchor(mistake: Mistake) -> str:
    """Return the id of the picture of a mistake on the page."""
    box = mistake.detected_xywh or mistake.labelled_xywh or ()
    return "-".join(["mistake", str(mistake.image_id), *(f"{value:.0f}" for value in box)])


def _links(analysis: Analysis, of: Callable[[Mistake], Iterable[str | None]]) -> dict[str, str]:
    """Return the ids of the first pictures of mistakes by a property of theirs."""
    drawn = (*analysis.false_positives, *analysis.missed, *analysis.suspects[:_MAX_SUSPECTS_DRAWN])
    return {name: _anchor(mistake) for mistake in drawn[::-1] for name in of(mistake) if name}


def _head(title: str, metrics: CocoMetrics, analysis: Analysis, facts: Sequence[str]) -> Iterator[str]:
    shown = {"AP": "AP", "AP50": "AP50", "APs": "AP of small objects"}
    found = analysis.intervals.stats
    numbers = [
        f"<span class='title'>{title} {number_text(found[name].value)}</span> "
        f"<span class='soft'>({number_text(found[name].low)} to {number_text(found[name].high)})</span>"
        for name, title in shown.items()
        if name in found
    ]
    yield f"<h1>{text(title)}</h1>"
    yield (
        f"<p class='soft'>Evaluation on {metrics.num_images:,} images with {metrics.num_objects:,} objects, "
        f"{metrics.num_crowds:,} crowd regions; {metrics.num_detections:,} detections.</p>"
    )
    yield f"<p class='verdict'>{', '.join(numbers)}</p>"
    best = analysis.overall
    if best is not None:
        reached = "" if best.is_reached else " (no threshold reaches the target; this one is nearest)"
        yield (
            f"<p>Threshold for {text(analysis.target)}: <span class='title'>{best.confidence:.3f}</span>, where "
            f"precision is {best.precision:.3f} and recall {best.recall:.3f}{reached}.</p>"
        )
    yield "<div class='card'>" + "".join(f"<p class='soft'>{text(fact)}</p>" for fact in facts)
    yield (
        f"<p class='soft'>In brackets after a number: its {analysis.intervals.level:.0%} interval over "
        f"{analysis.intervals.num_resamples:,} sets of images drawn from these (bootstrap).</p></div>"
    )


def _numbers(metrics: CocoMetrics, analysis: Analysis) -> Iterator[str]:
    stats = metrics.stats
    yield "<h2>Numbers</h2>"
    yield table(list(stats), [[number_text(value) for value in stats.values()]])
    heads = ("class", "objects", "AP", "interval", "AP50", "AP75", "threshold", "precision", "recall", "F1")
    rows = []
    by_class = zip(metrics.classes, analysis.intervals.class_ap, analysis.by_class, strict=True)
    for row, interval, best in sorted(by_class, key=lambda entry: -entry[0].num_objects)[:_MAX_CLASSES_LISTED]:
        at_best = () if best is None else (best.confidence, best.precision, best.recall, best.f1)
        bounds = f"{number_text(interval.low)} to {number_text(interval.high)}"
        ap = number_text(row.ap), bounds, number_text(row.ap50), number_text(row.ap75)
        rows.append([row.name, f"{row.num_objects:,}", *ap, *([f"{v:.3f}" for v in at_best] or ["n/a"] * 4)])
    yield table(heads, rows, _links(analysis, lambda mistake: (mistake.detected_as, mistake.labelled_as)))
    if len(metrics.classes) > _MAX_CLASSES_LISTED:
        yield f"<p class='soft'>and {len(metrics.classes) - _MAX_CLASSES_LISTED} more classes, in classes.csv</p>"


def _errors(analysis: Analysis, charts: Sequence[tuple[str, str, bytes]]) -> Iterator[str]:
    errors = analysis.errors
    yield "<h2>Errors</h2>"
    yield table(
        ("error", "meaning", "count", "AP50 lost"),
        [(name, _MEANINGS[name], f"{errors.counts[name]:,}", number_text(cost)) for name, cost in errors.costs.items()],
        _links(analysis, lambda mistake: (mistake.kind,)),
    )
    notes = {
        "calibration": f"D-ECE {number_text(analysis.calibration.error)}, {_direction(analysis.calibration.excess)}",
        "calibration-shown": f"D-ECE {number_text(analysis.calibration_shown.error)}, "
        f"{_direction(analysis.calibration_shown.excess)}",
        "errors": "In brackets: the count. Fixing one kind changes the cost of the others, so they do not add up.",
    }
    yield "<div class='charts'>"
    for name, title, picture in charts:
        yield chart(title, picture, text(notes.get(name, "")) if name in notes else "")
    yield "</div>"


def _direction(excess: float) -> str:
    if math.isnan(excess):
        return "no detections"
    return f"scores are {abs(excess):.3f} too {'high' if excess > 0 else 'low'} on average"


def _caption(mistake: Mistake, file_name: str) -> str:
    said = mistake.advice or mistake.kind
    if mistake.score is not None:
        said += f", {mistake.detected_as} {mistake.score:.2f}"
    if mistake.labelled_as is not None:
        said += f"{' on' if mistake.score is not None else ':'} {mistake.labelled_as}"
    if mistake.overlap is not None:
        said += f", IoU {mistake.overlap:.2f}"
    return f"{said}; {file_name}"


def _pictures(
    title: str, mistakes: Sequence[Mistake], names: Mapping[int, str], pictures: Mapping[int, bytes]
) -> Iterator[str]:
    if not mistakes:
        return
    yield f"<h2>{text(title)}</h2>"
    if pictures:
        yield "<p class='soft'>Red: the detection. Green: the label it refers to. Blue: other labels.</p>"
    yield "<div class='pictures'>"
    for mistake in mistakes:
        caption, figure = text(_caption(mistake, names[mistake.image_id])), f"<figure id='{_anchor(mistake)}'>"
        if id(mistake) in pictures:
            source = embedded(pictures[id(mistake)], "jpeg")
            yield f"{figure}<img src='{source}' alt='{caption}'><figcaption>{caption}</figcaption></figure>"
        else:
            yield f"{figure}<figcaption>{caption}</figcaption></figure>"
    yield "</div>"


def _suspects(analysis: Analysis, names: Mapping[int, str], pictures: Mapping[int, bytes]) -> Iterator[str]:
    if not analysis.suspects:
        return
    drawn = analysis.suspects[:_MAX_SUSPECTS_DRAWN]
    yield from _pictures("Labels that may be wrong", drawn, names, pictures)
    rows = [
        (names[m.image_id], m.advice, "" if m.score is None else f"{m.score:.2f}",
         ", ".join(f"{v:.0f}" for v in m.detected_xywh or m.labelled_xywh or ()))
        for m in analysis.suspects
    ]  # fmt: skip
    yield f"<details><summary>The list of {len(rows)}, also in label_errors.json</summary>"
    yield table(("image", "question", "score", "box x, y, width, height"), rows) + "</details>"


def _class_csv(metrics: CocoMetrics, analysis: Analysis) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["class", "category_id", "objects", "detections", "AP", "AP_low", "AP_high", "AP50", "AP75",
                     "AR100", "threshold", "precision", "recall", "F1"])  # fmt: skip
    for row, interval, best in zip(metrics.classes, analysis.intervals.class_ap, analysis.by_class, strict=True):
        at_best = () if best is None else (best.confidence, best.precision, best.recall, best.f1)
        numbers = (row.ap, interval.low, interval.high, row.ap50, row.ap75, row.ar, *at_best)
        written = ["" if math.isnan(value) else repr(value) for value in numbers]
        writer.writerow([row.name, row.category_id, row.num_objects, row.num_detections, *written])
    return file.getvalue()


def _draw(
    folder: Path, analysis: Analysis, annotations: CocoAnnotations, index_of: Mapping[int, int]
) -> dict[int, bytes]:
    """Write the pictures of mistakes and return them as JPEGs, by the identity of the mistake."""
    pictures: dict[int, bytes] = {}
    if annotations.images is None:
        return pictures
    numbered = (
        *((f"false-positive-{n:02}", m) for n, m in enumerate(analysis.false_positives, start=1)),
        *((f"missed-{n:02}", m) for n, m in enumerate(analysis.missed, start=1)),
        *((f"label-{n:02}", m) for n, m in enumerate(analysis.suspects[:_MAX_SUSPECTS_DRAWN], start=1)),
    )
    for name, mistake in numbered:
        try:
            image = load_image(annotations.path(index_of[mistake.image_id]), 3).pixels
            folder.mkdir(parents=True, exist_ok=True)
        except MediaError:
            continue  # evaluation has reported the image
        except OSError as error:
            raise DetectorError(f"{folder}: the pictures cannot be written, {error.strerror}") from error
        boxes, captions, colours = _boxes(analysis, mistake)
        num_meant = (mistake.detected_xywh is not None) + (mistake.labelled_xywh is not None)
        path = folder / f"{name}.jpg"
        write_image(path, draw_closeup(image, boxes, captions, colours, num_meant))
        pictures[id(mistake)] = path.read_bytes()
    return pictures


def _boxes(analysis: Analysis, mistake: Mistake) -> _Drawn:
    """Return the boxes of a picture: other objects in blue, the label in green, the detection in red, on top."""
    truth = analysis.truth
    labelled = list(mistake.labelled_xywh or ())
    others = [box for box in truth.boxes_xywh[truth.image_ranks == mistake.image].tolist() if box != labelled]
    boxes, captions, colours = others, [""] * len(others), [_OTHER_RGB] * len(others)
    if mistake.labelled_xywh is not None:
        boxes.append(list(mistake.labelled_xywh))
        captions.append(mistake.labelled_as if mistake.detected_xywh is None and mistake.labelled_as else "")
        colours.append(_LABEL_RGB)
    if mistake.detected_xywh is not None:
        boxes.append(list(mistake.detected_xywh))
        captions.append(f"{mistake.detected_as} {mistake.score:.2f}")
        colours.append(_WRONG_RGB)
    return xywh_to_xyxy(np.array(boxes, np.float64).reshape(-1, 4)), captions, colours
