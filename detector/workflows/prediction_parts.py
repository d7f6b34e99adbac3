"""Prediction in parts: Parquet files of consecutive images, each written whole, and a manifest of what they belong to.

A part is a function of the manifest, so any number of processes on any machines may write the parts of one folder, in
any order: a process that is killed leaves whole parts, and the same command writes the missing ones.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from detector.config.schema import config_to_plain, differences
from detector.errors import ConfigError, DetectorError
from detector.inference.prediction_run import batch_size_for
from detector.inference.predictor import Prediction, Predictor
from detector.io.arrow_files import detection_schema, parquet_metadata, require_arrow, write_parquet
from detector.io.files import write_whole
from detector.io.json_stream import read_value
from detector.media.sources import ImageSource
from detector.models.precision import choose_device
from detector.models.published_weights import model_sha256
from detector.structures.selection import SelectConfig
from detector.tasks.detection_model import LoadedModel, build_predictor, matched
from detector.tasks.detection_prediction import OpenedRequest, open_request
from detector.tasks.requests import Observer, PredictionRequest

MANIFEST = "manifest.json"
_FORMAT = "prediction parts 1"
_SECTIONS = ("model", "input", "views", "runtime")  # of the experiment; those that change the boxes of an image
# By default, a set has this many parts or fewer images in a part than the largest number.
_NUM_PARTS, _MOST_IMAGES, _LEAST_IMAGES = 256, 1000, 8
_LEFTOVER_S = 3600


@dataclass(frozen=True)
class Manifest:
    """Everything that the parts of a folder are a function of.

    Attributes:
        model_sha256: hash of the model file.
        settings: the sections of the experiment that change boxes, and the selection, as plain data.
        num_images: images of all parts together.
        sources_sha256: hash of the names and ids of the images, in order.
        images_per_part: images in a part, except the last one.
        class_names: name of each class of the model.
        category_ids: category id of each class.
        listed_category_ids: category ids that a COCO results file may have; None where the images have no ids.
        format: name and version of the layout.
    """

    model_sha256: str
    settings: dict[str, Any]
    num_images: int
    sources_sha256: str
    images_per_part: int
    class_names: list[str]
    category_ids: list[int]
    listed_category_ids: list[int] | None
    format: str = _FORMAT

    @property
    def num_parts(self) -> int:
        """Number of parts."""
        return -(-self.num_images // self.images_per_part)

    @property
    def digest(self) -> str:
        """Hash of the manifest, which every part carries."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def images_of(self, part: int) -> range:
        """Return the positions of the images of a part."""
        start = part * self.images_per_part
        return range(start, min(start + self.images_per_part, self.num_images))

    def parts_of(self, shard: tuple[int, int]) -> range:
        """Return the parts of shard i of n: every n-th one."""
        return range(shard[0], self.num_parts, shard[1])


def part_name(part: int) -> str:
    """Return the file name of a part."""
    return f"part-{part:06d}.parquet"


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a folder of parts.

    Raises:
        DetectorError: there is none, or it is of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DetectorError(
            f"{folder}: expected a folder of prediction parts with {MANIFEST}, got none; check the path"
        )
    plain = read_value(path, "manifest")
    try:
        manifest = Manifest(**plain)
        if manifest.format != _FORMAT or min(manifest.images_per_part, manifest.num_images) < 1:
            raise TypeError(manifest.format)
    except TypeError as error:
        raise DetectorError(
            f"{path}: expected a manifest of the format {_FORMAT!r}, got another; predict again"
        ) from error
    return manifest


@dataclass(frozen=True)
class PartCounts:
    """Contents of finished parts.

    Attributes:
        num_images: images.
        num_unread: images that could not be read.
        num_warnings: warnings about images that were read.
    """

    num_images: int = 0
    num_unread: int = 0
    num_warnings: int = 0

    def __add__(self, other: PartCounts) -> PartCounts:
        pairs = zip(asdict(self).values(), asdict(other).values(), strict=True)
        return PartCounts(*(a + b for a, b in pairs))

    @classmethod
    def of_file(cls, path: Path, manifest: Manifest, part: int) -> PartCounts | None:
        """Return the counts of a part that is on the disk; None if it is missing, damaged or of another manifest."""
        found = parquet_metadata(path) or {}
        if (found.get("manifest"), found.get("part")) != (manifest.digest, str(part)):
            return None
        counts = cls(int(found["num_rows"]), int(found["num_unread"]), int(found["num_warnings"]))
        return counts if counts.num_images == len(manifest.images_of(part)) else None


