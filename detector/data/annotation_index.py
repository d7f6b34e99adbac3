"""Index of a large annotation file: its checked arrays on disk, mapped into memory, with statistics of the classes.

It is built in one pass over the file, in little memory, and opened at once; all processes of a machine share its pages.
An index belongs to the file as it was, by size and time, and to the settings of the reader: another file gets another
index. Images are looked for when the index is built; one that is missing later is reported when it is read.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from detector.data.coco import CocoAnnotations, KeptRows, checked_rows, digest_of, require_enough
from detector.data.coco_file import CocoParts, Names, find_images, image_sizes, read_parts
from detector.data.image_cache import prepare_cache_folder
from detector.data.problems import Findings, Problem
from detector.data.spilled_rows import SpilledRows
from detector.errors import DatasetError
from detector.io.announcements import announce
from detector.io.files import write_whole
from detector.io.remote import may_open

_FORMAT = "annotation index 1"
_DOCUMENT = "index.json"
_IMAGES_PER_BUCKET = 2**15
_CHUNK_BYTES = 2**20
_ROW = np.dtype([("image", "<i8"), ("label", "<i8"), ("crowd", "?"), ("area", "<f8"), ("box", "<f8", 4)])
# Files of an index, and the fields of `CocoAnnotations` that they hold.
_PER_IMAGE = ("image_ids", "image_hw", "offsets")
_PER_BOX = {"boxes_xywh": "box", "labels": "label", "is_crowd": "crowd", "areas": "area"}
_NAMES = ("name_bytes", "name_bounds")
# Bounds of small and medium objects in square pixels: https://cocodataset.org/#detection-eval
_SIZE_BOUNDS = (32**2, 96**2)


@dataclass(frozen=True)
class ClassStatistics:
    """Objects of one class.

    Attributes:
        name: the class.
        num_boxes: boxes, crowd regions included.
        num_crowd: crowd regions.
        num_images: images with a box.
        num_small, num_medium, num_large: boxes by area, as COCO bounds them.
    """

    name: str
    num_boxes: int
    num_crowd: int
    num_images: int
    num_small: int
    num_medium: int
    num_large: int


@dataclass(frozen=True, eq=False)
class IndexedAnnotations(CocoAnnotations):
    """Annotations whose arrays are mapped from an index; they cannot be written to.

    Attributes:
        known_digest: `digest()` of the annotations of the index.
        indexed: the arrays that it is the digest of.
        statistics: the classes.
    """

    known_digest: str = ""
    indexed: tuple[object, ...] = ()
    statistics: tuple[ClassStatistics, ...] = ()

    def digest(self) -> str:
        """Return the SHA-256 of the content, from the index as long as nothing was replaced."""
        own = (self.class_names, self.category_ids, self.file_names, self.boxes_xywh, self.labels)
        is_whole = len(self.indexed) == len(own) and all(a is b for a, b in zip(own, self.indexed, strict=True))
        return self.known_digest if is_whole else super().digest()


def indexed_coco(
    annotations: Path, images: Path, folder: Path, *, ignore_unknown: bool = False, allow_outside: bool = False
) -> IndexedAnnotations:
    """Return the annotations that `read_coco` reads, from an index that is built if there is none of this file.

    Boxes that seem to be in another format are counted for each chunk of the file on its own.

    Args:
        annotations: the COCO file.
        images: the folder that its file names are relative to.
        folder: the folder of indexes, outside the data set.
        ignore_unknown: as in `read_coco`.
        allow_outside: as in `read_coco`.

    Raises:
        ConfigError: the folder lies in the data set, or cannot be created.
        DatasetError: as `read_coco` raises, or the disk refuses.
    """
    prepare_cache_folder(folder, annotations, images, "data.index")
    try:
        status = annotations.stat()
    except OSError as error:
        raise DatasetError(f"{annotations} cannot be read: {error.strerror}; check the path") from error
    places = [os.path.abspath(annotations), os.path.abspath(images)]
    identity = [_FORMAT, *places, status.st_size, status.st_mtime_ns, ignore_unknown, allow_outside]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    own = folder / f"{annotations.stem[:60]}-{key[:16]}"
    found = _opened(own, annotations, images)
    if found is None:
        fault = "; the one that is there is damaged or inconsistent" if own.exists() else ""
        announce(f"{annotations}: building an index of it in {own}{fault}")
        read = functools.partial(_read, annotations, images, ignore_unknown, allow_outside)
        _build(own, read)
        found = _opened(own, annotations, images)
    if found is None:
        raise DatasetError(f"{own} cannot be read after it was written; check the disk")
    return found


def _opened(folder: Path, annotations: Path, images: Path) -> IndexedAnnotations | None:
    """Return the annotations of an index; None where there is none, or it is damaged or inconsistent."""
    try:
        document = json.loads((folder / _DOCUMENT).read_text("utf-8"))
        fields: dict[str, Any] = {name: _mapped(folder, name) for name in (*_PER_IMAGE, *_PER_BOX)}
        name_bytes, name_bounds = (_mapped(folder, name) for name in _NAMES)
        _require_consistent({**fields, "name_bytes": name_bytes, "name_bounds": name_bounds})
        names = Names.of_arrays(name_bytes, name_bounds)
        class_names, category_ids = tuple(document["class_names"]), tuple(document["category_ids"])
        problems = tuple(Problem(**{**each, "examples": tuple(each["examples"])}) for each in document["problems"])
        statistics = tuple(ClassStatistics(**each) for each in document["statistics"])
        digest = document["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return IndexedAnnotations(
        annotations=annotations,
        images=images,
        class_names=class_names,
        category_ids=category_ids,
        file_names=names,
        problems=problems,
        known_digest=digest,
        indexed=(class_names, category_ids, names, fields["boxes_xywh"], fields["labels"]),
        statistics=statistics,
        **fields,
    )


def _require_consistent(arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Reject arrays whose types, lengths or offsets do not fit together; the values of boxes are not read.

    Raises:
        ValueError: they do not.
    """
    num_images, num_boxes = len(arrays["image_ids"]), len(arrays["labels"])
    per_box = {name: (_ROW[field].base, (num_boxes, *_ROW[field].shape)) for name, field in _PER_BOX.items()}
    expected = {
        "image_ids": (np.dtype("<i8"), (num_images,)),
        "image_hw": (np.dtype("<i8"), (num_images, 2)),
        "offsets": (np.dtype("<i8"), (num_images + 1,)),
        "name_bounds": (np.dtype("<i8"), (num_images + 1,)),
        "name_bytes": (np.dtype("u1"), (len(arrays["name_bytes"]),)),
        **per_box,
    }
    if {name: (array.dtype, array.shape) for name, array in arrays.items()} != expected:
        raise ValueError("types and lengths")
    for name, end in (("offsets", num_boxes), ("name_bounds", len(arrays["name_bytes"]))):
        bounds = arrays[name]
        if bounds[0] != 0 or bounds[-1] != end or (bounds[1:] < bounds[:-1]).any():
            raise ValueError(name)


