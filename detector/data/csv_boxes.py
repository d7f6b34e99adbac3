"""Boxes in a table: one line per object, with the names of the columns in the first line.

Columns are known by many names, in any case: the image (`filename`, `image`, `path`, `ImageID`, ...), the class
(`class`, `label`, `LabelName`, ...), corners (`xmin`, `x1`, ...) or corner and size (`x`, `y`, `w`, `h`, `bbox_x`,
...), the size of the image (`width`, `height`) and the split (`split`, `set`). Without a line of names, six columns are
path, x1, y1, x2, y2, class; an image without an object has the last five empty.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath

from detector.data.annotation_builder import ListedObjects, NamedObject, assemble, nearest_files
from detector.data.coco import CocoAnnotations
from detector.data.coco_extras import Extras
from detector.data.problems import Findings, shown
from detector.errors import DatasetError

_MAX_BYTES = 2**31
_DELIMITERS = ",;\t"
_NAMES: dict[str, tuple[str, ...]] = {
    "image": ("filename", "file", "imagename", "imagepath", "filepath", "path", "image", "imageid", "img"),
    "class": ("class", "classname", "name", "label", "labelname", "category", "categoryname"),
    "x1": ("xmin", "x1", "left", "bboxxmin"),
    "y1": ("ymin", "y1", "top", "bboxymin"),
    "x2": ("xmax", "x2", "right", "bboxxmax"),
    "y2": ("ymax", "y2", "bottom", "bboxymax"),
    "x": ("x", "bboxx", "boxx"),
    "y": ("y", "bboxy", "boxy"),
    "w": ("w", "bboxw", "bboxwidth", "boxwidth"),
    "h": ("h", "bboxh", "bboxheight", "boxheight"),
    "image_width": ("imagewidth", "imgwidth"),
    "image_height": ("imageheight", "imgheight"),
    "split": ("split", "set", "subset", "dataset"),
}
_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_CORNERS, _SIZED = ("x1", "y1", "x2", "y2"), ("x", "y", "w", "h")
_HEADLESS = ("image", "x1", "y1", "x2", "y2", "class")


def read_csv(path: Path, images: Path) -> tuple[dict[str, tuple[CocoAnnotations, Extras]], list[str]]:
    """Read a table of boxes.

    Args:
        path: the table, UTF-8, with columns separated by commas, semicolons or tabs.
        images: the folder that its file names start from.

    Returns:
        The splits (`train` where the table names none), and notes on how the table was interpreted.

    Raises:
        DatasetError: the table cannot be read, a column is missing, lines are wrong (all are named), or the data is
            refused.
    """
    lines, header = _lines(path)
    columns, notes = _columns(path, header)
    has_header = bool(lines) and lines[0][1] is header and not _is_headless(header)
    findings = Findings(str(path))
    is_sized = "x" in columns
    splits: dict[str, dict[str, ListedObjects]] = {}
    for number, cells in lines[has_header:]:
        _add_line(f"{path}:{number}", cells, columns, is_sized, splits, findings)
    findings.raise_refusals()
    found = {split: list(of_split.values()) for split, of_split in splits.items()}
    if not found:
        raise DatasetError(f"{path}: holds no line with a box")
    _find_files(found, images)
    are_shares = _are_shares(found)
    if are_shares:
        notes.append("no number is above 1: numbers are taken as shares of the image, not as pixels")
    return assemble(path, images, found, are_shares=are_shares), notes


def _lines(path: Path) -> tuple[list[tuple[int, list[str]]], list[str]]:
    """Return the lines that are not empty, with their numbers, and the first of them."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DatasetError(f"{path}: expected a table of at most {_MAX_BYTES} bytes, got a larger one; split it")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text at byte {error.start}; expected a table of boxes") from error
    first = text.split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines: list[tuple[int, list[str]]] = []
    try:
        lines.extend((reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells))
    except csv.Error as error:
        raise DatasetError(f"{path}:{reader.line_num}: is not a table, {error}") from error
    if not lines:
        raise DatasetError(f"{path} is empty; expected a table of boxes")
    return lines, lines[0][1]


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_headless(cells: Sequence[str]) -> bool:
    box = cells[1:5]
    return len(cells) == 6 and (all(map(_is_number, box)) or not any(cells[1:]))


