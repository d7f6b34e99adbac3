from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.data.coco import CocoAnnotations, read_coco
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


# ---- the rows: accepted


def drop(key: str) -> Any:
    return lambda entry: entry.pop(key)


def put(**values: Any) -> Any:
    return lambda entry: entry.update(values)


def test_masks_are_ignored_where_there_is_a_box(tmp_path: Path, document: dict[str, Any]) -> None:
    document["annotations"][0]["segmentation"] = [[0, 0, 50, 0, 50, 50]]
    document["annotations"][1]["segmentation"] = {"counts": [1, 2], "size": [60, 80]}
    coco = read(tmp_path, document)
    assert coco.problems == ()
    assert coco.boxes_xywh[0].tolist() == [5.25, 6.5, 10, 20]


@pytest.mark.parametrize(
    ("section", "change", "kind", "example"),
    [
        ("annotations", put(bbox=[-3, 6, 10, 20]), "box partly outside the image", "annotation 1 of 000.jpg"),
        ("annotations", put(bbox=[75, 6, 10, 20]), "box partly outside the image", "annotation 1 of 000.jpg"),
        ("annotations", drop("area"), "annotation without area, width x height is taken", "annotation 1 of 000.jpg"),
        ("annotations", put(area=float("nan")), "annotation without area, width x height is taken", "annotation 1"),
        ("annotations", put(area=-1), "annotation without area, width x height is taken", "annotation 1 of 000.jpg"),
        ("annotations", put(area="9"), "annotation without area, width x height is taken", "annotation 1 of 000.jpg"),
        ("annotations", put(id=2), "annotation id used twice", "annotation 2"),
        ("annotations", put(ignore=1), "ignore flag, which has no effect", "annotation 1 of 000.jpg"),
        ("annotations", put(id="1"), "identifier written as text or with a decimal point", "id of annotations[0]"),
        ("annotations", put(image_id="100"), "identifier written as text or with a decimal point", "image_id of ann"),
        ("annotations", put(category_id=3.0), "identifier written as text or with a decimal point", "category_id of"),
        ("images", put(id="100"), "identifier written as text or with a decimal point", "id of images[0]"),
        ("images", put(id=100.0), "identifier written as text or with a decimal point", "id of images[0]"),
        ("categories", put(id=" 90 "), "identifier written as text or with a decimal point", "id of categories[0]"),
        ("images", drop("width"), "image without width and height", "000.jpg"),
        ("images", drop("height"), "image without width and height", "000.jpg"),
        ("images", put(height=0), "image without width and height", "000.jpg"),
        ("images", put(height="60"), "image without width and height", "000.jpg"),
        ("images", put(width=float("inf")), "image without width and height", "000.jpg"),
        ("images", put(width=80.25), "image size that is not a whole number", "000.jpg"),
        ("images", put(width=True), "image without width and height", "000.jpg"),
        ("categories", drop("name"), "category without name", "category 90, now class_90"),
        ("categories", put(name=5), "category without name", "category 90, now class_90"),
        ("categories", put(name=" "), "category without name", "category 90, now class_90"),
    ],
)
def test_odd_entries_are_accepted_and_counted(
    tmp_path: Path, document: dict[str, Any], section: str, change: Any, kind: str, example: str
) -> None:
    change(document[section][0])
    coco = read(tmp_path, document)
    assert found(coco) == {kind: ("accepted", 1)}
    assert coco.problems[0].examples[0].startswith(example)
    assert (len(coco), coco.num_boxes) == (NUM_IMAGES, NUM_IMAGES)
    assert coco.areas.tolist() == (coco.boxes_xywh[:, 2] * coco.boxes_xywh[:, 3]).tolist()
    assert coco.category_ids == (3, 7, 90)
    assert coco.image_ids[0] == 100


@pytest.mark.parametrize(
    "change", [drop("id"), put(id=0), put(id=None), drop("iscrowd"), put(iscrowd=None), put(iscrowd=False)]
)
def test_unambiguous_variants_are_read_without_a_problem(tmp_path: Path, document: dict[str, Any], change: Any) -> None:
    change(document["annotations"][0])
    coco = read(tmp_path, document)
    assert coco.problems == ()
    assert not coco.is_crowd.any()
    assert [entry["id"] for entry in coco.ground_truth()["annotations"]] == list(range(1, NUM_IMAGES + 1))


