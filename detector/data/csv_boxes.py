"""Boxes in a table: one line per object, with the names of the columns in the first line.

Columns are known by many names, in any case: the image (`filename`, `image`, `path`, `ImageID`, ...), the class
(`class`, `label`, `LabelName`, ...), corners (`xmin`, `x1`, ...), corner and size (`x`, `y`, `w`, `h`, `bbox_x`, ...),
centre and size (`x_center`, `cx`, ...) or four numbers in one column (`bbox`), the size of the image (`width`,
`height`) and the split (`split`, `set`). Without a line of names, six columns are path, x1, y1, x2, y2, class; an image
without an object has the last five empty. Open Images has shares, `IsGroupOf` and codes of classes, whose names are in
`class-descriptions-boxable.csv`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from detector.data.annotation_builder import ListedObjects, NamedObject
from detector.data.foreign_dataset import Splits
from detector.data.foreign_listing import Listing, assembled, hw_in, split_in
from detector.data.problems import Findings, shown
from detector.data.split_words import SPLIT_WORDS
from detector.errors import DatasetError
from detector.io.folders import files_below
from detector.io.text_file import read_text

_MAX_BYTES = 2**31
_MOST_BYTES_COUNTED = 2**24
_MAX_COLUMNS = 10_000
SHAPE_COLUMN = "region_shape_attributes"  # of a table of VGG VIA, which has a reader of its own
_DELIMITERS = ",;\t"
SUFFIXES = (".csv", ".tsv")
_NAMES: dict[str, tuple[str, ...]] = {
    "image": ("filename", "file", "imagename", "imagepath", "filepath", "path", "image", "imageid", "img", "frame"),
    "class": ("class", "classname", "name", "label", "labelname", "category", "categoryname", "classid", "labelid"),
    "x1": ("xmin", "x1", "left", "bboxxmin"),
    "y1": ("ymin", "y1", "top", "bboxymin"),
    "x2": ("xmax", "x2", "right", "bboxxmax"),
    "y2": ("ymax", "y2", "bottom", "bboxymax"),
    "cx": ("xcenter", "xcentre", "centerx", "centrex", "cx", "xc", "bboxxcenter", "bboxcx"),
    "cy": ("ycenter", "ycentre", "centery", "centrey", "cy", "yc", "bboxycenter", "bboxcy"),
    "x": ("x", "bboxx", "boxx"),
    "y": ("y", "bboxy", "boxy"),
    "w": ("w", "bboxw", "bboxwidth", "boxwidth"),
    "h": ("h", "bboxh", "bboxheight", "boxheight"),
    "box": ("bbox", "box", "boundingbox", "bboxxywh", "bboxxyxy", "boxesstring", "bboxes"),
    "image_width": ("imagewidth", "imgwidth"),
    "image_height": ("imageheight", "imgheight"),
    "split": ("split", "set", "subset", "dataset"),
    "group": ("isgroupof",),
    "occluded": ("isoccluded",),
    "truncated": ("istruncated",),
    "depiction": ("isdepiction",),
    "inside": ("isinside",),
}
_FLAGS = ("occluded", "truncated", "depiction", "inside")
# Columns of the four numbers of a box, in the order in which the forms are looked for.
_FORMS: dict[str, tuple[str, ...]] = {
    "corners": ("x1", "y1", "x2", "y2"),
    "centre": ("cx", "cy", "w", "h"),
    "size": ("x", "y", "w", "h"),
    "list": ("box",),
}
_HEADLESS = ("image", "x1", "y1", "x2", "y2", "class")
_ONLY_CLASS = "object"
_XYXY_SHARE = 0.2  # of the boxes that end outside their image: then four numbers are corners, not corner and size
_NO_BOX = ("", "[]", "no_box", "nan", "none")
_CODE = re.compile(r"/[a-z]/\w+")  # of a class in Open Images


@dataclass
class _Table:
    """A table whose columns are known.

    Attributes:
        path: the file.
        lines: number and cells of each line with an object or image.
        columns: position by meaning.
        form: the key of `_FORMS`.
        header: its first line.
        split: split of images without one of their own.
        notes: how it was interpreted.
    """

    path: Path
    lines: list[tuple[int, list[str]]]
    columns: dict[str, int]
    form: str
    header: list[str]
    split: str = "train"
    notes: list[str] = field(default_factory=list)


def read_csv(path: Path, images: Path | None = None) -> tuple[Splits, list[str]]:
    """Read a table of boxes, or the tables of a folder.

    Args:
        path: the table, UTF-8, with columns separated by commas, semicolons or tabs; or a folder, in which the name or
            the folder of a table gives the split of its images.
        images: the folder of the images; None for the places below and beside the table.

    Returns:
        The splits (`train` where nothing names one), and notes on how the tables were interpreted.

    Raises:
        DatasetError: a table cannot be read, a column is missing, lines are wrong (all are named), or the data is
            refused.
    """
    listing = Listing(path, images)
    tables = [_table(path)] if not path.is_dir() else _tables(listing)
    names = _class_names(path)
    known: dict[tuple[str, str], ListedObjects] = {}
    for table in tables:
        findings = Findings(str(table.path))
        _add_lines(table, listing, known, findings)
        findings.raise_refusals()
        listing.notes += [note if len(tables) == 1 else f"{table.path.name}: {note}" for note in table.notes]
    if not listing.listed():
        raise DatasetError(f"{path}: holds no line with a box")
    for image in listing.listed() if names else ():
        image.objects = [
            replace(item, class_name=names.get(item.class_name, item.class_name)) for item in image.objects
        ]
    if any("group" in table.columns for table in tables):
        listing.are_shares = True  # as Open Images defines them
    else:
        listing.find_shares()
    return assembled(listing)


def _tables(listing: Listing) -> list[_Table]:
    """Return the tables of boxes below a folder; other tables are reported."""
    tables, others = list[_Table](), list[str]()
    for path in files_below(listing.root):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            try:
                table = _table(path)
            except DatasetError as error:
                others.append(str(error))
                continue
            table.split = split_in(path.stem) or listing.split_of(path) or "train"
            tables.append(table)
    if not tables:
        raise DatasetError(others[0] if others else f"{listing.root}: expected a table *.csv, got none; name the table")
    if others:
        listing.notes.append(f"{len(others)} tables are not read, first: {others[0]}")
    return tables


def _table(path: Path) -> _Table:
    lines, header = _lines(path)
    columns, form, notes = _columns(path, header)
    has_header = not _is_headless(header)
    return _Table(path, lines[has_header:], columns, form, header, notes=notes)


def _class_names(path: Path) -> dict[str, str]:
    """Return the name of each code of a class in Open Images, from the file of descriptions near a table."""
    folder = path if path.is_dir() else path.parent
    places = (folder, folder / "metadata", folder.parent, folder.parent / "metadata")
    found = [
        file
        for place in places
        for pattern in ("class-descriptions*.csv", "classes.csv")
        for file in place.glob(pattern)
    ]
    lines = _lines(found[0])[0] if found else []
    return {cells[0]: cells[1] for _, cells in lines if len(cells) > 1 and _CODE.fullmatch(cells[0]) and cells[1]}


def _lines(path: Path) -> tuple[list[tuple[int, list[str]]], list[str]]:
    """Return the lines that are not empty, with their numbers, and the first of them."""
    text = read_text(path, "a table of boxes", _MAX_BYTES)
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
    if (most := max(len(cells) for _, cells in lines)) > _MAX_COLUMNS:
        raise DatasetError(f"{path}: expected at most {_MAX_COLUMNS} columns, got {most}; remove those of other data")
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


def _columns(path: Path, header: Sequence[str]) -> tuple[dict[str, int], str, list[str]]:
    """Return the position of each known column, the form of the boxes, and notes on how columns are taken."""
    if _is_headless(header):
        columns = {name: position for position, name in enumerate(_HEADLESS)}
        return columns, "corners", ["no line of names: path,x1,y1,x2,y2,class"]
    plain = [_plain(name) for name in header]
    columns = {
        name: next(plain.index(candidate) for candidate in known if candidate in plain)
        for name, known in _NAMES.items()
        if not set(known).isdisjoint(plain)
    }
    has_own_size = all(name in columns for name in _FORMS["corners"]) or "box" in columns
    for side in ("width", "height"):  # beside corners they are those of the image, beside a point those of the box
        if side in plain:
            columns.setdefault(f"image_{side}" if has_own_size else side[0], plain.index(side))
    form = next((form for form, names in _FORMS.items() if all(name in columns for name in names)), "")
    missing = [] if "image" in columns else ["image"]
    if not form:
        missing += [] if "class" in columns else ["class"]
        missing.append("xmin, ymin, xmax, ymax (or x, y, w, h)")
    if missing:
        listed = ", ".join(shown(name) for name in header[:20])
        raise DatasetError(f"{path}:1: expected columns for {'; '.join(missing)}; got {listed}")
    other_forms = {name for names in _FORMS.values() for name in names} - set(_FORMS[form])
    columns = {name: position for name, position in columns.items() if name not in other_forms}
    unread = [shown(name) for position, name in enumerate(header) if position not in columns.values()]
    notes = [f"columns that are not read: {', '.join(unread)}"] if unread else []
    if "class" not in columns:
        notes.append(f"no column of classes: all boxes are of the class {_ONLY_CLASS!r}")
    return columns, form, notes


def _add_lines(
    table: _Table, listing: Listing, known: dict[tuple[str, str], ListedObjects], findings: Findings
) -> None:
    """Add the images and objects of a table; faults are refused."""
    has_four = table.form == "list"
    boxes: list[tuple[ListedObjects, NamedObject]] = []  # as written
    for number, cells in table.lines:
        values = {name: cells[position] if position < len(cells) else "" for name, position in table.columns.items()}
        place = f"{table.path}:{number}"
        image = _image_of(values, place, table, listing, known, findings)
        if image is None:
            continue
        numbers = _numbers(values, table.form, place, findings)
        if numbers and not values.get("class", _ONLY_CLASS):
            findings.refuse(f"{place}: the class is missing")
        extras = {key: 1 for key in _FLAGS if values.get(key) == "1"}
        class_name, is_group = values.get("class", _ONLY_CLASS), values.get("group") == "1"
        boxes += [(image, NamedObject(class_name, box, place, is_group, extras)) for box in numbers]
    form = _form_of_lists(table, boxes) if has_four else table.form
    for image, item in boxes:
        image.objects.append(replace(item, source_xyxy=_corners(item.source_xyxy, form)))


def _image_of(
    values: Mapping[str, str],
    place: str,
    table: _Table,
    listing: Listing,
    known: dict[tuple[str, str], ListedObjects],
    findings: Findings,
) -> ListedObjects | None:
    name, word = values["image"], values.get("split", "")
    split = SPLIT_WORDS.get(word.lower()) if word else table.split
    if not name or split is None:
        findings.refuse(
            f"{place}: {f'the split {shown(word)} is unknown' if name else 'the name of the image is missing'}"
        )
        return None
    near = table.path.parent
    image = known.get((split, name))
    if image is None:
        image = ListedObjects(name, place, hw_in(values, "image_height", "image_width"), near=near)
        known[split, name] = image
        listing.add(image, split)
    elif not image.place.startswith(f"{table.path}:"):
        findings.refuse(f"{place}: {shown(name)} is in another table too ({image.place}); name one of the tables")
        return None
    return image


def _numbers(
    values: Mapping[str, str], form: str, place: str, findings: Findings
) -> list[tuple[float, float, float, float]]:
    """Return the boxes of a line as written, none for an image without an object."""
    texts = [values[key] for key in _FORMS[form]]
    if not any(texts) or (form == "list" and texts[0].lower() in _NO_BOX):
        return []
    parts = [texts]
    if form == "list":  # several boxes are separated by semicolons
        parts = [re.split(r"[\s,]+", part.strip("[](){} ")) for part in texts[0].split(";")]
    try:
        boxes = [tuple(float(text if "_" not in text else "") for text in part) for part in parts]
    except ValueError:
        boxes = [()]
    if any(len(box) != 4 for box in boxes):
        findings.refuse(f"{place}: expected four numbers, got {shown(', '.join(texts))}")
        return []
    return [(a, b, c, d) for a, b, c, d in boxes]


def _form_of_lists(table: _Table, boxes: Sequence[tuple[ListedObjects, NamedObject]]) -> str:
    """Return whether four numbers are corners, or corner and size; what was assumed is noted."""
    with_size = [(image.listed_hw, item.source_xyxy) for image, item in boxes if all(image.listed_hw)]
    num_outside = sum(a + c > hw[1] + 1 or b + d > hw[0] + 1 for hw, (a, b, c, d) in with_size)
    is_growing = all(c > a and d > b for _, item in boxes for a, b, c, d in [item.source_xyxy])
    name = _plain(table.header[table.columns["box"]])
    if name in ("boxesstring", "bboxxyxy") or (is_growing and num_outside > _XYXY_SHARE * len(with_size)):
        table.notes.append("four numbers in one column are taken as x1, y1, x2, y2")
        return "corners"
    table.notes.append("four numbers in one column are taken as x, y, width, height")
    return "size"


def _corners(numbers: tuple[float, float, float, float], form: str) -> tuple[float, float, float, float]:
    a, b, c, d = numbers
    if form == "corners":
        return numbers
    return (a - c / 2, b - d / 2, a + c / 2, b + d / 2) if form == "centre" else (a, b, a + c, b + d)


def num_images_of_table(path: Path, head: str) -> int | None:
    """Return the number of images in a table of boxes, by a look at it: 0 for a large table; None for another file.

    Args:
        path: the table.
        head: its first characters.
    """
    first = head.partition("\n")[0]
    if SHAPE_COLUMN in first or not first.strip():
        return None
    delimiter = max(_DELIMITERS, key=first.count)
    try:
        header = next(csv.reader([first], delimiter=delimiter))
        columns, _, _ = _columns(path, [cell.strip() for cell in header])
        lines = _lines(path)[0] if path.stat().st_size <= _MOST_BYTES_COUNTED else []
    except (DatasetError, csv.Error, OSError):
        return None
    names = {cells[columns["image"]] for _, cells in lines if len(cells) > columns["image"]}
    return max(0, len(names) - (not _is_headless(header)))
