"""`Detector` in a script or notebook: keywords, results that show themselves, copies, progress."""

from __future__ import annotations

import copy
import dataclasses
import functools
import http.server
import inspect
import io
import itertools
import json
import pickle
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from PIL import Image

from detector import Classifier, Detector
from detector.cli.main import run as command_line
from detector.errors import ConfigError, DetectorError, MediaError
from detector.export.export_config import ExportSettings
from detector.inference.prediction_run import PredictionOptions
from detector.inference.predictor import Prediction
from detector.inference.shown_results import ImageDetections
from detector.media.images import read_image
from detector.structures.selection import SelectConfig
from detector.structures.types import Detections
from detector.tasks.classification_config import ClassificationConfig
from detector.tasks.detection_config import DetectionConfig
from detector.training.events import Event, Started
from detector.workflows import keywords, training_progress

CLASSES = ("circle", "square", "triangle", "star", "cross", "crescent")
LOOSE: dict[str, Any] = {"confidence": 0.0, "max_detections": 20}


def settings(root: Path, project: Path) -> dict[str, Any]:
    """Return the settings of a run of one step, whose model finds much, if not the right things."""
    splits = {
        name: {"annotations": root / "annotations" / f"{name}.json", "images": root / "images" / name}
        for name in ("train", "val")
    }
    return {
        "data": {"name": "coco", **splits},
        "model": {"width": 0.125, "depth": 0.1, "max_channels": 64},
        "input": {"size": 64},
        "loader": {"workers": 0, "batch_size": 4},
        "augment": {"albumentations": [], "mosaic": 0.0},
        "device": "cpu",
        "train": {"iterations": 1, "evaluations": 1, "precision": "fp32", "project": str(project)},
    }


