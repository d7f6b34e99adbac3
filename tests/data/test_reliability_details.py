"""Rows of the table in `test_reliability_rows.py` that need more than one change and one message."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as runs

from detector.data.coco_dataset import CocoDataset, SplitConfig
from detector.data.doctor.file_checks import check_files, scan_files
from detector.errors import DatasetError
from detector.media.images import write_image

NUM_IMAGES, HEIGHT, WIDTH = 40, 60, 80  # of the sound file that `read_changed` starts from
RUNS = runs.encode(np.asfortranarray(np.pad(np.ones((20, 30), np.uint8), ((6, 34), (5, 45)))))
TEXT_RUNS = {"size": [HEIGHT, WIDTH], "counts": RUNS["counts"].decode()}
LIST_RUNS = {"size": [HEIGHT, WIDTH], "counts": [5 * 60 + 6, 20, *[40, 20] * 29, 34 + 45 * 60]}


def put(section: str, **values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda document: document[section][3].update(values)


def drop(section: str, *keys: str) -> Callable[[dict[str, Any]], Any]:
    return lambda document: [document[section][3].pop(key) for key in keys]


def test_ids_of_any_size_are_preserved(read_changed: Any) -> None:  # rows 33 and 42
    def change(document: dict[str, Any]) -> None:
        document["images"][3]["id"] = document["annotations"][3]["image_id"] = 2**70
        document["images"][4]["id"] = document["annotations"][4]["image_id"] = -(2**80)
        document["categories"][1]["id"] = 2**90
        for entry in document["annotations"]:
            entry["category_id"] = 2**90 if entry["category_id"] == 3 else entry["category_id"]

    coco = read_changed(change)
    assert coco.category_ids == (7, 90, 2**90)
    assert coco.image_ids.tolist()[3:6] == [2**70, -(2**80), 105]
    entries = coco.ground_truth()["annotations"]
    assert [(entry["image_id"], entry["category_id"]) for entry in entries[3:5]] == [(2**70, 2**90), (-(2**80), 7)]


@pytest.mark.parametrize("segmentation", [TEXT_RUNS, LIST_RUNS, [[5, 6, 35, 6, 35, 26]]])
def test_a_box_around_a_mask_is_that_of_the_mask(segmentation: Any, read_changed: Any) -> None:  # row 56
    coco = read_changed(put("annotations", bbox=None, segmentation=segmentation))
    assert coco.boxes_xywh[3].tolist() == [5, 6, 30, 20]


def test_a_list_of_images_needs_no_annotations(read_changed: Any) -> None:  # row 31
    coco = read_changed(lambda document: document.pop("annotations"), require_annotations=False)
    assert (len(coco), coco.num_boxes) == (NUM_IMAGES, 0)


def test_unknown_categories_are_skipped_on_demand(read_changed: Any) -> None:  # row 43
    coco = read_changed(put("annotations", category_id=8), ignore_unknown=True)
    assert (
        str(coco.problems[0]) == "1 x annotation of an unlisted category, skipped (annotation 4 of 003.png, category 8)"
    )


@pytest.fixture
def folder(tmp_path: Path, pictures: Path) -> Path:
    """The images of the sound file, for a test to change."""
    return Path(shutil.copytree(pictures, tmp_path / "images"))


def test_file_names_lead_outside_when_the_data_set_allows_it(  # row 57
    tmp_path: Path, folder: Path, read_changed: Any
) -> None:
    shutil.copy(folder / "003.png", tmp_path / "outside.png")
    with pytest.raises(DatasetError, match=r"data\.allow_outside=true permits it"):
        read_changed(put("images", file_name="../outside.png"), folder)
    split = SplitConfig(tmp_path / "instances.json", folder)
    coco = CocoDataset(CocoDataset.Config(train=split, allow_outside=True)).split("train")
    assert coco.problems == ()
    assert coco.path(3).samefile(tmp_path / "outside.png")


def test_a_missing_size_is_read_from_the_image_file(folder: Path, read_changed: Any) -> None:  # row 58
    write_image(folder / "003.png", np.zeros((50, 70, 3), np.uint8))
    coco = read_changed(drop("images", "width", "height"), folder)
    assert coco.image_hw[3].tolist() == [50, 70]
    (folder / "003.png").write_text("no picture")
    coco = read_changed(drop("images", "width", "height"), folder)
    assert coco.image_hw[3].tolist() == [0, 0]
    assert "and its file gives none, accepted (003.png)" in str(coco.problems[0])


@pytest.mark.parametrize(("size", "is_narrow"), [((1, 1), True), ((5000, 1), True), ((9, 80), True), ((10, 80), False)])
def test_images_too_narrow_to_learn_from_are_counted(  # row 18
    size: tuple[int, int], is_narrow: bool, read_changed: Any
) -> None:
    def change(document: dict[str, Any]) -> None:
        put("images", width=size[0], height=size[1])(document)
        del document["annotations"][3]

    said = [str(problem) for problem in read_changed(change).problems]
    wanted = f"1 x image too narrow to learn from, accepted (003.png, {size[0]} x {size[1]})"
    assert (wanted in said) == is_narrow


def test_an_error_about_lost_boxes_names_their_likely_format(read_changed: Any) -> None:  # row 50
    def change(document: dict[str, Any]) -> None:
        for entry in document["annotations"]:
            entry["bbox"] = [41, 31, 79, 59]
        for entry in document["annotations"][:5]:
            entry["bbox"] = [0, 0, 0, 5]

    with pytest.raises(DatasetError, match="would lose 5 of 40 boxes") as caught:
        read_changed(change)
    assert "35 x box that looks like xyxy, expected xywh; correct the file" in str(caught.value)


def test_images_in_two_splits_are_found_by_their_content(tmp_path: Path, folder: Path, read_changed: Any) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "others"))  # row 62
    for number, own in enumerate((folder, other)):
        for i in range(NUM_IMAGES):
            with (own / f"{i:03d}.png").open("ab") as file:
                file.write(bytes([number, i]))
    shutil.copy(folder / "007.png", other / "009.png")
    splits = {"train": read_changed(lambda document: None, folder), "val": read_changed(lambda document: None, other)}
    (folder / "001.png").unlink()
    findings = {finding.code: finding for finding in check_files(splits, scan_files(splits, 3, decode=False))}
    leak = findings["leak-exact"]
    assert (leak.severity, leak.title, leak.counts) == ("warning", "1 image also in another split", {"val": 1})
    assert "009.png" in leak.examples[0]
    assert "007.png" in leak.examples[0]
    alone = {"train": splits["train"]}
    assert "leak-exact" not in {finding.code for finding in check_files(alone, scan_files(alone, 3, decode=False))}