class PredictionParts:
    """Model and images of a folder of parts, ready to write any of them.

    Attributes:
        manifest: what the parts are a function of.
        folder: the folder of the parts.
    """

    def __init__(
        self,
        weights: Path,
        opened: OpenedRequest,
        folder: Path,
        images_per_part: int | None,
        observer: Observer,
    ) -> None:
        """Build the predictor and compare the manifest of the folder, or write one.

        Args:
            weights: the model file.
            opened: model, sources and selection.
            folder: the folder of the parts, created if missing.
            images_per_part: images in a part; None for a number that suits the size of the set.
            observer: told of classes that do not match, and of images that cannot be read.

        Raises:
            ConfigError: a source is a video, or the folder has parts of another model, set of images or setting.
            DetectorError: the folder cannot be written.
        """
        sources, annotations, loaded = opened.inputs.sources, opened.inputs.annotations, opened.loaded
        if opened.inputs.has_frames:
            name = next(source.name for source in sources if not isinstance(source, ImageSource))
            raise ConfigError(f"prediction in parts: expected images, got a video or stream ({name}); give images")
        self._sources = [source for source in sources if isinstance(source, ImageSource)]
        if annotations is not None:
            loaded, annotations = matched(loaded, annotations, observer.note, observer.warn)
        listed = None if annotations is None else list(annotations.category_ids)
        batch_size = (
            batch_size_for(sources, loaded.config.views, choose_device(loaded.config.device))
            if annotations is None
            else loaded.config.evaluate.batch_size
        )
        self._predictor = build_predictor(loaded, batch_size)
        self._select, self._report, self.folder = opened.select, observer.note, folder
        chosen = images_per_part or _suitable_size(len(sources))
        self.manifest = _manifest(weights, loaded, self._predictor, self._select, (self._sources, chosen, listed))
        self._settle()

    def _settle(self) -> None:
        """Write the manifest into a folder without one, then compare the one that is there."""
        path = self.folder / MANIFEST
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                content = json.dumps(asdict(self.manifest), indent=1).encode()
                write_whole(path, lambda file: file.write(content))
            for leftover in self.folder.glob(".*.tmp"):  # of a killed process; a write takes seconds
                if time.time() - leftover.stat().st_mtime > _LEFTOVER_S:
                    leftover.unlink(missing_ok=True)
        except OSError as error:
            raise DetectorError(f"{path} cannot be written: {error.strerror}; check the folder and the disk") from error
        found = read_manifest(self.folder)
        if unequal := differences(asdict(self.manifest), asdict(found)):
            raise ConfigError(
                f"{path}: expected parts of this model, these images and settings, got parts with other "
                f"{'; '.join(unequal)}; choose another folder"
            )

    def finished(self, part: int) -> PartCounts | None:
        """Return the counts of a part that is whole on the disk, else None."""
        return PartCounts.of_file(self.folder / part_name(part), self.manifest, part)

    def write(self, part: int) -> PartCounts:
        """Predict the images of a part and write its file.

        Raises:
            DetectorError: the disk refuses.
        """
        images = self.manifest.images_of(part)
        rows, counts = [], PartCounts()
        predictions = self._predictor.stream(self._sources[images.start : images.stop], self._select)
        for index, prediction in zip(images, predictions, strict=True):
            if prediction.error is not None:
                self._report(f"skipped: {prediction.error}")
            for warning in prediction.warnings:
                self._report(f"warning: {warning}")
            rows.append(_row(index, prediction))
            counts += PartCounts(1, int(prediction.detections is None), len(prediction.warnings))
        own = {"manifest": self.manifest.digest, "part": str(part)}
        counted = {"num_unread": str(counts.num_unread), "num_warnings": str(counts.num_warnings)}
        write_parquet(self.folder / part_name(part), [rows], detection_schema(), {**own, **counted})
        return counts


