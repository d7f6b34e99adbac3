"""Video files: frames with their true times, and warnings for files that do not hold what their headers promise.

OpenCV's reader ends silently where a file is truncated, stops at a frame that it cannot decode even if the next ones
are intact, and trusts every header. Here, reading continues after a damaged frame, frames are counted and compared with
the header, and times come from the time stamps of the file. No frame is ever invented.
"""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from detector.errors import MediaError
from detector.media.images import quiet_opencv
from detector.media.sources import FrameOrigin, ImageSource, VideoSource

if TYPE_CHECKING:
    from cv2.typing import MatLike

# FFmpeg inside OpenCV writes to stderr; its problems are reported here instead. A setting of the user has priority.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET

DEFAULT_FPS = 30.0  # of the output if the source has no valid rate
_MIN_FPS, _MAX_FPS = 0.1, 500.0  # slow-motion cameras reach 480; 1000 or 90000 are units of time stamps
_MAX_NUM_FRAMES = 10**9  # a year at 30 per second; larger counts come from overflow
_MAX_FAILURES = 1000  # undecodable frames in a row after which the rest of a file is given up
_UNEVEN_SHARE = 0.1  # deviation of the time between frames from which on the rate counts as variable
_TIME_STEP_S = 0.0011  # MKV and WebM store whole milliseconds
_OPEN_TIMEOUT_MS = _READ_TIMEOUT_MS = 10_000  # for network sources


@dataclass(frozen=True)
class VideoHeader:
    """Header of a video.

    Attributes:
        fps: frames per second; `DEFAULT_FPS` if the video has no plausible rate.
        num_frames: number of frames according to the header, or None if it has no plausible number.
        image_hw: height and width of the frames, turned upright.
        warnings: oddities of the header, a sentence each.
    """

    fps: float
    num_frames: int | None
    image_hw: tuple[int, int]
    warnings: tuple[str, ...] = ()


@contextmanager
def opencv_threads(num_threads: int) -> Iterator[None]:
    """Set OpenCV's number of threads inside the block; it applies to the whole process."""
    previous = cv2.getNumThreads()
    cv2.setNumThreads(num_threads)
    try:
        yield
    finally:
        cv2.setNumThreads(previous)


def open_capture(address: str) -> cv2.VideoCapture:
    """Open an absolute path or an address with its scheme with OpenCV; check `isOpened` of the result."""
    with quiet_opencv():
        return cv2.VideoCapture(
            address,
            cv2.CAP_FFMPEG,  # other back ends read a path with % as a numbered list of images
            [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _READ_TIMEOUT_MS],
        )


