"""Data sets as Darknet describes them: a `.data` file that names lists of images and class names, text labels beside.

Keys of a `.data` file are `classes`, `train`, `valid` (each a list of images, one path a line) and `names` (one class a
line); what else Darknet reads there says where it writes and how it reports. Darknet starts relative paths at its
working directory; here they start at the folder of the file, the one above it, or the working directory, whichever has
the file. Darknet reads a label file as a stream of numbers, in which one too many shifts all that follow; here every
line is held to five, and another is counted and skipped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from detector.config.registry import nearest, register
from detector.data.coco import CocoAnnotations
from detector.data.dataset import Dataset, DatasetConfig, required_file
from detector.data.problems import Findings
from detector.data.txt_labels import checked_names, read_class_names, read_image_list, read_txt_labels
from detector.errors import DatasetError

_WANTED = "a .data file of Darknet"
_MAX_FILE_BYTES = 65_536  # a .data file is five lines
_READ = ("classes", "train", "valid", "names")
_KEYS = {"train": "train", "val": "valid"}  # by split
# Where Darknet writes, and how its own evaluation reports: nothing that changes what the data set is.
_OF_DARKNET = ("backup", "results", "eval", "difficult", "saveweights", "savelast", "top", "labels")
# Folders that Darknet replaces on the way from an image to its label file; no other one is.
_IMAGE_FOLDERS = {
    **{f"/images/{split}{year}/": f"/labels/{split}{year}/" for split in ("train", "val") for year in (2014, 2017)},
    "/JPEGImages/": "/labels/",
}


def label_file(image: Path) -> Path:
    """The label file of an image by Darknet's rule: beside it, or in `labels` where it lies as in COCO or VOC."""
    path = image.as_posix()
    for folder, labels in _IMAGE_FOLDERS.items():
        path = path.replace(folder, labels, 1)
    return Path(path).with_suffix(".txt")


@register("darknet")
class DarknetDataset(Dataset):
    """A `.data` file and the lists it names."""

    @dataclass(frozen=True)
    class Config(DatasetConfig):
        """Where the description is.

        Attributes:
            file: the `.data` file.
            ignore_unknown: count and skip objects of classes that it does not name, instead of refusing.
        """

        file: Path | None = None
        ignore_unknown: bool = False

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Tell whether the name of a file ends in `.data`."""
        return path.suffix.lower() == ".data"

    def split_names(self) -> tuple[str, ...]:
        """The splits that the `.data` file has.

        Raises:
            DatasetError: it cannot be read.
        """
        file = required_file(self.config.file, _WANTED)
        entries = read_data_file(file, Findings(str(file)))
        return tuple(name for name, key in _KEYS.items() if key in entries)

    def split(self, name: str) -> CocoAnnotations:
        """The annotations of `train` or `val`.

        Raises:
            DatasetError: the description is wrong, it has no such split, or its labels are refused.
        """
        file = required_file(self.config.file, _WANTED)
        findings = Findings(str(file))
        entries = read_data_file(file, findings)
        key = _KEYS.get(name)
        if key is None or key not in entries:
            raise DatasetError(f"{file}: has no split {name!r}; train= and valid= name the splits train and val")
        images_list = _found(file, entries[key])
        # A list that lies in a folder of its own still names paths from where the .data file starts.
        images = read_image_list(images_list, [*_starts(file), images_list.parent])
        return read_txt_labels(
            file,
            file.parent,
            images,
            label_file,
            _class_names(file, entries, findings),
            findings,
            ignore_unknown=self.config.ignore_unknown,
        )


@dataclass(frozen=True)
class DataEntry:
    """A value of a `.data` file and the line it stands on."""

    value: str
    line: int


def read_data_file(file: Path, findings: Findings) -> dict[str, DataEntry]:
    """The keys of a `.data` file; of a key that stands twice the first counts, as in Darknet.

    Raises:
        DatasetError: it cannot be read, or says what is not supported; every line that is wrong is named.
    """
    try:
        if file.stat().st_size > _MAX_FILE_BYTES:
            raise DatasetError(f"{file}: a .data file of at most {_MAX_FILE_BYTES} bytes is wanted, this has more")
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{file} cannot be read: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file} is no text in UTF-8, at byte {error.start}; a .data file is wanted") from error
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
            findings.refuse(f"line {number}: map joins classes to others, which is not supported; remove it")
        else:
            if key not in (*_READ, *_OF_DARKNET):
                findings.accept("key that is not read", f"{key}, line {number}{nearest(key, _READ)}")
            entries[key] = DataEntry(value, number)
    findings.raise_refusals()
    return entries


def _starts(file: Path) -> list[Path]:
    """Where relative paths of a `.data` file may start."""
    return [file.parent, file.parent.parent, Path.cwd()]


def _found(file: Path, entry: DataEntry) -> Path:
    value = entry.value.replace("\\", "/") if "/" not in entry.value else entry.value
    tried = [start / os.path.expanduser(value) for start in _starts(file)]  # unlike Path's, it takes any name
    for path in tried:
        if path.is_file():
            return path
    listed = ", ".join(dict.fromkeys(map(str, tried)))
    raise DatasetError(f"{file}:{entry.line}: {entry.value} is wanted, there is no such file; looked at {listed}")


def _class_names(file: Path, entries: Mapping[str, DataEntry], findings: Findings) -> tuple[str, ...]:
    classes, names = entries.get("classes"), entries.get("names")
    if classes is not None and not re.fullmatch(r"[1-9][0-9]{0,5}", classes.value):
        raise DatasetError(f"{file}:{classes.line}: classes= wants a number of classes, found {classes.value!r}")
    if names is None:
        if classes is None:
            raise DatasetError(f"{file}: names no class; write names= and a file of one class a line")
        return checked_names([""] * int(classes.value), str(file), findings)
    path = _found(file, names)
    found = read_class_names(path, findings)
    if classes is not None and int(classes.value) != len(found):
        raise DatasetError(
            f"{file}:{classes.line}: classes={classes.value}, but {path} has {len(found)} names; correct one of them"
        )
    return found
