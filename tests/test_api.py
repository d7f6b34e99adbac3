from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import detector
from detector import Detections, Detector, DetectorError
from detector.errors import CheckpointError, ConfigError, DatasetError, MediaError
from detector.inference.shown_results import ImageDetections
from detector.media.images import read_image
from detector.models.checkpoint import load_model_file
from detector.training.events import Event, StepDone

SETTINGS: dict[str, Any] = {
    "model": {"width": 0.125, "depth": 0.1, "max_channels": 64},
    "input": {"size": 64},
    "loader": {"workers": 0, "batch_size": 4},
    "augment": {"albumentations": [], "mosaic": 0.0},
    "device": "cpu",
}


def data_of(root: Path) -> dict[str, Any]:
    splits = {
        name: {"annotations": root / "annotations" / f"{name}.json", "images": root / "images" / name}
        for name in ("train", "val")
    }
    return {"name": "coco", **splits}


def train_settings(project: Path, **changes: Any) -> dict[str, Any]:
    train = {"iterations": 3, "evaluations": 1, "precision": "fp32", "project": str(project), **changes}
    return {**SETTINGS, "train": train}


@pytest.fixture(scope="module")
def weights(tiny_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a model for sixty steps: its detections are poor but differ between images."""
    settings = train_settings(tmp_path_factory.mktemp("api"), iterations=60)
    return (
        Detector("mish-n").train(data_of(tiny_shapes), optimizer={"name": "adamw", "lr": 0.01}, **settings).folder.best
    )


@pytest.fixture
def images(tiny_shapes: Path) -> Path:
    return tiny_shapes / "images/val"


def bits(found: Detections) -> tuple[object, ...]:
    return (*(t.numpy().tobytes() for t in (found.source_xyxy, found.scores, found.labels)), found.image_hw)


def single(found: ImageDetections | list[ImageDetections]) -> Detections:
    assert isinstance(found, Detections)
    return found


def several(found: ImageDetections | list[ImageDetections]) -> list[ImageDetections]:
    assert isinstance(found, list)
    return found


# --- predict ---------------------------------------------------------------------------------------------------------


def test_every_kind_of_image_gives_the_same_detections(weights: Path, images: Path) -> None:
    model = Detector(weights)
    path = images / "000001.jpg"
    pixels = read_image(path)
    expected = single(model.predict(path, confidence=0.0))
    assert len(expected) > 10
    assert expected.image_hw == (64, 64)
    assert set(expected.names) <= set(model.class_names)
    for given in (str(path), pixels, Image.fromarray(pixels), torch.from_numpy(pixels).permute(2, 0, 1)):
        assert bits(single(model.predict(given, confidence=0.0))) == bits(expected)


def test_several_images_give_a_list_in_order(weights: Path, images: Path, tmp_path: Path) -> None:
    model = Detector(str(weights))
    paths = sorted(images.iterdir())
    expected = [bits(single(model.predict(path, confidence=0.0))) for path in paths]
    assert len(set(expected)) == len(paths) == 6
    assert [bits(d) for d in several(model.predict(images, confidence=0.0))] == expected
    assert [bits(d) for d in several(model.predict(f"{images}/*.jpg", confidence=0.0))] == expected
    assert [bits(d) for d in several(model.predict(paths[::-1], confidence=0.0))] == expected[::-1]
    (tmp_path / "list.txt").write_text(f"{paths[2]}\n{paths[0]}\n")
    assert [bits(d) for d in several(model.predict(tmp_path / "list.txt", confidence=0.0))] == [
        expected[2],
        expected[0],
    ]
    mixed = [read_image(paths[1]), paths[3]]
    assert [bits(d) for d in several(model.predict(mixed, confidence=0.0))] == [expected[1], expected[3]]
    assert model.predict([]) == []
    assert len(several(model.predict(paths[:1]))) == 1


def test_views_are_requested_by_their_keys(weights: Path, images: Path) -> None:
    model = Detector(weights)
    path = images / "000001.jpg"
    plain = bits(single(model.predict(path, confidence=0.0)))
    looked = bits(single(model.predict(path, confidence=0.0, views={"tile": 40, "flip": True})))
    assert looked != plain
    (record,) = model.stream(path, confidence=0.0, batch_size=1, views={"tile": 40, "flip": True})
    assert record.detections is not None
    assert bits(record.detections) == looked
    assert bits(single(model.predict(path, confidence=0.0))) == plain
    with pytest.raises(ConfigError, match="did you mean 'tile'"):
        model.predict(path, views={"tyle": 40})


def test_settings_filter_the_detections(weights: Path, images: Path) -> None:
    model = Detector(weights)
    path = images / "000001.jpg"
    everything = single(model.predict(path, confidence=0.0, iou=1.0, max_detections=1000))
    assert len(everything) == 6 * (64 + 16 + 4)  # every class of every cell
    some = single(model.predict(path, confidence=float(everything.scores[20]), iou=1.0))
    assert len(some) >= 21
    assert (some.scores >= everything.scores[20]).all()
    assert len(single(model.predict(path, confidence=0.0, max_detections=7))) == 7
    assert set(single(model.predict(path, confidence=0.0, classes=[2, 4])).labels.tolist()) == {2, 4}
    agnostic = single(model.predict(path, confidence=0.0, class_agnostic=True))
    assert 0 < len(agnostic) < len(single(model.predict(path, confidence=0.0)))
    assert len(single(model.predict(path, confidence=1))) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"confidnce": 0.5}, "unknown key 'confidnce'; did you mean 'confidence'"),
        ({"conf": 0.5}, "unknown key 'conf'"),
        ({"confidence": 2.0}, "confidence and iou: expected values within 0..1, got 2.0"),
        ({"confidence": "high"}, "confidence: expected a valid number, got the text 'high'"),
        ({"classes": ["circel"]}, "classes: expected a class of the model, got 'circel'; did you mean 'circle'?"),
        ({"classes": [6]}, "classes: expected a class of the model, got 6; it has 0 to 5"),
        ({"classes": [-1]}, "classes: expected a class of the model, got -1"),
        ({"classes": [True]}, "classes: expected a class of the model, got True"),
        ({"classes": 1.5}, "classes: expected a class of the model, got 1.5"),
        ({"max_detections": 0}, "max_detections: expected at least 1"),
    ],
)
def test_wrong_setting_is_rejected_by_name(settings: dict[str, Any], message: str, weights: Path, images: Path) -> None:
    model = Detector(weights)
    with pytest.raises(ConfigError) as caught:
        model.predict(images / "000001.jpg", **settings)
    assert message in str(caught.value)


def test_unreadable_image_is_an_error_in_predict_and_a_record_in_stream(
    weights: Path, images: Path, tmp_path: Path
) -> None:
    model = Detector(weights)
    (tmp_path / "bad.jpg").write_text("no image")
    given = [images / "000001.jpg", tmp_path / "bad.jpg", tmp_path / "none.jpg", images / "000002.jpg"]
    with pytest.raises(MediaError, match=r"bad\.jpg cannot be decoded"):
        model.predict(given)
    with pytest.raises(MediaError, match=r"none\.jpg: no such image"):
        model.predict(tmp_path / "none.jpg")
    with pytest.raises(MediaError, match="expected a path, array, PIL image or tensor, got NoneType"):
        model.predict(None)
    for batch_size in (1, 3):
        records = list(model.stream(given, batch_size=batch_size, confidence=0.0))
        assert [record.source.path for record in records] == given
        assert ["bad" in (r.error or "") or "none" in (r.error or "") for r in records] == [False, True, True, False]
        for record, path in ((records[0], given[0]), (records[3], given[3])):
            alone = single(model.predict(path, confidence=0.0))
            assert record.detections is not None
            torch.testing.assert_close(record.detections.scores, alone.scores, rtol=0, atol=1e-5)
            assert batch_size > 1 or bits(record.detections) == bits(alone)


def test_stream_takes_arrays_and_returns_the_image(weights: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    (record,) = Detector(weights).stream(pixels)
    assert record.image is not None
    assert record.detections is not None
    np.testing.assert_array_equal(record.image, pixels)
    assert record.detections.image_hw == (40, 90)


# --- construction ---------------------------------------------------------------------------------------------------


def test_detector_without_weights_is_an_error() -> None:
    model = Detector("mish-n")
    for use in (lambda: model.predict(np.zeros((8, 8, 3), np.uint8)), lambda: model.class_names, model.evaluate):
        with pytest.raises(CheckpointError, match="this detector has no weights yet; train it, or open a model file"):
            use()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("mish-q", ConfigError, "no configuration file or preset is named 'mish-q'; did you mean 'mish-"),
        ("none.yaml", ConfigError, "no configuration file or preset is named 'none.yaml'"),
        ("none.safetensors", CheckpointError, r"none\.safetensors does not exist"),
        ("none.pt", CheckpointError, r"none\.pt does not exist"),
    ],
)
def test_missing_model_is_rejected(name: str, error: type[DetectorError], message: str) -> None:
    with pytest.raises(error, match=message):
        Detector(name)


def test_training_state_is_a_model(weights: Path, images: Path) -> None:
    path = images / "000001.jpg"
    last = Detector(weights.with_name("last.safetensors"))
    assert last.class_names == Detector(weights).class_names
    assert bits(single(last.predict(path))) == bits(single(Detector(weights).predict(path)))


# --- evaluate --------------------------------------------------------------------------------------------------------


def test_evaluate_uses_the_split_of_training_or_another(weights: Path, tiny_shapes: Path, tmp_path: Path) -> None:
    model = Detector(weights)
    found = model.evaluate()
    assert found.metrics.num_images == 6
    assert found.metrics.ap == load_model_file(weights).metrics["AP"]
    assert model.evaluate(split="train").metrics.num_images == 12
    assert model.evaluate(data_of(tiny_shapes)) == found
    split = f"{{annotations: {tiny_shapes}/annotations/train.json, images: {tiny_shapes}/images/train}}"
    (tmp_path / "my.yaml").write_text(f"name: coco\nval: {split}\n")
    for data in (tmp_path / "my.yaml", str(tmp_path / "my.yaml")):
        assert model.evaluate(data).metrics.num_images == 12
    every = model.evaluate(evaluate={"max_detections": 1, "confidence": 0.0})
    assert len(every.results) > 6 * 100  # metrics need 100 of each class, whatever the limit of an image
    assert model.evaluate(evaluate={"confidence": 1.0}).results == []
    assert model.config.evaluate.max_detections == 300  # a setting holds for one call
    assert model.config.evaluate.confidence < 1


def test_evaluate_reports_wrong_arguments(weights: Path, tiny_shapes: Path, tmp_path: Path) -> None:
    model = Detector(weights)
    with pytest.raises(DatasetError, match="the data set has no split 'test'"):
        model.evaluate(split="test")
    with pytest.raises(DatasetError, match=r"none\.json|does not exist"):
        model.evaluate({"name": "coco", "val": {"annotations": tmp_path / "none.json", "images": tmp_path}})
    with pytest.raises(ConfigError, match=r"unknown key 'evaluate\.io'; did you mean 'iou'"):
        model.evaluate(evaluate={"io": 0.5})
    with pytest.raises(ConfigError, match="unknown key 'evalute'; did you mean 'evaluate'"):
        model.evaluate(evalute={"iou": 0.5})  # type: ignore[call-arg]  # on purpose
    with pytest.raises(ConfigError, match="data: expected a section of keys"):
        model.evaluate(3)  # type: ignore[arg-type]  # on purpose


# --- train -----------------------------------------------------------------------------------------------------------


def test_training_updates_the_detector(tiny_shapes: Path, images: Path, tmp_path: Path) -> None:
    model = Detector("mish-n")
    events: list[Event] = []
    result = model.train(data_of(tiny_shapes), report=events.append, **train_settings(tmp_path))
    assert sum(isinstance(event, StepDone) for event in events) == 3
    assert model.class_names == ("circle", "square", "triangle", "star", "cross", "crescent")
    assert model.config.input.size == 64
    found = single(model.predict(images / "000001.jpg", confidence=0.0))
    assert bits(found) == bits(single(Detector(result.folder.best).predict(images / "000001.jpg", confidence=0.0)))

    again = model.train(train={"iterations": 1})  # continues from these weights with the same settings
    assert again.folder.path == tmp_path / "train2"
    after = single(model.predict(images / "000001.jpg", confidence=0.0))
    assert bits(after) != bits(found)
    before, trained = (load_model_file(r.folder.best).state for r in (result, again))
    from_random = model.config.optimizer.lr * 10  # one step changes a weight much less than a new random start
    moved = [float((trained[n] - t).abs().mean()) for n, t in before.items() if n.endswith("conv.weight")]
    assert 0 < max(moved) < from_random


def test_train_reports_wrong_arguments(tiny_shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no data set is configured"):
        Detector("mish-n").train(**train_settings(tmp_path))
    with pytest.raises(ConfigError, match=r"unknown key 'train\.epoch'; did you mean 'epochs'"):
        Detector("mish-n").train(data_of(tiny_shapes), train={"epoch": 3})
    with pytest.raises(ConfigError, match=r"input\.size"):
        Detector("mish-n").train(data_of(tiny_shapes), **{**train_settings(tmp_path), "input": {"size": 70}})
    data = Path(shutil.copytree(tiny_shapes, tmp_path / "data"))
    for path in (data / "images/train").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match="images in a row cannot be read"):
        Detector("mish-n").train(data_of(data), **train_settings(tmp_path))


def test_package_exports_its_public_names() -> None:
    assert detector.Detector is Detector
    assert set(detector.__all__) == {"Classifier", "Detections", "Detector", "DetectorError", "__version__", "register"}
    assert all(hasattr(detector, name) for name in detector.__all__)
    with pytest.raises(AttributeError, match="module 'detector' has no attribute 'YOLO'"):
        detector.YOLO  # noqa: B018  # the access is the test
