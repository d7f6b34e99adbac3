"""Labels in text files, one beside each image, as Darknet and the YOLO family write them.

A line is an object: its class, counted from 0, and the centre, width and height of its box as shares of the image, five
numbers separated by spaces. An image without such a file, or with an empty one, has no objects. The result is
`CocoAnnotations`, as for a COCO file; category ids are the class numbers of the files.
"""

from __future__ import annotations

import itertools
import math
import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from detector.data.coco import CocoAnnotations
from detector.data.coco_rows import usable_boxes
from detector.data.key_points import NUM_OF_BOX, num_key_point_numbers
from detector.data.problems import Findings
from detector.errors import DatasetError, MediaError
from detector.io.folders import found_by_end
from detector.io.text_file import read_text
from detector.media.images import image_hw
from detector.structures.boxes import cxcywh_to_xyxy, xyxy_to_xywh

# A number above this cannot be a share of the image with a rounding error: the numbers are pixels.
_LARGEST_SHARE = 2.0
_CLASS_NUMBER = re.compile(r"\s*([0-9]{1,6})(?![0-9])")
_MIN_POLYGON_NUMBERS = 6  # three corners


@dataclass(frozen=True)
class ListedImage:
    """Image of a data set, and the place that lists it: the image itself, or `train.txt:17`."""

    path: Path
    place: str


@dataclass(frozen=True)
class TextLabels:
    """Description of the label files of a data set.

    Attributes:
        label_file: returns the label file of an image.
        class_names: the name of each class number.
        polygons: whether a line may also hold a class and the corners of a polygon, whose bounding box is used.
        num_key_point_numbers: numbers of key points after a box, which are not read; then no line is a polygon. None
            where the lines themselves must tell polygons and key points apart.
        ignore_unknown: whether to skip objects of classes without a name instead of refusing them.
    """

    label_file: Callable[[Path], Path]
    class_names: tuple[str, ...]
    polygons: bool = False
    num_key_point_numbers: int | None = None
    ignore_unknown: bool = False


@dataclass
class _Rows:
    """Objects of all label files, one entry per object in each field.

    Attributes:
        image_index: position in the list of images.
        labels: class numbers.
        shares: four numbers an object: centre x, centre y, width, height, as shares of the image.
        lines: 1-based line in the label file.
        num_faulty: number of lines that were skipped because they hold no object.
    """

    image_index: array[int] = field(default_factory=lambda: array("q"))
    labels: array[int] = field(default_factory=lambda: array("q"))
    shares: array[float] = field(default_factory=lambda: array("d"))
    lines: array[int] = field(default_factory=lambda: array("q"))
    num_faulty: int = 0


def read_class_names(path: Path, findings: Findings) -> tuple[str, ...]:
    """Return the names in a file of one class per line, in the order of the class numbers.

    Raises:
        DatasetError: the file cannot be read, or names no class.
    """
    lines = read_text(path, "a file of class names").rstrip().splitlines()
    if not lines:
        raise DatasetError(f"{path} names no class; write one name per line")
    return checked_names([line.strip() for line in lines], str(path), findings)


def checked_names(names: Sequence[str], source: str, findings: Findings) -> tuple[str, ...]:
    """Return class names with missing ones replaced by names such as `class_3`; odd names are counted."""
    checked: list[str] = []
    known: set[str] = set()
    for number, name in enumerate(names):
        if not name:
            findings.accept("class without name", f"{source}, class {number}, now class_{number}")
        elif name in known:
            findings.accept("class name used twice", f"{name}, class {number}")
        checked.append(name or f"class_{number}")
        known.add(checked[-1])
    return tuple(checked)


