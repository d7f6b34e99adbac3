"""Video files: frames with their true times, and warnings for files that do not hold what their headers promise.

PyAV reads where it is installed, else OpenCV. Reading continues after a damaged frame, frames are counted and compared
with the header, and times come from the time stamps of the file. No frame is ever invented.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from detector.errors import MediaError
from detector.io.folders import hint_for_missing
from detector.media import animation_reader
from detector.media.frame_reader import MAX_FAILURES, FrameReader, VideoHeader
from detector.media.movie_duration import boxes
from detector.media.opencv_reader import INSTALL, OpenCvReader, codec_of, open_capture, require_progressive
from detector.media.sources import FrameOrigin, ImageSource, VideoSource
from detector.structures.letterbox import Image

_UNEVEN_SHARE = 0.1  # deviation of the time between frames from which on the rate counts as variable
_TIME_STEP_S = 0.0011  # MKV and WebM store whole milliseconds


def has_pyav() -> bool:
    """Return True if PyAV is installed, which is preferred to OpenCV for reading videos."""
    return importlib.util.find_spec("av") is not None


@contextmanager
def opencv_threads(num_threads: int) -> Iterator[None]:
    """Set OpenCV's number of threads inside the block; it applies to the whole process."""
    previous = cv2.getNumThreads()
    cv2.setNumThreads(num_threads)
    try:
        yield
    finally:
        cv2.setNumThreads(previous)


def read_header(path: Path) -> VideoHeader:
    """Read the header of a video file.

    Raises:
        MediaError: the file cannot be read as a video.
    """
    reader = _opened_file(path)
    try:
        return reader.header
    finally:
        reader.close()


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
    if channels not in (1, 3):
        raise MediaError(
            f"{source.name}: expected a model of 1 or 3 channels for a video, got {channels}; use images instead"
        )
    reader = _opened_address(source) if source.path is None else _opened_file(source.path)
    try:
        yield from _Frames(reader, source, channels, stride).read()
    finally:
        reader.close()


class _Frames:
    """One pass over a video."""

    def __init__(self, reader: FrameReader, source: VideoSource, channels: int, stride: int) -> None:
        self._reader, self._source, self._channels, self._stride = reader, source, channels, stride
        self._header = reader.header
        self._last_s = -math.inf
        self._is_uneven = False

    def read(self) -> Iterator[ImageSource]:
        held: ImageSource | None = None  # the last frame read, which gets the warnings at the end
        warnings = list(self._header.warnings)
        while self._reader.grab():
            index = self._reader.num_read - 1
            time_s = self._time_s(index)
            warnings += self._unevenness(time_s, index)
            self._last_s = time_s
            if index % self._stride:
                continue
            image = self._reader.retrieve()
            if image is None:
                continue
            if held is not None:
                yield replace(held, warnings=tuple(warnings))
                warnings = []
            held = frame_of(self._source, image, self._channels, index, time_s, self._header)
        if held is None:
            raise MediaError(f"{self._source.name} has no frame that can be read; {self._reader.no_frame_reason()}")
        yield replace(held, warnings=(*warnings, *self._reader.losses(self._last_s, self._is_uneven)))

    def _time_s(self, index: int) -> float:
        time_s = self._reader.time_s()
        if time_s is not None and time_s > self._last_s and time_s >= 0:
            return time_s
        return max(self._last_s, 0.0) + 1 / self._header.fps if index else 0.0  # it has no valid time stamp

    def _unevenness(self, time_s: float, index: int) -> list[str]:
        mean_s = 1 / self._header.fps
        step_s = time_s - self._last_s
        is_uneven = abs(step_s - mean_s) > max(_UNEVEN_SHARE * mean_s, _TIME_STEP_S)
        if self._is_uneven or not is_uneven or not index or self._reader.is_behind_gap or self._header.warnings:
            return []
        self._is_uneven = True
        return [
            f"{self._source.name} has a variable frame rate ({step_s * 1000:.0f} ms before frame {index}, "
            f"{mean_s * 1000:.0f} ms on average): output plays at {self._header.fps:.4g} frames per second, "
            "records keep the true times"
        ]


