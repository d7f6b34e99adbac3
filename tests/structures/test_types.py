"""Shape checks of the structures, and their computations against plain loops."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from detector.errors import DetectorError
from detector.structures.letterbox import Letterbox
from detector.structures.types import Batch, Detections, Sample, Targets


def a_sample(num: int = 3, image_id: int = 7, seed: int = 0, **changes) -> Sample:
    rng = np.random.default_rng(seed)
    fields = {
        "image": rng.integers(0, 256, (8, 6, 3), np.uint8),
        "canvas_xyxy": rng.uniform(0, 8, (num, 4)).astype(np.float32),
        "labels": rng.integers(0, 5, num),
        "ignore": rng.integers(0, 2, num).astype(np.bool_),
        "image_id": image_id,
    }
    return Sample(**{**fields, **changes})


# --- shapes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((8, 6, 3), np.float32)}, r"uint8 \(H, W, C\) image, got float32 \(8, 6, 3\)"),
        ({"image": np.zeros((8, 6), np.uint8)}, r"got uint8 \(8, 6\)"),
        ({"canvas_xyxy": np.zeros((3, 5), np.float32)}, r"canvas_xyxy of shape \(3, 4\), got \(3, 5\)"),
        ({"canvas_xyxy": np.zeros(12, np.float32)}, r"canvas_xyxy of shape \(12, 4\), got \(12,\)"),
        ({"labels": np.zeros(2, np.int64)}, r"labels of shape \(3,\), got \(2,\)"),
        ({"labels": np.zeros((3, 1), np.int64)}, r"labels of shape \(3,\), got \(3, 1\)"),
        ({"ignore": np.zeros(4, np.bool_)}, r"ignore of shape \(3,\), got \(4,\)"),
    ],
)
def test_a_sample_of_other_shapes_is_refused(changes, message):
    with pytest.raises(ValueError, match=f"Sample: expected .*{message}"):
        a_sample(**changes)


@pytest.mark.parametrize("what", ["labels", "image_index", "ignore"])
def test_targets_of_unequal_lengths_are_refused(what):
    fields = {
        "canvas_xyxy": torch.zeros(3, 4),
        "labels": torch.zeros(3, dtype=torch.long),
        "image_index": torch.zeros(3, dtype=torch.long),
        "ignore": torch.zeros(3, dtype=torch.bool),
    }
    fields[what] = fields[what][:2]
    with pytest.raises(ValueError, match=rf"Targets: expected {what} of shape \(3,\), got \(2,\)"):
        Targets(**fields, num_images=1)


def test_a_batch_of_other_shapes_is_refused():
    batch = Batch.of([a_sample(), a_sample(2)])
    with pytest.raises(ValueError, match=r"Batch: expected uint8 \(B, C, H, W\) images, got torch.float32"):
        replace(batch, images=batch.images.float())
    with pytest.raises(ValueError, match=r"Batch: expected uint8 \(B, C, H, W\) images"):
        replace(batch, images=batch.images[0])
    with pytest.raises(ValueError, match=r"got 2 images, 2 in the targets, 1 ids"):
        replace(batch, image_ids=(1,))
    with pytest.raises(ValueError, match=r"got 1 images, 2 in the targets, 2 ids"):
        replace(batch, images=batch.images[:1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source_xyxy": torch.zeros(3, 5)}, r"source_xyxy of shape \(3, 4\), got \(3, 5\)"),
        ({"scores": torch.zeros(2)}, r"scores of shape \(3,\), got \(2,\)"),
        ({"labels": torch.zeros(3, 1, dtype=torch.long)}, r"labels of shape \(3,\), got \(3, 1\)"),
        ({"category_ids": (1,)}, r"one category id per class name, got 1 ids for 2 names"),
    ],
)
def test_detections_of_other_shapes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(some_detections(3), **changes)


# --- targets and batches -------------------------------------------------------------------------------------------


def padded_by_loops(targets: Targets, ignore: bool):
    rows: list[list[tuple[list[float], int]]] = [[] for _ in range(targets.num_images)]
    for box, label, image, crowd in zip(
        targets.canvas_xyxy.tolist(),
        targets.labels.tolist(),
        targets.image_index.tolist(),
        targets.ignore.tolist(),
        strict=True,
    ):
        if crowd == ignore:
            rows[image].append((box, label))
    most = max((len(row) for row in rows), default=0)
    boxes = [[box for box, _ in row] + [[0.0] * 4] * (most - len(row)) for row in rows]
    labels = [[label for _, label in row] + [0] * (most - len(row)) for row in rows]
    valid = [[True] * len(row) + [False] * (most - len(row)) for row in rows]
    return boxes, labels, valid, most


def test_padded_targets_agree_with_a_loop():
    rng = np.random.default_rng(0)
    for _ in range(300):
        num_images, num = int(rng.integers(1, 6)), int(rng.integers(0, 12))
        targets = Targets(
            torch.from_numpy(rng.uniform(0, 100, (num, 4)).astype(np.float32)),
            torch.from_numpy(rng.integers(0, 9, num)),
            torch.from_numpy(np.sort(rng.integers(0, num_images, num))),
            torch.from_numpy(rng.integers(0, 2, num).astype(np.bool_)),
            num_images,
        )
        for ignore in (False, True):
            boxes, labels, valid = targets.padded(ignore)
            wanted_boxes, wanted_labels, wanted_valid, most = padded_by_loops(targets, ignore)
            assert boxes.shape == (num_images, most, 4)
            assert labels.shape == valid.shape == (num_images, most)
            assert (boxes.dtype, labels.dtype, valid.dtype) == (torch.float32, torch.int64, torch.bool)
            assert (boxes.tolist(), labels.tolist(), valid.tolist()) == (
                [row or [] for row in wanted_boxes],
                wanted_labels,
                wanted_valid,
            )


def test_a_batch_holds_its_samples_in_order():
    samples = [
        a_sample(3, image_id=10, seed=1),
        a_sample(0, image_id=4, seed=2, skipped=("a.jpg is empty",)),
        a_sample(2, image_id=2**62, seed=3, letterbox=Letterbox.fit((4, 4), (8, 6)), skipped=("b.jpg", "c.jpg")),
    ]
    batch = Batch.of(samples)
    assert (batch.images.shape, batch.images.dtype) == ((3, 3, 8, 6), torch.uint8)
    for row, sample in zip(batch.images, samples, strict=True):
        np.testing.assert_array_equal(row.permute(1, 2, 0).numpy(), sample.image)
    assert batch.image_ids == (10, 4, 2**62)
    assert batch.skipped == ("a.jpg is empty", "b.jpg", "c.jpg")
    targets = batch.targets
    assert targets.image_index.tolist() == [0, 0, 0, 2, 2]
    assert targets.num_images == 3
    assert (targets.canvas_xyxy.dtype, targets.labels.dtype) == (torch.float32, torch.int64)
    assert (targets.image_index.dtype, targets.ignore.dtype) == (torch.int64, torch.bool)
    np.testing.assert_array_equal(targets.canvas_xyxy.numpy(), np.concatenate([s.canvas_xyxy for s in samples]))
    np.testing.assert_array_equal(targets.labels.numpy(), np.concatenate([s.labels for s in samples]))
    np.testing.assert_array_equal(targets.ignore.numpy(), np.concatenate([s.ignore for s in samples]))


def test_a_batch_of_images_without_objects_is_a_batch():
    batch = Batch.of([a_sample(0), a_sample(0)])
    assert batch.targets.canvas_xyxy.shape == (0, 4)
    assert batch.targets.padded(False)[0].shape == (2, 0, 4)


def test_images_of_unequal_sizes_are_refused_as_a_batch():
    with pytest.raises(ValueError, match="same shape"):
        Batch.of([a_sample(1), a_sample(1, image=np.zeros((6, 8, 3), np.uint8))])


def test_all_targets_move_to_a_device():
    targets = Batch.of([a_sample(3), a_sample(1)]).targets
    moved = targets.to(torch.device("meta"))
    assert {t.device.type for t in (moved.canvas_xyxy, moved.labels, moved.image_index, moved.ignore)} == {"meta"}
    assert moved.num_images == 2


# --- detections ----------------------------------------------------------------------------------------------------


def some_detections(num: int, seed: int = 0) -> Detections:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 300, (num, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 300, (num, 2))], axis=1).astype(np.float32)
    scores = np.sort(rng.uniform(0, 1, num).astype(np.float32))[::-1].copy()
    return Detections(
        torch.from_numpy(boxes),
        torch.from_numpy(scores),
        torch.from_numpy(rng.integers(0, 2, num)),
        (600, 600),
        ("cat", "dog"),
        (17, 90),
    )


@pytest.mark.parametrize(
    ("index", "wanted"),
    [
        (0, [0]),
        (4, [4]),
        (-1, [4]),
        (-5, [0]),
        (slice(1, 3), [1, 2]),
        (slice(None, None, 2), [0, 2, 4]),
        ([3, 1], [3, 1]),
        (torch.tensor([2, 2]), [2, 2]),
        (np.array([True, False, False, True, False]), [0, 3]),
        (torch.tensor([False] * 5), []),
        ([True, False, True, False, False], [0, 2]),
        (np.array([4, 0]), [4, 0]),
        (np.int64(2), [2]),
        (torch.tensor(3), [3]),
        ([], []),
    ],
)
def test_detections_are_chosen_by_mask_slice_and_index(index, wanted):
    detections = some_detections(5)
    chosen = detections[index]
    assert len(chosen) == len(wanted)
    np.testing.assert_array_equal(chosen.source_xyxy.numpy(), detections.source_xyxy.numpy()[wanted].reshape(-1, 4))
    np.testing.assert_array_equal(chosen.scores.numpy(), detections.scores.numpy()[wanted])
    np.testing.assert_array_equal(chosen.labels.numpy(), detections.labels.numpy()[wanted])
    assert (chosen.image_hw, chosen.class_names, chosen.category_ids) == ((600, 600), ("cat", "dog"), (17, 90))


@pytest.mark.parametrize("index", [5, -6, [0, 9], np.int64(5)])
def test_an_index_beyond_the_detections_is_an_index_error(index):
    with pytest.raises(IndexError):
        some_detections(5)[index]


def test_iteration_ends():
    assert [len(one) for one in some_detections(3)] == [1, 1, 1]


def test_names_follow_labels():
    detections = some_detections(20)
    assert detections.names == [("cat", "dog")[label] for label in detections.labels.tolist()]
    assert set(detections.names) == {"cat", "dog"}


def test_coco_records_are_exact_and_survive_json():
    detections = some_detections(200)
    records = detections.to_coco(2**40 + 1)
    assert json.loads(json.dumps(records)) == records
    assert len(records) == 200
    for record, box, score, label in zip(
        records,
        detections.source_xyxy.tolist(),
        detections.scores.tolist(),
        detections.labels.tolist(),
        strict=True,
    ):
        assert set(record) == {"image_id", "category_id", "bbox", "score"}
        assert record["image_id"] == 2**40 + 1
        assert record["category_id"] == (17, 90)[label]
        assert record["score"] == score  # float32 to float64 is exact
        x1, y1, x2, y2 = box  # Python floats are float64: their difference is the reference
        assert record["bbox"] == [x1, y1, x2 - x1, y2 - y1]
        assert np.float32(record["bbox"][0] + record["bbox"][2]) == np.float32(x2)


def test_no_detections_give_no_records():
    assert some_detections(0).to_coco(1) == []
    assert some_detections(0).names == []


def test_the_repr_does_not_list_every_class():
    assert "cat" not in repr(some_detections(1))


# --- other packages and notebooks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["pandas", "supervision"])
def test_missing_package_is_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DetectorError, match=f"is not installed; pip install {package}"):
        getattr(some_detections(1), f"to_{package}")()


@pytest.mark.parametrize("num", [0, 5])
def test_the_columns_of_a_table_are_the_detections(num, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=dict))
    detections = some_detections(num)
    table = detections.to_pandas()
    assert list(table) == ["x1", "y1", "x2", "y2", "score", "label", "category_id", "name"]
    assert np.array_equal(np.stack([table[side] for side in ("x1", "y1", "x2", "y2")], axis=1), detections.source_xyxy)
    assert np.array_equal(table["score"], detections.scores)
    assert [(17, 90)[label] for label in table["label"]] == table["category_id"].tolist()
    assert table["name"] == detections.names


def test_pandas_itself_makes_the_table():
    pandas = pytest.importorskip("pandas")
    table = some_detections(5).to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert len(table) == 5
    assert table["score"].dtype == np.float32


def test_a_notebook_shows_the_best_and_says_how_many_there_are():
    shown = some_detections(25)._repr_html_()
    assert "25 detections" in shown
    assert "the best 20" in shown
    assert shown.count("<tr>") == 21
    assert "the best" not in some_detections(20)._repr_html_()


def test_class_name_is_escaped_in_a_notebook():
    detections = replace(some_detections(3), class_names=("<b>cat", "<i>dog"))
    shown = detections._repr_html_()
    assert "<b>" not in shown
    assert "<i>" not in shown
    assert "&lt;" in shown


def test_boxes_have_plain_values_and_repr_is_one_line():
    found = some_detections(3)
    assert [(box.name, box.label, box.score) for box in found.boxes] == list(
        zip(found.names, found.labels.tolist(), found.scores.tolist(), strict=True)
    )
    assert [[box.x1, box.y1, box.x2, box.y2] for box in found.boxes] == found.source_xyxy.tolist()
    assert [box.category_id for box in found.boxes] == [found.category_ids[i] for i in found.labels.tolist()]
    height, width = found.image_hw
    listed = ", ".join(f"{box.name} {box.score:.2f}" for box in found.boxes)
    assert repr(found) == f"Detections(3 in {width} x {height} pixels: {listed})"
    assert repr(found[:0]) == f"Detections(0 in {width} x {height} pixels: nothing)"
    assert repr(some_detections(12)).endswith(", ...)")
