"""Reader of videos by PyAV, which brings its own FFmpeg: exact time stamps, deinterlacing, and AV1.

Importing this file needs PyAV, an optional dependency: its wheels have 36 MB and hold FFmpeg with GPL libraries (x264,
x265). Without PyAV, `detector.media.opencv_reader` reads.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import av.filter
import numpy as np

from detector.errors import MediaError
from detector.media.frame_reader import (
    END_TOLERANCE_FRAMES,
    MAX_FAILURES,
    OPEN_TIMEOUT_S,
    READ_TIMEOUT_S,
    FrameReader,
    VideoHeader,
    plausible_header,
)
from detector.media.images import MAX_PIXELS
from detector.media.opencv_reader import codec_of
from detector.structures.letterbox import Image

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.filter import Graph
    from av.video.stream import VideoStream

# A local file must not make FFmpeg open addresses that it lists (playlists); the names are FFmpeg's.
_LOCAL_ONLY = {"protocol_whitelist": "file,crypto,data"}
# Frames may be larger than the container says; FFmpeg's search for their size keeps to it too.
_BOUNDED = {"max_pixels": str(MAX_PIXELS)}
# Weston 3-field deinterlacing with motion compensation: one frame for each frame, and none of those that are not marked
# as interlaced is changed (FFmpeg's documentation of filters, `bwdif`).
_DEINTERLACER = ("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
_FAILURES = (av.FFmpegError, OSError, ValueError)
# Containers whose frames may be more than are shown, because an edit list leaves some out.
_EDITABLE = "mov,mp4"
_OF_FILE, _FROM_ZERO = ("asf", "mpeg"), ("matroska", "flv")
_TAG = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")  # duration of a stream in Matroska


def open_file(path: Path, name: str) -> PyAvReader | None:
    """Open a video file; return None if it is none that FFmpeg knows.

    Args:
        path: an absolute path, so that FFmpeg does not read it as one of its protocols, such as `concat:a|b`.
        name: of the video, for reports.

    Raises:
        MediaError: there is no decoder for the video.
    """
    options = {**_LOCAL_ONLY, **_BOUNDED}
    try:
        container = av.open(str(path), "r", options=options)
    except UnicodeEncodeError:  # a name that is no UTF-8
        container = av.open(path.open("rb"), "r", options=options)
    except _FAILURES:
        return None
    return _opened(container, name, is_live=False)


def open_address(address: str, name: str, is_live: bool) -> PyAvReader | None:
    """Open an address; return None if it does not answer with a video.

    Args:
        address: the address with its scheme.
        name: the address without password, for reports.
        is_live: true if frames must not wait for later ones.

    Raises:
        MediaError: there is no decoder for the video.
    """
    try:
        container = av.open(address, "r", options=_BOUNDED, timeout=(OPEN_TIMEOUT_S, READ_TIMEOUT_S))
    except _FAILURES:
        return None
    return _opened(container, name, is_live)


def _opened(container: InputContainer, name: str, is_live: bool) -> PyAvReader | None:
    stream = container.streams.best("video")
    if stream is None:
        container.close()
        return None
    try:
        return PyAvReader(container, container.streams.video[_place(container, stream.index)], name, is_live)
    except MediaError:
        container.close()
        raise


def _no_decoder(name: str, container: InputContainer) -> str:
    codec = " ".join(("codec", codec_of(container.name))).rstrip()
    return f"{name} cannot be read: there is no decoder for its {codec}; convert the video"


def _place(container: InputContainer, index: int) -> int:
    return next(place for place, stream in enumerate(container.streams.video) if stream.index == index)


class PyAvReader(FrameReader):
    """Reader of a container that is open. Interlaced frames are deinterlaced, one frame for each."""

    def __init__(self, container: InputContainer, stream: VideoStream, name: str, is_live: bool) -> None:
        """Read the header.

        Args:
            container: an open container.
            stream: its video stream.
            name: of the video, for reports.
            is_live: true if frames must not wait for later ones.

        Raises:
            MediaError: there is no decoder for the codec.
        """
        if stream.codec_context is None:
            raise MediaError(_no_decoder(name, container))
        self.name, self._container, self._stream = name, container, stream
        stream.codec_context.options = _BOUNDED
        # Threads over whole frames are faster, but hold back frames, for which live sources must not wait.
        stream.codec_context.thread_type = "SLICE" if is_live else "AUTO"
        self._unit_s = float(stream.time_base or Fraction(1, 1))
        self._start_s = (stream.start_time or 0) * self._unit_s
        self._duration_s, self._num_partial = self._find_duration_s(), 0
        self._ready: deque[av.VideoFrame] = deque()
        self._source = self._decoded()
        self._frame: av.VideoFrame | None = None
        self._graph: Graph | None = None
        self._graph_wh = (0, 0)
        # The size and rotation of the picture are those of the first frame: headers of streams may lack them.
        first = next(self._source, None)
        self._size_wh = (first.width, first.height) if first is not None else (stream.width, stream.height)
        if first is not None:
            self._ready.append(first)
        self.header = self._read_header(0 if first is None else first.rotation)

    def _read_header(self, rotation: int) -> VideoHeader:
        fps = float(self._stream.average_rate or self._stream.guessed_rate or 0)
        width, height = self._size_wh
        image_hw = (width, height) if rotation % 180 else (height, width)
        num_shown = 0.0 if self._duration_s is None else self._duration_s * fps
        num_frames = float(self._stream.frames) or round(num_shown)
        if num_shown and self._container.format.name.startswith(_EDITABLE):
            num_frames = min(num_frames, math.floor(num_shown + 0.01))
        return plausible_header(self.name, fps, num_frames, image_hw)

    def _find_duration_s(self) -> float | None:
        """Return the duration of the stream from its first frame, if it is known."""
        kind, is_alone = self._container.format.name, len(self._container.streams) == 1
        # ASF gives each stream the duration of the file; MPEG program streams give wrong ones beside sound.
        if self._stream.duration is not None and self._stream.duration > 0 and (is_alone or kind not in _OF_FILE):
            return self._stream.duration * self._unit_s
        # Some count from time 0, also where the first frame comes later; each stream of Matroska may have a tag.
        start_s = self._start_s if kind.startswith(_FROM_ZERO) else 0.0
        tag = _TAG.fullmatch(self._stream.metadata.get("DURATION", ""))
        if tag is not None:
            return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3]) - start_s
        if self._container.duration is None or not is_alone:  # another stream may be longer
            return None
        return self._container.duration / av.time_base - start_s

    def grab(self) -> bool:
        """Move to the next frame that can be decoded; return False at the end."""
        num_damaged = self.num_damaged
        self._frame = self._ready.popleft() if self._ready else next(self._source, None)
        self.is_behind_gap = self.num_damaged > num_damaged
        if self._frame is None:
            return False
        self.num_read += 1
        return True

    def _decoded(self) -> Iterator[av.VideoFrame]:
        """Yield the frames, deinterlaced where they need it."""
        for frame in self._raw():
            self._num_partial += frame.is_corrupt
            if self._graph is None and not frame.interlaced_frame:
                yield frame
                continue
            if self._graph is None or (frame.width, frame.height) != self._graph_wh:
                yield from self._drained()
                self._graph, self._graph_wh = self._new_graph(frame), (frame.width, frame.height)
            self._graph.push(frame)
            yield from self._filtered()
        yield from self._drained()

    def _raw(self) -> Iterator[av.VideoFrame]:
        failures = 0
        packets = self._container.demux(self._stream)
        while failures < MAX_FAILURES:
            try:
                packet = next(packets, None)
            except _FAILURES:  # a damaged or truncated container, or a lost connection
                packet = None
            try:
                # None for what the decoder still holds; at a regular end the last packet has asked for it.
                frames = self._stream.codec_context.decode(packet)
            except _FAILURES:
                if packet is None or packet.size == 0:
                    return
                failures += 1
                self.num_damaged += 1
                continue
            for frame in frames:
                failures = 0
                yield frame
            if packet is None:
                return

    def _new_graph(self, frame: av.VideoFrame) -> Graph:
        graph = av.filter.Graph()
        nodes = [
            graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=self._stream.time_base
            ),
            graph.add(*_DEINTERLACER),
            graph.add("buffersink"),
        ]
        graph.link_nodes(*nodes).configure()
        return graph

    def _filtered(self) -> Iterator[av.VideoFrame]:
        while self._graph is not None:
            try:
                frame = self._graph.pull()
            except (BlockingIOError, EOFError):
                return
            if isinstance(frame, av.VideoFrame):
                yield frame

    def _drained(self) -> Iterator[av.VideoFrame]:
        """Yield the frame that the deinterlacer has held back."""
        if self._graph is not None:
            self._graph.push(None)
            yield from self._filtered()

    def time_s(self) -> float | None:
        """Return the presentation time of the current frame in seconds from the start of the video, or None."""
        frame = self._frame
        if frame is None or frame.pts is None or frame.time_base is None:
            return None
        return float(frame.pts * frame.time_base) - self._start_s

    def retrieve(self) -> Image | None:
        """Return the current frame, uint8 (H, W, 3) in RGB or (H, W, 1), turned upright; None if it is damaged."""
        if self._frame is None:
            return None
        width, height = self._size_wh
        rgb = self._frame.to_ndarray(format="rgb24", width=width, height=height)
        quarters = self._frame.rotation // 90 % 4
        return np.ascontiguousarray(np.rot90(rgb, quarters) if quarters else rgb, np.uint8)

    def losses(self, last_s: float, is_uneven: bool) -> list[str]:
        """Return warnings about missing or damaged frames, at the end; see `FrameReader`."""
        promised, fps = self.header.num_frames, self.header.fps
        partly = [f"{self.name}: {self._num_partial} frames are damaged in part"] if self._num_partial else []
        if promised is None:
            return partly + self.damage_report() + self.cut_report(Path(self._container.name))
        # Without a count in the header, `promised` is the duration times the mean rate.
        is_estimate, duration_s = not self._stream.frames, self._duration_s or 0.0
        is_at_end = is_estimate and last_s + END_TOLERANCE_FRAMES / fps >= duration_s and not self.num_damaged
        return partly if self.num_read >= promised or is_at_end else partly + self.shortage_report(promised)

    def close(self) -> None:
        """Release the container; further calls do nothing."""
        self._source, self._frame, self._graph = iter(()), None, None
        self._ready.clear()
        self._container.close()
