from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.errors import ConfigError, MediaError
from detector.media.sources import VideoSource
from detector.media.video import read_header, video_frames
from detector.media.video_writer import CODECS, VideoWriter


def grey(level: int, image_hw: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.full((*image_hw, 3), level, np.uint8)


def read(path: Path) -> list[np.ndarray]:
    return [frame.load(3).pixels for frame in video_frames(VideoSource(str(path), path))]


@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec != "avc1"])
def test_written_video_is_read_back(codec: str, tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "out.mp4", 29.97, (48, 64), codec)
    for level in range(0, 200, 10):
        frame = grey(level)
        frame[:, 32:, 0] = 255  # RGB: the right half is reddish
        writer.write(frame)
    writer.close()
    writer.close()
    assert writer.path == tmp_path / f"out{CODECS[codec]}"
    frames = read(writer.path)
    assert [round(float(f[:, :28].mean()) / 10) for f in frames] == list(range(20))
    assert frames[0][24, 50, 0] > 200 > 90 > frames[0][24, 50, 2]
    assert read_header(writer.path).fps == pytest.approx(29.97, abs=0.04)  # WebM stores whole milliseconds
    assert writer.warnings == []


def test_missing_codec_falls_back_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # row 71
    monkeypatch.setitem(CODECS, "none", ".mkv")
    writer = VideoWriter(tmp_path / "out.mp4", 25, (48, 64), "none")
    writer.write(grey(9))
    writer.close()
    assert len(read(tmp_path / "out.mp4")) == 1
    assert writer.warnings == [f"{tmp_path / 'out.mp4'}: no encoder for none is available, mp4v is used instead"]
    with pytest.raises(ConfigError, match="expected a codec of mp4v, avc1, MJPG, VP90, none, got 'h265'"):
        VideoWriter(tmp_path / "x.mp4", 25, (48, 64), "h265")


def test_last_line_of_an_odd_side_is_repeated(tmp_path: Path) -> None:  # row 72
    frame = grey(40, (47, 63))
    frame[-1], frame[:, -1] = 200, 200
    writer = VideoWriter(tmp_path / "odd.mp4", 25, (47, 63), "MJPG")
    writer.write(frame)
    writer.close()
    (found,) = read(writer.path)
    assert found.shape == (48, 64, 3)
    assert writer.warnings == []
    assert writer.notes == [
        f"{tmp_path / 'odd.avi'}: codecs need even sides of at least 16, so frames of 63 x 47 are written as 64 x 48, "
        "with the last line or column repeated"
    ]
    assert abs(found[47, 10:60].astype(int) - 200).max() < 40
    assert abs(found[10:40, 63].astype(int) - 200).max() < 40
    assert abs(found[10:40, 10:50].astype(int) - 40).max() < 12


@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec != "avc1"])
@pytest.mark.parametrize("image_hw", [(1, 1), (4, 4), (2, 40), (33, 7)])
def test_tiny_frames_are_enlarged_and_nothing_is_printed(
    codec: str, image_hw: tuple[int, int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    writer = VideoWriter(tmp_path / "out.mp4", 25, image_hw, codec)
    for level in (40, 120, 200):
        writer.write(grey(level, image_hw))
    writer.close()
    found = read(writer.path)
    assert {frame.shape[:2] for frame in found} == {tuple(max(side + side % 2, 16) for side in image_hw)}
    assert [round(float(frame.mean()) / 40) for frame in found] == [1, 3, 5]
    assert capfd.readouterr() == ("", "")


def test_what_others_print_to_stderr_while_a_file_is_opened_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    opened = cv2.VideoWriter

    def printing(*arguments: object) -> object:
        os.write(2, b"OpenCV: FFMPEG: tag 0x30395056 is not supported\nwarning of another thread\n")
        return opened(*arguments)

    printing.fourcc = opened.fourcc  # type: ignore[attr-defined]
    monkeypatch.setattr(cv2, "VideoWriter", printing)
    VideoWriter(tmp_path / "out.mp4", 25, (48, 64)).close()
    assert capfd.readouterr().err == "warning of another thread\n"


def test_frame_of_another_size_is_fitted_in_with_one_warning(tmp_path: Path) -> None:  # row 72
    writer = VideoWriter(tmp_path / "out.mp4", 25, (48, 64))
    for image_hw in ((48, 64), (96, 64), (10, 10), (48, 64)):
        writer.write(grey(200, image_hw))
    writer.close()
    frames = read(writer.path)
    assert [f.shape for f in frames] == [(48, 64, 3)] * 4
    assert [bool(f[24, 2].mean() > 180) for f in frames] == [
        True,
        False,
        False,
        True,
    ]  # bars beside the narrower frame
    assert all(f[24, 32].mean() > 180 for f in frames)
    assert writer.warnings == [
        f"{writer.path}: a frame of 64 x 96 pixels is fitted into the size of the first, 64 x 48"
    ]


@pytest.mark.parametrize("codec", ["mp4v", "MJPG"])
def test_full_disk_is_an_error(codec: str, tmp_path: Path) -> None:  # row 73
    program = f"""
        import resource
        from pathlib import Path
        import cv2
        import numpy as np
        from detector.errors import MediaError
        from detector.media.video_writer import VideoWriter

        resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))
        writer = VideoWriter(Path({str(tmp_path / "full.mp4")!r}), 25, (96, 128), {codec!r})
        try:
            for seed in range(60):
                writer.write(np.random.default_rng(seed).integers(0, 256, (96, 128, 3), dtype=np.uint8))
            writer.close()
        except MediaError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert "check that the disk is not full" in done.stdout


def test_file_with_missing_frames_is_an_error(tmp_path: Path) -> None:  # row 73
    writer = VideoWriter(tmp_path / "out.mp4", 25, (48, 64))
    for _ in range(5):
        writer.write(grey(10))
    writer.num_frames += 1  # simulates a lost frame
    with pytest.raises(
        MediaError, match=r"out\.mp4: 6 frames were written, but the file holds 5; check that the disk is not full"
    ):
        writer.close()


def test_unwritable_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"out\.mp4 cannot be written as a video of 64 x 48 at 25 frames per second"):
        VideoWriter(tmp_path / "none/out.mp4", 25, (48, 64))
