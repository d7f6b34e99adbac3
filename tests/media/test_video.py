"""Unusual videos: missing or wrong data in a file is reported with counts, and no frame is invented."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.errors import MediaError
from detector.media import video
from detector.media.sources import ImageSource, VideoSource
from detector.media.video import opencv_threads, read_header, video_frames


@pytest.fixture(params=["pyav", "opencv"], autouse=True)
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run each test with both readers; return the name of the present one."""
    if request.param == "pyav":
        pytest.importorskip("av")
    else:
        monkeypatch.setattr(video, "has_pyav", lambda: False)
    return str(request.param)


def frames_of(path: Path, **settings: int) -> list[ImageSource]:
    return list(video_frames(VideoSource(str(path), path), **settings))


def numbers(frames: list[ImageSource]) -> list[int]:
    """Return the numbers of the frames from their six bars."""
    pixels = [frame.pixels for frame in frames if frame.pixels is not None]
    middles = [(2 * bit + 1) * pixels[0].shape[1] // 12 for bit in range(6)]
    return [sum((image[20, x, 0] > 127) << bit for bit, x in enumerate(middles)) for image in pixels]


def times_s(frames: list[ImageSource]) -> list[float]:
    return [frame.frame.time_s for frame in frames if frame.frame is not None and frame.frame.time_s is not None]


def warnings(frames: list[ImageSource]) -> list[str]:
    return [warning for frame in frames for warning in frame.warnings]


def with_box(mp4: bytes, path: list[bytes], change: Callable[[bytes], bytes]) -> bytes:
    """Change the body of one of the boxes of an MP4; ISO/IEC 14496-12, 4.2."""
    out, start = b"", 0
    while start < len(mp4):
        size, kind = struct.unpack(">I4s", mp4[start : start + 8])
        body = mp4[start + 8 : start + size]
        if kind == path[0]:
            body = change(body) if len(path) == 1 else with_box(body, path[1:], change)
        out += struct.pack(">I4s", 8 + len(body), kind) + body
        start += size
    return out


def avi_frames(avi: bytes | bytearray) -> list[tuple[int, int]]:
    """Return start and length of the compressed frames of an AVI."""
    found, start = [], avi.find(b"movi") + 4
    while avi[start : start + 4] == b"00dc":
        length = struct.unpack("<I", avi[start + 4 : start + 8])[0]
        found.append((start + 8, length))
        start += 8 + length + length % 2
    return found


# --- intact files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["video.mp4", "video.avi", "video.mkv"])
def test_frames_are_in_order_with_their_numbers_and_times(name: str, draw_video: Callable[..., Path]) -> None:
    frames = frames_of(draw_video(name))
    assert numbers(frames) == list(range(60))
    assert [f.frame.index for f in frames if f.frame] == list(range(60))
    np.testing.assert_allclose(times_s(frames), np.arange(60) / 25, atol=1e-9)
    assert warnings(frames) == []
    assert {(f.frame.fps, f.frame.num_frames) for f in frames if f.frame} == {(25.0, 60)}
    assert frames[0].pixels is not None
    assert (frames[0].pixels.shape, frames[0].pixels.dtype) == ((48, 64, 3), np.uint8)


def test_colours_are_rgb(tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "red.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25, (32, 32))
    writer.write(np.full((32, 32, 3), (0, 0, 255), np.uint8))  # BGR
    writer.release()
    (frame,) = frames_of(tmp_path / "red.avi")
    assert frame.pixels is not None
    assert frame.pixels[16, 16, 0] > 240 > 20 > frame.pixels[16, 16, 2]
    (grey,) = frames_of(tmp_path / "red.avi", channels=1)
    assert grey.load(1).pixels.shape == (32, 32, 1)
    with pytest.raises(MediaError, match="expected a model of 1 or 3 channels for a video, got 4; use images instead"):
        frames_of(tmp_path / "red.avi", channels=4)


@pytest.mark.parametrize("stride", [2, 7, 100])
def test_stride_yields_every_nth_frame_with_its_own_number(stride: int, draw_video: Callable[..., Path]) -> None:
    frames = frames_of(draw_video(), stride=stride)
    assert numbers(frames) == list(range(0, 60, stride))
    np.testing.assert_allclose(times_s(frames), np.arange(0, 60, stride) / 25, atol=1e-9)
    assert warnings(frames) == []


def test_name_like_a_protocol_or_a_pattern_is_a_file(
    draw_video: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("concat:a|b.mp4", "http:x.mp4", "frame%02d.mp4", "späce #[1].mp4"):
        draw_video().rename(name)
        assert len(frames_of(Path(name))) == 60


def test_file_is_released_when_the_consumer_stops(draw_video: Callable[..., Path]) -> None:
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("open files are counted on Linux")
    path = draw_video()
    before = len(list(folder.iterdir()))
    for _ in range(5):
        frames = video_frames(VideoSource(str(path), path))
        next(frames)
        frames.close()
    assert len(list(folder.iterdir())) == before


def test_number_of_opencv_threads_is_restored() -> None:
    before = cv2.getNumThreads()
    with opencv_threads(1):
        assert cv2.getNumThreads() == 1
    assert cv2.getNumThreads() == before


# --- unusual files ----------------------------------------------------------------------------------------------------


def test_truncated_video_is_read_as_far_as_possible_and_reported(draw_video: Callable[..., Path]) -> None:  # row 63
    path = draw_video("video.avi")
    whole = path.read_bytes()
    path.write_bytes(whole[: sum(avi_frames(whole)[26])])
    frames = frames_of(path)
    assert numbers(frames) == list(range(27))
    assert warnings(frames[:-1]) == []
    assert warnings(frames) == [
        f"{path}: 27 of the 60 frames that its header promises could be read, the others are missing or damaged"
    ]
    assert len(warnings(frames_of(path, stride=5))) == 1


def test_frames_after_damaged_ones_are_read_and_damaged_frames_are_counted(  # row 64
    draw_video: Callable[..., Path],
) -> None:
    path = draw_video("video.avi")
    damaged = bytearray(path.read_bytes())
    for start, length in avi_frames(damaged)[20:24]:
        damaged[start : start + length] = bytes(length)
    path.write_bytes(damaged)
    frames = frames_of(path)
    assert numbers(frames) == [*range(20), *range(24, 60)]
    np.testing.assert_allclose(
        times_s(frames)[20:22], (24 / 25, 1.0)
    )  # true times, not frame numbers divided by the rate
    (warning,) = warnings(frames)
    assert warning.startswith(f"{path}: 56 of the 60 frames")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (lambda mp4: mp4[: mp4.find(b"moov") - 4], r"an MP4 without its index \(moov\)"),
        (lambda mp4: b"no video\n" * 40, "a text file"),
        (lambda mp4: b"", r"empty \(0 bytes\)"),
        (lambda mp4: bytes(range(256)) * 8, "damaged or in an unknown video format"),
    ],
)
def test_other_file_is_refused_with_the_reason(  # row 65
    content: Callable[[bytes], bytes], fault: str, draw_video: Callable[..., Path]
) -> None:
    path = draw_video()
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(MediaError, match=rf"video\.mp4 cannot be read as a video: it is {fault}") as caught:
        frames_of(path)
    assert caught.value.exit_code == 3


def test_missing_video_and_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    for name, words in (("none.mp4", "there is no such file"), ("folder.mp4", "it is a folder, not a video")):
        with pytest.raises(MediaError, match=words):
            frames_of(tmp_path / name)


def test_video_without_frames_is_refused(draw_video: Callable[..., Path]) -> None:  # row 66
    with pytest.raises(MediaError, match=r"video\.avi has no frame that can be read"):
        frames_of(draw_video("video.avi", num_frames=0))


@pytest.mark.parametrize(("rate", "scale"), [(90000, 1), (1000, 1), (1, 100)])
def test_implausible_rate_becomes_30_and_times_are_kept(  # row 67
    rate: int, scale: int, draw_video: Callable[..., Path]
) -> None:
    path = draw_video("video.avi", num_frames=5)
    avi = bytearray(path.read_bytes())
    struct.pack_into("<II", avi, avi.find(b"strh") + 28, scale, rate)
    path.write_bytes(avi)
    frames = frames_of(path)
    assert {f.frame.fps for f in frames if f.frame} == {30.0}
    np.testing.assert_allclose(times_s(frames), np.arange(5) * scale / rate)
    assert warnings(frames) == [
        f"{path} claims {rate / scale:g} frames per second: output plays at 30, records keep the times"
    ]


def test_variable_rate_keeps_its_true_times(draw_video: Callable[..., Path]) -> None:  # row 68
    path = draw_video()

    def uneven(body: bytes) -> bytes:
        delta = struct.unpack(">I", body[12:16])[0]
        runs = ((30, delta // 2), (10, 3 * delta), (20, 3 * delta // 4))  # the same duration
        return body[:4] + struct.pack(">I", len(runs)) + b"".join(struct.pack(">II", *run) for run in runs)

    path.write_bytes(with_box(path.read_bytes(), [b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts"], uneven))
    frames = frames_of(path)
    assert numbers(frames) == list(range(60))
    steps = np.diff(times_s(frames))
    np.testing.assert_allclose(steps, [0.02] * 30 + [0.12] * 10 + [0.03] * 19, atol=1e-6)
    (warning,) = warnings(frames)
    assert "has a variable frame rate" in warning
    assert "records keep the true times" in warning


def test_rotation_in_the_file_is_applied_once(draw_video: Callable[..., Path]) -> None:  # row 69
    path = draw_video(num_frames=3)
    quarter = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)  # ISO/IEC 14496-12, 8.3.2
    turn = with_box(path.read_bytes(), [b"moov", b"trak", b"tkhd"], lambda body: body[:40] + quarter + body[76:])
    path.write_bytes(turn)
    assert [f.pixels.shape for f in frames_of(path) if f.pixels is not None] == [(64, 48, 3)] * 3
    assert read_header(path).image_hw == (64, 48)


def test_implausible_frame_count_is_none(draw_video: Callable[..., Path], tmp_path: Path) -> None:  # row 70
    draw_video("a.mp4", num_frames=7)
    listed = tmp_path / "list.ffconcat"
    listed.write_text("ffconcat version 1.0\nfile a.mp4\nfile a.mp4\n")
    assert read_header(listed).num_frames is None
    frames = frames_of(listed)
    assert numbers(frames) == [*range(7), *range(7)]
    assert warnings(frames) == []
