"""Animated images are read as videos."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detector.errors import MediaError
from detector.media.sources import ImageSource, VideoSource, as_sources, find_sources, require_images
from detector.media.streams import frames_of

FORMATS: dict[str, dict[str, Any]] = {
    "a.gif": {},
    "a.png": {},
    "a.apng": {"format": "PNG"},
    "a.webp": {"lossless": True},
}
COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250)]


def write(path: Path, durations_ms: Any = 40, num_frames: int = 5, **settings: Any) -> Path:
    """Write an animation in which a square moves to the right, so that each frame depends on the one before."""
    images = []
    for number in range(num_frames):
        pixels = np.full((20, 60, 3), 10, np.uint8)
        pixels[5:15, 10 * number : 10 * number + 10] = COLOURS[number % len(COLOURS)]
        images.append(Image.fromarray(pixels))
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations_ms, **settings)
    return path


def frames(path: Path) -> list[ImageSource]:
    (source,) = find_sources(path)
    assert isinstance(source, VideoSource)
    return list(frames_of(source))


@pytest.mark.parametrize("name", FORMATS)
def test_animation_that_is_named_alone_gives_all_frames_with_their_times(name: str, tmp_path: Path) -> None:
    found = frames(write(tmp_path / name, [40, 40, 40, 80, 40], **FORMATS[name]))
    origins = [frame.frame for frame in found if frame.frame is not None]
    assert [origin.time_s for origin in origins] == pytest.approx([0, 0.04, 0.08, 0.12, 0.2])
    assert {(round(origin.fps, 2), origin.num_frames) for origin in origins} == {(20.83, 5)}
    for number, frame in enumerate(found):
        assert frame.pixels is not None
        np.testing.assert_allclose(frame.pixels[10, 10 * number + 5], COLOURS[number], atol=4)
        np.testing.assert_allclose(frame.pixels[10, (10 * number + 25) % 60], 10, atol=4)


def test_still_image_before_an_animation_is_not_a_frame_of_it(tmp_path: Path) -> None:
    found = frames(write(tmp_path / "a.png", default_image=True))
    assert [int(np.argmax(frame.pixels[10, :, 1])) // 10 for frame in found[:1] if frame.pixels is not None] == [1]
    assert len(found) == 4


def test_durations_that_browsers_ignore_count_a_tenth_of_a_second(tmp_path: Path) -> None:
    assert [frame.frame.time_s for frame in frames(write(tmp_path / "a.gif", 10))[:3] if frame.frame] == [0, 0.1, 0.2]


@pytest.mark.parametrize("name", FORMATS)
def test_animation_among_others_stays_one_image(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, **FORMATS[name])
    for given in ([path], tmp_path, f"{tmp_path}/a.*"):
        (source,) = as_sources(given)[0]
        assert isinstance(source, ImageSource)
        assert "has more than one frame, only the first is used" in source.load(3).warnings[0]
    (image,) = require_images(as_sources(path)[0], "a classifier")
    assert image.path == path


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_still_images_are_images_whatever_their_format(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, num_frames=1)
    assert isinstance(find_sources(path)[0], ImageSource)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_animation_is_reported(name: str, share: float, tmp_path: Path) -> None:
    path = write(tmp_path / name, **FORMATS[name])
    os.truncate(path, int(share * path.stat().st_size))
    source = VideoSource(str(path), path)
    found = list(frames_of(source))
    assert found[-1].error or found[-1].warnings or len(found) < 5
    assert all(frame.error is None or "Traceback" not in frame.error for frame in found)


def test_animation_without_a_single_frame_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(b"GIF89a" + bytes(8))
    with pytest.raises(MediaError, match="it is a GIF that claims 0 x 0 pixels"):
        raise_error(VideoSource("a.gif", tmp_path / "a.gif"))


def raise_error(source: VideoSource) -> None:
    (frame,) = frames_of(source)
    frame.load(3)
