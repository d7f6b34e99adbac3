"""From images to detections: the one path that prediction and every evaluation take."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detector.errors import ConfigError, MediaError
from detector.inference.counting import Counts
from detector.inference.runtime import Runtime
from detector.inference.views import Found, View, Views, ViewsConfig
from detector.media.images import LoadedImage, as_png
from detector.media.sources import ImageSource
from detector.structures.canvas import InputConfig
from detector.structures.letterbox import Image, Letterbox
from detector.structures.selection import SelectConfig, require_within, select
from detector.structures.types import Detections

_NUM_READERS = 2  # threads that decode ahead; decoding releases the interpreter lock
# With several looks at an image, images are gathered until they fill this many batches; the last one is not full.
_NUM_FILLED = 4


@dataclass(frozen=True)
class Prediction:
    """One record per input.

    Attributes:
        source: where the image came from.
        detections: what was found, or None where the image could not be read.
        error: why it could not be read, or None.
        image: the image itself, uint8 (H, W, C), or None where it could not be read.
        warnings: what is odd about the image although it was read, a sentence each.
        track_ids: the track of each detection, int64 (N,), from 1; None where nothing was tracked.
        counts: the tracks of its video counted so far over lines and in zones; None without any.
    """

    source: ImageSource
    detections: Detections | None
    error: str | None = None
    image: Image | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()
    track_ids: npt.NDArray[np.int64] | None = None
    counts: Counts | None = None

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: the image with its detections."""
        from detector.media.drawing import draw_detections  # loads fonts, which prediction does not need

        if self.image is None or self.detections is None:
            return None
        return as_png(draw_detections(self.image, self.detections, self.track_ids))


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
_Answer = TypeVar("_Answer")