def _mapped(folder: Path, name: str) -> npt.NDArray[Any]:
    path = folder / f"{name}.npy"
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, _ = np.lib.format.read_array_header_1_0(file)
    loaded: npt.NDArray[Any] = np.load(path, mmap_mode="r" if all(shape) else None, allow_pickle=False)
    return loaded.view(np.ndarray)  # without the Python methods of a memory map, which slow each access down


def _build(folder: Path, read: Any) -> None:
    """Write an index beside its place, then rename it; another process may be faster.

    Raises:
        DatasetError: the annotations are refused, or the disk refuses.
    """
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        read(partial)
        if folder.exists():  # damaged, or another process was faster
            shutil.rmtree(folder)
        partial.rename(folder)
    except OSError as error:
        if not folder.is_dir():
            raise DatasetError(f"{folder} cannot be written: {error.strerror or error}; check the disk") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read(annotations: Path, images: Path, ignore_unknown: bool, allow_outside: bool, folder: Path) -> None:
    """Read a COCO file into the folder of an index."""
    if not images.is_dir() and not may_open(images):
        raise DatasetError(f"the folder of images {images} (for {annotations}) does not exist; check the path")
    findings, chunks = Findings(str(annotations)), folder / "chunks"
    chunks.mkdir()
    rows: list[SpilledRows] = []

    def new_rows() -> SpilledRows:
        rows[:] = [SpilledRows(chunks)]
        return rows[0]

    parts = read_parts(annotations, True, allow_outside, findings, new_rows)
    is_present = find_images(parts.images, images, findings)
    image_hw = image_sizes(parts.images, images, is_present, findings)
    check = functools.partial(checked_rows, images=images, findings=findings, ignore_unknown=ignore_unknown)
    kept = (check(replace(parts, rows=each), is_present, image_hw) for each in rows[-1].chunks())
    buckets = _Buckets(folder, len(is_present))
    num_listed, hint = buckets.fill(kept)
    findings.raise_refusals()  # where there is no row
    repeated = rows[-1].repeated_ids()
    positions = np.arange(len(repeated))
    findings.count("annotation id used twice", "accepted", positions, lambda i: f"annotation {repeated[i]}")
    names = parts.images.file_names
    present = require_enough(names, is_present, buckets.num_boxes, num_listed, hint, findings)
    shutil.rmtree(chunks)
    _write_index(folder, parts, (present, image_hw), buckets, findings.problems)


