"""Images as the frames of one video."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from detector.errors import ConfigError
from detector.media.frame_sequences import as_sequences, stem_of_frames
from detector.media.images import write_image
from detector.media.sources import ImageSource, Source, VideoSource, as_sources, find_sources
from detector.media.streams import frames_of


def write(folder: Path, names: Sequence[str]) -> Path:
    """Write a picture for each name, whose brightness is ten times its place."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(names):
        write_image(folder / name, np.full((6, 8, 3), 10 * place, np.uint8))
    return folder


def frames(source: Source, stride: int = 1) -> list[ImageSource]:
    return list(frames_of(source, stride=stride))


def only(given: object, fps: float | None = 25.0) -> VideoSource:
    (source,) = as_sequences(as_sources(given)[0], fps)
    assert isinstance(source, VideoSource)
    return source


def test_images_of_a_folder_are_the_frames_of_a_video_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    folder = write(tmp_path / "seq", ["f2.png", "f10.png", "f1.png", "f3.png"])
    (folder / "notes.txt").write_text("x")
    source = only(folder)
    assert (source.name, source.is_live) == (str(folder), False)
    assert [image.path.name for image in source.frames if image.path] == ["f1.png", "f2.png", "f3.png", "f10.png"]
    found = frames(source)
    assert [int(frame.load(3).pixels[0, 0, 0]) for frame in found] == [20, 0, 30, 10]
    assert {frame.name for frame in found} == {str(folder)}


# Names of files, and the numbers and warnings of their frames.
NUMBERS = {
    "consecutive": (["000001.png", "000002.png", "000003.png"], [0, 1, 2], None),
    "from any number": (["f_98.png", "f_99.png", "f_100.png"], [0, 1, 2], None),
    "every fifth": (["f0.png", "f5.png", "f10.png", "f15.png"], [0, 1, 2, 3], None),
    "one missing": (["f1.png", "f2.png", "f4.png"], [0, 1, 3], "1 of 4 frames are missing, the first is number 2"),
    "times of day": (["c_101010.png", "c_101159.png", "c_235900.png"], [0, 1, 2], "the numbers of the frames jump"),
    "no numbers": (["a.png", "b.png"], [0, 1], None),
    "several prefixes": (["a1.png", "b2.png"], [0, 1], None),
    "one number for two": (["a1.jpg", "a1.png"], [0, 1], None),
    "a single frame": (["f7.png"], [0], None),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_in_the_names_give_the_times(kind: str, tmp_path: Path) -> None:
    names, numbers, warning = NUMBERS[kind]
    found = frames(only(write(tmp_path / "seq", names), 10.0))
    origins = [frame.frame for frame in found if frame.frame is not None]
    assert [origin.index for origin in origins] == numbers
    assert [origin.time_s for origin in origins] == pytest.approx([number / 10 for number in numbers])
    assert {(origin.fps, origin.num_frames) for origin in origins} == {(10.0, numbers[-1] + 1)}
    warnings = [text for frame in found for text in frame.load(3).warnings]
    assert (warning is None and not warnings) or (warning is not None and warning in warnings[0])


def test_numbered_pattern_is_a_video_with_and_without_a_rate(tmp_path: Path) -> None:
    write(tmp_path, ["f_0001.png", "f_0002.png", "f_10000.png", "f_3.png", "g_0001.png"])
    pattern = str(tmp_path / "f_%04d.png")
    timed, untimed = only(pattern), only(pattern, None)
    assert [image.path.name for image in timed.frames if image.path] == ["f_0001.png", "f_0002.png", "f_10000.png"]
    assert [image.path for image in only(str(tmp_path / "f_%d.png")).frames][1:3] == [
        tmp_path / "f_0002.png",
        tmp_path / "f_3.png",
    ]
    assert frames(timed)[0].frame is not None
    first = frames(untimed)[0]
    assert first.frame is not None
    assert (first.frame.time_s, first.frame.fps) == (None, 30.0)
    assert "no rate is given: output plays at 30 frames per second; give --fps" in first.warnings[-1]
    write(tmp_path, ["f_%04d.png"])  # a file of that name comes first
    assert isinstance(find_sources(pattern)[0], ImageSource)


def test_stride_counts_numbers(tmp_path: Path) -> None:
    source = only(write(tmp_path / "seq", ["f0.png", "f1.png", "f3.png", "f4.png"]))
    assert [frame.frame.index for frame in frames(source, stride=2) if frame.frame] == [0, 4]


def test_each_folder_is_a_video_and_videos_stay(tmp_path: Path) -> None:
    for name in ("MOT-02/img1", "MOT-04/img1"):
        write(tmp_path / name, ["000001.jpg", "000002.jpg"])
    (tmp_path / "film.mp4").write_bytes(b"x")
    found = as_sequences(as_sources(tmp_path)[0], 30.0)
    assert [(s.name, len(s.frames)) for s in found if isinstance(s, VideoSource)] == [
        (str(tmp_path / "MOT-02/img1"), 2),
        (str(tmp_path / "MOT-04/img1"), 2),
        (str(tmp_path / "film.mp4"), 0),
    ]


def test_images_in_memory_keep_their_order() -> None:
    source = only([np.full((6, 8, 3), value, np.uint8) for value in (9, 3, 7)])
    assert [int(frame.load(3).pixels[0, 0, 0]) for frame in frames(source)] == [9, 3, 7]
    assert source.name == "frames"


def test_damaged_frame_is_an_error_of_its_own(tmp_path: Path) -> None:
    folder = write(tmp_path / "seq", ["f1.png", "f2.png", "f3.png"])
    (folder / "f2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    second = frames(only(folder))[1]
    with pytest.raises(Exception, match=r"f2\.png cannot be decoded"):
        second.load(3)


def test_stdin_takes_the_rate(tmp_path: Path) -> None:
    encoded = b"".join(path.read_bytes() for path in sorted(write(tmp_path, ["a.jpg", "b.jpg", "c.jpg"]).iterdir()))
    for fps, times in ((8.0, [0.0, 0.125, 0.25]), (None, [None] * 3)):
        found = list(frames_of(only("-", fps), stdin=io.BytesIO(encoded)))
        assert [frame.frame.time_s for frame in found if frame.frame] == times
        assert {frame.frame.fps for frame in found if frame.frame} == {fps or 30.0}


def test_rate_without_a_source_that_needs_it_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"fps: expected images or stdin, got film\.mp4, whose frames have times"):
        as_sequences([VideoSource("film.mp4", Path("film.mp4"))], 25.0)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a/seq.v1", "seq.v1"),
        ("MOT17-02/img1", "MOT17-02"),
        ("a/f_%04d.png", "f"),
        ("a/%06d.jpg", "a"),
        ("MOT17-02/img1/%06d.jpg", "MOT17-02"),
        ("frames", "frames"),
    ],
)
def test_results_of_frames_are_named_by_their_folder_or_pattern(name: str, stem: str) -> None:
    assert stem_of_frames(name) == stem
