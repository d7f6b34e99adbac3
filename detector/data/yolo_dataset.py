"""Data sets of the YOLO family: a `data.yaml` that names folders and classes, and text label files.

The keys are `path` (where the others start; the folder of the file by default), `train`, `val`, `test` (a folder, a
`.txt` list of images, or several of these), `names` (a list, or number: name) and `nc` (their number). The labels of
`.../images/a/b.jpg` are in `.../labels/a/b.txt`; an image that is in no folder `images`, or beside whose folder there
is no such folder `labels`, has its labels beside it. `download` is never followed; other keys have no effect on
detection. A folder without a `data.yaml` is read as `yolo_folder` says.
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
from detector.data.file_reader import FoundData
from detector.data.path_contents import PathContents
from detector.data.problems import Findings
from detector.data.split_words import SPLIT_WORDS, SPLITS, counts, word_of
from detector.data.txt_labels import (
    ListedImage,
    TextLabels,
    checked_names,
    num_classes_of,
    read_class_names,
    read_image_list,
    read_txt_labels,
)
from detector.data.yolo_folder import TextLabelFolder, look_at
from detector.errors import ConfigError, DatasetError
from detector.io.folders import files_below, found_by_end
from detector.media.images import IMAGE_SUFFIXES

_EXPECTED = "a data.yaml in the format of the YOLO family"
_KNOWN_KEYS = (*SPLITS, "path", "names", "nc", "kpt_shape", "download", "roboflow")
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


def nearest_label_file(image: Path) -> Path:
    """Return the label file of an image, beside it where its folder of labels does not exist."""
    usual = label_file(image)
    return usual if usual.parent.is_dir() else image.with_suffix(".txt")


@register("yolo")
class YoloDataset(Dataset):
    """A `data.yaml` and the folders that it names, or a folder of images and text labels."""

    @dataclass(frozen=True)
    class Config(DatasetConfig):
        """Path of the description, and what is accepted.

        Attributes:
            file: the `data.yaml`, or the folder.
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

    @classmethod
    def recognise(cls, contents: PathContents) -> FoundData | Sequence[FoundData] | None:
        """Return the `data.yaml` that a path is or holds, or the folder of images and text labels."""
        if not contents.is_folder:
            return _found(contents.path) if cls.claims(contents.path) else None
        files = [contents.root / name for name in contents.ending(".yaml", ".yml") if "/" not in name]
        if described := [_found(file) for file in files if cls.claims(file)]:
            return described
        is_darknet = any("/" not in name for name in contents.ending(".data"))  # which describes the same images
        folder = None if is_darknet else look_at(contents, label_file)
        if folder is None:
            return None
        names = contents.head(folder.names_file).split("\n") if folder.names_file else []
        num_classes = sum(bool(name.strip()) for name in names) or None
        keys = {"file": str(contents.path)}
        return FoundData("images with YOLO text labels", keys, counts(folder.images), num_classes)

    def split_names(self) -> tuple[str, ...]:
        """Return the names of the splits that the description has; a test split that does not exist is left out.

        Raises:
            DatasetError: the description cannot be read.
        """
        file = required_file(self.config.file, _EXPECTED)
        if file.is_dir():
            return tuple(SPLIT_WORDS[word] for word in _folder(file).images)
        found = _splits(file)
        return tuple(name for name in SPLITS if found[name] is not None and not (name == "test" and self._lacks_test()))

    def _lacks_test(self) -> bool:
        """Tell whether the description names a test split that was not exported."""
        file = required_file(self.config.file, _EXPECTED)
        node, root = _splits(file)["test"], _root(file, _entries(file))
        return node is not None and not any(_located(root, given, file) for given in _texts(node))

    def notes(self) -> Sequence[str]:
        """Return what is missing: the test split, or the names of the classes of a folder."""
        file = required_file(self.config.file, _EXPECTED)
        if file.is_dir():
            names_file = _folder(file).names_file
            return (
                [f"class names are those of {file / names_file}"]
                if names_file
                else [f"{file}: has no class names, so classes are numbered; write classes.txt, one name a line"]
            )
        return [f"{file}: its test split does not exist and is left out"] if self._lacks_test() else []

    def _split_of_folder(self, folder: Path, name: str) -> CocoAnnotations:
        found = _folder(folder)
        words = [word for word in found.images if SPLIT_WORDS[word] == name]
        if not words:
            raise DatasetError(f"{folder}: has no split {name!r}, only {', '.join(found.images)}; name a folder {name}")
        findings = Findings(str(folder))
        images = [ListedImage(folder / image, str(folder / image)) for word in words for image in found.images[word]]
        if found.names_file is not None:
            names = read_class_names(folder / found.names_file, findings)
        else:
            every = (folder / image for listed in found.images.values() for image in listed)
            names = checked_names([""] * num_classes_of(map(nearest_label_file, every)), str(folder), findings)
        labels = TextLabels(nearest_label_file, names, True, ignore_unknown=self.config.ignore_unknown)
        return read_txt_labels(folder, folder, images, labels, findings)

    def split(self, name: str) -> CocoAnnotations:
        """Return the annotations of `train`, `val` or `test`.

        Raises:
            DatasetError: the description is wrong or has no such split, or its labels are refused.
        """
        file = required_file(self.config.file, _EXPECTED)
        if file.is_dir():
            return self._split_of_folder(file, name)
        findings = Findings(str(file))
        entries = _entries(file)
        for key in entries:
            if key not in _KNOWN_KEYS:
                findings.accept("key that is not read", f"{key}, line {entries[key].where.line}")
        node = _splits(file).get(name)
        if node is None:
            raise DatasetError(f"{file}: has no split {name!r}; write {name}: and a folder or a list of images")
        images = [image for given in _texts(node) for image in _images_of(_root(file, entries), given, file, findings)]
        names = _class_names(file, entries, findings)
        num_more = _num_key_point_numbers(entries.get("kpt_shape"))
        labels = TextLabels(nearest_label_file, names, True, num_more, ignore_unknown=self.config.ignore_unknown)
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


