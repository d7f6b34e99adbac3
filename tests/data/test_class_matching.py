from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.data.class_matching import match_classes
from detector.data.coco import CocoAnnotations
from detector.errors import DatasetError

OFFICIAL = ("bicycle", "motorcycle", "airplane", "traffic light", "couch", "potted plant", "dining table", "tv")
OFFICIAL_IDS = (2, 4, 5, 10, 63, 64, 67, 72)
OF_DARKNET = ("bicycle", "motorbike", "aeroplane", "traffic light", "sofa", "pottedplant", "diningtable", "tvmonitor")


def annotations_of(names: tuple[str, ...], ids: tuple[int, ...], labels: tuple[int, ...] = ()) -> CocoAnnotations:
    """Categories with an object for each label, the first one in the first of two images, the others in the second."""
    num = len(labels)
    return CocoAnnotations(
        annotations=Path("val.json"),
        images=None,
        class_names=names,
        category_ids=ids,
        image_ids=np.array([1, 2]),
        file_names=("1.png", "2.png"),
        image_hw=np.full((2, 2), 64),
        offsets=np.array([0, min(1, num), num]),
        boxes_xywh=np.arange(4.0 * num).reshape(num, 4) + 1,
        labels=np.array(labels, np.int64),
        is_crowd=np.arange(num) % 2 == 1,
        areas=np.arange(1.0 * num),
        problems=(),
    )


# Names and ids of the model, names and ids of the file, the id of each class of the model, the categories left out.
Case = tuple[tuple[str, ...], tuple[int, ...], tuple[str, ...], tuple[int, ...], tuple[int, ...], str]
CASES: dict[str, Case] = {
    "equal names under equal ids": (("a", "b"), (1, 2), ("a", "b"), (1, 2), (1, 2), ""),
    "ids of another order": (("ball", "box", "star"), (0, 1, 2), ("ball", "box", "star"), (5, 3, 7), (5, 3, 7), ""),
    "exchanged ids": (("a", "b"), (1, 2), ("b", "a"), (1, 2), (2, 1), ""),
    "fewer categories": (("ball", "box", "star"), (0, 1, 2), ("star",), (7,), (8, 9, 7), ""),
    "one more category": (("a", "b"), (0, 1), ("b", "moon", "a"), (4, 5, 9), (9, 4), "moon"),
    "one name that the model lacks": (("a", "b", "c"), (0, 1, 2), ("a", "b", "see"), (1, 2, 3), (1, 2, 4), "see"),
    "Darknet's names": (OF_DARKNET, tuple(range(8)), OFFICIAL, OFFICIAL_IDS, OFFICIAL_IDS, ""),
    "COCO's names on a file of Darknet": (OFFICIAL, OFFICIAL_IDS, OF_DARKNET, tuple(range(8)), tuple(range(8)), ""),
    "case and separators": (("Traffic_Light", "stop-sign"), (0, 1), ("stop sign", "traffic light"), (1, 2), (2, 1), ""),
    "both spellings": (("sofa", "couch"), (0, 1), ("couch", "sofa"), (1, 2), (2, 1), ""),
    "an alias beside the name itself": (("couch",), (0,), ("couch", "sofa"), (1, 2), (1,), "sofa"),
    "two spellings of one class": (("a", "couch"), (0, 1), ("Sofa", "a", "COUCH"), (1, 2, 3), (2, 4), "Sofa, COUCH"),
    "names that differ by a sign": (("c++", "a1"), (0, 1), ("c", "a-1", "c++"), (1, 2, 3), (3, 4), "c, a-1"),
    "a name used twice, equal ids": (("a", "a", "b"), (1, 2, 3), ("a", "a", "b"), (1, 2, 3), (1, 2, 3), ""),
    "a name used twice, other ids": (("a", "b"), (0, 1), ("a", "a", "b"), (4, 5, 6), (7, 6), "a, a"),
    "numbers as names": (("0", "1", "2"), (1, 2, 3), ("2", "0"), (0, 1), (1, 4, 0), ""),
    "no names on either side": (("class_1", "class_2"), (1, 2), ("class_2", "class_3"), (2, 3), (4, 2), "class_3"),
    "no names, other ids": (("0", "1"), (0, 1), ("class_1", "class_2"), (1, 2), (1, 2), ""),
    "no names in the model": (("0", "1"), (0, 1), ("cat", "dog"), (3, 8), (3, 8), ""),
    "no names in the file": (("cat", "dog"), (0, 1), ("class_3", "class_8"), (3, 8), (3, 8), ""),
}


