"""Conversion of data sets between formats through `CocoAnnotations`, with notes on what a format cannot hold.

COCO JSON holds everything. Text labels hold class and box only: crowd regions are left out, a box is cut at the border
of its image, classes are counted from 0. Numbers are written with all their digits, so that a box is read back to the
last bits of its doubles.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from detector.data import darknet_lists, yolo_dataset
from detector.data.coco import CocoAnnotations
from detector.data.coco_extras import Extras, ground_truth_with
from detector.errors import DatasetError, MediaError
from detector.io.tar_members import file_holding
from detector.media.images import image_hw, read_encoded
from detector.structures.boxes import clip_xyxy, xywh_to_xyxy, xyxy_to_cxcywh


@dataclass(frozen=True)
class Conversion:
    """Result of a conversion.

    Attributes:
        description: the file that describes the new data set; `data=` takes it.
        notes: a sentence for each loss in the new format.
    """

    description: Path
    notes: tuple[str, ...] = ()


def write_coco(annotations: CocoAnnotations, path: Path, extras: Extras | None = None) -> None:
    """Write annotations as a COCO JSON file that reads back equal, with the original ids; no image is changed.

    Args:
        annotations: the annotations to write.
        path: the file.
        extras: other keys of each image, box and category.

    Raises:
        DatasetError: the file exists, or cannot be written.
    """
    truth = annotations.ground_truth() if extras is None else ground_truth_with(annotations, extras)
    write_json(truth, path, annotations.annotations)


def write_json(content: Mapping[str, object], path: Path, source: Path) -> None:
    """Write the content of a COCO file as JSON.

    Args:
        content: the content.
        path: the file.
        source: where the content comes from, for messages.

    Raises:
        DatasetError: the file exists or cannot be written, or the content holds a number that JSON cannot represent.
    """
    try:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold
        text = json.dumps(content, allow_nan=False)
    except ValueError as error:
        raise DatasetError(f"{source}: holds a number that JSON cannot represent; correct it") from error
    _write(path, text)


def yolo_to_coco(
    splits: Mapping[str, CocoAnnotations], folder: Path, extras: Mapping[str, Extras] | None = None
) -> Conversion:
    """Write splits of any format as COCO JSON files and a description of them; images stay where they are.

    Args:
        splits: by name, `train`, `val` or `test`, read with their images.
        folder: the folder of `annotations/instances_NAME.json` and `data.yaml`; it must be new or empty.
        extras: other keys to write, by split.

    Raises:
        DatasetError: the folder is not empty, or cannot be written.
    """
    require_new(folder)
    lines = ["name: coco"]
    for name, split in splits.items():
        file = f"annotations/instances_{name}.json"
        write_coco(split, folder / file, None if extras is None else extras[name])
        images = _quoted(str(_images_of(split).resolve()))
        lines.append(f"{name}: {{annotations: {file}, images: {images}}}")
    _write(folder / "data.yaml", "\n".join(lines) + "\n")
    return Conversion(folder / "data.yaml")


def coco_to_yolo(splits: Mapping[str, CocoAnnotations], folder: Path, *, link: bool = False) -> Conversion:
    """Write splits in the layout of the YOLO family: `images/NAME`, `labels/NAME` and a `data.yaml`.

    Args:
        splits: by name, `train`, `val` or `test`, of the same classes, read with their images.
        folder: the folder of the new data set; it must be new or empty.
        link: whether to make symbolic links to the images instead of copies.

    Raises:
        DatasetError: the folder is not empty, the classes differ, two images would share a label file, or a file cannot
            be written.
    """
    names = _class_names(splits)
    require_new(folder)
    notes: list[str] = []
    for name, split in splits.items():
        _write_split(split, folder / "images" / name, yolo_dataset.label_file, link, notes)
    lines = [*(f"{name}: images/{name}" for name in splits), "names:"]
    lines += [f"  {number}: {_quoted(name)}" for number, name in enumerate(names)]
    _write(folder / "data.yaml", "\n".join(lines) + "\n")
    return Conversion(folder / "data.yaml", tuple(notes))


def coco_to_darknet(
    splits: Mapping[str, CocoAnnotations], folder: Path, *, link: bool = False, relative: bool = False
) -> Conversion:
    """Write splits as Darknet reads them: labels beside the images, a list per split, `data.names` and `data.data`.

    Darknet calls the split `val` `valid`. Paths in the lists are absolute, because Darknet starts relative ones at its
    working directory; it cannot read a path with a space in it. `DarknetDataset` also reads absolute paths of a folder
    that was moved.

    Args:
        splits: by name, `train` or `val`, of the same classes, read with their images.
        folder: the folder of the new data set; it must be new or empty.
        link: whether to make symbolic links to the images instead of copies.
        relative: whether paths are relative to the folder, so that it can be moved; Darknet then has to start in it.

    Raises:
        DatasetError: as for `coco_to_yolo`, or a split is neither `train` nor `val`.
    """
    names = _class_names(splits)
    if unknown := sorted(set(splits) - {"train", "val"}):
        raise DatasetError(f"Darknet has the splits train and val, got also {', '.join(unknown)}; leave them out")
    require_new(folder)
    notes: list[str] = []
    lines = [f"classes = {len(names)}"]

    def named(path: Path) -> str:
        return path.relative_to(folder).as_posix() if relative else os.path.abspath(path)

    for name, split in splits.items():
        # Absolute, but without resolving the links made here: Darknet looks for labels beside the path in the list.
        written = [named(path) for path in _write_split(split, folder / name, darknet_lists.label_file, link, notes)]
        if spaced := [path for path in written if path.split() != [path]]:
            notes.append(f"Darknet cannot read {len(spaced)} paths with spaces in them, first: {spaced[0]}")
        _write(folder / f"{name}.txt", "".join(f"{path}\n" for path in written))
        lines.append(f"{'valid' if name == 'val' else name} = {named(folder / f'{name}.txt')}")
    _write(folder / "data.names", "".join(f"{name}\n" for name in names))
    lines.append(f"names = {named(folder / 'data.names')}")
    _write(folder / "data.data", "\n".join(lines) + "\n")
    return Conversion(folder / "data.data", tuple(notes))


def _quoted(text: str) -> str:
    """Return a text quoted so that both JSON and YAML read it."""
    return json.dumps(text, ensure_ascii=False)


def _images_of(annotations: CocoAnnotations) -> Path:
    if annotations.images is None:
        raise ValueError(
            f"conversion: expected annotations read with images, got {annotations.annotations} without them"
        )
    return annotations.images


def _class_names(splits: Mapping[str, CocoAnnotations]) -> tuple[str, ...]:
    """Return the class names that all splits share."""
    first = next(iter(splits.values()))
    for split in splits.values():
        if split.class_names != first.class_names:
            raise DatasetError(
                f"expected splits with the same classes, got {first.class_names} in {first.annotations} and "
                f"{split.class_names} in {split.annotations}"
            )
    if odd := [name for name in first.class_names if name.splitlines() != [name] or name != name.strip()]:
        raise DatasetError(f"{first.annotations}: the class name {odd[0]!r} is not a plain line of text; change it")
    return first.class_names


def require_new(folder: Path) -> None:
    """Create the folder of a converted data set.

    Raises:
        DatasetError: it holds files, or cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise DatasetError(f"{folder} is not empty; name a new folder for the converted data set")
    except OSError as error:
        raise DatasetError(f"{folder}: the folder cannot be created, {error.strerror}; name another one") from error


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except OSError as error:
        raise DatasetError(f"{path} cannot be written: {error.strerror}") from error


