from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.api import Detector
from detector.cli.main import run
from detector.errors import ConfigError
from detector.inference.tracking import TrackConfig, VideoTracks
from detector.media.images import load_image
from detector.media.video import read_header
from detector.media.video_writer import VideoWriter


def written(trained: Any, path: Path) -> Path:
    """Write a video in which the objects of an image move one pixel to the right per frame."""
    image = load_image(min(trained.images.iterdir()), 3).pixels[:64, :64]
    writer = VideoWriter(path, 25, (64, 64))
    for number in range(12):
        canvas = np.full((64, 64, 3), 114, np.uint8)
        canvas[:, number:] = image[:, : 64 - number]
        writer.write(canvas)
    writer.close()
    return writer.path


def unrelated(trained: Any, path: Path) -> Path:
    """Write a video that shows each of the images once, so that most objects are seen only once."""
    writer = VideoWriter(path, 25, (64, 64))
    for image in sorted(trained.images.iterdir()):
        writer.write(load_image(image, 3).pixels[:64, :64])
    writer.close()
    return writer.path


@pytest.fixture
def moving(trained: Any, tmp_path: Path) -> Path:
    return written(trained, tmp_path / "moving.mp4")


def predict(trained: Any, *words: str | Path, to: Path) -> int:
    return run(["predict", str(trained.weights), *map(str, words), "--save-dir", str(to), "--confidence", "0.01"])


def records_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text("utf-8").splitlines()]


