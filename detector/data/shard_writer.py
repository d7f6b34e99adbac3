"""Writer of tar shards in the layout of WebDataset, from a data set in any format that a reader reads."""

from __future__ import annotations

import functools
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from detector.data.coco import CocoAnnotations
from detector.data.conversion import Conversion, require_new
from detector.data.shards_dataset import FORMAT, LISTING
from detector.errors import DatasetError, MediaError
from detector.io.files import write_whole
from detector.media.images import IMAGE_SUFFIXES, image_hw, read_encoded

DEFAULT_SHARD_MB = 256
_MB = 10**6


def coco_to_shards(splits: Mapping[str, CocoAnnotations], folder: Path, shard_mb: int = DEFAULT_SHARD_MB) -> Conversion:
    """Write splits as tar shards `SPLIT-000000.tar`, ... and `dataset.json`; the bytes of images are copied unchanged.

    The bytes of the shards are a function of the data set. `dataset.json` is written last, so a folder without it is
    one of an interrupted command.

    Args:
        splits: the splits.
        folder: a new or empty folder.
        shard_mb: megabytes of images in a shard, from which on the next one begins.

    Raises:
        DatasetError: the folder holds files, the splits have different classes, or the disk refuses.
    """
    categories = {(split.class_names, split.category_ids) for split in splits.values()}
    if len(categories) != 1:
        raise DatasetError(f"expected splits with the same classes, got {len(categories)} lists; use dataset merge")
    require_new(folder)
    notes: list[str] = []
    listed: dict[str, object] = {}
    for name, split in splits.items():
        shards, num_images = [], 0
        for number, samples in enumerate(_shards(_samples(split, notes), shard_mb * _MB)):
            path = folder / f"{name}-{number:06d}.tar"
            _write(path, functools.partial(_add_to, samples=samples))
            shards.append(path.name)
            num_images += len(samples)
        listed[name] = {"shards": shards, "num_images": num_images}
    ((class_names, category_ids),) = categories
    classes = [{"id": i, "name": name} for i, name in zip(category_ids, class_names, strict=True)]
    listing = {"format": FORMAT, "categories": classes, "splits": listed}
    _write(folder / LISTING, lambda file: file.write(json.dumps(listing, indent=1).encode()))
    return Conversion(folder / LISTING, tuple(notes))


def _samples(split: CocoAnnotations, notes: list[str]) -> Iterator[dict[str, bytes]]:
    """Yield the files of each image by name; images that cannot be read are left out, with a note."""
    unread: list[str] = []
    for index, file_name in enumerate(split.file_names):
        path = split.path(index)
        suffix = Path(file_name).suffix.lower()
        try:
            height, width = image_hw(path)
            encoded = read_encoded(path)
        except MediaError as error:
            unread.append(str(error))
            continue
        rows = range(int(split.offsets[index]), int(split.offsets[index + 1]))
        content = {
            "image_id": int(split.image_ids[index]),
            "file_name": file_name,
            "height": height,
            "width": width,
            "annotations": [
                {
                    "category_id": split.category_ids[split.labels[row]],
                    "bbox": split.boxes_xywh[row].tolist(),
                    "area": float(split.areas[row]),
                    "iscrowd": int(split.is_crowd[row]),
                }
                for row in rows
            ],
        }
        key = f"{index:08d}"
        image_name = f"{key}{suffix if suffix in IMAGE_SUFFIXES else '.jpg'}"
        yield {image_name: encoded, f"{key}.json": json.dumps(content).encode()}
    if unread:
        notes.append(f"{split.annotations}: {len(unread)} images cannot be read and are left out, first: {unread[0]}")


def _shards(samples: Iterable[dict[str, bytes]], num_bytes: int) -> Iterator[list[dict[str, bytes]]]:
    """Yield samples in groups of at least so many bytes; the last one has fewer."""
    group: list[dict[str, bytes]] = []
    size = 0
    for sample in samples:
        group.append(sample)
        size += sum(map(len, sample.values()))
        if size >= num_bytes:
            yield group
            group, size = [], 0
    if group:
        yield group


def _add_to(file: BinaryIO, samples: Iterable[dict[str, bytes]]) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for sample in samples:
            for name, encoded in sample.items():
                info = tarfile.TarInfo(name)
                info.size = len(encoded)
                archive.addfile(info, io.BytesIO(encoded))


def _write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    try:
        write_whole(path, write)
    except OSError as error:
        raise DatasetError(f"{path} cannot be written: {error.strerror}; check the disk") from error
