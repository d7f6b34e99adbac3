"""Text files with one object a line for each image, as KITTI, VisDrone and DOTA write them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from detector.data.annotation_builder import ListedObjects, NamedObject
from detector.data.foreign_listing import Listing, number_in, split_in, split_of
from detector.errors import DatasetError
from detector.io.folders import files_below

_MAX_BYTES = 2**26
ReadLine = Callable[[str, str], NamedObject | None]  # line, place


def list_lines(root: Path, folders: Sequence[str], read_line: ReadLine, files: Sequence[Path] | None) -> Listing:
    """List the label files of a data set and read their lines.

    Args:
        root: the folder of the data set; one of its folders may be a split.
        folders: the beginnings of the names, in lower case, of folders of label files.
        read_line: returns the object of a line, or None where it holds none; it raises `DatasetError`.
        files: the label files; None for all below such a folder.

    Raises:
        DatasetError: there is no label file, or lines are wrong (all are named).
    """
    listing = Listing(root)
    if files is None:
        files = [path for path in files_below(root) if path.suffix.lower() == ".txt" and _is_label(path, root, folders)]
    if not files:
        raise DatasetError(f"{root}: expected label files *.txt in a folder {folders[0]}, got none; name their folder")
    splits = _listed_splits(root)
    for file in files:
        words = file.relative_to(listing.folder).parent.parts
        split = splits.get(file.stem) or split_of(*words) or next(filter(None, map(split_in, reversed(words))), None)
        image = ListedObjects(file.stem, str(file), near=file.parent)
        listing.read_each([file], lambda path, image=image: _add_lines(image, path, read_line))  # type: ignore[misc]
        listing.add(image, split or split_in(listing.folder.name))
    listing.raise_if_wrong()
    return listing


def _is_label(path: Path, root: Path, folders: Sequence[str]) -> bool:
    """Tell whether a file is in a folder of labels, or in the root itself."""
    words = path.relative_to(root).parent.parts
    return not words or any(word.lower().startswith(name) for word in (*words, root.name) for name in folders)


def _listed_splits(root: Path) -> Mapping[str, str]:
    """Return the split of each stem in `ImageSets/train.txt` and so on."""
    splits = {}
    for name in ("train", "val", "test"):
        path = root / "ImageSets" / f"{name}.txt"
        if path.is_file():
            splits.update({os.path.splitext(line)[0]: name for line in _text(path).split()})
    return splits


def _add_lines(image: ListedObjects, file: Path, read_line: ReadLine) -> None:
    for number, line in enumerate(_text(file).splitlines(), start=1):
        item = read_line(line.strip(), f"{file}:{number}") if line.strip() else None
        if item is not None:
            image.objects.append(item)


def _text(path: Path) -> str:
    try:
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise DatasetError(f"{path}: expected a text file of at most {_MAX_BYTES} bytes, got {size}")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text at byte {error.start}") from error


def numbers_of(words: Sequence[str], place: str) -> list[float]:
    """Return words as numbers.

    Raises:
        DatasetError: one is none.
    """
    return [number_in({"a number": word}, "a number", place) for word in words]
