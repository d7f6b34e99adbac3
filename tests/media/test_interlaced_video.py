"""Interlaced video: deinterlaced by PyAV, refused by OpenCV's reader before its first frame."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from detector.errors import MediaError
from detector.media import video
from detector.media.interlacing import is_interlaced
from detector.media.sources import ImageSource, VideoSource
from detector.media.video import video_frames
from detector.structures.letterbox import Image

av = pytest.importorskip("av")

NUM_FRAMES, SHAPE = 6, (48, 64)
INTERLACED_FLAGS = 1 << 18 | 1 << 29  # AV_CODEC_FLAG_INTERLACED_DCT and AV_CODEC_FLAG_INTERLACED_ME

# Name of the file, codec, its options, and whether it is interlaced.
FILES = {
    "mpeg2": ("a.mpg", "mpeg2video", {}, True),
    "mpeg2 transport stream": ("a.ts.m2ts", "mpeg2video", {}, True),
    "mpeg2 in matroska": ("a.mkv", "mpeg2video", {}, True),
    "mpeg4": ("a.mp4", "mpeg4", {}, True),
    "mpeg4 in avi": ("a.avi", "mpeg4", {}, True),
    "h264": ("a.mp4", "libx264", {"x264-params": "interlaced=1:tff=1"}, True),
    "h264 transport stream": ("a.m2ts", "libx264", {"x264-params": "interlaced=1:bff=1"}, True),
    "h264 in matroska": ("a.mkv", "libx264", {"x264-params": "interlaced=1:tff=1"}, True),
    "hevc": ("a.mp4", "libx265", {"x265-params": "interlace=tff:log-level=none"}, True),
    "prores": ("a.mov", "prores_ks", {}, True),
    "dv": ("a.avi", "dvvideo", {}, True),
    "progressive mpeg2": ("a.mpg", "mpeg2video", {}, False),
    "progressive mpeg4": ("a.mp4", "mpeg4", {}, False),
    "progressive h264": ("a.mp4", "libx264", {}, False),
    "progressive h264 in matroska": ("a.mkv", "libx264", {"profile": "high444"}, False),
    "progressive hevc": ("a.mp4", "libx265", {"x265-params": "log-level=none"}, False),
    "progressive prores": ("a.mov", "prores_ks", {}, False),
    "vp9": ("a.webm", "libvpx-vp9", {"deadline": "realtime"}, False),
}
PIXEL_FORMATS = {"prores_ks": "yuv422p10le", "dvvideo": "yuv420p"}


def drawn(number: int, hw: tuple[int, int]) -> Image:
    """Return a grey frame whose columns get brighter to the right and whose brightness tells its number."""
    ramp = np.linspace(0, 60, hw[1])[None, :, None] + 30 * number + 10
    return np.broadcast_to(ramp, (*hw, 3)).astype(np.uint8)


def make(path: Path, codec: str, options: dict[str, str], is_interlaced: bool, num_frames: int = NUM_FRAMES) -> Path:
    hw = (576, 720) if codec == "dvvideo" else SHAPE
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = hw
        stream.pix_fmt = PIXEL_FORMATS.get(codec, "yuv420p")
        if is_interlaced and codec != "dvvideo":
            stream.codec_context.flags |= INTERLACED_FLAGS
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(drawn(number, hw), format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def frames_of(path: Path) -> list[ImageSource]:
    return list(video_frames(VideoSource(str(path), path)))


@pytest.fixture
def opencv_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "has_pyav", lambda: False)


@pytest.mark.parametrize("kind", FILES)
def test_frames_of_any_codec_show_what_was_drawn(kind: str, tmp_path: Path, draw_video: Callable[..., Path]) -> None:
    frames_of(draw_video("before.mp4", num_frames=3, image_hw=SHAPE))  # its memory must not appear in the next video
    name, codec, options, is_field_video = FILES[kind]
    frames = frames_of(make(tmp_path / name, codec, options, is_field_video))
    assert [f.frame.index for f in frames if f.frame] == list(range(NUM_FRAMES))
    times_s = [f.frame.time_s for f in frames if f.frame and f.frame.time_s is not None]
    np.testing.assert_allclose(times_s, np.arange(NUM_FRAMES) / 25, atol=0.001)
    for number, frame in enumerate(frames):
        assert frame.pixels is not None
        wanted = drawn(number, frame.pixels.shape[:2]).astype(float)
        assert np.abs(frame.pixels - wanted).mean() < 6, number  # the next frame is 30 away
    assert [f.warnings for f in frames] == [()] * NUM_FRAMES


@pytest.mark.parametrize("kind", FILES)
def test_opencv_reader_refuses_interlaced_video_and_reads_any_other(
    kind: str, tmp_path: Path, opencv_only: None, draw_video: Callable[..., Path]
) -> None:
    frames_of(draw_video("before.mp4", num_frames=3, image_hw=SHAPE))
    name, codec, options, is_field_video = FILES[kind]
    path = make(tmp_path / name, codec, options, is_field_video)
    if is_field_video:
        with pytest.raises(MediaError, match=r"holds interlaced video, which .* install PyAV: pip install"):
            frames_of(path)
        return
    frames = frames_of(path)
    assert len(frames) == NUM_FRAMES
    for number, frame in enumerate(frames):
        assert frame.pixels is not None
        assert np.abs(frame.pixels - drawn(number, frame.pixels.shape[:2]).astype(float)).mean() < 6


def test_fields_of_an_interlaced_frame_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"x264-params": "interlaced=1:tff=1", "crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number in range(NUM_FRAMES):
            image = np.zeros((48, 64, 3), np.uint8)
            for field in (0, 1):  # a bar moves by 4 pixels from field to field
                left = 8 * number + 4 * field
                image[field::2, left : left + 12] = 255
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for frame in frames_of(path)[1:-1]:
        assert frame.pixels is not None
        image = frame.pixels[..., 0].astype(int)
        combs = np.abs(2 * image[1:-1] - image[:-2] - image[2:]).mean()  # rows that differ from both neighbours
        assert combs < 10  # 64 where the fields are woven


@pytest.mark.parametrize("fourcc", [b"avc1", b"hvc1", b"mpg2", b"FMP4", b"WVC1", b"apch", b"MJPG", b"VP90", bytes(4)])
def test_damaged_data_is_not_taken_for_interlaced_by_accident_and_never_fails(fourcc: bytes) -> None:
    random = np.random.default_rng(3)
    assert not is_interlaced(b"", fourcc)
    for size in (1, 7, 40):
        for _ in range(50):
            data = random.integers(0, 256, size, np.uint8).tobytes()
            assert is_interlaced(b"\x00\x00\x01" + data, fourcc) in (True, False)
            assert is_interlaced(data, fourcc) in (True, False)


def test_tags_of_dv_are_interlaced_and_vc1_tells_by_its_flag() -> None:
    assert is_interlaced(b"", b"dvsd")
    assert not is_interlaced(b"", b"VP90")
    header = "11" + "000" + "01" + "000" + "00000" + "0" + "0" * 24 + "0"
    for flag in "01":
        bits = int((header + flag).ljust(48, "0"), 2).to_bytes(6, "big")
        assert is_interlaced(b"\x00\x00\x01\x0f" + bits, b"WVC1") == (flag == "1")
