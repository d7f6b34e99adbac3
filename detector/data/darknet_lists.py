"""Data sets of Darknet: a `.data` file that names lists of images and class names, and text label files.

Keys of a `.data` file are `classes`, `train`, `valid` (each a list of images, one path per line) and `names` (one class
per line); the other keys that Darknet reads say where it writes and how it reports. Darknet starts relative paths at
its working directory; here they start at the folder of the file, the one above it, or the working directory, whichever
holds the file. Darknet reads a label file as a stream of numbers, in which a surplus number shifts all later ones; here
every line must have five numbers, and any other line is counted and skipped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from detector.config.name_suggestions import nearest
from detector.config.registry import register
from detector.data.coco import CocoAnnotations
from detector.data.dataset import Dataset, DatasetConfig, required_file
from detector.data.file_reader import FoundData
from detector.data.path_contents import PathContents
from detector.data.problems import Findings
from detector.data.txt_labels import TextLabels, checked_names, read_class_names, read_image_list, read_txt_labels
from detector.errors import DatasetError
from detector.io.folders import found_by_end
from detector.io.text_file import read_text

_EXPECTED = "a .data file of Darknet"
_MAX_FILE_BYTES = 65_536  # a .data file is five lines
_READ = ("classes", "train", "valid", "names")
_KEYS = {"train": "train", "val": "valid"}  # by split
# Where Darknet writes, and how its own evaluation reports; these keys do not change the data set.
_OF_DARKNET = ("backup", "results", "eval", "difficult", "saveweights", "savelast", "top", "labels")
# Folders that Darknet replaces in the path of an image to get that of its label file; it replaces no other.
_IMAGE_FOLDERS = {
    **{f"/images/{split}{year}/": f"/labels/{split}{year}/" for split in ("train", "val") for year in (2014, 2017)},
    "/JPEGImages/": "/labels/",
}


def label_file(image: Path) -> Path:
    """Return the label file of an image by Darknet's rule: beside it, or in `labels` in the layouts of COCO and VOC."""
    path = image.as_posix()
    for folder, labels in _IMAGE_FOLDERS.items():
        path = path.replace(folder, labels, 1)
    return Path(path).with_suffix(".txt")


@register("darknet")
class DarknetDataset(Dataset):
    """A `.data` file and the lists that it names."""

    @dataclass(frozen=True)
    class Config(DatasetConfig):
        """Path of the description, and what is accepted.

        Attributes:
            file: the `.data` file.
            ignore_unknown: count and skip objects of classes that the file does not name, instead of refusing it.
        """

        file: Path | None = None
        ignore_unknown: bool = False

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Tell whether the name of a file ends in `.data`."""
        return path.suffix.lower() == ".data"

    @classmethod
    def recognise(cls, contents: PathContents) -> FoundData | Sequence[FoundData] | None:
        """Return the `.data` files that a path is or holds at its top."""
        names = [name for name in contents.ending(".data") if "/" not in name]
        return [_recognised(contents.root / name) for name in names] or None

    def split_names(self) -> tuple[str, ...]:
        """Return the names of the splits that the `.data` file has.

        Raises:
            DatasetError: the file cannot be read.
        """
        file = required_file(self.config.file, _EXPECTED)
        entries = read_data_file(file, Findings(str(file)))
        return tuple(name for name, key in _KEYS.items() if key in entries)

    def split(self, name: str) -> CocoAnnotations:
        """Return the annotations of `train` or `val`.

        Raises:
            DatasetError: the description is wrong or has no such split, or its labels are refused.
        """
        file = required_file(self.config.file, _EXPECTED)
        findings = Findings(str(file))
        entries = read_data_file(file, findings)
        key = _KEYS.get(name)
        if key is None or key not in entries:
            raise DatasetError(f"{file}: has no split {name!r}; train= and valid= name the splits train and val")
        images_list = _found(file, entries[key])
        # A list in a folder of its own still names paths relative to the same folders as the .data file.
        images = read_image_list(images_list, [*_starts(file), images_list.parent], findings)
        names = _class_names(file, entries, findings)
        labels = TextLabels(label_file, names, ignore_unknown=self.config.ignore_unknown)
        return read_txt_labels(file, file.parent, images, labels, findings)


@dataclass(frozen=True)
class DataEntry:
    """Value in a `.data` file and its line number."""

    value: str
    line: int


def read_data_file(file: Path, findings: Findings) -> dict[str, DataEntry]:
    """Return the entries of a `.data` file by key; of a duplicate key the first counts, as in Darknet.

    Raises:
        DatasetError: the file cannot be read, or has a key that is not supported; every wrong line is named.
    """
    text = read_text(file, "a .data file", _MAX_FILE_BYTES)
    entries: dict[str, DataEntry] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith(("#", ";")):
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not value:
            findings.accept("line without a value", f"line {number}")
        elif key in entries:
            findings.accept("key given twice, the first counts", f"{key}, line {number}")
        elif key == "map":
            findings.refuse(f"line {number}: map merges classes, which is not supported; remove it")
        else:
            if key not in (*_READ, *_OF_DARKNET):
                findings.accept("key that is not read", f"{key}, line {number}{nearest(key, _READ)}")
            entries[key] = DataEntry(value, number)
    findings.raise_refusals()
    return entries


def _starts(file: Path) -> list[Path]:
    """Return the folders that relative paths of a `.data` file may start from."""
    return [file.parent, file.parent.parent, Path.cwd()]


def _found(file: Path, entry: DataEntry) -> Path:
    value = entry.value.replace("\\", "/") if "/" not in entry.value else entry.value
    tried = [
        start / os.path.expanduser(value) for start in _starts(file)
    ]  # unlike Path.expanduser, it accepts any name
    for path in tried:
        if path.is_file():
            return path
    if (by_end := found_by_end(value, (file.parent,))) is not None and by_end.is_file():
        return by_end  # exports name paths of the machine that they are meant for, such as data/train.txt
    raise DatasetError(
        f"{file}:{entry.line}: {entry.value} does not exist, neither from {file.parent} nor from the folder above it "
        "or the working directory; correct the path"
    )


def _recognised(file: Path) -> FoundData:
    """Return what a `.data` file describes, as far as it can be read."""
    images: dict[str, int] = {}
    findings = Findings(str(file))
    try:
        entries = read_data_file(file, findings)
        for name, key in _KEYS.items():
            if key in entries:
                images[name] = len(read_image_list(_found(file, entries[key]), [file.parent]))
        return FoundData("Darknet data set", {"file": str(file)}, images, len(_class_names(file, entries, findings)))
    except DatasetError:  # reading a split reports it
        return FoundData("Darknet data set", {"file": str(file)})


def _class_names(file: Path, entries: Mapping[str, DataEntry], findings: Findings) -> tuple[str, ...]:
    classes, names = entries.get("classes"), entries.get("names")
    if classes is not None and not re.fullmatch(r"[1-9][0-9]{0,5}", classes.value):
        raise DatasetError(f"{file}:{classes.line}: classes=: expected a number of classes, got {classes.value!r}")
    if names is None:
        if classes is None:
            raise DatasetError(f"{file}: names no class; write names= and a file of one class per line")
        return checked_names([""] * int(classes.value), str(file), findings)
    path = _found(file, names)
    found = read_class_names(path, findings)
    if classes is not None and int(classes.value) != len(found):
        raise DatasetError(
            f"{file}:{classes.line}: classes={classes.value}, but {path} has {len(found)} names; correct one of them"
        )
    return found