def _located(root: Path, given: str, file: Path) -> Path | None:
    """Return the folder or list that a description names.

    `../train` is often written for a folder beside the file; of a path of another machine the end is looked for.
    """
    tried = [root / given, file.parent / given, *([root / given[3:]] if given.startswith("../") else [])]
    return next((path for path in tried if path.exists()), None) or found_by_end(given, (root, file.parent))


def _images_of(root: Path, given: str, file: Path, findings: Findings) -> Sequence[ListedImage]:
    path = _located(root, given, file)
    if path is None:
        raise DatasetError(
            f"{file}: expected a folder or a list of images, got {given}, which is not in {root}; correct it, or give "
            "the folder of the data set as data"
        )
    if path.is_file():
        return read_image_list(path, [path.parent, root, Path.cwd()], findings)
    paths = [p for p in files_below(path) if p.suffix.lower() in IMAGE_SUFFIXES]
    if not paths:
        raise DatasetError(f"{file}: expected images in {path}, got none; check its paths")
    return [ListedImage(p, str(p)) for p in paths]


def _folder(path: Path) -> TextLabelFolder:
    """Return the images of a folder without a `data.yaml`."""
    found = look_at(PathContents(path), label_file)
    if found is None:
        raise DatasetError(f"{path}: expected images with text labels of the YOLO family, got none; check the path")
    return found


def _found(file: Path) -> FoundData:
    """Return what a `data.yaml` describes, as far as it can be read."""
    keys, label = {"file": str(file)}, "YOLO data set"
    try:
        entries = _entries(file)
        label = "Roboflow YOLO export" if "roboflow" in entries else label
        root, findings, images = _root(file, entries), Findings(str(file)), dict[str, int]()
        for name, node in _splits(file).items():
            given = [text for text in _texts(node) if _located(root, text, file)] if node is not None else []
            if given:
                word = next((word for text in given if (word := word_of(f"{text}/."))), name)
                word = word if SPLIT_WORDS[word] == name else name
                images[word] = sum(len(_images_of(root, text, file, findings)) for text in given)
        return FoundData(label, keys, images, len(_class_names(file, entries, findings)))
    except DatasetError:  # reading a split reports it
        return FoundData(label, keys)


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
