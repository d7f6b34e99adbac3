"""A COCO file taken apart: its sections, identifiers, categories, images and annotation rows, each checked alone.

Every fault goes to a `Findings`; what the parts mean together is decided in `detector.data.coco`.
"""

from __future__ import annotations

import json
import math
import os
import posixpath
import re
import reprlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from detector.data.problems import Findings
from detector.errors import DatasetError

_MAX_ID = 2**63 - 1  # identifiers are kept as int64
_WHOLE_NUMBER = re.compile(r"\s*[+-]?[0-9]{1,19}\s*")
_MAX_SIDE = 2**31 - 1  # pixels; no image format holds more
_MIN_POLYGON_NUMBERS = 6  # three corners


def parse(path: Path) -> Any:
    """The JSON document in a file, without the masks of annotations that have a box.

    Raises:
        DatasetError: with file, line and column where the file is not JSON.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not JSON in UTF-8, at byte {error.start}; save it as UTF-8") from error
    if not text.strip():
        raise DatasetError(f"{path} is empty, line 1, column 1; wanted a COCO file")
    try:
        return json.loads(text, object_hook=_without_mask)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise DatasetError(f"{path} is not JSON, {where}: {error.msg}; export or download it again") from error
    except RecursionError as error:
        raise DatasetError(f"{path} is no COCO file: its objects are nested too deep") from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise DatasetError(f"{path} is no COCO file: {error}") from error


def _without_mask(entry: dict[str, Any]) -> dict[str, Any]:
    """Forget the mask of an annotation that has a box: masks are most of a file, and of the memory that it takes."""
    if entry.get("bbox"):
        entry.pop("segmentation", None)
    return entry


def sections(document: Any, require_annotations: bool, findings: Findings) -> tuple[list[Any], list[Any], list[Any]]:
    """The lists `images`, `categories` and `annotations`; to be used only if nothing was refused."""
    keys = ("images", "categories", "annotations")
    if not isinstance(document, dict):
        findings.refuse(f"a COCO file is an object with the keys {', '.join(keys)}, found {reprlib.repr(document)}")
        return [], [], []
    for key in keys:
        if key not in document:
            if key != "annotations" or require_annotations:
                findings.refuse(f"the key {key!r} is missing (a COCO file has the keys {', '.join(keys)})")
        elif not isinstance(document[key], list):
            findings.refuse(f"{key!r} must be a list, found {reprlib.repr(document[key])}")
        elif not document[key] and key != "annotations":
            findings.refuse(f"the list {key!r} is empty")
    return document.get("images", []), document.get("categories", []), document.get("annotations", [])


def _objects(entries: list[Any], section: str, findings: Findings) -> Iterator[tuple[int, dict[str, Any]]]:
    for position, entry in enumerate(entries):
        if isinstance(entry, dict):
            yield position, entry
        else:
            findings.refuse(f"{section}[{position}] must be an object, found {reprlib.repr(entry)}")


def _identifier(entry: dict[str, Any], key: str, section: str, position: int, findings: Findings) -> int | None:
    """A whole number of 64 bits, also from "10" and 10.0; None after refusing anything else."""
    value: Any = entry.get(key)
    if type(value) is int and -_MAX_ID <= value <= _MAX_ID:  # not isinstance: true is no identifier
        return value
    is_whole = isinstance(value, float) and value.is_integer()
    number = int(value) if is_whole or (isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value)) else None
    if number is None or abs(number) > _MAX_ID:
        found = "is missing" if key not in entry else f"must be a whole number of 64 bits, found {reprlib.repr(value)}"
        findings.refuse(f"{key} of {section}[{position}] {found}")
        return None
    findings.accept("identifier written as text or with a decimal point", f"{key} of {section}[{position}]")
    return number


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf


def read_categories(entries: list[Any], findings: Findings) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and ids of the categories, sorted by id."""
    names: dict[int, str] = {}
    for position, entry in _objects(entries, "categories", findings):
        identifier = _identifier(entry, "id", "categories", position, findings)
        if identifier is None:
            continue
        if identifier in names:
            findings.refuse(f"category id {identifier} is used twice")
        name = entry.get("name")
        if not isinstance(name, str) or not name.strip():
            name = f"class_{identifier}"
            findings.accept("category without name", f"category {identifier}, now {name}")
        elif name in names.values():
            findings.accept("category name used twice", f"{name}, category {identifier}")
        names[identifier] = name
    category_ids = tuple(sorted(names))
    return tuple(names[identifier] for identifier in category_ids), category_ids


