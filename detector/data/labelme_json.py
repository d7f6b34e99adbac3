"""labelme: a JSON file for each image, beside it or in a folder of its own.

The format: https://github.com/wkentaro/labelme. Coordinates are edges in pixels with decimals, 0 is the left edge of
the image; a circle is its centre and a point on it; a mask's two points are its first and last pixel. Polygons, circles
and masks of one label and `group_id` are one object, as in labelme's own conversions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detector.data import outlines
from detector.data.annotation_builder import ListedObjects, NamedObject
from detector.data.foreign_listing import Listing, Splits, assembled, named, points_in, side_in, split_of, typed
from detector.errors import DatasetError
from detector.io.folders import files_below
from detector.io.json_stream import read_value

_WITHOUT_AREA = ("point", "points", "line", "linestrip")
_IN_GROUPS = ("polygon", "circle", "mask")


def read_labelme(
    root: Path, images: Path | None = None, difficult: str = "ignore", files: Sequence[Path] | None = None
) -> tuple[Splits, list[str]]:
    """Read the JSON files of a folder and below it, or one file.

    Args:
        root: the folder of the data set, or one file.
        images: the folder of the images; None for the usual places.
        difficult: as in `assembled`.
        files: the JSON files; None for all below `root`.

    Raises:
        DatasetError: files are wrong (all are named), or the data is refused.
    """
    listing = Listing(root)
    if files is None:
        files = [root] if root.is_file() else [path for path in files_below(root) if path.suffix.lower() == ".json"]
    if not files:
        raise DatasetError(f"{root}: expected JSON files of labelme, got none; name their folder")
    listing.read_each(files, lambda file: _add_file(listing, file))
    return assembled(listing, images, difficult)


def _add_file(listing: Listing, file: Path) -> None:
    content = typed(read_value(file, "labelme file"), dict, "an object with shapes", str(file))
    written = content.get("imagePath")
    name = written if isinstance(written, str) and written else file.stem
    hw = side_in(content, "imageHeight"), side_in(content, "imageWidth")
    image = ListedObjects(name, str(file), hw if all(hw) else (0, 0), near=file.parent)
    groups: dict[tuple[str, str], int] = {}
    for number, shape in enumerate(typed(content.get("shapes"), list, "a list of shapes", str(file)), start=1):
        place = f"{file}, shape {number}"
        typed(shape, dict, "a shape", place)
        kind = shape.get("shape_type") or "polygon"
        if kind in _WITHOUT_AREA:
            listing.left_out[kind] += 1
            continue
        extras = {"difficult": 1} if shape.get("difficult") is True else {}
        item = named(shape.get("label"), _corners(shape, kind, place), place, extras=extras)
        group = shape.get("group_id")
        if group is None or kind not in _IN_GROUPS:
            image.objects.append(item)
        elif (key := (item.class_name, str(group))) in groups:
            image.objects[groups[key]] = _joined(image.objects[groups[key]], item)
        else:
            groups[key] = len(image.objects)
            image.objects.append(item)
    listing.add(image, split_of(*file.relative_to(listing.folder).parent.parts))


def _corners(shape: dict[str, Any], kind: str, place: str) -> outlines.Corners:
    points = points_in(shape.get("points"), place)
    if kind == "circle":
        if len(points) != 2:
            raise DatasetError(f"{place}: expected the centre of a circle and a point on it, got {len(points)} points")
        radius = math.dist(*points)
        return outlines.of_ellipse(points[0], (radius, radius))
    x1, y1, x2, y2 = outlines.of_points(points)
    return (x1, y1, x2 + 1, y2 + 1) if kind == "mask" else (x1, y1, x2, y2)


def _joined(first: NamedObject, second: NamedObject) -> NamedObject:
    corners = [(x, y) for item in (first, second) for x, y in (item.source_xyxy[:2], item.source_xyxy[2:])]
    return NamedObject(
        first.class_name, outlines.of_points(corners), first.place, extras={**first.extras, **second.extras}
    )
