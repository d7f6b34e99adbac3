"""Files of results: one writer for each format, all with one interface, and the names of the files.

A format is a class here and a line in `FORMATS`. Files of lines grow by whole lines, so that a run that is killed
leaves its results up to then; files that are one document are written whole at the end. Nothing is written outside the
folder of results, and no file that a user put there is overwritten.
"""

from __future__ import annotations

import abc
import csv
import dataclasses
import io
import json
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from detector.config.name_suggestions import nearest
from detector.errors import ConfigError, MediaError
from detector.io.files import write_whole
from detector.io.folders import absolute
from detector.media.drawing import as_rgb
from detector.media.frame_sequences import stem_of_frames
from detector.media.images import picture_suffix, write_image
from detector.media.sources import ImageSource, VideoSource
from detector.media.video_writer import DEFAULT_CODEC, VideoWriter, require_codec
from detector.structures.boxes import xyxy_to_cxcywh, xyxy_to_xywh
from detector.structures.letterbox import Image
from detector.structures.types import Detection, Detections

# The names of a box are the fields of `Detection`, everywhere.
_CSV_COLUMNS = ("image", "width", "height", *(field.name for field in dataclasses.fields(Detection)))
_OLD_CSV_COLUMNS = ("class", "xmin", "ymin", "xmax", "ymax")  # up to version 0.1; removed after 0.2
_CSV_FRAME_COLUMNS = ("frame", "time_s")
_CSV_TRACK_COLUMNS = ("track_id",)
_MAX_STREAM_STEM, _MAX_STEM_BYTES = 80, 200  # file systems take 255 for a name; a number and a suffix are appended


class FileNames:
    """Unique file names for the results of each image; the name of a source in the folder of results is never used."""

    def __init__(self, folder: Path, sources: Iterable[Path] = ()) -> None:
        """Take the folder of results and the files of all sources."""
        inside = absolute(folder)
        self._taken = {key_of(path.stem) for path in sources if absolute(path).is_relative_to(inside)}

    def of(self, source: ImageSource) -> str:
        """Return a new name without suffix: that of the source's file, with a number appended if it is taken."""
        if source.frame is None or (source.frame.video.frames and source.path is not None):
            return self.free((source.path or Path(source.name)).stem)
        return self.free(stem_of(source.frame.video), f"_{source.frame.index:06d}")

    def free(self, stem: str, end: str = "") -> str:
        """Return a new name without suffix: a stem valid in file systems, its end, and a number if that is taken."""
        stem = stem.strip(". ") or "image"
        while len(os.fsencode(stem)) > _MAX_STEM_BYTES:
            stem = stem[:-1]
        number, name = 1, stem + end
        while key_of(name) in self._taken:
            number += 1
            name = f"{stem}{end}_{number}"
        self._taken.add(key_of(name))
        return name


def stem_of(video: VideoSource) -> str:
    """Return a file name for a video: that of its file, or its address in letters that every system accepts."""
    name = video.name
    if "://" in name or name.startswith("camera:"):
        return re.sub(r"[^\w.-]+", "_", name.partition("://")[2] or name).strip("_.")[:_MAX_STREAM_STEM] or "stream"
    return stem_of_frames(name) if video.frames else Path(name).stem


def key_of(stem: str) -> str:
    """Return a key that is equal for names that some file system takes for the same file.

    macOS and Windows ignore case; macOS composes letters.
    """
    return unicodedata.normalize("NFC", stem).casefold()


class Found(Protocol):
    """Results of one image; a `Prediction` is one."""

    @property
    def source(self) -> ImageSource:
        """Origin of the image."""

    @property
    def detections(self) -> Detections | None:
        """Detections, or None if the image could not be read."""

    @property
    def error(self) -> str | None:
        """Reason why it could not be read, or None."""

    @property
    def image(self) -> Image | None:
        """Image, uint8 (H, W, C), or None."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Oddities of an image that was read, a sentence each."""

    @property
    def track_ids(self) -> npt.NDArray[np.int64] | None:
        """Track of each detection, int64 (N,), or None if nothing was tracked."""


class Writer(abc.ABC):
    """Writer of one kind of results, image by image.

    Attributes:
        path: the file or folder that it writes.
    """

    path: Path

    @abc.abstractmethod
    def add(self, found: Found, stem: str) -> None:
        """Add the results of one image.

        Args:
            found: the results.
            stem: the name, without suffix, of files that belong to this image alone.

        Raises:
            MediaError: the disk refuses.
        """

    def close(self) -> None:  # noqa: B027 (most writers have nothing left to write)
        """Finish the file.

        Raises:
            MediaError: the disk refuses.
        """


