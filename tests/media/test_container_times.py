"""Sound files whose times do not begin at 0, or whose container holds more frames than are shown."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from detector.errors import MediaError
from detector.media import video
from detector.media.movie_duration import movie_duration_s
from detector.media.sources import ImageSource, VideoSource
from detector.media.video import video_frames

av = pytest.importorskip("av")


@pytest.fixture(params=["pyav", "opencv"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "opencv":
        monkeypatch.setattr(video, "has_pyav", lambda: False)
    return str(request.param)


def write(path: Path, num_frames: int = 30, start: int = 0, codec: str = "mpeg4", rotation: int = 0) -> Path:
    with av.open(str(path), "w", options={"use_editlist": "1"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=25, options={"x264-params": "log-level=none"})
        stream.height, stream.width, stream.pix_fmt, stream.time_base = 48, 64, "yuv420p", Fraction(1, 25)
        stream.codec_context.gop_size = 10
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(num_frames):
            image = np.full((48, 64, 3), 8 * number + 4, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            frame.pts = start + number
            frame.time_base = Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def trimmed(source: Path, target: Path, first: int) -> Path:
    """Copy a video from a frame on without coding it again: packets before are kept for the decoder, but not shown."""
    with av.open(str(source)) as given, av.open(str(target), "w", options={"use_editlist": "1"}) as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(given.streams.video[0]):
            if packet.size:
                step = Fraction(1, 25) / packet.time_base
                packet.pts -= int(first * step)
                packet.dts -= int(first * step)
                packet.stream = stream
                container.mux(packet)
    return target


def frames_of(path: Path) -> list[ImageSource]:
    return list(video_frames(VideoSource(str(path), path)))


def times_s(frames: list[ImageSource]) -> list[float]:
    return [f.frame.time_s for f in frames if f.frame and f.frame.time_s is not None]


def test_video_trimmed_by_an_edit_list_is_whole(reader: str, tmp_path: Path) -> None:
    path = trimmed(write(tmp_path / "whole.mp4"), tmp_path / "cut.mp4", 4)
    assert movie_duration_s(path) == pytest.approx(26 / 25)
    frames = frames_of(path)
    assert [f.pixels[24, 32, 0] // 8 for f in frames if f.pixels is not None][::25] == [4, 29]
    assert len(frames) == 26
    assert [f.warnings for f in frames] == [()] * 26
    np.testing.assert_allclose(times_s(frames), np.arange(26) / 25, atol=1e-6)


@pytest.mark.parametrize("name", ["late.mkv", "late.mp4", "late.m2ts"])
def test_video_whose_time_starts_late_is_whole(reader: str, name: str, tmp_path: Path) -> None:
    frames = frames_of(write(tmp_path / name, start=125))
    assert len(frames) == 30
    assert [f.warnings for f in frames] == [()] * 30
    np.testing.assert_allclose(times_s(frames), np.arange(30) / 25, atol=0.0011)


@pytest.mark.parametrize("name", ["cut.mkv", "cut.mp4"])
def test_truncated_video_is_still_reported(reader: str, name: str, tmp_path: Path) -> None:
    path = write(tmp_path / ("whole" + Path(name).suffix), start=25)
    data = path.read_bytes()
    if path.suffix == ".mp4":  # the index lies at the end: some frames in front of it are lost
        start = data.find(b"mdat")
        data = data[: start + 300] + bytes(300) + data[start + 600 :]
    else:
        data = data[: len(data) * 2 // 3]
    (tmp_path / name).write_bytes(data)
    frames = frames_of(tmp_path / name)
    assert len(frames) < 30
    assert any("could be read, the others are missing or damaged" in w for f in frames for w in f.warnings)


def test_rotation_of_all_quarters_is_applied(reader: str, tmp_path: Path) -> None:
    for rotation in (90, 180, 270):
        frames = frames_of(write(tmp_path / f"{rotation}.mp4", num_frames=2, rotation=rotation))
        assert frames[0].pixels is not None
        assert frames[0].pixels.shape == ((48, 64, 3) if rotation == 180 else (64, 48, 3))


# Text in a file that names its codec, and the name of no codec at all.
UNKNOWN = {"a.mkv": (b"V_MPEG4/ISO/ASP", b"V_FANCYCODEC/99"), "a.avi": (b"FMP4", b"ZQ77")}


@pytest.mark.parametrize("name", UNKNOWN)
def test_codec_without_a_decoder_is_named(reader: str, name: str, tmp_path: Path) -> None:
    path, (known, unknown) = write(tmp_path / name), UNKNOWN[name]
    path.write_bytes(path.read_bytes().replace(known, unknown))
    with pytest.raises(MediaError, match=f"no decoder for its codec '{unknown.decode()}'; (convert|install PyAV)"):
        frames_of(path)


def test_av1_is_read_or_named(reader: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", num_frames=3, codec="libsvtav1")
    if reader == "pyav":
        assert len(frames_of(path)) == 3
        return
    with pytest.raises(MediaError, match=r"it is AV1, for which OpenCV has no decoder; install PyAV"):
        frames_of(path)