@pytest.mark.parametrize("value", [1, True, 1.0])
def test_crowd_regions_are_kept_and_marked(tmp_path: Path, document: dict[str, Any], value: Any) -> None:
    document["annotations"][4]["iscrowd"] = value
    coco = read(tmp_path, document)
    assert coco.problems == ()
    assert np.flatnonzero(coco.is_crowd).tolist() == [4]
    assert coco.is_crowd_of(4).tolist() == [True]
    crowd = coco.ground_truth()["annotations"][4]["iscrowd"]
    assert crowd == 1
    assert type(crowd) is int


def test_an_area_as_written_is_kept(tmp_path: Path, document: dict[str, Any]) -> None:
    document["annotations"][0]["area"] = 12.5
    coco = read(tmp_path, document)
    assert coco.areas[0] == 12.5
    assert coco.problems == ()


def test_rounding_to_two_decimals_is_not_outside(tmp_path: Path, document: dict[str, Any]) -> None:
    document["annotations"][0]["bbox"] = [70.004, 6, 10.005, 20]
    assert read(tmp_path, document).problems == ()


def test_two_categories_of_one_name_are_accepted_and_counted(tmp_path: Path, document: dict[str, Any]) -> None:
    document["categories"][2]["name"] = "car"
    assert found(read(tmp_path, document)) == {"category name used twice": ("accepted", 1)}


def test_a_box_is_taken_from_polygons_where_there_is_no_bbox(tmp_path: Path, document: dict[str, Any]) -> None:
    document["annotations"][0] |= {"bbox": [], "segmentation": [[10, 20, 30, 20, 30.5, 45], [5, 30, 6, 30, 6, 31]]}
    del document["annotations"][1]["bbox"]
    document["annotations"][1]["segmentation"] = [[1, 2, 3, 2, 3, 4]]
    coco = read(tmp_path, document)
    assert coco.boxes_xywh[:2].tolist() == [[5, 20, 25.5, 25], [1, 2, 2, 2]]
    assert found(coco) == {"annotation without bbox, the box around its polygons is taken": ("accepted", 2)}


