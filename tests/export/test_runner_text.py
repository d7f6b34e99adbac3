"""The program run.py: equal to `Detector.predict` on the same file, without torch and without this package."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from detector import Detector
from detector.errors import ConfigError
from detector.export.export_config import ExportSettings
from detector.export.runner_text import RUNNER_NAME, runner_text
from detector.tasks.detection_model import load_model
from detector.workflows.export import export_model

BLOCKED = ("torch", "torchvision", "detector", "pydantic", "matplotlib", "scipy", "onnx")
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The text of the program, imported as a module of its own."""
    path = tmp_path_factory.mktemp("runner") / RUNNER_NAME
    path.write_text(runner_text(), encoding="utf-8")
    specification = importlib.util.spec_from_file_location("written_runner", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["written_runner"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


def images() -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.integers(0, 256, (*hw, 3), dtype=np.uint8) for hw in ((48, 80), (121, 64), (64, 64), (31, 9), (7, 200))]


def assert_equal(program: ModuleType, path: Path, pictures: list[np.ndarray], least: int, **settings: Any) -> None:
    """Compare order, classes, boxes and scores of the program and of the package on one file."""
    detector, runner = Detector(path), program.Runner(path, num_threads=1, **settings)
    num_found = 0
    for picture in pictures:
        detections = detector.predict(picture, **settings)
        assert not isinstance(detections, list)
        expected, found = detections.boxes, runner.predict(picture)
        assert [(box.name, box.label, box.category_id) for box in found] == [
            (box.name, box.label, box.category_id) for box in expected
        ]
        for one, other in zip(expected, found, strict=True):
            assert abs(one.score - other.score) <= TOLERANCE
            corners = [(getattr(one, side), getattr(other, side)) for side in ("x1", "y1", "x2", "y2")]
            assert max(abs(a - b) for a, b in corners) <= 1e-3
        num_found += len(expected)
    assert num_found >= least


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_program_equals_predict_on_a_darknet_network(target, exported, program):
    assert_equal(program, exported(target).exported.files[0], images(), 100, confidence=0.1)


@pytest.mark.parametrize("network", ["darknet_file", "yolo_file", "yolox_file"])
@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
def test_program_equals_predict_for_each_network_and_fit(network, fit, program, request, tmp_path, tiny_shapes):
    """Centred for mish, top-left for YOLOX; the arithmetic of Darknet; each stretched too."""
    loaded = load_model(request.getfixturevalue(network), [f"input.fit={fit}"])
    settings, few = ExportSettings("onnx", runner=True), tiny_shapes / "images/val"
    report = export_model(loaded, tmp_path / "m.onnx", settings, check_images=few)
    assert [file.name for file in report.exported.files] == ["m.onnx", RUNNER_NAME]
    assert report.exported.files[1].read_text(encoding="utf-8") == runner_text()
    confidence = 1e-5 if network == "yolox_file" else 0.05  # trained weights find little in noise
    assert_equal(program, tmp_path / "m.onnx", images(), 20, confidence=confidence)
    assert_equal(program, tmp_path / "m.onnx", images(), 10, confidence=confidence, iou=0.3)


def test_program_runs_a_file_with_its_own_suppression(selecting_onnx, program):
    assert_equal(program, selecting_onnx, images(), 20)
    with pytest.raises(program.ConfigError, match="confidence of at least"):
        program.Runner(selecting_onnx, confidence=0.1)


def test_program_selects_by_score_alone_where_nothing_is_suppressed(dual_file, program, tmp_path, tiny_shapes):
    path = tmp_path / "m.onnx"
    export_model(load_model(dual_file), path, ExportSettings("onnx"), check_images=tiny_shapes / "images/val")
    assert_equal(program, path, images(), 20, confidence=0.05)
    with pytest.raises(program.ConfigError, match="--iou: the model gives each object one box"):
        program.Runner(path, iou=0.5)
    with pytest.raises(ConfigError, match="iou: expected a model whose boxes suppress each other"):
        Detector(path).predict(images()[0], iou=0.5)


@pytest.mark.nightly
@pytest.mark.parametrize("weights", ["yolox-nano", "darknet_file", "yolo_file"])
def test_program_equals_predict_on_photos(weights, program, data_folder, tmp_path, request):
    source = Path(request.getfixturevalue(weights)) if weights.endswith("_file") else Path(weights)
    export_model(load_model(source), tmp_path / "m.onnx", ExportSettings("onnx"))
    photos = sorted(data_folder.rglob("*.jpg"))
    photos = photos[:: max(1, len(photos) // 200)][:200]
    runner, detector = program.Runner(tmp_path / "m.onnx", 0.05, num_threads=1), Detector(tmp_path / "m.onnx")
    num_found = 0
    for photo in photos:
        expected, found = detector.predict(photo, confidence=0.05).boxes, runner.predict(runner.read(photo))
        assert [box.label for box in found] == [box.label for box in expected], photo
        pairs = [
            (getattr(one, name), getattr(other, name))
            for one, other in zip(expected, found, strict=True)
            for name in ("score", "x1", "y1", "x2", "y2")
        ]
        assert all(abs(a - b) <= (TOLERANCE if a <= 1 else 1e-3) for a, b in pairs), photo
        num_found += len(found)
    assert num_found > len(photos)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which torch, this package and others that it needs cannot be imported."""
    folder = tmp_path_factory.mktemp("blocked")
    for name in BLOCKED:
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is blocked')")
    (folder / "home").mkdir()
    kept = {key: value for key, value in os.environ.items() if key not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")}
    return {**kept, "PYTHONPATH": str(folder), "HOME": str(folder / "home")}


def started(bare: dict[str, str], folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / RUNNER_NAME), *map(str, words)]
    return subprocess.run(command, env=bare, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_program_detects_in_images_folders_and_videos_without_torch(selecting_onnx, bare, tmp_path):
    (tmp_path / RUNNER_NAME).write_text(runner_text(), encoding="utf-8")
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, picture in enumerate(images()[:2]):
        cv2.imwrite(str(photos / f"{number}.png"), picture)
    (photos / "2.jpg").write_bytes(b"no image")
    writer = cv2.VideoWriter(str(photos / "3.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (80, 48))
    for _ in range(3):
        writer.write(images()[0])
    writer.release()
    done = started(bare, tmp_path, selecting_onnx, photos, "--out", "results", "--threads", "1")
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines() == [f"{photos}/2.jpg cannot be decoded: it is damaged or no image"]
    assert not done.stdout
    records = [json.loads(line) for line in (tmp_path / "results/predictions.jsonl").read_text().splitlines()]
    assert [Path(record["source"]).name for record in records] == ["0.png", "1.png", "2.jpg", *["3.avi"] * 3]
    assert [record.get("frame") for record in records] == [None] * 3 + [0, 1, 2]
    assert records[4]["time_s"] == 0.2
    assert "error" in records[2]
    expected = Detector(selecting_onnx).predict(photos / "0.png")
    assert [box["score"] for box in records[0]["detections"]] == [round(box.score, 5) for box in expected.boxes]
    assert records[0]["detections"][0].keys() >= {"name", "label", "category_id", "score", "x1", "y1", "x2", "y2"}
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == [
        "0.jpg", "1.jpg", "3.mp4", "predictions.jsonl",
    ]  # fmt: skip
    assert list(Path(bare["HOME"]).iterdir()) == []  # ONNX Runtime reports nothing
    drawn = cv2.imread(str(tmp_path / "results/0.jpg"))
    assert drawn.shape == (48, 80, 3)


def test_program_names_wrong_words_in_one_sentence(selecting_onnx, program, tmp_path, capsys):
    changed = tmp_path / "changed.onnx"
    content = bytearray(selecting_onnx.read_bytes())
    content[len(content) // 2] ^= 1
    changed.write_bytes(content)
    (tmp_path / "empty").mkdir()
    cases = {
        (changed, tmp_path): 4,
        (tmp_path / "missing.onnx", tmp_path): 4,
        (selecting_onnx, tmp_path / "missing.jpg"): 3,
        (selecting_onnx, tmp_path / "empty"): 3,
        (selecting_onnx, tmp_path, "--confidence", "2"): 2,
        (selecting_onnx, tmp_path, "--out", tmp_path): 2,
    }
    for words, code in cases.items():
        assert program.main([str(word) for word in words]) == code, words
        message = capsys.readouterr().err
        assert message.startswith(("run.py: ", str(tmp_path))), message
        assert message.count("\n") == 1


def test_program_is_refused_where_it_cannot_run(darknet_file, yolo_file, tmp_path):
    with pytest.raises(ConfigError, match="--runner is for onnx and openvino, got torchscript"):
        ExportSettings("torchscript", runner=True)
    loaded = load_model(darknet_file, ["views.flip=true"])
    with pytest.raises(ConfigError, match="expected one view of each image"):
        export_model(loaded, tmp_path / "m.onnx", ExportSettings("onnx", runner=True))
    (tmp_path / RUNNER_NAME).write_text("print('my own program')")
    with pytest.raises(ConfigError, match=r"run\.py: already exists and is another program"):
        Detector(darknet_file).export(tmp_path / "m.onnx", runner=True)
    assert not (tmp_path / "m.onnx").exists()


def test_program_needs_three_libraries_only():
    lines = runner_text().splitlines()
    imported = {line.split()[1].partition(".")[0] for line in lines if line.lstrip().startswith(("import ", "from "))}
    assert imported - set(sys.stdlib_module_names) - {"detector"} == {"cv2", "numpy", "onnxruntime", "openvino"}
    assert not any(line.lstrip().startswith(("from detector", "import detector")) for line in lines)


def test_program_takes_names_that_are_not_utf_8(program, tmp_path):
    name, picture = os.fsdecode(b"\xff"), np.zeros((16, 16, 3), np.uint8)
    folder = program.Folder(tmp_path / "out")
    folder.write(program.Shown(Path(f"{name}.png"), picture), picture)
    folder.write(program.Shown(Path(f"{name}.mp4"), picture, None, 0), picture)
    folder.close()
    assert {path.name for path in folder.path.iterdir()} == {f"{name}.jpg", f"{name}.mp4"}
    colour = SimpleNamespace(input=SimpleNamespace(channels=3))
    assert [shown.error for shown in program.shown_of(colour, folder.path / f"{name}.mp4")] == [None]


def test_program_takes_folders_of_folders_without_its_own_pictures(program, tmp_path):
    for name in ("a.png", "b/c.png", "b/d/e.mp4/f.png", "results/a.jpg", "results/predictions.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    runner = SimpleNamespace(read=lambda path: None, input=SimpleNamespace(channels=3))
    names = [str(shown.path.relative_to(tmp_path)) for shown in program.shown_of(runner, tmp_path)]
    assert names == ["a.png", "b/c.png", "b/d/e.mp4", "b/d/e.mp4/f.png"]
    assert [shown.path.name for shown in program.shown_of(runner, tmp_path / "results")] == ["a.jpg"]


def test_picture_that_no_jpeg_can_hold_is_a_png(selecting_onnx, program, tmp_path):
    (tmp_path / "photos").mkdir()
    for name, width in (("a", 65_501), ("b", 40)):
        cv2.imwrite(str(tmp_path / f"photos/{name}.png"), np.zeros((8, width, 3), np.uint8))
    words = [selecting_onnx, tmp_path / "photos", "--out", tmp_path / "out", "--threads", "1"]
    assert program.main([str(word) for word in words]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.jpg", "predictions.jsonl"]
    assert cv2.imread(str(tmp_path / "out/a.png")).shape == (8, 65_501, 3)
    Detector(selecting_onnx).run(tmp_path / "photos", save_dir=tmp_path / "detector")
    assert {path.name for path in (tmp_path / "detector").iterdir()} >= {"a.png", "b.jpg"}


def test_program_names_a_missing_runtime_and_a_failed_write(program, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert program.main(["a.onnx", str(tmp_path)]) == 1
    assert "run.py: import of onnxruntime halted" in capsys.readouterr().err
    (tmp_path / "out/predictions.jsonl").mkdir(parents=True)
    monkeypatch.setattr(program, "Folder", lambda path: SimpleNamespace(path=path))
    assert program.main(["a.onnx", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "run.py: [Errno 21] Is a directory" in capsys.readouterr().err
