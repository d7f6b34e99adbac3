"""Image sequences and animated images on the command line, together with the other options for videos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detector.api import Detector
from detector.cli.main import run
from detector.errors import ConfigError
from detector.media.images import load_image, write_image
from detector.media.video import read_header


@pytest.fixture
def pictures(trained: Any) -> list[np.ndarray]:
    """The objects of an image, which move one pixel to the right per frame."""
    image = load_image(sorted(trained.images.iterdir())[0], 3).pixels
    found = []
    for number in range(8):
        canvas = np.full((64, 64, 3), 114, np.uint8)
        canvas[:, number:] = image[:64, : 64 - number]
        found.append(canvas)
    return found


@pytest.fixture
def frames(pictures: list[np.ndarray], tmp_path: Path) -> Path:
    folder = tmp_path / "MOT-02" / "img1"
    folder.mkdir(parents=True)
    for number, pixels in enumerate(pictures):
        write_image(folder / f"{number + 1:06d}.png", pixels)
    return folder


def predict(trained: Any, *words: str | Path, to: Path) -> int:
    return run(["predict", str(trained.weights), *map(str, words), "--save-dir", str(to), "--confidence", "0.01"])


def records_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("form", ["folder", "glob", "pattern"])
def test_frames_are_tracked_and_written_as_a_video(form: str, trained: Any, frames: Path, tmp_path: Path) -> None:
    given = {"folder": str(frames), "glob": f"{frames}/*.png", "pattern": f"{frames}/%06d.png"}[form]
    assert predict(trained, given, "--fps", "10", "--track", "--strict", to=tmp_path / "out") == 0
    records = records_in(tmp_path / "out")
    assert [(r["frame"], r["time_s"]) for r in records] == [(number, number / 10) for number in range(8)]
    assert len({r["source"] for r in records}) == 1
    ids = [d["track_id"] for r in records for d in r["detections"]]
    assert max(map(ids.count, ids)) >= 5
    header = read_header(tmp_path / "out/MOT-02.mp4")
    assert (header.num_frames, header.fps) == (8, 10)
    table = np.loadtxt(tmp_path / "out/MOT-02.mot.csv", delimiter=",", ndmin=2)
    assert set(table[:, 0]) <= set(range(1, 9))


def test_options_work_together_on_a_sequence_with_gaps_damage_and_sizes(
    trained: Any, frames: Path, pictures: list[np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (frames / "000003.png").unlink()
    (frames / "000005.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    write_image(frames / "000007.png", pictures[6][:40, :50])
    regions = ("--zone", "0,0,64,0,64,65,0,65", "--line", "32,0,32,64")
    other = ("--camera-motion", "--tile", "48", "--every-frame", "--classes", "0,1", "--crops", "--format", "jsonl,txt")
    assert predict(trained, frames, "--fps", "10", *regions, *other, "--strict", to=tmp_path / "out") == 5
    records = records_in(tmp_path / "out")
    assert [r["frame"] for r in records] == [0, 1, 3, 4, 5, 6, 7]
    assert [r["frame"] for r in records if r.get("error")] == [4]
    assert {(r["width"], r["height"]) for r in records if not r.get("error")} == {(64, 64), (50, 40)}
    said = capsys.readouterr().err
    for text in (
        f"{frames}: 1 of 8 frames are missing, the first is number 2",
        "000005.png cannot be decoded",
        "a frame of 50 x 40 pixels is fitted into the size of the first, 64 x 64",
    ):
        assert said.count(text) == 1
    assert read_header(tmp_path / "out/MOT-02.mp4").num_frames == 6
    assert sorted(path.stem for path in (tmp_path / "out/labels").iterdir()) == [
        f"00000{n}" for n in (1, 2, 4, 6, 7, 8)
    ]
    (counts,) = json.loads((tmp_path / "out/counts.json").read_text("utf-8"))
    assert counts["source"] == str(frames)


def test_animated_image_is_tracked(trained: Any, pictures: list[np.ndarray], tmp_path: Path) -> None:
    first, *others = [Image.fromarray(pixels) for pixels in pictures]
    first.save(tmp_path / "film.gif", save_all=True, append_images=others, duration=50)
    assert predict(trained, tmp_path / "film.gif", "--track", to=tmp_path / "out") == 0
    records = records_in(tmp_path / "out")
    assert [r["time_s"] for r in records] == pytest.approx([number / 20 for number in range(8)])
    assert any(d["track_id"] == 1 for d in records[-1]["detections"])
    assert read_header(tmp_path / "out/film.mp4").fps == 20


def test_two_sequences_of_one_name_write_two_videos(trained: Any, frames: Path, tmp_path: Path) -> None:
    other = tmp_path / "b/MOT-02/img1"
    other.mkdir(parents=True)
    for path in frames.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    assert predict(trained, frames, other, "--fps", "10", "--track", to=tmp_path / "out") == 0
    first, second = (tmp_path / "out" / f"MOT-02{end}.mot.csv" for end in ("", "_2"))
    assert first.read_text() == second.read_text() != ""
    assert read_header(tmp_path / "out/MOT-02_2.mp4").num_frames == 8


@pytest.mark.parametrize("rate", ["0", "nan", "1000", "fast"])
def test_impossible_rate_is_one_line(
    rate: str, trained: Any, frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        predict(trained, frames, "--fps", rate, to=tmp_path / "out")
    assert f"expected a number of 0.1 to 500, got '{rate}'" in capsys.readouterr().err.splitlines()[-1]


def test_rate_of_a_video_is_refused(trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "film.mp4").write_bytes(b"x")
    assert predict(trained, tmp_path / "film.mp4", "--fps", "25", to=tmp_path / "out") == 2
    assert "whose frames have times; leave it out" in capsys.readouterr().err.splitlines()[-1]


def test_python_takes_the_rate_of_arrays(trained: Any, pictures: list[np.ndarray]) -> None:
    detector = Detector(trained.weights)
    found = list(detector.stream(pictures, fps=20.0, track=True, confidence=0.01))
    assert [p.source.frame.time_s for p in found if p.source.frame] == pytest.approx([n / 20 for n in range(8)])
    assert all(p.track_ids is not None for p in found)
    with pytest.raises(ConfigError, match="got a generator"):
        detector.stream(iter(pictures), fps=20.0)