def record_of(found: Found) -> dict[str, Any]:
    """Return the results of an image as plain data; scores are rounded to 5 digits, pixels to 2.

    A box has the fields of `Detection`. Up to version 0.2 it also has the names that it had in 0.1: class and box_xyxy.
    """
    source, detections, record = found.source, found.detections, dict[str, Any]()
    record["source"] = source.name
    if source.frame is not None and source.error is None:
        time_s = source.frame.time_s
        record |= {"frame": source.frame.index, "time_s": None if time_s is None else round(time_s, 6)}
    if detections is None:
        return {**record, "error": found.error, "detections": []}
    if found.warnings:
        record["warnings"] = list(found.warnings)
    ids = [] if found.track_ids is None else [i if i > 0 else None for i in found.track_ids.tolist()]
    tracks = [{}] * len(detections) if found.track_ids is None else [{"track_id": i} for i in ids]
    return {
        **record,
        "height": detections.image_hw[0],
        "width": detections.image_hw[1],
        "detections": [{**fields_of(box), **track} for box, track in zip(detections.boxes, tracks, strict=True)],
    }


def fields_of(box: Detection) -> dict[str, object]:
    """Return the fields of a box, rounded, and its old names."""
    corners = [round(side, 2) for side in (box.x1, box.y1, box.x2, box.y2)]
    return {
        "name": box.name,
        "label": box.label,
        "category_id": box.category_id,
        "score": round(box.score, 5),
        **dict(zip(("x1", "y1", "x2", "y2"), corners, strict=True)),
        "class": box.name,
        "box_xyxy": corners,
    }


class JsonWriter(Writer):
    """Writer of `predictions.json`: a list of records, one for each image."""

    def __init__(self, folder: Path) -> None:
        self.path, self.records = folder / "predictions.json", list[dict[str, object]]()

    def add(self, found: Found, stem: str) -> None:
        """Add the record of an image."""
        self.records.append(record_of(found))

    def close(self) -> None:
        """Write the file."""
        write_text(self.path, json.dumps(self.records, indent=1))


class CocoWriter(Writer):
    """Writer of `results.json`: COCO records with original ids, not rounded, for the listed categories."""

    def __init__(self, folder: Path, category_ids: Iterable[int]) -> None:
        self.path, self.records = folder / "results.json", list[dict[str, object]]()
        self._category_ids = frozenset(category_ids)

    def add(self, found: Found, stem: str) -> None:
        """Add the records of an image; one without an id has none."""
        if found.detections is not None and found.source.image_id is not None:
            records = found.detections.to_coco(found.source.image_id)
            self.records += [record for record in records if record["category_id"] in self._category_ids]

    def close(self) -> None:
        """Write the file."""
        write_text(self.path, json.dumps(self.records))


