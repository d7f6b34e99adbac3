"""Files whose content tells that they are videos."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from detector.media.images import write_image
from detector.media.sources import ImageSource, VideoSource, as_sources, find_sources
from detector.media.video_content import holds_video

av = pytest.importorskip("av")

CONTAINERS = {
    "mp4": "mpeg4", "mov": "mpeg4", "matroska": "mpeg4", "webm": "libvpx", "avi": "mpeg4", "mpegts": "mpeg2video",
    "vob": "mpeg2video", "flv": "flv1", "asf": "msmpeg4v3", "ogg": "libtheora", "ivf": "libvpx", "mxf": "mpeg2video",
    "h264": "libx264", "mpeg2video": "mpeg2video", "yuv4mpegpipe": "wrapped_avframe", "hevc": "libx265",
    "3gp": "mpeg4", "rm": "rv10",
}  # fmt: skip


def write(path: Path, container: str, codec: str) -> Path:
    with av.open(str(path), "w", format=container) as file:
        quiet = {f"{codec.removeprefix('lib')}-params": "log-level=none"} if codec in ("libx264", "libx265") else {}
        stream = file.add_stream(codec, rate=25, options=quiet)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number in range(5):
            image = np.full((48, 64, 3), 40 * number, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")))
        file.mux(stream.encode())
    return path


@pytest.mark.parametrize("container", CONTAINERS)
def test_video_without_suffix_is_recognised(container: str, tmp_path: Path) -> None:
    if CONTAINERS[container] not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no encoder {CONTAINERS[container]}")
    path = write(tmp_path / "video", container, CONTAINERS[container])
    assert holds_video(path)
    for given in (path, [path], tmp_path, f"{tmp_path}/*"):
        (source,) = as_sources(given)[0]
        assert isinstance(source, VideoSource)


def test_ts_is_a_video_or_typescript_by_its_content(tmp_path: Path) -> None:
    write(tmp_path / "video.ts", "mpegts", "mpeg2video")
    (tmp_path / "code.ts").write_text("G" + "export const x = 1;\n" * 100)
    assert [source.name for source in find_sources(tmp_path)] == [str(tmp_path / "video.ts")]
    assert isinstance(find_sources(tmp_path / "code.ts")[0], ImageSource)


def test_other_suffix_of_a_named_video_does_not_matter(draw_video: Callable[..., Path], tmp_path: Path) -> None:
    shutil.move(draw_video(), tmp_path / "recording.bin")
    assert isinstance(find_sources(tmp_path / "recording.bin")[0], VideoSource)


def test_images_and_other_files_are_no_videos(tmp_path: Path) -> None:
    heads = [b"", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"\0\0\0\x20ftypavif", b"\0\0\0\x18ftypheic", b"%PDF-1.7", b"PK\3\4"]
    heads += [b"\x7fELF", b"#!/bin/sh\n", b"ref: refs/heads/main\n", bytes(1000), b"\xff" * 1000, b"G" * 20]
    for number, head in enumerate(heads):
        (tmp_path / f"f{number}").write_bytes(head)
        assert not holds_video(tmp_path / f"f{number}"), head
    for suffix in (".png", ".jpg", ".bmp", ".tiff", ".ppm"):
        write_image(tmp_path / f"x{suffix}", np.zeros((4, 4, 3), np.uint8))
        assert not holds_video(tmp_path / f"x{suffix}"), suffix
    assert not holds_video(tmp_path)
    assert not holds_video(tmp_path / "none")
