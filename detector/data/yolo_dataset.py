"""Data sets of the YOLO family: a `data.yaml` that names folders and classes, and text label files.

The keys are `path` (where the others start; the folder of the file by default), `train`, `val`, `test` (a folder, a
`.txt` list of images, or several of these), `names` (a list, or number: name) and `nc` (their number). The labels of
`.../images/a/b.jpg` are in `.../labels/a/b.txt`; an image that is in no folder `images` has its labels beside it.
`download` is never followed; other keys have no effect on detection.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detector.config.nodes import MAX_FILE_BYTES, Node, describe, plain_of, read_foreign
from detector.config.registry import register
from detector.data.coco import CocoAnnotations
from detector.data.dataset import Dataset, DatasetConfig, required_file
from detector.data.problems import Findings
from detector.data.txt_labels import ListedImage, TextLabels, checked_names, read_image_list, read_txt_labels
from detector.errors import ConfigError, DatasetError
from detector.io.folders import files_below
from detector.media.images import IMAGE_SUFFIXES

_EXPECTED = "a data.yaml in the format of the YOLO family"
SPLITS = ("train", "val", "test")
_KNOWN_KEYS = (*SPLITS, "path", "names", "nc", "kpt_shape", "download")
_MAX_CLASSES = 999_999  # as in a .data file of Darknet
_CLASSES = re.compile(r"^(names|nc)\s*:", re.MULTILINE)
_CONFIGURATION = re.compile(r"^(name|base)\s*:", re.MULTILINE)


def label_file(image: Path) -> Path:
    """Return the label file of an image: the last folder `images` on its path is replaced by `labels`."""
    parts = list(image.parts)
    for position in range(len(parts) - 2, -1, -1):
        if parts[position] == "images":
            parts[position] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


@register("yolo")
class YoloDataset(Dataset):
    """A `data.yaml` and the folders that it names."""

    @dataclass(frozen=True)
    class Config(DatasetConfig):
        """Path of the description, and what is accepted.

        Attributes:
            file: the `data.yaml`.
            ignore_unknown: count and skip objects of classes that the file does not name, instead of refusing it.
        """

        file: Path | None = None
        ignore_unknown: bool = False

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Tell whether a YAML file is a `data.yaml`: it names classes and is not a configuration of this package."""
        if path.suffix.lower() not in (".yaml", ".yml") or path.stat().st_size > MAX_FILE_BYTES:
            return False
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        return bool(_CLASSES.search(text)) and not _CONFIGURATION.search(text)

    def split_names(self) -> tuple[str, ...]:
        """Return the names of the splits that the description has.

        Raises:
            DatasetError: the description cannot be read.
        """
        found = _splits(required_file(self.config.file, _EXPECTED))
        return tuple(name for name in SPLITS if found[name] is not None)

    def split(self, name: str) -> CocoAnnotations:
        """Return the annotations of `train`, `val` or `test`.

        Raises:
            DatasetError: the description is wrong or has no such split, or its labels are refused.
        """
        file = required_file(self.config.file, _EXPECTED)
        findings = Findings(str(file))
        entries = _entries(file)
        for key in entries:
            if key not in _KNOWN_KEYS:
                findings.accept("key that is not read", f"{key}, line {entries[key].where.line}")
        node = _splits(file).get(name)
        if node is None:
            raise DatasetError(f"{file}: has no split {name!r}; write {name}: and a folder or a list of images")
        images = [image for given in _texts(node) for image in _images_of(_root(file, entries), given, file)]
        names = _class_names(file, entries, findings)
        num_more = _num_key_point_numbers(entries.get("kpt_shape"))
        labels = TextLabels(label_file, names, True, num_more, ignore_unknown=self.config.ignore_unknown)
        return read_txt_labels(file, _root(file, entries), images, labels, findings)


def _num_key_point_numbers(node: Node | None) -> int | None:
    """Return how many numbers of key points follow a box, by `kpt_shape: [number, 2 or 3]`; None without the key."""
    if node is None or node.value is None:
        return None
    shape = plain_of(node)
    if not (
        isinstance(shape, list)
        and [type(value) for value in shape] == [int, int]
        and shape[0] > 0
        and shape[1] in (2, 3)
    ):
        raise DatasetError(
            f"{node.where}: kpt_shape: expected [17, 3], the number of key points and 2 or 3 numbers for each, got "
            f"{shape!r:.100}; correct it"
        )
    return int(shape[0] * shape[1])


