"""Conversion between formats and back: common content stays equal, losses are noted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detector.data.coco import CocoAnnotations, read_coco
from detector.data.conversion import Conversion, coco_to_darknet, coco_to_yolo, write_coco, yolo_to_coco
from detector.data.darknet_lists import DarknetDataset
from detector.errors import DatasetError
from detector.tasks.detection_model import load_detection, read_split

NUM_IMAGES = 12


def everything(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A COCO set with original ids, nested folders, an empty image and odd numbers; images of several sizes."""
    rng = np.random.default_rng(0)
    root = tmp_path / "source"
    images: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for number in range(NUM_IMAGES):
        name = f"{'deep/er/' if number % 3 == 0 else ''}é {number}.jpg"
        height, width = int(rng.integers(20, 60)), int(rng.integers(20, 60))
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        _, encoded = cv2.imencode(".jpg", np.full((height, width, 3), number, np.uint8))
        (root / name).write_bytes(encoded.tobytes())
        images.append({"id": 1000 - number, "file_name": name, "height": height, "width": width})
        for _ in range(number % 4):
            x, y, w, h = rng.uniform(0, 0.5, 4) * (width, height, width, height) + (0, 0, 0.01, 0.01)
            rows.append({"id": len(rows) + 5, "image_id": 1000 - number, "category_id": int(rng.choice([3, 7])),
                         "bbox": [x, y, w, h], "area": w * h / 2, "iscrowd": 0})  # fmt: skip
    categories = [{"id": 7, "name": "tree: a"}, {"id": 3, "name": "ça \"va\" 'so'"}, {"id": 9, "name": "no"}]
    (root / "a.json").write_text(json.dumps({"images": images, "categories": categories, "annotations": rows}))
    return root


def read(source: Path) -> CocoAnnotations:
    return read_coco(source / "a.json", source)


def again(conversion: Conversion, split: str = "train") -> CocoAnnotations:
    return read_split(load_detection("mish-n", [f"data={json.dumps(str(conversion.description))}"]), split)


def assert_same_objects(ours: CocoAnnotations, theirs: CocoAnnotations) -> None:
    assert ours.class_names == theirs.class_names
    assert len(ours) == len(theirs)
    by_name = {Path(name).name: index for index, name in enumerate(theirs.file_names)}
    for index, name in enumerate(ours.file_names):
        other = by_name[Path(name).name]
        assert ours.image_hw[index].tolist() == theirs.image_hw[other].tolist()
        assert ours.labels_of(index).tolist() == theirs.labels_of(other).tolist()
        np.testing.assert_allclose(
            ours.boxes_xywh[ours.offsets[index] : ours.offsets[index + 1]],
            theirs.boxes_xywh[theirs.offsets[other] : theirs.offsets[other + 1]],
            rtol=0,
            atol=1e-11,
        )


def test_coco_round_trip_is_equal_to_the_last_bit(source, tmp_path):
    original = read(source)
    write_coco(original, tmp_path / "out.json")
    back = read_coco(tmp_path / "out.json", source)
    assert tuple(back.file_names) == tuple(original.file_names)
    assert (back.class_names, back.category_ids) == (original.class_names, original.category_ids)
    for name in ("image_ids", "image_hw", "offsets", "boxes_xywh", "labels", "is_crowd", "areas"):
        np.testing.assert_array_equal(getattr(back, name), getattr(original, name))
    with pytest.raises(DatasetError, match=r"out.json cannot be written: File exists"):
        write_coco(original, tmp_path / "out.json")


@pytest.mark.parametrize("link", [False, True])
def test_the_yolo_layout_holds_the_same_objects(source, tmp_path, link):
    before = everything(source)
    original = read(source)
    conversion = coco_to_yolo({"train": original, "val": original}, tmp_path / "out", link=link)
    assert conversion.description == tmp_path / "out" / "data.yaml"
    assert [note for note in conversion.notes if "category ids 3, 7, 9" not in note] == []
    assert len(conversion.notes) == 2
    assert_same_objects(original, again(conversion))
    assert_same_objects(original, again(conversion, "val"))
    assert (tmp_path / "out" / "images" / "train" / "deep" / "er" / "é 0.jpg").is_symlink() == link
    assert len(list((tmp_path / "out" / "labels" / "train").rglob("*.txt"))) == NUM_IMAGES  # empty ones too
    assert everything(source) == before


@pytest.mark.parametrize("link", [False, True])
def test_darknets_layout_holds_the_same_objects(source, tmp_path, link):
    original = read(source)
    conversion = coco_to_darknet({"train": original, "val": original}, tmp_path / "out", link=link)
    assert_same_objects(original, again(conversion))
    assert_same_objects(original, again(conversion, "val"))
    assert (tmp_path / "out" / "data.names").read_text("utf-8").splitlines() == list(original.class_names)
    spaces = [note for note in conversion.notes if "paths with spaces" in note]
    assert f"Darknet cannot read {NUM_IMAGES} paths with spaces" in spaces[0]
    assert "valid = " in conversion.description.read_text("utf-8")
    with pytest.raises(DatasetError, match="has the splits train and val, got also test"):
        coco_to_darknet({"test": original}, tmp_path / "other")