def frame_of(
    source: VideoSource, image: Image, channels: int, index: int, time_s: float | None, header: VideoHeader
) -> ImageSource:
    """Return a frame as an image source.

    Args:
        source: the video or stream.
        image: the frame, uint8 (H, W, 3) in RGB or (H, W, 1).
        channels: 3 for RGB or 1 for grey.
        index: number of the frame.
        time_s: its time in seconds, or None.
        header: of the video.
    """
    is_grey = image.shape[2] == 1
    if channels == 3:
        pixels = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if is_grey else image
    else:
        pixels = image if is_grey else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    origin = FrameOrigin(source, index, time_s, header.fps, header.num_frames)
    return ImageSource(source.name, source.path, pixels=np.ascontiguousarray(pixels, np.uint8), frame=origin)


def open_stream(source: VideoSource) -> FrameReader | None:
    """Open an address; return None if it does not answer with a video.

    Args:
        source: a source with an address.

    Raises:
        MediaError: the video is interlaced, and only OpenCV is there; or there is no decoder for it.
    """
    address = source.url or ""
    if has_pyav():
        from detector.media import pyav_reader

        return pyav_reader.open_address(address, source.name, source.is_live)
    require_progressive(address, source.name)
    capture = open_capture(address)
    if not capture.isOpened():
        return None
    return OpenCvReader(capture, source.name, max_failures=1 if source.is_live else MAX_FAILURES)


def _opened_address(source: VideoSource) -> FrameReader:
    reader = open_stream(source)
    if reader is None:
        raise MediaError(f"{source.name} cannot be read: the address does not answer with a video; check it")
    return reader


def _opened_file(path: Path) -> FrameReader:
    try:
        if path.is_dir():
            raise MediaError(f"{path} cannot be read: it is a folder, not a video; name a file")
        if not path.exists():
            raise MediaError(f"{path} cannot be read: there is no such file{hint_for_missing(path)}")
        if not path.is_file():  # a pipe would block, a device would never end
            raise MediaError(f"{path} cannot be read: it is a pipe or a device, not a file; use - for frames on stdin")
        with path.open("rb") as file:
            head = file.read(512)
    except PermissionError as error:
        raise MediaError(f"{path} cannot be read: no permission; check the rights of the file") from error
    except (OSError, ValueError) as error:
        raise MediaError(f"{str(path)!r} cannot be read: {error}; check the path and the disk") from error
    if animation_reader.can_read(head):
        return animation_reader.AnimationReader(path, str(path))
    reader = _reader_of_file(path) if head else None
    if reader is None and head and not has_pyav() and (codec := codec_of(str(path.resolve()))):
        raise MediaError(f"{path} cannot be read: OpenCV has no decoder for its codec {codec}; {INSTALL}")
    if reader is None:
        raise MediaError(f"{path} cannot be read as a video: it is {_fault(path, head)}; replace or remove it")
    return reader


def _reader_of_file(path: Path) -> FrameReader | None:
    # FFmpeg cannot read an absolute path as one of its protocols, such as `concat:a|b` or `http:`.
    whole = path.resolve()
    if has_pyav():
        from detector.media import pyav_reader

        return pyav_reader.open_file(whole, str(path))
    require_progressive(str(whole), str(path))
    capture = open_capture(str(whole))
    return OpenCvReader(capture, str(path), path) if capture.isOpened() else None


def _fault(path: Path, head: bytes) -> str:
    if not head:
        return "empty (0 bytes)"
    if head[4:8] == b"ftyp" and not _has_index(path):
        return "an MP4 without its index (moov), such as an interrupted recording"
    if b"\x00" not in head and all(byte >= 32 or byte in b"\t\n\r\f" for byte in head):
        return "a text file"
    return "damaged or in an unknown video format"


def _has_index(path: Path) -> bool:
    """Return True if an MP4 has a box `moov` at its top level."""
    with path.open("rb") as file:
        return any(kind == b"moov" for kind, _, _ in boxes(file, 0, None))