def header_of(capture: cv2.VideoCapture, name: str) -> VideoHeader:
    """Return the header of an open capture."""
    fps, num_frames = float(capture.get(cv2.CAP_PROP_FPS)), float(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    height, width = (int(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH))
    warnings: tuple[str, ...] = ()
    if not _MIN_FPS <= fps <= _MAX_FPS:  # also true for NaN
        warnings = (
            f"{name} claims {fps:g} frames per second: output plays at {DEFAULT_FPS:g}, records keep the times",
        )
        fps = DEFAULT_FPS
    is_count = 0 < num_frames < _MAX_NUM_FRAMES
    return VideoHeader(fps, int(num_frames) if is_count else None, (height, width), warnings)


def read_header(path: Path) -> VideoHeader:
    """Read the header of a video file.

    Raises:
        MediaError: the file cannot be read as a video.
    """
    capture = _opened_file(path)
    try:
        return header_of(capture, str(path))
    finally:
        capture.release()


def video_frames(source: VideoSource, channels: int = 3, stride: int = 1) -> Generator[ImageSource, None, None]:
    """Yield the frames of a video file, each with its number and presentation time, turned upright.

    A frame is yielded after the next one has been read, so that problems at the end of the file are warnings of the
    last frame. If the size of frames changes within a file, OpenCV resizes all of them to the first one.

    Args:
        source: a video file, or one on a web server.
        channels: 3 for RGB or 1 for grey.
        stride: yield every `stride`-th frame; the others are counted but not converted.

    Raises:
        MediaError: the file cannot be read as a video, or has no readable frame.
    """
    capture = _opened_address(source) if source.path is None else _opened_file(source.path)
    try:
        yield from _Frames(capture, source, channels, stride).read()
    finally:
        capture.release()


class _Frames:
    """Reader of one pass over a video."""

    def __init__(self, capture: cv2.VideoCapture, source: VideoSource, channels: int, stride: int) -> None:
        self._capture, self._source, self._channels, self._stride = capture, source, channels, stride
        self._header = header_of(capture, source.name)
        self._num_read = self._num_damaged = 0
        self._last_s = -math.inf
        self._is_uneven = self._is_behind_gap = False

    def read(self) -> Iterator[ImageSource]:
        held: ImageSource | None = None  # the last frame read, which gets the warnings at the end
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
        """Move to the next frame that can be decoded; return False at the end."""
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
        return max(self._last_s, 0.0) + 1 / self._header.fps if self._num_read else 0.0  # it has no valid time stamp

    def _unevenness(self, time_s: float) -> list[str]:
        mean_s = 1 / self._header.fps
        step_s = time_s - self._last_s
        is_uneven = abs(step_s - mean_s) > max(_UNEVEN_SHARE * mean_s, _TIME_STEP_S)
        if self._is_uneven or not is_uneven or not self._num_read or self._is_behind_gap or self._header.warnings:
            return []
        self._is_uneven = True
        return [
            f"{self._source.name} has a variable frame rate ({step_s * 1000:.0f} ms before frame {self._num_read}, "
            f"{mean_s * 1000:.0f} ms on average): output plays at {self._header.fps:.4g} frames per second, "
            "records keep the true times"
        ]

    def _losses(self) -> list[str]:
        promised, name = self._header.num_frames, self._source.name
        if promised is None:
            damaged = f"{name}: {self._num_damaged} damaged frames between others were skipped"
            return [damaged] if self._num_damaged else []
        # The header may promise duration times mean rate; a variable rate that reaches the end then has lost no frame.
        is_at_end = self._is_uneven and self._last_s + 1.5 / self._header.fps >= promised / self._header.fps
        if self._num_read >= promised or (is_at_end and not self._num_damaged):
            return []
        return [
            f"{name}: {self._num_read} of the {promised} frames that its header promises could be read, "
            "the others are missing or damaged"
        ]


def frame_of(
    source: VideoSource, bgr: MatLike, channels: int, index: int, time_s: float | None, header: VideoHeader
) -> ImageSource:
    """Convert a frame to an image.

    Raises:
        MediaError: `channels` is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise MediaError(
            f"{source.name}: expected a model of 1 or 3 channels for a video, got {channels}; use images instead"
        )
    is_grey = bgr.ndim == 2  # infrared cameras
    if channels == 3:
        pixels = cv2.cvtColor(bgr, cv2.COLOR_GRAY2RGB if is_grey else cv2.COLOR_BGR2RGB)
    else:
        pixels = (bgr if is_grey else cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY))[..., None]
    origin = FrameOrigin(source, index, time_s, header.fps, header.num_frames)
    return ImageSource(source.name, source.path, pixels=np.ascontiguousarray(pixels, np.uint8), frame=origin)


def _opened_address(source: VideoSource) -> cv2.VideoCapture:
    capture = open_capture(source.url or "")
    if not capture.isOpened():
        raise MediaError(f"{source.name} cannot be read: the address does not answer with a video; check it")
    return capture


def _opened_file(path: Path) -> cv2.VideoCapture:
    try:
        if path.is_dir():
            raise MediaError(f"{path} cannot be read: it is a folder, not a video; name a file")
        if not path.exists():
            raise MediaError(f"{path} cannot be read: there is no such file; check the path")
        if not path.is_file():  # a pipe would block, a device would never end
            raise MediaError(f"{path} cannot be read: it is a pipe or a device, not a file; use - for frames on stdin")
        with path.open("rb") as file:
            head = file.read(512)
    except PermissionError as error:
        raise MediaError(f"{path} cannot be read: no permission; check the rights of the file") from error
    except (OSError, ValueError) as error:
        raise MediaError(f"{str(path)!r} cannot be read: {error}; check the path and the disk") from error
    # FFmpeg cannot read an absolute path as one of its protocols, such as `concat:a|b` or `http:`.
    capture = open_capture(str(path.resolve())) if head else None
    if capture is None or not capture.isOpened():
        raise MediaError(f"{path} cannot be read as a video: it is {_fault(path, head)}; replace or remove it")
    return capture


def _fault(path: Path, head: bytes) -> str:
    if not head:
        return "empty (0 bytes)"
    if head[4:8] == b"ftyp" and not _has_index(path):
        return "an MP4 without its index (moov), such as an interrupted recording"
    if b"\x00" not in head and all(byte >= 32 or byte in b"\t\n\r\f" for byte in head):
        return "a text file"
    return "damaged or in an unknown video format"


def _has_index(path: Path) -> bool:
    """Return True if an MP4 has a box `moov` at its top level (ISO/IEC 14496-12, 4.2)."""
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
