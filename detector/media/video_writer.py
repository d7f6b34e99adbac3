"""Video writer that checks the size and success of every frame and counts the frames of the file at the end.

OpenCV's own writer silently makes a file of 258 bytes from frames of the wrong size, and half a file on a full disk.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from detector.errors import ConfigError, MediaError
from detector.media.images import quiet_opencv
from detector.media.opencv_reader import open_capture
from detector.structures.letterbox import Image, Letterbox

# Codecs that OpenCV's wheels may have, each with the suffix of its container.
CODECS = {
    "mp4v": ".mp4",  # MPEG-4 part 2, always available
    "avc1": ".mp4",  # H.264, only if the machine has its own encoder
    "MJPG": ".avi",
    "VP90": ".webm",  # VP9, plays in browsers but is slow to write
}
DEFAULT_CODEC = "mp4v"
_LEAST_SIDE = 16  # a macroblock; encoders of OpenCV 5.0 write beyond their memory for frames of 4 x 4


def require_codec(codec: str) -> None:
    """Raise a `ConfigError` for a codec that is not in `CODECS`."""
    if codec not in CODECS:
        raise ConfigError(f"expected a codec of {', '.join(CODECS)}, got {codec!r}")


class VideoWriter:
    """Writer of a video file; frames of another size than the first one are fitted into it, with a warning.

    Attributes:
        path: the file; its suffix follows from the codec used.
        warnings: deviations from the request, a sentence each.
        notes: changes that are necessary, a sentence each.
        num_frames: number of frames written.
    """

    def __init__(self, path: Path, fps: float, image_hw: tuple[int, int], codec: str = DEFAULT_CODEC) -> None:
        """Open the file.

        Args:
            path: the file; its suffix becomes that of the codec's container.
            fps: frames per second, 0.1 .. 500.
            image_hw: height and width of the frames. Codecs need even sides of some length; the last line is repeated.
            codec: a key of `CODECS`; without an encoder for it, `DEFAULT_CODEC` is used, with a warning.

        Raises:
            ConfigError: the codec is unknown.
            MediaError: the file cannot be written.
        """
        require_codec(codec)
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self.num_frames = 0
        self._image_hw = image_hw
        self._size_wh = _codable(image_hw[1]), _codable(image_hw[0])
        self._is_refitted = self._is_closed = False
        for name in dict.fromkeys((codec, DEFAULT_CODEC)):
            self.path = path.with_suffix(CODECS[name])
            self._writer = _opened(self.path, name, fps, self._size_wh)
            if self._writer.isOpened():
                break
            self._writer.release()
        if not self._writer.isOpened():
            raise MediaError(
                f"{self.path} cannot be written as a video of {image_hw[1]} x {image_hw[0]} at {fps:g} frames per "
                "second; check that its folder exists, can be written and has room"
            )
        if name != codec:
            self.warnings.append(f"{self.path}: no encoder for {codec} is available, {name} is used instead")
        if self._size_wh != image_hw[::-1]:
            width, height = self._size_wh
            self.notes.append(
                f"{self.path}: codecs need even sides of at least {_LEAST_SIDE}, so frames of {image_hw[1]} x "
                f"{image_hw[0]} are written as {width} x {height}, with the last line or column repeated"
            )

    def write(self, image_rgb: Image) -> None:
        """Write a frame, uint8 (H, W, 3), RGB.

        Raises:
            MediaError: the frame could not be written; the disk may be full.
        """
        if image_rgb.shape[:2] != self._image_hw:
            image_rgb = self._fitted(image_rgb)
        bgr = cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR)
        bottom, right = self._size_wh[1] - bgr.shape[0], self._size_wh[0] - bgr.shape[1]
        if bottom or right:
            bgr = cv2.copyMakeBorder(bgr, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
        with quiet_opencv():
            is_written = self._writer.write(bgr)
        if is_written is False:  # OpenCV 4 returns None, so there the count at the end tells
            raise MediaError(f"{self.path}: frame {self.num_frames} cannot be written; check that the disk is not full")
        self.num_frames += 1

    def _fitted(self, image: Image) -> Image:
        if not self._is_refitted:
            own, first = f"{image.shape[1]} x {image.shape[0]}", f"{self._image_hw[1]} x {self._image_hw[0]}"
            self.warnings.append(f"{self.path}: a frame of {own} pixels is fitted into the size of the first, {first}")
        self._is_refitted = True
        return np.asarray(Letterbox.fit((image.shape[0], image.shape[1]), self._image_hw).apply(image), np.uint8)

    def close(self) -> None:
        """Close the file and count its frames; further calls do nothing.

        Raises:
            MediaError: the file does not hold all frames written.
        """
        if self._is_closed:
            return
        self._is_closed = True
        with quiet_opencv():
            self._writer.release()
        # WebM has no frame count, only a duration in whole milliseconds.
        tolerance = 1 if self.path.suffix == ".webm" else 0
        if self.num_frames and abs((stored := _num_frames(self.path)) - self.num_frames) > tolerance:
            raise MediaError(
                f"{self.path}: {self.num_frames} frames were written, but the file holds {stored}; check that the "
                "disk is not full"
            )


def _codable(side_px: int) -> int:
    return max(side_px + side_px % 2, _LEAST_SIDE)


@contextmanager
def _filtered_stderr() -> Iterator[None]:
    """Keep the lines off stderr that OpenCV's writer prints there for its choice of a tag, whatever the log level."""
    try:
        kept = os.dup(2)
    except OSError:  # stderr is closed
        yield
        return
    with tempfile.TemporaryFile() as file:
        try:
            os.dup2(file.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            file.seek(0)
            os.write(2, b"".join(line for line in file if not line.startswith(b"OpenCV: FFMPEG: ")))
            os.close(kept)


def _opened(path: Path, codec: str, fps: float, size_wh: tuple[int, int]) -> cv2.VideoWriter:
    with quiet_opencv(), _filtered_stderr():
        return cv2.VideoWriter(str(path.resolve()), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), fps, size_wh)


def _num_frames(path: Path) -> int:
    """Return the number of frames in the index of a file, which is written last."""
    capture = open_capture(str(path.resolve()))
    try:
        return int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    finally:
        capture.release()
