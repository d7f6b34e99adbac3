"""Checks for boxes that are probably wrong: outside the image, too small, too large, duplicate, in another format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detector.data.coco import CocoAnnotations
from detector.data.doctor.findings import NUM_DRAWN, NUM_EXAMPLES, Finding, Offender, Severity
from detector.data.problems import shown
from detector.io.nouns import plural
from detector.structures.boxes import area_xyxy, cxcywh_to_xyxy, xywh_to_xyxy, xyxy_to_cxcywh
from detector.structures.letterbox import Letterbox

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

OUTSIDE_PX = 1.0  # coordinates rounded to whole pixels are off by less
SLIVER_PX = 2.0  # in source pixels; such boxes are mostly drawn by accident
TINY_CANVAS_PX = 4.0  # half a cell of the finest common grid, which has stride 8
HUGE_SHARE = 0.95
MAX_RATIO = 20.0
SAME_IOU, TWO_CLASSES_IOU = 0.98, 0.95
MAX_SCORED = 100  # detections per image that COCO's AP counts
# Shares of the boxes above which an oddity of single boxes is a warning about the data set.
_MANY_SLIVERS, _MANY_TINY, _MANY_HUGE, _OTHER_FORMAT = 0.01, 0.05, 0.2, 0.2


@dataclass(frozen=True, eq=False)
class BoxTable:
    """Objects of a split as columns, without crowd regions and without images of unknown size.

    Attributes:
        rows: int64 (A,), rows of `CocoAnnotations.boxes_xywh`.
        image: int64 (A,), position of the image.
        labels: int64 (A,).
        source_xyxy: float64 (A, 4), as in the annotations.
        clipped_wh: float64 (A, 2), size of the part inside the image.
        image_wh: float64 (A, 2).
        canvas_wh: float64 (A, 2), size of the part inside the image, in pixels of the canvas.
    """

    rows: Rows
    image: Rows
    labels: Rows
    source_xyxy: Floats
    clipped_wh: Floats
    image_wh: Floats
    canvas_wh: Floats

    def __len__(self) -> int:
        return len(self.rows)


def tabulate(annotations: CocoAnnotations, canvas_hw: tuple[int, int], fit: str) -> BoxTable:
    """Collect the objects of a split with the sizes of their images."""
    image = np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets))
    is_known = np.asarray((annotations.image_hw > 0).all(axis=1))
    rows = np.flatnonzero(~annotations.is_crowd & is_known[image])
    image = image[rows]
    image_wh = annotations.image_hw[image][:, ::-1].astype(np.float64)
    source_xyxy = xywh_to_xyxy(annotations.boxes_xywh[rows])
    clipped = np.clip(source_xyxy, 0, np.tile(image_wh, 2))
    clipped_wh = clipped[:, 2:] - clipped[:, :2]
    sizes, inverse = np.unique(annotations.image_hw[is_known], axis=0, return_inverse=True)
    scales = np.array([Letterbox.fit((h, w), canvas_hw, fit).scale_hw[::-1] for h, w in sizes.tolist()]).reshape(-1, 2)
    scale_of_image = np.zeros((len(annotations), 2))
    scale_of_image[is_known] = scales[inverse.reshape(-1)]
    canvas_wh = clipped_wh * scale_of_image[image]
    return BoxTable(rows, image, annotations.labels[rows], source_xyxy, clipped_wh, image_wh, canvas_wh)


@dataclass(frozen=True, eq=False)
class BoxCheck:
    """Check of single boxes, with the texts of its finding.

    Attributes:
        code: code of the finding.
        title: makes the title from the count.
        measure: gives each box of a table a badness, float64 (A,).
        least: badness above which a box fails the check.
        say: describes a failing box of a table.
        many: share of the boxes above which the finding is a warning; otherwise it is a note.
    """

    code: str
    title: Callable[[int], str]
    measure: Callable[[BoxTable], Floats]
    least: float
    say: Callable[[BoxTable, int], str]
    many: float = 0.0


Hits = Mapping[str, tuple[Rows, Floats]]  # by split: positions in its table, and the badness of each
Splits = Mapping[str, CocoAnnotations]
Tables = Mapping[str, BoxTable]


def _hits(check: BoxCheck, tables: Tables) -> Hits:
    hits = {}
    for split, table in tables.items():
        values = check.measure(table)
        positions = np.flatnonzero(values > check.least)
        hits[split] = (positions, values[positions])
    return hits


def _finding(
    code: str,
    severity: Severity,
    title: Callable[[int], str],
    say: Callable[[BoxTable, int], str],
    hits: Hits,
    splits: Splits,
    tables: Tables,
) -> list[Finding]:
    """Make a finding about single boxes, with the worst of them as examples; return no finding without hits."""
    counts = {split: len(positions) for split, (positions, _) in hits.items() if len(positions)}
    if not counts:
        return []
    ranked = [(weight, split, position) for split in counts for position, weight in _worst(*hits[split])]
    examples, offenders = [], []
    for _, split, position in sorted(ranked, key=lambda hit: -hit[0])[:NUM_EXAMPLES]:
        table, annotations = tables[split], splits[split]
        image = int(table.image[position])
        name = shown(annotations.class_names[int(table.labels[position])])
        text = f"{split} {shown(annotations.file_names[image])}: {name}, {say(table, position)}"
        examples.append(text)
        offenders.append(Offender(split, image, (int(table.rows[position]),), text))
    total = sum(len(tables[split]) for split in counts)
    words = title(sum(counts.values()))
    return [Finding(code, severity, words, counts, total, tuple(examples), tuple(offenders[:NUM_DRAWN]))]


def _worst(positions: Rows, weights: Floats) -> list[tuple[int, float]]:
    order = np.argsort(-weights, kind="stable")[:NUM_EXAMPLES]
    return list(zip(positions[order].tolist(), weights[order].tolist(), strict=True))


def _size(table: BoxTable, position: int) -> str:
    width, height = table.source_xyxy[position, 2:] - table.source_xyxy[position, :2]
    return f"{width:.4g} x {height:.4g} px"


CHECKS = (
    BoxCheck(
        "box-outside",
        lambda n: f"{plural(n, 'box extends', 'boxes extend')} beyond the image",
        lambda t: overhang(t),
        OUTSIDE_PX,
        lambda t, i: f"{overhang(t)[i]:.0f} px outside an image of {t.image_wh[i, 0]:.0f} x {t.image_wh[i, 1]:.0f}",
    ),
    BoxCheck(
        "box-sliver",
        lambda n: f"{plural(n, 'box', 'boxes')} less than {SLIVER_PX:g} px wide or high in the image",
        lambda t: -t.clipped_wh.min(axis=1, initial=np.inf),
        -SLIVER_PX,
        _size,
        _MANY_SLIVERS,
    ),
    BoxCheck(
        "box-tiny",
        lambda n: f"{plural(n, 'box', 'boxes')} less than {TINY_CANVAS_PX:g} px wide or high on the network's canvas",
        lambda t: np.where(t.clipped_wh.min(axis=1, initial=np.inf) < SLIVER_PX, -np.inf, -t.canvas_wh.min(axis=1)),
        -TINY_CANVAS_PX,
        lambda t, i: f"{t.canvas_wh[i, 0]:.1f} x {t.canvas_wh[i, 1]:.1f} px on the canvas",
        _MANY_TINY,
    ),
    BoxCheck(
        "box-huge",
        lambda n: f"{plural(n, 'box covers', 'boxes cover')} more than {HUGE_SHARE:.0%} of the image",
        lambda t: _covered(t),
        HUGE_SHARE,
        lambda t, i: f"{_covered(t)[i]:.1%} of the image",
        _MANY_HUGE,
    ),
    BoxCheck(
        "box-elongated",
        lambda n: f"{plural(n, 'box is', 'boxes are')} more than {MAX_RATIO:g} times as long as wide",
        lambda t: t.clipped_wh.max(axis=1, initial=0) / t.clipped_wh.min(axis=1, initial=np.inf),
        MAX_RATIO,
        _size,
        1.0,
    ),
)


def check_boxes(splits: Splits, tables: Tables) -> list[Finding]:
    """Return every finding about boxes."""
    num_boxes = max(1, sum(map(len, tables.values())))
    findings = []
    for check in CHECKS:
        hits = _hits(check, tables)
        share = sum(len(positions) for positions, _ in hits.values()) / num_boxes
        severity: Severity = "warning" if share > check.many else "note"
        findings += _finding(check.code, severity, check.title, check.say, hits, splits, tables)
    return [*_formats(splits, tables), *findings, *_doubles(splits, tables), *_crowded(splits, tables)]


def _covered(table: BoxTable) -> Floats:
    """Return the share of its image that each box covers: float64 (A,)."""
    return np.asarray(table.clipped_wh.prod(axis=1) / table.image_wh.prod(axis=1))


def _formats(splits: Splits, tables: Tables) -> list[Finding]:
    """Find splits with many boxes beyond the image that would fit if they were in another format."""
    findings = []
    for split, table in tables.items():
        positions = np.flatnonzero(overhang(table) > OUTSIDE_PX)
        if len(positions) > _OTHER_FORMAT * len(table):
            guess = _other_format(table, splits[split].annotations.suffix.lower() == ".json", positions)
            if guess is not None:
                title = f"{len(positions)} of {len(table)} boxes of {split} leave the image, but would fit as {guess}"
                findings.append(Finding("box-format", "warning", title, {split: len(positions)}, len(table)))
    return findings


def overhang(table: BoxTable) -> Floats:
    """Return by how many pixels each box extends beyond its image, at the worst of the four sides: float64 (A,)."""
    before = -table.source_xyxy[:, :2]
    after = table.source_xyxy[:, 2:] - table.image_wh
    return np.asarray(np.concatenate([before, after], axis=1).max(axis=1, initial=0))


def _other_format(table: BoxTable, is_coco: bool, positions: Rows) -> str | None:
    """Return the format in which most of these boxes would fit; the COCO reader itself detects x1, y1, x2, y2."""
    source = table.source_xyxy[positions]
    if is_coco:
        written = np.concatenate([source[:, :2], source[:, 2:] - source[:, :2]], axis=1)
        corners, name = cxcywh_to_xyxy(written), "centre x, centre y, width, height"
    else:
        corners, name = xyxy_to_cxcywh(source), "x1, y1, x2, y2"
    limit = np.tile(table.image_wh[positions], 2) + OUTSIDE_PX
    fits = (corners >= -OUTSIDE_PX).all(axis=1) & (corners <= limit).all(axis=1)
    fits &= (corners[:, 2:] > corners[:, :2]).all(axis=1)
    return name if 2 * fits.sum() > len(positions) else None


def _doubles(splits: Splits, tables: Tables) -> list[Finding]:
    """Find two boxes in one place, of one class or of two classes."""
    same: dict[str, tuple[Rows, Floats]] = {}
    other: dict[str, tuple[Rows, Floats]] = {}
    partner: dict[tuple[str, int], int] = {}
    for split, table in tables.items():
        first, second, overlap = overlapping_pairs(table, min(SAME_IOU, TWO_CLASSES_IOU))
        is_same = table.labels[first] == table.labels[second]
        for kept, hits in ((is_same & (overlap > SAME_IOU), same), (~is_same & (overlap > TWO_CLASSES_IOU), other)):
            positions, index = np.unique(second[kept], return_index=True)
            hits[split] = (positions, overlap[kept][index])
            if hits is other:
                partner.update({(split, int(p)): int(f) for p, f in zip(positions, first[kept][index], strict=True)})

    def say_other(table: BoxTable, position: int) -> str:
        split = next(name for name, candidate in tables.items() if candidate is table)
        label = int(table.labels[partner[split, position]])
        return f"in the same place as {shown(splits[split].class_names[label])}"

    def title(one: str) -> Callable[[int], str]:
        return lambda n: one.format(plural(n, "object"))

    duplicate, ambiguous = "{} with a duplicate box of the same class", "{} with two classes: two boxes in one place"
    return [
        *_finding("box-duplicate", "warning", title(duplicate), _size, same, splits, tables),
        *_finding("box-two-classes", "warning", title(ambiguous), say_other, other, splits, tables),
    ]


def overlapping_pairs(table: BoxTable, least: float) -> tuple[Rows, Rows, Floats]:
    """Return pairs of boxes of one image with an IoU above `least`: positions of earlier and later boxes, and IoUs.

    Two such boxes share more than `least` of the width of each, so their left edges differ by less than 1 - `least` of
    a width. Sorted by left edge, only near neighbours need to be compared.
    """
    boxes, image = table.source_xyxy, table.image
    area = area_xyxy(boxes)
    order = np.lexsort((boxes[:, 0], image))
    reach = boxes[order, 0] + (1 - least) * (boxes[order, 2] - boxes[order, 0])
    firsts, seconds, overlaps = [], [], []
    active = np.arange(len(order) - 1)
    step = 1
    while len(active):
        a, b = order[active], order[active + step]
        is_near = (image[a] == image[b]) & (boxes[b, 0] <= reach[active])
        active, a, b = active[is_near], a[is_near], b[is_near]
        sides = np.minimum(boxes[a, 2:], boxes[b, 2:]) - np.maximum(boxes[a, :2], boxes[b, :2])
        shared = np.clip(sides, 0, None).prod(axis=1)
        iou = shared / (area[a] + area[b] - shared)
        hit = iou > least
        firsts.append(np.minimum(a, b)[hit])
        seconds.append(np.maximum(a, b)[hit])
        overlaps.append(iou[hit])
        step += 1
        active = active[active + step < len(order)]
    if not firsts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    return np.concatenate(firsts), np.concatenate(seconds), np.concatenate(overlaps)


def _crowded(splits: Splits, tables: Tables) -> list[Finding]:
    counts: dict[str, int] = {}
    ranked: list[tuple[int, str, int]] = []
    for split, table in tables.items():
        num = np.bincount(table.image, minlength=len(splits[split]))
        crowded = np.flatnonzero(num > MAX_SCORED)
        if len(crowded):
            counts[split] = len(crowded)
            ranked += [(int(num[i]), split, int(i)) for i in crowded[np.argsort(-num[crowded])][:NUM_EXAMPLES]]
    if not counts:
        return []
    ranked.sort(key=lambda entry: -entry[0])
    examples = [f"{split} {shown(splits[split].file_names[i])}: {num} objects" for num, split, i in ranked]
    offenders = [Offender(split, i, (), text) for (_, split, i), text in zip(ranked, examples, strict=True)]
    title = f"{plural(sum(counts.values()), 'image')} with more than {MAX_SCORED} objects"
    total = sum(len(splits[split]) for split in counts)
    drawn = tuple(offenders[:NUM_DRAWN])
    return [Finding("image-crowded", "note", title, counts, total, tuple(examples[:NUM_EXAMPLES]), drawn)]