def read_image_list(path: Path, folders: Sequence[Path], findings: Findings | None = None) -> list[ListedImage]:
    """Return the images of a list file, one path per line.

    Where none of the first images exists, as in a list that was written elsewhere, the folders are looked through for
    the longest end of one of their paths, and all lines lose the same folders at their beginning.

    Args:
        path: the list.
        folders: folders that relative paths may start from; the first one that holds one of the first images is used.
        findings: counts a list that was written elsewhere.

    Raises:
        DatasetError: the file cannot be read, or lists no image.
    """
    numbered = enumerate(read_text(path, "a list of images").splitlines(), start=1)
    lines = [(number, _with_slashes(line.strip())) for number, line in numbered if line.strip()]
    if not lines:
        raise DatasetError(f"{path} lists no image; write one path per line")
    first = [name for _, name in lines[:10]]
    start = next((f for f in folders if any((f / name).is_file() for name in first)), None)
    if start is not None:
        return [ListedImage(start / name, f"{path}:{number}") for number, name in lines]
    for name in first:
        found = found_by_end(name, folders)
        if found is not None and found.is_file():
            start = next(f for f in folders if found.is_relative_to(f))
            num_lost = len(PurePosixPath(name).parts) - len(found.relative_to(start).parts)
            if findings is not None:
                findings.accept("list of paths of elsewhere", f"{name} is read as {found}")
            ends = [PurePosixPath(*PurePosixPath(name).parts[num_lost:]) for _, name in lines]
            return [ListedImage(start / end, f"{path}:{number}") for end, (number, _) in zip(ends, lines, strict=True)]
    return [ListedImage(folders[0] / name, f"{path}:{number}") for number, name in lines]


def num_classes_of(files: Iterable[Path]) -> int:
    """Return the number of classes that label files need: the largest class number and one, at least 1.

    Class numbers of more than six digits are left to the reader of the labels, which refuses them.
    """
    largest = 0
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError):  # reading the labels reports it
            continue
        numbers = [int(found[0]) for line in lines if (found := _CLASS_NUMBER.match(line))]
        largest = max(largest, *numbers, 0)
    return largest + 1


def _with_slashes(name: str) -> str:
    """Return a path that was written on Windows as other systems read it."""
    return name.replace("\\", "/") if "/" not in name else name


def read_txt_labels(
    source: Path, root: Path, images: Iterable[ListedImage], labels: TextLabels, findings: Findings
) -> CocoAnnotations:
    """Read the label files of images and check all of them.

    Lines of a class without a name are refused, all of them in one error; a line without a box is skipped and counted;
    an odd but clear line is accepted and counted.

    Args:
        source: the file that describes the data set, for messages.
        root: the folder that file names of the result are relative to, as far as the images lie below it.
        images: the images, in order; only the headers of their files are read.
        labels: the label files, their classes and what is accepted.
        findings: counts faults; it may hold some already.

    Raises:
        DatasetError: no image is listed, none has a label file, or more than `MAX_SKIPPED_SHARE` of the images or boxes
            would be skipped.
    """
    listed = _without_repetitions(images, findings)
    if not listed:
        raise DatasetError(f"{source}: expected images, got none; check its paths")
    sizes = [_size(image, findings) for image in listed]
    is_present = np.array([size is not None for size in sizes], dtype=np.bool_)
    # A label file is looked for only beside an image that could be read, whose name is therefore valid.
    files = [
        image.path if size is None else labels.label_file(image.path) for image, size in zip(listed, sizes, strict=True)
    ]
    labels = _with_key_points(labels, itertools.compress(files, is_present.tolist()), findings)
    rows = _Rows()
    has_file = [
        size is not None and _read_labels(file, index, rows, labels, findings)
        for index, (file, size) in enumerate(zip(files, sizes, strict=True))
    ]
    findings.raise_refusals()
    findings.raise_if_too_many_skipped("images", int((~is_present).sum()), len(listed))
    if not any(has_file):
        raise _without_label_files(source, listed, files, int(is_present.argmax()))
    image_hw = np.array([size or (0, 0) for size in sizes], dtype=np.int64).reshape(-1, 2)
    boxes_xywh, keep = _boxes_of_rows(rows, image_hw, files, findings)
    image_index = np.array(rows.image_index, dtype=np.int64)

    present = np.flatnonzero(is_present)
    num_boxes = np.bincount(image_index[keep], minlength=len(listed))[present]
    _count_without_objects(listed, present[num_boxes == 0], np.array(has_file, dtype=np.bool_), findings)
    return CocoAnnotations(
        annotations=source,
        images=root,
        class_names=labels.class_names,
        category_ids=tuple(range(len(labels.class_names))),
        image_ids=_image_ids([image.path for image in listed])[present],
        file_names=tuple(_file_name(listed[index].path, root) for index in present),
        image_hw=image_hw[present],
        offsets=np.concatenate([[0], np.cumsum(num_boxes)]).astype(np.int64),
        boxes_xywh=boxes_xywh[keep],
        labels=np.array(rows.labels, dtype=np.int64)[keep],
        is_crowd=np.zeros(int(keep.sum()), dtype=np.bool_),
        areas=boxes_xywh[keep, 2] * boxes_xywh[keep, 3],
        problems=findings.problems,
    )


