"""Catalogue of `detector download`: weights and data sets that others publish.

`weights/index.yaml` and `data/downloads.yaml` list them with source, exact length and, as far as it is stated, licence.
An entry is downloaded only when its name is asked for.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from detector.config.name_suggestions import nearest
from detector.config.nodes import presets_dir
from detector.config.schema import load_config
from detector.darknet.cfg_file import read_cfg
from detector.darknet.weights_file import WeightsHeader, read_weights
from detector.errors import DetectorError
from detector.io.archive import unpack
from detector.io.download import fetch
from detector.models.published_weights import (
    DRAWN_START,
    PublishedWeights,
    packed_file,
    published_weights,
    require_network,
)
from detector.models.yolox_checkpoint import load_yolox_file

_HEADER_BYTES = 20
# Largest growth of an archive when unpacked: text annotations grow fourfold, images hardly at all.
_MAX_GROWTH = 10


@dataclass(frozen=True)
class PublishedArchive:
    """Zip or tar file of a data set: its address, its exact length, and its checksum where one is known."""

    url: str
    num_bytes: int
    sha256: str | None = None


@dataclass(frozen=True)
class PublishedDataSet:
    """Data set: name of the entry, publisher's page, licence as far as it is stated, and archives."""

    name: str
    page: str
    licence: str
    archives: tuple[PublishedArchive, ...]

    @property
    def num_bytes(self) -> int:
        """The total length of its archives."""
        return sum(archive.num_bytes for archive in self.archives)


Published = PublishedWeights | PublishedDataSet


@dataclass(frozen=True)
class _DataIndex:
    data_sets: tuple[PublishedDataSet, ...]


def published() -> dict[str, Published]:
    """Return every entry by name.

    Raises:
        ConfigError: an index cannot be read.
    """
    data_sets = load_config(_DataIndex, str(packed_file("index/data.yaml", "data/downloads.yaml"))).data_sets
    entries: list[Published] = [*published_weights().values(), *data_sets]
    return {entry.name: entry for entry in entries}


def find_published(name: str) -> Published:
    """Return the entry of a name.

    Raises:
        DetectorError: no entry has this name; the message gives the nearest one.
    """
    known = published()
    if name == DRAWN_START:
        raise DetectorError(f"{name} is part of the package, so that there is nothing to download; give it as a model")
    if name not in known:
        raise DetectorError(f"{name!r} is not in the catalogue of downloads{nearest(name, known)}")
    return known[name]


def fetch_weights(
    entry: PublishedWeights, target: Path, progress: Callable[[int], None] = lambda num_done: None
) -> None:
    """Download weights; the file gets the name `target` only after every array in it has been checked.

    Raises:
        DetectorError: as `detector.io.download.fetch`.
        DarknetError: the file does not fit its network, or is no weights file.
    """
    fetch(
        entry.url, target, num_bytes=entry.num_bytes, check=lambda part: _check_weights(entry, part), progress=progress
    )


def _check_weights(entry: PublishedWeights, part: Path) -> None:
    if entry.is_yolox:
        require_network(entry, load_yolox_file(part))
        return
    cfg = presets_dir() / "darknet" / f"{entry.network}.cfg"
    if cfg.is_file():
        read_weights(part, read_cfg(cfg), partial=entry.num_layers is not None)
        return
    with part.open("rb") as file:  # the network is not shipped, so only length and header can be checked
        WeightsHeader.unpack(file.read(_HEADER_BYTES), part)


def fetch_data_set(
    entry: PublishedDataSet, folder: Path, progress: Callable[[int], None] = lambda num_done: None
) -> None:
    """Download the archives of a data set and unpack them; the folder appears only when it is complete.

    Archives and unpacked files are collected in `folder` + `.part`, so that the same call continues after a failure.
    The description of the data set, for `data=`, is written beside its folder unless there is a file of that name.

    Raises:
        DetectorError: the folder exists, or as `detector.io.download.fetch` and `detector.io.archive.unpack`.
    """
    if folder.exists():
        raise DetectorError(f"{folder} exists; remove it, or name another place with --out")
    part = folder.with_name(f"{folder.name}.part")
    archives = [(archive, part / "archives" / archive.url.rpartition("/")[2]) for archive in entry.archives]
    num_before = 0
    for archive, file in archives:
        fetch(
            archive.url,
            file,
            num_bytes=archive.num_bytes,
            sha256=archive.sha256,
            progress=lambda num_done, num_before=num_before: progress(num_before + num_done),  # type: ignore[misc]  # mypy#12557
        )
        num_before += archive.num_bytes
        progress(num_before)
    for archive, file in archives:
        unpack(file, part / "files", max_bytes=_MAX_GROWTH * archive.num_bytes)
    try:
        (part / "files").replace(folder)
        shutil.rmtree(part)
    except OSError as error:
        raise DetectorError(f"{part} cannot be renamed to {folder}: {error.strerror}") from error
    described, beside = packed_file(f"index/{entry.name}.yaml", f"data/{entry.name}.yaml"), f"{entry.name}.yaml"
    if folder.name == entry.name and described.is_file() and not folder.with_name(beside).exists():
        shutil.copyfile(described, folder.with_name(beside))
