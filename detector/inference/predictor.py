"""From images to detections: the one path that prediction and every evaluation take."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detector.errors import ConfigError, MediaError
from detector.inference.counting import Counts
from detector.inference.runtime import Canvases, Runtime
from detector.inference.shown_results import ShownResult, drawn
from detector.inference.views import Found, View, Views, ViewsConfig
from detector.media.images import LoadedImage
from detector.media.memory_images import ChannelOrder
from detector.media.sources import ImageSource
from detector.structures.canvas import InputConfig
from detector.structures.letterbox import Image, Letterbox
from detector.structures.selection import SelectConfig, require_within, select, taken_to_host
from detector.structures.types import Detections

_NUM_READERS = 2  # threads that decode ahead; decoding releases the interpreter lock
# With several views of an image, images are gathered until they fill this many batches; the last one is not full.
_NUM_FILLED = 4


@dataclass(frozen=True)
class Prediction(ShownResult):
    """Record of one image or frame.

    Attributes:
        source: the origin of the image.
        detections: the detections, or None if the image could not be read.
        error: the reason why it could not be read, or None.
        image: the image itself, uint8 (H, W, C), or None if it could not be read.
        warnings: oddities of an image that was read, a sentence each.
        track_ids: the track of each detection, int64 (N,), from 1, or -1 for none; None if nothing was tracked.
        counts: counts of the tracks of its video up to this frame; None without lines and zones.
    """

    source: ImageSource
    detections: Detections | None
    error: str | None = None
    image: Image | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()
    track_ids: npt.NDArray[np.int64] | None = None
    counts: Counts | None = None

    def plot(self, *, channel_order: ChannelOrder = "rgb") -> Image:
        """Return the image with its detections or tracks, as `ShownResult.plot` says."""
        if self.image is None or self.detections is None:
            raise MediaError(self.error or f"{self.source.name}: no image")
        return drawn(self.image, self.detections, channel_order, self.track_ids)

    def _image_file(self) -> Path | None:
        return None if self.source.frame is not None else self.source.path


@dataclass(frozen=True)
class RawBoxes:
    """All boxes of a model for one image, before selection.

    Attributes:
        canvas_xyxy: float32 (A, 4), pixels of the canvas, not clipped.
        scores: float32 (A, classes), 0..1.
        letterbox: the placement of the image on the canvas.
    """

    canvas_xyxy: Tensor
    scores: Tensor
    letterbox: Letterbox


# A source with its image or with the reason why it cannot be read.
_Read: TypeAlias = "tuple[ImageSource, LoadedImage | None, str | None]"
_Answer = TypeVar("_Answer")


class Predictor:
    """Model ready to detect objects.

    Batches always have `batch_size` images, the last one filled up with blank canvases, so that the detections of an
    image do not depend, to the last bit, on the number of other images in its batch.

    Attributes:
        runtime: the network that computes the boxes.
        input: the canvas of the network.
        batch_size: images in a batch.
        views: the views of each image.
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
        """Choose the canvases; without `views`, each image has one plain view.

        Raises:
            ValueError: the input size does not suit the network.
            ConfigError: the network takes no canvas near a requested scale.
        """
        runtime.check_image_hw(input_config.canvas_hw)
        self.runtime, self.input, self.batch_size = runtime, input_config, batch_size
        self.class_names, self.category_ids = tuple(class_names), tuple(category_ids)
        self._views = Views(views or ViewsConfig(), input_config, runtime.check_image_hw)
        self.views = self._views.config

    @torch.inference_mode()
    def detect(self, images: Sequence[Image], config: SelectConfig) -> list[Detections]:
        """Return the detections of up to `batch_size` images, each uint8 (H, W, C) of any size, RGB if C is 3.

        Raises:
            ConfigError: the runtime selects boxes itself, by another rule.
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
                parts = [(views[index][position], images[index]) for index, position in batch]
                selections = [self._views.selection(config, len(views[index])) for index, _ in batch]
                for (index, position), kept in zip(batch, self._found_in(parts, selections), strict=True):
                    found[index][position] = kept
        return [
            self._detections(of_image, [kept[position] for position in range(len(of_image))], config, image)
            for of_image, kept, image in zip(views, found, images, strict=True)
        ]

    def _found_in(self, parts: Sequence[tuple[View, Image]], selections: Sequence[SelectConfig]) -> list[Found]:
        """Return the detections in up to a batch of views with canvases of one size, in pixels of the sources."""
        canvas_xyxy, scores = self._boxes([view.canvas(image) for view, image in parts])
        found = []
        candidates = taken_to_host(canvas_xyxy, scores, selections)
        for (view, _), config, (boxes, of_boxes) in zip(parts, selections, candidates, strict=True):
            boxes, of_boxes, labels = select(boxes, of_boxes, config, view.letterbox.resized_hw)
            found.append((view.boxes_to_source(boxes), of_boxes, labels))
        return found

    def _boxes(self, canvases: Sequence[Canvases]) -> tuple[Tensor, Tensor]:
        """Return the boxes and scores of canvases of one size, up to a batch, and of blank ones that fill the batch."""
        batch = np.zeros((self.batch_size, *canvases[0].shape), canvases[0].dtype)
        for row, canvas in zip(batch, canvases, strict=False):
            row[:] = canvas
        return self.runtime.boxes(batch)

    def _detections(
        self, views: Sequence[View], found: Sequence[Found], config: SelectConfig, image: Image
    ) -> Detections:
        image_hw = (image.shape[0], image.shape[1])
        merged = self._views.merged(views, found, config, image_hw)
        with torch.inference_mode(mode=False):  # only a copy made outside can be changed or used in training
            boxes, scores, labels = (tensor.clone() for tensor in merged)
        return Detections(boxes, scores, labels, image_hw, self.class_names, self.category_ids)

    @torch.inference_mode()
    def raw_boxes(self, images: Sequence[Image]) -> list[RawBoxes]:
        """Return all boxes of one plain view of up to `batch_size` images, for callers that do their own selection.

        Raises:
            ConfigError: several views are configured, or the runtime gives selected boxes only.
        """
        if self.runtime.selection is not None:
            raise ConfigError(
                "expected a model that gives all boxes, got a file that selects by itself; export without --nms"
            )
        self._require_fitting(images)
        if not self.views.is_plain:
            raise ConfigError(
                f"expected one plain view of each image, got views: {self.views.text}; leave the views out"
            )
        letterboxes = [self.input.letterbox(image) for image in images]
        canvases = [letterbox.apply(image) for letterbox, image in zip(letterboxes, images, strict=True)]
        canvas_xyxy, scores = self._boxes(canvases)
        return [RawBoxes(*row) for row in zip(canvas_xyxy, scores, letterboxes, strict=False)]

    def _require_fitting(self, images: Sequence[Image]) -> None:
        if not 1 <= len(images) <= self.batch_size:
            raise ValueError(f"Predictor: expected 1 to {self.batch_size} images, got {len(images)}")

    def stream(
        self, sources: Iterable[ImageSource], config: SelectConfig, *, reads_ahead: bool = True
    ) -> Iterator[Prediction]:
        """Yield one record per source, in order; that of a source that cannot be read has an error.

        Args:
            sources: the images.
            config: settings of the selection.
            reads_ahead: whether sources behind a full batch are taken and read while the network is busy; false for
                sources that arrive at their own pace.
        """
        found = self._stream(sources, partial(self.detect, config=config), reads_ahead)
        for source, image, error, detections in found:
            if image is None or detections is None:
                yield Prediction(source, None, error)
            else:
                yield Prediction(source, detections, None, image.pixels, image.warnings)

    def stream_raw(self, sources: Iterable[ImageSource]) -> Iterator[tuple[ImageSource, RawBoxes | None, str | None]]:
        """Yield all boxes of each source, in order, or None and the reason why it cannot be read."""
        for source, _, error, raw in self._stream(sources, self.raw_boxes):
            yield source, raw, error

    def _stream(
        self,
        sources: Iterable[ImageSource],
        answer: Callable[[Sequence[Image]], Sequence[_Answer]],
        reads_ahead: bool = True,
    ) -> Iterator[tuple[ImageSource, LoadedImage | None, str | None, _Answer | None]]:
        pending: list[_Read] = []
        for read in self._read_ahead(sources, reads_ahead):
            pending.append(read)
            images = [image.pixels for _, image, _ in pending if image is not None]
            if len(pending) >= self.batch_size if not reads_ahead else self._is_enough(images):
                yield from self._answered(pending, answer)
                pending = []
        yield from self._answered(pending, answer)

    def _is_enough(self, images: Sequence[Image]) -> bool:
        """Return true if images fill a batch, or with several views of each, a few batches."""
        if self.views.is_plain or len(images) >= self.batch_size:
            return len(images) >= self.batch_size
        num_views = sum(len(self._views.of((image.shape[0], image.shape[1]))) for image in images)
        return num_views >= _NUM_FILLED * self.batch_size

    @staticmethod
    def _answered(
        pending: Sequence[_Read], answer: Callable[[Sequence[Image]], Sequence[_Answer]]
    ) -> Iterator[tuple[ImageSource, LoadedImage | None, str | None, _Answer | None]]:
        images = [image.pixels for _, image, _ in pending if image is not None]
        answers = iter(answer(images) if images else [])
        for source, image, error in pending:
            yield source, image, error, None if image is None else next(answers)

    def _read_ahead(self, sources: Iterable[ImageSource], reads_ahead: bool) -> Iterator[_Read]:
        queue: deque[tuple[ImageSource, Future[LoadedImage]]] = deque()
        # Images in tiles are large and keep the network busy for a long time.
        most = 2 * self.batch_size if self.views.tile is None else _NUM_READERS
        most = most if reads_ahead else 0
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
    """Return the detections of a record.

    Raises:
        MediaError: the image could not be read.
    """
    if prediction.detections is None:
        raise MediaError(prediction.error or f"{prediction.source.name}: no image")
    return prediction.detections
