from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from detector.data.augment.augment_config import AugmentConfig
from detector.data.coco import read_coco
from detector.data.coco_dataset import CocoDataset
from detector.data.darknet_lists import DarknetDataset
from detector.data.doctor.examination import examine, read_splits
from detector.data.doctor.findings import ADVICE, SCHEMA_VERSION
from detector.data.shapes_dataset import ShapesDataset
from detector.data.yolo_dataset import YoloDataset
from detector.errors import DatasetError
from detector.structures.canvas import Canvas


def test_embedded_data_set_is_clean(tmp_path):
    config = ShapesDataset.Config(root=tmp_path / "shapes", num_train=96, num_val=24, image_size=96)
    splits, refusals = read_splits(config)
    report = examine("shapes", splits, refusals=refusals, canvas=Canvas((320, 320), 3, "letterbox"))
    assert report.findings == ()
    assert [s.num_images for s in report.splits] == [96, 24]


@pytest.mark.parametrize("name", ["bccd", "coco128"])
def test_real_data_has_no_errors(data_folder, name):
    root = data_folder / name
    files = sorted(root.rglob("instances*.json"))
    assert files
    splits = {file.stem: read_coco(file, root / "images") for file in files}
    report = examine(name, splits)
    expected = {
        "bccd": {"class-imbalance", "box-sliver"},
        "coco128": {"class-unused", "class-few", "class-imbalance", "box-sliver", "box-tiny", "box-huge", "image-mix"},
    }
    assert {finding.code for finding in report.findings} == expected[name]
    assert report.num("error") == 0
    assert report.num("warning") == {"bccd": 0, "coco128": 3}[name]


def test_keys_of_the_report_are_fixed(folder):
    folder.box("train", 2, 1, [300, 100, 60, 60])
    plain = folder.report().to_plain()
    json.dumps(plain, allow_nan=False)
    assert plain["schema_version"] == SCHEMA_VERSION == 1
    assert list(plain) == [
        *("schema_version", "data", "canvas_hw", "checked", "summary", "splits", "classes", "findings", "suggestions"),
    ]
    assert plain["summary"] == {"error": 0, "warning": 1, "note": 0}
    assert list(plain["findings"][0]) == [
        *("code", "severity", "title", "counts", "total", "examples", "count", "advice"),
    ]
    assert list(plain["splits"][0]) == [
        *("name", "annotations", "images", "num_images", "num_empty", "num_objects", "num_crowds", "num_classes"),
        *("max_objects", "median_image_wh", "object_px", "num_small_medium_large"),
    ]
    assert list(plain["classes"][0]) == ["name", "category_id", "num_objects", "num_images", "median_px"]
    assert list(plain["suggestions"][0]) == ["name", "value", "reason", "details"]
    assert plain["findings"][0]["advice"] == ADVICE["box-outside"]


def test_figures_equal_those_of_the_annotations(folder):
    folder.box("train", 1, 2, [100, 100, 20, 20])
    folder.box("train", 1, 2, [100, 150, 200, 50], iscrowd=1)
    folder.images["train"].append({"id": 70, "file_name": "empty.png", "width": 320, "height": 240})
    folder.path("train", "empty.png").write_bytes(folder.path("train", "train0.png").read_bytes() + b"another")
    report = folder.report(decode=False)
    train = report.splits[0]
    assert (train.num_images, train.num_empty, train.num_objects, train.num_crowds) == (7, 1, 25, 1)
    assert (train.num_classes, train.max_objects, train.median_image_wh) == (2, 5, (320, 240))
    areas = np.array([box["area"] for box in folder.boxes["train"] if not box["iscrowd"]])
    expected = [(areas < 32**2).sum(), ((areas >= 32**2) & (areas < 96**2)).sum(), (areas >= 96**2).sum()]
    assert list(train.num_small_medium_large) == expected
    assert train.object_px == pytest.approx(np.percentile(np.sqrt(areas), (5, 50, 95)), abs=0.06)
    cat, dog = report.classes
    assert (cat.name, cat.category_id, dict(cat.num_objects), dict(cat.num_images)) == (
        *("cat", 1),
        {"train": 12, "val": 6},
        {"train": 6, "val": 3},
    )
    assert dict(dog.num_objects) == {"train": 13, "val": 6}


def test_worst_findings_come_first(folder):
    folder.boxes["val"].clear()
    folder.box("train", 2, 1, [300, 100, 60, 60])
    folder.box("train", 1, 1, [0, 0, 320, 240])
    for entry in folder.images["val"]:
        folder.path("val", entry["file_name"]).write_bytes(b"")
    severities = [finding.severity for finding in folder.report().findings]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert set(severities) == {"error", "warning", "note"}


