from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.cli.main import run
from detector.data import annotation_index, spilled_rows
from detector.data.annotation_index import indexed_coco
from detector.data.coco import CocoAnnotations, read_coco
from detector.errors import ConfigError, DatasetError
from detector.io.announcements import announcing


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spilled_rows, "CHUNK_ROWS", 7)
    monkeypatch.setattr(annotation_index, "_IMAGES_PER_BUCKET", 3)


def write(folder: Path, num_images: int = 40, num_boxes: int = 160, seed: int = 0, **changes: Any) -> Path:
    """Write a COCO file with odd entries and boxes in random order; the images are empty files."""
    chance = random.Random(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images = [{"id": 100 - i, "file_name": f"ü{i}.jpg", "height": 80, "width": 90} for i in range(num_images)]
    for image in images[1:]:  # the first one is missing
        (folder / "images" / str(image["file_name"])).touch()
    boxes = [
        {
            "id": max(i, 2),
            "image_id": chance.choice(images)["id"],
            "category_id": chance.choice((3, 7)),
            "bbox": [chance.uniform(-5, 60), chance.uniform(0, 60), chance.uniform(1, 30), chance.uniform(1, 30)],
            "iscrowd": int(i % 9 == 0),
            **({"area": chance.uniform(1, 20_000)} if i % 4 else {}),
        }
        for i in range(num_boxes)
    ]
    boxes[5]["bbox"] = [1, 2, 0, 4]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 7, "name": "b"}, {"id": 3, "name": "a"}]}
    (folder / "set.json").write_text(json.dumps({**content, **changes}))
    return folder / "set.json"


def require_same(ours: CocoAnnotations, theirs: CocoAnnotations) -> None:
    for field in fields(CocoAnnotations):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if isinstance(b, np.ndarray):
            assert a.dtype == b.dtype, field.name
            np.testing.assert_array_equal(a, b, err_msg=field.name)
        elif field.name == "problems":
            assert {(p.kind, p.outcome, p.count) for p in a} == {(p.kind, p.outcome, p.count) for p in b}
        else:
            assert a == b, field.name
    assert ours.digest() == theirs.digest()


@pytest.mark.parametrize("seed", range(4))
def test_index_has_the_annotations_of_the_reader(seed: int, tmp_path: Path) -> None:
    path = write(tmp_path / "set", seed=seed)
    built = indexed_coco(path, tmp_path / "set/images", tmp_path / "index")
    expected = read_coco(path, tmp_path / "set/images")
    require_same(built, expected)
    require_same(indexed_coco(path, tmp_path / "set/images", tmp_path / "index"), expected)
    for index in range(len(expected)):
        assert built.path(index) == expected.path(index)
        np.testing.assert_array_equal(built.source_xyxy(index), expected.source_xyxy(index))
    assert not built.boxes_xywh.flags.writeable
    (own,) = (tmp_path / "index").iterdir()  # no leftovers
    assert {path.suffix for path in own.iterdir()} == {".npy", ".json"}


def test_statistics_count_classes_and_sizes(tmp_path: Path) -> None:
    path = write(tmp_path / "set")
    found = indexed_coco(path, tmp_path / "set/images", tmp_path / "index")
    image = np.repeat(np.arange(len(found)), np.diff(found.offsets))
    for label, own in enumerate(found.statistics):
        rows = found.labels == label
        areas = found.areas[rows]
        sizes = [(areas < 1024).sum(), ((areas >= 1024) & (areas < 9216)).sum(), (areas >= 9216).sum()]
        assert own.name == found.class_names[label]
        assert [own.num_boxes, own.num_crowd] == [rows.sum(), found.is_crowd[rows].sum()]
        assert own.num_images == len(set(image[rows].tolist()))
        assert [own.num_small, own.num_medium, own.num_large] == sizes


def test_index_is_opened_without_reading_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "set")
    first = indexed_coco(path, tmp_path / "set/images", tmp_path / "index")

    def fail(*arguments: object) -> Iterator[object]:
        raise AssertionError("the file is read")

    with monkeypatch.context() as patch:
        patch.setattr(annotation_index, "read_parts", fail)
        assert indexed_coco(path, tmp_path / "set/images", tmp_path / "index").digest() == first.digest()
    write(tmp_path / "set", num_boxes=100)  # another file, another index
    assert indexed_coco(path, tmp_path / "set/images", tmp_path / "index").num_boxes < first.num_boxes
    assert len(list((tmp_path / "index").iterdir())) == 2


def test_digest_of_changed_annotations_is_their_own(tmp_path: Path) -> None:
    path = write(tmp_path / "set")
    found = indexed_coco(path, tmp_path / "set/images", tmp_path / "index")
    assert replace(found, annotations=Path("x")).digest() == found.digest()
    assert replace(found, labels=found.labels.copy() * 0).digest() != found.digest()


