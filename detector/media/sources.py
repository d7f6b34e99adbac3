"""Sources of images: files, videos, cameras, streams, stdin, or pixels in memory.

A source is only named here; `detector.media.video` and `detector.media.streams` open those with frames.
"""

from __future__ import annotations

import glob
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias, TypeGuard

from detector.errors import ConfigError, DatasetError, MediaError
from detector.io import remote
from detector.io.addresses import PACKAGES, address_of, require_plain_address
from detector.io.folders import files_below, hint_for_missing
from detector.io.tar_members import list_members
from detector.media.images import IMAGE_SUFFIXES, LoadedImage, load_encoded, load_image, with_channels
from detector.media.memory_images import ChannelOrder, pixels_of, require_channel_order
from detector.media.video_content import holds_animation, holds_video
from detector.media.web_images import WEB_SCHEMES, fetch_picture, kind_of_content
from detector.structures.letterbox import Image

# Suffixes, in lower case, of video files. Not .ts, which is TypeScript as often: its content decides.
VIDEO_SUFFIXES: frozenset[str] = frozenset(
    (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv", ".mts", ".m2ts")
)
# FFmpeg has many more, some of which read files; cameras and web servers use these.
URL_SCHEMES = (*WEB_SCHEMES, "rtsp", "rtsps")
_UNCERTAIN_SUFFIXES = ("", ".ts")
STDIN = "-"
_BYTES = (bytes, bytearray, memoryview)
_BINARY_FILES = (io.RawIOBase, io.BufferedIOBase)  # open(path, 'rb') and io.BytesIO; both are iterables of lines
# A folder with one of these holds pictures that training, evaluation or prediction has drawn.
_RESULT_FILES = (
    *("weights/best.safetensors", "weights/last.safetensors", "metrics.json"),
    *("predictions.json", "predictions.jsonl", "predictions.csv"),
)
_CAMERA = re.compile(r"(?:camera:)?(\d{1,4})")
_URL = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*)://(?:[^/?#]*@)?(?P<host>[^/?#]*)(?P<path>[^?#]*)(?P<rest>.*)")


@dataclass(frozen=True)
class VideoSource:
    """Source of frames. Exactly one of `path`, `url`, `camera` and `frames` is set; none for stdin.

    Attributes:
        name: its path or address without password, for reports.
        path: the video file.
        url: the address of a stream, with its scheme.
        camera: the index of a camera of this machine.
        frames: the images that are its frames, in order (`detector.media.frame_sequences`).
        fps: frames per second of images and stdin, which carry no times; None if it is not known.
    """

    name: str
    path: Path | None = None
    url: str | None = field(default=None, repr=False)  # it may hold a password
    camera: int | None = None
    frames: tuple[ImageSource, ...] = field(default=(), repr=False)
    fps: float | None = None

    @property
    def has_no_times(self) -> bool:
        """True for frames without times: images or stdin."""
        return self.path is None and self.url is None and self.camera is None

    @property
    def is_live(self) -> bool:
        """True for a camera or a stream, whose frames do not wait; false for a video file on a web server."""
        if self.url is not None and (parts := _URL.fullmatch(self.url)) is not None:
            return parts["scheme"].lower().startswith("rtsp") or not _is_video(Path(parts["path"]))
        return self.camera is not None


@dataclass(frozen=True)
class FrameOrigin:
    """Position of an image in a video.

    Attributes:
        video: the video.
        index: number of the frame, from 0, among those that could be read.
        time_s: its presentation time in seconds; for a live source, the time since its first frame by this machine's
            clock; None if frames carry no time (stdin).
        fps: frames per second to play the video at; 30 if unknown.
        num_frames: number of frames according to the video, or None.
    """

    video: VideoSource
    index: int
    time_s: float | None
    fps: float
    num_frames: int | None = None

    @property
    def moment_s(self) -> float:
        """Its time in seconds, or the one that follows from its number."""
        return self.index / self.fps if self.time_s is None else self.time_s