@dataclass(frozen=True)
class ImageTable:
    """All images that a file lists, in its order, present or not.

    Attributes:
        ids: original image ids.
        index_of: id -> position in the other fields.
        file_names: as written.
        image_hw: int64 (N, 2); 0, 0 where the file does not give a size.
        is_present: bool (N,), whether the file exists; all true where nobody looked.
    """

    ids: list[int]
    index_of: dict[int, int]
    file_names: list[str]
    image_hw: npt.NDArray[np.int64]
    is_present: npt.NDArray[np.bool_]


def read_images(entries: list[Any], images: Path | None, allow_outside: bool, findings: Findings) -> ImageTable:
    """The listed images, and which of them exist in the folder `images` (None: not looked at)."""
    index_of: dict[int, int] = {}
    ids: list[int] = []
    file_names: list[str] = []
    sizes: list[tuple[int, int]] = []
    for position, entry in _objects(entries, "images", findings):
        identifier = _identifier(entry, "id", "images", position, findings)
        name = entry.get("file_name")
        if not isinstance(name, str) or not name:
            findings.refuse(f"file_name of images[{position}] (id {identifier}) is missing or no text")
            name = ""
        elif not allow_outside and _leads_outside(name):
            findings.refuse(
                f"file_name {name!r} of images[{position}] leads out of the folder of images (allow_outside permits it)"
            )
        if identifier is None:
            continue
        if identifier in index_of:
            findings.refuse(f"image id {identifier} is used twice ({file_names[index_of[identifier]]} and {name})")
        height, width = _side(entry.get("height")), _side(entry.get("width"))
        if not (height and width):
            height, width = 0, 0
            findings.accept("image without width and height", name)
        index_of[identifier] = len(ids)
        ids.append(identifier)
        file_names.append(name)
        sizes.append((height, width))
    is_present = np.ones(len(file_names), dtype=np.bool_) if images is None else _exist(images, file_names)
    for index in np.flatnonzero(~is_present):
        findings.skip("image file missing", file_names[index])
    return ImageTable(ids, index_of, file_names, np.array(sizes, dtype=np.int64).reshape(-1, 2), is_present)


def _side(value: Any) -> int:
    """A whole number of pixels; 0 for anything else."""
    number = _number(value)
    return int(number) if number is not None and 1 <= number <= _MAX_SIDE and number.is_integer() else 0


def _leads_outside(file_name: str) -> bool:
    """Whether a relative name is absolute or climbs out; both kinds of slash count, wherever the file was written."""
    plain = posixpath.normpath(file_name.replace("\\", "/"))
    return plain == ".." or plain.startswith(("/", "../")) or bool(os.path.splitdrive(file_name)[0])


def _exist(images: Path, file_names: list[str]) -> npt.NDArray[np.bool_]:
    """Which files exist: bool (N,). Each folder is listed once, which is far cheaper than asking for every file."""
    listings: dict[str, set[str]] = {}
    is_present = np.zeros(len(file_names), dtype=np.bool_)
    for index, file_name in enumerate(file_names):
        folder, base = os.path.split(file_name)
        if folder not in listings:
            listings[folder] = _list_files(images / folder)
        # A name that is not listed may still be found by file systems that fold case or Unicode forms.
        is_present[index] = base in listings[folder] or os.path.isfile(images / file_name)
    return is_present


