"""Reader of animated images: GIF, APNG and WebP, each frame composed with those before it.

Pillow, a dependency of torchvision, reads them: OpenCV decodes all frames at once, and its PNG library prints to
stderr.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
from PIL.Image import DecompressionBombError
from PIL.Image import open as open_image

from detector.errors import MediaError
from detector.media.frame_reader import FrameReader, plausible_header
from detector.media.images import MAX_PIXELS, image_header, require_decodable_size
from detector.structures.letterbox import Image

_SIGNATURES = re.compile(rb"GIF8[79]a|RIFF....WEBP|\x89PNG\r\n\x1a\n", re.DOTALL)
_FAILURES = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, OverflowError, struct.error),
    DecompressionBombError,  # a frame that reaches beyond the size in the header
)
_NUM_TIMED = 64  # frames whose durations give the rate of the output
# Browsers and FFmpeg play frames of 0 or 10 ms, which many programs write for "as fast as possible", like this.
_LEAST_MS, _USUAL_MS = 10.0, 100.0


def can_read(head: bytes) -> bool:
    """Return True for the first bytes of a format that may be animated."""
    return _SIGNATURES.match(head) is not None


class AnimationReader(FrameReader):
    """Reader of the frames of an animated image."""

    def __init__(self, path: Path, name: str) -> None:
        """Read the header and the durations of the first frames.

        Args:
            path: the file.
            name: of the animation, for reports.

        Raises:
            MediaError: it is damaged or too large.
        """
        require_decodable_size(name, image_header(path).stored_hw)  # before Pillow refuses it in its own way
        self.name, self._time_ms, self._next_ms = name, 0.0, 0.0
        try:
            self._image = open_image(path, formats=("GIF", "PNG", "WEBP"))
            width, height = self._image.size
            # The still image of an APNG need not be part of its animation.
            self._first = int(bool(self._image.info.get("default_image")))
            num_frames = getattr(self._image, "n_frames", 1) - self._first
            num_timed = min(num_frames, _NUM_TIMED, MAX_PIXELS // (height * width))
            durations = [self._seek(number) for number in range(num_timed)]
        except _FAILURES as error:
            raise MediaError(f"{name} cannot be read: it is a damaged animation; replace or remove it") from error
        fps = 1000 * len(durations) / sum(durations)
        self.header = plausible_header(name, fps, num_frames, (height, width))

    def _seek(self, number: int) -> float:
        """Compose a frame; return its duration in milliseconds."""
        self._image.seek(number + self._first)
        self._image.load()
        duration_ms = float(self._image.info.get("duration", 0))
        return duration_ms if duration_ms > _LEAST_MS else _USUAL_MS

    def grab(self) -> bool:
        """Move to the next frame; return False at the end or at a damaged frame, on which all later ones depend."""
        try:
            duration_ms = self._seek(self.num_read)
        except (EOFError, *_FAILURES):
            return False
        self.num_read += 1
        self._time_ms, self._next_ms = self._next_ms, self._next_ms + duration_ms
        return True

    def time_s(self) -> float | None:
        """Return the sum of the durations of the frames before, in seconds."""
        return self._time_ms / 1000

    def retrieve(self) -> Image | None:
        """Return the current frame, uint8 (H, W, 3) in RGB; transparent pixels keep their colour."""
        return np.asarray(self._image.convert("RGBA"))[..., :3].copy()

    def losses(self, last_s: float, is_uneven: bool) -> list[str]:
        """Return a warning about missing frames, at the end."""
        promised = self.header.num_frames
        return self.shortage_report(promised) if promised is not None and self.num_read < promised else []

    def close(self) -> None:
        """Release the file."""
        self._image.close()
