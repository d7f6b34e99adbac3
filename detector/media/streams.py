"""Sources whose frames arrive at their own pace: cameras, network streams, stdin.

A lost camera or stream is opened again a limited number of times, after waits that double, and then given up with an
error. A missing frame is never replaced by another one.
"""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import BinaryIO

import cv2

from detector.errors import MediaError, StreamError
from detector.media.frame_reader import DEFAULT_FPS, FrameReader
from detector.media.frame_sequences import sequence_frames
from detector.media.headers import PNG_SIGNATURE
from detector.media.images import quiet_opencv
from detector.media.opencv_reader import OpenCvReader
from detector.media.sources import FrameOrigin, ImageSource, Source, VideoSource
from detector.media.video import frame_of, open_stream, video_frames

_JPEG_START = b"\xff\xd8"
_MAX_ENCODED_BYTES = 2**29  # of one image on stdin
_CHUNK_BYTES = 2**16
_LOOK_UP_S = 0.1  # interval at which a wait for a pipe checks whether its consumer has stopped


@dataclass(frozen=True)
class ReconnectConfig:
    """Reconnection settings of a live source.

    Attributes:
        max_reconnect: attempts in a row without a frame before the source is given up.
        first_wait_s: seconds before the first attempt; each further wait is twice as long.
        max_wait_s: the longest wait in seconds.
    """

    max_reconnect: int = 5
    first_wait_s: float = 1.0
    max_wait_s: float = 30.0


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def live_frames(
    source: VideoSource,
    channels: int = 3,
    config: ReconnectConfig = ReconnectConfig(),
    wait: Callable[[float], bool] = _sleep,
) -> Generator[ImageSource, None, None]:
    """Yield the frames of a camera or stream as they arrive, with the seconds since the first one by the local clock.

    Args:
        source: a camera or an address.
        channels: 3 for RGB or 1 for grey.
        config: reconnection settings.
        wait: waits a number of seconds and returns true once the consumer has stopped.

    Raises:
        StreamError: the source cannot be reached, or was lost and could not be reconnected.
    """
    index, attempts, first_s = 0, 0, 0.0
    warnings: tuple[str, ...] = ()
    while True:
        lost_s = time.monotonic()
        reader = _opened(source)
        try:
            while reader is not None and reader.grab() and (image := reader.retrieve()) is not None:
                now_s = time.monotonic()
                first_s = first_s if index else now_s
                if attempts:
                    warnings = (*warnings, f"{source.name}: connection lost, reconnected after {attempts} attempts")
                frame = frame_of(source, image, channels, index, now_s - first_s, reader.header)
                yield replace(frame, warnings=warnings)
                index, attempts, warnings, lost_s = index + 1, 0, (), time.monotonic()
        finally:
            if reader is not None:
                reader.close()
        if attempts == config.max_reconnect:
            what = f"was lost after {index} frames" if index else "cannot be reached"
            raise StreamError(
                f"{source.name} {what}, {attempts} attempts to reconnect failed; check that it runs or raise "
                "--max-reconnect"
            )
        wait_s = min(config.first_wait_s * 2**attempts, config.max_wait_s)
        attempts += 1
        if wait(max(0.0, wait_s - (time.monotonic() - lost_s))):
            return


def _opened(source: VideoSource) -> FrameReader | None:
    if source.url is not None:
        return open_stream(source)
    with quiet_opencv():
        capture = cv2.VideoCapture(source.camera if source.camera is not None else 0, cv2.CAP_ANY)
    if capture.isOpened():
        return OpenCvReader(capture, source.name, max_failures=1)
    return None


def stdin_frames(
    source: VideoSource, file: BinaryIO, wait: Callable[[float], bool] = _sleep
) -> Generator[ImageSource, None, None]:
    """Yield the images on a pipe, JPEG or PNG files one after another, as FFmpeg writes them with `-f image2pipe`.

    Each image is decoded when it is loaded. Its end follows from its segments, not from a search for an end marker,
    because a JPEG may hold another one in its EXIF data.

    Args:
        source: the source, for its name.
        file: the pipe, in binary mode.
        wait: see `live_frames`; called while no data arrives, on systems where a pipe can be watched.

    Raises:
        MediaError: the data is neither JPEG nor PNG, or ends within an image; the images before it have been yielded.
    """
    pipe, index = _Pipe(file, source.name, wait), 0
    while head := pipe.take(2, may_end=True):
        if head == _JPEG_START:
            encoded = head + _jpeg_body(pipe)
        elif head == PNG_SIGNATURE[:2]:
            encoded = head + _png_body(pipe)
        else:
            raise MediaError(f"{source.name}: image {index} is neither JPEG nor PNG; send one image file after another")
        time_s = None if source.fps is None else index / source.fps
        origin = FrameOrigin(source, index, time_s, source.fps or DEFAULT_FPS)
        yield ImageSource(source.name, encoded=encoded, frame=origin)
        index += 1


