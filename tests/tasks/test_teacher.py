"""The teacher of a run: its classes, its boxes on the canvas of the student, and the runs that it refuses."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.errors import CheckpointError, ConfigError, DatasetError
from detector.models.checkpoint import load_model_file
from detector.structures.types import Batch, Sample
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import build_predictor, load_model, read_split
from detector.tasks.teacher import Teacher
from detector.training.events import Event, Noted
from detector.workflows.train import open_run, train

Make = Callable[..., DetectionConfig]
Write = Callable[..., Path]
CPU = torch.device("cpu")


def batch_of(images: np.ndarray) -> Batch:
    empty = np.zeros(0, np.int64)
    boxes = np.zeros((0, 4), np.float32)
    return Batch.of([Sample(image, boxes, empty, empty.astype(bool), number) for number, image in enumerate(images)])


def noise(size: int, channels: int = 3, num: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, size, size, channels)).astype(np.uint8)


def teacher_of(config: DetectionConfig, events: list[str] | None = None) -> Teacher:
    def report(event: Event) -> None:
        if isinstance(event, Noted) and events is not None:
            events.append(event.text)

    return Teacher(config, read_split(config, "train"), report)


def test_classes_are_matched_by_name_and_those_without_a_partner_are_named(
    experiment: Make, teacher_weights: Path
) -> None:
    config = experiment(f"train.teacher={teacher_weights}")
    told: list[str] = []
    teacher = teacher_of(config, told)
    names = read_split(config, "train").class_names
    assert [name for name, known in zip(names, teacher.is_taught, strict=True) if known] == ["circle", "square"]
    lacking = [name for name in names if name not in ("circle", "square")]
    assert any(", ".join(lacking) in text and "learnt from the annotations alone" in text for text in told)
    (batch,) = teacher.taught(iter([batch_of(noise(64))]), CPU)
    taught = batch.targets.taught
    assert taught is not None
    is_other = torch.tensor([name in lacking for name in names])
    assert (taught.scores[..., is_other] == 0).all()
    assert (taught.scores[..., ~is_other] > 0.05).any()


def test_teacher_without_a_shared_class_is_refused(experiment: Make, tmp_path: Path, write_teacher: Write) -> None:
    path = write_teacher(tmp_path / "other.safetensors", names=("cat", "dog"))
    with pytest.raises(DatasetError, match=r"none of its categories .* is a class of the teacher other.safetensors"):
        teacher_of(experiment(f"train.teacher={path}"))


@pytest.mark.parametrize("teacher_size", [64, 96])
@pytest.mark.parametrize("channels", [3, 1])
def test_boxes_are_those_of_prediction_on_the_canvas_of_the_student(
    experiment: Make, tmp_path: Path, write_teacher: Write, teacher_size: int, channels: int
) -> None:
    canvas = f"input.size={teacher_size}", f"input.channels={channels}"
    path = write_teacher(tmp_path / "own.safetensors", *canvas, names=("square", "circle", "star"))
    config = experiment(f"train.teacher={path}")
    images = noise(64)
    names = read_split(config, "train").class_names
    (batch,) = teacher_of(config).taught(iter([batch_of(images)]), CPU)
    taught = batch.targets.taught
    assert taught is not None
    loaded = load_model(path)
    select = replace(loaded.config.predict, confidence=0.05, best_class=True, max_detections=100)
    given = images if channels == 3 else np.stack([grey(image) for image in images])
    for index, found in enumerate(build_predictor(loaded, batch_size=4).detect(list(given), select)):
        is_large = ((found.source_xyxy[:, 2:] - found.source_xyxy[:, :2]) >= 1).all(dim=1)
        found = found[is_large]
        scores = taught.scores[index, : len(found)]
        assert len(found) > 3
        assert (taught.scores[index, len(found) :] == 0).all()
        torch.testing.assert_close(taught.canvas_xyxy[index, : len(found)], found.source_xyxy)
        torch.testing.assert_close(scores.amax(dim=1), found.scores)
        assert [names[label] for label in scores.argmax(dim=1).tolist()] == found.names


def grey(image: np.ndarray) -> np.ndarray:
    from detector.media.images import with_channels

    converted = with_channels(image, 1)
    assert converted is not None
    return converted


def test_teacher_draws_no_random_number_and_names_its_hash_and_cost(experiment: Make, teacher_weights: Path) -> None:
    told: list[str] = []
    before = torch.get_rng_state()
    teacher = teacher_of(experiment(f"train.teacher={teacher_weights}"), told)
    next(teacher.taught(iter([batch_of(noise(64))]), CPU))
    assert torch.equal(torch.get_rng_state(), before)
    assert teacher.identity["teacher_sha256"] == hashlib.sha256(teacher_weights.read_bytes()).hexdigest()
    assert any(teacher.identity["teacher_sha256"][:12] in text and "ms per image" in text for text in told)


@pytest.mark.parametrize("network", ["yolox", "darknet"])
def test_other_families_and_exports_teach(experiment: Make, tmp_path: Path, network: str, write_teacher: Write) -> None:
    path = write_teacher(tmp_path / "own.safetensors", network=network)
    result = train(experiment(f"train.teacher={path}", "train.iterations=2", "train.evaluations=1"))
    assert load_model_file(result.folder.best).provenance["teacher"] == str(path)
    assert set(result.folder.results()[0]) >= {"train/teacher_box_loss", "train/teacher_cls_loss"}


def test_onnx_export_teaches_and_one_that_selects_itself_is_refused(
    experiment: Make, tmp_path: Path, teacher_weights: Path
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from detector.cli.main import run

    whole, selecting = tmp_path / "whole.onnx", tmp_path / "selecting.onnx"
    assert run(["export", str(teacher_weights), "--to", "onnx", "--out", str(whole), "--quiet"]) == 0
    assert run(["export", str(teacher_weights), "--to", "onnx", "--nms", "--out", str(selecting), "--quiet"]) == 0
    images = batch_of(noise(64))
    of_file, of_model = (
        next(teacher_of(experiment(f"train.teacher={path}")).taught(iter([images]), CPU)).targets.taught
        for path in (whole, teacher_weights)
    )
    assert of_file is not None
    assert of_model is not None
    torch.testing.assert_close(of_file.canvas_xyxy, of_model.canvas_xyxy, rtol=0, atol=1e-2)
    torch.testing.assert_close(of_file.scores, of_model.scores, rtol=0, atol=1e-4)
    with pytest.raises(ConfigError, match="expected a model that gives all boxes, got a file that selects by itself"):
        teacher_of(experiment(f"train.teacher={selecting}"))


def test_missing_teacher_and_wrong_weight_are_refused(experiment: Make, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"train\.teacher=.*none\.safetensors: there is no such file"):
        teacher_of(experiment(f"train.teacher={tmp_path}/none.safetensors"))
    with pytest.raises(CheckpointError, match=r"train\.teacher: .* no published weights have this name"):
        teacher_of(experiment("train.teacher=yolox-nanno"))
    with pytest.raises(ConfigError, match=r"train\.teacher_weight: expected a weight above 0, got 0"):
        experiment("train.teacher_weight=0.0")


def test_classifier_has_no_teacher(
    classifier_experiment: Callable[..., DetectionConfig], teacher_weights: Path
) -> None:
    with pytest.raises(ConfigError, match=r"train\.teacher: expected an experiment for a detector"):
        train(classifier_experiment(f"train.teacher={teacher_weights}"))


# --- runs ----------------------------------------------------------------------------------------------------------


def stop_after(num_steps: int) -> Callable[[], bool]:
    asked: Iterator[int] = iter(range(1, 1000))
    return lambda: next(asked) == num_steps


@pytest.fixture
def photos(tmp_path: Path, tiny_shapes: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, path in enumerate(sorted((tiny_shapes / "images" / "train").iterdir())[:3]):
        shutil.copy(path, folder / f"photo{number}{path.suffix}")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def test_run_with_a_teacher_and_unlabelled_images_resumes_to_the_same_bits(
    experiment: Make, teacher_weights: Path, photos: Path, tmp_path: Path, assert_same: Callable[..., None]
) -> None:
    teacher = tmp_path / "teacher.safetensors"
    shutil.copy(teacher_weights, teacher)
    words = (f"train.teacher={teacher}", f"data.unlabelled={photos}", "augment.mosaic=0.5", "train.accumulate=2")
    config = experiment(*words)
    whole = train(config)
    stopped = train(config, should_stop=stop_after(3))
    moved = tmp_path / "moved.safetensors"
    teacher.rename(moved)  # its content counts, not its place
    found, folder, state = open_run(stopped.folder.path, experiment(*words, f"train.teacher={moved}"))
    resumed = train(found, resume=(folder, state))
    ours, theirs = (load_state(result.folder.last) for result in (resumed, whole))
    assert_same(ours, theirs)
    assert float(whole.folder.results()[0]["train/teacher_box_loss"]) > 0
    assert not any("teacher" in name for name in ours["model"])


def load_state(path: Path) -> dict:
    from detector.models.checkpoint import load_training_state

    state = {**load_training_state(path)}
    return {key: value for key, value in state.items() if key not in ("elapsed_s", "config", "provenance")}


def test_resume_refuses_another_teacher(
    experiment: Make, teacher_weights: Path, tmp_path: Path, write_teacher: Write
) -> None:
    path = tmp_path / "teacher.safetensors"
    shutil.copy(teacher_weights, path)
    config = experiment(f"train.teacher={path}")
    stopped = train(config, should_stop=stop_after(2))
    write_teacher(path, "model.width=0.25")
    found, folder, state = open_run(stopped.folder.path, config)
    with pytest.raises(CheckpointError, match=r"expected the teacher that the run began with, SHA-256 .*, got "):
        train(found, resume=(folder, state))
    with pytest.raises(ConfigError, match=r"train\.teacher"):
        open_run(stopped.folder.path, experiment())


def test_unlabelled_images_need_a_teacher_and_new_images(
    experiment: Make, teacher_weights: Path, photos: Path, tiny_shapes: Path
) -> None:
    with pytest.raises(ConfigError, match=r"data\.unlabelled=.*: expected a teacher that labels these images"):
        train(experiment(f"data.unlabelled={photos}"))
    taught = f"train.teacher={teacher_weights}"
    with pytest.raises(DatasetError, match="expected images that are not in the data set, got 18 of which 18 are in"):
        train(experiment(taught, f"data.unlabelled={tiny_shapes}/images"))
    with pytest.raises(DatasetError, match=r"data\.unlabelled: .*nowhere"):
        train(experiment(taught, f"data.unlabelled={photos}/nowhere"))


def test_unlabelled_images_are_shown_without_objects_or_background(
    experiment: Make, teacher_weights: Path, photos: Path
) -> None:
    told: list[str] = []
    report = lambda event: told.append(event.text) if isinstance(event, Noted) else None  # noqa: E731
    config = experiment(f"train.teacher={teacher_weights}", f"data.unlabelled={photos}", "train.iterations=1")
    result = train(config, report=report)
    assert any(text.startswith("data.unlabelled: 3 images of") for text in told)
    assert any("1 x image of data.unlabelled that cannot be read, skipped" in text for text in told)
    assert result.num_skipped == 1
