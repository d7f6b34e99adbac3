"""Annotation files whose numbers claim more than they hold are read or refused, in bounded time and memory."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detector.config import registry
from detector.data.dataset import Dataset
from detector.errors import DatasetError
from detector.tasks.detection_model import load_detection

BILLION_LAUGHS = "<!DOCTYPE x [<!ENTITY a '" + "ha" * 40 + "'>" + "".join(
    f"<!ENTITY {after} '{10 * f'&{before};'}'>" for before, after in zip("abcdefghi", "bcdefghij", strict=True)
) + "]>"  # fmt: skip
HUGE = "999999999999"
VOC = (
    "<annotation><filename>a.png</filename><size><width>{w}</width><height>{h}</height></size><object><name>cat</name>"
    "<bndbox><xmin>{x}</xmin><ymin>2</ymin><xmax>30</xmax><ymax>20</ymax></bndbox></object></annotation>"
)
CVAT = (
    '<annotations><image id="0" name="a.png" width="{w}" height="{h}"><box label="cat" xtl="{x}" ytl="2" xbr="30" '
    'ybr="20"/></image></annotations>'
)
CVAT_VIDEO = (
    "<annotations><meta><task><size>{num}</size></task></meta><track id='0' label='cat'><box frame='{at}' xtl='1' "
    "ytl='2' xbr='9' ybr='8'/></track></annotations>"
)
CSV = "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,{w},{h},cat,{x},2,30,20\n"
RECTANGLE = {"label": "cat", "shape_type": "rectangle", "points": [[1, 2], [30, 20]]}
RECT = {"name": "rect", "x": 1, "y": 2, "width": 29, "height": 18}
PERCENT = {"x": 1, "y": 2, "width": 40, "height": 40, "rectanglelabels": ["cat"]}
BOMB = {
    "classTitle": "cat",
    "bitmap": {"origin": [0, 0], "data": base64.b64encode(zlib.compress(bytes(2**26))).decode()},
}
KITTI = "{name} {x} 0 0 1 2 30 20 1 1 1 1 1 1 1\n"


def labelme(**changes: Any) -> str:
    shape = {**RECTANGLE, **{key: value for key, value in changes.items() if key in (*RECTANGLE, "group_id")}}
    sizes = {"imageWidth": 40, "imageHeight": 30}
    return json.dumps({"version": "5", "imagePath": "a.png", "shapes": [shape], **sizes, **changes})


def via(shape: Any) -> str:
    region = {"shape_attributes": shape, "region_attributes": {"class": "cat"}}
    return json.dumps({"a.png": {"filename": "a.png", "size": 1, "regions": [region]}})


def label_studio(*regions: Any) -> str:
    return json.dumps([{"id": 1, "data": {"image": "a.png"}, "annotations": [{"result": list(regions)}]}])


def region(**changes: Any) -> dict[str, Any]:
    size = {"original_width": 40, "original_height": 30}
    return {"id": "x", "type": "rectanglelabels", **size, "value": PERCENT, **changes}


def supervisely(**changes: Any) -> str:
    points = {"exterior": [[1, 2], [29, 19]], "interior": []}
    item = {"classTitle": "cat", "geometryType": "rectangle", "points": points}
    return json.dumps({"size": {"width": 40, "height": 30}, "tags": [], "objects": [item], **changes})


# name: (file, its content, whether it is refused)
CASES: dict[str, tuple[str, Callable[[], str], bool]] = {
    "voc huge size": ("a.xml", lambda: VOC.format(w=HUGE, h=HUGE, x=1), False),
    "voc negative size": ("a.xml", lambda: VOC.format(w=-40, h=-30, x=1), False),
    "voc size that is no number": ("a.xml", lambda: VOC.format(w="nan", h="inf", x=1), False),
    "voc infinite box": ("a.xml", lambda: VOC.format(w=40, h=30, x="-inf"), True),
    "voc endless digits": ("a.xml", lambda: VOC.format(w="9" * 5000, h="9" * 5000, x="9" * 5000), True),
    "voc billion laughs": ("a.xml", lambda: BILLION_LAUGHS + VOC.format(w=40, h=30, x="&j;"), True),
    "voc deep nesting": ("a.xml", lambda: "<annotation>" + "<a>" * 100000, True),
    "cvat huge size": ("annotations.xml", lambda: CVAT.format(w=HUGE, h=HUGE, x=1), False),
    "cvat negative size": ("annotations.xml", lambda: CVAT.format(w=-40, h=-30, x=1), False),
    "cvat infinite box": ("annotations.xml", lambda: CVAT.format(w=40, h=30, x="inf"), True),
    "cvat billion laughs": ("annotations.xml", lambda: BILLION_LAUGHS + CVAT.format(w=40, h=30, x="&j;"), True),
    "cvat deep nesting": ("annotations.xml", lambda: "<annotations>" + "<image>" * 100000, True),
    "cvat video of millions of frames": ("annotations.xml", lambda: CVAT_VIDEO.format(num=99999999, at=0), False),
    "cvat video with a late frame": ("annotations.xml", lambda: CVAT_VIDEO.format(num=HUGE, at=99999999), True),
    "csv huge size": ("boxes.csv", lambda: CSV.format(w=HUGE, h=HUGE, x=1), False),
    "csv infinite box": ("boxes.csv", lambda: CSV.format(w=40, h=30, x="inf"), True),
    "csv endless field": ("boxes.csv", lambda: CSV.format(w="9" * 200000, h=30, x=1), True),
    "csv open quote": ("boxes.csv", lambda: CSV.format(w=40, h=30, x='"') + "x\n" * 1000000, True),
    "csv millions of columns": ("boxes.csv", lambda: CSV.replace("ymax", "ymax" + ",a" * 200000, 1), True),
    "csv millions of cells": ("boxes.csv", lambda: CSV.format(w=40, h=30, x=1) + "," * 200000 + "x\n", True),
    "labelme huge size": ("a.json", lambda: labelme(imageWidth=10**12, imageHeight=10**12), False),
    "labelme negative size": ("a.json", lambda: labelme(imageWidth=-1, imageHeight=float("nan")), False),
    "labelme infinite point": ("a.json", lambda: labelme(points=[[float("inf"), 2], [1, 1e308]]), True),
    "labelme deep nesting": ("a.json", lambda: labelme().replace('"points": ', '"points": ' + "[" * 100000), True),
    "labelme endless digits": ("a.json", lambda: labelme().replace("30, 20", "9" * 10000 + ", 20"), True),
    "labelme group of any type": ("a.json", lambda: labelme(group_id=[[{}]], shape_type="polygon"), False),
    "via infinite box": ("via.json", lambda: via({**RECT, "width": float("inf")}), True),
    "via huge box": ("via.json", lambda: via({**RECT, "width": 10**400}), True),
    "via shape of any type": ("via.json", lambda: via({**RECT, "name": [1]}), True),
    "label studio huge size": (
        "ls.json",
        lambda: label_studio(region(original_width=10**12, original_height=10**12)),
        False,
    ),
    "label studio id of any type": ("ls.json", lambda: label_studio(region(id=[1])), False),
    "label studio labels times regions": (
        "ls.json",
        lambda: label_studio(
            region(value={**PERCENT, "rectanglelabels": [f"c{number}" for number in range(2000)]}),
            *[region(value=dict.fromkeys(("x", "y", "width", "height"), 9)) for _ in range(2000)],
        ),
        True,
    ),
    "supervisely huge size": ("ann/a.png.json", lambda: supervisely(size={"width": HUGE, "height": 10**30}), False),
    "supervisely tags of another type": ("ann/a.png.json", lambda: supervisely(tags=7), True),
    "supervisely mask of many bytes": ("ann/a.png.json", lambda: supervisely(objects=[BOMB] * 40), True),
    "yolo class number": ("a.txt", lambda: f"{HUGE} 0.5 0.5 0.2 0.2\n", True),
    "yolo class number of endless digits": ("a.txt", lambda: "9" * 5000 + " 0.5 0.5 0.2 0.2\n", True),
    "yolo class that begins like a number": ("a.txt", lambda: "1x 0.5 0.5 0.2 0.2\n", True),
    "yolo key points": ("data.yaml", lambda: f"train: .\nnames: [cat]\nkpt_shape: [{HUGE}, 3]\n", True),
    "yolo names": ("data.yaml", lambda: "train: .\nnames: [" + "cat, " * 60_000 + "]\n", True),
    "kitti endless digits": ("a.txt", lambda: KITTI.format(name="Car", x="9" * 400), False),
    "kitti regions times classes": (
        "a.txt",
        lambda: "".join(KITTI.format(name=name, x=0) for n in range(1500) for name in ("DontCare", f"c{n}")),
        True,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_file_that_claims_too_much_is_read_or_refused(
    name: str, tmp_path: Path, bounded: Callable[[], AbstractContextManager[None]]
) -> None:
    file, content, is_refused = CASES[name]
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(content(), encoding="utf-8")
    for image in ("a.png", "frame_000000.png"):
        cv2.imwrite(str(path.parent / image), np.zeros((30, 40, 3), np.uint8))
    said, num_boxes = "", 0
    try:
        with bounded():
            config = load_detection("base", [f"data={json.dumps(str(tmp_path))}"])
            assert config.data is not None
            dataset = registry.build(config.data)
            assert isinstance(dataset, Dataset)
            num_boxes = sum(dataset.split(split).num_boxes for split in dataset.split_names())
    except DatasetError as error:
        said = str(error)
    except BaseException as error:  # its traceback may hold more than fits into memory
        pytest.fail(f"{error!r:.300}")
    assert bool(said) == is_refused, said
    assert num_boxes == (0 if is_refused else 1)
    assert len(said) < 2000
    assert said.isprintable()