@pytest.fixture(scope="module")
def weights(tiny_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Detector("mish-n").train(**settings(tiny_shapes, tmp_path_factory.mktemp("interface"))).folder.best


@pytest.fixture(scope="module")
def image(tiny_shapes: Path) -> Path:
    return tiny_shapes / "images/val/000001.jpg"


def single(found: Any) -> ImageDetections:
    assert isinstance(found, ImageDetections)
    return found


def bits(found: Detections) -> tuple[bytes, ...]:
    return tuple(t.numpy().tobytes() for t in (found.source_xyxy, found.scores, found.labels))


def decoded(png: bytes | None) -> np.ndarray:
    picture = cv2.imdecode(np.frombuffer(png or b"", np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return picture


# --- input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_same_boxes_for_a_path_an_array_a_pil_image_and_bytes(
    orientation: int, weights: Path, image: Path, tmp_path: Path
) -> None:
    exif, path = Image.Exif(), tmp_path / "turned.png"
    exif[0x0112] = orientation
    Image.open(image).crop((0, 0, 64, 40)).save(path, exif=exif)
    model, pixels = Detector(weights), read_image(path)
    expected = single(model.predict(path, **LOOSE))
    assert len(expected) == 20
    assert expected.image_hw == ((40, 64) if orientation == 1 else (64, 40))
    for given in (pixels, Image.open(path), path.read_bytes(), torch.from_numpy(pixels).permute(2, 0, 1)):
        assert bits(single(model.predict(given, **LOOSE))) == bits(expected)
    bgr = cv2.imread(str(path))
    assert bits(single(model.predict(bgr, channel_order="bgr", **LOOSE))) == bits(expected)
    (record,) = model.stream(bgr, channel_order="bgr", **LOOSE)
    assert record.detections is not None
    assert bits(record.detections) == bits(expected)
    summary = model.run(bgr, channel_order="bgr", save_dir=tmp_path / "out", pictures=False, **LOOSE)
    assert summary.num_read == 1


def test_grey_image_gives_the_boxes_of_its_file(weights: Path, image: Path, tmp_path: Path) -> None:
    grey = Image.open(image).convert("L")
    grey.save(tmp_path / "grey.png")
    model = Detector(weights)
    expected = bits(single(model.predict(tmp_path / "grey.png", **LOOSE)))
    for given in (grey, np.asarray(grey), np.asarray(grey)[..., None]):
        assert bits(single(model.predict(given, **LOOSE))) == expected


@pytest.fixture(scope="module")
def server(image: Path) -> Iterator[str]:
    """Serve the folder of the image."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            pass

    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(image.parent)))
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()
    serving.server_close()


def test_address_of_a_picture_is_predicted_once(
    weights: Path, image: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, address = Detector(weights), f"{server}/{image.name}"
    found = single(model.predict(address, allow_url=True, **LOOSE))
    assert bits(found) == bits(single(model.predict(image, **LOOSE)))
    np.testing.assert_array_equal(found.image, read_image(image))
    assert len(list(model.stream(address, allow_url=True, **LOOSE))) == 1
    words = [str(weights), address, "--allow-url", "--no-pictures", "--save-dir", str(tmp_path), "-q"]
    assert command_line(["predict", *words]) == 0
    (record,) = json.loads((tmp_path / "predictions.json").read_text(encoding="utf-8"))
    assert record["source"] == address
    with pytest.raises(ConfigError, match="in Python: allow_url=True"):
        model.predict(address)
    monkeypatch.setattr("detector.media.sources.kind_of_content", lambda url: "multipart")
    with pytest.raises(ConfigError, match="has no end that predict could wait for; use stream"):
        model.predict(address, allow_url=True)


class Camera:
    """Endless source that notes how many images were taken from it."""

    def __init__(self, picture: np.ndarray) -> None:
        self.picture, self.num_taken = picture, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for _ in itertools.count():
            self.num_taken += 1
            yield self.picture


@pytest.mark.parametrize("batch_size", [1, 3])
def test_stream_of_an_endless_generator_takes_no_more_than_a_batch(weights: Path, image: Path, batch_size: int) -> None:
    camera = Camera(read_image(image))
    for given in (camera, iter(camera)):
        camera.num_taken = 0
        records = Detector(weights).stream(given, batch_size=batch_size, **LOOSE)
        for number in range(1, 6):
            assert next(records).detections is not None
            assert camera.num_taken == -(-number // batch_size) * batch_size
        records.close()  # type: ignore[attr-defined]  # a generator


def test_stream_of_a_generator_mixes_all_kinds_and_writes_files(
    weights: Path, image: Path, draw_video: Any, tmp_path: Path
) -> None:
    model, video = Detector(weights), draw_video(num_frames=3)
    given = (item for item in (image, video, read_image(image), tmp_path / "none.jpg"))
    records = list(model.stream(given, save_dir=tmp_path / "out", formats=("json", "csv"), **LOOSE))
    assert [r.source.frame.index if r.source.frame else None for r in records] == [None, 0, 1, 2, None, None]
    assert "no such file" in (records[-1].error or "")
    alone = single(model.predict(image, **LOOSE))
    for record in (records[0], records[4]):
        assert record.detections is not None
        assert bits(record.detections) == bits(alone)
    lines = (tmp_path / "out/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(records)
    with pytest.raises(ConfigError, match="expected videos to track objects in"):
        list(model.stream(iter([image]), track=True))
    with pytest.raises(ConfigError, match="channel_order"):
        model.stream(iter([image]), channel_order="gbr")  # type: ignore[arg-type]  # on purpose


def test_stream_of_a_generator_never_overwrites_a_source(weights: Path, image: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "out" / name).write_bytes(image.read_bytes())
    given = (tmp_path / "out" / name for name in ("a.jpg", "b.jpg"))
    list(Detector(weights).stream(given, save_dir=tmp_path / "out", **LOOSE))
    assert all((tmp_path / "out" / name).read_bytes() == image.read_bytes() for name in ("a.jpg", "b.jpg"))
    assert {path.name for path in (tmp_path / "out").glob("*.jpg")} == {"a.jpg", "b.jpg", "a_2.jpg", "b_2.jpg"}


def test_classes_are_given_by_name_or_index(weights: Path, image: Path) -> None:
    model = Detector(weights)
    everything: dict[str, Any] = {"confidence": 0.0, "max_detections": 1000}
    expected = bits(single(model.predict(image, classes=[0, 3], **everything)))
    ways: tuple[Any, ...] = (["circle", "star"], ("star", 0), ["0", "3"], np.array([0, 3]), torch.tensor([3, 0]))
    for classes in ways:
        assert bits(single(model.predict(image, classes=classes, **everything))) == expected
    assert set(single(model.predict(image, classes="star", **everything)).names) == {"star"}
    assert set(single(model.predict(image, classes=3, **everything)).names) == {"star"}
    with pytest.raises(ConfigError, match="classes: expected at least one class, got an empty list"):
        model.predict(image, classes=[], **everything)
    assert bits(single(model.predict(image, classes=None, **everything))) == bits(
        single(model.predict(image, **everything))
    )


# --- results ---------------------------------------------------------------------------------------------------------


def test_results_are_drawn_saved_and_described(weights: Path, image: Path, tmp_path: Path) -> None:
    found = single(Detector(weights).predict(image, **LOOSE))
    assert repr(found).startswith("ImageDetections(20 in 64 x 64 pixels: ")
    assert [box.name for box in found.boxes] == found.names
    assert [len(one) for one in found] == [1] * 20
    picture = found.plot()
    assert picture.shape == (64, 64, 3)
    assert (picture != found.image).any()
    np.testing.assert_array_equal(found.plot(channel_order="bgr"), picture[..., ::-1])
    np.testing.assert_array_equal(found[:0].plot(), found.image)
    np.testing.assert_array_equal(read_image(found.save(tmp_path / "out.png")), picture)
    assert found.save(str(tmp_path / "out.png")) == tmp_path / "out.png"
    assert decoded(found._repr_png_()).shape == (64, 64, 3)
    page = found._repr_html_()
    assert page.startswith('<img src="data:image/png;base64,')
    assert "<th>name</th>" in page
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.plot(), picture)
    copied = tmp_path / "own.jpg"
    copied.write_bytes(image.read_bytes())
    own = single(Detector(weights).predict(copied, **LOOSE))
    with pytest.raises(MediaError, match=r"own\.jpg is the image itself, which is not overwritten"):
        own.save(copied)
    copied.write_bytes(image.read_bytes()[:100])
    assert own._repr_png_() is None
    assert own._repr_html_().startswith("<p>20 detections")
    Image.new("RGB", (9, 9)).save(copied)
    with pytest.raises(MediaError, match="has changed since the prediction"):
        own.plot()


def test_large_picture_is_reduced_for_a_notebook(weights: Path, image: Path) -> None:
    large = np.kron(read_image(image), np.ones((40, 21, 1), np.uint8))
    found = single(Detector(weights).predict(large, **LOOSE))
    assert decoded(found._repr_png_()).shape == (1280, 672, 3)
    assert found.plot().shape == (2560, 1344, 3)


def test_frames_are_drawn_from_a_stream_and_not_kept_by_predict(weights: Path, draw_video: Any, tmp_path: Path) -> None:
    model, video = Detector(weights), draw_video(num_frames=2)
    found = model.predict(video, **LOOSE)
    assert isinstance(found, list)
    with pytest.raises(MediaError, match="frames of a video are not kept; use"):
        found[0].plot()
    record = next(iter(model.stream(video, **LOOSE)))
    assert (read_image(record.save(tmp_path / "frame.png")) == record.plot()).all()
    missing = next(iter(model.stream([tmp_path / "none.jpg"])))
    assert isinstance(missing, Prediction)
    with pytest.raises(MediaError, match=r"none\.jpg cannot be read"):
        missing.plot()


def test_results_are_shown_in_a_notebook_or_window(weights: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, shown = single(Detector(weights).predict(image, **LOOSE)), list[Any]()
    monkeypatch.setattr(pyplot, "get_backend", lambda: "agg")
    with pytest.raises(DetectorError, match=r"show: expected a notebook or a display, got neither; use save\(PATH\)"):
        found.show()
    monkeypatch.setattr(pyplot, "get_backend", lambda: "TkAgg")
    monkeypatch.setattr(pyplot, "imshow", shown.append)
    monkeypatch.setattr(pyplot, "show", lambda: shown.append("window"))
    found.show()
    pyplot.close("all")
    np.testing.assert_array_equal(shown[0], found.plot())
    assert shown[1:] == ["window"]
    in_notebook(monkeypatch)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=shown.append))
    found.show()
    assert shown[-1] is found


def in_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process look like the kernel of a notebook."""
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    module = ModuleType("IPython")
    module.get_ipython = lambda: shell  # type: ignore[attr-defined]  # a stand-in
    monkeypatch.setitem(sys.modules, "IPython", module)


# --- keywords --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "owners"),
    [
        (keywords.SelectionKeywords, (SelectConfig,)),
        (keywords.RunKeywords, (SelectConfig, PredictionOptions)),
        (keywords.DetectionKeywords, (DetectionConfig,)),
        (keywords.ClassificationKeywords, (ClassificationConfig,)),
        (keywords.ExportKeywords, (ExportSettings, DetectionConfig)),
    ],
)
def test_keywords_are_the_fields_of_the_configurations(keys: type, owners: tuple[Any, ...]) -> None:
    fields = {field.name for owner in owners for field in dataclasses.fields(owner)}
    assert set(keys.__annotations__) == fields - {"data", "target", "task"}  # parameters of their own


@pytest.mark.parametrize(
    ("function", "key", "annotation"),
    [
        (Detector.predict, "confidence", "float | Literal['best', 'best-overall']"),
        (Detector.stream, "stride", "int"),
        (Detector.run, "save_dir", "str | Path | None"),
        (Detector.train, "train", "Section"),
        (Detector.evaluate, "views", "Section"),
        (Detector.export, "dynamic", "bool"),
        (Classifier.train, "optimizer", "str | Section"),
    ],
)
def test_signature_lists_every_keyword(function: Any, key: str, annotation: str) -> None:
    parameters = inspect.signature(function).parameters
    assert parameters[key].annotation == annotation
    assert parameters[key].kind is inspect.Parameter.KEYWORD_ONLY
    assert not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def test_device_is_chosen_on_opening(weights: Path, image: Path) -> None:
    assert Detector(weights, device="cpu").config.device == "cpu"
    assert Detector("mish-n", device=torch.device("cpu")).config.device == "cpu"
    assert Detector("mish-n").config.device == "auto"
    assert Classifier("classify", device="cpu").config.device == "cpu"
    for model in (weights, "mish-n"):
        with pytest.raises(ConfigError, match="device: expected auto, cpu, cuda, cuda:N or mps, got 'gpu'"):
            Detector(model, device="gpu")


def test_label_files_have_the_names_of_images_in_the_folder_of_results(
    weights: Path, image: Path, tmp_path: Path
) -> None:
    shutil.copy(image, tmp_path / f"own{image.suffix}")
    Detector(weights, device="cpu").run(tmp_path, save_dir=tmp_path, formats=("txt",), pictures=False)
    assert [path.name for path in (tmp_path / "labels").iterdir()] == ["own.txt"]


# --- copies ----------------------------------------------------------------------------------------------------------


def test_detector_is_pickled_and_copied_after_a_prediction(weights: Path, image: Path) -> None:
    model = Detector(weights, device="cpu")
    expected = bits(single(model.predict(image, **LOOSE)))
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), copy.copy(model)):
        assert bits(single(again.predict(image, **LOOSE))) == expected
        assert again.config == model.config
    assert repr(model) == f"Detector({str(weights)!r}, 6 classes)"
    untrained = pickle.loads(pickle.dumps(Detector("mish-n")))
    assert (untrained.config, repr(untrained)) == (Detector("mish-n").config, "Detector(no weights)")