def _columns(path: Path, header: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """Return the position of each known column, and notes on columns that are not read."""
    if _is_headless(header):
        return {name: position for position, name in enumerate(_HEADLESS)}, ["no line of names: path,x1,y1,x2,y2,class"]
    plain = [_plain(name) for name in header]
    columns: dict[str, int] = {}
    for name, known in _NAMES.items():
        for candidate in known:
            if candidate in plain and name not in columns:
                columns[name] = plain.index(candidate)
    sides = {"image_width": "width", "image_height": "height"}
    has_corners = all(name in columns for name in _CORNERS)
    for name, plain_name in sides.items():  # with corners they are those of the image, with x and y those of the box
        if plain_name in plain:
            columns.setdefault(name if has_corners else plain_name[0], plain.index(plain_name))
    if has_corners:
        columns = {name: position for name, position in columns.items() if name not in _SIZED}
    missing = [name for name in ("image", "class") if name not in columns]
    if not has_corners and not all(name in columns for name in _SIZED):
        missing.append("xmin, ymin, xmax, ymax (or x, y, w, h)")
    if missing:
        listed = ", ".join(shown(name) for name in header[:20])
        raise DatasetError(f"{path}:1: expected columns for {'; '.join(missing)}; got {listed}")
    unread = [shown(name) for position, name in enumerate(header) if position not in columns.values()]
    return columns, [f"columns that are not read: {', '.join(unread)}"] if unread else []


def _add_line(
    place: str,
    cells: Sequence[str],
    columns: Mapping[str, int],
    is_sized: bool,
    splits: dict[str, dict[str, ListedObjects]],
    findings: Findings,
) -> None:
    values = {name: cells[position] if position < len(cells) else "" for name, position in columns.items()}
    name = values["image"]
    split = _SPLITS.get(values.get("split", "train").lower() or "train")
    if not name or split is None:
        fault = "the name of the image is missing" if not name else f"the split {shown(values['split'])} is unknown"
        findings.refuse(f"{place}: {fault}")
        return
    path = PureWindowsPath(name)
    if path.is_absolute() or path.drive or path.root or ".." in path.parts:
        name = path.name  # a path of another machine; the name is looked for in the folder of images
    sides = [values.get(side, "") for side in ("image_height", "image_width")]
    hw = tuple(int(side) if side.isascii() and side.isdecimal() and len(side) < 9 else 0 for side in sides)
    images = splits.setdefault(split, {})
    image = images.setdefault(name, ListedObjects(name, place, (hw[0], hw[1]) if all(hw) else (0, 0)))
    numbers = [values[key] for key in (_SIZED if is_sized else _CORNERS)]
    if not any(numbers):
        return  # an image without an object
    try:
        a, b, c, d = (float(text if "_" not in text else "") for text in numbers)
    except ValueError:
        findings.refuse(f"{place}: expected four numbers, got {shown(', '.join(numbers))}")
        return
    if not values["class"]:
        findings.refuse(f"{place}: the class is missing")
        return
    corners = (a, b, a + c, b + d) if is_sized else (a, b, c, d)
    image.objects.append(NamedObject(values["class"], corners, place))


def _find_files(found: Mapping[str, Sequence[ListedObjects]], folder: Path) -> None:
    """Set the file name of images whose suffix the table leaves out."""
    missing = [image for images in found.values() for image in images if not os.path.isfile(folder / image.file_name)]
    known = nearest_files([image.file_name for image in missing], folder) if missing else {}
    for image in missing:
        image.file_name = known.get(image.file_name, image.file_name)


def _are_shares(found: Mapping[str, Sequence[ListedObjects]]) -> bool:
    """Tell whether all corners are shares of the image: none is above 1, and not all are whole numbers."""
    numbers = [n for images in found.values() for image in images for item in image.objects for n in item.source_xyxy]
    finite = [number for number in numbers if math.isfinite(number)]
    return bool(finite) and max(finite) <= 1 and any(not number.is_integer() for number in finite)


def first_images(path: Path) -> tuple[list[str], int]:
    """Return the first images that a table names and how many it has; none where it is no table of boxes."""
    try:
        lines, header = _lines(path)
        columns, _ = _columns(path, header)
    except DatasetError:
        return [], 0
    names = dict.fromkeys(cells[columns["image"]] for _, cells in lines if len(cells) > columns["image"])
    listed = [PureWindowsPath(name).name for name in names if name]
    listed = listed if _is_headless(header) else listed[1:]
    return listed[:10], len(listed)
