from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detector.data.coco import CocoAnnotations, read_coco
from detector.data.coco_extras import Extras, entries, read_extras
from detector.data.dataset_editing import Portion, merge, remap_classes, split_portion, subset, take
from detector.errors import DatasetError


def portion_of(labels_of_images, names=("cat", "dog", "bird"), folder="/data/a", first_id=1, ids=None):
    """Images with the given labels; box (image, k) lies at x = 100 * image + k, and its extras say the same."""
    counts = [len(labels) for labels in labels_of_images]
    places = [(image, k) for image, labels in enumerate(labels_of_images) for k in range(len(labels))]
    boxes = np.array([[100 * image + k, 0, 10, 10] for image, k in places], dtype=np.float64).reshape(-1, 4)
    annotations = CocoAnnotations(
        annotations=Path(folder) / "coco.json",
        images=Path(folder) / "images",
        class_names=tuple(names),
        category_ids=tuple(ids or range(1, len(names) + 1)),
        image_ids=np.arange(first_id, first_id + len(counts)),
        file_names=[f"{number % 4}/{number}.jpg" for number in range(len(counts))],
        image_hw=np.full((len(counts), 2), 50),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes_xywh=boxes,
        labels=np.array([label for labels in labels_of_images for label in labels], dtype=np.int64),
        is_crowd=np.zeros(len(boxes), dtype=bool),
        areas=boxes[:, 0] + 1,
        problems=(),
    )
    rows = entries([{"x": float(box[0])} for box in boxes])
    return Portion(annotations, Extras(entries([{"n": n} for n in range(len(counts))]), rows, {1: {"super": "x"}}))


