"""Faults in files of annotation programs: each is named with its place, and none is a traceback."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detector.config import registry
from detector.data.dataset import DatasetConfig
from detector.errors import DatasetError

PNG = cv2.imencode(".png", np.zeros((48, 64, 3), np.uint8))[1].tobytes()
BOX = '<box label="cat" xtl="1" ytl="2" xbr="9" ybr="8" occluded="1"/>'
POLYGON = '<polygon label="dog" points="1,2;9,2;9,8"/>'
CVAT = f'<annotations><image id="7" name="a.png">{BOX}{POLYGON}</image></annotations>'
SHAPE = {"label": "cat", "points": [[1, 2], [9, 8]], "shape_type": "rectangle"}
LABELME = {"version": "5", "shapes": [SHAPE], "imagePath": "a.png"}
REGION = {"shape_attributes": {"name": "rect", "x": 1, "y": 2, "width": 8, "height": 6}}
VIA = {"a1": {"filename": "a.png", "regions": [{**REGION, "region_attributes": {"class": "cat"}}]}}
VALUE = {"x": 1.5625, "y": 4.166666666666667, "width": 8, "height": 6, "rectanglelabels": ["cat"]}
RESULT = {"type": "rectanglelabels", "original_width": 64, "original_height": 48, "value": VALUE}
STUDIO = [{"id": 1, "data": {"image": "a.png"}, "annotations": [{"result": [RESULT]}]}]
COORDINATES = {"x": 5, "y": 5, "width": 8, "height": 6}
CREATEML = [{"image": "a.png", "annotations": [{"label": "cat", "coordinates": COORDINATES}]}]
OBJECT = {"classTitle": "cat", "geometryType": "rectangle", "points": {"exterior": [[1, 2], [9, 8]], "interior": []}}
SUPERVISELY = {"size": {"height": 48, "width": 64}, "objects": [OBJECT]}
KITTI = "Car 0.00 0 -1.57 1.00 2.00 9.00 8.00 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59\n"
DRONE, DOTA = "1,2,8,6,1,4,0,0\n", "gsd:0.1\n1 2 9 2 9 8 1 8 ship 0\n"
# part: file of the annotations, sound content
SOUND = {
    "cvat": ("annotations.xml", CVAT),
    "labelme": ("a.json", json.dumps(LABELME)),
    "via": ("via.json", json.dumps(VIA)),
    "label_studio": ("project.json", json.dumps(STUDIO)),
    "createml": ("labels.json", json.dumps(CREATEML)),
    "supervisely": ("ann/a.png.json", json.dumps(SUPERVISELY)),
    "kitti": ("label_2/a.txt", KITTI),
    "visdrone": ("annotations/a.txt", DRONE),
    "dota": ("labelTxt/a.txt", DOTA),
}
BOMB = '<!DOCTYPE a [<!ENTITY x "lol"><!ENTITY y "&x;&x;&x;&x;">]><annotations>&y;</annotations>'


def written(folder: Path, name: str, content: str) -> Path:
    path = folder / SOUND[name][0]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    images = path.parent.parent / "images" if path.parent != folder else folder
    images.mkdir(exist_ok=True)
    (images / "a.png").write_bytes(PNG)
    return path


def read(name: str, root: Path, **settings):
    part: Any = registry.parts_of(DatasetConfig)[name]
    return part(part.Config(root=root, **settings)).read()


def changed(name: str, old: str, new: str) -> str:
    content = SOUND[name][1]
    assert old in content
    return content.replace(old, new, 1)


def of_json(content) -> str:
    return json.dumps(content)


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_file_has_one_image(name, tmp_path):
    path = written(tmp_path, name, SOUND[name][1])
    for root in (tmp_path, path):
        splits, _ = read(name, root)
        annotations, _ = splits["train"]
        assert [Path(name).name for name in annotations.file_names] == ["a.png"]
        assert annotations.boxes_xywh[0].tolist()[:2] == pytest.approx([1, 2])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("cvat", BOMB, "declares a document type"),
        ("cvat", CVAT[:-20], "annotations.xml is not XML"),
        ("cvat", CVAT.replace("annotations>", "annotation>"), "root element <annotations>, got <annotation>"),
        ("cvat", changed("cvat", 'xbr="9"', 'xbr="x"'), "image 7, shape 1: xbr: expected a number, got 'x'"),
        ("cvat", changed("cvat", 'xbr="9"', ""), "image 7, shape 1: xbr: expected a number, got none"),
        ("cvat", changed("cvat", "1,2;9,2;9,8", "1;2"), "image 7, shape 2: points: expected a number, got ''"),
        ("cvat", changed("cvat", 'label="cat"', ""), "image 7, shape 1: the class is missing"),
        ("cvat", changed("cvat", 'name="a.png"', ""), "image 7: has no name"),
        ("labelme", of_json(LABELME)[:-9], "a.json is not JSON, line 1, column"),
        ("labelme", of_json({**LABELME, "shapes": 3}), "a.json: expected a list of shapes, got int 3"),
        ("labelme", of_json({**LABELME, "shapes": [3]}), "a.json, shape 1: expected a shape, got int 3"),
        ("labelme", changed("labelme", "[9, 8]", "[9]"), "a.json, shape 1: expected a point [x, y], got [9]"),
        ("labelme", changed("labelme", "[[1, 2], [9, 8]]", "[]"), "a.json, shape 1: expected points, got none"),
        ("labelme", changed("labelme", '"cat"', "null"), "a.json, shape 1: the class is missing"),
        ("labelme", changed("labelme", '"rectangle"', '"circle"').replace("[1, 2], ", ""), "centre of a circle"),
        ("via", "[1]", "via.json: expected an object, got list [1]"),
        ("via", changed("via", '"rect"', '"blob"'), "via.json, a1: expected a rect, circle, ellipse or polygon"),
        ("via", changed("via", '"width": 8, ', ""), "via.json, a1: width: expected a number, got none"),
        ("via", changed("via", '"class"', '"colour": "red", "size"'), "one region attribute for the class, got colour"),
        ("via", changed("via", '"cat"', '""'), "the region attribute 'class', which holds the class, is missing"),
        ("label_studio", "{}", "project.json: expected a list of tasks, got dict {}"),
        ("label_studio", changed("label_studio", '"a.png"', "3"), "task 1: expected the name of an image in data"),
        ("label_studio", changed("label_studio", '["cat"]', "[]"), "task 1, region 1: the class is missing"),
        (
            "label_studio",
            changed("label_studio", '"type"', '"image_rotation": 90, "type"'),
            "was turned in Label Studio",
        ),
        ("createml", "{}", "labels.json: expected a list of images, got dict {}"),
        ("createml", changed("createml", '"height": 6', '"h": 6'), "image 1, annotation 1: height: expected a number"),
        ("createml", changed("createml", '"a.png"', "null"), "image 1: expected the name of an image, got none"),
        ("supervisely", changed("supervisely", '"rectangle"', '"bitmap"'), "object 1: expected a bitmap, got none"),
        ("kitti", KITTI + "Car 1 2 3\n", "a.txt:2: expected a type and 14 numbers of KITTI, got 'Car 1 2 3'"),
        ("visdrone", DRONE + "1,2,8,6,1,12,0,0\n", "a.txt:2: expected a category of 0..11, got 12"),
        ("dota", DOTA + "1 2 9 2 9 8 1 8\n", "a.txt:3: expected 8 numbers, a class and 0 or 1 of DOTA"),
    ],
)
def test_a_fault_is_named_with_its_place(name, content, words, tmp_path):
    path = written(tmp_path, name, content)
    with pytest.raises(DatasetError) as caught:
        read(name, path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SOUND)
def test_damaged_files_never_end_in_another_error(name, tmp_path):
    draw, sound, said = random.Random(0), SOUND[name][1], list[str]()
    marks = ['"', "[", "]", "{", "}", ",", "", "-", "9" * 40, "nan", "null", "\0", "é", "\udcff", "<"]
    for _ in range(80):
        content = list(sound)
        for _ in range(draw.choice((1, 1, 2, 5))):
            content[draw.randrange(len(content))] = draw.choice(marks)
        text = "".join(content) if draw.random() < 0.8 else sound[: draw.randrange(len(sound))]
        try:
            read(name, written(tmp_path, name, text))
        except DatasetError as error:
            said.append(str(error))
    assert len(said) > 10
    assert max(map(len, said)) < 1000
    assert not any("\n" in text for text in said)


@pytest.mark.parametrize("name", ["labelme", "dota"])
@pytest.mark.parametrize("how", ["ignore", "keep", "drop"])
def test_difficult_objects_are_treated_as_asked(name, how, tmp_path):
    easy = {"dota": DOTA, "labelme": ""}[name]
    hard = {"dota": "1 2 9 2 9 8 1 8 boat 1\n", "labelme": ""}[name]
    content = easy + hard or of_json({**LABELME, "shapes": [SHAPE, {**SHAPE, "label": "boat", "difficult": True}]})
    splits, notes = read(name, written(tmp_path, name, content), difficult=how)
    assert (
        splits["train"][0].is_crowd.tolist() == {"ignore": [False, True], "keep": [False, False], "drop": [False]}[how]
    )
    assert notes[0].startswith("1 difficult objects ")


def test_the_attribute_of_the_class_can_be_given(tmp_path):
    content = changed("via", '"class": "cat"', '"colour": "red", "size": "big"')
    splits, _ = read("via", written(tmp_path, "via", content), class_attribute="size")
    assert splits["train"][0].class_names == ("big",)


def test_other_content_of_objects_is_kept(tmp_path):
    attribute = '<attribute name="age">3</attribute>'
    splits, _ = read(
        "cvat", written(tmp_path, "cvat", changed("cvat", 'occluded="1"/>', f'occluded="1">{attribute}</box>'))
    )
    assert dict(splits["train"][1].rows[0]) == {"occluded": 1, "attributes": {"age": "3"}}
    splits, _ = read("kitti", written(tmp_path / "k", "kitti", KITTI.replace("0.00 0", "0.25 2")))
    assert dict(splits["train"][1].rows[0]) == {"truncated": 0.25, "occluded": 2}


def test_images_without_annotations_and_other_files_are_reported(tmp_path):
    written(tmp_path, "labelme", SOUND["labelme"][1])
    (tmp_path / "b.png").write_bytes(PNG)
    (tmp_path / "settings.json").write_text("{}")
    _, notes = read("labelme", tmp_path)
    assert notes == [
        "1 other file not read, first: settings.json",
        "1 image without annotations left out, first: b.png",
    ]


def test_an_image_that_two_names_fit_is_not_guessed(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(PNG)
    path = tmp_path / "annotations.xml"
    path.write_text(CVAT)
    with pytest.raises(DatasetError, match="would lose 1 of 1 images"):
        read("cvat", path)
    path.write_text(CVAT.replace("a.png", "C:\\\\data\\\\y\\\\a.png"))
    assert list(read("cvat", path)[0]["train"][0].file_names) == ["y/a.png"]


def test_images_are_found_in_the_folder_given_or_beside(tmp_path):
    path = written(tmp_path / "labels", "labelme", SOUND["labelme"][1])
    (tmp_path / "labels/a.png").unlink()
    for folder in ("Images", "elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(PNG)
    splits, _ = read("labelme", path.parent)
    assert splits["train"][0].path(0) == tmp_path / "Images/a.png"
    splits, _ = read("labelme", path.parent, images=tmp_path / "elsewhere")
    assert splits["train"][0].path(0) == tmp_path / "elsewhere/a.png"
