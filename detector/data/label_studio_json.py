"""Label Studio: tasks exported as JSON or JSON_MIN.

The format: https://labelstud.io/guide/task_format. Coordinates are percent of the image; a rectangle is turned
clockwise around its upper left corner, an ellipse around its centre.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from detector.data import outlines
from detector.data.annotation_builder import ListedObjects
from detector.data.foreign_listing import Listing, Splits, assembled, named, number_in, points_in, side_in, typed
from detector.data.image_finder import ImageFinder
from detector.data.problems import shown
from detector.errors import DatasetError, MediaError
from detector.io.json_stream import read_value
from detector.media.images import IMAGE_SUFFIXES, image_hw

_WITHOUT_AREA = ("keypoint", "keypointlabels", "brush", "brushlabels", "vector", "vectorlabels")
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")  # put before the name of an uploaded file


def read_label_studio(root: Path, images: Path | None = None) -> tuple[Splits, list[str]]:
    """Read an export of Label Studio.

    Args:
        root: the JSON file.
        images: the folder of the images; None for the usual places.

    Raises:
        DatasetError: the file is wrong, or the data is refused.
    """
    listing = Listing(root)
    finder = ImageFinder(images or listing.folder, beside=images is None)
    unlabelled = list[str]()
    several = list[str]()
    for number, task in enumerate(typed(read_value(root, "Label Studio file"), list, "a list of tasks", str(root)), 1):
        place = f"{root}, task {number}"
        data = typed(typed(task, dict, "a task", place).get("data", task), dict, "data", place)
        name = _image_name(data, task, place)
        results = _results(task, place, several)
        if results is None:
            unlabelled.append(name)
            continue
        found = _find(finder, name, root.parent)
        image = ListedObjects(str(found) if found else name, place, near=root.parent)
        listing.read_each([root], lambda _, i=image, r=results, f=found: _add_objects(i, r, f, listing))  # type: ignore[misc]
        listing.add(image)
    if unlabelled:
        listing.notes.append(f"{len(unlabelled)} tasks without an annotation are left out, first: {unlabelled[0]}")
    if several:
        listing.notes.append(f"{len(several)} tasks have several annotations, of which the first is used: {several[0]}")
    return assembled(listing, images)


def _image_name(data: Mapping[str, Any], task: Mapping[str, Any], place: str) -> str:
    """Return the path of an image in a task, without its address."""
    texts = [value for value in data.values() if isinstance(value, str)]
    written = next((text for text in texts if Path(_path_in(text)).suffix.lower() in IMAGE_SUFFIXES), None)
    written = written or task.get("file_upload") or data.get("image")
    return _path_in(typed(written, str, "the name of an image in data", place))


def _path_in(address: str) -> str:
    """Return the path in an address such as `/data/local-files/?d=photos%2Fa.jpg` or `s3://bucket/a.jpg`."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return address
    given = parse_qs(parts.query).get("d")
    return unquote(given[0] if given else parts.path or address)


def _find(finder: ImageFinder, name: str, near: Path) -> Path | None:
    """Return the file of an image, with or without what Label Studio puts before the name of an upload."""
    folder, base = os.path.split(name)
    return finder.find(name, near) or finder.find(os.path.join(folder, _UPLOAD.sub("", base)), near)


def _results(task: dict[str, Any], place: str, several: list[str]) -> list[dict[str, Any]] | None:
    """Return the regions of a task; None where nobody has labelled it."""
    lists = [task.get("annotations"), task.get("completions")]
    written = next((value for value in lists if value is not None), None)
    if written is None:  # JSON_MIN: the regions are lists of the task itself
        items = [item for value in task.values() if isinstance(value, list) for item in value if isinstance(item, dict)]
        return [_as_result(item) for item in items if "x" in item or "points" in item]
    valid = [
        entry
        for entry in typed(written, list, "a list of annotations", place)
        if isinstance(entry, dict) and not entry.get("was_cancelled") and not entry.get("skipped")
    ]
    if len(valid) > 1:
        several.append(place)
        valid.sort(key=lambda entry: not entry.get("ground_truth"))
    if not valid:
        return None
    return [typed(item, dict, "a region", place) for item in typed(valid[0].get("result"), list, "a result", place)]


def _as_result(item: dict[str, Any]) -> dict[str, Any]:
    """Return a region of JSON_MIN in the form of JSON."""
    kind = next((key for key in item if key.endswith("labels")), "rectangle" if "width" in item else "polygon")
    return {**{key: item.get(key) for key in ("original_width", "original_height")}, "type": kind, "value": item}


def _add_objects(image: ListedObjects, results: list[dict[str, Any]], found: Path | None, listing: Listing) -> None:
    labels = {item.get("id"): names for item in results if (names := _label_names(item))}
    for number, item in enumerate(results, start=1):
        kind, place = str(item.get("type")), f"{image.place}, region {number}"
        if kind in _WITHOUT_AREA:
            listing.left_out[kind] += 1
        if not kind.startswith(("rectangle", "polygon", "ellipse")):
            continue  # labels and texts of a region, or of the whole image
        names = _label_names(item) or labels.get(item.get("id")) or [None]
        hw = side_in(item, "original_height"), side_in(item, "original_width")
        image.listed_hw = hw if all(hw) else image.listed_hw
        if item.get("image_rotation"):
            raise DatasetError(
                f"{place}: the image was turned in Label Studio; turn the file itself, and label it anew"
            )
        value = typed(item.get("value"), dict, "a value", place)
        corners = _corners(kind, value, hw if all(hw) else _hw_of(found, place), place)
        image.objects += [named(name, corners, place) for name in names]


def _label_names(item: Mapping[str, Any]) -> list[Any]:
    value = item.get("value")
    lists = [v for key, v in value.items() if key.endswith("labels")] if isinstance(value, dict) else []
    return next((names for names in lists if isinstance(names, list) and names), [])


def _hw_of(found: Path | None, place: str) -> tuple[int, int]:
    try:
        return image_hw(found) if found else (0, 0)
    except MediaError as error:
        raise DatasetError(f"{place}: the size of the image is not given, and {shown(str(error))}") from error


def _corners(kind: str, value: dict[str, Any], hw: tuple[int, int], place: str) -> outlines.Corners:
    """Return the outline of a region in pixels."""
    across, down = hw[1] / 100, hw[0] / 100
    turned = number_in(value, "rotation", place) if value.get("rotation") else 0.0
    if kind.startswith("polygon"):
        return outlines.of_points((x * across, y * down) for x, y in points_in(value.get("points"), place))
    x, y = number_in(value, "x", place) * across, number_in(value, "y", place) * down
    if kind.startswith("ellipse"):
        radii = number_in(value, "radiusX", place) * across, number_in(value, "radiusY", place) * down
        return outlines.of_ellipse((x, y), radii, turned)
    width, height = number_in(value, "width", place) * across, number_in(value, "height", place) * down
    return outlines.of_turned_box((x, y, x + width, y + height), turned, (x, y))
