from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from detector.cli.main import run
from detector.errors import DatasetError
from detector.evaluation.mot_file import frames_of_tracks, read_mot_file
from detector.evaluation.track_scores import TrackFrame, score_tracks

TRUTH = "1,1,10,10,20,20,1,1,1\n1,2,50,50,20,20,1,1,1\n3,1,14,10,20,20,1,1,1\n3,2,50,50,20,20,0,1,1\n"
TRACKS = "3,7,14,10,20,20,0.9,-1,-1,-1\n1,7,10,10,20,20,0.9,-1,-1,-1\n\n1,8,90,90,5,5,0.4,-1,-1,-1\n"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "found.mot.csv", tmp_path / "gt.txt"
    for path, text in zip(paths, (TRACKS, TRUTH), strict=True):
        path.write_text(text)
    return paths


def test_lines_become_frames_and_unmarked_truth_does_not_count(files: tuple[Path, Path]) -> None:
    frames = frames_of_tracks(read_mot_file(files[1], is_truth=True), read_mot_file(files[0]))
    assert [f.true_ids.tolist() for f in frames] == [[1, 2], [], [1]]
    assert [sorted(f.track_ids.tolist()) for f in frames] == [[7, 8], [], [7]]
    np.testing.assert_array_equal(frames[2].track_xyxy, [[14, 10, 34, 30]])
    scores = score_tracks(frames)
    assert (scores.num_true, scores.num_missed, scores.num_false, scores.num_switches) == (3, 1, 1, 0)


def test_all_malformed_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_text("1,1,0,0,5,5\nx,1,0,0,5,5\n1,2,0,0,-5,5\n1,1,3,3,5,5\n0,1,0,0,5,5\n1.5,1,0,0,5,5\n1,4,0,nan,5,5\n")
    with pytest.raises(DatasetError) as caught:
        read_mot_file(path)
    for number in (2, 3, 5, 6, 7):
        assert f"line {number}: expected frame,id,left,top,width,height" in str(caught.value)
    assert "line 4: id 1 is in frame 1 already, in line 1" in str(caught.value)


def test_tracks_behind_the_truth_and_missing_files_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    files[0].write_text("9,1,0,0,5,5\n")
    with pytest.raises(DatasetError, match="go on to frame 9, the ground truth ends at 3"):
        frames_of_tracks(read_mot_file(files[1]), read_mot_file(files[0]))
    with pytest.raises(DatasetError, match="expected a text file of tracks"):
        read_mot_file(tmp_path / "none.txt")


def test_command_prints_the_scores(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--tracks", str(files[0]), "--annotations", str(files[1])]
    assert run(words) == 0
    printed = capsys.readouterr().out
    assert "HOTA" in printed
    assert run([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["num_true"] == 3
    assert document["idf1"] == pytest.approx(2 * 2 / 6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tracks", "a.csv"], "--tracks needs --annotations FILE"),
        (["best.safetensors", "--tracks", "a.csv", "--annotations", "b.txt"], "takes no model"),
        (["--tracks", "a.csv", "--annotations", "b.txt", "--results", "c.json"], "--results: "),
    ],
)
def test_command_with_other_inputs_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("truth", "tracks", "words"),
    [
        (f"{10**12},1,0,0,5,5\n", "1,1,0,0,5,5\n", "at most 1000000 frames"),
        (f"{2**60},1,0,0,5,5\n", "1,1,0,0,5,5\n", "line 1: expected frame"),
        ("1,1,0,0,1e308,1e308\n", "1,1,1e308,1e308,1e308,1e308\n", "line 1: expected frame"),
        ("1,1,0,0,5,5\n" + "x" * 100_000, "1,1,0,0,5,5\n", "line 2: expected frame"),
        *[("".join(f"1,{n},0,0,5,5\n" for n in range(6_000)),) * 2 + ("got 1 and 6000 x 6000",)],
    ],
    ids=["frames", "large number", "boxes that overflow", "long line", "ids"],
)
def test_numbers_that_claim_too_much_are_refused(truth: str, tracks: str, words: str, tmp_path: Path) -> None:
    for name, text in (("gt.txt", truth), ("found.csv", tracks)):
        (tmp_path / name).write_text(text)
    with pytest.raises(DatasetError, match=words) as caught:
        frames_of_tracks(read_mot_file(tmp_path / "gt.txt", is_truth=True), read_mot_file(tmp_path / "found.csv"))
    assert len(str(caught.value)) < 2000


def test_many_ids_are_scored_in_bounded_memory(bounded: Callable[[], AbstractContextManager[None]]) -> None:
    frames = []
    for first in range(0, 3000, 10):
        ids = np.arange(first, first + 10)
        boxes_xyxy = ids[:, None] * 5.0 + [0, 0, 4, 4]
        frames.append(TrackFrame(ids, ids, boxes_xyxy, boxes_xyxy))
    with bounded():
        assert score_tracks(frames).hota == pytest.approx(1)
