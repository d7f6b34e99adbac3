from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.data.coco import CocoAnnotations, read_coco
from detector.data.problems import MAX_SKIPPED_SHARE
from detector.errors import DatasetError

NUM_IMAGES = 40  # enough for one fault to stay below MAX_SKIPPED_SHARE


def annotation(identifier: int, image_id: int, bbox: list[float], category_id: int = 3, **more: Any) -> dict[str, Any]:
    area = bbox[2] * bbox[3]
    return {"id": identifier, "image_id": image_id, "category_id": category_id, "bbox": bbox, "area": area, **more}


@pytest.fixture
def document() -> dict[str, Any]:
    """Images 100, 101, ... of 60 x 80, one box of 10 x 20 in each, categories 90, 3, 7 in that order."""
    return {
        "images": [{"id": 100 + i, "file_name": f"{i:03d}.jpg", "height": 60, "width": 80} for i in range(NUM_IMAGES)],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}, {"id": 7, "name": "train"}],
        "annotations": [
            annotation(1 + i, 100 + i, [5.25, 6.5, 10, 20], (3, 7, 90)[i % 3], iscrowd=0) for i in range(NUM_IMAGES)
        ],
    }


def write(folder: Path, document: Any) -> Path:
    path = folder / "instances.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path


def read(folder: Path, document: Any, **options: Any) -> CocoAnnotations:
    return read_coco(write(folder, document), None, **options)


def refused(folder: Path, document: Any, **options: Any) -> str:
    with pytest.raises(DatasetError) as caught:
        read(folder, document, **options)
    message = str(caught.value)
    assert str(folder / "instances.json") in message
    assert "\n" not in message
    return message


def found(coco: CocoAnnotations) -> dict[str, tuple[str, int]]:
    return {problem.kind: (problem.outcome, problem.count) for problem in coco.problems}


# ---- what a sound file gives


def test_a_sound_file_is_read_as_written(tmp_path: Path, document: dict[str, Any]) -> None:
    coco = read(tmp_path, document)
    assert coco.problems == ()
    assert (len(coco), coco.num_boxes) == (NUM_IMAGES, NUM_IMAGES)
    assert coco.category_ids == (3, 7, 90)
    assert coco.class_names == ("car", "train", "toothbrush")
    assert coco.image_ids.tolist() == [100 + i for i in range(NUM_IMAGES)]
    assert coco.file_names[:2] == ("000.jpg", "001.jpg")
    assert coco.image_hw.tolist() == [[60, 80]] * NUM_IMAGES
    assert coco.offsets.tolist() == list(range(NUM_IMAGES + 1))
    assert coco.boxes_xywh.tolist() == [[5.25, 6.5, 10, 20]] * NUM_IMAGES
    assert coco.labels.tolist() == [i % 3 for i in range(NUM_IMAGES)]
    assert coco.areas.tolist() == [200] * NUM_IMAGES
    assert not coco.is_crowd.any()
    dtypes = [a.dtype for a in (coco.image_ids, coco.image_hw, coco.offsets, coco.labels)]
    assert dtypes == [np.int64] * 4
    assert [a.dtype for a in (coco.boxes_xywh, coco.areas, coco.is_crowd)] == [np.float64, np.float64, np.bool_]


def test_rows_are_grouped_by_image_and_keep_the_order_of_the_file(tmp_path: Path, document: dict[str, Any]) -> None:
    order = np.random.default_rng(5).permutation(3 * NUM_IMAGES)
    document["images"].reverse()
    document["annotations"] = [
        annotation(int(i) + 1, 100 + int(i) % NUM_IMAGES, [0, 0, 1 + int(i) / 8, 2], (3, 7, 90)[int(i) % 3])
        for i in order
    ]
    coco = read(tmp_path, document)
    assert coco.image_ids.tolist() == [100 + i for i in reversed(range(NUM_IMAGES))]
    for index, image_id in enumerate(coco.image_ids.tolist()):
        own = [entry for entry in document["annotations"] if entry["image_id"] == image_id]
        reference = np.array([[0, 0, entry["bbox"][2], 2] for entry in own], dtype=np.float64)
        source_xyxy = coco.source_xyxy(index)
        assert source_xyxy.dtype == np.float32
        np.testing.assert_array_equal(source_xyxy.astype(np.float64), reference)
        assert coco.labels_of(index).tolist() == [(3, 7, 90).index(entry["category_id"]) for entry in own]
        assert coco.is_crowd_of(index).tolist() == [False] * 3