def test_text_labels_are_converted_to_coco(source, tmp_path):
    original = read(source)
    yolo = again(coco_to_yolo({"train": original}, tmp_path / "yolo"))
    coco = again(yolo_to_coco({"train": yolo}, tmp_path / "coco"))
    assert (tmp_path / "coco" / "annotations" / "instances_train.json").is_file()
    assert_same_objects(original, coco)
    assert coco.category_ids == (0, 1, 2)
    np.testing.assert_array_equal(coco.boxes_xywh, yolo.boxes_xywh)
    np.testing.assert_array_equal(coco.image_ids, yolo.image_ids)
    assert coco.path(0).is_file()


def test_losses_of_text_labels_are_noted(source, tmp_path):
    document = json.loads((source / "a.json").read_text())
    first = document["images"][1]
    crowd = {"id": 900, "image_id": first["id"], "category_id": 3, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 1}
    outside = {**crowd, "id": 901, "bbox": [first["width"] - 4, 2, 10, 6], "iscrowd": 0}
    document["annotations"] += [crowd, outside]
    (source / "a.json").write_text(json.dumps(document))
    (source / "é 5.jpg").write_bytes(b"")
    original = read(source)
    conversion = coco_to_yolo({"train": original}, tmp_path / "out")
    said = " | ".join(conversion.notes)
    assert "1 crowd regions are left out, because text labels cannot hold them" in said
    assert "1 boxes reach beyond their image and are cut at its border" in said
    assert "1 images cannot be read and are left out, first:" in said
    assert "é 5.jpg" in said
    back = again(conversion)
    assert (len(back), back.num_boxes) == (NUM_IMAGES - 1, original.num_boxes - 1 - 1)  # the crowd, and é 5's only box
    rows = {Path(name).name: back.source_xyxy(index) for index, name in enumerate(back.file_names)}
    np.testing.assert_allclose(rows["é 1.jpg"][-1], [first["width"] - 4, 2, first["width"], 8], atol=1e-4)


def test_two_images_that_would_share_a_label_file_are_refused(source, tmp_path):
    document = json.loads((source / "a.json").read_text())
    (source / "é 1.png").write_bytes((source / "é 1.jpg").read_bytes())
    document["images"].append({**document["images"][1], "id": 1, "file_name": "é 1.png"})
    (source / "a.json").write_text(json.dumps(document))
    with pytest.raises(DatasetError, match=r"é 1.png and .*é 1.jpg would share the label file .*é 1.txt; rename one"):
        coco_to_yolo({"train": read(source)}, tmp_path / "out")


def test_splits_of_other_classes_and_odd_names_are_refused(source, tmp_path):
    original = read(source)
    document = json.loads((source / "a.json").read_text())
    document["categories"][2]["name"] = "two\nlines"
    (source / "a.json").write_text(json.dumps(document))
    other = read(source)
    with pytest.raises(DatasetError, match="expected splits with the same classes"):
        coco_to_yolo({"train": original, "val": other}, tmp_path / "out")
    with pytest.raises(DatasetError, match=r"the class name 'two\\nlines' is not a plain line of text"):
        coco_to_darknet({"train": other}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_into_a_folder_with_something_in_it(source, tmp_path):
    for convert in (coco_to_yolo, coco_to_darknet, yolo_to_coco):
        with pytest.raises(DatasetError, match="is not empty; name a new folder"):
            convert({"train": read(source)}, source)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DatasetError, match="the folder cannot be created"):
        coco_to_yolo({"train": read(source)}, tmp_path / "file")


def test_an_image_outside_its_folder_is_copied_into_the_target(source, tmp_path):
    document = json.loads((source / "a.json").read_text())
    (tmp_path / "elsewhere.jpg").write_bytes((source / "é 1.jpg").read_bytes())
    document["images"][1]["file_name"] = "../elsewhere.jpg"
    (source / "a.json").write_text(json.dumps(document))
    original = read_coco(source / "a.json", source, allow_outside=True)
    coco_to_yolo({"train": original}, tmp_path / "out")
    assert (tmp_path / "out" / "images" / "train" / "elsewhere.jpg").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere.jpg", "out", "source"]


def test_real_photos_keep_their_objects(data_folder, tmp_path):
    root = data_folder / "bccd"
    original = read_coco(root / "annotations" / "instances_val.json", root / "images")
    assert_same_objects(original, again(coco_to_yolo({"val": original}, tmp_path / "out", link=True), "val"))


@pytest.mark.parametrize("relative", [False, True])
def test_a_darknet_folder_that_was_moved_is_read(source, relative, tmp_path):
    original = read(source)
    coco_to_darknet({"train": original}, tmp_path / "out", relative=relative)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").rename(tmp_path / "elsewhere" / "moved")
    file = tmp_path / "elsewhere" / "moved" / "data.data"
    assert (str(tmp_path) in file.read_text()) is not relative
    found = DarknetDataset(DarknetDataset.Config(file)).split("train")
    assert len(found) == len(original)
    assert found.num_boxes == int((~original.is_crowd).sum())
    told = [problem.kind for problem in found.problems if "elsewhere" in problem.kind]
    assert told == ([] if relative else ["list of paths of elsewhere"])


def test_a_moved_folder_of_images_is_named_with_its_key(source, tmp_path):
    description = yolo_to_coco({"train": read(source)}, tmp_path / "out").description
    config = load_detection("mish-n", [f"data={description}", f"data.train.images={tmp_path}/x"])
    with pytest.raises(
        DatasetError, match=r"^data.train.images: there is no .*/x; if it was moved, give data.train.im"
    ):
        read_split(config, "train")
