"""Sections of a COCO file: its images, annotations and categories, each entry checked on its own.

Every fault is added to a `Findings`; checks across sections are in `detector.data.coco`.
"""

from __future__ import annotations

import os
import posixpath
import re
import reprlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from detector.data.coco_rows import Rows, identifier_of, number_of
from detector.data.problems import Findings
from detector.errors import MediaError
from detector.io.json_stream import read_items
from detector.io.remote import may_open, names_in
from detector.media.images import image_hw

_SECTIONS = ("images", "categories", "annotations")
_MAX_SIDE = 2**31 - 1  # pixels; no image format holds more
# Shortest side in pixels and greatest ratio of the sides; beyond them no object is visible on a canvas.
_MIN_SIDE, _MAX_RATIO = 10, 50
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


class Names(Sequence[str]):
    """Sequence of texts without a Python object for each; it is equal to a tuple of the same texts.

    Forked worker processes share its memory: reading a text changes nothing in the block, while reading a text of a
    list changes its reference count and thereby copies a page of memory into the process. It is pickled in one piece.

    Args:
        names: the texts; a slice of the sequence is a tuple of them.
    """

    def __init__(self, names: Iterable[str]) -> None:
        # Names of files may not be valid UTF-8; Python represents the invalid bytes as surrogates.
        encoded = [name.encode("utf-8", "surrogatepass") for name in names]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._bounds = np.concatenate([[0], np.cumsum([len(name) for name in encoded], dtype=np.int64)])

    @classmethod
    def of_arrays(cls, block: npt.NDArray[np.uint8], bounds: npt.NDArray[np.int64]) -> Names:
        """Return texts whose bytes lie in a block, text i from `bounds[i]` to `bounds[i + 1]`; nothing is copied."""
        table = cls(())
        table._bytes, table._bounds = block, bounds
        return table

    @property
    def arrays(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """The block and the bounds that `of_arrays` takes."""
        return self._bytes, self._bounds

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, (Names, tuple)) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as for a list: it is compared, but never a key

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...

    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        position = range(len(self))[index]  # rejects an index past the end, counts a negative one from the end
        return (
            self._bytes[self._bounds[position] : self._bounds[position + 1]].tobytes().decode("utf-8", "surrogatepass")
        )


@dataclass
class ImageTable:
    """All images that a file lists, in the order of the file, whether their files exist or not.

    Attributes:
        index_of: position in the other fields by image id.
        file_names: file names as written; `find_images` gives those with backslashes the slashes of this system.
        from_url: indices of images whose file name was taken from `coco_url`, as FOLDER/NAME; LVIS has no other.
        sides: height and width of each image, as written and not rounded; 0, 0 where the file gives none.
    """

    index_of: dict[int, int] = field(default_factory=dict)
    file_names: list[str] = field(default_factory=list)
    from_url: list[int] = field(default_factory=list)
    sides: array[float] = field(default_factory=lambda: array("d"))

    def add(self, position: int, entry: object, allow_outside: bool, findings: Findings) -> None:
        """Add the image at a position of the list in the file."""
        if not isinstance(entry, dict):
            findings.refuse(f"images[{position}] must be an object, got {reprlib.repr(entry)}")
            return
        identifier = identifier_of(entry, "id", "images", position, findings)
        name = entry.get("file_name")
        is_from_url = name is None and (name := _name_in_url(entry.get("coco_url"))) is not None
        if not isinstance(name, str) or not name:
            findings.refuse(f"file_name of images[{position}] (id {identifier}) is missing or not a text")
            name = ""
        elif not allow_outside and _leads_outside(name):
            findings.refuse(
                f"file_name {name!r} of images[{position}] leads out of the folder of images "
                f"(data.allow_outside=true permits it)"
            )
        if identifier is None:
            return
        if identifier in self.index_of:
            first = self.file_names[self.index_of[identifier]]
            findings.refuse(f"image id {reprlib.repr(identifier)} is used twice ({first} and {name})")
        sides = _side(entry.get("height")), _side(entry.get("width"))
        self.index_of[identifier] = len(self.file_names)
        if is_from_url:
            self.from_url.append(len(self.file_names))
        self.file_names.append(name)
        self.sides.extend(sides if all(sides) else (0.0, 0.0))


@dataclass
class CocoParts:
    """Sections of a COCO file.

    Attributes:
        images: the images.
        rows: the annotations.
        class_names: names of the categories, sorted by id.
        category_ids: ids of the categories, ascending.
    """

    images: ImageTable
    rows: Rows
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]


