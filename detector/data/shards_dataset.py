"""Data sets in tar shards, in the layout of WebDataset: KEY.jpg and KEY.json, one after the other.

Images are read where they lie, at any position, so the order of training is the one of loose files: a function of
(seed, epoch, index). `dataset.json` beside the shards lists the classes and the shards of each split.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from detector.config.registry import register
from detector.data.coco import CocoAnnotations, checked_annotations
from detector.data.coco_file import CocoParts, ImageTable, read_categories
from detector.data.coco_rows import Rows
from detector.data.dataset import Dataset, DatasetConfig, required_file
from detector.data.file_reader import FoundData
from detector.data.path_contents import PathContents
from detector.data.problems import Findings
from detector.errors import DatasetError, MediaError
from detector.io.json_stream import read_value
from detector.io.tar_members import TarMember, list_members, read_member
from detector.media.images import IMAGE_SUFFIXES

LISTING = "dataset.json"
FORMAT = "detector shards 1"
_MOST_JSON_BYTES = 2**24  # of one image


@register("shards")
class ShardsDataset(Dataset):
    """Splits in tar shards, as `detector dataset to-shards` writes them."""

    @dataclass(frozen=True)
    class Config(DatasetConfig):
        """Place of the shards.

        Attributes:
            root: the folder of the shards, with `dataset.json`.
        """

        root: Path | None = None

    path_key = "root"

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def recognise(cls, contents: PathContents) -> FoundData | None:
        """Return the shards that the `dataset.json` of a folder lists; None for another folder."""
        listing = contents.json(LISTING) if contents.is_folder and LISTING in contents.names else None
        if not isinstance(listing, dict) or listing.get("format") != FORMAT:
            return None
        splits = listing.get("splits")
        names = {str(name): 0 for name in splits} if isinstance(splits, dict) else {}
        return FoundData("tar shards", {"root": str(contents.root)}, names)

    def _listing(self) -> tuple[Path, Mapping[str, Any]]:
        root = required_file(self.config.root, "a folder of tar shards", "root")
        if not (root / LISTING).is_file():
            raise DatasetError(f"{root}: expected tar shards with {LISTING}, got none; write it by dataset to-shards")
        listing = read_value(root / LISTING, "listing of shards")
        splits = listing.get("splits") if isinstance(listing, dict) else None
        if not isinstance(splits, dict) or listing.get("format") != FORMAT:
            raise DatasetError(
                f"{root / LISTING}: expected the format {FORMAT!r} with splits, got another; write it again"
            )
        for name, split in splits.items():
            shards = split.get("shards") if isinstance(split, dict) else None
            is_plain = isinstance(shards, list) and all(
                isinstance(s, str) and PurePosixPath(s).name == s for s in shards
            )
            if not is_plain or type(split.get("num_images")) is not int:
                raise DatasetError(f"{root / LISTING}: splits.{name}: expected shards, as file names, and num_images")
        return root, listing

    def split_names(self) -> tuple[str, ...]:
        """Return the names of the splits that `dataset.json` lists."""
        return tuple(self._listing()[1]["splits"])

    def split(self, name: str) -> CocoAnnotations:
        """Return the annotations of a split, read from all of its shards.

        Raises:
            DatasetError: there is no such split, or a shard is missing, damaged or rejected.
        """
        root, listing = self._listing()
        if name not in listing["splits"]:
            known = ", ".join(listing["splits"])
            raise DatasetError(f"{root}: the data set has no split {name!r}; it has {known}")
        split, findings = listing["splits"][name], Findings(str(root))
        images, rows = ImageTable(), Rows()
        for shard in split["shards"]:
            try:
                for sample in samples_of(root / shard):
                    _add(sample, root, (images, rows), findings)
            except DatasetError as error:
                findings.refuse(str(error))
        entries = listing.get("categories")
        class_names, category_ids = read_categories(entries if isinstance(entries, list) else [], findings)
        if not category_ids:
            findings.refuse(f"{LISTING}: expected categories with id and name, got none")
        if not images.file_names or len(images.file_names) != split["num_images"]:
            findings.refuse(
                f"{name}: expected {split['num_images']} images in its shards, got {len(images.file_names)}"
            )
        findings.raise_refusals()
        parts = CocoParts(images, rows, class_names, category_ids)
        return checked_annotations(parts, root, root, np.ones(len(images.file_names), np.bool_), findings)


@dataclass(frozen=True)
class TarSample:
    """Image of a shard with its annotations.

    Attributes:
        key: the name that its members share, without suffix.
        image: the image.
        annotations: the JSON file, or None.
    """

    key: str
    image: TarMember
    annotations: TarMember | None


def samples_of(shard: Path) -> Iterator[TarSample]:
    """Yield the images of a shard, in order; members without an image are left out.

    Raises:
        DatasetError: the archive is rejected, or a name is in it twice.
    """
    members: dict[str, dict[str, TarMember]] = {}
    for member in list_members(shard):
        folder, _, base = member.name.rpartition("/")
        stem, _, suffix = base.partition(".")
        own = members.setdefault(f"{folder}/{stem}" if folder else stem, {})
        suffix = f".{suffix.lower()}"
        kind = "image" if suffix in IMAGE_SUFFIXES else suffix
        if kind in own:
            raise DatasetError(
                f"{shard} is rejected: it has {member.name!r} and {own[kind].name!r} of one key; rename one"
            )
        own[kind] = member
    for key, own in members.items():
        if "image" in own:
            yield TarSample(key, own["image"], own.get(".json"))


def _add(sample: TarSample, root: Path, tables: tuple[ImageTable, Rows], findings: Findings) -> None:
    """Add an image and its objects."""
    images, rows = tables
    position = len(images.file_names)
    entry = _parsed(sample.annotations)
    identifier = entry.get("image_id", position + 1)
    name = sample.image.path.relative_to(root).as_posix()
    listed = {"id": identifier, "file_name": name, "height": entry.get("height"), "width": entry.get("width")}
    images.add(position, listed, False, findings)
    objects = entry.get("annotations", [])
    if not isinstance(objects, Sequence) or isinstance(objects, str):
        raise DatasetError(f"{sample.image.archive}: {sample.key}.json: expected a list of annotations")
    for each in objects:
        rows.add(len(rows), {**each, "image_id": identifier} if isinstance(each, dict) else each, findings)


def _parsed(member: TarMember | None) -> dict[str, Any]:
    """Return the JSON object of an image; empty without one.

    Raises:
        DatasetError: it is too large, or not a JSON object.
    """
    if member is None:
        return {}
    if member.num_bytes > _MOST_JSON_BYTES:
        raise DatasetError(f"{member.path}: expected JSON of at most {_MOST_JSON_BYTES} bytes, got {member.num_bytes}")
    try:
        entry = json.loads(read_member(member))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{member.path} is not JSON: {error}; write the shard again") from error
    except (OSError, MediaError) as error:
        raise DatasetError(f"{member.path} cannot be read: {error}") from error
    if not isinstance(entry, dict):
        raise DatasetError(f"{member.path}: expected a JSON object, got {type(entry).__name__}")
    return entry
