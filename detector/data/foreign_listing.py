"""Images and objects as a reader of another program's files lists them, and what all such readers have in common."""

from __future__ import annotations

import functools
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from detector.data.annotation_builder import DIFFICULT, ListedObjects, NamedObject, assemble
from detector.data.foreign_dataset import Splits
from detector.data.image_finder import ImageFinder
from detector.data.problems import NUM_LISTED_REFUSALS, shown
from detector.data.split_words import SPLIT_WORDS, SPLITS
from detector.errors import DatasetError
from detector.io.nouns import plural

EVERY_CLASS = ""  # class name of a region in which objects of all classes are ignored
_MAX_REGIONS = 2_000_000  # of all classes together; KITTI has 90,000


@dataclass
class Listing:
    """Content of a data set as written.

    Attributes:
        root: the annotation file, or the folder of the data set.
        images: the folder of the images; None for the places below and beside the data set.
        splits: images by split, with file names as written; the place of an image begins with its file.
        notes: how the data set was interpreted.
        left_out: number of shapes without an area, such as points, by their name.
        are_shares: whether corners are shares of the image instead of pixels.
        class_names: the classes in the order of their ids, where the format has such an order.
        wrong: faults that make files unusable.
    """

    root: Path
    images: Path | None = None
    splits: dict[str, list[ListedObjects]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    are_shares: bool = False
    class_names: tuple[str, ...] = ()
    wrong: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """The folder of the data set."""
        return self.root if self.root.is_dir() else self.root.parent

    @functools.cached_property
    def finder(self) -> ImageFinder:
        """The finder of the images."""
        return ImageFinder(self.images or self.folder, beside=self.images is None)

    def split_of(self, file: Path, *more: str) -> str | None:
        """Return the split that a folder of an annotation file, or one of some other words, means."""
        return split_of(*more) or split_of(*file.relative_to(self.folder).parent.parts)

    def listed(self) -> list[ListedObjects]:
        """Return the images of all splits."""
        return [image for of_split in self.splits.values() for image in of_split]

    def add(self, image: ListedObjects, split: str | None = None) -> None:
        """Add an image to a split, by default `train`."""
        self.splits.setdefault(split or "train", []).append(image)

    def find_shares(self) -> None:
        """Take corners as shares of the image if none is above 1 and not all are whole numbers."""
        numbers = [number for image in self.listed() for item in image.objects for number in item.source_xyxy]
        finite = [number for number in numbers if math.isfinite(number)]
        self.are_shares = bool(finite) and max(finite) <= 1 and any(not number.is_integer() for number in finite)
        if self.are_shares:
            self.notes.append("no number is above 1: numbers are taken as shares of the image, not as pixels")

    def read_each(self, files: Iterable[Path], read: Callable[[Path], None]) -> None:
        """Read files one by one; faults are collected, so that one error names all of them."""
        for file in files:
            try:
                read(file)
            except DatasetError as error:
                self.wrong.append(str(error))

    def raise_if_wrong(self) -> None:
        """Raise all faults as one error.

        Raises:
            DatasetError: there are faults.
        """
        if self.wrong:
            rest = len(self.wrong) - NUM_LISTED_REFUSALS
            more = f"; and {rest} more" if rest > 0 else ""
            raise DatasetError(f"{self.root} cannot be used: {'; '.join(self.wrong[:NUM_LISTED_REFUSALS])}{more}")


def assembled(listing: Listing, difficult: str = "ignore") -> tuple[Splits, list[str]]:
    """Find the images of a listing and build its splits.

    Args:
        listing: the content; its file names are replaced by those of the files found.
        difficult: treatment of objects with `difficult`: `ignore` (in training and in evaluation), `keep` or `drop`.

    Returns:
        The splits, and notes on what was assumed or left out.

    Raises:
        DatasetError: files are wrong (all are named), or too many images or boxes cannot be used.
    """
    listing.raise_if_wrong()
    treat_difficult(listing, difficult)
    folder = _find_images(listing)
    if listing.left_out:
        counts = ", ".join(f"{number} x {shown(name)}" for name, number in sorted(listing.left_out.items()))
        listing.notes.append(f"shapes that have no box are left out: {counts}")
    _expand_regions(listing)
    splits = {name: listing.splits[name] for name in SPLITS if name in listing.splits}
    made = assemble(listing.root, folder, splits, are_shares=listing.are_shares, class_names=listing.class_names)
    return made, listing.notes


def treat_difficult(listing: Listing, how: str) -> None:
    """Ignore, keep or drop the objects with `difficult`, with a note."""
    count = 0
    for image in listing.listed():
        count += sum("difficult" in item.extras for item in image.objects)
        image.objects = [
            replace(item, is_ignored=how == "ignore") if "difficult" in item.extras else item
            for item in image.objects
            if how != "drop" or "difficult" not in item.extras
        ]
    if count:
        listing.notes.append(f"{count} difficult objects {DIFFICULT[how]}")


def _expand_regions(listing: Listing) -> None:
    """Replace each region of every class by a crowd region for each of the classes.

    Raises:
        DatasetError: there are more than `_MAX_REGIONS` of them.
    """
    listed = listing.listed()
    regions = [item for image in listed for item in image.objects if item.class_name == EVERY_CLASS]
    if not regions:
        return
    used = {item.class_name for image in listed for item in image.objects} - {EVERY_CLASS}
    names = [*listing.class_names, *sorted(used.difference(listing.class_names))]
    if len(regions) * len(names) > _MAX_REGIONS:
        raise DatasetError(
            f"{listing.root}: {len(regions)} ignored regions of each of {len(names)} classes > limit of "
            f"{_MAX_REGIONS}; check the names of the classes"
        )
    for image in listed:
        image.objects = [
            replace(item, class_name=name)
            for item in image.objects
            for name in (names if item.class_name == EVERY_CLASS else (item.class_name,))
        ]
    listing.notes.append(
        f"{plural(len(regions), 'ignored region')} without a class: a crowd region for each of {len(names)} classes, "
        "ignored in training and in evaluation"
    )


def _find_images(listing: Listing) -> Path:
    """Set file names to those of the files found; return the folder that they start from.

    Images that the annotations do not name are reported.
    """
    found: dict[int, Path] = {}
    num_joined = 0
    for images in listing.splits.values():
        by_path: dict[Path, ListedObjects] = {}
        kept = []
        for image in images:
            path = listing.finder.find(image.file_name, image.near or listing.folder)
            if path is not None and path in by_path:
                by_path[path].objects += image.objects
                num_joined += 1
                continue
            kept.append(image)
            if path is not None:
                found[id(image)], by_path[path] = path, image
        images[:] = kept
    if num_joined:
        listing.notes.append(f"{plural(num_joined, 'image')} named more than once, with all objects of each name")
    _report_others(listing, listing.finder.others(set(found.values())))
    roots = [listing.images or listing.folder, *(path.parent for path in found.values())]
    folder = Path(os.path.commonpath([os.path.abspath(root) for root in dict.fromkeys(roots)]))
    for image in listing.listed():
        path = found.get(id(image))
        name = PurePath(os.path.abspath(path)).relative_to(folder).as_posix() if path else _plain(image.file_name)
        image.file_name = name
    return folder


def _report_others(listing: Listing, others: Sequence[Path]) -> None:
    if others:
        first = os.path.relpath(others[0], listing.folder)
        listing.notes.append(f"{plural(len(others), 'image')} without annotations left out, first: {shown(first)}")


def _plain(name: str) -> str:
    """Return the name of a missing image, which stays within the folder."""
    return PurePath(name.replace("\\", "/").replace("\0", "?")).name or "?"


def split_of(*words: str) -> str | None:
    """Return the split that one of some names of folders means, the last one first; None where none does."""
    return next((SPLIT_WORDS[word.lower()] for word in reversed(words) if word.lower() in SPLIT_WORDS), None)


def split_in(name: str) -> str | None:
    """Return the split that is one of the words of a name, such as VisDrone2019-DET-val."""
    return split_of(*re.findall(r"[a-z]+", name.lower()))


def number_in(values: Mapping[str, Any], key: str, place: str) -> float:
    """Return a number; texts of numbers count, as some programs write them.

    Raises:
        DatasetError: there is no number.
    """
    value = values.get(key)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    try:
        return float(value if isinstance(value, str) and "_" not in value else "")  # Python reads 1_0 as 10
    except ValueError as error:
        got = "none" if value is None else shown(repr(value))
        raise DatasetError(f"{place}: {key}: expected a number, got {got}") from error


def typed(value: object, kind: type | tuple[type, ...], what: str, place: str) -> Any:
    """Return a value of a JSON file if it has the expected type.

    Raises:
        DatasetError: it has another one.
    """
    if not isinstance(value, kind):
        got = "none" if value is None else f"{type(value).__name__} {shown(repr(value))[:60]}"
        raise DatasetError(f"{place}: expected {what}, got {got}")
    return value


def points_in(value: object, place: str) -> list[tuple[float, float]]:
    """Return points that are written as [[x, y], ...].

    Raises:
        DatasetError: they are not.
    """
    points = []
    for point in typed(value, list, "a list of points [x, y]", place):
        if not isinstance(point, list) or len(point) < 2:
            raise DatasetError(f"{place}: expected a point [x, y], got {shown(repr(point))[:60]}")
        pair = dict(zip("xy", point, strict=False))
        points.append((number_in(pair, "x", place), number_in(pair, "y", place)))
    if not points:
        raise DatasetError(f"{place}: expected points, got none")
    return points


def side_in(values: Mapping[str, Any], key: str) -> int:
    """Return a side of an image in pixels; 0 where none is written."""
    text = str(values.get(key) or "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 9 else 0


def hw_in(values: Mapping[str, Any], height: str, width: str) -> tuple[int, int]:
    """Return height and width of an image; 0, 0 where one is not written."""
    hw = side_in(values, height), side_in(values, width)
    return hw if all(hw) else (0, 0)


def named(class_name: object, corners: tuple[float, float, float, float], place: str, **more: Any) -> NamedObject:
    """Return an object of a class.

    Raises:
        DatasetError: the class is missing.
    """
    name = str(class_name).strip() if isinstance(class_name, (str, int)) else ""
    if not name:
        raise DatasetError(f"{place}: the class is missing")
    return NamedObject(name, corners, place, **more)
