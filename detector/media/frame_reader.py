"""Contract of the readers of video frames: PyAV's (`pyav_reader`) and OpenCV's (`opencv_reader`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from detector.media.container_ends import is_cut
from detector.media.images import MAX_PIXELS, require_decodable_size
from detector.structures.letterbox import Image

DEFAULT_FPS = 30.0  # of the output if the source has no valid rate
MAX_FAILURES = 1000  # undecodable frames in a row after which the rest of a file is given up
OPEN_TIMEOUT_S = READ_TIMEOUT_S = 10.0  # for network sources
END_TOLERANCE_FRAMES = 1.5  # a video that ends less than this before its promised end is complete
MIN_FPS, MAX_FPS = 0.1, 500.0  # slow-motion cameras reach 480; 1000 or 90000 are units of time stamps
_MAX_NUM_FRAMES = 10**9  # a year at 30 per second; larger counts come from overflow


@dataclass(frozen=True)
class VideoHeader:
    """Header of a video.

    Attributes:
        fps: frames per second; `DEFAULT_FPS` if the video has no plausible rate.
        num_frames: number of frames according to the header, or None if it has no plausible number.
        image_hw: height and width of the frames, turned upright.
        warnings: oddities of the header, a sentence each.
    """

    fps: float
    num_frames: int | None
    image_hw: tuple[int, int]
    warnings: tuple[str, ...] = ()


def plausible_header(name: str, fps: float, num_frames: float, image_hw: tuple[int, int]) -> VideoHeader:
    """Return the header of a video, with a warning in place of a rate that no video has.

    Raises:
        MediaError: its frames have more pixels than an image may have.
    """
    require_decodable_size(name, image_hw)
    warnings: tuple[str, ...] = ()
    if not MIN_FPS <= fps <= MAX_FPS:  # also true for NaN
        warnings = (
            f"{name} claims {fps:g} frames per second: output plays at {DEFAULT_FPS:g}, records keep the times",
        )
        fps = DEFAULT_FPS
    is_count = 0 < num_frames < _MAX_NUM_FRAMES
    return VideoHeader(fps, int(num_frames) if is_count else None, image_hw, warnings)


class FrameReader(ABC):
    """Reader of the frames of one video, from the first to the last.

    Attributes:
        name: of the video, for reports.
        header: of the video.
        num_read: frames that could be decoded so far.
        num_damaged: frames that could not be decoded so far.
        is_behind_gap: true if frames that could not be decoded lie before the current one.
    """

    name: str
    header: VideoHeader
    num_read: int = 0
    num_damaged: int = 0
    is_behind_gap: bool = False

    @abstractmethod
    def grab(self) -> bool:
        """Move to the next frame that can be decoded; return False at the end."""

    @abstractmethod
    def time_s(self) -> float | None:
        """Return the presentation time of the current frame in seconds from the start of the video, or None."""

    @abstractmethod
    def retrieve(self) -> Image | None:
        """Return the current frame, uint8 (H, W, 3) in RGB or (H, W, 1), turned upright; None if it is damaged."""

    @abstractmethod
    def losses(self, last_s: float, is_uneven: bool) -> list[str]:
        """Return warnings about missing or damaged frames, at the end.

        Args:
            last_s: time of the last frame.
            is_uneven: true if the time between frames varies.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the video; further calls do nothing."""

    def no_frame_reason(self) -> str:
        """Return the reason why an open video may have no frame that can be read."""
        return f"check that the video plays, and that its frames have at most {MAX_PIXELS} pixels"

    def damage_report(self) -> list[str]:
        """Return a warning about frames that could not be decoded, if there are any."""
        if not self.num_damaged:
            return []
        return [f"{self.name}: {self.num_damaged} damaged frames between others were skipped"]

    def cut_report(self, path: Path | None) -> list[str]:
        """Return a warning about a file that its container says to be longer."""
        is_short = path is not None and is_cut(path)
        return [f"{self.name} is cut off: its end is missing"] if is_short else []

    def shortage_report(self, num_promised: int) -> list[str]:
        """Return a warning about a video with fewer frames than promised."""
        return [
            f"{self.name}: {self.num_read} of the {num_promised} frames that its header promises could be read, "
            "the others are missing or damaged"
        ]
