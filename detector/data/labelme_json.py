"""labelme: a JSON file for each image, beside it or in a folder of its own.

The format: https://github.com/wkentaro/labelme. Coordinates are edges in pixels with decimals, 0 is the left edge of
the image; a circle is its centre and a point on it; a mask's two points are its first and last pixel. Polygons, circles
and masks of one label and `group_id` are one object, as in labelme's own conversions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detector.config.registry import register
from detector.data import outlines
from detector.data.annotation_builder import ListedObjects, NamedObject
from detector.data.annotation_files import AnnotationFiles
from detector.data.foreign_dataset import DifficultConfig
from detector.data.foreign_listing import Listing, hw_in, named, points_in, typed
from detector.data.path_contents import PathContents
from detector.errors import DatasetError
from detector.io.json_stream import read_value

_WITHOUT_AREA = ("point", "points", "line", "linestrip")
_IN_GROUPS = ("polygon", "circle", "mask")


@register("labelme")
class LabelmeFiles(AnnotationFiles):
    """A JSON file for each image."""

    @dataclass(frozen=True)
    class Config(DifficultConfig):
        """Paths, and the treatment of difficult objects."""

    label = "labelme files"

    @classmethod
    def fits(cls, contents: PathContents, name: str) -> bool:
        """Tell whether a file has shapes, and the name of its image or a version."""
        keys = contents.keys(name)
        return bool(keys) and "shapes" in keys[0] and not keys[0].isdisjoint(("version", "imagePath", "flags"))

    def add_file(self, listing: Listing, file: Path) -> None:
        """Add an image."""
        content = typed(read_value(file, "labelme file"), dict, "an object with shapes", str(file))
        written = content.get("imagePath")
        name = written if isinstance(written, str) and written else file.stem
        image = ListedObjects(name, str(file), hw_in(content, "imageHeight", "imageWidth"), near=file.parent)
        groups: dict[tuple[str, str], int] = {}
        for number, shape in enumerate(typed(content.get("shapes"), list, "a list of shapes", str(file)), start=1):
            place = f"{file}, shape {number}"
            kind = typed(shape, dict, "a shape", place).get("shape_type") or "polygon"
            if kind in _WITHOUT_AREA:
                listing.left_out[kind] += 1
                continue
            extras = {"difficult": 1} if shape.get("difficult") is True else {}
            item = named(shape.get("label"), _corners(shape, kind, place), place, extras=extras)
            group = shape.get("group_id")
            position = groups.get((item.class_name, str(group))) if group is not None and kind in _IN_GROUPS else None
            if position is not None:
                image.objects[position] = _joined(image.objects[position], item)
                continue
            if group is not None and kind in _IN_GROUPS:
                groups[item.class_name, str(group)] = len(image.objects)
            image.objects.append(item)
        listing.add(image, listing.split_of(file))


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
    return replace(first, source_xyxy=outlines.of_points(corners), extras={**first.extras, **second.extras})