@dataclass(frozen=True)
class ImageSource:
    """Source of one image.

    Attributes:
        name: its path, or a number if it has none, for reports.
        path: the file it is read from, or None if it is in memory.
        image_id: its id in an annotation file, or None.
        pixels: the image itself, uint8 (H, W, C), RGB if C is 3, or None.
        listed_hw: height and width according to the annotation file, or None.
        encoded: the bytes of its file if they are in memory and `pixels` is None.
        url: its address on a web server, from which it is loaded, or None.
        frame: its position in the video, or None.
        warnings: oddities of the video up to here, a sentence each.
        error: the reason why there is nothing to read, or None.
    """

    name: str
    path: Path | None = None
    image_id: int | None = None
    pixels: Image | None = None
    listed_hw: tuple[int, int] | None = None
    encoded: bytes | None = field(default=None, repr=False)
    url: str | None = field(default=None, repr=False)  # it may hold a password
    frame: FrameOrigin | None = None
    warnings: tuple[str, ...] = ()
    error: str | None = None

    def load(self, channels: int) -> LoadedImage:
        """Return the image with `channels` planes and its oddities.

        Raises:
            MediaError: the file cannot be read or does not have the listed size, or the pixels in memory have a number
                of channels that cannot be converted.
        """
        if self.error is not None:
            raise MediaError(self.error)
        if self.pixels is None:
            if self.encoded is not None:
                name = self.name if self.frame is None else f"{self.name} image {self.frame.index}"
                return load_encoded(name, self.encoded, channels)
            if self.url is not None:
                return load_encoded(self.name, fetch_picture(self.url, self.name), channels)
            if self.path is None:
                raise MediaError(f"{self.name}: no path and no pixels to read")
            loaded = load_image(self.path, channels, self.listed_hw)
            return replace(loaded, warnings=(*self.warnings, *loaded.warnings)) if self.warnings else loaded
        pixels = with_channels(self.pixels, channels)
        if pixels is None:
            raise MediaError(
                f"{self.name}: expected an image of {channels} channels, got {self.pixels.shape[2]}; convert it"
            )
        return LoadedImage(pixels, (pixels.shape[0], pixels.shape[1]), self.warnings)


Source: TypeAlias = "ImageSource | VideoSource"


def find_sources(source: str | Path, allow_url: bool = False, is_alone: bool = True) -> list[Source]:
    """Return the sources that a word names: a file, folder, glob, pattern, `.txt` list, camera, URL or stdin.

    An address at s3://, gs:// or hf:// gives the image, or the images below it.

    A folder or glob gives its images and videos sorted by name; links to folders are followed, and folders of runs and
    results below a folder, whose pictures have boxes drawn on them, are left out. A `.tar` archive, and a folder or
    glob of archives only, gives the images in it, which are read where they lie. A relative path in a list file starts
    from the folder of that file; a line may also be a camera or URL. An animated image is a video if it is named alone,
    else an image. A pattern such as `f_%04d.png` gives one video. A camera is `camera:0`, or `0` if
    no file has that name; stdin is `-`.

    Args:
        source: the word.
        allow_url: true if the network may be used for an address of `URL_SCHEMES`.
        is_alone: false if other sources come with it.

    Raises:
        MediaError: nothing is there.
        ConfigError: an address without `allow_url`, or of another scheme.
    """
    text, path = str(source), Path(source)
    if not text:  # as a path, this would be the current folder
        raise MediaError("expected an image, video or folder, got an empty text; give its path")
    if isinstance(source, str) and (addressed := _addressed(text, allow_url)) is not None:
        return addressed
    if os.path.isdir(path):  # unlike a method of Path, it does not raise for a name that is too long
        files = _files_of(files_below(path))
        found: list[Source] = [_file(p) for p in _without_results(files, path)]
        if not files:
            found = [each for p in files_below(path) if _is_shard(p) for each in _images_in(p)]
        expected = "an image or video" + (" that no run has drawn (name such a folder itself)" if files else "")
    elif os.path.isfile(path) or os.path.islink(path):
        named = VideoSource(text, path) if is_alone and holds_animation(path) else _file(path)
        found = _listed(path, allow_url) if path.suffix.lower() == ".txt" else [named]
        found = list(_images_in(path)) if _is_shard(path) else found
        expected = "an image in the archive" if _is_shard(path) else "a line with a path"
    elif (numbered := _numbered_frames(text)) is not None:
        return [numbered]
    elif glob.has_magic(text):
        found = [_file(p) for p in _matching(text)]
        found = found or [each for p in sorted(map(Path, glob.iglob(text))) if _is_shard(p) for each in _images_in(p)]
        expected = "a matching image or video"
    else:
        if os.path.exists(path):
            raise MediaError(f"{text} cannot be read: it is a pipe or a device; name a file, or - for frames on stdin")
        hint = hint_for_missing(path)
        raise MediaError(f"{text}: no such image, video, folder, glob, list file or camera{hint}")
    if not found:
        raise MediaError(f"{text}: expected {expected}, got none; check the path")
    return found


