"""Images, animations and videos that claim more than they hold are read or refused, in bounded time and memory."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detector.errors import MediaError
from detector.media import video
from detector.media.animation_reader import AnimationReader
from detector.media.images import MAX_PIXELS
from detector.media.movie_duration import movie_duration_s
from detector.media.sources import VideoSource
from detector.media.video import video_frames

Bounded = Callable[[], AbstractContextManager[None]]
LIMIT = f"{MAX_PIXELS} pixels"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(side: int) -> bytes:
    """A black picture of one bit per pixel."""
    rows = zlib.compress(bytes((-(-side // 8) + 1) * side))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def riff(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def avi(codec: bytes, side: int, *frames: bytes) -> bytes:
    """A video whose header claims a side; frames of some codecs have a size of their own."""
    header = riff(b"avih", struct.pack("<14I", 40_000, 0, 0, 16, len(frames), 0, 1, 0, side, side, 0, 0, 0, 0))
    rate = struct.pack("<I2H8I4h", 0, 0, 0, 0, 1, 25, 0, len(frames), 0, 0, 0, 0, 0, 0, 0)
    bits = 8 if codec == b"mrle" else 24
    form = struct.pack("<IiiHH4sIiiII", 40, side, side, 1, bits, codec, 0, 0, 0, 0, 0)
    stream = riff(b"LIST", b"strl" + riff(b"strh", b"vids" + codec + rate) + riff(b"strf", form))
    body = b"".join(riff(b"00dc", frame) for frame in frames)
    return riff(b"RIFF", b"AVI " + riff(b"LIST", b"hdrl" + header + stream) + riff(b"LIST", b"movi" + body))


def animation(kind: str) -> bytes:
    file = io.BytesIO()
    images = [Image.fromarray(np.full((48, 64, 3), value, np.uint8)) for value in (0, 255)]
    images[0].save(file, kind, save_all=True, append_images=images[1:], duration=40)
    return file.getvalue()


def gif(width: int) -> bytes:
    content = animation("GIF")
    return content[:6] + struct.pack("<HH", width, width) + content[10:]


def gif_with_large_frame(width: int) -> bytes:
    content = animation("GIF")
    place = content.index(b"\x2c\0\0\0\0\x40\0\x30\0")
    return content[: place + 5] + struct.pack("<HH", width, width) + content[place + 9 :]


def apng(side: int) -> bytes:
    content = animation("PNG")
    return content[:8] + chunk(b"IHDR", struct.pack(">II", side, side) + content[24:29]) + content[33:]


def apng_of_frames(num: int) -> bytes:
    content = animation("PNG")
    place = content.index(b"acTL") - 4
    return content[:place] + chunk(b"acTL", struct.pack(">II", num, 0)) + content[place + 20 :]


def webp(side: int) -> bytes:
    content = bytearray(animation("WEBP"))
    place = content.index(b"VP8X") + 12
    content[place : place + 6] = (side - 1).to_bytes(3, "little") * 2
    return bytes(content)


# name: (content, words of the refusal; none where frames can be read)
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "container.avi": (lambda: avi(b"mrle", 100_000, b"\0\1\0\1"), LIMIT),
    "palette.avi": (lambda: avi(b"mrle", 16_000, b"\0\1\0\1"), str(MAX_PIXELS)),
    "frame.avi": (lambda: avi(b"MPNG", 16_000, png(16_000)), str(MAX_PIXELS)),
    "larger frame.avi": (lambda: avi(b"MPNG", 64, png(16_000)), str(MAX_PIXELS)),
    "smaller frame.avi": (lambda: avi(b"MPNG", 100_000, png(64)), ""),
    "huge.gif": (lambda: gif(65_535), f"65535 x 65535 = 4294836225 pixels > limit of {MAX_PIXELS}"),
    "large.gif": (lambda: gif(12_000), f"12000 x 12000 = 144000000 pixels > limit of {MAX_PIXELS}"),
    "frame.gif": (lambda: gif_with_large_frame(65_535), "damaged animation"),
    "huge.png": (lambda: apng(100_000), f"100000 x 100000 = 10000000000 pixels > limit of {MAX_PIXELS}"),
    "frames.png": (lambda: apng_of_frames(2**31 - 1), "damaged animation"),
    "huge.webp": (lambda: webp(2**24), f"pixels > limit of {MAX_PIXELS}"),
}


@pytest.mark.parametrize("reader", ["PyAV", "OpenCV"])
@pytest.mark.parametrize("name", FILES)
def test_video_that_claims_too_many_pixels_is_refused(
    name: str, reader: str, tmp_path: Path, bounded: Bounded, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reader == "PyAV":
        pytest.importorskip("av")
    elif not name.endswith(".avi"):
        pytest.skip("animations have one reader")
    monkeypatch.setattr(video, "has_pyav", lambda: reader == "PyAV")
    content, words = FILES[name]
    path = tmp_path / name
    path.write_bytes(content())
    said, num_frames = "", 0
    try:
        with bounded():
            num_frames = len(list(video_frames(VideoSource(name, path))))
    except MediaError as error:
        said = str(error)
    assert bool(said) == bool(words)
    assert words in said
    assert bool(num_frames) != bool(said)
    assert "\n" not in said


def test_large_animation_is_not_composed_before_its_first_frame(tmp_path: Path) -> None:
    file = io.BytesIO()
    images = [Image.fromarray(np.full((48, 64), value, np.uint8)) for value in range(9)]
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=40)
    content, path = file.getvalue(), tmp_path / "a.gif"
    path.write_bytes(content[:6] + struct.pack("<HH", 8_000, 8_000) + content[10:])
    reader = AnimationReader(path, path.name)
    assert reader.header.num_frames == 9
    assert reader._image.tell() == 1  # two of them have as many pixels as an image may have
    reader.close()


def test_boxes_that_claim_the_rest_of_a_movie_are_read_once(tmp_path: Path) -> None:
    path, num = tmp_path / "a.mp4", 4_000
    boxes = (struct.pack(">I4sI4s", 16, b"trak", 16 * (num - i) - 8, b"mdia") for i in range(num))
    body = b"".join(boxes)
    path.write_bytes(struct.pack(">I4sI4s", 8, b"ftyp", 8 + len(body), b"moov") + body)
    started_s = time.process_time()
    assert movie_duration_s(path) is None
    assert time.process_time() - started_s < 2