def _with_key_points(labels: TextLabels, files: Iterable[Path], findings: Findings) -> TextLabels:
    """Return the description with the number of key points that the lines of its files show, unless it is given."""
    if not labels.polygons or labels.num_key_point_numbers is not None:
        return labels
    return replace(labels, num_key_point_numbers=num_key_point_numbers(files, findings))


def _without_label_files(
    source: Path, listed: Sequence[ListedImage], files: Sequence[Path], example: int
) -> DatasetError:
    """Return the error about images none of which has a label file; it names the file expected for one of them."""
    return DatasetError(
        f"{source}: none of its {len(listed)} images has a label file; expected {files[example]} for "
        f"{listed[example].path}"
    )


def _boxes_of_rows(
    rows: _Rows, image_hw: npt.NDArray[np.int64], files: Sequence[Path], findings: Findings
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return the boxes of all rows, float64 (A, 4) in pixels, and a mask of those that can be used, bool (A,).

    Raises:
        DatasetError: more than `MAX_SKIPPED_SHARE` of the boxes cannot be used.
    """
    image_index = np.array(rows.image_index, dtype=np.int64)
    row_hw = image_hw[image_index]
    shares = np.array(rows.shares, dtype=np.float64).reshape(-1, 4)
    with np.errstate(over="ignore", invalid="ignore"):  # numbers that are not finite are detected below
        boxes_xywh = xyxy_to_xywh(cxcywh_to_xyxy(shares * row_hw[:, [1, 0, 1, 0]]))

    def place_of(row: int) -> str:
        return f"{files[image_index[row]]}:{rows.lines[row]}"

    in_pixels = (np.isfinite(shares) & (shares > _LARGEST_SHARE)).any(axis=1)
    keep = np.logical_not(in_pixels)
    findings.count("box in pixels, expected shares of the image", "skipped", np.flatnonzero(in_pixels), place_of)
    judged = np.flatnonzero(keep)
    keep[judged] = usable_boxes(
        boxes_xywh[judged], row_hw[judged], lambda position: place_of(int(judged[position])), findings
    )
    num_listed = len(rows.labels) + rows.num_faulty
    findings.raise_if_too_many_skipped("boxes", num_listed - int(keep.sum()), num_listed)
    return boxes_xywh, keep


def _count_without_objects(
    listed: Sequence[ListedImage],
    without_objects: npt.NDArray[np.int64],
    has_file: npt.NDArray[np.bool_],
    findings: Findings,
) -> None:
    """Count the images without objects: accepted without a label file, noted with an empty one."""
    with_file = has_file[without_objects]

    def place_of(index: int) -> str:
        return listed[index].place

    findings.count("image without a label file", "accepted", without_objects[~with_file], place_of)
    findings.count("image without objects", "noted", without_objects[with_file], place_of)


def _without_repetitions(images: Iterable[ListedImage], findings: Findings) -> list[ListedImage]:
    listed: dict[Path, ListedImage] = {}
    for image in images:
        if image.path in listed:
            findings.skip("image listed twice", image.place)
        listed.setdefault(image.path, image)
    return list(listed.values())


def _size(image: ListedImage, findings: Findings) -> tuple[int, int] | None:
    """Return height and width of an image, turned upright; None, counted, where it cannot be read."""
    try:
        return image_hw(image.path)
    except MediaError as error:
        if image.path.exists():
            findings.skip("image that cannot be read", str(error))
        else:
            findings.skip("image file missing", f"{image.path}" if str(image.path) == image.place else image.place)
        return None


def _read_labels(file: Path, image_index: int, rows: _Rows, labels: TextLabels, findings: Findings) -> bool:
    """Add the objects of one label file to `rows`; return false where there is no such file."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return False
    except OSError as error:
        findings.refuse(f"{file} cannot be read: {error.strerror}")
        return True
    except UnicodeDecodeError as error:
        findings.refuse(f"{file} is not UTF-8 text at byte {error.start}")
        return True
    seen: set[tuple[float, ...]] = set()
    num_classes = len(labels.class_names)
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        place = f"{file}:{number}"
        label, numbers = _numbers(words, labels, place, findings)
        if numbers is None or label is None:
            findings.skip("line without a class and four numbers", place)
            rows.num_faulty += 1
        elif not (label.is_integer() and 0 <= label < num_classes):
            if not (labels.ignore_unknown and label.is_integer()):
                findings.refuse(f"{place}: expected a class of 0..{num_classes - 1}, got {words[0]}")
            else:
                findings.skip("object of a class without name", f"{place}, class {words[0]}")
        elif (label, *numbers) in seen:
            findings.skip("object listed twice", place)
        else:
            seen.add((label, *numbers))
            rows.image_index.append(image_index)
            rows.labels.append(int(label))
            rows.shares.extend(numbers)
            rows.lines.append(number)
    return True


def _numbers(
    words: list[str], labels: TextLabels, place: str, findings: Findings
) -> tuple[float | None, tuple[float, ...] | None]:
    """Return the class and the four shares of a line; None where it holds something else."""
    num_more = labels.num_key_point_numbers
    if num_more is not None and len(words) == NUM_OF_BOX + num_more:
        words = words[:NUM_OF_BOX]
    is_polygon = labels.polygons and num_more is None
    is_polygon = is_polygon and len(words) > _MIN_POLYGON_NUMBERS and len(words) % 2 == 1
    if not (is_polygon or len(words) == NUM_OF_BOX) or any("_" in word for word in words):  # Python reads 1_0 as 10
        return None, None
    try:
        label, *numbers = map(float, words)
    except ValueError:
        return None, None
    if "." in words[0]:
        findings.accept("class written with a decimal point", place)
    if not is_polygon:
        return label, tuple(numbers)
    findings.accept("polygon, the box around it is taken", place)
    if not all(map(math.isfinite, numbers)):
        return label, (math.nan,) * 4  # counted with the boxes that are not finite
    left, top, right, bottom = min(numbers[0::2]), min(numbers[1::2]), max(numbers[0::2]), max(numbers[1::2])
    return label, ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)


def _image_ids(paths: Sequence[Path]) -> npt.NDArray[np.int64]:
    """Return the numbers in the names of the images, as in COCO, where all are unique; else 1, 2, 3, ..."""
    names = [path.stem for path in paths]
    if all(name.isascii() and name.isdecimal() and len(name) < 19 for name in names):  # 64 bits hold 18 digits
        numbers = [int(name) for name in names]
        if len(set(numbers)) == len(numbers):
            return np.array(numbers, dtype=np.int64)
    return np.arange(1, len(paths) + 1, dtype=np.int64)


def _file_name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