class _Buckets:
    """Rows of an annotation file on disk, divided by ranges of images, each of which fits into memory.

    Attributes:
        num_boxes: int64 (N,), rows of each image of the file.
    """

    def __init__(self, folder: Path, num_images: int) -> None:
        self.num_boxes = np.zeros(num_images, np.int64)
        self._num_images, self._count = num_images, -(-num_images // _IMAGES_PER_BUCKET)
        self._paths = [folder / f"bucket-{number}.rows" for number in range(self._count)]

    def fill(self, kept: Iterator[KeptRows]) -> tuple[int, str]:
        """Write the rows; return the number of listed rows and a hint at another box format."""
        num_listed, hint = 0, ""
        for part in kept:
            num_listed, hint = num_listed + part.num_listed, hint or part.hint
            rows = np.zeros(len(part.labels), _ROW)
            rows["image"], rows["label"], rows["crowd"] = part.image_index, part.labels, part.is_crowd
            rows["area"], rows["box"] = part.areas, part.boxes_xywh
            self.num_boxes += np.bincount(part.image_index, minlength=self._num_images)
            numbers = part.image_index // _IMAGES_PER_BUCKET
            for number in np.unique(numbers).tolist():
                with self._paths[number].open("ab") as file:
                    rows[numbers == number].tofile(file)
        return num_listed, hint

    def sorted(self) -> Iterator[npt.NDArray[np.void]]:
        """Yield all rows by image, those of an image in the order of the file, and remove each bucket."""
        for path in self._paths:
            if path.exists():
                rows = np.fromfile(path, _ROW)
                path.unlink()
                yield rows[np.argsort(rows["image"], kind="stable")]


def _write_index(
    folder: Path,
    parts: CocoParts,
    images: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    buckets: _Buckets,
    problems: Sequence[Problem],
) -> None:
    present, image_hw = images
    names = Names(parts.images.file_names[index] for index in present.tolist())
    try:
        image_ids = np.array(list(parts.images.index_of), np.int64)[present]
    except OverflowError as error:
        raise DatasetError("ids of more than 64 bits cannot be indexed; leave data.index out") from error
    parts.images.index_of.clear()
    parts.images.file_names.clear()
    offsets = np.concatenate([[0], np.cumsum(buckets.num_boxes[present])]).astype(np.int64)
    own: dict[str, npt.NDArray[Any]] = {"image_ids": image_ids, "image_hw": image_hw[present], "offsets": offsets}
    own["name_bytes"], own["name_bounds"] = names.arrays
    for name, array in own.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    tally = _Tally(parts.class_names)
    files = {name: (folder / f"{name}.npy").open("wb") for name in _PER_BOX}
    try:
        for name, field in _PER_BOX.items():
            base = _ROW[field]
            shape = (int(offsets[-1]), *base.shape)
            header = {"descr": np.lib.format.dtype_to_descr(base.base), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(files[name], header)
        for rows in buckets.sorted():
            tally.add(rows)
            for name, field in _PER_BOX.items():
                files[name].write(np.ascontiguousarray(rows[field]).tobytes())
    finally:
        for file in files.values():
            file.close()
    blocks = (block for name in ("image_hw", "offsets", *_PER_BOX) for block in _content(folder / f"{name}.npy"))
    classes = (parts.class_names, parts.category_ids)
    document: Mapping[str, object] = {
        "class_names": parts.class_names,
        "category_ids": parts.category_ids,
        "digest": digest_of(classes, image_ids.tolist(), names, blocks),
        "problems": [asdict(problem) for problem in problems],
        "statistics": [asdict(each) for each in tally.statistics()],
    }
    content = json.dumps(document).encode()
    write_whole(folder / _DOCUMENT, lambda file: file.write(content))


def _content(path: Path) -> Iterator[bytes]:
    """Yield the bytes of an array in a .npy file."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        yield from _blocks(file)


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(_CHUNK_BYTES):
        yield block


class _Tally:
    """Counts of the classes over buckets of whole images."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self._names = class_names
        self._counts = np.zeros((6, len(class_names)), np.int64)  # in the order of `ClassStatistics`

    def add(self, rows: npt.NDArray[np.void]) -> None:
        """Add the rows of a bucket."""
        num, labels = len(self._names), rows["label"]
        small, large = rows["area"] < _SIZE_BOUNDS[0], rows["area"] >= _SIZE_BOUNDS[1]
        pairs = np.unique(rows["image"] * num + labels) % num
        groups = (labels, labels[rows["crowd"]], pairs, labels[small], labels[~small & ~large], labels[large])
        for counts, own in zip(self._counts, groups, strict=True):
            counts += np.bincount(own, minlength=num)

    def statistics(self) -> list[ClassStatistics]:
        """Return the counts by class."""
        columns = self._counts.T.tolist()
        return [ClassStatistics(name, *counts) for name, counts in zip(self._names, columns, strict=True)]