class JsonLinesWriter(Writer):
    """Writer of `predictions.jsonl`: a line with a record for each image."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "predictions.jsonl"
        write_text(self.path, "")

    def add(self, found: Found, stem: str) -> None:
        """Add a line."""
        _append(self.path, json.dumps(record_of(found)) + "\n")


class CsvWriter(Writer):
    """Writer of `predictions.csv`: a line for each detection, and one without a box for an image without detections."""

    def __init__(self, folder: Path, has_frames: bool = False, has_tracks: bool = False) -> None:
        """Begin a table, with columns for frames and tracks on request; images that cannot be read have no line."""
        self.path = folder / "predictions.csv"
        more = (_CSV_FRAME_COLUMNS if has_frames else ()) + (_CSV_TRACK_COLUMNS if has_tracks else ())
        self._columns = (*_CSV_COLUMNS, *more, *_OLD_CSV_COLUMNS)
        write_text(self.path, self._lines([dict(zip(self._columns, self._columns, strict=True))]))

    def _lines(self, rows: Sequence[Mapping[str, object]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, extrasaction="ignore", lineterminator="\n").writerows(rows)
        return text.getvalue()

    def add(self, found: Found, stem: str) -> None:
        """Add the lines of an image."""
        if found.detections is None:
            return
        record = record_of(found)
        image = {"image": record["source"], **record}
        rows = [
            {**image, **entry, **dict(zip(("xmin", "ymin", "xmax", "ymax"), entry["box_xyxy"], strict=True))}
            for entry in record["detections"]
        ]
        _append(self.path, self._lines(rows or [image]))


class TxtWriter(Writer):
    """Writer of `labels/NAME.txt`, the classes and boxes of an image in the YOLO family's format, and of `classes.txt`.

    A line has the number of a class and the centre, width and height of a box as shares of the image.
    """

    def __init__(self, folder: Path, class_names: Sequence[str]) -> None:
        self.path = _new_folder(folder / "labels")
        names = (" ".join(name.split()) for name in class_names)  # a line each
        write_text(folder / "classes.txt", "".join(f"{name}\n" for name in names))

    def add(self, found: Found, stem: str) -> None:
        """Write the file of an image: empty if there are no detections, no file if it could not be read."""
        detections = found.detections
        if detections is None:
            return
        height, width = detections.image_hw
        shares = xyxy_to_cxcywh(
            detections.source_xyxy.double() / detections.source_xyxy.new_tensor([width, height] * 2)
        )
        lines = [
            f"{label} {' '.join(f'{share:.8f}' for share in row)}\n"
            for label, row in zip(detections.labels.tolist(), shares.tolist(), strict=True)
        ]
        write_text(self.path / f"{stem}.txt", "".join(lines))


class CropWriter(Writer):
    """Writer of `crops/CLASS/NAME_1.jpg` ...: each detection cut out of its image, the highest score first."""

    def __init__(self, folder: Path, class_names: Sequence[str]) -> None:
        self.path = _new_folder(folder / "crops")
        self._folders: list[str] = []
        for number, name in enumerate(class_names):
            plain = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in name).strip(". ")[:50]
            if not plain or key_of(plain) in map(key_of, self._folders):
                plain = f"{plain}_{number}"
            self._folders.append(plain)

    def add(self, found: Found, stem: str) -> None:
        """Write the detections of an image."""
        if found.detections is None or found.image is None:
            return
        image, detections = as_rgb(found.image), found.detections
        height, width = detections.image_hw
        rows = zip(detections.labels.tolist(), detections.source_xyxy.tolist(), strict=True)
        for number, (label, (x1, y1, x2, y2)) in enumerate(rows, start=1):
            left, top = min(math.floor(x1), width - 1), min(math.floor(y1), height - 1)
            crop = image[top : max(math.ceil(y2), top + 1), left : max(math.ceil(x2), left + 1)]
            folder = self.path / self._folders[label]
            try:
                folder.mkdir(exist_ok=True)
            except OSError as error:
                raise MediaError(f"{folder} cannot be made: {error.strerror}; check the disk") from error
            write_image(folder / f"{stem}_{number}{picture_suffix(crop)}", crop)


class MotWriter(Writer):
    """Writer of `STEM.mot.csv`: `frame,id,left,top,width,height,score,-1,-1,-1` for each detection of a track.

    As motchallenge.net defines it ("instructions", file format): frames, ids and pixels count from 1; the upper left
    corner of the image is (1, 1).
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "*.mot.csv"
        self._paths: dict[int, tuple[VideoSource, Path]] = {}  # by id: a video may be given twice
        self._names = FileNames(folder)

    def add(self, found: Found, stem: str) -> None:
        """Add the lines of a frame."""
        frame = found.source.frame
        if frame is None or found.detections is None or found.track_ids is None:
            return
        if id(frame.video) not in self._paths:
            path = self.path.with_name(f"{self._names.free(stem_of(frame.video))}.mot.csv")
            write_text(path, "")
            self._paths[id(frame.video)] = frame.video, path
        boxes_xywh = xyxy_to_xywh(found.detections.source_xyxy.double()).tolist()
        rows = zip(found.track_ids.tolist(), boxes_xywh, found.detections.scores.tolist(), strict=True)
        lines = [
            f"{frame.index + 1},{track_id},{x + 1:.2f},{y + 1:.2f},{w:.2f},{h:.2f},{score:.5f},-1,-1,-1\n"
            for track_id, (x, y, w, h), score in rows
            if track_id > 0
        ]
        _append(self._paths[id(frame.video)][1], "".join(lines))


