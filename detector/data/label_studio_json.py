"""Label Studio: tasks exported as JSON or JSON_MIN.

The format: https://labelstud.io/guide/task_format. Coordinates are percent of the image; a rectangle is turned
clockwise around its upper left corner, an ellipse around its centre.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from detector.config.registry import register
from detector.data import outlines
from detector.data.annotation_builder import ListedObjects
from detector.data.annotation_files import AnnotationFiles
from detector.data.foreign_dataset import ForeignConfig
from detector.data.foreign_listing import Listing, hw_in, named, number_in, points_in, typed
from detector.data.image_finder import ImageFinder
from detector.data.path_contents import PathContents
from detector.data.problems import shown
from detector.errors import DatasetError, MediaError
from detector.io.json_stream import read_value
from detector.media.images import IMAGE_SUFFIXES, image_hw

_WITHOUT_AREA = ("keypoint", "keypointlabels", "brush", "brushlabels", "vector", "vectorlabels")
_MAX_LABELS = 20  # of one region
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")  # put before the name of an uploaded file


@register("label_studio")
class LabelStudioFiles(AnnotationFiles):
    """A JSON file of tasks."""

    @dataclass(frozen=True)
    class Config(ForeignConfig):
        """Paths; the format has no settings of its own."""

    label = "Label Studio JSON"

    @classmethod
    def fits(cls, contents: PathContents, name: str) -> bool:
        """Tell whether a file lists tasks with results, or with regions in percent of the original size."""
        keys = (*contents.keys(name), frozenset(), frozenset())
        is_list = contents.head(name).lstrip().startswith("[")
        is_task = not keys[0].isdisjoint(("annotations", "completions")) and ("data" in keys[0] or "result" in keys[1])
        return is_list and (is_task or ("annotator" in keys[0]) or {"original_width", "x"} <= keys[1])

    def add_file(self, listing: Listing, file: Path) -> None:
        """Add the images of the tasks that have an annotation."""
        unlabelled, several = list[str](), list[str]()
        content = typed(read_value(file, "Label Studio file"), list, "a list of tasks", str(file))
        for number, task in enumerate(content, start=1):
            place = f"{file}, task {number}"
            data = typed(typed(task, dict, "a task", place).get("data", task), dict, "data", place)
            name = _image_name(data, task, place)
            results = _results(task, place, several)
            if results is None:
                unlabelled.append(name)
                continue
            found = _find(listing.finder, name, file.parent)
            image = ListedObjects(str(found) if found else name, place, near=file.parent)
            _add_objects(image, results, found, listing)
            listing.add(image, listing.split_of(file))
        for places, what in (
            (unlabelled, "tasks without an annotation are left out"),
            (several, "tasks have several annotations, of which one is used"),
        ):
            if places:
                listing.notes.append(f"{len(places)} {what}, first: {shown(places[0])}")


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
    labels = {str(item.get("id")): names for item in results if (names := _label_names(item))}
    for number, item in enumerate(results, start=1):
        kind, place = str(item.get("type")), f"{image.place}, region {number}"
        if kind in _WITHOUT_AREA:
            listing.left_out[kind] += 1
        if not kind.startswith(("rectangle", "polygon", "ellipse")):
            continue  # labels and texts of a region, or of the whole image
        names = _label_names(item) or labels.get(str(item.get("id"))) or [None]
        if len(names) > _MAX_LABELS:  # regions share their labels, so a small file could list any number of objects
            raise DatasetError(f"{place}: expected at most {_MAX_LABELS} labels of a region, got {len(names)}")
        hw = hw_in(item, "original_height", "original_width")
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
