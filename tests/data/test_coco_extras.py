from __future__ import annotations

import json

import numpy as np
import pytest

from detector.data.coco import read_coco
from detector.data.coco_extras import ground_truth_with, no_extras, read_extras

CONTENT = {
    "info": {"year": 2026, "version": "1"},
    "licenses": [{"id": 1, "name": "CC0"}],
    "videos": ["kept too"],
    "images": [
        {"id": 7, "file_name": "a.jpg", "width": 100, "height": 80, "license": 1, "date": "today"},
        {"id": "8", "file_name": "b.jpg", "width": 100, "height": 80},
    ],
    "categories": [{"id": 5, "name": "dog", "supercategory": "animal"}, {"id": 2, "name": "cat", "keypoints": ["eye"]}],
    "annotations": [
        {
            "id": 31,
            "image_id": 8,
            "category_id": 5,
            "bbox": [1, 2, 30, 40],
            "area": 600,
            "iscrowd": 0,
            "attributes": {"a": 1},
        },
        {"id": 32, "image_id": 7, "category_id": 2, "bbox": [1, 2, 0, 40], "note": "unusable: no width"},
        {
            "id": 33,
            "image_id": 7,
            "category_id": 2,
            "bbox": [5, 5, 10, 10],
            "area": 100,
            "segmentation": [[5, 5, 15, 5, 15, 15]],
        },
        {"id": 34, "image_id": 7, "category_id": 2, "bbox": [5, 5, 10, 10], "area": 90, "note": "the same box again"},
        {"id": 35, "image_id": 7, "category_id": 5, "segmentation": [[1, 1, 9, 1, 9, 21]], "iscrowd": 1},
        *({"id": 40 + i, "image_id": 7, "category_id": 5, "bbox": [i, i, 9, 9], "area": 81} for i in range(10)),
    ],
}


@pytest.fixture
def read(tmp_path):
    def reading(content, name="coco.json"):
        path = tmp_path / name
        path.write_text("\ufeff" + json.dumps(content), encoding="utf-8")
        return read_coco(path, None)

    return reading


def test_every_other_key_is_preserved(read):
    annotations = read(CONTENT)
    truth = ground_truth_with(annotations, read_extras(annotations))
    assert (truth["info"], truth["licenses"], truth["videos"]) == (
        CONTENT["info"],
        CONTENT["licenses"],
        CONTENT["videos"],
    )
    assert truth["images"][0] == CONTENT["images"][0]
    assert truth["images"][1] == {"id": 8, "file_name": "b.jpg", "width": 100, "height": 80}
    assert {c["id"]: c for c in truth["categories"]} == {c["id"]: c for c in CONTENT["categories"]}
    rows = {row["id"]: row for row in truth["annotations"]}
    assert sorted(rows) == [31, 33, 34, 35, *range(40, 50)]  # 32 cannot be used
    assert rows[31] == CONTENT["annotations"][0]
    assert rows[33] == {**CONTENT["annotations"][2], "iscrowd": 0}
    assert rows[34]["note"] == "the same box again"
    assert (rows[34]["area"], rows[33]["area"]) == (90, 100)
    assert (rows[35]["bbox"], rows[35]["iscrowd"]) == ([1, 1, 8, 20], 1)
    assert rows[35]["segmentation"] == CONTENT["annotations"][4]["segmentation"]


def test_a_written_file_reads_back_equal(read):
    first = read(CONTENT)
    truth = ground_truth_with(first, read_extras(first))
    second = read(truth, "again.json")
    assert second.problems == ()
    np.testing.assert_array_equal(first.boxes_xywh, second.boxes_xywh)
    np.testing.assert_array_equal(first.labels, second.labels)
    np.testing.assert_array_equal(first.areas, second.areas)
    assert ground_truth_with(second, read_extras(second)) == truth


def test_annotation_ids_are_renumbered_where_one_is_missing_or_duplicate(read):
    for change in ({"id": 31}, {"id": None}, {"id": 0}):
        content = {**CONTENT, "annotations": [dict(a) for a in CONTENT["annotations"]]}
        content["annotations"][2].update(change)
        annotations = read(content)
        truth = ground_truth_with(annotations, read_extras(annotations))
        assert [row["id"] for row in truth["annotations"]] == list(range(1, 15))


def test_other_formats_have_no_extras(read):
    annotations = read(CONTENT)
    truth = ground_truth_with(annotations, no_extras(annotations))
    assert truth == annotations.ground_truth()


def test_a_real_file_keeps_its_masks(data_folder):
    folder = data_folder / "coco128"
    annotations = read_coco(folder / "instances.json", folder / "images")
    written = json.loads((folder / "instances.json").read_text("utf-8"))
    truth = ground_truth_with(annotations, read_extras(annotations))
    expected = {row["id"]: row for row in written["annotations"]}
    assert len(truth["annotations"]) == 939
    for row in truth["annotations"]:
        assert row == expected[row["id"]]
    assert truth["images"] == written["images"]