def consistent(portion):
    """Every box, area and extra still belongs to its image."""
    annotations = portion.annotations
    for index in range(len(annotations)):
        rows = slice(annotations.offsets[index], annotations.offsets[index + 1])
        number = portion.extras.images[index]["n"]
        assert annotations.file_names[index].endswith(f"{number}.jpg")
        xs = annotations.boxes_xywh[rows, 0]
        assert (xs // 100 == number).all()
        assert [row["x"] for row in portion.extras.rows[rows]] == xs.tolist() == (annotations.areas[rows] - 1).tolist()
        assert (np.diff(xs) > 0).all()  # in the order of the file
    assert annotations.offsets[-1] == annotations.num_boxes == len(annotations.is_crowd)
    return annotations


def random_labels(num, seed=0, weights=(0.6, 0.3, 0.1)):
    rng = np.random.default_rng(seed)
    return [rng.choice(3, rng.integers(0, 6), p=weights).tolist() for _ in range(num)]


def test_images_are_taken_with_their_boxes_in_the_given_order():
    whole = portion_of([[0, 1], [], [2], [0, 0, 1]])
    annotations = consistent(take(whole, np.array([3, 1, 0])))
    assert annotations.image_ids.tolist() == [4, 2, 1]
    assert annotations.labels.tolist() == [0, 0, 1, 0, 1]
    kept = consistent(take(whole, np.array([0, 3]), whole.annotations.labels == 0))
    assert kept.labels.tolist() == [0, 0, 0]
    assert len(take(whole, np.zeros(0, np.int64)).annotations) == 0


def test_a_split_uses_every_image_once_and_divides_every_class_by_the_shares():
    whole = portion_of(random_labels(1000))
    parts = split_portion(whole, {"train": 0.7, "val": 0.2, "test": 0.1}, seed=3)
    found = np.concatenate([consistent(part).image_ids for part in parts.values()])
    assert sorted(found.tolist()) == list(range(1, 1001))
    per_class = {name: images_per_class(part) for name, part in parts.items()}
    total = images_per_class(whole)
    for name, share in (("train", 0.7), ("val", 0.2), ("test", 0.1)):
        assert len(parts[name].annotations) == pytest.approx(1000 * share, abs=3)
        np.testing.assert_allclose(per_class[name], share * total, atol=2)


def images_per_class(portion):
    annotations = portion.annotations
    return np.array([sum(label in annotations.labels_of(i) for i in range(len(annotations))) for label in range(3)])


def test_a_rare_class_reaches_a_small_split():
    labels = [[0]] * 90 + [[0, 2]] * 10
    parts = split_portion(portion_of(labels), {"train": 0.8, "val": 0.2})
    assert images_per_class(parts["val"])[2] == 2


def test_a_split_depends_on_its_seed_alone():
    whole = portion_of(random_labels(60))

    def ids(seed):
        return [
            p.annotations.image_ids.tolist()
            for p in split_portion(whole, {"train": 0.5, "val": 0.5}, seed=seed).values()
        ]

    assert ids(1) == ids(1) != ids(2)


def test_groups_stay_together():
    whole = portion_of(random_labels(200))
    parts = split_portion(
        whole, {"train": 0.5, "val": 0.5}, groups=[name.split("/")[0] for name in whole.annotations.file_names]
    )
    folders = [{name.split("/")[0] for name in part.annotations.file_names} for part in parts.values()]
    assert [len(f) for f in folders] == [2, 2]
    assert not folders[0] & folders[1]
    with pytest.raises(DatasetError, match="200 images in 1 group leave the split val empty; group by"):
        split_portion(whole, {"train": 0.5, "val": 0.5}, groups=["all"] * 200)


@pytest.mark.parametrize(
    "shares", [{"train": 0.5, "val": 0.4}, {"train": 1.2, "val": -0.2}, {"train": 1.0, "val": 0.0}]
)
def test_invalid_shares_are_refused(shares):
    with pytest.raises(DatasetError, match="shares above 0 that add up to 1"):
        split_portion(portion_of(random_labels(10)), shares)


def test_a_subset_of_classes_keeps_their_images_and_ids():
    whole = portion_of([[0, 1], [], [2], [1, 1, 0], [0]], ids=(3, 7, 9))
    kept = consistent(subset(whole, class_names=["dog", "bird"]))
    assert (kept.class_names, kept.category_ids) == (("dog", "bird"), (7, 9))
    assert kept.image_ids.tolist() == [1, 3, 4]
    assert kept.labels.tolist() == [0, 1, 0, 0]
    assert len(consistent(subset(whole, class_names=["dog"], keep_empty=True))) == 5
    with pytest.raises(DatasetError, match=r"has no class 'dgo'; did you mean 'dog'\?"):
        subset(whole, class_names=["dgo"])


def test_a_subset_of_images_is_drawn_by_its_seed():
    whole = portion_of(random_labels(50))
    one, same, other = (consistent(subset(whole, num=20, seed=seed)).image_ids.tolist() for seed in (1, 1, 2))
    assert one == same == sorted(set(one))
    assert (len(one), one == other) == (20, False)
    with pytest.raises(DatasetError, match="expected 1 to 50 images, got 51"):
        subset(whole, num=51)


def test_classes_are_renamed_joined_and_left_out():
    whole = portion_of([[0, 1], [2], [1, 2]], ids=(3, 7, 9))
    annotations = consistent(remap_classes(whole, {"cat": "pet", "dog": "pet"}))
    assert (annotations.class_names, annotations.category_ids) == (("pet", "bird"), (3, 9))
    assert annotations.labels.tolist() == [0, 0, 1, 0, 1]
    annotations = consistent(remap_classes(whole, {"cat": "", "bird": "dog"}))
    assert (annotations.class_names, annotations.category_ids) == (("dog",), (7,))
    assert annotations.labels.tolist() == [0, 0, 0, 0]
    assert np.diff(annotations.offsets).tolist() == [1, 1, 2]
    with pytest.raises(DatasetError, match="no class is left of 3"):
        remap_classes(whole, {"cat": "", "dog": "", "bird": ""})
    with pytest.raises(DatasetError, match="has no class 'cow'"):
        remap_classes(whole, {"cow": "cat"})


def test_merged_data_sets_match_classes_by_name_and_note_changes():
    one = portion_of([[0, 1], [2]])
    two = portion_of([[0], [1, 1]], names=("dog", "fish"), folder="/data/b")
    merged, notes = merge([{"train": one}, {"train": two, "val": portion_of([[1]], ("dog", "fish"), "/data/c")}])
    annotations = merged["train"].annotations
    assert annotations.class_names == merged["val"].annotations.class_names == ("cat", "dog", "bird", "fish")
    assert annotations.category_ids == merged["val"].annotations.category_ids == (1, 2, 3, 4)
    assert annotations.labels.tolist() == [0, 1, 2, 1, 3, 3]
    assert merged["val"].annotations.labels.tolist() == [3]
    assert annotations.images == Path("/data")
    assert list(annotations.file_names) == [
        "a/images/0/0.jpg",
        "a/images/1/1.jpg",
        "b/images/0/0.jpg",
        "b/images/1/1.jpg",
    ]
    assert annotations.image_ids.tolist() == [1, 2, 3, 4]
    assert [n.split(": ", 1)[1] for n in notes] == [
        "category 1 (dog) becomes 2",
        "category 2 (fish) becomes 4",
        "category 1 (dog) becomes 2",
        "category 2 (fish) becomes 4",
        "the splits of 2 data sets are joined, 2 + 2 images",
        "image ids are used more than once: all 4 images are numbered again from 1",
    ]


def test_unique_image_ids_are_kept_by_a_merge():
    merged, notes = merge([{"train": portion_of([[0]])}, {"train": portion_of([[1]], folder="/data/b", first_id=40)}])
    assert merged["train"].annotations.image_ids.tolist() == [1, 40]
    assert notes == ("train: the splits of 2 data sets are joined, 1 + 1 images",)
    assert merged["train"].extras.categories == {1: {"super": "x"}, 2: {}, 3: {}}


def test_an_image_in_two_data_sets_is_refused():
    one = portion_of([[0], [1]])
    path = os.path.abspath("/data/a/images/0/0.jpg")
    with pytest.raises(DatasetError, match="is in two of the data sets") as caught:
        merge([{"train": one}, {"train": portion_of([[0]])}])
    assert path in str(caught.value)


def test_a_split_data_set_merges_back_to_the_same(tiny_shapes):
    annotations = read_coco(tiny_shapes / "annotations/train.json", tiny_shapes / "images/train")
    whole = Portion(annotations, read_extras(annotations))
    parts = split_portion(whole, {"train": 0.5, "val": 0.5})
    merged, notes = merge([{"train": parts["train"]}, {"train": parts["val"]}])
    assert notes == ("train: the splits of 2 data sets are joined, 6 + 6 images",)
    order = np.argsort(merged["train"].annotations.image_ids)
    again = take(merged["train"], order)
    truth = replace(annotations, problems=()).ground_truth()
    found = again.annotations.ground_truth()
    assert found["images"] == truth["images"]
    assert found["annotations"] == truth["annotations"]
    assert [row["visible_share"] for row in again.extras.rows] == [row["visible_share"] for row in whole.extras.rows]
