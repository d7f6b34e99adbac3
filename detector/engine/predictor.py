"""From images to detections: the one path that prediction and every evaluation take."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from detector.engine.runtime import Runtime
from detector.errors import MediaError
from detector.geometry import ARITHMETICS, FITS, Image, Letterbox, clip_xyxy
from detector.media.images import LoadedImage
from detector.media.sources import ImageSource
from detector.postprocess import SelectConfig, select
from detector.structures import Detections

_NUM_READERS = 2  # threads that decode ahead; decoding releases the interpreter lock


@dataclass(frozen=True)
class InputConfig:
    """What the network sees.

    Attributes:
        size: side of the square canvas in pixels, or its (height, width); a multiple of the model's largest stride.
        channels: 3 for RGB, 1 for grey, any other number for images of that many planes.
        fit: `letterbox` keeps the aspect ratio and pads, `stretch` does not.
        arithmetic: how evaluation and prediction resize: `opencv`, or `darknet` for the numbers that Darknet computes.
            Training images are resized by OpenCV either way, as Darknet's own are.
        multi_scale: how far the canvas of a training batch may be smaller or larger, as a share of the configured size,
            0 <= multi_scale < 1; its sides are multiples of the model's largest stride. Evaluation, prediction and the
            closing part of training have the configured size.
    """

    size: int | tuple[int, int] = 640
    channels: int = 3
    fit: str = "letterbox"
    arithmetic: str = "opencv"
    multi_scale: float = 0.0

    def __post_init__(self) -> None:
        if min(self.canvas_hw) < 1 or self.channels < 1:
            raise ValueError(f"input wants a size and channels of at least 1, found {self.size} and {self.channels}")
        if self.fit not in FITS:
            raise ValueError(f"input.fit wants {' or '.join(FITS)}, found {self.fit!r}")
        if self.arithmetic not in ARITHMETICS:
            raise ValueError(f"input.arithmetic wants {' or '.join(ARITHMETICS)}, found {self.arithmetic!r}")
        if not 0 <= self.multi_scale < 1:
            raise ValueError(f"input.multi_scale wants 0 <= multi_scale < 1, found {self.multi_scale}")

    @property
    def canvas_hw(self) -> tuple[int, int]:
        """Height and width of the canvas."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


@dataclass(frozen=True)
class Prediction:
    """One record per input.

    Attributes:
        source: where the image came from.
        detections: what was found, or None where the image could not be read.
        error: why it could not be read, or None.
        image: the image itself, uint8 (H, W, C), or None where it could not be read.
        warnings: what is odd about the image although it was read, a sentence each.
    """

    source: ImageSource
    detections: Detections | None
    error: str | None = None
    image: Image | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class RawBoxes:
    """All boxes that a model has for one image, before any is selected.

    Attributes:
        canvas_xyxy: float32 (A, 4), pixels of the canvas, not clipped.
        scores: float32 (A, classes), 0..1.
        letterbox: where the image lies on the canvas.
    """

    canvas_xyxy: Tensor
    scores: Tensor
    letterbox: Letterbox


# A source with its image, or with the reason why it cannot be read.
_Read: TypeAlias = "tuple[ImageSource, LoadedImage | None, str | None]"
_Run: TypeAlias = "tuple[ImageSource, LoadedImage | None, str | None, RawBoxes | None]"  # and with its boxes


