from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from detector.data.classification_split import LabelledImages
from detector.data.image_folders import FolderSet
from detector.errors import DatasetError
from detector.media.images import write_image
from detector.structures.canvas import Canvas
from detector.tasks.task import load_experiment

CANVAS = Canvas((16, 16), 3, "letterbox")
COLOURS = {"blue": (0, 0, 255), "red": (255, 0, 0)}


def fill(root: Path, num: int = 10, side: int = 16) -> Path:
    """Folders of plain images, one colour for each class."""
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for index in range(num):
            write_image(root / name / f"{index:02d}.png", np.full((side, side, 3), colour, np.uint8))
    return root


def read(root: Path, name: str = "train", canvas: Canvas = CANVAS, **settings: float) -> LabelledImages:
    return FolderSet(FolderSet.Config(root, **settings)).split(name, canvas)  # type: ignore[arg-type]


def test_folders_of_splits_are_read_by_the_names_of_their_classes(tmp_path: Path) -> None:
    fill(tmp_path / "train", 3)
    fill(tmp_path / "val", 2)
    assert FolderSet(FolderSet.Config(tmp_path)).split_names() == ("train", "val")
    train, val = read(tmp_path), read(tmp_path, "val")
    assert (len(train), len(val)) == (6, 4)
    assert train.class_names == val.class_names == ("blue", "red")
    assert train.sources[0] == "blue/00.png"
    for image, label in zip(train.images, train.labels, strict=True):
        assert image.reshape(-1, 3).mean(axis=0).tolist() == list(COLOURS[train.class_names[label]])
    with pytest.raises(DatasetError, match="expected one of the splits train, val, got 'test'"):
        read(tmp_path, "test")


def test_folders_of_classes_are_divided_by_a_seed_each_class_by_its_share(tmp_path: Path) -> None:
    fill(tmp_path)
    train, val = read(tmp_path, val_share=0.3), read(tmp_path, "val", val_share=0.3)
    assert np.bincount(train.labels).tolist() == [7, 7]
    assert np.bincount(val.labels).tolist() == [3, 3]
    assert sorted(train.sources + val.sources) == [f"{c}/{i:02d}.png" for c in COLOURS for i in range(10)]
    assert read(tmp_path, "val", val_share=0.3).sources == val.sources
    assert any(read(tmp_path, "val", val_share=0.3, seed=seed).sources != val.sources for seed in (1, 2))
    assert FolderSet(FolderSet.Config(tmp_path, val_share=0.0)).split_names() == ("train",)
    assert len(read(tmp_path, val_share=0.0)) == 20


def test_folders_val_and_test_without_train_are_splits(tmp_path: Path) -> None:
    fill(tmp_path / "val", 3)
    (tmp_path / "test" / "red").mkdir(parents=True)
    assert FolderSet(FolderSet.Config(tmp_path)).split_names() == ("val", "test")
    assert read(tmp_path, "val").class_names == ("blue", "red")
    with pytest.raises(DatasetError, match=r"expected one of the splits val, test, got 'train'; add a folder train"):
        read(tmp_path)


def test_a_class_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    fill(tmp_path, 4)
    (tmp_path / "blue").rename(tmp_path / "train")
    assert read(tmp_path).class_names == ("red", "train")
    (tmp_path / "train").rename(tmp_path / "val")
    (tmp_path / "val" / "of 2025").mkdir()
    assert read(tmp_path).class_names == ("red", "val")


def test_names_of_any_script_are_classes_and_invalid_bytes_are_escaped(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    (tmp_path / "red").rename(tmp_path / "猫 é")
    try:
        os.rename(tmp_path / "blue", os.fsencode(tmp_path) + b"/\xff")
    except OSError:
        pytest.skip("the file system wants names to be text")
    found = read(tmp_path, val_share=0.0)
    assert found.class_names == ("猫 é", "\\udcff")
    assert np.bincount(found.labels).tolist() == [2, 2]


def test_images_of_any_size_are_fitted_to_the_canvas(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    write_image(tmp_path / "red" / "wide.jpg", np.zeros((20, 60, 3), np.uint8))
    found = read(tmp_path, canvas=Canvas((32, 32), 1, "letterbox"), val_share=0.0)
    assert found.images.shape == (5, 32, 32, 1)
    wide = found.images[found.sources.index("red/wide.jpg")]
    assert wide[16, 16] == 0
    assert wide[0, 16] == 114


def test_images_that_cannot_be_read_are_left_out_counted_and_named(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "blue" / "03.png").write_bytes(b"no image")
    (tmp_path / "loose.png").write_bytes(b"no class")
    found = read(tmp_path, val_share=0.0)
    assert len(found) == 19
    assert "blue/03.png" not in found.sources
    assert np.bincount(found.labels).tolist() == [9, 10]
    told = {problem.kind: problem for problem in found.problems}
    assert told["image that cannot be read"].count == 1
    assert "03.png" in told["image that cannot be read"].examples[0]
    assert told["image outside the folders of the classes"].examples == ("loose.png",)


def test_too_many_images_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    fill(tmp_path)
    for index in range(3):
        (tmp_path / "red" / f"{index:02d}.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"3 of 20 images cannot be read, at most 10% .*00\.png"):
        read(tmp_path, val_share=0.0)


def test_a_class_without_images_stays_a_class_and_is_reported(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    (tmp_path / "green").mkdir()
    (tmp_path / ".hidden").mkdir()
    found = read(tmp_path, val_share=0.0)
    assert found.class_names == ("blue", "green", "red")
    assert [str(problem) for problem in found.problems] == ["1 x class without images, accepted (green)"]


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"got none; check data\.root"):
        read(tmp_path)
    with pytest.raises(DatasetError, match="cannot be read, No such file"):
        read(tmp_path / "missing")


def test_images_beyond_the_memory_limit_are_refused_before_they_are_read(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    with pytest.raises(DatasetError, match=r"4 images of 512 x 512 px take 3 MB, at most 1 are allowed"):
        read(tmp_path, canvas=Canvas((512, 512), 3, "letterbox"), val_share=0.0, memory_mb=1)


def test_labels_follow_the_classes_of_a_model(tmp_path: Path) -> None:
    found = read(fill(tmp_path, 2), val_share=0.0).with_classes(("red", "green", "blue"))
    assert found.labels.tolist() == [2, 2, 0, 0]
    with pytest.raises(DatasetError, match="got also blue"):
        found.with_classes(("red", "green"))


def test_real_photographs_are_read(tmp_path: Path, data_folder: Path) -> None:
    photos = sorted((data_folder / "coco128").rglob("*.jpg"))[:12]
    assert photos
    for index, photo in enumerate(photos):
        folder = tmp_path / ("even" if index % 2 == 0 else "odd")
        folder.mkdir(exist_ok=True)
        (folder / photo.name).symlink_to(photo.resolve())
    found = read(tmp_path, canvas=Canvas((64, 64), 3, "letterbox"), val_share=0.0)
    assert len(found) == 12
    assert found.images.reshape(12, -1).std(axis=1).min() > 10


@pytest.mark.parametrize("written", ["photos/", "./photos"])
def test_folder_stands_for_its_images_as_data(written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    config = load_experiment("classify", [f"data={written}", "data.val_share=0.5"])
    assert config.data == FolderSet.Config(tmp_path / "photos", val_share=0.5)
