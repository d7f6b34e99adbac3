"""Report as one page of HTML with embedded pictures, without scripts and external files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from detector.data.doctor.box_checks import tabulate
from detector.data.doctor.findings import ClassSummary, Offender, Report, SplitSummary, Suggestion
from detector.errors import MediaError
from detector.io.nouns import plural
from detector.media import charts
from detector.media.drawing import as_rgb, draw_boxes
from detector.media.html import embedded, page_of, text
from detector.media.images import load_image
from detector.structures.boxes import xywh_to_xyxy
from detector.structures.letterbox import PADDING_VALUE, Image

_DRAWN_PX = 360
_JPEG_QUALITY = 82
# Shares of an image's longer side: the largest margin shown around it, the largest box that is shown close up, and the
# smallest close-up.
_MOST_AROUND, _LEAST_SEEN, _CLOSE_UP = 0.15, 0.04, 0.2
_OFFENDING_RGB, _OTHER_RGB = (230, 60, 30), (150, 170, 190)
_MAX_CLASSES_LISTED = 200
_VERDICTS = {"error": "Training will stop or mislead", "warning": "Usable, with warnings", "note": "Clean"}


def page(report: Report) -> str:
    """Return the complete page; its pictures are drawn from the images."""
    parts = [
        *_head(report),
        *_split_table(report.splits),
        *_findings(report),
        *_suggestions(report.suggestions),
        *_charts(report),
        *_class_table(report),
    ]
    return page_of(f"{report.source}: data set check", parts)


def _head(report: Report) -> Iterator[str]:
    worst = next((s for s in ("error", "warning") if any(f.severity == s for f in report.findings)), "note")
    counted = [
        plural(report.num(severity), severity) for severity in ("error", "warning", "note") if report.num(severity)
    ]
    height, width = report.canvas_hw
    yield f"<h1>{text(report.source)}</h1>"
    yield f"<p class='soft'>Data set check. Checked: {text(report.checked)}; network input {width} x {height}.</p>"
    badge = "good" if worst == "note" else worst
    yield f"<p class='verdict'><span class='badge {badge}'>{_VERDICTS[worst]}</span>{', '.join(counted)}</p>"


def _split_table(splits: Sequence[SplitSummary]) -> Iterator[str]:
    if not splits:
        return
    heads = ("split", "images", "empty", "objects", "crowd", "classes", "most per image", "median image",
             "object size 5 / 50 / 95 %", "small / medium / large")  # fmt: skip
    yield "<div class='card scroll'><table><tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"
    for s in splits:
        sizes = " / ".join(f"{value:.0f}" for value in s.object_px) + " px"
        shares = " / ".join(f"{value / max(s.num_objects, 1):.0%}" for value in s.num_small_medium_large)
        cells = (f"{s.num_images:,}", f"{s.num_empty:,}", f"{s.num_objects:,}", f"{s.num_crowds:,}", s.num_classes,
                 s.max_objects, f"{s.median_image_wh[0]} x {s.median_image_wh[1]}", sizes, shares)  # fmt: skip
        yield f"<tr><td title='{text(s.annotations)}'>{text(s.name)}</td>"
        yield "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    yield "</table></div>"


def _findings(report: Report) -> Iterator[str]:
    yield "<h2>Findings</h2>"
    if not report.findings:
        yield "<div class='card'>Nothing to report.</div>"
    for finding in report.findings:
        yield f"<div class='card finding {finding.severity}'>"
        yield f"<p><span class='badge {finding.severity}'>{finding.severity}</span>"
        yield f"<span class='title'>{text(finding.title)}</span> <span class='soft'>{finding.extent()}</span></p>"
        yield f"<p>{text(finding.advice)}</p>"
        pictures = list(_pictures(report, finding.offenders))
        if pictures:
            yield "<div class='pictures'>" + "\n".join(pictures) + "</div>"
        rest = finding.examples[len(pictures) :]
        if rest:
            yield "<ul>" + "".join(f"<li><code>{text(example)}</code></li>" for example in rest) + "</ul>"
        yield f"<p class='soft'><code>{finding.code}</code></p></div>"


def _pictures(report: Report, offenders: Sequence[Offender]) -> Iterator[str]:
    for offender in offenders:
        picture = draw_offender(report, offender)
        if picture is not None:
            ok, encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
            if ok:
                caption = text(offender.caption)
                source = embedded(encoded.tobytes(), "jpeg")
                yield f"<figure><img src='{source}' alt='{caption}'><figcaption>{caption}</figcaption></figure>"


def draw_offender(report: Report, offender: Offender, longer_px: int = _DRAWN_PX) -> Image | None:
    """Draw an image with the boxes of a finding in red and its other boxes in grey.

    Boxes that extend beyond the image get a margin, small boxes are shown close up.

    Args:
        report: the report with the annotations.
        offender: the image and its boxes.
        longer_px: longer side of the picture.

    Returns:
        uint8 (H, W, 3), RGB; None if the image cannot be read.
    """
    annotations = report.annotations[offender.split]
    try:
        image = as_rgb(load_image(annotations.path(offender.image), 3).pixels)
    except MediaError:
        return None
    rows = np.arange(annotations.offsets[offender.image], annotations.offsets[offender.image + 1])
    is_meant = np.isin(rows, offender.rows)
    order = np.argsort(is_meant, kind="stable")  # the boxes of the finding on top
    source_xyxy = xywh_to_xyxy(annotations.boxes_xywh[rows])[order]
    x1, y1, x2, y2 = _view(image.shape[:2], source_xyxy[is_meant[order]])
    height, width = image.shape[:2]
    above, below, left, right = max(0, -y1), max(0, y2 - height), max(0, -x1), max(0, x2 - width)
    inside = image[max(0, y1) : min(height, y2), max(0, x1) : min(width, x2)]
    grey = (PADDING_VALUE,) * 3
    view = cv2.copyMakeBorder(inside, above, below, left, right, cv2.BORDER_CONSTANT, value=grey)
    scale = longer_px / max(view.shape[:2])
    drawn_wh = [max(1, round(side * scale)) for side in (view.shape[1], view.shape[0])]
    drawn = cv2.resize(view, drawn_wh, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    boxes = ((source_xyxy - (x1, y1, x1, y1)) * scale).clip(-longer_px, 2 * longer_px).astype(np.float32)
    names = [annotations.class_names[label] for label in annotations.labels[rows][order]]
    meant = is_meant[order].tolist()
    captions = [name if is_one else "" for name, is_one in zip(names, meant, strict=True)]
    colours = [_OFFENDING_RGB if is_one else _OTHER_RGB for is_one in meant]
    return draw_boxes(np.asarray(drawn, np.uint8), boxes, captions, colours)


def _view(image_hw: tuple[int, ...], meant_xyxy: npt.NDArray[np.float64]) -> list[int]:
    """Return the part of an image to show, x1, y1, x2, y2: the image and boxes beyond it, or a close-up."""
    height, width = image_hw
    if not len(meant_xyxy):
        return [0, 0, width, height]
    room = _MOST_AROUND * max(height, width)
    least, greatest = meant_xyxy[:, :2].min(axis=0), meant_xyxy[:, 2:].max(axis=0)
    if (greatest - least).max() >= _LEAST_SEEN * max(height, width):
        least = np.maximum(np.minimum(least, 0), -room)
        greatest = np.minimum(np.maximum(greatest, (width, height)), np.array([width, height]) + room)
    else:
        centre = ((least + greatest) / 2).clip(0, (width, height))
        half = max(4 * float((greatest - least).max()), _CLOSE_UP * max(height, width) / 2)
        least, greatest = np.maximum(centre - half, 0), np.minimum(centre + half, (width, height))
    return [*np.floor(least).astype(int).tolist(), *np.ceil(greatest).astype(int).tolist()]


def _suggestions(suggestions: Sequence[Suggestion]) -> Iterator[str]:
    if suggestions:
        yield "<h2>Suggestions</h2>"
    for s in suggestions:
        yield f"<div class='card'><p><span class='title'>{text(s.name)}</span> <code>{text(s.value)}</code></p>"
        yield f"<p class='soft'>{text(s.reason)}</p></div>"


def _charts(report: Report) -> Iterator[str]:
    if not any(split.num_objects for split in report.splits):
        return
    yield "<h2>Charts</h2><div class='charts'>"
    for title, picture in drawn_charts(report):
        yield f"<div class='card'><h3>{title}</h3><img src='{embedded(picture, 'png')}' alt='{title}'></div>"
    yield "</div>"


def drawn_charts(report: Report) -> Iterator[tuple[str, bytes]]:
    """Draw the charts; yield a title and a PNG for each."""
    splits = report.annotations
    tables = {name: tabulate(split, report.canvas_hw, "letterbox") for name, split in splits.items()}
    counts = {name: [entry.num_objects.get(name, 0) for entry in report.classes] for name in splits}
    sides = {name: np.sqrt(table.clipped_wh.prod(axis=1)) for name, table in tables.items()}
    wh = np.concatenate([table.canvas_wh for table in tables.values()])
    centres = [(t.source_xyxy[:, :2] + t.source_xyxy[:, 2:]) / 2 / t.image_wh for t in tables.values()]
    images = {name: split.image_hw[(split.image_hw > 0).all(axis=1)][:, ::-1] for name, split in splits.items()}
    num = {name: np.bincount(table.image, minlength=len(splits[name])) for name, table in tables.items()}
    anchors: list[tuple[float, float]] = next((s.details["wh"] for s in report.suggestions if s.name == "anchors"), [])
    height, width = report.canvas_hw
    yield "Objects of each class", charts.class_chart([entry.name for entry in report.classes], counts)
    yield (
        "Size of objects in the images",
        charts.size_chart(sides, "square root of the area in pixels", (charts.COCO_SMALL_PX, charts.COCO_MEDIUM_PX)),
    )
    yield f"Shape of objects at {width} x {height}", charts.shape_chart(wh, anchors, "pixels on the canvas")
    yield "Positions of objects", charts.place_chart(np.concatenate(centres))
    yield "Objects per image", charts.count_chart(num)
    yield "Size of images", charts.image_chart(images)


def _class_table(report: Report) -> Iterator[str]:
    if not report.classes:
        return
    splits = [split.name for split in report.splits]
    yield "<h2>Classes</h2><div class='card scroll'><table><tr><th>class</th><th>id</th>"
    yield "".join(f"<th>objects, {name}</th><th>images</th>" for name in splits) + "<th>median size</th></tr>"

    def total(entry: ClassSummary) -> int:
        return -sum(entry.num_objects.values())

    for entry in sorted(report.classes, key=total)[:_MAX_CLASSES_LISTED]:
        cells = "".join(
            f"<td>{entry.num_objects.get(name, 0):,}</td><td>{entry.num_images.get(name, 0):,}</td>" for name in splits
        )
        size = f"{entry.median_px:.0f} px" if entry.median_px else ""
        yield f"<tr><td>{text(entry.name)}</td><td>{entry.category_id}</td>{cells}<td>{size}</td></tr>"
    yield "</table>"
    if len(report.classes) > _MAX_CLASSES_LISTED:
        yield f"<p class='soft'>and {len(report.classes) - _MAX_CLASSES_LISTED} more classes</p>"
    yield "</div>"
