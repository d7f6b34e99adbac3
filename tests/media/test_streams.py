from __future__ import annotations

import http.server
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from detector.errors import ConfigError, MediaError, StreamError
from detector.media import streams
from detector.media.opencv_reader import OpenCvReader
from detector.media.sources import ImageSource, VideoSource, find_sources
from detector.media.streams import ReconnectConfig, frames_of, live_frames, stdin_frames

CAMERA, STDIN = VideoSource("camera:0", camera=0), VideoSource("stdin")


def encoded(seed: int, suffix: str = ".jpg", **options: Any) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    return bytes(cv2.imencode(suffix, pixels, **options)[1].tobytes())


def with_thumbnail() -> bytes:
    """Make a JPEG that holds another one, including its end marker, in its EXIF data."""
    out, tags = io.BytesIO(), Image.Exif()
    tags[0x010E] = encoded(8).decode("latin-1")
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(out, "JPEG", exif=tags.tobytes() + encoded(9))
    return out.getvalue()


# --- images on stdin -------------------------------------------------------------------------------------------------

FILES = {
    "jpeg": encoded(0),
    "png": encoded(1, ".png"),
    "progressive": encoded(2, params=[cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
    "restarts": encoded(3, params=[cv2.IMWRITE_JPEG_RST_INTERVAL, 1]),
    "thumbnail": with_thumbnail(),
    "last": encoded(4),
}


class Slow(io.BytesIO):
    """Pipe that returns a few bytes at a time."""

    def read1(self, size: int | None = -1, /) -> bytes:
        return super().read1(min(3, size or 3))


@pytest.mark.parametrize("pipe", [io.BytesIO, Slow])
def test_image_files_on_a_pipe_are_separated(pipe: Callable[[bytes], Any]) -> None:
    frames = list(stdin_frames(STDIN, pipe(b"".join(FILES.values()))))
    assert [frame.encoded for frame in frames] == list(FILES.values())
    assert [(f.frame.index, f.frame.time_s) for f in frames if f.frame] == [(i, None) for i in range(len(FILES))]
    decoded = cv2.imdecode(np.frombuffer(FILES["png"], np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    wanted = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(frames[1].load(3).pixels, wanted)


@pytest.mark.parametrize("name", ["jpeg", "png", "progressive"])
def test_pipe_that_ends_within_an_image_gives_earlier_images_and_an_error(name: str) -> None:
    for length in (3, 30, len(FILES[name]) // 2, len(FILES[name]) - 1):
        found = list(frames_of(STDIN, stdin=io.BytesIO(FILES["last"] + FILES[name][:length])))
        assert [f.error for f in found] == [None, "stdin ends within an image; the images before it were read"]
        assert found[0].encoded == FILES["last"]


def test_pipe_with_other_data_is_an_error() -> None:
    (first, second) = frames_of(STDIN, stdin=io.BytesIO(FILES["png"] + b"hello"))
    assert first.error is None
    assert second.error == "stdin: image 1 is neither JPEG nor PNG; send one image file after another"
    assert list(frames_of(STDIN, stdin=io.BytesIO(b""))) == []
    huge = FILES["png"][:8] + b"\xff\xff\xff\xff"
    (found,) = frames_of(STDIN, stdin=io.BytesIO(huge + b"IDAT"))
    assert found.error is not None
    assert "bytes > limit" in found.error


def test_damaged_image_on_a_pipe_fails_only_when_it_is_loaded() -> None:
    damaged = bytearray(FILES["png"])
    damaged[60] ^= 255
    frames = list(stdin_frames(STDIN, io.BytesIO(bytes(damaged) + FILES["jpeg"])))
    with pytest.raises(MediaError, match="stdin image 0 cannot be decoded"):
        frames[0].load(3)
    assert frames[1].load(3).pixels.shape == (20, 30, 3)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes that can be watched")
def test_wait_for_a_silent_pipe_ends_when_the_consumer_stops() -> None:
    reading, writing = os.pipe()
    stopping, found = threading.Event(), list[ImageSource]()

    def read() -> None:
        with open(reading, "rb") as file:
            found.extend(frames_of(STDIN, wait=stopping.wait, stdin=file))

    thread = threading.Thread(target=read)
    thread.start()
    os.write(writing, FILES["jpeg"])
    stopping.set()
    thread.join(5)
    was_over = not thread.is_alive()
    os.close(writing)
    thread.join(5)
    assert was_over
    assert [frame.encoded for frame in found] == [FILES["jpeg"]]


def test_closed_stdin_is_an_error_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    (record,) = frames_of(STDIN)
    assert record.error == "stdin is closed; send image files into it"


# --- live sources ----------------------------------------------------------------------------------------------------


class Capture:
    """Camera that gives a number of frames and then none."""

    released = 0

    def __init__(self, num_frames: int) -> None:
        self.num_left = num_frames

    def get(self, key: int) -> float:
        return 25.0

    def grab(self) -> bool:
        self.num_left -= 1
        return self.num_left >= 0

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return True, np.zeros((4, 4, 3), np.uint8)

    def release(self) -> None:
        Capture.released += 1


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[float]]:
    """Set the number of frames of each opening of the camera, -1 for one that fails; return the waits between them."""

    def plan(*num_frames: int) -> list[float]:
        left, Capture.released = list(num_frames), 0

        def opened(source: VideoSource) -> OpenCvReader | None:
            num_left = left.pop(0) if left else -1
            return None if num_left < 0 else OpenCvReader(Capture(num_left), source.name, max_failures=1)  # type: ignore[arg-type]

        monkeypatch.setattr(streams, "_opened", opened)
        monkeypatch.setattr(time, "monotonic", lambda: 0.0)
        return []

    return plan


def run(waits_s: list[float], config: ReconnectConfig) -> Iterator[ImageSource]:
    def wait(seconds: float) -> bool:
        waits_s.append(seconds)
        return False

    return live_frames(CAMERA, 3, config, wait)


def test_lost_camera_is_opened_again_after_longer_and_longer_waits(camera: Callable[..., list[float]]) -> None:
    waits_s = camera(2, -1, -1, -1, 3)  # row 74
    found: list[ImageSource] = []
    with pytest.raises(StreamError, match="camera:0 was lost after 5 frames, 4 attempts to reconnect failed"):
        found.extend(run(waits_s, ReconnectConfig(4, 1.0, 3.0)))
    assert waits_s == [1.0, 2.0, 3.0, 3.0] * 2
    assert [f.frame.index for f in found if f.frame] == [0, 1, 2, 3, 4]  # no frame replaces a missing one
    assert [f.warnings for f in found] == [(), (), ("camera:0: connection lost, reconnected after 4 attempts",), (), ()]
    assert Capture.released == 2  # every opened capture is released


def test_missing_camera_is_given_up(camera: Callable[..., list[float]]) -> None:  # row 74
    for num, wanted in ((0, []), (2, [1.0, 2.0])):
        waits_s = camera()
        with pytest.raises(StreamError, match=f"cannot be reached, {num} attempts") as caught:
            list(run(waits_s, ReconnectConfig(num)))
        assert waits_s == wanted
        assert caught.value.exit_code == 1


def test_wait_for_a_camera_ends_when_the_consumer_stops(camera: Callable[..., list[float]]) -> None:
    camera(1)
    assert len(list(live_frames(CAMERA, wait=lambda seconds: True))) == 1


def test_stride_yields_every_nth_frame_of_a_live_source(camera: Callable[..., list[float]]) -> None:
    camera(7)
    found = list(frames_of(CAMERA, stride=3, reconnect=ReconnectConfig(0)))
    assert [f.frame.index for f in found if f.frame] == [0, 3, 6, 7]
    assert [f.error is None for f in found] == [True, True, True, False]


# --- the network -----------------------------------------------------------------------------------------------------


@pytest.fixture
def server(draw_video: Callable[..., Path]) -> Iterator[str]:
    """Web server of a camera: /3 sends three frames and closes, /video.mp4 is a file, other paths do not exist."""
    video = draw_video("served.mp4", num_frames=6).read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            number = self.path.strip("/")
            if not number.isdecimal() and number != "video.mp4":
                self.send_error(404)
                return
            kind = "multipart/x-mixed-replace; boundary=frame" if number.isdecimal() else "video/mp4"
            self.send_response(200)
            self.send_header("Content-Type", kind)
            if not number.isdecimal():
                self.send_header("Content-Length", str(len(video)))
            self.end_headers()
            if not number.isdecimal():
                self.wfile.write(video)
                return
            for seed in range(int(number)):
                image = encoded(seed)
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n"
                self.wfile.write(head.encode() + image + b"\r\n")

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()
    serving.server_close()


def test_dropped_stream_is_reconnected_and_then_given_up(server: str) -> None:  # row 74
    (source,) = find_sources(f"{server}/3", allow_url=True)
    assert isinstance(source, VideoSource)
    assert source.is_live
    found: list[ImageSource] = []
    waits_s: list[float] = []

    def wait(seconds: float) -> bool:
        waits_s.append(seconds)
        return len(found) >= 7

    for frame in live_frames(source, 3, ReconnectConfig(3, 0.01), wait):
        found.append(frame)  # noqa: PERF402, `wait` reads it meanwhile
    assert [f.frame.index for f in found if f.frame] == list(range(9))  # three times three
    assert all(f.pixels is not None and f.pixels.shape == (20, 30, 3) and f.pixels.std() > 20 for f in found)
    assert [bool(f.warnings) for f in found] == [False] * 3 + [True, False, False] * 2


def test_refused_stream_is_an_error_record_and_never_a_frame(server: str) -> None:  # row 74
    for address in (f"{server}/nothing", "rtsp://user:secret@127.0.0.1:9/live?x=1"):
        (source,) = find_sources(address, allow_url=True)
        (record,) = frames_of(source, reconnect=ReconnectConfig(1, 0.0))
        assert record.pixels is None
        assert record.error is not None
        assert "cannot be reached, 1 attempts to reconnect failed" in record.error
        assert "secret" not in repr(record)


def test_video_file_on_a_web_server_is_read_to_its_end(server: str) -> None:
    (source,) = find_sources(f"{server}/video.mp4", allow_url=True)
    assert isinstance(source, VideoSource)
    assert not source.is_live
    assert len(list(frames_of(source))) == 6
    (gone,) = find_sources(f"{server}/gone.mp4", allow_url=True)
    (record,) = frames_of(gone)
    assert record.error is not None
    assert "the address does not answer with a video" in record.error


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile ADDRESS\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nADDRESS\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 26\na=control:ADDRESS\n",
    ],
)
def test_local_file_never_causes_a_network_request(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    asked: list[bytes] = []
    see = lambda self: asked.append(self.raw_requestline)  # noqa: E731, returning None ends the request
    monkeypatch.setattr(http.server.BaseHTTPRequestHandler, "parse_request", see)
    for name in ("list.mp4", "list.mkv", "list.avi", os.fsdecode(b"list\xff.mp4")):  # the last is no UTF-8
        (tmp_path / name).write_text(text.replace("ADDRESS", f"{server}/video.mp4"))
        (record,) = frames_of(VideoSource(name, tmp_path / name))
        assert record.error is not None
    assert asked == []
    (record,) = frames_of(VideoSource("asked for", url=f"{server}/video.mp4"))
    assert record.error is not None
    assert len(asked) > 0  # a request would have been noticed


@pytest.mark.parametrize("address", ["http://host/x", "RTSP://host/x", "https://h/v.mp4"])
def test_network_is_used_only_if_allowed(address: str) -> None:
    with pytest.raises(ConfigError, match=r"this would use the network; allow it by --allow-url"):
        find_sources(address)
    assert isinstance(find_sources(address, allow_url=True)[0], VideoSource)


@pytest.mark.parametrize(
    "address", ["file:///etc/passwd", "ftp://host/x", "concat://a|b", "rtmp://host/x", "http:///x"]
)
def test_other_schemes_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="expected an address of http, https, rtsp, rtsps, s3, gs, hf, got"):
        find_sources(address, allow_url=True)