# ---- the rows: skipped


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (put(bbox=[5, 6, 0, 20]), "box of zero width or height"),
        (put(bbox=[5, 6, 10, 0]), "box of zero width or height"),
        (put(bbox=[5, 6, -10, 20]), "box of negative width or height"),
        (put(bbox=[5, 6, 10, -20]), "box of negative width or height"),
        (put(bbox=[float("nan"), 6, 10, 20]), "box with a number that is not finite"),
        (put(bbox=[5, float("-inf"), 10, 20]), "box with a number that is not finite"),
        (put(bbox=[5, 6, float("inf"), 20]), "box with a number that is not finite"),
        (put(bbox=[5, 6, 10, 10**400]), "box with a number that is not finite"),
        (put(bbox=[5, 6, 10, 1e39]), "box with a number that is not finite"),
        (put(bbox=[5, 2e38, 10, 2e38]), "box with a number that is not finite"),
        (put(bbox=[5, 6, 10, float("nan")]), "box with a number that is not finite"),
        (put(bbox=[80, 6, 10, 20]), "box wholly outside the image"),
        (put(bbox=[5, 62, 10, 20]), "box wholly outside the image"),
        (put(bbox=[-10, 6, 10, 20]), "box wholly outside the image"),
        (put(bbox=[5, -21, 10, 20]), "box wholly outside the image"),
        (put(bbox=[50, 6, 1e-9, 20]), "box too thin to have an area in single precision"),
        (put(bbox=[5, 6, 10]), "annotation without four numbers for a box"),
        (put(bbox=[5, 6, 10, 20, 30]), "annotation without four numbers for a box"),
        (put(bbox=[]), "annotation without four numbers for a box"),
        (put(bbox=None), "annotation without four numbers for a box"),
        (drop("bbox"), "annotation without four numbers for a box"),
        (put(bbox=["5", "6", "10", "20"]), "annotation without four numbers for a box"),
        (put(bbox=[5, 6, 10, True]), "annotation without four numbers for a box"),
        (put(bbox=[5, 6, 10, None]), "annotation without four numbers for a box"),
        (put(bbox=[5, 6, 10, [20]]), "annotation without four numbers for a box"),
        (put(bbox="5 6 10 20"), "annotation without four numbers for a box"),
        (put(bbox={"x": 5}), "annotation without four numbers for a box"),
        (put(bbox=[], segmentation={"counts": "x"}), "annotation without four numbers for a box"),
        (put(bbox=[], segmentation=[[1, 2, 3, 4]]), "annotation without four numbers for a box"),
        (put(bbox=[], segmentation=[[1, 2, 3, 4, 5, "6"]]), "annotation without four numbers for a box"),
        (put(bbox=[], segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "annotation without four numbers for a box"),
        (put(bbox=[], segmentation=[]), "annotation without four numbers for a box"),
        (put(image_id=999), "annotation of an unlisted image"),
    ],
)
def test_an_unusable_annotation_is_skipped_and_counted(
    tmp_path: Path, document: dict[str, Any], change: Any, kind: str
) -> None:
    change(document["annotations"][3])
    coco = read(tmp_path, document)
    assert found(coco) == {kind: ("skipped", 1), "image without annotations": ("noted", 1)}
    place = "annotation 4 of image 999" if "unlisted" in kind else "annotation 4 of 003.jpg"
    assert coco.problems[0].examples == (place,)
    assert coco.num_boxes == NUM_IMAGES - 1
    assert coco.labels_of(3).tolist() == []
    assert coco.source_xyxy(3).shape == (0, 4)
    assert coco.labels_of(4).tolist() == [1]


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity"])
def test_numbers_that_are_not_finite_in_the_text_are_skipped(
    tmp_path: Path, document: dict[str, Any], number: str
) -> None:
    document["annotations"][3]["bbox"] = [5, 6, 10, "HERE"]
    coco = read(tmp_path, json.dumps(document).replace('"HERE"', number))
    assert found(coco)["box with a number that is not finite"] == ("skipped", 1)
    assert np.isfinite(coco.boxes_xywh).all()


def test_numbers_of_any_size_raise_no_warning(
    tmp_path: Path, document: dict[str, Any], recwarn: pytest.WarningsRecorder
) -> None:
    document["annotations"][0] = {"image_id": 100, "category_id": 3, "bbox": [1e308, -1e308, 1e308, float("inf")]}
    read(tmp_path, document)
    assert [str(warning.message) for warning in recwarn] == []


def test_a_box_of_an_image_of_unknown_size_is_skipped_where_it_ends_before_the_image(
    tmp_path: Path, document: dict[str, Any]
) -> None:
    del document["images"][0]["width"]
    document["annotations"][0]["bbox"] = [-10, 6, 10, 20]
    assert found(read(tmp_path, document))["box wholly outside the image"] == ("skipped", 1)


def test_annotations_of_unlisted_categories_are_refused_with_their_ids_or_skipped_on_demand(
    tmp_path: Path, document: dict[str, Any]
) -> None:
    for entry in document["annotations"][:20]:
        entry["category_id"] = 55
    document["annotations"][20]["category_id"] = 44
    message = refused(tmp_path, document)
    assert "category ids that 'categories' does not list: 55 (by annotation 1 of 000.jpg), 44 (by" in message
    coco = read(tmp_path, document, ignore_unknown=True)
    assert found(coco)["annotation of an unlisted category"] == ("skipped", 21)
    assert coco.problems[0].examples[0] == "annotation 1 of 000.jpg, category 55"
    assert coco.num_boxes == NUM_IMAGES - 21


def test_an_example_names_an_annotation_without_id_by_its_position(tmp_path: Path, document: dict[str, Any]) -> None:
    del document["annotations"][3]["id"]
    document["annotations"][3]["bbox"] = [5, 6, 0, 0]
    assert read(tmp_path, document).problems[0].examples == ("annotations[3] of 003.jpg",)