def test_export_is_pickled_and_copied_after_a_prediction_and_not_overwritten(
    weights: Path, image: Path, tmp_path: Path
) -> None:
    model = Detector(weights)
    model.export(tmp_path / "best.torchscript", check_images=image)
    content = (tmp_path / "best.torchscript").read_bytes()
    with pytest.raises(ConfigError, match=r"best.torchscript: already exists; .*give overwrite=True"):
        model.export(tmp_path / "best.torchscript", check_images=image)
    assert (tmp_path / "best.torchscript").read_bytes() == content
    export = Detector(tmp_path / "best.torchscript")
    expected = bits(single(export.predict(image, **LOOSE)))
    for again in (pickle.loads(pickle.dumps(export)), copy.deepcopy(export)):
        assert bits(single(again.predict(image, **LOOSE))) == expected


# --- progress --------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """Stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("progress", "has_report", "is_terminal", "is_shown"),
    [
        (None, False, True, True),
        (None, False, False, False),
        (None, True, True, False),
        (True, True, False, True),
        (False, False, True, False),
    ],
)
def test_progress_is_shown_in_a_terminal_or_on_request(
    progress: bool | None, has_report: bool, is_terminal: bool, is_shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    events: list[Event] = []
    started = Started(Path("runs/x"), 8, 0, 2.0, "fp32", "cpu")
    with training_progress.shown_progress(events.append if has_report else None, progress) as told:
        told(started)
    assert ("training 8 steps (2.0 epochs) on cpu, fp32" in stream.getvalue()) == is_shown
    assert ("0/8" in stream.getvalue()) == (is_shown and is_terminal)
    assert events == ([started] if has_report else [])


def test_progress_is_shown_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    in_notebook(monkeypatch)
    with training_progress.shown_progress() as told:
        told(Started(Path("runs/x"), 8, 0, 2.0, "fp32", "cpu"))
    assert "0/8" in stream.getvalue()


def test_training_goes_on_when_the_terminal_has_gone(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(Terminal):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    result = Detector("mish-n").train(progress=True, **settings(tiny_shapes, tmp_path))
    monkeypatch.undo()
    assert result.finished
