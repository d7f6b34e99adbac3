"""Results that show themselves: drawn on their image, in files, windows and notebooks."""

from __future__ import annotations

import abc
import base64
import importlib
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from detector.errors import DetectorError, MediaError
from detector.media.images import as_png, within_side, write_image
from detector.media.memory_images import ChannelOrder, require_channel_order
from detector.media.sources import ImageSource
from detector.structures.letterbox import Image
from detector.structures.types import Detections

_MAX_SIDE_PX = 1280  # of a picture in a notebook, which is stored in the notebook's file


class ShownResult(abc.ABC):
    """Result of one image that can be drawn, saved and shown."""

    @abc.abstractmethod
    def plot(self, *, channel_order: ChannelOrder = "rgb") -> Image:
        """Return the image with its detections, uint8 (H, W, 3).

        Args:
            channel_order: `rgb`, as PIL and matplotlib take it, or `bgr`, as OpenCV takes it.

        Raises:
            MediaError: there is no image to draw on.
        """

    def save(self, path: str | Path) -> Path:
        """Write the image with its detections; the suffix of the path names the format, an existing file is replaced.

        Raises:
            MediaError: the suffix is unknown, the file cannot be written, or it is the image itself.
        """
        path, own = Path(path), self._image_file()
        if own is not None and path.exists() and own.exists() and path.samefile(own):
            raise MediaError(f"{path} is the image itself, which is not overwritten; choose another name")
        write_image(path, self.plot())
        return path

    def show(self) -> None:
        """Show the image with its detections, in the notebook or in a window of matplotlib.

        Raises:
            DetectorError: there is neither a notebook nor a display.
            MediaError: there is no image to draw on.
        """
        picture = self.plot()
        if is_notebook():
            importlib.import_module("IPython.display").display(self)
            return
        pyplot = importlib.import_module("matplotlib.pyplot")  # loads a window toolkit
        if pyplot.get_backend().lower() in ("agg", "pdf", "ps", "svg", "cairo", "pgf", "template"):
            raise DetectorError("show: expected a notebook or a display, got neither; use save(PATH) or plot()")
        pyplot.figure()
        pyplot.imshow(picture)
        pyplot.axis("off")
        pyplot.show()

    @abc.abstractmethod
    def _image_file(self) -> Path | None:
        """Return the file of the image, or None if it is in memory."""

    def _repr_png_(self) -> bytes | None:
        """Return the image with its detections for a notebook; None if there is no image to draw on."""
        try:
            return as_png(within_side(self.plot(), _MAX_SIDE_PX))
        except MediaError:
            return None


def is_notebook() -> bool:
    """Return true inside a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})


@dataclass(frozen=True, repr=False)
class ImageDetections(Detections, ShownResult):
    """Detections of one image that know where the image is, so that they can be drawn on it.

    results = Detector("best.safetensors").predict("street.jpg")
    for box in results.boxes:
        print(box.name, box.score, box.x1, box.y1, box.x2, box.y2)
    results.save("out.jpg")

    Attributes:
        source: the image. A file or address is read again when it is drawn, so that results stay small; an array given
            by the caller is kept as it is.
        channels: number of channels that the model takes.
    """

    source: ImageSource = field(default_factory=lambda: ImageSource("image"))
    channels: int = 3

    @classmethod
    def of(cls, detections: Detections, source: ImageSource, channels: int) -> ImageDetections:
        """Return detections together with their image."""
        own = (detections.source_xyxy, detections.scores, detections.labels, detections.image_hw)
        return cls(*own, detections.class_names, detections.category_ids, source, channels)

    @property
    def image(self) -> Image:
        """The image, uint8 (H, W, C), RGB if C is 3.

        Raises:
            MediaError: it cannot be read any more, or it is a frame of a video, which is not kept.
        """
        if self.source.frame is not None:
            raise MediaError(
                f"{self.source.name}: frames of a video are not kept; use Detector.stream, whose records have plot()"
            )
        pixels = self.source.load(self.channels).pixels
        if pixels.shape[:2] != self.image_hw:
            raise MediaError(f"{self.source.name} has changed since the prediction; predict it again")
        return pixels

    def plot(self, *, channel_order: ChannelOrder = "rgb") -> Image:
        """Return the image with its detections, as `ShownResult.plot` says."""
        return drawn(self.image, self, channel_order)

    def _image_file(self) -> Path | None:
        return self.source.path

    def _repr_html_(self) -> str:
        """Return the picture and the table of the best detections that a notebook shows."""
        png = self._repr_png_()
        table = super()._repr_html_()
        if png is None:
            return table
        return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="detections"/>{table}'


def drawn(
    image: Image,
    detections: Detections,
    channel_order: ChannelOrder = "rgb",
    track_ids: npt.NDArray[np.int64] | None = None,
) -> Image:
    """Return a copy of an image, RGB, with its detections or tracks, uint8 (H, W, 3), in an order of colours."""
    from detector.media.drawing import draw_detections  # loads fonts, which prediction does not need

    require_channel_order(channel_order)
    picture = draw_detections(image, detections, track_ids)
    return np.ascontiguousarray(picture[..., ::-1]) if channel_order == "bgr" else picture