@pytest.mark.parametrize("name", CASES)
def test_classes_are_matched_one_by_one_and_the_rest_is_left_out(name: str) -> None:
    names, ids, file_names, file_ids, wanted, left_out = CASES[name]
    match = match_classes(names, ids, annotations_of(file_names, file_ids))
    assert match.category_ids == wanted
    rest = [n for n, is_matched in zip(file_names, match.is_matched, strict=True) if not is_matched]
    assert ", ".join(rest) == left_out
    assert (f"are left out: {left_out}" in match.warning) == bool(match.warning) == bool(left_out)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("equal names under equal ids", ""),
        ("exchanged ids", ""),
        ("Darknet's names", "6 categories are matched with another spelling: motorcycle = motorbike, airplane = "),
        ("one more category", "1 of 3 categories match no class of the model and are left out: moon"),
        ("one name that the model lacks", "are left out: see; classes of the model without a category: c"),
        ("no names on either side", "no class names in the model and the file, so its categories are matched by cat"),
        ("no names in the model", "there are no class names in the model, so its categories are matched in order"),
    ],
)
def test_a_match_by_anything_but_equal_names_is_announced(name: str, words: str) -> None:
    names, ids, file_names, file_ids, _, _ = CASES[name]
    match = match_classes(names, ids, annotations_of(file_names, file_ids))
    assert words in " ".join((*match.notes, match.warning))
    assert bool(match.notes or match.warning) == bool(words)


@pytest.mark.parametrize(
    ("names", "file_names", "words"),
    [
        (("cat", "dog"), ("car", "bus"), r"none of its categories \(car, bus\) is a class of the model \(cat, dog\)"),
        (("0", "1", "2"), ("a", "b"), "the model has 3 classes, the file 2 categories, and the model has no class na"),
        (("a", "b", "c"), ("class_0", "class_1"), "3 classes, the file 2 categories, and the file has no class names"),
    ],
)
def test_sets_without_a_common_class_are_refused(names: Any, file_names: Any, words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        match_classes(names, tuple(range(len(names))), annotations_of(file_names, tuple(range(len(file_names)))))


def test_objects_of_unmatched_categories_are_left_out_and_counted() -> None:
    annotations = annotations_of(("b", "moon", "a"), (4, 5, 9), labels=(1, 0, 2, 1, 2))
    part = match_classes(("a", "b"), (0, 1), annotations).matched_part(annotations)
    assert (part.class_names, part.category_ids) == (("b", "a"), (4, 9))
    assert (part.offsets.tolist(), part.labels.tolist()) == ([0, 0, 3], [0, 1, 1])
    assert np.array_equal(part.boxes_xywh, annotations.boxes_xywh[[1, 2, 4]])
    assert (part.areas.tolist(), part.is_crowd.tolist()) == ([1, 2, 4], [True, False, False])
    assert [(p.outcome, p.count, p.examples) for p in part.problems] == [("skipped", 2, ("2 of moon",))]
    assert len(part) == len(annotations) == 2  # the images stay, as background


def test_a_full_match_leaves_the_annotations_unchanged() -> None:
    annotations = annotations_of(("b", "a"), (4, 9), labels=(1, 0, 1))
    assert match_classes(("a", "b"), (0, 1), annotations).matched_part(annotations) is annotations
