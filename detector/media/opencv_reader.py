"""Reader of videos by OpenCV, used for cameras, and for files where PyAV is not installed.

OpenCV's reader ends silently where a file is truncated, stops at a frame that it cannot decode even if the next ones
are intact, and trusts every header. Since OpenCV 4.13 it returns the memory of another picture for an interlaced frame
and reports success, so such videos are refused before their first frame (`detector.media.interlacing`).
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import cv2
import numpy as np

from detector.errors import MediaError
from detector.media.container_ends import is_cut
from detector.media.frame_reader import (
    END_TOLERANCE_FRAMES,
    MAX_FAILURES,
    OPEN_TIMEOUT_S,
    READ_TIMEOUT_S,
    FrameReader,
    VideoHeader,
    plausible_header,
)
from detector.media.images import quiet_opencv
from detector.media.interlacing import is_interlaced
from detector.media.movie_duration import movie_duration_s
from detector.structures.letterbox import Image

# FFmpeg inside OpenCV writes to stderr; its problems are reported here instead. A setting of the user has priority.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET

INSTALL = "install PyAV: pip install 'detector-toolkit[video]'"
_MATROSKA_CODEC = re.compile(rb"\x86[\x80-\xff](V_[\w/.-]+)")  # CodecID (RFC 9559, 5.1.4.1.21)
_NUM_HEAD_BYTES = 2**16
_NUM_PROBED = 8  # packets: streams that were cut out of others may begin with other data than a sequence header


def open_capture(address: str, is_raw: bool = False) -> cv2.VideoCapture:
    """Open an absolute path or an address with its scheme with OpenCV; check `isOpened` of the result.

    Args:
        address: the path or address.
        is_raw: true to read compressed packets instead of frames.
    """
    options = [
        *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, round(OPEN_TIMEOUT_S * 1000)),
        *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, round(READ_TIMEOUT_S * 1000)),
        *((cv2.CAP_PROP_FORMAT, -1) if is_raw else ()),
    ]
    with quiet_opencv():
        return cv2.VideoCapture(
            address,
            cv2.CAP_FFMPEG,  # other back ends read a path with % as a numbered list of images
            options,
        )


def codec_of(address: str) -> str:
    """Return the name that a video gives its codec, in quotes; an empty text if there is no video or no name."""
    capture = open_capture(address, is_raw=True)  # packets need no decoder
    try:
        tag = int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little", signed=True) if capture.isOpened() else b""
    finally:
        capture.release()
    if not tag.isascii() and os.path.isfile(address):
        with open(address, "rb") as file:
            named = _MATROSKA_CODEC.search(file.read(_NUM_HEAD_BYTES))
        tag = named[1] if named is not None else b""
    name = tag.decode("ascii", "replace")
    return repr(name) if name.isprintable() and name else ""


def require_progressive(address: str, name: str) -> None:
    """Reject a video with interlaced frames, of which OpenCV returns the memory of other pictures.

    Raises:
        MediaError: the compressed data says that frames may be interlaced.
    """
    capture = open_capture(address, is_raw=True)
    try:
        if not capture.isOpened():
            return  # the caller says why
        fourcc = int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little", signed=True)
        index = int(capture.get(cv2.CAP_PROP_CODEC_EXTRADATA_INDEX))
        with quiet_opencv():
            for _ in range(_NUM_PROBED):
                if not capture.grab():
                    return
                packets = [capture.retrieve(flag=stream)[1] for stream in (index, 0) if stream >= 0]
                if any(p is not None and is_interlaced(np.asarray(p, np.uint8).tobytes(), fourcc) for p in packets):
                    raise MediaError(
                        f"{name} cannot be read: it holds interlaced video, which OpenCV's reader turns into wrong "
                        f"pictures; {INSTALL}"
                    )
    finally:
        capture.release()


class OpenCvReader(FrameReader):
    """Reader of a capture of OpenCV that is open."""

    def __init__(
        self, capture: cv2.VideoCapture, name: str, path: Path | None = None, max_failures: int = MAX_FAILURES
    ) -> None:
        """Read the header.

        Args:
            capture: an open capture.
            name: of the video, for reports.
            path: the file, or None for cameras and addresses.
            max_failures: frames in a row that cannot be read, after which the video counts as ended; 1 for live
                sources, each of whose failures may take seconds.
        """
        self._capture, self.name, self._max_failures = capture, name, max_failures
        self.header = _header_of(capture, name, path)
        self._path = path

    def grab(self) -> bool:
        """Move to the next frame that can be decoded; return False at the end."""
        promised = self.header.num_frames
        tries = self._max_failures if promised is None else min(self._max_failures, promised - self.num_read)
        for failures in range(max(tries, 1)):
            if self._capture.grab():
                self.num_damaged += failures
                self.is_behind_gap = failures > 0
                self.num_read += 1
                return True
        return False

    def time_s(self) -> float | None:
        """Return the presentation time of the current frame in seconds from the start of the video, or None."""
        time_s = float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) / 1000
        return time_s if math.isfinite(time_s) else None

    def retrieve(self) -> Image | None:
        """Return the current frame, uint8 (H, W, 3) in RGB or (H, W, 1), turned upright; None if it is damaged."""
        with quiet_opencv():
            is_decoded, bgr = self._capture.retrieve()
        if not is_decoded:
            self.num_read -= 1
            self.num_damaged += 1
            return None
        if bgr.ndim == 2:  # infrared cameras
            return np.ascontiguousarray(bgr[..., None], np.uint8)
        return np.ascontiguousarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)

    def losses(self, last_s: float, is_uneven: bool) -> list[str]:
        """Return warnings about missing or damaged frames, at the end; see `FrameReader`."""
        promised = self.header.num_frames
        if promised is None:
            return self.damage_report() + self.cut_report(self._path)
        # The header may promise duration times mean rate; a variable rate that reaches the end then has lost no frame.
        is_at_end = is_uneven and last_s + END_TOLERANCE_FRAMES / self.header.fps >= promised / self.header.fps
        if self.num_read >= promised or (is_at_end and not self.num_damaged):
            return []
        # The promise may be the duration of longer sound, or count from time 0 where the first frame comes later.
        if self._path is not None and not self.num_damaged and is_cut(self._path) is False:
            return []
        return self.shortage_report(promised)

    def no_frame_reason(self) -> str:
        """Return the reason why an open video may have no frame that can be read."""
        fourcc = int(self._capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little", signed=True)
        if fourcc.lower() == b"av01":
            return f"it is AV1, for which OpenCV has no decoder; {INSTALL}"
        return super().no_frame_reason()

    def close(self) -> None:
        """Release the capture."""
        self._capture.release()


def _header_of(capture: cv2.VideoCapture, name: str, path: Path | None) -> VideoHeader:
    fps, num_frames = float(capture.get(cv2.CAP_PROP_FPS)), float(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    height, width = (int(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH))
    # Frames that an edit list leaves out are counted in the header, but not shown.
    if path is not None and (shown_s := movie_duration_s(path)) is not None and fps > 0:
        num_frames = min(num_frames, math.floor(shown_s * fps + 0.01))
    return plausible_header(name, fps, num_frames, (height, width))
