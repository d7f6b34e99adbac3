from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest

from detector.api import Detector
from detector.cli.main import run
from detector.errors import ConfigError, MediaError
from detector.inference.predictor import only_detections
from detector.media.sources import VideoSource
from detector.media.video import read_header, video_frames


def predict(trained: Any, *words: str | Path, to: Path) -> int:
    return run(["predict", str(trained.weights), *map(str, words), "--save-dir", str(to), "predict.confidence=0.01"])


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text("utf-8").splitlines()]


def num_frames(path: Path) -> int:
    return len(list(video_frames(VideoSource(str(path), path))))


def test_video_gives_a_record_per_frame_and_an_annotated_video(
    trained: Any, draw_video: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = draw_video(num_frames=12)
    assert predict(trained, path, to=tmp_path / "out") == 0
    records = lines(tmp_path / "out")
    assert [(r["source"], r["frame"], r["time_s"], r["height"]) for r in records] == [
        (str(path), n, n / 25, 48) for n in range(12)
    ]
    header = read_header(tmp_path / "out/video.mp4")
    assert (header.num_frames, header.fps, header.image_hw) == (12, 25, (48, 64))
    assert capsys.readouterr().out.startswith(f"{path}: ")


def test_stride_skips_frames_and_keeps_the_duration(
    trained: Any, draw_video: Callable[..., Path], tmp_path: Path
) -> None:
    assert predict(trained, draw_video(), "--stride", "5", to=tmp_path / "out") == 0
    assert [r["frame"] for r in lines(tmp_path / "out")] == list(range(0, 60, 5))
    header = read_header(tmp_path / "out/video.mp4")
    assert (header.num_frames, header.fps) == (12, 5)


def test_video_options_are_refused_for_images_only(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = sorted(trained.images.iterdir())[0]
    assert predict(trained, image, "--stride", "2", "--codec", "MJPG", "--show", to=tmp_path / "out") == 2
    assert "--stride, --codec, --show: for videos and streams, got images only; leave it out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_images_and_videos_together_overwrite_nothing(
    trained: Any, draw_video: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    path = draw_video(num_frames=3)
    shutil.copy(path, folder / "video.mp4")  # a source in the folder of results
    before = (folder / "video.mp4").read_bytes()
    image = sorted(trained.images.iterdir())[0]
    (tmp_path / "broken.mp4").write_text("no video")
    code = predict(trained, path, image, tmp_path / "broken.mp4", folder / "video.mp4", "--json", to=folder)
    assert code == 0
    records = lines(folder)
    assert [r["source"] for r in records] == [
        *[str(path)] * 3,
        str(image),
        str(tmp_path / "broken.mp4"),
        *[str(folder / "video.mp4")] * 3,
    ]
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == records
    assert "cannot be read as a video: it is a text file" in records[4]["error"]
    assert (folder / "video.mp4").read_bytes() == before
    videos = sorted(p.name for p in folder.glob("*.mp4"))
    assert videos == ["video.mp4", "video_2.mp4", "video_3.mp4"]
    assert [num_frames(folder / name) for name in videos] == [3, 3, 3]
    assert len(list(folder.glob(f"{image.stem}*.jpg"))) == 1


def test_truncated_video_is_reported_and_fails_under_strict(  # row 63
    trained: Any, draw_video: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = draw_video("video.avi")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert predict(trained, path, "--no-pictures", to=tmp_path / "a") == 0
    assert "of the 60 frames that its header promises could be read" in capsys.readouterr().err
    assert 20 < len(lines(tmp_path / "a")) < 40
    assert predict(trained, path, "--no-pictures", "--strict", to=tmp_path / "b") == 5
    assert not list((tmp_path / "a").glob("video*"))


@pytest.mark.parametrize("content", [b"", b"a text", b"\x00\x00\x00\x18ftypmp42" + bytes(200)])
def test_file_that_is_no_video_exits_with_3(  # row 65
    content: bytes, trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "odd.mp4").write_bytes(content)
    assert predict(trained, tmp_path / "odd.mp4", to=tmp_path / "out") == 3
    assert "odd.mp4 cannot be read as a video" in capsys.readouterr().err.splitlines()[-1]
    assert len(lines(tmp_path / "out")) == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["rtsp://u:secret@127.0.0.1:9/x?a=b"], 2, "this would use the network; allow it by --allow-url"),
        (["rtsp://u:secret@127.0.0.1:9/x", "--allow-url", "--max-reconnect", "0"], 1, "cannot be reached"),  # row 74
        (["video.mp4", "--codec", "h265"], 2, "expected a codec of mp4v, avc1, MJPG, VP90, got 'h265'"),
        (["video.mp4", "--show"], 2, "--show: expected a"),
    ],
)
def test_impossible_request_is_one_line_of_error(
    words: list[str],
    code: int,
    message: str,
    trained: Any,
    draw_video: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw_video()
    monkeypatch.chdir(tmp_path)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert predict(trained, *words, to=tmp_path / "out") == code
    (*_, last) = capsys.readouterr().err.splitlines()
    assert last.startswith("detector predict: ")
    assert message in last
    assert "secret" not in last


def test_display_without_gui_support_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from detector.cli import show

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:                           NONE\n")
    with pytest.raises(ConfigError, match="opens windows, got opencv-python-headless"):
        show.require_display()
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:                           QT5\n")
    show.require_display()


def test_images_are_read_from_stdin(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = b"".join(path.read_bytes() for path in sorted(trained.images.iterdir())[:3])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(encoded)))
    assert predict(trained, "-", to=tmp_path / "out") == 0
    found = [(r["source"], r["frame"], r["time_s"]) for r in lines(tmp_path / "out")]
    assert found == [("stdin", n, None) for n in range(3)]
    assert num_frames(tmp_path / "out/stdin.mp4") == 3


@pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_leaves_a_playable_video(
    number: int, trained: Any, draw_video: Callable[..., Path], tmp_path: Path
) -> None:
    listed, out, is_over = tmp_path / "list.txt", tmp_path / "out", threading.Event()
    listed.write_text(f"{draw_video()}\n" * 200)

    def interrupt() -> None:
        while not is_over.wait(0.02):
            if (out / "predictions.jsonl").exists() and len(lines_so_far(out)) >= 70:
                os.kill(os.getpid(), number)
                return

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        assert predict(trained, listed, to=out) == 128 + number
    finally:
        is_over.set()
        thread.join()
    videos = sorted(out.glob("*.mp4"))
    assert 2 <= len(videos) < 50
    assert sum(num_frames(path) for path in videos) == len(lines(out))  # what was found is what was drawn


def lines_so_far(folder: Path) -> list[str]:
    return (folder / "predictions.jsonl").read_text("utf-8").splitlines()


def test_python_streams_a_video_frame_by_frame(trained: Any, draw_video: Callable[..., Path], tmp_path: Path) -> None:
    detector, path = Detector(trained.weights), draw_video(num_frames=10)
    records = list(detector.stream([path, tmp_path / "none.mp4", sorted(trained.images.iterdir())[0]], stride=3))
    frames = [r.source.frame for r in records if r.source.frame is not None and r.error is None]
    assert [(f.index, f.time_s) for f in frames] == [(n, n / 25) for n in (0, 3, 6, 9)]
    assert [r.error is None for r in records] == [True] * 4 + [False, True]
    detections = detector.predict(path)
    assert isinstance(detections, list)
    assert len(detections) == 10
    assert len(detections[3]) == len(only_detections(records[1]))
    with pytest.raises(MediaError, match="there is no such file"):
        detector.predict([tmp_path / "none.mp4"])
    with pytest.raises(ConfigError, match="camera:0 has no end that predict could wait for; use stream"):
        detector.predict("camera:0")
    with pytest.raises(ConfigError, match="allow_url=True"):
        detector.stream("rtsp://host/x")
