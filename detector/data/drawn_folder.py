"""Folders of drawn data sets: images, COCO annotations and a record of the generator and its settings."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, TypedDict

import cv2
import numpy as np
import numpy.typing as npt

from detector.data.coco import CocoAnnotations, read_coco
from detector.data.dataset import Dataset
from detector.errors import DatasetError
from detector.structures.letterbox import Image

SPLIT_NAMES = ("train", "val")


def split_generator(seed: int, split_name: str, *path: int) -> np.random.Generator:
    """Return the random generator of an image, a function of the arguments."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(*path, *split_name.encode())))


@dataclass(frozen=True)
class DrawnImage:
    """Drawn image and its annotations.

    Attributes:
        image: uint8 (H, W, 3) RGB.
        boxes_xywh: float64 (N, 4), pixels of the image.
        labels: int64 (N,), index into the classes.
        visible_share: float64 (N,), 0..1, the share of the object that can be seen.
        is_crowd: bool (N,), boxes that training and evaluation ignore.
    """

    image: Image
    boxes_xywh: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    visible_share: npt.NDArray[np.float64]
    is_crowd: npt.NDArray[np.bool_]


class _Record(TypedDict):
    """Record of a drawn data set: its generator, the version of that and the parameters."""

    generator: str
    version: int
    parameters: dict[str, int]