def read_parts(
    path: Path,
    require_annotations: bool,
    allow_outside: bool,
    findings: Findings,
    new_rows: Callable[[], Rows] = Rows,
) -> CocoParts:
    """Read a file section by section, in little memory.

    Refused entries are left out, so that the rest can be checked for more faults.

    Args:
        path: the file.
        require_annotations: whether a file without the key `annotations` is refused.
        allow_outside: whether file names may lead out of the folder of images.
        findings: the faults; those of single entries are added.
        new_rows: makes the rows that take the annotations.

    Raises:
        DatasetError: the file is not JSON, or has no images or no categories.
    """

    def on_twice(key: str, place: str) -> None:
        findings.accept("key given twice in one object, the last is taken", f"{key} in {place}")

    images, rows, categories = ImageTable(), new_rows(), list[object]()
    found: dict[str, bool] = {}
    for key, position, entry in read_items(path, _SECTIONS, on_twice):
        if position < 0:  # a section begins; a duplicate key starts it again
            if key == "images":
                images = ImageTable()
            elif key == "annotations":
                rows = new_rows()
            else:
                categories = []
            found[key] = False
            if not key:
                what = "a list (of results?)" if isinstance(entry, list) else reprlib.repr(entry)
                findings.refuse(f"expected an object with the keys {', '.join(_SECTIONS)}, got {what}")
            elif not isinstance(entry, list):
                findings.refuse(f"{key!r} must be a list, got {reprlib.repr(entry)}")
                found[key] = True
        else:
            found[key] = True
            if key == "images":
                images.add(position, entry, allow_outside, findings)
            elif key == "annotations":
                rows.add(position, entry, findings)
            else:
                categories.append(entry)
    for key in _SECTIONS if "" not in found else ():
        is_needed = key != "annotations" or require_annotations
        if key not in found and is_needed:
            findings.refuse(f"the key {key!r} is missing (a COCO file has the keys {', '.join(_SECTIONS)})")
        elif not found.get(key) and key in found and key != "annotations":
            findings.refuse(f"the list {key!r} is empty")
    class_names, category_ids = read_categories(categories, findings)
    if not images.file_names or not category_ids:
        findings.raise_refusals()
    return CocoParts(images, rows, class_names, category_ids)


def read_categories(entries: list[object], findings: Findings) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return names and ids of the categories, sorted by id."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            findings.refuse(f"categories[{position}] must be an object, got {reprlib.repr(entry)}")
            continue
        identifier = identifier_of(entry, "id", "categories", position, findings)
        if identifier is None:
            continue
        if identifier in names:
            findings.refuse(f"category id {reprlib.repr(identifier)} is used twice")
        name = entry.get("name")
        if not isinstance(name, str) or not name.strip() or not _is_unicode(name):
            name = f"class_{identifier}"
            findings.accept("category without name", f"category {reprlib.repr(identifier)}, now {name}")
        elif name in taken:
            findings.accept("category name used twice", f"{name}, category {reprlib.repr(identifier)}")
        taken.add(name)
        names[identifier] = name
    category_ids = tuple(sorted(names))
    return tuple(names[identifier] for identifier in category_ids), category_ids


