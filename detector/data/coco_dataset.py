"""Data sets in COCO format: one annotation file and one folder of images for each split."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from detector.config.registry import register
from detector.config.schema import PERMISSION
from detector.data.annotation_index import indexed_coco
from detector.data.coco import CocoAnnotations, read_coco
from detector.data.dataset import Dataset, DatasetConfig, require_place
from detector.data.file_reader import FoundData
from detector.data.path_contents import PathContents, shown_path
from detector.data.split_words import SPLIT_WORDS, in_order, word_of
from detector.errors import ConfigError, DatasetError
from detector.io.addresses import address_of
from detector.io.folders import absolute, user_cache
from detector.io.remote import RemoteCache, local_copy, permit


@dataclass(frozen=True)
class SplitConfig:
    """Paths of one split in COCO format.

    Attributes:
        annotations: the COCO JSON file, or its address at s3://, gs://, hf:// or https://.
        images: the folder that its file names start from, or its address.
    """

    annotations: Path
    images: Path


@register("coco")
class CocoDataset(Dataset):
    """Splits in COCO format, each in a place of its own."""

    @dataclass(frozen=True)
    class Config(DatasetConfig):
        """Paths of the splits.

        Attributes:
            train: the split that training learns from.
            val: the split that `evaluate` measures on, and training while it runs.
            test: a split kept for the final evaluation.
            ignore_unknown: count and skip annotations of categories that the file does not list, instead of refusing.
            allow_outside: whether file names of images may lead out of the folder of images.
            index: folder for an index of each split, outside the data set, or None: a large file is read once and then
                opened at once, and processes share its memory. Images are looked for only when the index is built.
            allow_remote: whether addresses may be opened over the network. It counts on the command line and in the
                arguments of Python only, never in a file.
            remote_cache: folder of fetched files, shared by all processes; None for one in the user's cache. A file at
                an address is taken not to change; annotation files are compared with the server when a run begins.
            remote_cache_mb: largest size of that folder in megabytes.
        """

        train: SplitConfig | None = None
        val: SplitConfig | None = None
        test: SplitConfig | None = None
        ignore_unknown: bool = False
        allow_outside: bool = False
        index: Path | None = None
        allow_remote: bool = field(default=False, metadata={PERMISSION: True})
        remote_cache: Path | None = None
        remote_cache_mb: int = 20_000

        def __post_init__(self) -> None:
            if self.remote_cache_mb < 1:
                raise ValueError(f"remote_cache_mb: expected at least 1, got {self.remote_cache_mb}")

    path_key = "train"

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def recognise(cls, contents: PathContents) -> FoundData | Sequence[FoundData] | None:
        """Return the COCO file that a path is, or the COCO files of the splits that a folder holds.

        Several files for one split are alternatives.

        Raises:
            DatasetError: the images of a file are in none of the usual folders.
        """
        files = [name for name in contents.ending(".json") if _is_coco(contents, name)]
        files = [name for name in files if PurePosixPath(name).name.startswith("instances_")] or files
        words: dict[str, list[str]] = {}
        for name in files:
            words.setdefault((contents.is_folder and word_of(name)) or "train", []).append(name)
        if any(len(names) > 1 for names in words.values()):
            return [_found(contents, {"train": name}) for name in files]
        return _found(contents, {word: words[word][0] for word in in_order(words)}) if files else None

    def _splits(self) -> dict[str, SplitConfig]:
        """Return the splits that are configured, by name."""
        splits = {"train": self.config.train, "val": self.config.val, "test": self.config.test}
        return {name: split for name, split in splits.items() if split is not None}

    def split_names(self) -> tuple[str, ...]:
        """Return the names of the splits that are configured."""
        return tuple(self._splits())

    def split(self, name: str) -> CocoAnnotations:
        """Return the annotations of a split.

        Raises:
            DatasetError: the split is not configured, or its file is refused.
        """
        split = self._splits().get(name)
        if split is None:
            raise DatasetError(
                f"the data set has no split {name!r}; give data.{name}.annotations and data.{name}.images"
            )
        split = self._permitted(name, split)
        if address_of(split.images) is None:
            require_place(split.images, f"{name}.images")
        require_place(split.annotations, f"{name}.annotations")
        ignore_unknown, allow_outside = self.config.ignore_unknown, self.config.allow_outside
        if self.config.index is not None:
            return indexed_coco(
                split.annotations,
                split.images,
                self.config.index,
                ignore_unknown=ignore_unknown,
                allow_outside=allow_outside,
            )
        return read_coco(split.annotations, split.images, ignore_unknown=ignore_unknown, allow_outside=allow_outside)

    def _permitted(self, name: str, split: SplitConfig) -> SplitConfig:
        """Permit the addresses of a split, and return it with a local copy of its annotations.

        Raises:
            ConfigError: the user has not allowed the network, or the package of a scheme is missing.
            DatasetError: the annotations cannot be fetched.
        """
        places = {"annotations": split.annotations, "images": split.images}
        remote = {key: address for key, place in places.items() if (address := address_of(place))}
        if remote and not self.config.allow_remote:
            key, address = next(iter(remote.items()))
            raise ConfigError(
                f"data.{name}.{key}: {address} would use the network; allow it by data.allow_remote=true on the "
                "command line (in Python: an argument), because a file cannot"
            )
        folder = self.config.remote_cache or user_cache() / "remote"
        for key in remote:
            permit(places[key], RemoteCache(folder, self.config.remote_cache_mb * 10**6))
        return replace(split, annotations=local_copy(split.annotations)) if "annotations" in remote else split


# Folders that may hold the images of a COCO file, relative to the folder of the file.
_USUAL_FOLDERS = ("images", "../images", ".", "..")
_FILE_NAME = re.compile(r'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
_NUM_NAMES = 10


def images_beside(contents: PathContents, name: str) -> Path:
    """Return the folder that holds the first images of a COCO file, out of the usual ones.

    Args:
        contents: the contents of the file, or of a folder above it.
        name: its name in them.

    Raises:
        DatasetError: none of them holds such an image.
    """
    annotations = contents.root / name
    names = [str(json.loads(text)) for text in _FILE_NAME.findall(contents.head(name))[:_NUM_NAMES]]
    if not names:  # a large file that begins with its annotations
        names = list(read_coco(annotations, None, require_annotations=False).file_names[:_NUM_NAMES])
    names += [name.replace("\\", "/") for name in names if "\\" in name]  # as the reader finds them
    split = annotations.stem.removeprefix("instances_")
    words = dict.fromkeys(each for each in (split, word_of(name)) if each)
    below = [folder for word in words for folder in (word, f"../{word}", f"../images/{word}", f"images/{word}")]
    folders = [*_USUAL_FOLDERS, *below]
    for folder in folders:
        if any((annotations.parent / folder / each).is_file() for each in names):
            return annotations.parent / folder
    raise DatasetError(
        f"{shown_path(annotations)}: its images ({names[0] if names else 'none listed'}, ...) are not in "
        f"{', '.join(folders)} beside it; give "
        f"data='{{name: coco, train: {{annotations: {shown_path(annotations)}, images: FOLDER}}}}'"
    )


def _is_coco(contents: PathContents, name: str) -> bool:
    keys = contents.keys(name)
    if not keys or not {"images", "annotations"} & keys[0]:
        return False
    has_rows = len(keys) > 1 and {"image_id", "category_id"} <= keys[1]  # a large file may begin with them
    return has_rows or bool(_FILE_NAME.search(contents.head(name))) or {"images", "annotations"} <= keys[0]


def _found(contents: PathContents, files: Mapping[str, str]) -> FoundData:
    """Return the data set of some COCO files by the word for their split."""
    keys: dict[str, object] = {}
    images: dict[str, int] = {}
    num_classes = None
    for word, name in files.items():
        folder = absolute(contents.given_images or images_beside(contents, name))
        keys[SPLIT_WORDS[word]] = {"annotations": str(contents.root / name), "images": str(folder)}
        parsed = contents.json(name)
        listed = [parsed.get(key) for key in ("images", "categories")] if isinstance(parsed, dict) else [None, None]
        sizes = [len(each) if isinstance(each, list) else 0 for each in listed]
        images[word], num_classes = sizes[0], sizes[1] or num_classes
    is_roboflow = any(name.endswith("_annotations.coco.json") for name in files.values())
    return FoundData("Roboflow COCO export" if is_roboflow else "COCO data set", keys, images, num_classes)