class Predictor:
    """A model ready to detect objects.

    Batches always have `batch_size` images, the last one filled up with blank canvases: the detections of an image do
    not depend on how many others came with it, to the last bit.

    Attributes:
        runtime: what computes the boxes.
        input: what the network sees.
        class_names: name of each class.
        category_ids: category id of each class in the annotation file.
    """

    def __init__(
        self,
        runtime: Runtime,
        input_config: InputConfig,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        *,
        batch_size: int = 1,
    ) -> None:
        """Raises a `ValueError` where the input size does not suit the network."""
        runtime.check_image_hw(input_config.canvas_hw)
        self.runtime, self.input, self._batch_size = runtime, input_config, batch_size
        self.class_names, self.category_ids = tuple(class_names), tuple(category_ids)

    def detect(self, images: Sequence[Image], config: SelectConfig) -> list[Detections]:
        """The detections of up to `batch_size` images, each uint8 (H, W, C) of any size, RGB when C is 3."""
        return [self._selected(raw, config) for raw in self.raw_boxes(images)]

    @torch.inference_mode()
    def raw_boxes(self, images: Sequence[Image]) -> list[RawBoxes]:
        """All boxes of up to `batch_size` images, as `detect` takes them, for who selects by a rule of their own."""
        if not 1 <= len(images) <= self._batch_size:
            raise ValueError(f"Predictor wants 1 to {self._batch_size} images, found {len(images)}")
        canvas_hw = self.input.canvas_hw
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        arithmetic = self.input.arithmetic
        letterboxes = [Letterbox.fit(hw, canvas_hw, self.input.fit, arithmetic=arithmetic) for hw in sizes]
        batch = np.zeros((self._batch_size, *canvas_hw, self.input.channels), ARITHMETICS[arithmetic].dtype)
        for row, letterbox, image in zip(batch, letterboxes, images, strict=False):
            row[:] = letterbox.apply(image)
        canvas_xyxy, scores = self.runtime.boxes(batch)
        return [RawBoxes(*row) for row in zip(canvas_xyxy, scores, letterboxes, strict=False)]

    @torch.inference_mode()
    def _selected(self, raw: RawBoxes, config: SelectConfig) -> Detections:
        letterbox = raw.letterbox
        boxes, scores, labels = (t.cpu() for t in select(raw.canvas_xyxy, raw.scores, config, letterbox.resized_hw))
        source_xyxy = clip_xyxy(letterbox.boxes_to_source(boxes), letterbox.source_hw)
        with torch.inference_mode(mode=False):  # only a copy made outside can be changed or learnt from
            found = source_xyxy.clone(), scores.clone(), labels.clone()
        return Detections(*found, letterbox.source_hw, self.class_names, self.category_ids)

    def stream(self, sources: Iterable[ImageSource], config: SelectConfig) -> Iterator[Prediction]:
        """One prediction per source, in order; a source that cannot be read gives a record that says why."""
        for source, image, error, raw in self._stream(sources):
            if image is None or raw is None:
                yield Prediction(source, None, error)
            else:
                yield Prediction(source, self._selected(raw, config), None, image.pixels, image.warnings)

    def stream_raw(self, sources: Iterable[ImageSource]) -> Iterator[tuple[ImageSource, RawBoxes | None, str | None]]:
        """All boxes of each source, in order, or None and why it cannot be read."""
        for source, _, error, raw in self._stream(sources):
            yield source, raw, error

    def _stream(self, sources: Iterable[ImageSource]) -> Iterator[_Run]:
        pending: list[_Read] = []
        for source, image, error in self._read_ahead(sources):
            pending.append((source, image, error))
            if sum(image is not None for _, image, _ in pending) == self._batch_size:
                yield from self._run(pending)
                pending = []
        yield from self._run(pending)

    def _run(self, pending: Sequence[_Read]) -> Iterator[_Run]:
        images = [image.pixels for _, image, _ in pending if image is not None]
        found = iter(self.raw_boxes(images) if images else [])
        for source, image, error in pending:
            yield source, image, error, None if image is None else next(found)

    def _read_ahead(self, sources: Iterable[ImageSource]) -> Iterator[_Read]:
        queue: deque[tuple[ImageSource, Future[LoadedImage]]] = deque()
        with ThreadPoolExecutor(_NUM_READERS) as pool:
            for source in sources:
                queue.append((source, pool.submit(source.load, self.input.channels)))
                if len(queue) > 2 * self._batch_size:
                    yield self._read(*queue.popleft())
            while queue:
                yield self._read(*queue.popleft())

    @staticmethod
    def _read(source: ImageSource, image: Future[LoadedImage]) -> _Read:
        try:
            return source, image.result(), None
        except MediaError as error:
            return source, None, str(error)


def only_detections(prediction: Prediction) -> Detections:
    """The detections of a prediction.

    Raises:
        MediaError: its image could not be read.
    """
    if prediction.detections is None:
        raise MediaError(prediction.error or f"{prediction.source.name}: no image")
    return prediction.detections
