"""Builder of `CocoAnnotations` from the files of other programs: images, named objects, corners in pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from detector.data.coco import CocoAnnotations
from detector.data.coco_extras import Extras, entries
from detector.data.coco_rows import usable_boxes
from detector.data.problems import Findings
from detector.errors import DatasetError, MediaError
from detector.media.images import image_hw
from detector.structures.boxes import xyxy_to_xywh

# What becomes of difficult objects, by the setting.
DIFFICULT = {
    "ignore": "become crowd regions, which are ignored in training and in evaluation",
    "keep": "become ordinary objects",
    "drop": "are left out",
}


@dataclass(frozen=True)
class NamedObject:
    """Object of an image with the name of its class.

    Attributes:
        class_name: name of its class.
        source_xyxy: its corners in pixels, not checked.
        place: its place in a file, for messages.
        is_ignored: whether it is ignored in training and in evaluation.
        extras: other keys to write to a COCO file.
    """

    class_name: str
    source_xyxy: tuple[float, float, float, float]
    place: str
    is_ignored: bool = False
    extras: Mapping[str, object] = field(default_factory=dict)


@dataclass
class ListedObjects:
    """Image of a list and its objects.

    Attributes:
        file_name: relative to the folder of images.
        place: its place in a file, for messages.
        listed_hw: its height and width as written; 0, 0 where they are not written.
        objects: its objects.
        near: the folder of the file that lists it.
    """

    file_name: str
    place: str
    listed_hw: tuple[int, int] = (0, 0)
    objects: list[NamedObject] = field(default_factory=list)
    near: Path | None = None


def assemble(
    source: Path,
    folder: Path,
    splits: Mapping[str, Sequence[ListedObjects]],
    *,
    are_shares: bool = False,
    class_names: Sequence[str] = (),
) -> dict[str, tuple[CocoAnnotations, Extras]]:
    """Return splits with the classes of all of them, sorted by name, with ids from 1; every box is checked.

    Args:
        source: the file or folder that the splits were read from.
        folder: the folder that file names start from.
        splits: images by split.
        are_shares: whether corners are shares of the image instead of pixels.
        class_names: the classes in the order of their ids, where the format has such an order.

    Raises:
        DatasetError: the splits hold no object, or more than `MAX_SKIPPED_SHARE` of the images or boxes cannot be used.
    """
    used = {item.class_name for images in splits.values() for image in images for item in image.objects}
    names = [*class_names, *sorted(used.difference(class_names))]
    if not used:
        raise DatasetError(f"{source}: holds no object; check that it is the right file")
    return {name: _assemble(source, folder, images, names, are_shares) for name, images in splits.items()}


def _assemble(
    source: Path, folder: Path, images: Sequence[ListedObjects], names: Sequence[str], are_shares: bool
) -> tuple[CocoAnnotations, Extras]:
    findings = Findings(str(source))
    sizes = [_size(folder, image, findings) for image in images]
    present = [index for index, size in enumerate(sizes) if size is not None]
    findings.raise_if_too_many_skipped("images", len(images) - len(present), len(images))
    rows = [(position, item) for position, index in enumerate(present) for item in images[index].objects]
    hw = np.array([sizes[index] for index in present], dtype=np.int64).reshape(-1, 2)
    position_of_row = np.array([position for position, _ in rows], dtype=np.int64)
    corners = np.array([item.source_xyxy for _, item in rows], dtype=np.float64).reshape(-1, 4)
    if are_shares:
        with np.errstate(over="ignore", invalid="ignore"):
            corners = corners * hw[position_of_row][:, [1, 0, 1, 0]]
    with np.errstate(over="ignore", invalid="ignore"):  # numbers that are not finite are detected below
        boxes_xywh = xyxy_to_xywh(corners)
    keep = usable_boxes(boxes_xywh, hw[position_of_row], lambda row: rows[row][1].place, findings)
    findings.raise_if_too_many_skipped("boxes", int((~keep).sum()), len(keep))
    label_of = {name: label for label, name in enumerate(names)}
    kept = [item for (_, item), is_kept in zip(rows, keep.tolist(), strict=True) if is_kept]
    num_boxes = np.bincount(position_of_row[keep], minlength=len(present))
    for position in np.flatnonzero(num_boxes == 0).tolist():
        findings.note("image without annotations", images[present[position]].place)
    annotations = CocoAnnotations(
        annotations=source,
        images=folder,
        class_names=tuple(names),
        category_ids=tuple(range(1, len(names) + 1)),
        image_ids=np.arange(1, len(present) + 1, dtype=np.int64),
        file_names=[images[index].file_name for index in present],
        image_hw=hw,
        offsets=np.concatenate([[0], np.cumsum(num_boxes)]).astype(np.int64),
        boxes_xywh=boxes_xywh[keep],
        labels=np.array([label_of[item.class_name] for item in kept], dtype=np.int64),
        is_crowd=np.array([item.is_ignored for item in kept], dtype=np.bool_),
        areas=boxes_xywh[keep, 2] * boxes_xywh[keep, 3],
        problems=findings.problems,
    )
    return annotations, Extras(entries([{} for _ in present]), entries([dict(item.extras) for item in kept]))


def _size(folder: Path, image: ListedObjects, findings: Findings) -> tuple[int, int] | None:
    """Return height and width of an image file; None, counted, where it is missing or has another size than written."""
    try:
        size = image_hw(folder / image.file_name)
    except MediaError as error:
        findings.skip("image that cannot be read", str(error))
        return None
    listed = image.listed_hw
    if all(listed) and listed != size:
        if listed != size[::-1]:
            sizes = f"{listed[1]} x {listed[0]} written, {size[1]} x {size[0]} in the file"
            findings.skip("image of another size than its file", f"{image.place}: {sizes}")
            return None
        findings.accept("image written with width and height exchanged", image.place)
    return size
