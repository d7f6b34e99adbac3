"""Results of a prediction run as numbers, files and sentences."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from detector.errors import MediaError
from detector.inference.counting import Counts
from detector.inference.predictor import Prediction


@dataclass
class SourceSummary:
    """Results of one source.

    Attributes:
        num_read: images or frames read.
        num_warnings: warnings about them.
        is_video: true if it has frames.
        is_live: true if it is a camera or stream.
        errors: why it, or the rest of it, could not be read.
        counts: detections by class; where objects are followed, tracks by class.
        num_tracks: tracks, or None where nothing is followed.
    """

    num_read: int = 0
    num_warnings: int = 0
    is_video: bool = False
    is_live: bool = False
    errors: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    num_tracks: int | None = None

    def add(self, prediction: Prediction) -> None:
        """Count one more record."""
        frame = prediction.source.frame
        if frame is not None:
            self.is_video, self.is_live = True, frame.video.is_live
        self.num_warnings += len(prediction.warnings)
        if prediction.detections is None:
            self.errors.append(prediction.error or "no image")
            return
        self.num_read += 1
        names = prediction.detections.names
        if prediction.track_ids is not None:  # a new track has a higher number than all before
            before = self.num_tracks = self.num_tracks or 0
            ids = prediction.track_ids.tolist()
            names = [name for name, track_id in zip(names, ids, strict=True) if track_id > before]
            self.num_tracks = max(before, *ids, 0)
        self.counts.update(names)


@dataclass(frozen=True)
class PredictionSummary:
    """Result of a prediction run.

    Attributes:
        num_read: images and frames read.
        num_warnings: warnings about them.
        errors: why images, or the rest of videos, were skipped, a sentence each.
        sources: results by the name of the source, where one of them has frames; else empty.
        num_dropped: frames of each live source that newer ones replaced while the model was busy.
        counts: the name of each video with the counts of its tracks.
        paths: files and folders of records, crops, tracks and counts.
        videos: annotated videos.
        warnings: deviations from the options in annotated videos, a sentence each.
        notes: changes that annotated videos need, a sentence each; they are no faults.
        num_input_faults: faults of the annotation file of the images.
        num_untracked: detections of each video that joined no track and are left out.
        busy_shares: share of the time, 0..1, in which each stage worked, where stages overlap; else empty.
    """

    num_read: int
    num_warnings: int
    errors: tuple[str, ...]
    paths: tuple[Path, ...]
    sources: dict[str, SourceSummary] = field(default_factory=dict)
    num_dropped: dict[str, int] = field(default_factory=dict)
    counts: tuple[tuple[str, Counts], ...] = ()
    videos: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    num_input_faults: int = 0
    num_untracked: dict[str, int] = field(default_factory=dict)
    busy_shares: dict[str, float] = field(default_factory=dict)

    @property
    def limit_text(self) -> str | None:
        """Sentence that names the stage that was busy most of the time, which limits the speed; None without shares."""
        if not self.busy_shares:
            return None
        (limit, most), *others = sorted(self.busy_shares.items(), key=lambda stage: -stage[1])
        rest = ", ".join(f"{name} {share:.0%}" for name, share in others)
        return f"the speed is limited by {limit}: busy {most:.0%} of the time ({rest})"

    @property
    def num_faults(self) -> int:
        """Number of skipped images and frames and of all warnings."""
        return len(self.errors) + self.num_warnings + len(self.warnings) + self.num_input_faults

    def require_read(self) -> None:
        """Reject a run in which nothing could be read.

        Raises:
            MediaError: there was no image or frame that could be read.
        """
        if self.errors and not self.num_read:
            num_more = len(self.errors) - 1
            more = f" (and {num_more} more sources that cannot be read)" if num_more else ""
            raise MediaError(self.errors[0] + more)
