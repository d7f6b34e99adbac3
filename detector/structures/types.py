"""Samples, targets, batches and detections: frozen dataclasses that check their own shapes."""

from __future__ import annotations

import html
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detector.errors import DetectorError
from detector.structures.boxes import xyxy_to_xywh
from detector.structures.letterbox import Image, Letterbox
from detector.structures.transfer import sent, sent_record

if TYPE_CHECKING:
    from typing_extensions import Self

_MAX_SHOWN = 20  # rows in a notebook
_MAX_LISTED = 8  # detections in a line of text


def _check(who: str, what: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise ValueError(f"{who}: expected {what} of shape {expected}, got {shape}")


@dataclass(frozen=True)
class ImageObjects:
    """Boxes of one image with their labels and ignore flags.

    Attributes:
        xyxy: float32 (N, 4), pixels of the image that they belong to: a source image or the canvas.
        labels: int64 (N,), 0-based class indices.
        ignore: bool (N,), true for crowd regions.
    """

    xyxy: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    ignore: npt.NDArray[np.bool_]

    def __getitem__(self, keep: npt.NDArray[Any]) -> ImageObjects:
        return ImageObjects(self.xyxy[keep], self.labels[keep], self.ignore[keep])

    @classmethod
    def joined(cls, parts: Sequence[ImageObjects]) -> ImageObjects:
        """Return the objects of several images that share a frame as those of one image."""
        return cls(
            np.concatenate([p.xyxy for p in parts]),
            np.concatenate([p.labels for p in parts]),
            np.concatenate([p.ignore for p in parts]),
        )


@dataclass(frozen=True)
class Sample:
    """One training or evaluation image with its objects, on the canvas.

    Attributes:
        image: uint8 (H, W, C), RGB when C is 3.
        canvas_xyxy: float32 (N, 4), pixels of `image`.
        labels: int64 (N,), 0-based class indices.
        ignore: bool (N,), true for crowd regions: neither object nor background.
        image_id: the id of the (first) image in its annotation file.
        letterbox: the fit of the source, or None if an augmentation mixed several sources.
        skipped: sources that could not be read and were replaced by another one, each with its reason.
        warnings: oddities of sources that were read, a sentence each.
    """

    image: Image
    canvas_xyxy: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    ignore: npt.NDArray[np.bool_]
    image_id: int
    letterbox: Letterbox | None = None
    skipped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.image.dtype != np.uint8 or self.image.ndim != 3:
            raise ValueError(f"Sample: expected a uint8 (H, W, C) image, got {self.image.dtype} {self.image.shape}")
        num = len(self.canvas_xyxy)
        _check("Sample", "canvas_xyxy", self.canvas_xyxy.shape, (num, 4))
        _check("Sample", "labels", self.labels.shape, (num,))
        _check("Sample", "ignore", self.ignore.shape, (num,))


@dataclass(frozen=True)
class TaughtObjects:
    """Detections of a teacher in the images of a batch, one padded row per image.

    Attributes:
        canvas_xyxy: float32 (B, M, 4), pixels of the canvas, inside it; M is the largest number in an image.
        scores: float32 (B, M, classes), the teacher's scores of all classes of the model in training, 0..1: 0 for
            classes that the teacher does not have, and in all classes on padding.
    """

    canvas_xyxy: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Targets:
    """The objects of all images of a batch in one list, each with the index of its image.

    Attributes:
        canvas_xyxy: float32 (T, 4), pixels of the canvas.
        labels: int64 (T,).
        image_index: int64 (T,), ascending, 0 .. num_images - 1.
        ignore: bool (T,), crowd regions.
        num_images: images in the batch, with or without objects.
        host: the same objects on the CPU, which knows their numbers without waiting, where these are on a GPU.
        taught: the detections of a teacher in the same images, or None without one.
    """

    canvas_xyxy: Tensor
    labels: Tensor
    image_index: Tensor
    ignore: Tensor
    num_images: int
    host: Targets | None = field(default=None, repr=False)
    taught: TaughtObjects | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        num = len(self.canvas_xyxy)
        _check("Targets", "canvas_xyxy", tuple(self.canvas_xyxy.shape), (num, 4))
        for what in ("labels", "image_index", "ignore"):
            _check("Targets", what, tuple(getattr(self, what).shape), (num,))

    def to(self, device: torch.device) -> Targets:
        """Return the targets on another device."""
        taught = None if self.taught is None else sent_record(self.taught, device)
        return sent_record(self, device, host=None if device.type == "cpu" else self.host or self, taught=taught)

    def padded(self, ignore: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return the objects (or, with `ignore`, the crowd regions) as one row of equal length per image.

        Returns:
            canvas_xyxy float32 (B, M, 4), labels int64 (B, M), valid bool (B, M); M is the largest number in an image.
        """
        if self.host is not None:
            boxes, labels, valid = self.host.padded(ignore)
            device = self.labels.device
            return sent(boxes, device), sent(labels, device), sent(valid, device)
        keep = self.ignore if ignore else ~self.ignore
        boxes, labels, image_index = self.canvas_xyxy[keep], self.labels[keep], self.image_index[keep]
        counts = torch.bincount(image_index, minlength=self.num_images)
        num_columns = int(counts.max()) if len(image_index) else 0
        column = torch.arange(len(image_index), device=boxes.device) - (counts.cumsum(0) - counts)[image_index]
        shape = (self.num_images, num_columns)
        padded_boxes = boxes.new_zeros((*shape, 4))
        padded_labels = labels.new_zeros(shape)
        valid = keep.new_zeros(shape)
        padded_boxes[image_index, column] = boxes
        padded_labels[image_index, column] = labels
        valid[image_index, column] = True
        return padded_boxes, padded_labels, valid


@dataclass(frozen=True)
class Batch:
    """A batch of training images with their objects.

    Attributes:
        images: uint8 (B, C, H, W); those of `of` are channels_last in memory, which training is fastest with.
        targets: the objects of all images.
        image_ids: the B ids in their annotation file.
        skipped: sources that could not be read, each with its reason.
        warnings: oddities of sources that were read, a sentence each.
    """

    images: Tensor
    targets: Targets
    image_ids: tuple[int, ...]
    skipped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(f"Batch: expected uint8 (B, C, H, W) images, got {self.images.dtype} {self.images.shape}")
        if not len(self.images) == self.targets.num_images == len(self.image_ids):
            raise ValueError(
                f"Batch: expected one id and one target row range per image, got {len(self.images)} images, "
                f"{self.targets.num_images} in the targets, {len(self.image_ids)} ids"
            )

    def pin_memory(self) -> Batch:
        """Return the batch with its images in pinned memory; torch's loader calls this in a thread."""
        return replace(self, images=self.images.pin_memory())

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Batch:
        """Return samples of one size as a batch."""
        counts = [len(s.labels) for s in samples]
        targets = Targets(
            torch.from_numpy(np.concatenate([s.canvas_xyxy for s in samples]).astype(np.float32)),
            torch.from_numpy(np.concatenate([s.labels for s in samples]).astype(np.int64)),
            torch.from_numpy(np.repeat(np.arange(len(samples)), counts)),
            torch.from_numpy(np.concatenate([s.ignore for s in samples]).astype(np.bool_)),
            len(samples),
        )
        images = torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2)
        skipped = tuple(reason for s in samples for reason in s.skipped)
        warnings = tuple(warning for s in samples for warning in s.warnings)
        return cls(images, targets, tuple(s.image_id for s in samples), skipped, warnings)


@dataclass(frozen=True)
class ImageClasses:
    """The class of each image of a batch.

    Attributes:
        labels: int64 (B,), 0-based.
        mixed_labels: int64 (B,), the class of the image that was mixed into each image, or None without mixing.
        share: share of each image that is its own, 0..1.
    """

    labels: Tensor
    mixed_labels: Tensor | None = None
    share: float = 1.0

    def to(self, device: torch.device) -> ImageClasses:
        """Return the classes on another device."""
        return sent_record(self, device)


@dataclass(frozen=True)
class ClassBatch:
    """A batch of training images with their classes.

    Attributes:
        images: uint8 (B, C, H, W), channels_last in memory.
        targets: the class of each image.
        image_ids: the position of each image in the split.
        skipped: always empty, because images that cannot be read are left out when the split is read.
        warnings: always empty, for the same reason.
    """

    images: Tensor
    targets: ImageClasses
    image_ids: tuple[int, ...]
    skipped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Detection:
    """One detected object, with the field names of JSON and CSV records and of `Detections.to_pandas`.

    Attributes:
        name: class name.
        label: 0-based class index.
        category_id: category id in the annotation file the model learned from.
        score: 0..1.
        x1: left side, pixels of the original image.
        y1: upper side.
        x2: right side.
        y2: lower side.
    """

    name: str
    label: int
    category_id: int
    score: float
    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True, repr=False)
