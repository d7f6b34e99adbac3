"""Video files: their frames with true times, and a word wherever a file does not hold what it promises.

OpenCV's reader ends without a word where a file is cut off, stops at a frame it cannot decode although the next ones
are sound, and believes every header. Here reading goes on behind a damaged frame, frames are counted against the
header, and times come from the file's own time stamps. No frame is ever made up.
"""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detector.errors import MediaError
from detector.media.images import quiet_opencv
from detector.media.sources import FrameOrigin, ImageSource, VideoSource
from detector.structures.letterbox import Image

# FFmpeg, inside OpenCV, writes to stderr by itself; what matters of it is reported here. A user's setting holds.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET

DEFAULT_FPS = 30.0  # of output where the source's own rate is no rate
_MIN_FPS, _MAX_FPS = 0.1, 500.0  # slow-motion cameras reach 480; time stamps of 1000 or 90000 a second are no rate
_MAX_NUM_FRAMES = 10**9  # a year at 30 a second; more comes from overflow
_MAX_FAILURES = 1000  # frames in a row that cannot be decoded before the rest of a file is given up
_UNEVEN_SHARE = 0.1  # of the time between frames, beyond which their rate is called variable
_TIME_STEP_S = 0.0011  # MKV and WebM count whole milliseconds
_OPEN_TIMEOUT_MS = _READ_TIMEOUT_MS = 10_000  # of a network source


@dataclass(frozen=True)
class VideoHeader:
    """What a video says of itself.

    Attributes:
        fps: frames per second, `DEFAULT_FPS` where it gives none that can be meant.
        num_frames: how many frames it promises, or None where it does not or cannot.
        image_hw: height and width of its frames, turned upright.
        warnings: what is odd about it, a sentence each.
    """

    fps: float
    num_frames: int | None
    image_hw: tuple[int, int]
    warnings: tuple[str, ...] = ()


@contextmanager
def opencv_threads(num_threads: int) -> Iterator[None]:
    """Let each of OpenCV's functions use so many threads inside the block; the number is one per process."""
    previous = cv2.getNumThreads()
    cv2.setNumThreads(num_threads)
    try:
        yield
    finally:
        cv2.setNumThreads(previous)


def open_capture(address: str) -> Any:
    """An OpenCV capture of an absolute path or an address with its scheme; it may turn out not to be open."""
    with quiet_opencv():
        return cv2.VideoCapture(
            address,
            cv2.CAP_FFMPEG,  # the other backends take a path with % for a numbered list of images
            [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _READ_TIMEOUT_MS],
        )


def header_of(capture: Any, name: str) -> VideoHeader:
    """The header of an open capture."""
    fps, num_frames = float(capture.get(cv2.CAP_PROP_FPS)), float(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    height, width = (int(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH))
    warnings: tuple[str, ...] = ()
    if not _MIN_FPS <= fps <= _MAX_FPS:  # false for NaN too
        warnings = (
            f"{name} claims {fps:g} frames per second: output plays at {DEFAULT_FPS:g}, records keep the times",
        )
        fps = DEFAULT_FPS
    is_count = 0 < num_frames < _MAX_NUM_FRAMES
    return VideoHeader(fps, int(num_frames) if is_count else None, (height, width), warnings)


def read_header(path: Path) -> VideoHeader:
    """What a video file says of itself.

    Raises:
        MediaError: it cannot be read as a video.
    """
    capture = _opened_file(path)
    try:
        return header_of(capture, str(path))
    finally:
        capture.release()


def video_frames(source: VideoSource, channels: int = 3, stride: int = 1) -> Generator[ImageSource, None, None]:
    """The frames of a video file, each with its number and presentation time, turned upright.

    A frame comes when the next one has been read, so that what is found wrong at the end of the file is a warning of
    the last one. Where the size of frames changes within a file, OpenCV gives all of them the first one's.

    Args:
        source: a video file, or one on a web server.
        channels: 3 for RGB or 1 for grey.
        stride: every how many frames one is given; those between are counted but not converted.

    Raises:
        MediaError: the file cannot be read as a video or has no frame that can be.
    """
    capture = _opened_address(source) if source.path is None else _opened_file(source.path)
    try:
        yield from _Frames(capture, source, channels, stride).read()
    finally:
        capture.release()


class _Frames:
    """One pass over a video."""

    def __init__(self, capture: Any, source: VideoSource, channels: int, stride: int) -> None:
        self._capture, self._source, self._channels, self._stride = capture, source, channels, stride
        self._header = header_of(capture, source.name)
        self._num_read = self._num_damaged = 0
        self._last_s = -math.inf
        self._is_uneven = self._is_behind_gap = False

    def read(self) -> Iterator[ImageSource]:
        held: ImageSource | None = None  # the last frame read: what is found wrong at the end is said of it
        warnings = list(self._header.warnings)
        while self._grab():
            time_s = self._time_s()
            warnings += self._unevenness(time_s)
            self._last_s, index = time_s, self._num_read
            self._num_read += 1
            if index % self._stride:
                continue
            is_decoded, bgr = self._capture.retrieve()
            if not is_decoded:
                self._num_read -= 1
                self._num_damaged += 1
                continue
            if held is not None:
                yield replace(held, warnings=tuple(warnings))
                warnings = []
            held = frame_of(self._source, bgr, self._channels, index, time_s, self._header)
        if held is None:
            raise MediaError(f"{self._source.name} has no frame that can be read; check that the video plays")
        yield replace(held, warnings=(*warnings, *self._losses()))

    def _grab(self) -> bool:
        """Moves to the next frame that can be decoded; false at the end."""
        promised = self._header.num_frames
        tries = _MAX_FAILURES if promised is None else min(_MAX_FAILURES, promised - self._num_read)
        for failures in range(max(tries, 1)):
            if self._capture.grab():
                self._num_damaged += failures
                self._is_behind_gap = failures > 0
                return True
        return False

    def _time_s(self) -> float:
        time_s = float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) / 1000
        if math.isfinite(time_s) and time_s > self._last_s and time_s >= 0:
            return time_s
        return max(self._last_s, 0.0) + 1 / self._header.fps if self._num_read else 0.0  # no time stamp of its own

    def _unevenness(self, time_s: float) -> list[str]:
        wanted_s = 1 / self._header.fps
        found_s = time_s - self._last_s
        is_uneven = abs(found_s - wanted_s) > max(_UNEVEN_SHARE * wanted_s, _TIME_STEP_S)
        if self._is_uneven or not is_uneven or not self._num_read or self._is_behind_gap or self._header.warnings:
            return []
        self._is_uneven = True
        return [
            f"{self._source.name} has a variable frame rate ({found_s * 1000:.0f} ms before frame {self._num_read}, "
            f"{wanted_s * 1000:.0f} ms on average): output plays at {self._header.fps:.4g} frames per second, "
            "records keep the true times"
        ]

    def _losses(self) -> list[str]:
        promised, name = self._header.num_frames, self._source.name
        if promised is None:
            damaged = f"{name}: {self._num_damaged} frames between others are damaged and were left out"
            return [damaged] if self._num_damaged else []
        # A promise may be the duration times the mean rate; then a variable rate that reaches the end has lost nothing.
        is_at_end = self._is_uneven and self._last_s + 1.5 / self._header.fps >= promised / self._header.fps
        if self._num_read >= promised or (is_at_end and not self._num_damaged):
            return []
        return [
            f"{name}: {self._num_read} of the {promised} frames that its header promises could be read, "
            "the others are missing or damaged"
        ]


