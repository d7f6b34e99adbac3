from __future__ import annotations

import json

import pytest

from detector.data.augment.augment_config import AugmentConfig
from detector.data.coco_dataset import CocoDataset
from detector.data.doctor.class_checks import mirror_images
from detector.data.doctor.examination import examine, read_splits


def only(report, code):
    (finding,) = report.findings
    assert finding.code == code
    return finding


def test_class_without_objects_is_reported(folder):
    folder.classes[7] = "bird"
    finding = only(folder.report(), "class-unused")
    assert (finding.severity, finding.examples) == ("warning", ("bird",))


def test_further_unused_classes_are_counted(folder):
    folder.classes.update({i: f"bird{i}" for i in range(10, 20)})
    finding = only(folder.report(), "class-unused")
    assert finding.examples[-1] == "bird14 and 5 more"
    assert finding.count == 10


def test_ids_from_one_are_suspected_if_only_the_first_class_is_unused(folder):
    folder.classes = {0: "bird", 1: "cat", 2: "dog"}
    assert only(folder.report(), "class-off-by-one").examples == ("bird",)


def test_class_beyond_the_last_one_is_refused_and_explained(folder):
    folder.classes = {0: "cat", 1: "dog"}  # the annotations say 1 and 2
    report = folder.report()
    errors = {f.code: f for f in report.findings if f.severity == "error"}
    assert set(errors) == {"split-refused", "class-off-by-one"}
    assert "category ids that 'categories' does not list: 2" in errors["split-refused"].examples[0]
    assert not report.is_clean()
    assert report.splits[0].num_objects == 12  # the other objects are still examined


def test_class_missing_from_a_split_is_reported(folder):
    folder.classes[3] = "bird"
    for number in range(1, 4):
        folder.box("val", number, 3, [120 + number, 60, 20, 30])
    finding = only(folder.report(), "class-not-in-train")
    assert (finding.severity, finding.examples) == ("warning", ("bird",))
    for box in folder.boxes["val"][-3:]:
        folder.box("train", 1, 3, [box["bbox"][0] + 20 * box["id"] / 3, *box["bbox"][1:]])
        box["category_id"] = 1
    assert folder.codes() == ["class-few", "class-not-measured"]


def test_rare_classes_are_reported(folder):
    for split in ("train", "val"):
        for number in range(9 if split == "train" else 1):
            folder.box(split, number % 3 + 1, 3, [100 + 5 * number, 50, 20, 20])
    folder.classes[3] = "bird"
    finding = only(folder.report(), "class-few")
    assert finding.examples == ("bird (9)",)
    folder.box("train", 4, 3, [100, 50, 20, 20])
    assert folder.codes() == []


@pytest.mark.parametrize(("num", "severity"), [(90, None), (130, "note"), (1100, "warning")])
def test_imbalance_is_a_note_or_a_warning(folder, num, severity):
    folder.boxes["train"] = [box for box in folder.boxes["train"] if box["category_id"] == 1][:10]
    for number in range(num):
        folder.box("train", number % 6 + 1, 2, [10 + number % 97 * 2, 10 + number // 97 * 11, 20, 14])
    found = [f.severity for f in folder.report(decode=False).findings if f.code == "class-imbalance"]
    assert found == ([severity] if severity else [])


def test_left_and_right_classes_conflict_with_flips(folder):
    folder.classes = {1: "left_hand", 2: "rightHand"}
    finding = only(folder.report(), "class-mirrored")
    assert finding.title == "classes distinguish left from right, but augment.flip_horizontal is 0.5"
    assert finding.examples == ("left_hand / rightHand",)
    assert folder.codes(augment=AugmentConfig(flip_horizontal=0)) == []
    folder.classes = {1: "arrow up", 2: "arrow down"}
    assert folder.codes() == []
    assert folder.codes(augment=AugmentConfig(flip_vertical=0.5)) == ["class-mirrored"]


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["left turn", "right turn", "stop"], [("left turn", "right turn")]),
        (["TURN_LEFT", "TURN_RIGHT"], [("TURN_LEFT", "TURN_RIGHT")]),
        (["turnLeft2", "turnRight2", "turnRight3"], [("turnLeft2", "turnRight2")]),
        (["right whale", "whale"], []),  # there is no counterpart
        (["cleft", "cright"], []),
        (["left", "copyright"], []),
        (["left right switch", "right left switch"], []),
    ],
)
def test_mirrored_names_differ_by_exchanged_words(names, pairs):
    assert mirror_images(names, [("left", "right")]) == pairs


def test_spellings_of_one_name_are_reported(folder):
    folder.classes = {1: "Traffic Light", 2: "traffic_light"}
    assert only(folder.report(), "class-names-alike").examples == ("'Traffic Light' / 'traffic_light'",)
    folder.classes = {1: "你", 2: "我"}
    assert folder.codes() == []


def rewritten(folder, **names):
    """The report after the categories of a split were renamed or renumbered in its file."""
    config: CocoDataset.Config = folder.config()
    for split, categories in names.items():
        file = getattr(config, split).annotations
        content = json.loads(file.read_text("utf-8"))
        content["categories"] = [{"id": i, "name": n} for i, n in categories.items()]
        file.write_text(json.dumps(content), "utf-8")
    splits, refusals = read_splits(config)
    return examine("test", splits, refusals=refusals)


@pytest.mark.parametrize(
    ("train", "val", "code", "severity", "example"),
    [
        ({1: "cat", 2: "dog"}, {1: "dog", 2: "cat"}, "class-ids-differ", "note", "dog: 2 in train, 1 in val"),
        ({1: "cat", 2: "tv"}, {1: "cat", 2: "TVmonitor"}, "class-names-matched", "note", "tv in train, TVmonitor in v"),
        ({1: "cat", 2: "dog"}, {1: "cat", 2: "bird"}, "class-names-differ", "warning", "2 (bird)"),
        ({1: "cat", 2: "dog"}, {1: "car", 2: "bus"}, "class-names-differ", "error", "1 (car)"),
    ],
)
def test_classes_of_splits_are_compared_as_evaluation_matches_them(folder, train, val, code, severity, example):
    report = rewritten(folder, train=train, val=val)
    (finding,) = [f for f in report.findings if f.code in ("class-ids-differ", "class-names-matched", code)]
    assert (finding.code, finding.severity) == (code, severity)
    assert finding.examples[0].startswith(example)


def test_objects_of_a_class_are_counted_by_name(folder):
    for index, box in enumerate(folder.boxes["val"]):
        box["category_id"] = 1 + (index % 4 == 0)  # 3 of category 2, 9 of category 1
    report = rewritten(folder, val={1: "dog", 2: "cat"})
    counts = {entry.name: (entry.category_id, entry.num_objects) for entry in report.classes}
    assert counts == {"cat": (1, {"train": 12, "val": 3}), "dog": (2, {"train": 12, "val": 9})}


def test_category_that_train_lacks_is_a_class_of_its_own(folder):
    report = rewritten(folder, val={1: "cat", 2: "dog", 9: "bird"})
    assert [(f.code, f.severity) for f in report.findings] == [
        ("class-names-differ", "warning"),
        ("class-unused", "warning"),
    ]
    assert report.findings[0].examples == ("9 (bird)",)
    assert [entry.name for entry in report.classes] == ["cat", "dog", "bird"]