class _Pipe:
    """Reader of exact numbers of bytes; once the consumer has stopped, the pipe counts as ended."""

    def __init__(self, file: BinaryIO, name: str, wait: Callable[[float], bool]) -> None:
        self._file, self._name, self._wait, self._rest = getattr(file, "raw", file), name, wait, b""
        try:
            self._handle = None if sys.platform == "win32" else file.fileno()  # Windows can only watch sockets
        except OSError:  # a file in memory
            self._handle = None

    def take(self, num_bytes: int, may_end: bool = False) -> bytes:
        if num_bytes > _MAX_ENCODED_BYTES:
            raise MediaError(
                f"{self._name}: a part of {num_bytes} bytes > limit of {_MAX_ENCODED_BYTES}; check that it is an image"
            )
        parts = [self._rest[:num_bytes]]
        self._rest, missing = self._rest[num_bytes:], num_bytes - len(parts[0])
        while missing and (part := self._arrived(min(missing, _CHUNK_BYTES))):
            parts.append(part)
            missing -= len(part)
        taken = b"".join(parts)
        if missing and (taken or not may_end):
            raise MediaError(f"{self._name} ends within an image; the images before it were read")
        return b"" if missing else taken

    def take_until_marker(self) -> bytes:
        """Read the compressed bits of a JPEG with the two-byte marker that ends them."""
        taken = bytearray()
        while len(taken) < _MAX_ENCODED_BYTES:
            chunk = self._rest or self._chunk()
            if taken[-1:] == b"\xff" and chunk[:1]:  # a marker may lie across two chunks
                chunk, taken = b"\xff" + chunk, taken[:-1]
            end = _marker_at(chunk)
            if end is not None:
                self._rest = chunk[end:]
                return bytes(taken + chunk[:end])
            taken += chunk
            self._rest = b""
        raise MediaError(f"{self._name}: an image has more than {_MAX_ENCODED_BYTES} bytes; check that it is an image")

    def _chunk(self) -> bytes:
        chunk = self._arrived(_CHUNK_BYTES)
        if not chunk:
            raise MediaError(f"{self._name} ends within an image; the images before it were read")
        return chunk

    def _arrived(self, most: int) -> bytes:
        """Read the bytes that have arrived, so that a complete frame does not wait for the next one."""
        while self._handle is not None and not select.select([self._handle], [], [], _LOOK_UP_S)[0]:
            if self._wait(0.0):
                return b""
        read = getattr(self._file, "read1", self._file.read)
        return bytes(read(most))


def _marker_at(data: bytes) -> int | None:
    """Return the end of the first marker in compressed bits of a JPEG; stuffed zeros are none (ITU-T T.81, B.1.1.2)."""
    start = 0
    while (found := data.find(b"\xff", start)) >= 0 and found + 1 < len(data):
        code = data[found + 1]
        if (
            code not in (0x00, 0xFF) and not 0xD0 <= code <= 0xD7
        ):  # restart markers do not count, and 0xFF is a fill byte
            return found + 2
        start = found + (1 if code == 0xFF else 2)
    return None


def _jpeg_body(pipe: _Pipe) -> bytes:
    """Read a JPEG after its first marker: segments with their length, bits after each start of scan (T.81, B.1.1)."""
    parts = []
    marker = pipe.take(2)
    while marker[-1:] != b"\xd9":
        parts.append(marker)
        if marker[:1] != b"\xff":
            raise MediaError(f"{pipe._name}: an image is a damaged JPEG, so the images after it cannot be located")
        if marker[-1:] == b"\xff":  # fill bytes before a marker
            marker = marker[-1:] + pipe.take(1)
            parts.pop()
            continue
        length = pipe.take(2)
        parts += [length, pipe.take(max(int.from_bytes(length, "big") - 2, 0))]
        if marker[-1:] == b"\xda":
            bits = pipe.take_until_marker()
            parts.append(bits[:-2])
            marker = bits[-2:]
        else:
            marker = pipe.take(2)
    return b"".join([*parts, marker])


def _png_body(pipe: _Pipe) -> bytes:
    """Read a PNG after its first two bytes: rest of the signature and chunks up to IEND (ISO/IEC 15948, 5.3)."""
    parts = [pipe.take(len(PNG_SIGNATURE) - 2)]
    while True:
        head = pipe.take(8)
        parts += [head, pipe.take(int.from_bytes(head[:4], "big") + 4)]
        if head[4:] == b"IEND":
            return b"".join(parts)


def frames_of(
    source: Source,
    channels: int = 3,
    *,
    stride: int = 1,
    reconnect: ReconnectConfig = ReconnectConfig(),
    wait: Callable[[float], bool] = _sleep,
    stdin: BinaryIO | None = None,
) -> Generator[ImageSource, None, None]:
    """Yield the images of any source; a failure is not raised but gives a last image with an `error`.

    Args:
        source: an image, which is yielded as it is, or a source of frames.
        channels: 3 for RGB or 1 for grey.
        stride: yield every `stride`-th frame.
        reconnect: reconnection settings of a live source.
        wait: see `live_frames`.
        stdin: the pipe with the frames of stdin; by default the process's own.
    """
    if isinstance(source, ImageSource):
        yield source
        return
    num_frames = 0
    try:
        if source.is_live:
            frames = live_frames(source, channels, reconnect, wait)
        elif source.frames:
            frames, stride = sequence_frames(source, stride), 1
        elif source.has_no_times:
            if stdin is None and sys.stdin is None:
                raise MediaError(f"{source.name} is closed; send image files into it")
            frames = stdin_frames(source, stdin or sys.stdin.buffer, wait)
        else:
            frames, stride = video_frames(source, channels, stride), 1
        with closing(frames):  # releases the file at once when the consumer stops
            for frame in frames:
                num_frames += 1
                if (num_frames - 1) % stride == 0:
                    yield frame
    except MediaError as error:
        origin = FrameOrigin(source, num_frames, None, DEFAULT_FPS)
        yield ImageSource(source.name, source.path, frame=origin, error=str(error))


def frames_of_each(
    sources: Iterable[Source], channels: int, stride: int = 1, reconnect: ReconnectConfig = ReconnectConfig()
) -> Generator[ImageSource, None, None]:
    """Yield the images of sources, one source after the other; each is taken when the one before it has ended."""
    for source in sources:
        with closing(frames_of(source, channels, stride=stride, reconnect=reconnect)) as frames:
            yield from frames
