"""Decisions of a person about suspect labels: read, checked, and applied to a copy of a COCO file.

Everything that a decision is not about is kept as written: other keys, the order of the annotations, their ids.
"""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detector.data.coco import read_coco
from detector.data.coco_rows import Rows
from detector.data.conversion import write_json
from detector.data.problems import Findings
from detector.errors import DatasetError
from detector.io.files import sha256_of_files
from detector.io.text_file import read_text

FORMAT, VERSION = "detector label decisions", 1
_KINDS, _WORDS = ("missing", "class", "place", "extra"), ("accept", "reject", "redraw")
_MAX_BYTES, _MAX_PX = 2**30, 2**31
# Keys of an annotation that describe the old box.
_OF_BOX = ("segmentation", "keypoints", "num_keypoints", "obb", "rotation")
_Entry = dict[str, Any]
_Place = tuple[int, int, tuple[float, ...]]  # image id, category id and box as written


@dataclass(frozen=True)
class Decision:
    """Decision about one suspect label.

    Attributes:
        image_id: id of the image.
        category_id, bbox: category and box of the label, xywh as written; None if a missing label is proposed.
        new_category_id, new_bbox: category and box that it gets; None to remove it.
        is_change: false where the label stays as it is.
    """

    image_id: int
    category_id: int | None
    bbox: tuple[float, ...] | None
    new_category_id: int | None
    new_bbox: tuple[float, ...] | None
    is_change: bool


@dataclass(frozen=True)
class Applied:
    """Numbers of labels that decisions added, changed, moved, removed and kept."""

    num_added: int
    num_reclassified: int
    num_moved: int
    num_removed: int
    num_kept: int
    num_shapes_dropped: int = 0


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        return sha256_of_files([path])
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}; check the path") from error