def test_refused_split_is_an_error_with_the_message_of_the_reader(folder):
    config = folder.config()
    assert config.val is not None
    Path(config.val.annotations).write_text("{")
    splits, refusals = read_splits(config)
    assert set(splits) == {"train"}
    report = examine("test", splits, refusals=refusals)
    (finding,) = [f for f in report.findings if f.severity == "error"]
    assert finding.code == "split-refused"
    assert "val.json is not JSON, line 1, column 2" in finding.examples[0]
    assert not report.is_clean()


def test_data_set_without_a_readable_split_gives_a_report(folder):
    config = folder.config()
    for split in (config.train, config.val):
        assert split is not None
        Path(split.annotations).write_text("[]")
    splits, refusals = read_splits(config)
    report = examine("test", splits, refusals=refusals)
    assert (report.splits, report.classes, report.suggestions) == ((), (), ())
    assert report.num("error") == 2


def test_split_without_objects_is_an_error_only_for_training(folder):
    folder.boxes["val"].clear()
    assert [(f.code, f.severity) for f in folder.report().findings if f.code == "split-empty"] == [
        ("split-empty", "warning")
    ]
    folder.boxes["train"].clear()
    found = [f.severity for f in folder.report().findings if f.code == "split-empty"]
    assert found == ["error", "warning"]


def test_mostly_empty_splits_are_reported(folder):
    for number in range(7):
        identifier = folder.add("train", f"empty{number}.png")
        folder.boxes["train"] = [box for box in folder.boxes["train"] if box["image_id"] != identifier]
    assert folder.codes() == ["split-mostly-empty"]


def test_missing_val_split_is_a_note(folder):
    config = folder.config()
    splits, refusals = read_splits(CocoDataset.Config(train=config.train))
    assert [f.code for f in examine("test", splits, refusals=refusals).findings] == ["split-missing"]


def test_problems_of_the_reader_are_in_the_report(folder):
    folder.box("train", 1, 1, [10, 10, 0, 5])
    del folder.boxes["val"][0]["area"]
    findings = {f.code: f for f in folder.report().findings}
    assert set(findings) == {"reader-skipped", "reader-accepted"}
    assert findings["reader-skipped"].severity == "warning"
    assert findings["reader-skipped"].title == "1 x box of zero width or height"
    assert findings["reader-accepted"].severity == "note"


def test_only_selected_splits_are_read(folder):
    splits, _ = read_splits(folder.config(), ("val",))
    assert list(splits) == ["val"]
    _, (refusal,) = read_splits(folder.config(), ("test",))
    assert "has no split 'test'" in refusal.examples[0]
    with pytest.raises(DatasetError, match="has no split"):
        read_splits(CocoDataset.Config())


def text_data_set(folder, label="{label} {cx} {cy} {w} {h}\n"):
    """The same data set with text labels: the description of the YOLO family and Darknet's."""
    folder.config()
    for split, images in folder.images.items():
        names = []
        for image in images:
            lines = []
            for box in folder.boxes[split]:
                if box["image_id"] == image["id"]:
                    x, y, w, h = box["bbox"]
                    shares = {"cx": (x + w / 2) / 320, "cy": (y + h / 2) / 240, "w": w / 320, "h": h / 240}
                    corners = {"x1": x / 320, "y1": y / 240, "x2": (x + w) / 320, "y2": (y + h) / 240}
                    lines.append(label.format(label=box["category_id"] - 1, **shares, **corners))
            path = folder.root / "labels" / split / image["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".txt").write_text("".join(lines))
            folder.path(split, image["file_name"]).with_suffix(".txt").write_text("".join(lines))
            names.append(f"{folder.path(split, image['file_name'])}\n")
        (folder.root / f"{split}.list").write_text("".join(names))
    (folder.root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    (folder.root / "names").write_text("cat\ndog\n")
    (folder.root / "data.data").write_text("classes=2\ntrain=train.list\nvalid=val.list\nnames=names\n")
    return YoloDataset.Config(folder.root / "data.yaml"), DarknetDataset.Config(folder.root / "data.data")


def examined(config):
    splits, refusals = read_splits(config)
    return examine("test", splits, refusals=refusals, augment=AugmentConfig())


def test_data_set_with_text_labels_is_examined(folder):
    for config in text_data_set(folder):
        report = examined(config)
        assert report.findings == ()
        assert [s.num_objects for s in report.splits] == [24, 12]


def test_text_labels_with_corners_are_recognised(folder):
    yolo, _ = text_data_set(folder, "{label} {x1} {y1} {x2} {y2}\n")
    finding = next(f for f in examined(yolo).findings if f.code == "box-format")
    assert finding.title.endswith("boxes of train leave the image, but would fit as x1, y1, x2, y2")


def test_text_labels_counted_from_one_are_explained(folder):
    for split in ("train", "val"):
        for box in folder.boxes[split]:
            box["category_id"] += 1
    yolo, darknet = text_data_set(folder)
    for config in (yolo, darknet):
        codes = [f.code for f in examined(config).findings if f.severity == "error"]
        assert sorted(codes) == ["class-off-by-one"] * 2 + ["split-refused"] * 2