# ---- the rows: refused


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty, line 1, column 1"),
        ("  \n ", "is empty, line 1, column 1"),
        ('{"images": [\n  {"id": 1,', "is not JSON, line 2, column 12"),
        ("{} {}", "is not JSON, line 1, column 4"),
        ('{"images": ' * 100_000, "nested too deep"),
        ('{"images": ' + "9" * 5000 + "}", "is no COCO file"),
        ("null", "with the keys images, categories, annotations, got None"),
        ("{}", "3 errors: the key 'images' is missing"),
        ('{"images": [], "categories": [], "annotations": []}', "2 errors: the list 'images' is empty; the list 'cat"),
        ('{"images": {}, "categories": null, "annotations": 3}', "3 errors: 'images' must be a list, got {}; 'cat"),
        (
            '{"images": [1], "categories": [[]], "annotations": ["x"]}',
            "3 errors: images[0] must be an object, got 1; annotations[0]",
        ),
    ],
)
def test_a_file_that_is_no_coco_file_is_refused_with_the_reason(tmp_path: Path, text: str, words: str) -> None:
    assert words in refused(tmp_path, text)


def test_a_truncated_file_is_refused_with_line_and_column(tmp_path: Path, document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=1)
    num_refused = 0
    for end in range(1, len(text) - 1, 97):
        message = refused(tmp_path, text[:end])
        line = text[:end].count("\n") + 1
        num_refused += f"line {line}, column" in message or f"line {line - 1}, column" in message
    assert num_refused > 30
    assert num_refused == len(range(1, len(text) - 1, 97))


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_bytes(b'{"images": "\xff"}')
    with pytest.raises(DatasetError, match=r"instances\.json is not JSON in UTF-8, at byte 12"):
        read_coco(path, None)


def test_a_missing_file_or_folder_is_refused_with_its_name(tmp_path: Path, document: dict[str, Any]) -> None:
    with pytest.raises(DatasetError, match=r"gone\.json cannot be read: No such file"):
        read_coco(tmp_path / "gone.json", None)
    with pytest.raises(DatasetError, match="cannot be read: Is a directory"):
        read_coco(tmp_path, None)
    with pytest.raises(DatasetError, match=r"folder of images .*pictures.* does not exist"):
        read_coco(write(tmp_path, document), tmp_path / "pictures")


@pytest.mark.parametrize(
    ("section", "change", "words"),
    [
        ("images", put(id=101), "image id 101 is used twice (000.jpg and 001.jpg)"),
        ("images", drop("file_name"), "file_name of images[0] (id 100) is missing"),
        ("images", put(file_name=""), "file_name of images[0] (id 100) is missing"),
        ("images", put(file_name=7), "file_name of images[0] (id 100) is missing or not a text"),
        ("images", drop("id"), "id of images[0] is missing"),
        ("images", put(id=10.5), "id of images[0] must be a whole number, got 10.5"),
        ("images", put(id=True), "id of images[0] must be a whole number, got True"),
        ("images", put(id="a"), "id of images[0] must be a whole number, got 'a'"),
        ("images", put(id=1e300), "id of images[0] must be a whole number, got 1e+300"),
        ("images", put(id=float("nan")), "id of images[0] must be a whole number, got nan"),
        ("images", put(file_name="../x.jpg"), "file_name '../x.jpg' of images[0] leads out of the folder"),
        ("images", put(file_name="a/../../x.jpg"), "leads out of the folder"),
        ("images", put(file_name="..\\x.jpg"), "leads out of the folder"),
        ("images", put(file_name="/etc/passwd"), "leads out of the folder"),
        ("categories", put(id=3), "category id 3 is used twice"),
        ("categories", drop("id"), "id of categories[0] is missing"),
        ("categories", put(id=[1]), "id of categories[0] must be a whole number, got [1]"),
        ("annotations", drop("image_id"), "image_id of annotations[0] is missing"),
        ("annotations", put(image_id=None), "image_id of annotations[0] must be a whole number, got None"),
        ("annotations", drop("category_id"), "category_id of annotations[0] is missing"),
        ("annotations", put(category_id=False), "category_id of annotations[0] must be a whole number"),
        ("annotations", put(id=10.5), "id of annotations[0] must be a whole number, got 10.5"),
        ("annotations", put(iscrowd=2), "iscrowd of annotations[0] must be 0 or 1, got 2"),
        ("annotations", put(iscrowd="1"), "iscrowd of annotations[0] must be 0 or 1, got '1'"),
        ("annotations", put(iscrowd=[]), "iscrowd of annotations[0] must be 0 or 1, got []"),
    ],
)
def test_faults_that_change_the_meaning_are_refused(
    tmp_path: Path, document: dict[str, Any], section: str, change: Any, words: str
) -> None:
    change(document[section][0])
    assert words in refused(tmp_path, document)


