"""Other content of a COCO file: masks, keypoints, licences, attributes; copied from one COCO file to another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from detector.data.coco import CocoAnnotations
from detector.data.coco_rows import Rows
from detector.data.problems import Findings

_SECTIONS = ("images", "annotations", "categories")
# Keys that `CocoAnnotations.ground_truth` writes itself.
_OF_IMAGES = ("id", "file_name", "height", "width")
_OF_ROWS = ("image_id", "category_id", "bbox", "area", "iscrowd")
_OF_CATEGORIES = ("id", "name")

Entries = npt.NDArray[np.object_]  # of dictionaries


def entries(dictionaries: Sequence[dict[str, object]]) -> Entries:
    """Return dictionaries as an array, which can be indexed by rows."""
    array = np.empty(len(dictionaries), dtype=object)
    array[:] = dictionaries
    return array


@dataclass(frozen=True, eq=False)
class Extras:
    """Other keys of the file of a `CocoAnnotations` of N images and A boxes.

    Attributes:
        images: (N,) dictionaries: other keys of each image.
        rows: (A,) dictionaries: other keys of each annotation, its own `id` among them.
        categories: other keys of the categories, by their id.
        top: other keys of the file, `info` and `licenses` among them.
    """

    images: Entries
    rows: Entries
    categories: dict[int, dict[str, object]] = field(default_factory=dict)
    top: dict[str, object] = field(default_factory=dict)


def no_extras(annotations: CocoAnnotations) -> Extras:
    """Return empty extras, for annotations that were not read from a COCO file."""
    return Extras(entries([{} for _ in range(len(annotations))]), entries([{} for _ in range(annotations.num_boxes)]))


def read_extras(annotations: CocoAnnotations) -> Extras:
    """Return the other keys of the COCO file of some annotations; empty extras for another format.

    The whole file is held in memory, which takes about seven times its size.
    """
    if annotations.annotations.suffix.lower() != ".json":
        return no_extras(annotations)
    content = json.loads(annotations.annotations.read_text(encoding="utf-8-sig"))
    images = {int(entry["id"]): _without(entry, _OF_IMAGES) for entry in content["images"]}
    categories = {int(entry["id"]): _without(entry, _OF_CATEGORIES) for entry in content["categories"]}
    return Extras(
        entries([images[int(identifier)] for identifier in annotations.image_ids]),
        entries(_of_rows(annotations, content.get("annotations", []))),
        categories,
        _without(content, _SECTIONS),
    )


def _without(entry: dict[str, object], keys: Sequence[str]) -> dict[str, object]:
    return {key: value for key, value in entry.items() if key not in keys}


def _of_rows(annotations: CocoAnnotations, written: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """Return the other keys of each box, matched by image, category and numbers; equal boxes keep their order."""
    rows, kept = Rows(), []
    for position, entry in enumerate(written):
        before = len(rows)
        rows.add(position, entry, Findings(""))  # the reader has already reported its faults
        kept += [_without(entry, _OF_ROWS)] * (len(rows) - before)
    image_ids, category_ids = list(rows.image_ids), list(rows.category_ids)
    waiting: dict[tuple[int, int, tuple[float, ...]], list[int]] = {}
    for row in range(len(rows) - 1, -1, -1):  # backwards, so that pop() returns the first row first
        box = tuple(rows.boxes[4 * row : 4 * row + 4])
        key = (image_ids[rows.image_ranks[row]], category_ids[rows.category_ranks[row]], box)
        waiting.setdefault(key, []).append(row)
    image_of_row = np.repeat(annotations.image_ids, np.diff(annotations.offsets)).tolist()
    columns = zip(image_of_row, annotations.labels.tolist(), annotations.boxes_xywh.tolist(), strict=True)
    return [kept[waiting[image, annotations.category_ids[label], tuple(box)].pop()] for image, label, box in columns]


def ground_truth_with(annotations: CocoAnnotations, extras: Extras) -> dict[str, object]:
    """Return the COCO dictionary of annotations with the other keys; annotation ids stay where all are unique."""
    truth = annotations.ground_truth()
    ids = [entry.get("id") for entry in extras.rows]
    keep_ids = all(type(identifier) is int and identifier > 0 for identifier in ids) and len(set(ids)) == len(ids)
    rows = []
    for entry, other in zip(truth["annotations"], extras.rows, strict=True):
        rows.append({**other, **entry, "id": other["id"] if keep_ids else entry["id"]})
    categories = [{**extras.categories.get(entry["id"], {}), **entry} for entry in truth["categories"]]
    images = [{**other, **entry} for entry, other in zip(truth["images"], extras.images, strict=True)]
    return {"info": {}, **extras.top, "images": images, "categories": categories, "annotations": rows}
