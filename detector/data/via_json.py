"""VGG Image Annotator 1 and 2: a project, or annotations exported as JSON or CSV.

The format: https://www.robots.ox.ac.uk/~vgg/software/via. Coordinates are edges in pixels, 0 is the left edge of the
image. The class is a region attribute, whose name the user chose: the usual names count first, then the only one.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detector.config.registry import register
from detector.data import outlines
from detector.data.annotation_builder import ListedObjects, NamedObject
from detector.data.annotation_files import AnnotationFiles
from detector.data.csv_boxes import SHAPE_COLUMN
from detector.data.foreign_dataset import ForeignConfig
from detector.data.foreign_listing import Listing, number_in, typed
from detector.data.path_contents import PathContents
from detector.data.problems import shown
from detector.errors import DatasetError
from detector.io.json_stream import MAX_VALUE_BYTES, read_value
from detector.io.text_file import read_text

_CLASS_NAMES = ("class", "label", "name", "category", "type", "object", "class_name", "label_name", "object_name")
_WITHOUT_AREA = ("point", "polyline", "line")
_ONLY_CLASS = "object"


@register("via")
class ViaFiles(AnnotationFiles):
    """A project or exported annotations, or one file in the folder of each split."""

    @dataclass(frozen=True)
    class Config(ForeignConfig):
        """Paths, and the attribute of the class.

        Attributes:
            class_attribute: the region attribute that holds the class; None to decide by the names.
        """

        class_attribute: str | None = None

    label = "VGG VIA file"
    suffixes = (".json", ".csv")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._class_attribute = config.class_attribute
        self._read = list[tuple[ListedObjects, list[tuple[NamedObject, dict[str, Any]]]]]()

    @classmethod
    def fits(cls, contents: PathContents, name: str) -> bool:
        """Tell whether a file is a project, lists images with regions, or is a table of them."""
        if name.lower().endswith(".csv"):
            return SHAPE_COLUMN in contents.head(name).partition("\n")[0]
        keys = (*contents.keys(name), frozenset(), frozenset())
        return "_via_img_metadata" in keys[0] or {"filename", "regions"} <= keys[1]

    def add_file(self, listing: Listing, file: Path) -> None:
        """Add the images of a file; the classes of their objects are found by `finish`."""
        known = dict[str, ListedObjects]()  # a table has a line for each region of an image
        is_table = file.suffix.lower() == ".csv"
        for place, entry in _rows(file) if is_table else _entries(file):
            image, regions = _image(entry, place, file, listing)
            if is_table and image.file_name in known:
                image = known[image.file_name]
            else:
                known[image.file_name] = image
                listing.add(image, listing.split_of(file))
            self._read.append((image, regions))

    def finish(self, listing: Listing) -> None:
        """Set the classes."""
        found = [attributes for _, regions in self._read for _, attributes in regions]
        key = self._class_attribute or _class_key(self.root, found, listing)
        for image, regions in self._read:
            image.objects += [replace(item, class_name=_class_of(values, key, item.place)) for item, values in regions]


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    content = typed(read_value(path, "VIA file"), dict, "an object", str(path))
    metadata = content.get("_via_img_metadata", content)
    for name, entry in typed(metadata, dict, "images by name", str(path)).items():
        place = f"{path}, {shown(name)}"
        yield place, typed(entry, dict, "an image", place)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the images of an exported table, one for each line."""
    try:
        reader = csv.DictReader(io.StringIO(read_text(path, "a table", MAX_VALUE_BYTES), newline=""), strict=True)
        for row in reader:
            place = f"{path}:{reader.line_num}"
            region = {key: json.loads(row.get(f"region_{key}") or "{}") for key in ("shape_attributes", "attributes")}
            name = row.get("filename") or row.get("#filename")  # version 1 writes it as a comment
            has_region = isinstance(region["shape_attributes"], dict) and bool(region["shape_attributes"])
            shape = {f"region_{key}": value for key, value in region.items() if key == "attributes"}
            yield (
                place,
                {
                    "filename": name,
                    "regions": [{**shape, "shape_attributes": region["shape_attributes"]}] if has_region else [],
                },
            )
    except (csv.Error, ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not a table that VIA exports: {shown(str(error))}; export it again") from error


def _image(
    entry: dict[str, Any], place: str, file: Path, listing: Listing
) -> tuple[ListedObjects, list[tuple[NamedObject, dict[str, Any]]]]:
    """Return an image, and its objects without their classes, each with its attributes."""
    name = typed(entry.get("filename"), str, "a filename", place)
    regions = entry.get("regions") or []
    if isinstance(regions, dict):  # version 1
        regions = list(regions.values())
    read = []
    for number, region in enumerate(typed(regions, list, "a list of regions", place), start=1):
        own_place = f"{place}, region {number}" if len(regions) > 1 else place
        shape = typed(region, dict, "a region", own_place).get("shape_attributes")
        kind = typed(shape, dict, "shape_attributes", own_place).get("name")
        if kind in _WITHOUT_AREA:
            listing.left_out[str(kind)] += 1
            continue
        attributes = typed(region.get("region_attributes") or {}, dict, "region_attributes", own_place)
        read.append((NamedObject("", _corners(shape, own_place), own_place), attributes))
    return ListedObjects(name, place, near=file.parent), read


def _corners(shape: dict[str, Any], place: str) -> outlines.Corners:
    kind = shape.get("name")
    if kind == "rect":
        x, y, width, height = (number_in(shape, key, place) for key in ("x", "y", "width", "height"))
        return x, y, x + width, y + height
    if kind in ("circle", "ellipse"):
        radii = ("r", "r") if kind == "circle" else ("rx", "ry")
        cx, cy, rx, ry = (number_in(shape, key, place) for key in ("cx", "cy", *radii))
        degrees = math.degrees(number_in(shape, "theta", place)) if shape.get("theta") else 0.0
        return outlines.of_ellipse((cx, cy), (rx, ry), degrees)
    if kind != "polygon":
        raise DatasetError(f"{place}: expected a rect, circle, ellipse or polygon, got {shown(repr(kind))}")
    xs, ys = (typed(shape.get(f"all_points_{axis}"), list, f"all_points_{axis}", place) for axis in "xy")
    if not xs or len(xs) != len(ys):
        raise DatasetError(f"{place}: expected as many x as y of a polygon, got {len(xs)} and {len(ys)}")
    return outlines.of_points(
        (number_in({"x": x}, "x", place), number_in({"y": y}, "y", place)) for x, y in zip(xs, ys, strict=True)
    )


def _class_key(root: Path, found: list[dict[str, Any]], listing: Listing) -> str | None:
    """Return the attribute that holds the class; None where regions have no attribute."""
    names = dict.fromkeys(name for attributes in found for name in attributes)
    if not names:
        if found:
            listing.notes.append(f"regions have no attribute: all are of the class {_ONLY_CLASS!r}")
        return None
    plain = {name.strip().lower().replace(" ", "_"): name for name in reversed(names)}
    usual = next((plain[name] for name in _CLASS_NAMES if name in plain), None)
    key = usual or (next(iter(names)) if len(names) == 1 else None)
    if key is None:
        listed = ", ".join(shown(name) for name in list(names)[:10])
        raise DatasetError(
            f"{root}: expected one region attribute for the class, got {listed}; give data.class_attribute"
        )
    if len(names) > 1:
        others = ", ".join(shown(name) for name in names if name != key)
        listing.notes.append(f"the class is the region attribute {shown(key)!r}; {others} is not read")
    return key


def _class_of(attributes: dict[str, Any], key: str | None, place: str) -> str:
    if key is None:
        return _ONLY_CLASS
    value = attributes.get(key)
    if isinstance(value, dict):  # a checkbox
        value = next((name for name, is_set in value.items() if is_set), None)
    name = str(value).strip() if isinstance(value, (str, int)) else ""
    if not name:
        raise DatasetError(f"{place}: the region attribute {shown(key)!r}, which holds the class, is missing")
    return name
