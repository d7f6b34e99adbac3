"""`Detector.run` and `Detector.stream` write the files of `detector predict`, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.api import Detector
from detector.cli.main import run
from detector.errors import ConfigError, MediaError
from detector.inference.prediction_summary import PredictionSummary
from detector.media.images import load_image
from detector.media.video import read_header
from detector.media.video_writer import VideoWriter

CONFIDENCE = 0.01


@pytest.fixture
def moving(trained: Any, tmp_path: Path) -> Path:
    """Write a video of 12 frames in which an image moves to the right."""
    image = load_image(sorted(trained.images.iterdir())[0], 3).pixels
    writer = VideoWriter(tmp_path / "moving.mp4", 25, (64, 64))
    for number in range(12):
        canvas = np.full((64, 64, 3), 114, np.uint8)
        canvas[:, number:] = image[:64, : 64 - number]
        writer.write(canvas)
    writer.close()
    return writer.path


def files_in(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def written_twice(
    trained: Any, source: Path, folder: Path, words: list[str], **options: Any
) -> tuple[dict[str, bytes], PredictionSummary]:
    """Return the files that the command line and Python both write, and the summary of Python."""
    own = [str(trained.weights), str(source), "--confidence", str(CONFIDENCE), "--quiet"]
    assert run(["predict", *own, *words, "--save-dir", str(folder / "words")]) == 0
    detector = Detector(trained.weights)
    summary = detector.run(source, save_dir=folder / "python", confidence=CONFIDENCE, **options)
    files = files_in(folder / "python")
    assert files == files_in(folder / "words")
    return files, summary


def test_images_give_every_format_crops_and_pictures(trained: Any, tmp_path: Path) -> None:
    formats = ("json", "jsonl", "csv", "txt")
    words = ["--format", ",".join(formats), "--crops"]
    files, summary = written_twice(trained, trained.images, tmp_path, words, formats=formats, crops=True)
    assert {"predictions.json", "predictions.jsonl", "predictions.csv", "classes.txt", "000001.jpg"} <= set(files)
    records = json.loads(files["predictions.json"])
    num_found = sum(len(record["detections"]) for record in records)
    assert sum(name.startswith("crops/") for name in files) == num_found > 3
    assert (summary.num_read, summary.errors, summary.sources, summary.videos) == (6, (), {}, ())
    assert [path.name for path in summary.paths] == [
        "predictions.json", "predictions.jsonl", "predictions.csv", "labels", "crops",
    ]  # fmt: skip


def test_video_gives_an_annotated_video_and_records(trained: Any, moving: Path, tmp_path: Path) -> None:
    words = ["--format", "csv,json,txt", "--crops", "--codec", "MJPG", "--stride", "3"]
    options = {"formats": ("csv", "json", "txt"), "crops": True, "codec": "MJPG", "stride": 3}
    files, summary = written_twice(trained, moving, tmp_path, words, **options)
    assert {"predictions.csv", "predictions.jsonl", "moving.avi", "labels/moving_000003.txt"} <= set(files)
    assert summary.videos == (tmp_path / "python/moving.avi",)
    assert read_header(summary.videos[0]).num_frames == summary.num_read == 4
    assert summary.sources[str(moving)].num_read == 4


def test_tracks_are_written_and_counted(trained: Any, moving: Path, tmp_path: Path) -> None:
    line, zone = (20.0, 0.0, 20.0, 64.0), (0.0, 0.0, 64.0, 0.0, 64.0, 65.0, 0.0, 65.0)
    words = ["--line", ",".join(map(str, line)), "--zone", ",".join(map(str, zone)), "--format", "jsonl,csv"]
    options = {"lines": [line], "zones": [zone], "formats": ["jsonl", "csv"]}
    files, summary = written_twice(trained, moving, tmp_path, words, **options)
    assert {"moving.mot.csv", "counts.json", "moving.mp4"} <= set(files)
    ((name, counts),) = summary.counts
    assert json.loads(files["counts.json"]) == [{"source": name, **counts.to_plain()}]
    source = summary.sources[str(moving)]
    assert name == str(moving)
    assert sum(counts.zones[0].distinct.values()) == source.num_tracks == sum(source.counts.values())


def test_coco_results_take_their_ids_from_an_annotation_file(trained: Any, tmp_path: Path) -> None:
    own = [str(trained.weights), str(trained.images), "--annotations", str(trained.annotations), "--quiet"]
    assert run(["predict", *own, "--format", "coco", "--save-dir", str(tmp_path / "words")]) == 0
    detector = Detector(trained.weights)
    options: dict[str, Any] = {"formats": ("coco",), "save_dir": tmp_path / "python"}
    detector.run(trained.images, annotations=trained.annotations, **options)
    assert files_in(tmp_path / "python") == files_in(tmp_path / "words")
    assert set(files_in(tmp_path / "python")) == {"results.json"}
    with pytest.raises(ConfigError, match="in Python: annotations=FILE"):
        detector.run(trained.images, **options)


def test_skipped_sources_are_reported_and_counted(
    trained: Any, draw_video: Callable[..., Path], tmp_path: Path
) -> None:
    video = draw_video(num_frames=3)
    (tmp_path / "broken.mp4").write_text("no video")
    said: list[str] = []
    detector = Detector(trained.weights)
    given = [video, tmp_path / "broken.mp4", np.zeros((64, 64, 3), np.uint8)]
    summary = detector.run(given, save_dir=tmp_path / "out", pictures=False, report=said.append)
    assert (summary.num_read, len(summary.errors), summary.num_faults) == (4, 1, 1)
    assert said == [f"skipped: {summary.errors[0]}"]
    assert set(files_in(tmp_path / "out")) == {"predictions.jsonl"}
    with pytest.raises(MediaError, match="cannot be read as a video"):
        detector.run([tmp_path / "broken.mp4"], save_dir=tmp_path / "b")


def test_on_picture_can_end_the_run(trained: Any, moving: Path, tmp_path: Path) -> None:
    shown: list[np.ndarray] = []

    def show(picture: np.ndarray) -> bool:
        shown.append(picture)
        return False

    summary = Detector(trained.weights).run(moving, save_dir=tmp_path / "out", on_picture=show)
    assert len(shown) >= 1
    assert shown[0].shape == (64, 64, 3)
    lines = (tmp_path / "out/predictions.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == len(shown) == summary.num_read


def test_stream_gives_counts_and_writes_files_into_save_dir(trained: Any, moving: Path, tmp_path: Path) -> None:
    detector = Detector(trained.weights)
    options: dict[str, Any] = {"lines": [(20, 0, 20, 64)], "confidence": CONFIDENCE}
    records = list(detector.stream(moving, **options))
    counts = [record.counts for record in records]
    assert counts[-1] is not None
    crossed = [c.lines[0].to_left.total() + c.lines[0].to_right.total() for c in counts if c is not None]
    assert len(crossed) == 12
    assert crossed == sorted(crossed)  # a record keeps the counts of its own frame
    stream = detector.stream(moving, save_dir=tmp_path / "out", formats=("csv",), **options)
    next(stream)
    assert isinstance(stream, Generator)
    stream.close()  # leaving early finishes the files
    assert {"predictions.csv", "moving.mot.csv", "counts.json", "moving.mp4"} == set(files_in(tmp_path / "out"))
    assert read_header(tmp_path / "out/moving.mp4").num_frames


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ("cvs",)}, "formats: no format is named 'cvs'; did you mean 'csv'"),
        ({"stirde": 2}, "unknown key 'stirde'; did you mean 'stride'"),
        ({"codec": "h265"}, "a codec of mp4v, avc1, MJPG, VP90"),
        ({"stride": 0}, "expected stride of at least 1"),
        ({"lines": [(1, 2, 1, 2)]}, "expected two different points X1,Y1,X2,Y2, got 1,2,1,2"),
        ({"zones": [(1, 2, 3, 4)]}, "expected at least three different corners"),
        ({"track": True}, "give videos only"),
    ],
)
def test_wrong_option_is_refused_before_a_folder_is_made(
    options: dict[str, Any], message: str, trained: Any, tmp_path: Path
) -> None:
    detector = Detector(trained.weights)
    with pytest.raises(ConfigError) as caught:
        detector.run(trained.images, save_dir=tmp_path / "out", **options)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_file_options_without_save_dir_are_refused(trained: Any) -> None:
    with pytest.raises(ConfigError, match="formats, crops: no files are written without save_dir"):
        Detector(trained.weights).stream(trained.images, formats=("csv",), crops=True)


def test_confidence_replaces_the_confidences_of_the_classes(trained: Any) -> None:
    detector = Detector(trained.weights)
    num_classes = len(detector.class_names)
    high = detector.predict(trained.images, class_confidence=(1.0,) * num_classes)
    assert isinstance(high, list)
    assert sum(map(len, high)) == 0
    assert detector._select({"confidence": 0.5}).class_confidence is None