@pytest.mark.parametrize("damage", ["remove", "cut", "empty", "document"])
def test_damaged_index_is_built_again(damage: str, tmp_path: Path) -> None:
    path = write(tmp_path / "set")
    expected = indexed_coco(path, tmp_path / "set/images", tmp_path / "index").digest()
    (own,) = (tmp_path / "index").iterdir()
    boxes = own / "boxes_xywh.npy"
    changes: dict[str, Callable[[], object]] = {
        "remove": boxes.unlink,
        "cut": lambda: boxes.write_bytes(boxes.read_bytes()[:-50]),
        "empty": lambda: boxes.write_bytes(b""),
        "document": lambda: (own / "index.json").write_text("{"),
    }
    changes[damage]()
    assert indexed_coco(path, tmp_path / "set/images", tmp_path / "index").digest() == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": [{"image_id": 99, "category_id": 5, "bbox": [1, 2, 3, 4]}]}, "category ids that 'categories'"),
        ({"annotations": [{"image_id": 99, "category_id": 3, "bbox": [1, 2, -3, 4]}]}, "would lose 1 of 1 boxes"),
        ({"images": [{"id": 2**70, "file_name": "ü1.jpg"}], "annotations": []}, "more than 64 bits"),
        ({"annotations": 3}, "must be a list"),
    ],
)
def test_refused_file_leaves_no_index(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "set", **changes)
    with pytest.raises(DatasetError, match=message):
        indexed_coco(path, tmp_path / "set/images", tmp_path / "index")
    assert list((tmp_path / "index").iterdir()) == []


def test_empty_and_unlisted_sections_agree_with_the_reader(tmp_path: Path) -> None:
    path = write(tmp_path / "set", annotations=[])
    require_same(
        indexed_coco(path, tmp_path / "set/images", tmp_path / "index"), read_coco(path, tmp_path / "set/images")
    )


def test_folder_in_the_data_set_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "set")
    with pytest.raises(ConfigError, match=r"data\.index: .* lies inside the data set"):
        indexed_coco(path, tmp_path / "set/images", tmp_path / "set/images/index")


def test_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    path = write(tmp_path / "set")
    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(DatasetError, match="cannot be written: No space left on device; check the disk"):
        indexed_coco(path, tmp_path / "set/images", tmp_path / "index")
    assert list((tmp_path / "index").iterdir()) == []


def test_command_builds_an_index_and_prints_the_classes(
    tiny_shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["dataset", "index", str(tiny_shapes), "--out", str(tmp_path / "index")]
    assert run(words) == 0
    first = capsys.readouterr()
    assert "building an index" in first.err
    assert "train: 12 images" in first.out
    assert run(words) == 0
    again = capsys.readouterr()
    assert "building" not in again.err
    assert again.out == first.out
    assert run(["dataset", "index", str(tmp_path), "--out", str(tmp_path / "x")]) == 3


def _shortened(name: str) -> Callable[[Path], None]:
    return lambda own: np.save(own / f"{name}.npy", np.load(own / f"{name}.npy")[:-1])


def _changed(name: str, position: int, value: int) -> Callable[[Path], None]:
    def change(own: Path) -> None:
        array = np.load(own / f"{name}.npy")
        array[position] = value
        np.save(own / f"{name}.npy", array)

    return change


def _truncated(own: Path) -> None:
    content = (own / "areas.npy").read_bytes()
    (own / "areas.npy").write_bytes(content[:-8])


@pytest.mark.parametrize(
    "damage",
    [
        *map(_shortened, (*annotation_index._PER_IMAGE, *annotation_index._PER_BOX, *annotation_index._NAMES)),
        _changed("offsets", 3, 10**9),
        _changed("offsets", 0, 1),
        _changed("offsets", 5, -1),
        _changed("name_bounds", -1, 10**9),
        lambda own: np.save(own / "labels.npy", np.load(own / "labels.npy").astype(np.int32)),
        _truncated,
    ],
)
def test_inconsistent_index_is_refused_and_built_again(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = write(tmp_path / "set", num_images=12, num_boxes=30)
    expected = read_coco(path, tmp_path / "set/images")
    indexed_coco(path, tmp_path / "set/images", tmp_path / "index")
    (own,) = (tmp_path / "index").iterdir()
    damage(own)
    told: list[str] = []
    with announcing(told.append):
        found = indexed_coco(path, tmp_path / "set/images", tmp_path / "index")
    require_same(found, expected)
    assert told == [
        f"{path}: building an index of it in {own}; the one that is there is damaged or inconsistent",
    ]