def _suitable_size(num_images: int) -> int:
    """Return the images of a part: about 256 parts, of whole batches, and at most 1,000 images."""
    each = -(-num_images // _NUM_PARTS)
    return min(max(-(-each // _LEAST_IMAGES) * _LEAST_IMAGES, _LEAST_IMAGES), _MOST_IMAGES)


def _manifest(
    weights: Path,
    loaded: LoadedModel,
    predictor: Predictor,
    select: SelectConfig,
    images: tuple[Sequence[ImageSource], int, list[int] | None],
) -> Manifest:
    sources, images_per_part, listed = images
    plain = config_to_plain(loaded.config)
    names = hashlib.sha256()
    for source in sources:
        names.update(json.dumps([source.name, source.image_id, source.listed_hw]).encode())
    settings = {key: plain[key] for key in _SECTIONS if key in plain}
    return Manifest(
        model_sha256=model_sha256(weights),
        settings={**settings, "select": config_to_plain(select), "batch_size": predictor.batch_size},
        num_images=len(sources),
        sources_sha256=names.hexdigest(),
        images_per_part=images_per_part,
        class_names=list(predictor.class_names),
        category_ids=list(predictor.category_ids),
        listed_category_ids=listed,
    )


def _row(index: int, prediction: Prediction) -> dict[str, object]:
    """Return the row of an image; boxes and scores are the model's float32, not rounded."""
    source, found = prediction.source, prediction.detections
    row: dict[str, object] = {
        "index": index,
        "image": _encodable(source.name),
        "image_id": source.image_id,
        "error": prediction.error and _encodable(prediction.error),
        "warnings": list(map(_encodable, prediction.warnings)),
        "detections": [],
    }
    if found is None:
        return row
    boxes = zip(found.source_xyxy.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    detections = [
        {
            **dict(zip(("x1", "y1", "x2", "y2"), corners, strict=True)),
            "score": score,
            "label": label,
            "category_id": found.category_ids[label],
            "name": found.class_names[label],
        }
        for corners, score, label in boxes
    ]
    return {**row, "height": found.image_hw[0], "width": found.image_hw[1], "detections": detections}


def _encodable(text: str) -> str:
    """Return a text without the surrogates that stand for bytes of a file name that is not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def open_parts(request: PredictionRequest, observer: Observer, images_per_part: int | None = None) -> PredictionParts:
    """Open the model and the images of a request, whose `save_dir` is the folder of the parts.

    Raises:
        ConfigError: pyarrow is missing, no folder is given, a setting is wrong, or the folder has other parts.
        DetectorError: as `open_request` raises, or the folder cannot be written.
    """
    require_arrow("prediction in parts")
    folder = request.options.save_dir
    if folder is None:
        raise ConfigError("prediction in parts: expected the folder of the parts, got none; give --out FOLDER")
    opened = open_request(replace(request, check_frames=lambda has_frames: None), observer)
    return PredictionParts(request.weights, opened, folder, images_per_part, observer)


@dataclass(frozen=True)
class PartsSummary:
    """Outcome of a command that writes parts.

    Attributes:
        counts: images of all parts that the command answers for, kept ones included.
        num_written: parts that it wrote.
        num_kept: parts that were there before.
        num_parts: parts of the whole folder.
    """

    counts: PartCounts
    num_written: int
    num_kept: int
    num_parts: int


def run_parts(
    job: PredictionParts,
    shard: tuple[int, int] = (0, 1),
    write_all: Callable[[Sequence[int]], Iterator[PartCounts]] | None = None,
    on_part: Callable[[int, int], None] = lambda done, total: None,
) -> PartsSummary:
    """Write the missing parts of shard i of n.

    Args:
        job: the model and the images.
        shard: i and n, i within 0..n-1.
        write_all: writes parts and yields the counts of each; in this process by default.
        on_part: called after each part with the number of parts done and of all parts of the shard.

    Raises:
        DetectorError: the disk refuses.
    """
    parts = job.manifest.parts_of(shard)
    kept = {part: counts for part in parts if (counts := job.finished(part)) is not None}
    missing = [part for part in parts if part not in kept]
    counts = sum(kept.values(), PartCounts())
    on_part(len(kept), len(parts))
    written = map(job.write, missing) if write_all is None else write_all(missing)
    for done, own in enumerate(written, start=len(kept) + 1):
        counts += own
        on_part(done, len(parts))
    return PartsSummary(counts, len(missing), len(kept), job.manifest.num_parts)