def test_negative_indices_count_from_the_end_and_others_are_refused(tmp_path: Path, document: dict[str, Any]) -> None:
    coco = read(tmp_path, document)
    assert coco.labels_of(-1).tolist() == coco.labels_of(NUM_IMAGES - 1).tolist() == [(NUM_IMAGES - 1) % 3]
    for ask in (coco.labels_of, coco.source_xyxy, coco.is_crowd_of):
        with pytest.raises(IndexError):
            ask(NUM_IMAGES)


def test_returned_arrays_can_be_changed_without_side_effect(tmp_path: Path, document: dict[str, Any]) -> None:
    coco = read(tmp_path, document)
    coco.labels_of(0)[:] = 2
    coco.is_crowd_of(0)[:] = True
    coco.source_xyxy(0)[:] = 0
    assert coco.labels_of(0).tolist() == [0]
    assert coco.is_crowd_of(0).tolist() == [False]
    assert coco.source_xyxy(0).tolist() == [[5.25, 6.5, 15.25, 26.5]]


def test_boxes_for_training_are_clipped_and_boxes_for_scoring_are_not(tmp_path: Path, document: dict[str, Any]) -> None:
    document["annotations"][0]["bbox"] = [-5.5, 50, 100, 30.25]
    coco = read(tmp_path, document)
    assert coco.source_xyxy(0).tolist() == [[0, 50, 80, 60]]
    assert coco.boxes_xywh[0].tolist() == [-5.5, 50, 100, 30.25]
    assert coco.ground_truth()["annotations"][0]["bbox"] == [-5.5, 50, 100, 30.25]


def test_without_a_size_boxes_are_not_clipped(tmp_path: Path, document: dict[str, Any]) -> None:
    del document["images"][0]["width"]
    document["annotations"][0]["bbox"] = [70, 50, 100, 30]
    coco = read(tmp_path, document)
    assert coco.image_hw[0].tolist() == [0, 0]
    assert coco.source_xyxy(0).tolist() == [[70, 50, 170, 80]]


def test_a_byte_order_mark_and_unicode_names_are_read(tmp_path: Path, document: dict[str, Any]) -> None:
    document["categories"][1]["name"] = "自動車 ü"
    document["images"][0]["file_name"] = "ordner ä/图片 #1%.jpg"
    path = tmp_path / "instances.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(document, ensure_ascii=False).encode())
    coco = read_coco(path, None)
    assert coco.class_names[0] == "自動車 ü"
    assert coco.file_names[0] == "ordner ä/图片 #1%.jpg"
    assert coco.ground_truth()["images"][0]["file_name"] == "ordner ä/图片 #1%.jpg"


@pytest.mark.parametrize("ids", [(0, 1, 2), (2, 0, 1), (90, 7, 3), (-1, 5, 2**62)])
def test_category_ids_are_sorted_to_labels_and_restored(
    tmp_path: Path, document: dict[str, Any], ids: tuple[int, int, int]
) -> None:
    for entry, identifier in zip(document["categories"], ids, strict=True):
        entry.update(id=identifier, name=f"name {identifier}")
    for i, entry in enumerate(document["annotations"]):
        entry["category_id"] = ids[i % 3]
    coco = read(tmp_path, document)
    assert coco.category_ids == tuple(sorted(ids))
    assert coco.class_names == tuple(f"name {identifier}" for identifier in sorted(ids))
    assert [coco.category_ids[label] for label in coco.labels] == [ids[i % 3] for i in range(NUM_IMAGES)]
    written = [entry["category_id"] for entry in coco.ground_truth()["annotations"]]
    assert written == [ids[i % 3] for i in range(NUM_IMAGES)]


# ---- the folder of images


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(NUM_IMAGES):
        (folder / f"{i:03d}.jpg").touch()
    return folder


def test_paths_are_those_of_the_folder(tmp_path: Path, document: dict[str, Any], images: Path) -> None:
    (images / "left").mkdir()
    (images / "right").mkdir()
    for index, name in enumerate(("left/000.jpg", "right/000.png")):
        (images / "000.jpg").rename(images / name) if index == 0 else (images / name).touch()
        document["images"][index]["file_name"] = name
    coco = read_coco(write(tmp_path, document), images)
    assert coco.problems == ()
    assert coco.path(0) == images / "left" / "000.jpg"
    assert coco.path(1) == images / "right" / "000.png"
    assert coco.path(2) == images / "002.jpg"


