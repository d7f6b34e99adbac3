"""Sources that give frames when they like: cameras, network streams, stdin.

A camera or stream that falls silent is opened again after waits that double, a few times, and then given up with an
error: a frame that never came is never replaced by another one.
"""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import cv2

from detector.errors import MediaError, StreamError
from detector.media.headers import PNG_SIGNATURE
from detector.media.images import quiet_opencv
from detector.media.sources import FrameOrigin, ImageSource, Source, VideoSource
from detector.media.video import DEFAULT_FPS, frame_of, header_of, open_capture, video_frames

_JPEG_START = b"\xff\xd8"
_MAX_ENCODED_BYTES = 2**29  # of one image on stdin
_CHUNK_BYTES = 2**16
_LOOK_UP_S = 0.1  # while a pipe is silent, how often it is asked whether anyone still waits for it


@dataclass(frozen=True)
class ReconnectConfig:
    """How long a live source is waited for.

    Attributes:
        max_reconnect: attempts in a row, without a frame between them, before it is given up.
        first_wait_s: seconds before the first attempt; each further wait is twice as long.
        max_wait_s: the longest wait.
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
    """The frames of a camera or stream as they come, with the seconds since the first one by this machine's clock.

    Args:
        source: a camera or an address.
        channels: 3 for RGB or 1 for grey.
        config: when to give it up.
        wait: waits so many seconds; true where nobody wants frames any longer.

    Raises:
        StreamError: it cannot be reached, or was lost and did not come back.
    """
    index, attempts, first_s = 0, 0, 0.0
    warnings: tuple[str, ...] = ()
    while True:
        lost_s = time.monotonic()
        capture = _opened(source)
        try:
            header = header_of(capture, source.name) if capture.isOpened() else None
            while header is not None:
                is_there, bgr = capture.read()
                if not is_there:
                    break
                now_s = time.monotonic()
                first_s = first_s if index else now_s
                if attempts:
                    warnings = (*warnings, f"{source.name}: no frames came; it is back after {attempts} attempts")
                frame = frame_of(source, bgr, channels, index, now_s - first_s, header)
                yield replace(frame, warnings=warnings)
                index, attempts, warnings, lost_s = index + 1, 0, (), time.monotonic()
        finally:
            capture.release()
        if attempts == config.max_reconnect:
            what = f"was lost after {index} frames" if index else "cannot be reached"
            raise StreamError(
                f"{source.name} {what}, {attempts} attempts to connect again failed; check that it runs "
                "or raise --max-reconnect"
            )
        wait_s = min(config.first_wait_s * 2**attempts, config.max_wait_s)
        attempts += 1
        if wait(max(0.0, wait_s - (time.monotonic() - lost_s))):
            return


def _opened(source: VideoSource) -> Any:
    if source.url is not None:
        return open_capture(source.url)
    with quiet_opencv():
        return cv2.VideoCapture(source.camera if source.camera is not None else 0, cv2.CAP_ANY)


def stdin_frames(
    source: VideoSource, file: BinaryIO, wait: Callable[[float], bool] = _sleep
) -> Generator[ImageSource, None, None]:
    """The images on a pipe, one file after another, JPEG or PNG, such as FFmpeg writes them with `-f image2pipe`.

    Each is decoded where it is loaded. Where one ends is read off its own structure, not off its bytes: a JPEG may hold
    another one in its EXIF data.

    Args:
        source: what to call it.
        file: the pipe, in binary.
        wait: as `live_frames` takes it; asked while nothing comes, on systems where a pipe can be watched.

    Raises:
        MediaError: what comes is neither JPEG nor PNG, or ends within an image; the images before it have come.
    """
    pipe, index = _Pipe(file, source.name, wait), 0
    while head := pipe.take(2, may_end=True):
        if head == _JPEG_START:
            encoded = head + _jpeg_body(pipe)
        elif head == PNG_SIGNATURE[:2]:
            encoded = head + _png_body(pipe)
        else:
            raise MediaError(f"{source.name}: image {index} is neither JPEG nor PNG; send one image file after another")
        origin = FrameOrigin(source, index, None, DEFAULT_FPS)
        yield ImageSource(source.name, encoded=encoded, frame=origin)
        index += 1


class _Pipe:
    """Reads exact numbers of bytes; where nobody waits for them any longer, the pipe has ended."""

    def __init__(self, file: BinaryIO, name: str, wait: Callable[[float], bool]) -> None:
        self._file, self._name, self._wait, self._rest = getattr(file, "raw", file), name, wait, b""
        try:
            self._handle = None if sys.platform == "win32" else file.fileno()  # there only sockets can be watched
        except OSError:  # it lies in memory
            self._handle = None

    def take(self, num_bytes: int, may_end: bool = False) -> bytes:
        if num_bytes > _MAX_ENCODED_BYTES:
            raise MediaError(
                f"{self._name}: a part of {num_bytes} bytes > limit of {_MAX_ENCODED_BYTES}; is it an image?"
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
        """The compressed bits of a JPEG with the marker that ends them, of two bytes."""
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
        raise MediaError(f"{self._name}: an image has more than {_MAX_ENCODED_BYTES} bytes; is it one?")

    def _chunk(self) -> bytes:
        chunk = self._arrived(_CHUNK_BYTES)
        if not chunk:
            raise MediaError(f"{self._name} ends within an image; the images before it were read")
        return chunk

    def _arrived(self, most: int) -> bytes:
        """What is there now, so that a frame is seen when it is complete and not when the next one comes."""
        while self._handle is not None and not select.select([self._handle], [], [], _LOOK_UP_S)[0]:
            if self._wait(0.0):
                return b""
        read = getattr(self._file, "read1", self._file.read)
        return bytes(read(most))


def _marker_at(data: bytes) -> int | None:
    """Where the first marker in the compressed bits of a JPEG ends; ITU-T T.81, B.1.1.2: stuffed zeros are none."""
    start = 0
    while (found := data.find(b"\xff", start)) >= 0 and found + 1 < len(data):
        code = data[found + 1]
        if code not in (0x00, 0xFF) and not 0xD0 <= code <= 0xD7:  # nor are restarts, and 0xFF fills
            return found + 2
        start = found + (1 if code == 0xFF else 2)
    return None


def _jpeg_body(pipe: _Pipe) -> bytes:
    """A JPEG behind its first marker: segments with their length, bits behind each start of scan (T.81, B.1.1)."""
    parts = []
    marker = pipe.take(2)
    while marker[-1:] != b"\xd9":
        parts.append(marker)
        if marker[:1] != b"\xff":
            raise MediaError(f"{pipe._name}: an image is a damaged JPEG, what follows cannot be told from it")
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
    """A PNG behind its first two bytes: the signature's rest and chunks up to IEND (ISO/IEC 15948, 5.3)."""
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
    """The images of any source, one after another: a fault ends it with one that has an `error`, and is not raised.

    Args:
        source: an image, which is given as it is, or anything with frames.
        channels: 3 for RGB or 1 for grey.
        stride: every how many frames one is given.
        reconnect: how long a live source is waited for.
        wait: as `live_frames` takes it.
        stdin: where frames on stdin come from, the process's own without it.
    """
    if isinstance(source, ImageSource):
        yield source
        return
    num_frames = 0
    try:
        if source.is_live:
            frames = live_frames(source, channels, reconnect, wait)
        elif source.path is None and source.url is None:
            if stdin is None and sys.stdin is None:
                raise MediaError(f"{source.name} is closed; send image files into it")
            frames = stdin_frames(source, stdin or sys.stdin.buffer, wait)
        else:
            frames, stride = video_frames(source, channels, stride), 1
        with closing(frames):  # what is no longer wanted gives its file back at once
            for frame in frames:
                num_frames += 1
                if (num_frames - 1) % stride == 0:
                    yield frame
    except MediaError as error:
        origin = FrameOrigin(source, num_frames, None, DEFAULT_FPS)
        yield ImageSource(source.name, source.path, frame=origin, error=str(error))