def test_tracks_are_in_records_mot_files_and_the_video(
    trained: Any, moving: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert predict(trained, moving, moving, "--track", "--format", "jsonl,csv", to=out) == 0
    records = records_in(out)
    assert len(records) == 24
    for first, second in zip(records[:12], records[12:], strict=True):
        assert first["detections"] == second["detections"]  # each video has a tracker of its own
    rows = [(r["frame"] + 1, d["track_id"], d["box_xyxy"]) for r in records[:12] for d in r["detections"]]
    ids = [track_id for _, track_id, _ in rows]
    assert len(rows) > 12
    assert sorted(set(ids)) == list(range(1, max(ids) + 1))
    assert max(map(ids.count, ids)) >= 8  # one object at least is followed through the video
    for name in ("moving.mot.csv", "moving_2.mot.csv"):
        table = np.loadtxt(out / name, delimiter=",", ndmin=2)
        assert table.shape == (len(rows), 10)
        np.testing.assert_array_equal(table[:, :2], [row[:2] for row in rows])
        corners = np.hstack([table[:, 2:4], table[:, 2:4] + table[:, 4:6]]) - 1
        np.testing.assert_allclose(corners, [box for *_, box in rows], atol=0.021)  # each is rounded to 0.01
    assert ",track_id," in (out / "predictions.csv").read_text("utf-8").splitlines()[0]
    assert read_header(out / "moving.mp4").num_frames == 12
    printed = capsys.readouterr()
    said = printed.out.removeprefix(f"{moving}: ")
    assert said.endswith(", each followed, in 24 frames\n")
    counts = said.removesuffix(", each followed, in 24 frames\n").split(", ")
    assert sum(int(count.split()[0]) for count in counts) == max(ids)  # objects, not boxes
    assert "*.mot.csv" in printed.err


def test_tracks_without_pictures_are_the_same(trained: Any, moving: Path, tmp_path: Path) -> None:
    assert predict(trained, moving, "--track", to=tmp_path / "a") == 0
    assert predict(trained, moving, "--track", "--no-pictures", to=tmp_path / "b") == 0
    assert records_in(tmp_path / "a") == records_in(tmp_path / "b")
    assert not list((tmp_path / "b").glob("*.mp4"))


@pytest.mark.parametrize("is_mixed", [False, True])
def test_tracking_images_is_refused(
    is_mixed: bool, trained: Any, moving: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = sorted(trained.images.iterdir())[0]
    assert predict(trained, *([moving] if is_mixed else []), image, "--track", to=tmp_path / "out") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"got the image {image}; give videos only" in last
    assert not (tmp_path / "out").exists()


def test_python_gives_the_same_tracks(trained: Any, moving: Path, tmp_path: Path) -> None:
    assert predict(trained, moving, "--track", "--no-pictures", to=tmp_path / "out") == 0
    detector = Detector(trained.weights)
    followed = list(detector.stream(moving, track=True, confidence=0.01))
    wanted = [[d["track_id"] for d in record["detections"]] for record in records_in(tmp_path / "out")]
    assert [[] if p.track_ids is None else p.track_ids.tolist() for p in followed] == wanted
    assert all(p.track_ids is None for p in detector.stream(moving))
    with pytest.raises(ConfigError, match="give videos only"):
        detector.stream(np.zeros((8, 8, 3), np.uint8), track=True)


def test_lines_and_zones_are_counted_written_and_drawn(
    trained: Any, moving: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--line", "0,1,64,1", "--zone", "0,0,64,0,64,65,0,65")  # a line that nothing crosses, and all there is
    assert predict(trained, moving, *words, to=tmp_path / "out") == 0
    records = records_in(tmp_path / "out")
    (counts,) = json.loads((tmp_path / "out/counts.json").read_text("utf-8"))
    assert (counts["source"], counts["lines"][0]["to_left"]) == (str(moving), {})
    assert counts["zones"][0]["zone"] == [0, 0, 64, 0, 64, 65, 0, 65]
    num_tracks = max(d["track_id"] for r in records for d in r["detections"])
    assert sum(counts["zones"][0]["distinct"].values()) == num_tracks
    assert sum(counts["zones"][0]["present"].values()) == len(records[-1]["detections"])
    said = capsys.readouterr().err
    assert "line 1: nothing to its right, nothing to its left" in said
    assert "zone 1: " in said
    assert predict(trained, moving, "--line", "0,900,64,900", to=tmp_path / "b") == 2
    assert "expected a line on a picture of 64 x 64 pixels, got 0,900,64,900" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--line", "1,2,3"), "two numbers within -1000000..1000000 for each point"),
        (("--line", "1,2,1,2"), "two different points"),
        (("--line", "a,b,c,d"), "numbers with commas"),
        (("--zone", "1,2,3,4"), "at least three different corners"),
        (("--zone", "1,2,3,4,nan,5"), "two numbers within"),
        (("--zone", "0,0,1e12,0,1e12,1e12"), "two numbers within"),
    ],
)
def test_malformed_line_or_zone_is_refused(
    words: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["predict", "m.safetensors", "v.mp4", *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_detections_without_a_track_are_counted_in_a_message_and_kept_on_request(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moving = unrelated(trained, tmp_path / "moving.mp4")
    assert predict(trained, moving, "--track", "--no-pictures", to=tmp_path / "a") == 0
    said = capsys.readouterr().err
    assert predict(trained, moving, "--untracked", "--track", "--format", "jsonl,csv", to=tmp_path / "b") == 0
    assert "joined no track" not in capsys.readouterr().err
    tracked, every = ([d for r in records_in(tmp_path / name) for d in r["detections"]] for name in "ab")
    left_out = [d for d in every if d["track_id"] is None]
    assert left_out
    assert re.search(rf"{len(left_out)} detections? that joined no track, left out; --untracked keeps them", said)
    assert [d for d in every if d["track_id"] is not None] == tracked
    assert len(np.loadtxt(tmp_path / "b/moving.mot.csv", delimiter=",", ndmin=2)) == len(tracked)
    with (tmp_path / "b/predictions.csv").open(encoding="utf-8", newline="") as file:
        cells = [row["track_id"] for row in csv.DictReader(file)]
    assert cells.count("") >= len(left_out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--untracked"],
            "--untracked: for objects that are followed, and neither --track, --line nor --zone is given; leave it out",
        ),
        (["--camera-motion", "--track-buffer", "2"], "--camera-motion, --track-buffer: for objects that are followed"),
    ],
)
def test_tracking_options_without_tracks_are_refused(
    words: list[str], message: str, trained: Any, moving: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(trained, moving, *words, to=tmp_path / "out") == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--track-match", "1.5"], "expected a number of 0..1, got '1.5'"),
        (["--track-enlarge", "x"], "expected a number of at least 0, got 'x'"),
        (["--track-buffer", "-1"], "expected a number of at least 0, got '-1'"),
        (["--track-buffer", "nan"], "expected a number of at least 0, got 'nan'"),
    ],
)
def test_tracking_options_out_of_range_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(["predict", "a.safetensors", "a.mp4", "--track", *words])
    assert message in capsys.readouterr().err


def test_tracking_options_reach_the_tracker(
    trained: Any, moving: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[tuple[TrackConfig | None, bool, bool]] = []
    build = VideoTracks.__init__

    def note(self: VideoTracks, config: TrackConfig | None, keep_untracked: bool, follow_camera: bool) -> None:
        built.append((config, keep_untracked, follow_camera))
        build(self, config, keep_untracked, follow_camera)

    monkeypatch.setattr(VideoTracks, "__init__", note)
    words = ("--camera-motion", "--untracked", "--track-match", "0.9", "--track-enlarge", "0", "--track-buffer", "0.5")
    assert predict(trained, moving, "--track", "--no-pictures", *words, to=tmp_path / "a") == 0
    ((config, keep_untracked, follow_camera),) = built
    assert config is not None
    assert (config.match, config.enlarge, config.buffer_s) == (0.9, 0.0, 0.5)
    assert (keep_untracked, follow_camera) == (True, True)