def test_all_errors_come_in_one_message_and_the_rest_is_counted(tmp_path: Path, document: dict[str, Any]) -> None:
    document["images"][0]["id"] = 10.5
    document["categories"][0]["id"] = "x"
    for entry in document["annotations"][:12]:
        entry["iscrowd"] = 7
    message = refused(tmp_path, document)
    assert "cannot be used, 15 errors: id of images[0]" in message
    assert message.count("iscrowd") == 9
    assert message.endswith("; and 5 more")
    for entry in document["annotations"][2:12]:
        entry["iscrowd"] = 0
    message = refused(tmp_path, document)
    assert "cannot be used, 5 errors: id of images[0]" in message
    assert "id of categories[0]" in message
    assert "category ids that 'categories' does not list: 90" in message
    document["images"][0]["id"] = 100


def test_a_missing_list_of_annotations_is_refused_unless_it_is_not_needed(
    tmp_path: Path, document: dict[str, Any]
) -> None:
    del document["annotations"]
    assert "1 error: the key 'annotations' is missing" in refused(tmp_path, document)
    coco = read(tmp_path, document, require_annotations=False)
    assert (len(coco), coco.num_boxes) == (NUM_IMAGES, 0)
    assert found(coco) == {"image without annotations": ("noted", NUM_IMAGES)}
    assert coco.boxes_xywh.shape == coco.source_xyxy(0).shape == (0, 4)
    document["annotations"] = None
    assert "'annotations' must be a list" in refused(tmp_path, document, require_annotations=False)


@pytest.mark.parametrize("name", ["../x.jpg", "/somewhere/x.jpg"])
def test_file_names_may_lead_outside_on_demand(tmp_path: Path, document: dict[str, Any], name: str) -> None:
    document["images"][0]["file_name"] = name
    assert read(tmp_path, document, allow_outside=True).file_names[0] == name


def test_dots_that_stay_inside_the_folder_are_accepted(tmp_path: Path, document: dict[str, Any]) -> None:
    document["images"][0]["file_name"] = "a/../b/..x..jpg"
    assert read(tmp_path, document).problems == ()


# ---- file names of other systems and of LVIS


def named_like(name: str, key: str) -> Any:
    def change(document: dict[str, Any]) -> None:
        for image in document["images"]:
            image[key] = name.format(image.pop("file_name").replace(".jpg", ".png"))

    return change


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("images\\train\\{}", "file_name"),
        ("http://images.cocodataset.org/images/train/{}", "coco_url"),
        ("http://images.cocodataset.org/val2017/train/{}?size=1", "coco_url"),
    ],
)
def test_names_with_backslashes_and_names_in_coco_url_are_found(
    tmp_path: Path, pictures: Path, document: dict[str, Any], name: str, key: str
) -> None:
    named_like(name, key)(document)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/train").symlink_to(pictures)
    folder = {"file_name": tmp_path, "coco_url": tmp_path / "images"}[key]
    coco = read_coco(write(tmp_path, document), folder)
    assert (len(coco), coco.problems) == (NUM_IMAGES, ())
    assert coco.path(0) == folder.joinpath(*coco.file_names[0].split("/"))
    if key == "coco_url":  # the folder of the URL itself
        coco = read_coco(write(tmp_path, document), pictures)
        assert (coco.file_names[0], coco.problems) == ("000.png", ())


def test_url_without_a_path_and_a_url_that_leads_outside_are_refused(tmp_path: Path, document: dict[str, Any]) -> None:
    named_like("http://host", "coco_url")(document)
    assert "file_name of images[0] (id 100) is missing" in refused(tmp_path, document)
    for image in document["images"]:
        image["coco_url"] = "http://host/../x.png"
    assert "leads out of the folder of images" in refused(tmp_path, document)