class Detections:
    """The detections of one image, the highest score first; an iteration or index gives parts of the same type.

    Attributes:
        source_xyxy: float32 (N, 4), pixels of the original image, inside it.
        scores: float32 (N,), 0..1, descending.
        labels: int64 (N,), 0-based class indices.
        image_hw: height and width of the original image.
        class_names: name of each class index.
        category_ids: category id of each class index in the annotation file the model learned from.
    """

    source_xyxy: Tensor
    scores: Tensor
    labels: Tensor
    image_hw: tuple[int, int]
    class_names: tuple[str, ...] = field(repr=False)
    category_ids: tuple[int, ...] = field(repr=False)

    def __post_init__(self) -> None:
        num = len(self.source_xyxy)
        _check("Detections", "source_xyxy", tuple(self.source_xyxy.shape), (num, 4))
        _check("Detections", "scores", tuple(self.scores.shape), (num,))
        _check("Detections", "labels", tuple(self.labels.shape), (num,))
        if len(self.class_names) != len(self.category_ids):
            raise ValueError(
                f"Detections: expected one category id per class name, got {len(self.category_ids)} ids "
                f"for {len(self.class_names)} names"
            )

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        height, width = self.image_hw
        listed = ", ".join(
            f"{name} {score:.2f}"
            for name, score in zip(self.names[:_MAX_LISTED], self.scores[:_MAX_LISTED].tolist(), strict=True)
        )
        more = ", ..." if len(self) > _MAX_LISTED else ""
        return f"{type(self).__name__}({len(self)} in {width} x {height} pixels: {listed or 'nothing'}{more})"

    def __iter__(self) -> Iterator[Self]:
        """Yield the detections one by one, each as one of this type that holds it alone; `boxes` has plain values."""
        return (self[row : row + 1] for row in range(len(self)))

    def __getitem__(self, index: slice | int | Sequence[int] | Tensor | npt.NDArray[np.generic]) -> Self:
        """Return the detections chosen by a mask, a slice, an index or a list of indices.

        Raises:
            IndexError: an index beyond the detections, or a mask of another length.
        """
        if not isinstance(index, slice):
            index = torch.as_tensor(index).reshape(-1)  # one index gives a list of one detection
            index = index if len(index) else index.long()  # torch reads an empty list as floats
        return replace(self, source_xyxy=self.source_xyxy[index], scores=self.scores[index], labels=self.labels[index])

    @property
    def boxes(self) -> list[Detection]:
        """Each detection as plain values."""
        rows = zip(self.labels.tolist(), self.scores.tolist(), self.source_xyxy.tolist(), strict=True)
        return [
            Detection(self.class_names[label], label, self.category_ids[label], score, *corners)
            for label, score, corners in rows
        ]

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.class_names[label] for label in self.labels.tolist()]

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Return COCO result records with original category ids; nothing is rounded.

        Box coordinates are float32. Width and height are their differences in float64, so that scoring these records
        and scoring a file that they were written to agree to the last digit.
        """
        boxes_xywh = xyxy_to_xywh(self.source_xyxy.double()).tolist()
        return [
            {"image_id": image_id, "category_id": self.category_ids[label], "bbox": box, "score": score}
            for box, score, label in zip(boxes_xywh, self.scores.double().tolist(), self.labels.tolist(), strict=True)
        ]

    def to_supervision(self) -> Any:
        """Return a `supervision.Detections`; the package `supervision`, which is not a dependency, must be installed.

        Raises:
            DetectorError: the package is not installed.
        """
        return _optional("supervision").Detections(
            xyxy=self.source_xyxy.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.labels.numpy(),
            data={"class_name": np.array(self.names)},
        )

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame` with a row for each detection; the package `pandas` must be installed.

        The columns are those of `Detection`: x1, y1, x2, y2 (float32, pixels of the original image), score (float32),
        label (int64), category_id and name. `pandas` is not a dependency of this package.

        Raises:
            DetectorError: the package is not installed.
        """
        sides = dict(zip(("x1", "y1", "x2", "y2"), self.source_xyxy.numpy().T, strict=True))
        ids = np.array(self.category_ids, np.int64)[self.labels.numpy()]
        columns = {"score": self.scores.numpy(), "label": self.labels.numpy(), "category_id": ids, "name": self.names}
        return _optional("pandas").DataFrame({**sides, **columns})

    def _repr_html_(self) -> str:
        """Return the HTML table of the best detections that a notebook shows."""
        rows = [
            "".join(f"<td>{cell}</td>" for cell in (html.escape(name), f"{score:.3f}", *(f"{v:.1f}" for v in box)))
            for name, score, box in zip(
                self.names[:_MAX_SHOWN], self.scores.tolist(), self.source_xyxy.tolist(), strict=False
            )
        ]
        heads = "".join(f"<th>{head}</th>" for head in ("name", "score", "x1", "y1", "x2", "y2"))
        height, width = self.image_hw
        more = f", the best {_MAX_SHOWN}" if len(self) > _MAX_SHOWN else ""
        table = "".join(f"<tr>{row}</tr>" for row in (heads, *rows))
        return f"<p>{len(self)} detections in {width} x {height} pixels{more}</p><table>{table}</table>"


def _optional(package: str) -> ModuleType:
    """Import a package that is not a dependency.

    Raises:
        DetectorError: the package is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise DetectorError(f"{package} is not installed; pip install {package}") from error
