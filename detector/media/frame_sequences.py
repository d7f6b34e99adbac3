"""Images that are the frames of one video: those of a folder, a list or a numbered pattern, or in memory."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from detector.errors import ConfigError
from detector.io.folders import absolute
from detector.media.frame_reader import DEFAULT_FPS, MAX_FPS, MIN_FPS
from detector.media.memory_images import ChannelOrder, require_channel_order
from detector.media.sources import (
    FrameOrigin,
    ImageSource,
    Source,
    VideoSource,
    as_sources,
    each_source,
    is_endless,
    require_videos,
)

_NUMBERED = re.compile(r"(.*?)([0-9]+)([^0-9]*)")  # the last number of a name
_MOT_FRAMES = "img1"  # name of the folder of frames below that of each sequence (motchallenge.net)


def require_fps(fps: float) -> None:
    """Reject a rate that no video has.

    Raises:
        ValueError: it is not within 0.1 to 500 frames per second.
    """
    if not MIN_FPS <= fps <= MAX_FPS:  # also true for NaN
        raise ValueError(f"expected fps of {MIN_FPS:g} to {MAX_FPS:g} frames per second, got {fps:g}")


def stream_sources(
    source: object, allow_url: bool, channel_order: ChannelOrder, fps: float | None, are_tracked: bool
) -> Sequence[Source] | Iterator[Source]:
    """Return what a source of any type gives one after the other; an endless one is read item by item.

    Args:
        source: what `as_sources` takes, or a generator without an end.
        allow_url: whether an address may be opened.
        channel_order: order of the channels of arrays.
        fps: as `as_sequences` takes it.
        are_tracked: whether every source has to be a video.

    Raises:
        ConfigError: the rate or tracking does not suit the source, or an address is not allowed.
    """
    if not is_endless(source):
        sources = as_sequences(as_sources(source, allow_url, channel_order)[0], fps)
        if are_tracked:
            require_videos(sources)
        return sources
    require_channel_order(channel_order)
    if fps is not None:
        raise ConfigError("fps: expected images or stdin, got a generator, which may have no end; give a list")
    return each_source(source, allow_url, channel_order)


def as_sequences(sources: Sequence[Source], fps: float | None) -> list[Source]:
    """Return sources with a rate for frames that carry no times: the images of each folder become one video.

    The images of a folder are sorted by name, numbers by their value; images in memory keep their order.

    Args:
        sources: any sources.
        fps: frames per second, or None to return the sources as they are.

    Raises:
        ConfigError: no source needs a rate.
    """
    if fps is None:
        return list(sources)
    found: list[Source] = []
    folders: dict[str, list[ImageSource]] = {}
    places: dict[str, int] = {}
    for source in sources:
        if isinstance(source, VideoSource):
            found.append(replace(source, fps=fps) if source.has_no_times else source)
            continue
        name = "frames" if source.path is None else str(source.path.parent)
        if name not in folders:
            folders[name], places[name] = [], len(found)
            found.append(source)  # replaced below
        folders[name].append(source)
    for name, images in folders.items():
        frames = tuple(sorted(images, key=lambda image: _natural(image.path)))
        found[places[name]] = VideoSource(name, frames=frames, fps=fps)
    if not any(isinstance(source, VideoSource) and source.has_no_times for source in found):
        raise ConfigError(f"fps: expected images or stdin, got {found[0].name}, whose frames have times; leave it out")
    return found


def _natural(path: Path | None) -> list[int | str]:
    """Return a key by which frame2 comes before frame10: texts and numbers in turn."""
    parts = re.split(r"([0-9]+)", path.name if path is not None else "")
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def stem_of_frames(name: str) -> str:
    """Return a file name for the video of a folder or pattern of frames."""
    path = absolute(Path(name))
    if "%" in path.name:
        stem = re.sub(r"[-_. ]*%0?[0-9]?d", "", path.stem)
        path = path.with_name(stem) if stem else path.parent
    return path.parent.name if path.name == _MOT_FRAMES else path.name


def sequence_frames(source: VideoSource, stride: int = 1) -> Generator[ImageSource, None, None]:
    """Yield every `stride`-th frame of a sequence, each with its number and time; it is read when it is loaded.

    The numbers in the names count, so that missing files leave gaps in numbers and times. Names that count in steps, as
    of every fifth frame, have no gaps.
    """
    places, warnings = _places(source)
    fps = source.fps or DEFAULT_FPS
    if source.fps is None:
        warnings.append(f"{source.name}: no rate is given: output plays at {fps:g} frames per second; give --fps")
    for place, image in zip(places, source.frames, strict=True):
        if place % stride:
            continue
        origin = FrameOrigin(source, place, place / source.fps if source.fps else None, fps, places[-1] + 1)
        yield replace(image, name=source.name, frame=origin, warnings=(*warnings, *image.warnings))
        warnings = []


def _places(source: VideoSource) -> tuple[list[int], list[str]]:
    """Return the number of each frame, from 0, and warnings."""
    num = len(source.frames)
    in_order = list(range(num))
    matches = [_NUMBERED.fullmatch(image.path.stem) if image.path is not None else None for image in source.frames]
    numbers = [int(match[2]) for match in matches if match is not None]
    if len({match and (match[1], match[3]) for match in matches}) > 1 or len(numbers) < num:
        return in_order, []
    steps = [later - earlier for earlier, later in itertools.pairwise(numbers)]
    if not steps or min(steps) < 1:
        return in_order, []
    step = math.gcd(*steps)
    places = [(number - numbers[0]) // step for number in numbers]
    num_missing = places[-1] + 1 - num
    if not num_missing:
        return places, []
    if num_missing > num:  # names such as times of day
        return in_order, [
            f"{source.name}: the numbers of the frames jump, so they are counted in the order of their names"
        ]
    first = next(place for place, number in enumerate(places) if place != number)
    return places, [f"{source.name}: {num_missing} of {places[-1] + 1} frames are missing, the first is number {first}"]