def can_be_source(text: str) -> bool:
    """Tell whether a word is a source by what exists or by its form; an image with a known suffix may be missing."""
    is_file_name = Path(text).suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES, ".txt")
    is_stream = text == STDIN or _CAMERA.fullmatch(text) is not None or _URL.fullmatch(text) is not None
    return os.path.lexists(text) or is_file_name or glob.has_magic(text) or is_stream


def _stream(text: str, allow_url: bool) -> VideoSource | None:
    """Return the camera, address or stdin that a word stands for; None if it is a path."""
    if text == STDIN:
        return VideoSource("stdin")
    camera = _CAMERA.fullmatch(text)
    if camera is not None and not os.path.exists(text):
        return VideoSource(f"camera:{int(camera[1])}", camera=int(camera[1]))
    parts = _URL.fullmatch(text)
    if parts is None:
        return None
    name = f"{parts['scheme']}://{parts['host']}{parts['path']}{parts['rest']}"
    if parts["scheme"].lower() not in URL_SCHEMES or not parts["host"]:
        known = ", ".join((*URL_SCHEMES, *PACKAGES))
        raise ConfigError(f"{name}: expected an address of {known}, got {parts['scheme']}://")
    if not allow_url:
        raise ConfigError(f"{name}: this would use the network; allow it by --allow-url (in Python: allow_url=True)")
    return VideoSource(name, url=text)