def _list_files(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (OSError, ValueError):  # missing, not readable or a name that no folder can have: each file is asked for
        return set()


@dataclass
class Rows:
    """The annotations of listed images and categories that have four numbers for a box; each field has a row for each.

    Attributes:
        image_index: position in the `ImageTable`.
        positions: position in the file's list of annotations.
        boxes: four numbers a row, x, y, width, height.
        labels: position in the sorted categories.
        areas: NaN where the file gives none.
        is_crowd: 0 or 1.
        num_ignored: annotations left out because the caller ignores unlisted categories.
    """

    image_index: array[int] = field(default_factory=lambda: array("q"))
    positions: array[int] = field(default_factory=lambda: array("q"))
    boxes: array[float] = field(default_factory=lambda: array("d"))
    labels: array[int] = field(default_factory=lambda: array("q"))
    areas: array[float] = field(default_factory=lambda: array("d"))
    is_crowd: array[int] = field(default_factory=lambda: array("b"))
    num_ignored: int = 0


def read_rows(
    entries: list[Any], table: ImageTable, category_ids: tuple[int, ...], ignore_unknown: bool, findings: Findings
) -> Rows:
    """The annotations as columns; the values of the boxes are not judged here."""
    label_of = {identifier: label for label, identifier in enumerate(category_ids)}
    rows, seen, unlisted = Rows(), set[int](), dict[int, str]()
    for position, entry in _objects(entries, "annotations", findings):
        image_id = _identifier(entry, "image_id", "annotations", position, findings)
        category_id = _identifier(entry, "category_id", "annotations", position, findings)
        if entry.get("id") is not None:
            identifier = _identifier(entry, "id", "annotations", position, findings)
            if identifier in seen:
                findings.accept("annotation id used twice", f"annotation {identifier}")
            elif identifier is not None:
                seen.add(identifier)
        is_crowd = entry.get("iscrowd")
        if is_crowd not in (None, 0, 1):  # true and false are 1 and 0
            findings.refuse(f"iscrowd of annotations[{position}] must be 0 or 1, found {reprlib.repr(is_crowd)}")
        if image_id is None or category_id is None:
            continue
        if image_id not in table.index_of:
            findings.skip("annotation of an unlisted image", place(entry, position, f"image {image_id}"))
            continue
        index = table.index_of[image_id]
        where = place(entry, position, table.file_names[index])
        if category_id not in label_of:
            unlisted.setdefault(category_id, where)
            if ignore_unknown:
                rows.num_ignored += 1
                findings.skip("annotation of an unlisted category", f"{where}, category {category_id}")
            continue
        if not table.is_present[index]:
            findings.skip("annotation of a missing image", where)
            continue
        box = _box(entry, where, findings)
        if box is None:
            findings.skip("annotation without four numbers for a box", where)
            continue
        if entry.get("ignore"):
            findings.accept("ignore flag, which has no effect", where)
        area = _number(entry.get("area"))
        rows.image_index.append(index)
        rows.positions.append(position)
        rows.boxes.extend(box)
        rows.labels.append(label_of[category_id])
        rows.areas.append(area if area is not None and 0 <= area < math.inf else math.nan)
        rows.is_crowd.append(is_crowd == 1)
    if unlisted and not ignore_unknown:
        listed = ", ".join(f"{identifier} (by {where})" for identifier, where in list(unlisted.items())[:10])
        more = f" and {len(unlisted) - 10} more" if len(unlisted) > 10 else ""
        findings.refuse(f"annotations use category ids that 'categories' does not list: {listed}{more}")
    return rows


def place(entry: dict[str, Any], position: int, image: str) -> str:
    """How a message names an annotation."""
    name = f"annotations[{position}]" if entry.get("id") is None else f"annotation {reprlib.repr(entry['id'])}"
    return f"{name} of {image}"


def _box(entry: dict[str, Any], where: str, findings: Findings) -> list[float] | None:
    """The four numbers of `bbox`, or of the box around the polygons where there is none; None without either."""
    box = entry.get("bbox")
    if box is None or box == []:
        box = _box_around(entry.get("segmentation"))
        if box is not None:
            findings.accept("annotation without bbox, the box around its polygons is taken", where)
        return box
    if not isinstance(box, list) or len(box) != 4:
        return None
    numbers = [number for number in map(_number, box) if number is not None]
    return numbers if len(numbers) == 4 else None


def _box_around(polygons: Any) -> list[float] | None:
    """x, y, width, height around polygons, lists of x1, y1, x2, y2, ...; None for anything else (run lengths too)."""
    if not isinstance(polygons, list) or not polygons:
        return None
    corners: list[float] = []
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < _MIN_POLYGON_NUMBERS or len(polygon) % 2:
            return None
        corners += [math.nan if number is None else number for number in map(_number, polygon)]
    if not all(map(math.isfinite, corners)):
        return None
    left, top = min(corners[0::2]), min(corners[1::2])
    return [left, top, max(corners[0::2]) - left, max(corners[1::2]) - top]