def _write_split(
    annotations: CocoAnnotations, folder: Path, label_file: Callable[[Path], Path], link: bool, notes: list[str]
) -> Sequence[Path]:
    """Place the images of a split and write their label files; return the images and add losses to `notes`."""
    _images_of(annotations)
    written: dict[Path, Path] = {}
    unreadable: list[str] = []
    num_cut = 0
    for index, file_name in enumerate(annotations.file_names):
        source = annotations.path(index)
        # An image outside the folder of images keeps only its own name, so that nothing is written outside `folder`.
        name = PurePath(file_name) if not _leads_out(file_name) else PurePath(source.name)
        target = folder / name
        label = label_file(target)
        if label in written:
            raise DatasetError(f"{source} and {written[label]} would share the label file {label}; rename one of them")
        try:
            height, width = image_hw(source)
        except MediaError as error:
            unreadable.append(str(error))
            continue
        lines, num_cut_here = _lines(annotations, index, (height, width))
        num_cut += num_cut_here
        _write(label, "".join(f"{line}\n" for line in lines))
        _place(source, target, link)
        written[label] = target
    num_crowds = int(annotations.is_crowd.sum())
    for count, what in (
        (len(unreadable), f"images cannot be read and are left out, first: {unreadable[0] if unreadable else ''}"),
        (num_crowds, "crowd regions are left out, because text labels cannot hold them"),
        (num_cut, "boxes reach beyond their image and are cut at its border"),
    ):
        if count:
            notes.append(f"{annotations.annotations}: {count} {what}")
    if annotations.category_ids != tuple(range(len(annotations.category_ids))):
        notes.append(
            f"{annotations.annotations}: the category ids {', '.join(map(str, annotations.category_ids[:5]))}, ... "
            "become 0, 1, 2, ..., because text labels number classes from 0"
        )
    return list(written.values())


def _leads_out(file_name: str) -> bool:
    path = PurePath(file_name)
    return path.is_absolute() or ".." in path.parts


def _lines(annotations: CocoAnnotations, index: int, hw: tuple[int, int]) -> tuple[list[str], int]:
    """Return the lines of a label file, and how many of their boxes were cut at the border."""
    rows = slice(int(annotations.offsets[index]), int(annotations.offsets[index + 1]))
    is_object = ~annotations.is_crowd[rows]
    whole = xywh_to_xyxy(annotations.boxes_xywh[rows][is_object])
    cut = clip_xyxy(whole, hw)
    height, width = hw
    shares = xyxy_to_cxcywh(cut) / np.array([width, height, width, height], dtype=np.float64)
    lines = [
        " ".join([str(label), *map(repr, row)])
        for label, row in zip(annotations.labels[rows][is_object].tolist(), shares.tolist(), strict=True)
    ]
    return lines, int((cut != whole).any(axis=1).sum())


def _place(source: Path, target: Path, link: bool) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if link:
            os.symlink(source.resolve(), target)
        elif file_holding(source) != source:
            target.write_bytes(read_encoded(source))
        else:
            shutil.copyfile(source, target)
    except OSError as error:
        raise DatasetError(f"{source} cannot be copied or linked to {target}: {error.strerror}") from error