class PictureWriter:
    """Writer of annotated pictures (`NAME.jpg`) and videos; a source in the folder is never overwritten.

    Attributes:
        videos: paths of the videos, in the order in which they were begun.
        warnings, notes: those of the videos, a sentence each.
    """

    def __init__(self, folder: Path, sources: Iterable[Path] = (), codec: str = DEFAULT_CODEC, stride: int = 1) -> None:
        """Prepare the names; nothing is written yet.

        Args:
            folder: the folder of results.
            sources: files of all sources, whose names are avoided.
            codec: codec of the videos, a key of `video_writer.CODECS`.
            stride: the run looks at every `stride`-th frame; the videos keep their duration.

        Raises:
            ConfigError: an unknown codec.
        """
        require_codec(codec)
        self._folder, self._codec, self._stride = folder, codec, stride
        self._names = FileNames(folder, sources)
        self._writers: dict[int, tuple[VideoSource, VideoWriter]] = {}  # by id: a video may be given twice
        self.videos, self.warnings, self.notes = list[Path](), list[str](), list[str]()

    def write(self, source: ImageSource, picture: Image) -> None:
        """Add an annotated frame to the video of its source, or write an annotated image as a file of its own.

        Args:
            source: the origin of the picture.
            picture: uint8 (H, W, 3), RGB.

        Raises:
            MediaError: the picture cannot be written.
        """
        if source.frame is None:
            write_image(self._folder / f"{self._names.of(source)}{picture_suffix(picture)}", picture)
            return
        video = source.frame.video
        if id(video) not in self._writers:
            if not video.is_live:  # files come one after another: the last one is complete
                self._close(lambda other: not other.is_live)
            path = self._folder / f"{self._names.free(stem_of(video))}.mp4"
            fps, image_hw = source.frame.fps / self._stride, (picture.shape[0], picture.shape[1])
            self._writers[id(video)] = video, VideoWriter(path, fps, image_hw, self._codec)
            self.videos.append(self._writers[id(video)][1].path)
        self._writers[id(video)][1].write(picture)

    def _close(self, is_done: Callable[[VideoSource], bool] = lambda video: True) -> None:
        for key in [key for key, (video, _) in self._writers.items() if is_done(video)]:
            _, writer = self._writers.pop(key)
            self.warnings += writer.warnings
            self.notes += writer.notes
            writer.close()

    def close(self) -> None:
        """Finish every video so that it can be played; where one fails, finish the others first.

        Raises:
            MediaError: a file does not hold the frames that were written.
        """
        try:
            self._close()
        finally:
            if self._writers:
                self.close()


# By the name of a format on the command line: makes its writer from the folder, the names of the model's classes and
# the category ids that records may have.
FORMATS: dict[str, Callable[[Path, Sequence[str], Sequence[int]], Writer]] = {
    "json": lambda folder, class_names, category_ids: JsonWriter(folder),
    "jsonl": lambda folder, class_names, category_ids: JsonLinesWriter(folder),
    "csv": lambda folder, class_names, category_ids: CsvWriter(folder),
    "txt": lambda folder, class_names, category_ids: TxtWriter(folder, class_names),
    "coco": lambda folder, class_names, category_ids: CocoWriter(folder, category_ids),
}


def require_format(name: str, who: str) -> None:
    """Reject a format that does not exist.

    Raises:
        ConfigError: `name` is no key of `FORMATS`; `who` names the option that asked for it.
    """
    if name not in FORMATS:
        raise ConfigError(f"{who}: no format is named {name!r}{nearest(name, FORMATS)}")


def result_writers(
    formats: Iterable[str],
    folder: Path,
    class_names: Sequence[str],
    category_ids: Sequence[int],
    *,
    has_frames: bool = False,
    has_tracks: bool = False,
    has_crops: bool = False,
) -> list[Writer]:
    """Return a writer for each format, for tracks and for crops.

    Records of frames may be endless, so they are written as lines (`jsonl`) instead of one document (`json`).

    Args:
        formats: keys of `FORMATS`.
        folder: the folder of results.
        class_names: name of each class of the model.
        category_ids: category ids that COCO records may have.
        has_frames: true if a source is a video or stream.
        has_tracks: true if objects are tracked.
        has_crops: true if each detection is written as a picture of its own.

    Raises:
        MediaError: a folder holds files already, or the disk refuses.
    """
    names = dict.fromkeys("jsonl" if has_frames and name == "json" else name for name in formats)
    writers: list[Writer] = [
        CsvWriter(folder, has_frames, has_tracks) if name == "csv" else FORMATS[name](folder, class_names, category_ids)
        for name in names
    ]
    writers += [MotWriter(folder)] if has_tracks else []
    return [*writers, CropWriter(folder, class_names)] if has_crops else writers


def write_text(path: Path, text: str) -> None:
    """Write a file of results, whole or not at all.

    Raises:
        MediaError: the disk refuses.
    """
    encoded = text.encode("utf-8", "backslashreplace")  # a file's name may be no UTF-8
    try:
        write_whole(path, lambda file: file.write(encoded), durable=False)
    except OSError as error:
        raise MediaError(f"{path} cannot be written: {error.strerror}; check the disk") from error


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.write(text)
    except OSError as error:
        raise MediaError(f"{path} cannot be written: {error.strerror}; check the disk") from error


def _new_folder(path: Path) -> Path:
    """Make a folder that must be empty: it could hold files of the user under the same names, such as labels."""
    try:
        path.mkdir(exist_ok=True)
        if any(path.iterdir()):
            raise MediaError(f"{path} holds files, which are not overwritten; choose another folder for the results")
    except OSError as error:
        raise MediaError(f"{path} cannot be made: {error.strerror}; choose another folder") from error
    return path