def _addressed(text: str, allow_url: bool) -> list[Source] | None:
    """Return the camera, stream or stdin that a word stands for, or the images at an address; None if it is a path."""
    scheme, mark, _ = text.partition("://")
    if not mark or scheme not in PACKAGES:
        stream = _stream(text, allow_url)
        return None if stream is None else [stream]
    require_plain_address(text)
    if not allow_url:
        raise ConfigError(f"{text}: this would use the network; allow it by --allow-url (in Python: allow_url=True)")
    root = Path(text)
    remote.permit(root, None)  # each image is read once
    found = [path for path in remote.files_below(root) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        raise MediaError(f"{text}: expected an image or a folder of images, got none; check the address")
    return [ImageSource(address_of(path) or str(path), path) for path in found]


def _numbered_frames(pattern: str) -> VideoSource | None:
    """Return the files of a numbered pattern such as `f_%04d.png`, sorted by number; None if none exists."""
    folder, name = os.path.split(pattern)
    parts = re.fullmatch(r"([^%]*)%0?([1-9]?)d([^%]*)", name)
    if parts is None or not os.path.isdir(folder or "."):
        return None
    digits = f"[0-9]{{{parts[2] or 1},}}"
    matching = re.compile(f"{re.escape(parts[1])}({digits}){re.escape(parts[3])}")
    found = {int(match[1]): entry for entry in os.listdir(folder or ".") if (match := matching.fullmatch(entry))}
    paths = [Path(folder, found[number]) for number in sorted(found)]
    return VideoSource(pattern, frames=tuple(ImageSource(str(path), path) for path in paths)) if paths else None


def _matching(pattern: str) -> list[Path]:
    """Return the images and videos that match a pattern.

    Brackets of a folder that exists are part of its name, and so are all brackets where nothing matches otherwise.
    """
    parts = Path(pattern).parts
    literal = pattern
    for num in range(len(parts) - 1, 0, -1):
        if os.path.isdir(folder := os.path.join(*parts[:num])):
            literal = os.path.join(glob.escape(folder), *parts[num:])
            break
    found: list[Path] = []
    for each in (literal, pattern.replace("[", "[[]")):
        found = found or _files_of(Path(p) for p in glob.iglob(each, recursive=True))
    return found


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _is_shard(path: Path) -> bool:
    return path.suffix.lower() == ".tar"


def _images_in(shard: Path) -> Iterator[Source]:
    """Yield the images of a tar archive, and the reason why it cannot be read to its end as a source of its own."""
    try:
        for member in list_members(shard):
            if Path(member.name).suffix.lower() in IMAGE_SUFFIXES:
                yield ImageSource(str(member.path), member.path)
    except DatasetError as error:
        yield ImageSource(str(shard), error=str(error))


def _file(path: Path) -> Source:
    is_known = path.suffix.lower() in IMAGE_SUFFIXES
    is_video = _is_video(path) or (not is_known and holds_video(path))
    return VideoSource(str(path), path) if is_video else ImageSource(str(path), path)


def _files_of(paths: Iterable[Path]) -> list[Path]:
    suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(paths, key=lambda p: (len(p.parts), p)):  # a glob goes around a loop of links many times
        is_uncertain = path.suffix.lower() in _UNCERTAIN_SUFFIXES
        if (holds_video(path) if is_uncertain else path.suffix.lower() in suffixes) and not os.path.isdir(path):
            found.setdefault((os.path.realpath(path.parent), path.name), path)
    return sorted(found.values())


def _without_results(files: Iterable[Path], root: Path) -> Iterator[Path]:
    """Yield the files that are not in the folder of a run or of results below a folder."""
    holds_results: dict[Path, bool] = {root: False}

    def is_result(folder: Path) -> bool:
        if folder not in holds_results:
            is_own = any(os.path.isfile(folder / name) for name in _RESULT_FILES)
            holds_results[folder] = is_own or is_result(folder.parent)
        return holds_results[folder]

    return (path for path in files if not is_result(path.parent))


def _listed(path: Path, allow_url: bool) -> list[Source]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MediaError(f"{path}: expected a list of image paths, got a file that is not text: {error}") from error
    words = [line.strip() for line in lines if line.strip()]
    return [each for w in words for each in _addressed(w, allow_url) or [_file(path.parent / w)]]


def as_sources(
    given: object, allow_url: bool = False, channel_order: ChannelOrder = "rgb"
) -> tuple[list[Source], bool]:
    """Return the sources of anything that the Python interface takes, and true if it is a single image.

    An address of a web server is asked for the type of its content, unless it names a video: a picture is an image, all
    else a stream.

    Args:
        given: a path or word as `find_sources` takes it, pixels as `pixels_of` takes them, the bytes of an image file,
            or an iterable of these, in which a missing file fails only when it is read.
        allow_url: true if the network may be used for an address.
        channel_order: the order of the colours of arrays and tensors.

    Raises:
        MediaError: something else, or nothing behind a path.
        ConfigError: an address that is not allowed, or another order.
    """
    require_channel_order(channel_order)
    if isinstance(given, (str, Path)):
        found = [_told(source) for source in find_sources(given, allow_url)]
        (first, *others) = found
        is_single = isinstance(first, ImageSource) and not others and (first.url or first.path) in (given, Path(given))
        return found, is_single
    if _is_collection(given):
        return list(each_source(given, allow_url, channel_order)), False
    return list(_one(given, "0", allow_url, channel_order)), True


def each_source(
    given: Iterable[object], allow_url: bool = False, channel_order: ChannelOrder = "rgb"
) -> Iterator[Source]:
    """Yield the sources of the items of an iterable, each when it is asked for, as `as_sources` does.

    Raises:
        MediaError: an item is neither a path nor an image.
        ConfigError: an address that is not allowed.
    """
    for number, item in enumerate(given):
        yield from map(_told, _one(item, str(number), allow_url, channel_order))


def is_endless(given: object) -> TypeGuard[Iterable[object]]:
    """Return true for an iterable without a length, such as a generator, which may have no end."""
    return _is_collection(given) and not isinstance(given, Sized)


def _is_collection(given: object) -> TypeGuard[Iterable[object]]:
    is_image = (
        hasattr(given, "shape") or hasattr(given, "convert") or isinstance(given, (str, Path, *_BYTES, *_BINARY_FILES))
    )
    return isinstance(given, Iterable) and not is_image


def _told(source: Source) -> Source:
    """Return a source on a web server as an image if the server names an image as its content."""
    if not isinstance(source, VideoSource) or source.url is None or not source.is_live:
        return source
    parts = _URL.fullmatch(source.url)
    if parts is None or parts["scheme"].lower() not in WEB_SCHEMES:
        return source
    kind = kind_of_content(source.url)
    names_image = Path(parts["path"]).suffix.lower() in IMAGE_SUFFIXES
    # Without an answer, the name decides who explains it: a picture fails at once, a stream is tried again.
    is_picture = kind == "image" or (kind is None and names_image)
    return ImageSource(source.name, url=source.url) if is_picture else source


def require_images(sources: Sequence[Source], who: str) -> list[ImageSource]:
    """Return the sources if all of them are images.

    Args:
        sources: any sources.
        who: the one that takes images only, for the message.

    Raises:
        MediaError: one of them is a video or stream.
    """
    images = [first for source in sources if (first := _first_image(source)) is not None]
    if len(images) < len(sources):
        name = next(source.name for source in sources if not isinstance(source, ImageSource))
        raise MediaError(f"{who}: expected images, got a video or stream ({name}); give images")
    return images


def _first_image(source: Source) -> ImageSource | None:
    """Return an image, also an animated one, whose first frame will be read; None for any other source."""
    if isinstance(source, ImageSource):
        return source
    is_image = source.path is not None and holds_animation(source.path)
    return ImageSource(source.name, source.path) if is_image else None


def require_videos(sources: Sequence[Source]) -> None:
    """Reject sources without frames, in which nothing can be tracked.

    Raises:
        ConfigError: a source is an image.
    """
    images = [source.name for source in sources if isinstance(source, ImageSource)]
    if images:
        raise ConfigError(
            f"expected videos to track objects in, got the image {images[0]}; give videos only, or --fps for frames of "
            "a video (in Python: fps)"
        )


def videos_only(sources: Iterable[Source]) -> Iterator[Source]:
    """Yield sources, and reject one without frames when it comes.

    Raises:
        ConfigError: a source is an image.
    """
    for source in sources:
        require_videos([source])
        yield source


def _one(given: object, name: str, allow_url: bool, channel_order: ChannelOrder) -> Sequence[Source]:
    if isinstance(given, (str, Path)):
        try:
            return find_sources(given, allow_url, is_alone=False)
        except MediaError:
            if glob.has_magic(str(given)) or os.path.exists(given):
                raise
            return [_file(Path(given))]  # fails when it is read, and the others do not
    if isinstance(given, _BYTES):
        return [ImageSource(name, encoded=bytes(given))]
    if isinstance(given, _BINARY_FILES):
        return [ImageSource(name, encoded=given.read() or b"")]
    pixels, warnings = pixels_of(given, name, channel_order)
    return [ImageSource(name, pixels=pixels, warnings=warnings)]