def test_path_without_a_folder_of_images_raises_value_error(tmp_path: Path, document: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected annotations read with a folder of images"):
        read(tmp_path, document).path(0)


def test_missing_images_are_skipped_with_their_annotations(
    tmp_path: Path, document: dict[str, Any], images: Path
) -> None:
    (images / "001.jpg").unlink()
    (images / "003.jpg").unlink()
    (images / "003.jpg").symlink_to(images / "gone.jpg")
    (images / "005.jpg").unlink()
    (images / "005.jpg").symlink_to(images / "005.jpg")
    document["images"][7]["file_name"] = "no such folder/007.jpg"
    coco = read_coco(write(tmp_path, document), images)
    assert found(coco) == {"image file missing": ("skipped", 4), "annotation of a missing image": ("skipped", 4)}
    assert coco.problems[0].examples == ("001.jpg", "003.jpg", "005.jpg", "no such folder/007.jpg")
    assert coco.problems[1].examples[0] == "annotation 2 of 001.jpg"
    kept = [i for i in range(NUM_IMAGES) if i not in (1, 3, 5, 7)]
    assert coco.image_ids.tolist() == [100 + i for i in kept]
    assert [coco.labels_of(index).tolist() for index in range(len(coco))] == [[i % 3] for i in kept]
    assert coco.image_hw.shape == (NUM_IMAGES - 4, 2)


def test_links_to_images_are_images(tmp_path: Path, document: dict[str, Any], images: Path) -> None:
    (images / "001.jpg").rename(tmp_path / "elsewhere.jpg")
    (images / "001.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    assert read_coco(write(tmp_path, document), images).problems == ()


def test_images_in_a_folder_that_cannot_be_listed_are_found(
    tmp_path: Path, document: dict[str, Any], images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", deny)
    assert read_coco(write(tmp_path, document), images).problems == ()


def test_a_name_that_no_file_can_have_is_missing(tmp_path: Path, document: dict[str, Any], images: Path) -> None:
    document["images"][0]["file_name"] = "a\0b.jpg"
    document["images"][1]["file_name"] = "a\0b/c.jpg"
    assert found(read_coco(write(tmp_path, document), images))["image file missing"] == ("skipped", 2)


def test_a_set_without_any_image_is_refused(tmp_path: Path, document: dict[str, Any]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"instances\.json would lose 40 of 40 images.* 40 x image file missing"):
        read_coco(write(tmp_path, document), tmp_path / "empty")


@pytest.mark.parametrize(("num_missing", "is_refused"), [(4, False), (5, True)])
def test_more_than_a_tenth_of_the_images_missing_is_refused(
    tmp_path: Path, document: dict[str, Any], images: Path, num_missing: int, is_refused: bool
) -> None:
    assert MAX_SKIPPED_SHARE * NUM_IMAGES == 4
    for i in range(num_missing):
        (images / f"{i:03d}.jpg").unlink()
    path = write(tmp_path, document)
    if is_refused:
        with pytest.raises(DatasetError, match=r"would lose 5 of 40 images, more than the 10% allowed: 5 x image file"):
            read_coco(path, images)
    else:
        assert len(read_coco(path, images)) == NUM_IMAGES - num_missing


@pytest.mark.parametrize(("num_bad", "is_refused"), [(4, False), (5, True)])
def test_more_than_a_tenth_of_the_boxes_skipped_is_refused_with_the_counts(
    tmp_path: Path, document: dict[str, Any], num_bad: int, is_refused: bool
) -> None:
    for i in range(num_bad):
        document["annotations"][i]["bbox"] = [5, 6, 0, 20] if i else [200, 6, 10, 20]
    if is_refused:
        message = refused(tmp_path, document)
        assert (
            "would lose 5 of 40 boxes, more than the 10% allowed: 4 x box of zero width or height, skipped (" in message
        )
        assert "1 x box wholly outside the image, skipped (annotation 1 of 000.jpg)" in message
        assert "image without annotations" not in message
    else:
        assert read(tmp_path, document).num_boxes == NUM_IMAGES - num_bad


# ---- scoring


def score(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> list[float]:
    coco = COCO()
    coco.dataset = copy.deepcopy(ground_truth)
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [float(value) for value in evaluation.stats]


def perfect(ground_truth: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {key: entry[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for entry in ground_truth["annotations"]
        if not entry["iscrowd"]
    ]


def test_perfect_detections_score_one_for_every_odd_file(tmp_path: Path, document: dict[str, Any]) -> None:
    entries = document["annotations"]
    entries[0]["id"] = 0  # pycocotools would lose this box
    entries[1]["id"] = 5  # and this one, or the one of the same id
    del entries[2]["area"], entries[3]["iscrowd"], entries[6]["id"]
    entries[7]["bbox"] = [float("nan"), 1, 2, 3]
    entries[8]["bbox"] = [70, 6, 30, 20]
    entries[9]["iscrowd"] = True
    document["images"][10]["id"] = "110"
    ground_truth = read(tmp_path, document).ground_truth()
    assert len(ground_truth["annotations"]) == NUM_IMAGES - 1
    assert score(ground_truth, perfect(ground_truth))[0] == pytest.approx(1.0)
    json.dumps(ground_truth, allow_nan=False)  # plain Python values only


def test_the_score_of_a_sound_file_equals_that_of_pycocotools(tmp_path: Path, document: dict[str, Any]) -> None:
    random = np.random.default_rng(11)
    document["annotations"] = [
        annotation(
            1 + i,
            100 + int(random.integers(NUM_IMAGES)),
            [*random.uniform(-2, 40, 2).tolist(), *random.uniform(3, 60, 2).tolist()],
            int(random.choice([3, 7, 90])),
            iscrowd=int(random.random() < 0.1),
        )
        for i in range(300)
    ]
    results = []
    for entry in document["annotations"]:
        box = (np.array(entry["bbox"]) + random.normal(0, 2, 4)).clip(0.5).tolist()
        results.append({"image_id": entry["image_id"], "category_id": entry["category_id"], "bbox": box})
        results[-1]["score"] = float(random.random())
    own = score(read(tmp_path, document).ground_truth(), results)
    assert own == score({"info": {}, **document}, results)
    assert 0.1 < own[0] < 0.9


def test_the_published_numbers_of_the_coco_authors_are_reproduced(tmp_path: Path) -> None:
    folder = Path(os.environ.get("DETECTOR_TEST_DATA", "")) / "coco-golden"
    if "DETECTOR_TEST_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("DETECTOR_TEST_DATA holds no coco-golden")
    coco = read_coco(folder / "instances.json", None)
    assert (len(coco), coco.num_boxes) == (100, 839)
    assert all(problem.outcome != "skipped" for problem in coco.problems)
    stats = score(coco.ground_truth(), json.loads((folder / "results.json").read_text()))
    published = [0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564]
    assert [round(value, 3) for value in stats] == published


# ---- damage


def test_random_damage_gives_annotations_or_a_dataset_error(tmp_path: Path, document: dict[str, Any]) -> None:
    random = np.random.default_rng(2)
    values: list[Any] = [None, True, -1, 0, 1.5, "x", "7", [], {}, [1]]
    values += [float("nan"), float("inf"), 10**30, "\0", "\ud800"]
    num_refused = 0
    for _ in range(400):
        damaged = copy.deepcopy(document)
        for _ in range(random.integers(1, 4)):
            entries = damaged[("images", "categories", "annotations")[random.integers(3)]]
            entry = entries[random.integers(len(entries))]
            key = list(entry)[random.integers(len(entry))]
            value = values[random.integers(len(values))]
            if isinstance(entry[key], list) and random.random() < 0.5:
                entry[key] = [*entry[key][:2], value, 3]
            else:
                entry[key] = value
        try:
            coco = read(tmp_path, damaged)
        except DatasetError:
            num_refused += 1
            continue
        assert np.isfinite(coco.boxes_xywh).all()
        assert (coco.boxes_xywh[:, 2:] > 0).all()
        assert coco.offsets[-1] == coco.num_boxes == len(coco.areas)
        for index in range(len(coco)):
            source_xyxy = coco.source_xyxy(index)
            assert np.isfinite(source_xyxy).all()
            assert (source_xyxy[:, 2:] > source_xyxy[:, :2]).all()
    assert 50 < num_refused < 350