def read_decisions(path: Path, annotations_sha256: str) -> tuple[Decision, ...]:
    """Return the decisions of a file that the review page saved.

    Raises:
        DatasetError: the file cannot be read, is not one of decisions, or belongs to other annotations.
    """
    try:
        content = json.loads(read_text(path, "decisions", _MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} cannot be read as JSON: {error}; save the decisions again") from error
    if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise DatasetError(
            f"{path}: expected a file of decisions (format {FORMAT!r}, version {VERSION}), got another one; save it "
            "with the review page"
        )
    if content.get("annotations_sha256") != annotations_sha256:
        raise DatasetError(
            f"{path}: expected decisions about this version of the annotations, got decisions about another one "
            f"({content.get('annotations')!r:.80}); give the file that the list of suspects was made from"
        )
    made = content.get("decisions")
    if not isinstance(made, list):
        raise DatasetError(f"{path}: expected a list of decisions, got {reprlib.repr(made)}; save it again")
    return tuple(_decision(entry, f"{path}: decisions[{number}]") for number, entry in enumerate(made))


def _decision(entry: object, where: str) -> Decision:
    if not isinstance(entry, dict) or entry.get("kind") not in _KINDS or entry.get("decision") not in _WORDS:
        raise DatasetError(f"{where}: expected a kind and a decision, got {reprlib.repr(entry)}; save it again")
    kind, word = entry["kind"], entry["decision"]
    is_label = kind != "missing"
    image_id = _whole(entry, "image_id", where)
    category_id = _whole(entry, "category_id", where) if is_label else None
    bbox = _box(entry, "bbox", where) if is_label else None
    if word == "reject":
        return Decision(image_id, category_id, bbox, category_id, bbox, is_change=False)
    if word == "accept" and kind == "extra":
        return Decision(image_id, category_id, bbox, None, None, is_change=True)
    origin = "drawn" if word == "redraw" else "proposed"
    # An accepted class keeps the box of the label, an accepted place keeps its class.
    keeps_class, keeps_box = (word, kind) == ("accept", "place"), (word, kind) == ("accept", "class")
    new_category_id = category_id if keeps_class else _whole(entry, f"{origin}_category_id", where)
    new_bbox = bbox if keeps_box else _box(entry, f"{origin}_bbox", where)
    return Decision(image_id, category_id, bbox, new_category_id, new_bbox, is_change=True)


def _whole(entry: _Entry, key: str, where: str) -> int:
    value = entry.get(key)
    if type(value) is not int:
        raise DatasetError(f"{where}: expected a whole number as {key}, got {reprlib.repr(value)}; save it again")
    return value


def _box(entry: _Entry, key: str, where: str) -> tuple[float, ...]:
    value: Any = entry.get(key)
    is_box = isinstance(value, list) and len(value) == 4 and all(type(v) in (int, float) for v in value)
    if not is_box or not all(abs(v) < _MAX_PX for v in value) or min(value[2:]) <= 0:
        raise DatasetError(
            f"{where}: expected a box x, y, width, height above 0 as {key}, got {reprlib.repr(value)}; draw it again"
        )
    return tuple(map(float, value))


def apply_decisions(annotations: Path, decisions: Path, target: Path) -> Applied:
    """Write a copy of a COCO file in which the decisions are carried out; the file itself is not changed.

    Args:
        annotations: the COCO file that the list of suspects was made from.
        decisions: the file that the review page saved.
        target: the new file.

    Raises:
        DatasetError: a file cannot be read, the target exists, the decisions belong to other annotations, or they name
            a label or category that the file does not have.
    """
    if target.exists():
        raise DatasetError(f"{target} exists, and no file is replaced; give a new name")
    made = read_decisions(decisions, sha256_of(annotations))
    known = read_coco(annotations, None)  # refuses what is no COCO file
    content = json.loads(annotations.read_text(encoding="utf-8-sig"))
    entries: list[_Entry] = content["annotations"]
    places = _places(entries)
    counts: Counter[str] = Counter()
    removed: set[int] = set()
    added: list[_Entry] = []
    image_ids = set(known.image_ids.tolist())
    for number, decision in enumerate(made):
        where = f"{decisions}: decisions[{number}]"
        if decision.image_id not in image_ids:
            raise DatasetError(f"{where}: {annotations} has no image {decision.image_id}; save the decisions again")
        if decision.new_category_id is not None and decision.new_category_id not in known.category_ids:
            raise DatasetError(f"{where}: {annotations} has no category {decision.new_category_id}; add it first")
        if not decision.is_change:
            counts["kept"] += 1
        elif decision.category_id is None or decision.bbox is None:
            counts["added"] += 1
            added.append(_with_box({"image_id": decision.image_id, "iscrowd": 0}, decision))
        else:
            found = places.get((decision.image_id, decision.category_id, decision.bbox), [])
            if not found:
                raise DatasetError(f"{where}: {annotations} has no such label, or two decisions name it; correct them")
            position = found.pop()
            if decision.new_bbox is None:
                removed.add(position)
                counts["removed"] += 1
            else:
                is_moved = decision.new_bbox != decision.bbox
                counts["moved"] += is_moved
                counts["reclassified"] += decision.new_category_id != decision.category_id
                counts["shapes"] += is_moved and any(key in entries[position] for key in _OF_BOX)
                entries[position] = _with_box(entries[position], decision)
    content["annotations"] = _numbered([e for n, e in enumerate(entries) if n not in removed], entries, added)
    write_json(content, target, annotations)
    return Applied(*(counts[name] for name in ("added", "reclassified", "moved", "removed", "kept", "shapes")))


def _places(entries: Sequence[_Entry]) -> dict[_Place, list[int]]:
    """Return the positions of annotations by image, category and box; the first one is last."""
    rows, positions = Rows(), []
    for position, entry in enumerate(entries):
        before = len(rows)
        rows.add(position, entry, Findings(""))  # the reader has reported its faults
        positions += [position] * (len(rows) - before)
    image_ids, category_ids = list(rows.image_ids), list(rows.category_ids)
    boxes = np.array(rows.boxes).reshape(-1, 4).tolist()
    found: dict[_Place, list[int]] = {}
    for row in range(len(rows) - 1, -1, -1):
        key = (image_ids[rows.image_ranks[row]], category_ids[rows.category_ranks[row]], tuple(boxes[row]))
        found.setdefault(key, []).append(positions[row])
    return found


def _with_box(entry: _Entry, decision: Decision) -> _Entry:
    """Return an annotation with the new box and class; what described another box is left out."""
    assert decision.new_bbox is not None  # removed labels have none
    if decision.new_bbox == decision.bbox:
        return {**entry, "category_id": decision.new_category_id}
    kept = {key: value for key, value in entry.items() if key not in _OF_BOX}
    box = list(decision.new_bbox)
    return {**kept, "category_id": decision.new_category_id, "bbox": box, "area": box[2] * box[3]}


def _numbered(kept: list[_Entry], before: Sequence[_Entry], added: Sequence[_Entry]) -> list[_Entry]:
    """Return the annotations; added ones get ids above all others, removed ones included."""
    ids = [entry["id"] for entry in before if type(entry.get("id")) is int]
    first = max(ids, default=0) + 1
    return [*kept, *({"id": number, **entry} for number, entry in enumerate(added, start=first))]