def frame_of(
    source: VideoSource, bgr: Any, channels: int, index: int, time_s: float | None, header: VideoHeader
) -> ImageSource:
    """A frame as an image.

    Raises:
        MediaError: other than 1 or 3 channels are wanted.
    """
    if channels not in (1, 3):
        raise MediaError(f"{source.name}: videos have 1 or 3 channels, the model wants {channels}; give it images")
    grey = bgr if bgr.ndim == 2 else None  # infrared cameras
    if channels == 3:
        pixels: Image = cv2.cvtColor(bgr, cv2.COLOR_GRAY2RGB if grey is not None else cv2.COLOR_BGR2RGB)
    else:
        pixels = (cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY) if grey is None else grey)[..., None]
    origin = FrameOrigin(source, index, time_s, header.fps, header.num_frames)
    return ImageSource(source.name, source.path, pixels=np.ascontiguousarray(pixels), frame=origin)


def _opened_address(source: VideoSource) -> Any:
    capture = open_capture(source.url or "")
    if not capture.isOpened():
        raise MediaError(f"{source.name} cannot be read: nothing there answers with a video; check the address")
    return capture


def _opened_file(path: Path) -> Any:
    try:
        if path.is_dir():
            raise MediaError(f"{path} cannot be read: it is a folder, not a video; name a file")
        if not path.exists():
            raise MediaError(f"{path} cannot be read: there is no such file; check the path")
        if not path.is_file():  # a pipe would be waited for, a device would never end
            raise MediaError(f"{path} cannot be read: it is a pipe or a device, not a file; use - for frames on stdin")
        with path.open("rb") as file:
            head = file.read(512)
    except PermissionError as error:
        raise MediaError(f"{path} cannot be read: no permission; check the rights of the file") from error
    except (OSError, ValueError) as error:
        raise MediaError(f"{str(path)!r} cannot be read: {error}; check the path and the disk") from error
    # An absolute path cannot be taken for one of FFmpeg's protocols, as `concat:a|b` or `http:` would be.
    capture = open_capture(str(path.resolve())) if head else None
    if capture is None or not capture.isOpened():
        raise MediaError(f"{path} cannot be read as a video: it is {_fault(path, head)}; replace or remove it")
    return capture


def _fault(path: Path, head: bytes) -> str:
    if not head:
        return "empty (0 bytes)"
    if head[4:8] == b"ftyp" and not _has_index(path):
        return "an MP4 without its index (moov), as a recording that was cut off"
    if b"\x00" not in head and all(byte >= 32 or byte in b"\t\n\r\f" for byte in head):
        return "a text"
    return "damaged or in no video format known here"


def _has_index(path: Path) -> bool:
    """Whether an MP4 has a box `moov` on its upper level (ISO/IEC 14496-12, 4.2)."""
    with path.open("rb") as file:
        while len(start := file.read(8)) == 8:
            size, kind = int.from_bytes(start[:4], "big"), start[4:]
            if kind == b"moov":
                return True
            size = int.from_bytes(file.read(8), "big") - 8 if size == 1 else size
            if size < 8:
                return False
            file.seek(size - 8, 1)
    return False