def _is_unicode(text: str) -> bool:
    """Tell whether a text can be encoded: JSON can hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _side(value: object) -> float:
    """Return a number of pixels of at least one half; 0 for anything else."""
    number = number_of(value)
    return number if number is not None and 0.5 <= number <= _MAX_SIDE else 0.0


def _leads_outside(file_name: str) -> bool:
    """Tell whether a name is absolute or leads to a parent folder; both kinds of slash count on every system."""
    if file_name.startswith(("/", "\\")) or _DRIVE.match(file_name):
        return True
    if ".." not in file_name:
        return False
    plain = posixpath.normpath(file_name.replace("\\", "/"))
    return plain == ".." or plain.startswith("../")


def _name_in_url(url: object) -> str | None:
    """Return the last folder and the file name of a URL, such as train2017/000000391895.jpg, or None."""
    scheme = _URL.match(url) if isinstance(url, str) else None
    if scheme is None:
        return None
    return "/".join(scheme.string[scheme.end() :].partition("?")[0].split("/")[1:][-2:]) or None


def _as_in_folder(table: ImageTable, folder: Path) -> None:
    """Replace names that a folder does not have by those it has: with other slashes, or without the folder of a URL."""
    if may_open(folder):
        return
    others = {index: name.replace("\\", "/") for index, name in enumerate(table.file_names) if "\\" in name}
    others |= {index: posixpath.basename(table.file_names[index]) for index in table.from_url}
    for index, other in others.items():
        if not os.path.isfile(folder / table.file_names[index]) and os.path.isfile(folder / other):
            table.file_names[index] = other


def find_images(table: ImageTable, folder: Path | None, findings: Findings) -> npt.NDArray[np.bool_]:
    """Return which images exist in a folder, bool (N,), all without a folder; a name of a folder is refused."""
    names = table.file_names
    if folder is not None:
        _as_in_folder(table, folder)
    is_present = np.ones(len(names), dtype=np.bool_) if folder is None else _exist(folder, names)
    for index in np.flatnonzero(~is_present).tolist():
        if folder is not None and os.path.isdir(folder / names[index]):
            findings.refuse(f"file_name {names[index]!r} names a folder, expected an image")
        elif _URL.match(names[index]):
            findings.skip("image given as a URL, which is not downloaded", names[index])
        else:
            findings.skip("image file missing", names[index])
    seen: set[str] = set()
    if len(set(names)) < len(names):
        for name in names:
            if name in seen:
                findings.accept("image file listed twice", name)
            seen.add(name)
    return is_present


def image_sizes(
    table: ImageTable, folder: Path | None, is_present: npt.NDArray[np.bool_], findings: Findings
) -> npt.NDArray[np.int64]:
    """Return height and width of every image, int64 (N, 2), from the image file where the annotation file has none.

    An image whose file has another size than the written one is skipped: `is_present` becomes false.
    """
    sides = np.array(table.sides, dtype=np.float64).reshape(-1, 2)
    sizes = np.rint(sides).astype(np.int64)
    for index in np.flatnonzero(is_present & ((sides == 0) | (sides != sizes)).any(axis=1)).tolist():
        name = table.file_names[index]
        is_written = bool(sides[index].all())
        kind = "image size that is not a whole number" if is_written else "image without width and height"
        if folder is not None:
            try:
                sizes[index] = image_hw(folder / name)
            except MediaError:
                findings.accept(f"{kind}, and its file gives none", name)
                continue
            if is_written and (np.abs(sides[index] - sizes[index]) >= 1).any():
                is_present[index] = False
                findings.skip("image of another size than its file", name)
                continue
        findings.accept(kind if folder is None else f"{kind}, read from its file", name)
    known = is_present & sizes.all(axis=1)
    shorter, longer = sizes.min(axis=1), sizes.max(axis=1)
    is_odd = known & ((shorter < _MIN_SIDE) | (longer > _MAX_RATIO * shorter))
    findings.count(
        "image too narrow to learn from",
        "accepted",
        np.flatnonzero(is_odd),
        lambda index: f"{table.file_names[index]}, {sizes[index, 1]} x {sizes[index, 0]}",
    )
    return sizes


def _exist(images: Path, file_names: list[str]) -> npt.NDArray[np.bool_]:
    """Return which files exist, bool (N,); each folder is listed once, which is far cheaper than a check per file."""
    listings: dict[str, set[str]] = {}
    is_present = np.zeros(len(file_names), dtype=np.bool_)
    if may_open(images):
        return _exist_remotely(images, file_names)
    for index, file_name in enumerate(file_names):
        folder, base = os.path.split(file_name)
        if folder not in listings:
            listings[folder] = _list_files(images / folder)
        # File systems that ignore case or Unicode forms may find a name that is not listed.
        is_present[index] = base in listings[folder] or os.path.isfile(images / file_name)
    return is_present


def _exist_remotely(images: Path, file_names: list[str]) -> npt.NDArray[np.bool_]:
    """Return which files a storage lists, bool (N,); all where it cannot list a folder."""
    listings: dict[str, set[str] | None] = {}
    is_present = np.ones(len(file_names), dtype=np.bool_)
    for index, file_name in enumerate(file_names):
        folder, base = posixpath.split(file_name)
        if folder not in listings:
            listings[folder] = names_in(images / folder)
        listing = listings[folder]
        is_present[index] = listing is None or base in listing
    return is_present


def _list_files(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (OSError, ValueError):  # missing, unreadable or an invalid name: each file is checked
        return set()