def _entries(file: Path) -> dict[str, Node]:
    try:
        return read_foreign(file)
    except ConfigError as error:
        raise DatasetError(str(error)) from error


def _splits(file: Path) -> dict[str, Node | None]:
    entries = _entries(file)
    nodes = {name: entries.get(name) for name in SPLITS}
    return {name: node if node is not None and node.value else None for name, node in nodes.items()}


def _texts(node: Node) -> list[str]:
    given = plain_of(node)
    listed = given if isinstance(given, list) else [given]
    texts = [text for text in listed if isinstance(text, str) and text]
    if len(texts) < len(listed):
        raise DatasetError(f"{node.where}: expected a folder or a list of images, got {describe(node.value)}")
    return texts


def _root(file: Path, entries: dict[str, Node]) -> Path:
    """Return the folder that paths of a description start from: `path`, relative to the folder of the file."""
    node = entries.get("path")
    if node is None or node.value in (None, ""):
        return file.parent
    if not isinstance(node.value, str):
        raise DatasetError(f"{node.where}: path: expected a folder, got {describe(node.value)}")
    # `path` is often that of another machine; the splits are then looked for beside the file.
    root = file.parent / os.path.expanduser(node.value)  # unlike Path.expanduser, it accepts any name
    return root if root.is_dir() else file.parent


def _images_of(root: Path, given: str, file: Path) -> Sequence[ListedImage]:
    """Return the images of a folder or list; `../train` is often written for a folder beside the file."""
    tried = [root / given, file.parent / given, *([root / given[3:]] if given.startswith("../") else [])]
    for path in tried:
        if path.is_dir():
            paths = [p for p in files_below(path) if p.suffix.lower() in IMAGE_SUFFIXES]
            if not paths:
                raise DatasetError(f"{file}: expected images in {path}, got none; check its paths")
            return [ListedImage(p, str(p)) for p in paths]
        if path.is_file():
            return read_image_list(path, [path.parent, root, Path.cwd()])
    raise DatasetError(
        f"{file}: expected a folder or a list of images, got {given}; looked at {', '.join(map(str, tried))}"
    )


def _class_names(file: Path, entries: dict[str, Node], findings: Findings) -> tuple[str, ...]:
    names, count = entries.get("names"), entries.get("nc")
    num_classes = None
    if count is not None:
        if isinstance(count.value, bool) or not isinstance(count.value, int) or count.value < 1:
            raise DatasetError(f"{count.where}: nc: expected the number of classes, got {describe(count.value)}")
        if count.value > _MAX_CLASSES:
            raise DatasetError(
                f"{count.where}: nc: expected at most {_MAX_CLASSES:,} classes, got {count.value:,}; correct it"
            )
        num_classes = count.value
    if names is None or not names.value:
        if num_classes is None:
            raise DatasetError(f"{file}: names no class; write names: and a list of names")
        return checked_names([""] * num_classes, str(file), findings)
    given: dict[str, Node] = (
        names.value
        if isinstance(names.value, dict)
        else {str(number): node for number, node in enumerate(names.value)}
        if isinstance(names.value, list)
        else {}
    )
    if not given or {key.lstrip("0") or "0" for key in given} != {str(number) for number in range(len(given))}:
        raise DatasetError(
            f"{names.where}: names: expected a list, or a name for each number from 0 on, got {describe(names.value)}"
        )
    wrong = [node for node in given.values() if isinstance(node.value, (bool, dict, list))]
    if wrong:
        raise DatasetError(f"{wrong[0].where}: expected a class name, got {describe(wrong[0].value)}; put it in quotes")
    if count is not None and count.value != len(given):
        raise DatasetError(f"{count.where}: nc is {count.value}, but {len(given)} names are given; correct one of them")
    ordered = sorted(given.items(), key=lambda item: int(item[0]))
    texts = ["" if node.value is None else str(node.value).strip() for _, node in ordered]
    return checked_names(texts, str(file), findings)
