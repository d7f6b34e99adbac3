"""Boxes that are probably not what was meant: outside, too small, too large, drawn twice, in another format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detector.data.coco import CocoAnnotations
from detector.data.doctor.findings import NUM_DRAWN, NUM_EXAMPLES, Finding, Offender, Severity, plural
from detector.data.problems import shown
from detector.structures.boxes import area_xyxy, cxcywh_to_xyxy, xywh_to_xyxy, xyxy_to_cxcywh
from detector.structures.letterbox import Letterbox

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

OUTSIDE_PX = 1.0  # whoever rounds coordinates to whole pixels is off by less
SLIVER_PX = 2.0  # in the source: a slip of the hand
TINY_CANVAS_PX = 4.0  # half a cell of the finest usual grid, of stride 8
HUGE_SHARE = 0.95
MAX_RATIO = 20.0
SAME_IOU, TWO_CLASSES_IOU = 0.98, 0.95
MAX_SCORED = 100  # detections that COCO's AP counts in an image
# From this share of the boxes on, what is odd about single boxes is odd about the data set.
_MANY_SLIVERS, _MANY_TINY, _MANY_HUGE, _OTHER_FORMAT = 0.01, 0.05, 0.2, 0.2


@dataclass(frozen=True, eq=False)
class BoxTable:
    """The objects of a split as columns; crowd regions are left out, and images whose size is not known.

    Attributes:
        rows: int64 (A,), rows of `CocoAnnotations.boxes_xywh`.
        image: int64 (A,), position of the image.
        labels: int64 (A,).
        source_xyxy: float64 (A, 4), as written.
        clipped_wh: float64 (A, 2), of the part inside the image.
        image_wh: float64 (A, 2).
        canvas_wh: float64 (A, 2), of the part inside the image, in pixels of the canvas.
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
    """The objects of a split with what is needed of their images."""
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
    """A test of single boxes and the words for those that fail it.

    Attributes:
        code: of the finding.
        title: from the count.
        measure: how bad each box of a table is, float64 (A,).
        least: what it must exceed.
        say: what is special about a box of a table.
        many: share of the boxes from which on it is a warning; below it is a note.
    """

    code: str
    title: Callable[[int], str]
    measure: Callable[[BoxTable], Floats]
    least: float
    say: Callable[[BoxTable, int], str]
    many: float = 0.0


Hits = Mapping[str, tuple[Rows, Floats]]  # by split: positions in its table, and how bad each one is
Splits = Mapping[str, CocoAnnotations]
Tables = Mapping[str, BoxTable]


def _hits(check: BoxCheck, tables: Tables) -> Hits:
    found = {}
    for split, table in tables.items():
        values = check.measure(table)
        positions = np.flatnonzero(values > check.least)
        found[split] = (positions, values[positions])
    return found


def _finding(
    code: str,
    severity: Severity,
    title: Callable[[int], str],
    say: Callable[[BoxTable, int], str],
    hits: Hits,
    splits: Splits,
    tables: Tables,
) -> list[Finding]:
    """A finding about single boxes, with the worst of them as examples; none where there are no hits."""
    counts = {split: len(found) for split, (found, _) in hits.items() if len(found)}
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
        lambda n: f"{plural(n, 'box reaches', 'boxes reach')} out of the image",
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
        lambda n: f"{plural(n, 'box', 'boxes')} less than {TINY_CANVAS_PX:g} px wide or high as the network sees them",
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
    """Every finding about boxes."""
    num_boxes = max(1, sum(map(len, tables.values())))
    findings = []
    for check in CHECKS:
        hits = _hits(check, tables)
        share = sum(len(positions) for positions, _ in hits.values()) / num_boxes
        severity: Severity = "warning" if share > check.many else "note"
        findings += _finding(check.code, severity, check.title, check.say, hits, splits, tables)
    return [*_formats(splits, tables), *findings, *_doubles(splits, tables), *_crowded(splits, tables)]


def _covered(table: BoxTable) -> Floats:
    """The share of its image that each box covers: float64 (A,)."""
    return np.asarray(table.clipped_wh.prod(axis=1) / table.image_wh.prod(axis=1))


def _formats(splits: Splits, tables: Tables) -> list[Finding]:
    """Splits whose boxes mostly leave the image, but would fit in another format."""
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
    """By how many pixels each box reaches out of its image, at the worst of the four sides: float64 (A,)."""
    before = -table.source_xyxy[:, :2]
    after = table.source_xyxy[:, 2:] - table.image_wh
    return np.asarray(np.concatenate([before, after], axis=1).max(axis=1, initial=0))


def _other_format(table: BoxTable, is_coco: bool, positions: Rows) -> str | None:
    """The format in which most of the boxes outside would be inside; the reader of COCO files knows x1, y1, x2, y2."""
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
    """Two boxes at one place: of one class, or of two."""
    same: dict[str, tuple[Rows, Floats]] = {}
    other: dict[str, tuple[Rows, Floats]] = {}
    partner: dict[tuple[str, int], int] = {}
    for split, table in tables.items():
        first, second, overlap = overlapping_pairs(table, min(SAME_IOU, TWO_CLASSES_IOU))
        is_same = table.labels[first] == table.labels[second]
        for kept, found in ((is_same & (overlap > SAME_IOU), same), (~is_same & (overlap > TWO_CLASSES_IOU), other)):
            positions, index = np.unique(second[kept], return_index=True)
            found[split] = (positions, overlap[kept][index])
            if found is other:
                partner.update({(split, int(p)): int(f) for p, f in zip(positions, first[kept][index], strict=True)})

    def say_other(table: BoxTable, position: int) -> str:
        split = next(name for name, candidate in tables.items() if candidate is table)
        label = int(table.labels[partner[split, position]])
        return f"where there is also {shown(splits[split].class_names[label])}"

    def title(one: str) -> Callable[[int], str]:
        return lambda n: one.format(plural(n, "object"))

    twice, differently = "{} drawn twice: same class, same place", "{} with two classes: two boxes in one place"
    return [
        *_finding("box-duplicate", "warning", title(twice), _size, same, splits, tables),
        *_finding("box-two-classes", "warning", title(differently), say_other, other, splits, tables),
    ]


def overlapping_pairs(table: BoxTable, least: float) -> tuple[Rows, Rows, Floats]:
    """Pairs of boxes of one image with an IoU above `least`: positions of the earlier and the later box, and the IoU.

    What two boxes share is then more than `least` of each one's width, so that their left edges are within 1 - `least`
    of a width of each other: in the order of left edges only near neighbours are compared.
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