@dataclass(frozen=True)
class DrawnFolder:
    """Generator of a data set of detection, and the writer of its folders.

    Attributes:
        name: name for messages and of the file of the record, `NAME.json`.
        title: the data set at the start of a sentence on its splits, with its verb.
        generator: name of the generator in the record.
        version: version of the generator; a folder of another one is refused.
        category_ids: COCO category id of each class, by label.
        supercategory: COCO supercategory of the classes.
        min_image_size: the least side of an image in pixels.
        draw: (seed, split name, index, image size) -> image with annotations.
        jpeg_quality: quality of the files, 0..100.
    """

    name: str
    title: str
    generator: str
    version: int
    category_ids: Mapping[str, int]
    supercategory: str
    min_image_size: int
    draw: Callable[[int, str, int, int], DrawnImage]
    jpeg_quality: int = 95

    def _record(self, num_train: int, num_val: int, image_size: int, seed: int) -> _Record:
        parameters = {"num_train": num_train, "num_val": num_val, "image_size": image_size, "seed": seed}
        for (key, value), least in zip(parameters.items(), (1, 1, self.min_image_size, 0), strict=True):
            if value < least:
                raise DatasetError(f"{self.name}: expected {key} of at least {least}, got {value}; raise it")
        return {"generator": self.generator, "version": self.version, "parameters": parameters}

    def _draw_split(self, folder: Path, split_name: str, record: _Record) -> None:
        (folder / "images" / split_name).mkdir(parents=True)
        images: list[dict[str, object]] = []
        annotations: list[dict[str, object]] = []
        size, seed = record["parameters"]["image_size"], record["parameters"]["seed"]
        category_of_label = list(self.category_ids.values())
        for index in range(record["parameters"][f"num_{split_name}"]):
            image_id, name = index + 1, f"{index + 1:06d}.jpg"
            drawn = self.draw(seed, split_name, index, size)
            quality = [cv2.IMWRITE_JPEG_QUALITY, self.jpeg_quality]
            _, encoded = cv2.imencode(".jpg", drawn.image[..., ::-1], quality)
            (folder / "images" / split_name / name).write_bytes(encoded.tobytes())
            images.append({"id": image_id, "file_name": name, "width": size, "height": size})
            columns = (drawn.boxes_xywh, drawn.labels, drawn.visible_share, drawn.is_crowd)
            for box, label, share, crowd in zip(*(column.tolist() for column in columns), strict=True):
                category_id, area = category_of_label[label], box[2] * box[3]
                annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category_id, "bbox": box}
                rest = {"area": area, "iscrowd": int(crowd), "visible_share": round(share, 4)}
                annotations.append({**annotation, **rest})
        info = {**record, "description": f"drawn {self.name}, {split_name}", "version": str(self.version)}
        names = self.category_ids.items()
        categories = [{"id": i, "name": name, "supercategory": self.supercategory} for name, i in names]
        content = {"info": info, "images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"{split_name}.json").write_text(json.dumps(content), encoding="utf-8")

    def _difference(self, root: Path, record: _Record) -> str | None:
        """Return how a folder differs from the requested data set; None where it is the same."""
        try:
            written = json.loads((root / f"{self.name}.json").read_text(encoding="utf-8"))
            if written != record:
                return f"{self.name}.json says {written}"
            for split_name in SPLIT_NAMES:
                num_images = record["parameters"][f"num_{split_name}"]
                images = [root / "images" / split_name / f"{image_id:06d}.jpg" for image_id in range(1, num_images + 1)]
                for path in (root / "annotations" / f"{split_name}.json", *images):
                    if path.stat().st_size == 0:
                        return f"{path} is empty"
        except (OSError, ValueError) as error:
            return str(error)
        return None

    def write(self, root: Path, *, num_train: int, num_val: int, image_size: int, seed: int) -> None:
        """Draw `images/<split>/000001.jpg` ..., `annotations/<split>.json` (COCO) and `NAME.json` with the settings.

        Everything is drawn in a temporary folder next to `root`, which is renamed at the end, so that an interrupted
        call leaves no `root`. The `area` of an annotation is that of its box; `visible_share` is an additional key.

        Args:
            root: the folder of the data set; it must be empty or not exist, missing parents are created.
            num_train: images of the split `train`, at least 1.
            num_val: images of the split `val`, at least 1.
            image_size: height and width in pixels, at least `min_image_size`.
            seed: at least 0; equal arguments draw equal files (under the same versions of NumPy and OpenCV).

        Raises:
            DatasetError: `root` is not empty or cannot be written, or an argument is below its least value.
        """
        record = self._record(num_train, num_val, image_size, seed)
        root = Path(os.path.realpath(root))  # a link to an empty folder stays a link
        try:
            if root.exists() and any(root.iterdir()):
                text = f"{self.name}: expected no folder or an empty one at {root}, got files"
                raise DatasetError(f"{text}; choose another folder (data.root)")
            root.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as temporary:
                folder = Path(temporary) / root.name
                for split_name in SPLIT_NAMES:
                    self._draw_split(folder, split_name, record)
                (folder / f"{self.name}.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
                os.replace(folder, root)
        except OSError as error:
            raise DatasetError(f"{self.name}: cannot draw into {root}, {error}; choose a writable folder") from error

    def ensure(self, root: Path, *, num_train: int, num_val: int, image_size: int, seed: int) -> None:
        """Draw the data set where it is missing, and change nothing where it exists; arguments as for `write`.

        Raises:
            DatasetError: `root` holds something else, which is not changed, or `write` fails.
        """
        record = self._record(num_train, num_val, image_size, seed)
        if self._difference(root, record) is None:
            return
        try:
            self.write(root, **record["parameters"])
        except DatasetError as error:
            # Another process may have drawn the same data set meanwhile.
            difference = self._difference(root, record)
            if difference is not None:
                raise DatasetError(f"{error} (it is not the requested data set: {difference})") from error


class DrawnSettings(Protocol):
    """The settings that every drawn data set has; the arguments of `DrawnFolder.write`."""

    @property
    def root(self) -> Path:
        """Return the folder of the data set."""

    @property
    def num_train(self) -> int:
        """Return the number of training images."""

    @property
    def num_val(self) -> int:
        """Return the number of validation images."""

    @property
    def image_size(self) -> int:
        """Return the side of the square images in pixels."""

    @property
    def seed(self) -> int:
        """Return the seed of the drawing."""


class DrawnDataset(Dataset):
    """Data set of a `DrawnFolder`, drawn into the folder `root` of its configuration on first use."""

    drawn: ClassVar[DrawnFolder]
    config: DrawnSettings

    def split_names(self) -> tuple[str, ...]:
        """Return the names of the splits, `train` and `val`."""
        return SPLIT_NAMES

    def split(self, name: str) -> CocoAnnotations:
        """Return the annotations of `train` or `val`, after drawing the data set where it is missing.

        Raises:
            DatasetError: the name is another one, or the folder holds something else.
        """
        if name not in SPLIT_NAMES:
            raise DatasetError(f"{self.drawn.title} the splits train and val, got {name!r}; use one of them")
        config, root = self.config, self.config.root.resolve()
        counts = {"num_train": config.num_train, "num_val": config.num_val}
        self.drawn.ensure(root, **counts, image_size=config.image_size, seed=config.seed)
        return read_coco(root / "annotations" / f"{name}.json", root / "images" / name)