class Predictor:
    """A model ready to detect objects.

    Batches always have `batch_size` images, the last one filled up with blank canvases: the detections of an image do
    not depend on how many others came with it, to the last bit.

    Attributes:
        runtime: what computes the boxes.
        input: what the network sees.
        batch_size: images in a batch.
        views: how each image is looked at.
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
        views: ViewsConfig | None = None,
    ) -> None:
        """One plain look at each image without `views`.

        Raises:
            ValueError: the input size does not suit the network.
            ConfigError: the network takes no canvas of a scale asked for.
        """
        runtime.check_image_hw(input_config.canvas_hw)
        self.runtime, self.input, self.batch_size = runtime, input_config, batch_size
        self.class_names, self.category_ids = tuple(class_names), tuple(category_ids)
        self._views = Views(views or ViewsConfig(), input_config, runtime.check_image_hw)
        self.views = self._views.config

    @torch.inference_mode()
    def detect(self, images: Sequence[Image], config: SelectConfig) -> list[Detections]:
        """The detections of up to `batch_size` images, each uint8 (H, W, C) of any size, RGB when C is 3.

        Raises:
            ConfigError: the runtime has selected boxes already by another rule.
        """
        if self.runtime.selection is not None:
            require_within(self.runtime.selection, config)
        self._require_fitting(images)
        views = [self._views.of((image.shape[0], image.shape[1])) for image in images]
        places: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for index, of_image in enumerate(views):
            for position, view in enumerate(of_image):
                places[view.letterbox.canvas_hw].append((index, position))
        found: list[dict[int, Found]] = [{} for _ in images]
        for of_canvas in places.values():
            for start in range(0, len(of_canvas), self.batch_size):
                batch = of_canvas[start : start + self.batch_size]
                looks = [(views[index][position], images[index]) for index, position in batch]
                selections = [self._views.selection(config, len(views[index])) for index, _ in batch]
                for (index, position), kept in zip(batch, self._look(looks, selections), strict=True):
                    found[index][position] = kept
        return [
            self._detections(of_image, [kept[position] for position in range(len(of_image))], config, image)
            for of_image, kept, image in zip(views, found, images, strict=True)
        ]

    def _look(self, looks: Sequence[tuple[View, Image]], selections: Sequence[SelectConfig]) -> list[Found]:
        """What is found in each of up to a batch of looks with canvases of one size, in pixels of the sources."""
        canvas_xyxy, scores = self._boxes([view.canvas(image) for view, image in looks])
        found = []
        for (view, _), config, boxes, of_boxes in zip(looks, selections, canvas_xyxy, scores, strict=False):
            kept = select(boxes, of_boxes, config, view.letterbox.resized_hw)
            boxes, of_boxes, labels = (tensor.cpu() for tensor in kept)
            found.append((view.boxes_to_source(boxes), of_boxes, labels))
        return found

    def _boxes(self, canvases: Sequence[npt.NDArray[Any]]) -> tuple[Tensor, Tensor]:
        """All boxes and scores of up to a batch of canvases of one size, and of the blank ones that fill it up."""
        batch = np.zeros((self.batch_size, *canvases[0].shape), canvases[0].dtype)
        for row, canvas in zip(batch, canvases, strict=False):
            row[:] = canvas
        return self.runtime.boxes(batch)

    def _detections(
        self, views: Sequence[View], found: Sequence[Found], config: SelectConfig, image: Image
    ) -> Detections:
        image_hw = (image.shape[0], image.shape[1])
        merged = self._views.merged(views, found, config, image_hw)
        with torch.inference_mode(mode=False):  # only a copy made outside can be changed or learnt from
            boxes, scores, labels = (tensor.clone() for tensor in merged)
        return Detections(boxes, scores, labels, image_hw, self.class_names, self.category_ids)

    @torch.inference_mode()
    def raw_boxes(self, images: Sequence[Image]) -> list[RawBoxes]:
        """All boxes of one plain look at up to `batch_size` images, for who selects by a rule of their own.

        Raises:
            ConfigError: several looks are configured, or the runtime gives selected boxes only.
        """
        if self.runtime.selection is not None:
            raise ConfigError("all boxes are wanted here, found a file that selects by itself; export without --nms")
        self._require_fitting(images)
        if not self.views.is_plain:
            raise ConfigError(f"one plain look at each image is wanted here, found views: {self.views.text}")
        letterboxes = [self.input.letterbox(image) for image in images]
        canvases = [letterbox.apply(image) for letterbox, image in zip(letterboxes, images, strict=True)]
        canvas_xyxy, scores = self._boxes(canvases)
        return [RawBoxes(*row) for row in zip(canvas_xyxy, scores, letterboxes, strict=False)]

    def _require_fitting(self, images: Sequence[Image]) -> None:
        if not 1 <= len(images) <= self.batch_size:
            raise ValueError(f"Predictor wants 1 to {self.batch_size} images, found {len(images)}")

    def stream(self, sources: Iterable[ImageSource], config: SelectConfig) -> Iterator[Prediction]:
        """One prediction per source, in order; a source that cannot be read gives a record that says why."""
        for source, image, error, detections in self._stream(sources, partial(self.detect, config=config)):
            if image is None or detections is None:
                yield Prediction(source, None, error)
            else:
                yield Prediction(source, detections, None, image.pixels, image.warnings)

    def stream_raw(self, sources: Iterable[ImageSource]) -> Iterator[tuple[ImageSource, RawBoxes | None, str | None]]:
        """All boxes of each source, in order, or None and why it cannot be read."""
        for source, _, error, raw in self._stream(sources, self.raw_boxes):
            yield source, raw, error

    def _stream(
        self, sources: Iterable[ImageSource], answer: Callable[[Sequence[Image]], Sequence[_Answer]]
    ) -> Iterator[tuple[ImageSource, LoadedImage | None, str | None, _Answer | None]]:
        pending: list[_Read] = []
        for read in self._read_ahead(sources):
            pending.append(read)
            if self._is_enough([image.pixels for _, image, _ in pending if image is not None]):
                yield from self._answered(pending, answer)
                pending = []
        yield from self._answered(pending, answer)

    def _is_enough(self, images: Sequence[Image]) -> bool:
        """Whether images fill a batch; of many looks at each, a few."""
        if self.views.is_plain or len(images) >= self.batch_size:
            return len(images) >= self.batch_size
        num_looks = sum(len(self._views.of((image.shape[0], image.shape[1]))) for image in images)
        return num_looks >= _NUM_FILLED * self.batch_size

    @staticmethod
    def _answered(
        pending: Sequence[_Read], answer: Callable[[Sequence[Image]], Sequence[_Answer]]
    ) -> Iterator[tuple[ImageSource, LoadedImage | None, str | None, _Answer | None]]:
        images = [image.pixels for _, image, _ in pending if image is not None]
        answers = iter(answer(images) if images else [])
        for source, image, error in pending:
            yield source, image, error, None if image is None else next(answers)

    def _read_ahead(self, sources: Iterable[ImageSource]) -> Iterator[_Read]:
        queue: deque[tuple[ImageSource, Future[LoadedImage]]] = deque()
        # Images in tiles are large, and keep the network busy for long.
        most = 2 * self.batch_size if self.views.tile is None else _NUM_READERS
        with ThreadPoolExecutor(_NUM_READERS) as pool:
            for source in sources:
                queue.append((source, pool.submit(source.load, self.input.channels)))
                if len(queue) > most:
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
