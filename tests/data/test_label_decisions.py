from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from detector.data.label_decisions import FORMAT, Applied, apply_decisions
from detector.errors import DatasetError

BOX, OTHER, NEW = [1, 2, 10, 20], [30.0, 30, 5, 5], [3.5, 4, 6, 7]
COCO: dict[str, Any] = {
    "info": {"year": 2024},
    "images": [{"id": 7, "file_name": "a.jpg", "width": 64, "height": 64, "licence": 1}],
    "categories": [{"id": 1, "name": "cat", "colour": "red"}, {"id": 5, "name": "dog"}],
    "annotations": [
        {"id": 3, "image_id": 7, "category_id": 1, "bbox": BOX, "area": 99, "iscrowd": 0, "note": "x",
         "segmentation": [[1, 2, 3, 4, 5, 6]]},
        {"id": 9, "image_id": 7, "category_id": 1, "bbox": OTHER, "area": 25, "iscrowd": 0},
        {"id": 4, "image_id": 7, "category_id": 1, "bbox": OTHER, "area": 25, "iscrowd": 0},
    ],
}  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "old.json").write_text(json.dumps(COCO))
    return tmp_path / "old.json"


def decided(source: Path, *made: dict[str, Any], **changes: Any) -> Path:
    """Write a file of decisions about the source."""
    entries = [{"image_id": 7, "category_id": 1, "bbox": BOX, **decision} for decision in made]
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    content = {"format": FORMAT, "version": 1, "annotations": source.name, "annotations_sha256": digest}
    path = source.parent / "decisions.json"
    path.write_text(json.dumps({**content, "decisions": entries, **changes}))
    return path


def result(source: Path, *made: dict[str, Any]) -> tuple[Applied, dict[str, Any]]:
    target = source.parent / "new.json"
    applied = apply_decisions(source, decided(source, *made), target)
    assert json.loads(source.read_text()) == COCO
    content: dict[str, Any] = json.loads(target.read_text())
    assert {**content, "annotations": []} == {**COCO, "annotations": []}
    return applied, content


def test_rejected_proposals_leave_everything_as_it_is(source: Path) -> None:
    missing = {"kind": "missing", "category_id": None, "bbox": None, "proposed_category_id": 5, "proposed_bbox": NEW}
    applied, content = result(source, {"kind": "extra", "decision": "reject"}, {**missing, "decision": "reject"})
    assert content == COCO
    assert applied == Applied(0, 0, 0, 0, 2)


@pytest.mark.parametrize("side", [10**400, 1e300])
def test_box_beyond_any_image_is_refused(source: Path, side: float) -> None:
    drawn = {"kind": "extra", "decision": "redraw", "drawn_category_id": 5, "drawn_bbox": [1, 2, side, 3]}
    with pytest.raises(DatasetError, match=r"decisions\[0\]: expected a box .* as drawn_bbox"):
        apply_decisions(source, decided(source, drawn), source.parent / "new.json")


def test_accepted_class_changes_only_the_class(source: Path) -> None:
    proposal = {"proposed_category_id": 5, "proposed_bbox": NEW}
    applied, content = result(source, {"kind": "class", "decision": "accept", **proposal})
    assert content["annotations"] == [{**COCO["annotations"][0], "category_id": 5}, *COCO["annotations"][1:]]
    assert applied == Applied(0, 1, 0, 0, 0)


def test_accepted_place_moves_the_box_and_drops_the_old_mask(source: Path) -> None:
    proposal = {"proposed_category_id": 5, "proposed_bbox": NEW}
    applied, content = result(source, {"kind": "place", "decision": "accept", **proposal})
    expected = {"id": 3, "image_id": 7, "category_id": 1, "bbox": NEW, "area": 42.0, "iscrowd": 0, "note": "x"}
    assert content["annotations"][0] == expected
    assert applied == Applied(0, 0, 1, 0, 0, 1)


def test_accepted_extra_removes_one_of_two_equal_labels(source: Path) -> None:
    applied, content = result(source, {"kind": "extra", "decision": "accept", "bbox": OTHER})
    assert [row["id"] for row in content["annotations"]] == [3, 4]
    assert applied == Applied(0, 0, 0, 1, 0)


def test_missing_labels_are_added_as_proposed_or_as_drawn_with_new_ids(source: Path) -> None:
    missing = {"kind": "missing", "category_id": None, "bbox": None, "proposed_category_id": 5, "proposed_bbox": NEW}
    drawn = {"decision": "redraw", "drawn_category_id": 1, "drawn_bbox": [0, 0, 2, 3]}
    applied, content = result(source, {**missing, "decision": "accept"}, {**missing, **drawn})
    added = content["annotations"][3:]
    assert [(row["id"], row["category_id"], row["bbox"], row["area"]) for row in added] == [
        (10, 5, NEW, 42.0),
        (11, 1, [0, 0, 2, 3], 6),
    ]
    assert applied == Applied(2, 0, 0, 0, 0)


def test_redrawn_label_gets_the_drawn_box_and_class(source: Path) -> None:
    drawn = {"decision": "redraw", "drawn_category_id": 5, "drawn_bbox": NEW}
    applied, content = result(source, {"kind": "extra", **drawn})
    assert (content["annotations"][0]["category_id"], content["annotations"][0]["bbox"]) == (5, NEW)
    assert applied == Applied(0, 1, 1, 0, 0, 1)


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        ({"kind": "extra", "decision": "accept", "bbox": [9, 9, 9, 9]}, "has no such label"),
        ({"kind": "extra", "decision": "accept", "image_id": 8}, "has no image 8"),
        ({"kind": "class", "decision": "accept", "proposed_category_id": 6}, "has no category 6"),
        ({"kind": "odd", "decision": "accept"}, "expected a kind and a decision"),
        ({"kind": "extra", "decision": "redraw", "drawn_category_id": 1, "drawn_bbox": [1, 1, 0, 4]}, "expected a box"),
        ({"kind": "extra", "decision": "redraw", "drawn_category_id": "1"}, "expected a whole number"),
        ({"kind": "place", "decision": "accept", "proposed_bbox": [1, 1, 1e999, 4]}, "expected a box"),
    ],
)
def test_wrong_decision_is_refused_and_nothing_is_written(source: Path, decision: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        apply_decisions(source, decided(source, decision), source.parent / "new.json")
    assert not (source.parent / "new.json").exists()


def test_two_decisions_about_one_label_are_refused(source: Path) -> None:
    decision = {"kind": "extra", "decision": "accept"}
    with pytest.raises(DatasetError, match="two decisions name it"):
        apply_decisions(source, decided(source, decision, decision), source.parent / "new.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "expected a file of decisions"),
        ({"annotations_sha256": "0"}, "decisions about another one"),
        ({"decisions": {}}, "expected a list of decisions"),
    ],
)
def test_file_of_other_decisions_is_refused(source: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        apply_decisions(source, decided(source, **changes), source.parent / "new.json")


def test_no_file_is_replaced(source: Path) -> None:
    with pytest.raises(DatasetError, match="no file is replaced"):
        apply_decisions(source, decided(source), source)
    assert json.loads(source.read_text()) == COCO
    (source.parent / "decisions.json").write_text("{")
    with pytest.raises(DatasetError, match="cannot be read as JSON"):
        apply_decisions(source, source.parent / "decisions.json", source.parent / "new.json")
