"""Miniature exports of annotation programs, each with its truth: images, boxes, classes and splits."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.data.small_exports import HEIGHT, ONE, PNG, TRAIN, TWO, VAL, WIDTH, images, text


def renamed(splits, name: Callable[[str], str]):
    return {split: {name(image): objects for image, objects in of.items()} for split, of in splits.items()}


# --- writers -------------------------------------------------------------------------------------------------------


def cvat(root: Path, splits, folder="images", written: Callable[[str], str] = str, sizes=True, subsets=False):
    lines, number = ['<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>'], 0
    for split, of in splits.items():
        images(root / folder, of)
        for image, objects in of.items():
            size = f' width="{WIDTH}" height="{HEIGHT}"' if sizes else ""
            subset = f' subset="{split.title()}"' if subsets else ""
            lines.append(f'<image id="{number}" name="{written(image)}"{subset}{size}>')
            lines += [
                f'<box label="{label}" occluded="0" xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}"><attribute name="k">v'
                "</attribute></box>"
                for label, x1, y1, x2, y2 in objects
            ]
            lines.append("</image>")
            number += 1
    return text(root / "annotations.xml", "".join([*lines, "</annotations>"]))


def cvat_shapes(root: Path):
    """Draw each box of `a.png` as another shape with the same outline."""
    images(root / "images", TRAIN)
    side = 10 / math.sqrt(2)  # of a square whose outline is 10 wide after a turn by 45 degrees
    left, top = 10 - side / 2, 12 - side / 2
    body = (
        f'<box label="cat" xtl="{left}" ytl="{top}" xbr="{left + side}" ybr="{top + side}" rotation="45"/>'
        '<polygon label="dog" points="20,10;60.0,25;30,40"/><polyline label="dog" points="1,1;2,2"/>'
        '<points label="dog" points="1,1"/><tag label="day"/>'
    )
    more = '<mask label="dog" rle="1, 2" left="1" top="2" width="3" height="4"/>'
    content = f'<annotations><image id="0" name="a.png">{body}</image><image id="1" name="b.png">{more}</image>'
    text(root / "annotations.xml", content + '<image id="2" name="c.png"/></annotations>')
    return root, {"train": {**TRAIN, "a.png": [("cat", 5, 7, 15, 17), ("dog", 20, 10, 60, 40)]}}


def cvat_ellipse_and_cuboid(root: Path):
    images(root, TRAIN)
    corners = {"xtl1": 20, "ytl1": 15, "xbl1": 20, "ybl1": 40, "xtr1": 50, "ytr1": 15, "xbr1": 50, "ybr1": 40}
    corners |= {"xtl2": 30, "ytl2": 10, "xbl2": 30, "ybl2": 35, "xtr2": 60, "ytr2": 10, "xbr2": 60, "ybr2": 35}
    cuboid = " ".join(f'{key}="{value}"' for key, value in corners.items())
    body = f'<ellipse label="cat" cx="10" cy="12" rx="6" ry="5" rotation="90"/><cuboid label="dog" {cuboid}/>'
    rest = '<image name="b.png"><box label="dog" xtl="1" ytl="2" xbr="4" ybr="6"/></image><image name="c.png"/>'
    text(root / "annotations.xml", f'<annotations><image name="a.png">{body}</image>{rest}</annotations>')
    return root, ONE


def cvat_video(root: Path):
    images(root / "images", ["frame_000000.PNG", "frame_000001.PNG", "frame_000002.PNG"])
    box = '<box frame="{}" outside="{}" occluded="1" keyframe="1" xtl="{}" ytl="2" xbr="9" ybr="8"/>'
    tracks = f'<track id="0" label="cat">{box.format(0, 0, 1)}{box.format(1, 0, 2)}{box.format(2, 1, 3)}</track>'
    size = f"<original_size><width>{WIDTH}</width><height>{HEIGHT}</height></original_size>"
    meta = f"<meta><task><size>3</size><mode>interpolation</mode>{size}</task></meta>"
    text(root / "annotations.xml", f"<annotations>{meta}{tracks}</annotations>")
    names = [f"frame_00000{number}.PNG" for number in range(3)]
    return root, {"train": {names[0]: [("cat", 1, 2, 9, 8)], names[1]: [("cat", 2, 2, 9, 8)], names[2]: []}}


def labelme(
    root: Path, splits, json_in="{split}", images_in="{split}", written="{image}", sizes=True, shape="rectangle"
):
    for split, of in splits.items():
        images(root / images_in.format(split=split), of)
        for image, objects in of.items():
            shapes = []
            for label, x1, y1, x2, y2 in objects:
                points = [[x2, y2], [x1, y1]] if shape == "rectangle" else [[x1, y1], [x2, y1 + 1], [x1 + 1, y2]]
                shapes.append({"label": label, "points": points, "group_id": None, "shape_type": shape, "flags": {}})
            content: dict[str, object] = {"version": "5.4.1", "flags": {}, "shapes": shapes}
            content |= {"imagePath": written.format(image=image, split=split), "imageData": None}
            content |= {"imageHeight": HEIGHT, "imageWidth": WIDTH} if sizes else {}
            text(root / json_in.format(split=split) / f"{Path(image).stem}.json", content)
    return root


def labelme_shapes(root: Path):
    images(root, TRAIN)
    cat = {"label": "cat", "shape_type": "circle", "points": [[10, 12], [10, 17]]}
    parts = [
        {"label": "dog", "shape_type": "polygon", "group_id": 1, "points": [[20, 10], [30, 10], [30, 20]]},
        {"label": "dog", "shape_type": "polygon", "group_id": 1, "points": [[50, 40], [60, 40], [60, 30]]},
    ]
    other = [{"label": "x", "shape_type": kind, "points": [[1, 1]]} for kind in ("point", "line", "linestrip")]
    mask = {"label": "dog", "shape_type": "mask", "points": [[1, 2], [3, 5]], "mask": "..."}
    for image, shapes in (("a.png", [cat, *parts, *other]), ("b.png", [mask]), ("c.png", [])):
        text(root / image.replace("png", "json"), {"version": "5", "shapes": shapes, "imagePath": image})
    return root, {"train": {**TRAIN, "a.png": [("cat", 5, 7, 15, 17), ("dog", 20, 10, 60, 40)]}}


def via_regions(objects, key="class"):
    return [
        {
            "shape_attributes": {"name": "rect", "x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1},
            "region_attributes": {key: label} if key else {},
        }
        for label, x1, y1, x2, y2 in objects
    ]


def via(root: Path, splits, folder="", version=2, project=False, key="class"):
    entries = {}
    for of in splits.values():
        images(root / folder, of)
        for image, objects in of.items():
            regions = via_regions(objects, key)
            if version == 1:
                regions = {str(number): region for number, region in enumerate(regions)}
            entries[f"{image}{len(PNG)}"] = {"filename": image, "size": len(PNG), "regions": regions}
    content = {"_via_settings": {}, "_via_img_metadata": entries, "_via_attributes": {}} if project else entries
    return text(root / "via.json", content)


def via_csv(root: Path, splits, first="filename"):
    names = "file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    lines = [f"{first},{names}"]
    for of in splits.values():
        images(root, of)
        for image, objects in of.items():
            cells = [
                [json.dumps(region["shape_attributes"]), json.dumps(region["region_attributes"])]
                for region in via_regions(objects)
            ] or [["{}", "{}"]]
            for number, (shape, attributes) in enumerate(cells):
                quoted = [f'"{cell}"' for cell in (shape.replace('"', '""'), attributes.replace('"', '""'))]
                lines.append(f'{image},{len(PNG)},"{{}}",{len(objects)},{number},{",".join(quoted)}')
    return text(root / "via_region_data.csv", "\n".join(lines) + "\n")


def via_shapes(root: Path):
    images(root, TRAIN)
    cat = {"name": "ellipse", "cx": 10, "cy": 12, "rx": 6, "ry": 5, "theta": math.pi / 2}
    dog = {"name": "polygon", "all_points_x": [20, 60, 30], "all_points_y": [10, 30, 40]}
    regions = {"a.png": [("cat", cat), ("dog", dog), ("x", {"name": "point", "cx": 1, "cy": 1})], "c.png": []}
    regions["b.png"] = [("dog", {"name": "circle", "cx": 2.5, "cy": 4, "r": 1.5})]
    content = {
        f"{image}1": {
            "filename": image,
            "regions": [
                {"shape_attributes": shape, "region_attributes": {"type": {label: True}, "note": "x"}}
                for label, shape in of
            ],
        }
        for image, of in regions.items()
    }
    return text(root / "via.json", content), {"train": {**TRAIN, "b.png": [("dog", 1, 2.5, 4, 5.5)]}}


def label_studio(root: Path, splits, written="/data/upload/1/{image}", least=False, folder="images", turned=False):
    tasks: list[dict[str, object]] = []
    for of in splits.values():
        images(root / folder, of)
        for image, objects in of.items():
            regions = []
            for label, x1, y1, x2, y2 in objects:
                box = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "rotation": 0}
                if turned:  # the same outline: a quarter turn around the upper left corner, which is then the right one
                    box = {"x": x2, "y": y1, "width": y2 - y1, "height": x2 - x1, "rotation": 90}
                    box = {"x": x2, "width": y2 - y1, "y": y1, "height": x2 - x1, "rotation": 90}
                sides = (WIDTH, HEIGHT, HEIGHT, WIDTH) if turned else (WIDTH, HEIGHT, WIDTH, HEIGHT)
                of_box = dict(zip(("x", "y", "width", "height"), sides, strict=True))
                if turned:  # percent of the width along x, of the height along y, whatever the turn
                    of_box = {"x": WIDTH, "y": HEIGHT, "width": WIDTH, "height": HEIGHT}
                value = {key: number * 100 / of_box.get(key, 100) for key, number in box.items()}
                value["rectanglelabels"] = [label]
                size = {"original_width": WIDTH, "original_height": HEIGHT}
                if least:
                    regions.append({**value, **size})
                else:
                    regions.append({"type": "rectanglelabels", **size, "image_rotation": 0, "value": value})
            name = written.format(image=image)
            if least:
                tasks.append({"image": name, "id": len(tasks), "label": regions, "annotator": 1})
            else:
                tasks.append({"id": len(tasks), "data": {"image": name}, "annotations": [{"result": regions}]})
    return text(root / "project.json", tasks)


def label_studio_shapes(root: Path):
    images(root, TRAIN)
    whole = {"original_width": WIDTH, "original_height": HEIGHT}
    ellipse = {"x": 10 / 0.64, "y": 12 / 0.48, "radiusX": 5 / 0.64, "radiusY": 6 / 0.48, "ellipselabels": ["cat"]}
    polygon = {"points": [[20 / 0.64, 10 / 0.48], [60 / 0.64, 30 / 0.48], [30 / 0.64, 40 / 0.48]]}
    results = [
        {**whole, "type": "ellipselabels", "value": ellipse},
        {**whole, "type": "polygon", "id": "p", "value": polygon},
        {**whole, "type": "labels", "id": "p", "value": {**polygon, "labels": ["dog"]}},
        {**whole, "type": "keypointlabels", "value": {"x": 1, "y": 1, "keypointlabels": ["x"]}},
        {"type": "choices", "value": {"choices": ["day"]}},
    ]
    box = {"x": 1 / 0.64, "y": 2 / 0.48, "width": 3 / 0.64, "height": 4 / 0.48, "rectanglelabels": ["dog"]}
    others = [{"was_cancelled": True, "result": []}, {"result": [{"type": "rectanglelabels", "value": box}]}]
    tasks = [
        {"data": {"image": "s3://bucket/a.png"}, "annotations": [{"result": results}]},
        {"data": {"img": "/data/local-files/?d=photos%2Fb.png"}, "annotations": others},
        {"data": {"img": "c.png"}, "completions": [{"result": []}]},
        {"data": {"img": "not_labelled.png"}, "annotations": []},
    ]
    return text(root / "project.json", tasks), ONE


def createml(root: Path, splits, file="{split}/_annotations.createml.json", keys=("image", "annotations"), scale=1.0):
    for split, of in splits.items():
        path = root / file.format(split=split)
        images(path.parent, of)
        entries = []
        for image, objects in of.items():
            boxes = [
                {
                    "label": label,
                    "coordinates": {
                        "x": (x1 + x2) / 2 / (WIDTH if scale != 1 else 1),
                        "y": (y1 + y2) / 2 / (HEIGHT if scale != 1 else 1),
                        "width": (x2 - x1) / (WIDTH if scale != 1 else 1),
                        "height": (y2 - y1) / (HEIGHT if scale != 1 else 1),
                    },
                }
                for label, x1, y1, x2, y2 in objects
            ]
            entries.append({keys[0]: image, keys[1]: boxes})
        text(path, entries)
    return root


def lines_of(root: Path, splits, images_in: str, labels_in: str, line: Callable[..., str], head=""):
    for split, of in splits.items():
        images(root / images_in.format(split=split), of)
        for image, objects in of.items():
            content = head + "".join(f"{line(*item)}\n" for item in objects)
            text(root / labels_in.format(split=split) / f"{Path(image).stem}.txt", content)
    return root


def kitti_line(label, x1, y1, x2, y2):
    return f"{label} 0.00 0 -1.57 {x1:.2f} {y1:.2f} {x2:.2f} {y2:.2f} 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59"


def kitti_regions(root: Path):
    lines_of(root, ONE, "training/image_2", "training/label_2", kitti_line)
    with (root / "training/label_2/c.txt").open("a") as file:
        file.write("DontCare -1 -1 -10 30.00 20.00 40.00 44.00 -1 -1 -1 -1000 -1000 -1000 -10\n")
    region = [("cat", 30, 20, 40, 44, "ignored"), ("dog", 30, 20, 40, 44, "ignored")]
    return root, {"train": {**TRAIN, "c.png": region}}


def kitti_lists(root: Path):
    lines_of(root, {"training": {**TRAIN, **VAL}}, "{split}/image_2", "{split}/label_2", kitti_line)
    text(root / "ImageSets/train.txt", "a\nb\nc\n")
    text(root / "ImageSets/val.txt", "d\n")
    return root, TWO


def visdrone_line(label, x1, y1, x2, y2):
    return f"{x1},{y1},{x2 - x1},{y2 - y1},1,{4 if label == 'car' else 1},0,1"


DRONES = {"train": {"a.jpg": [("car", 5, 6, 15, 18)], "b.jpg": [("pedestrian", 1, 2, 4, 6)], "c.jpg": []}}


def visdrone_regions(root: Path):
    lines_of(root, DRONES, "images", "annotations", visdrone_line)
    # an ignored region, an object of others, an ignored car, and a comma at the end
    text(root / "annotations/c.txt", "30,20,10,24,0,0,0,0\n1,1,5,5,1,11,0,0\n2,3,4,5,0,4,0,2,\n")
    names = ["pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle", "awning-tricycle", "bus", "motor"]
    regions = [(name, 30, 20, 40, 44, "ignored") for name in names]
    return root, {"train": {**DRONES["train"], "c.jpg": [*regions, ("car", 2, 3, 6, 8, "ignored")]}}


def dota_line(label, x1, y1, x2, y2, difficult=0):
    middle = f"{(x1 + x2) / 2} {y1} {x2} {(y1 + y2) / 2} {(x1 + x2) / 2} {y2} {x1} {(y1 + y2) / 2}"
    return f"{middle} {label} {difficult}"


def dota_difficult(root: Path):
    lines_of(root, ONE, "images", "labelTxt", dota_line, "imagesource:GoogleEarth\ngsd:0.146\n")
    text(root / "labelTxt/c.txt", "imagesource:null\n" + dota_line("cat", 2, 3, 8, 9, 1) + "\n2 3 8 3 8 9 2 9 dog\n")
    return root, {"train": {**TRAIN, "c.png": [("cat", 2, 3, 8, 9, "ignored"), ("dog", 2, 3, 8, 9)]}}


def supervisely(root: Path, splits, folder="{split}/", shape="rectangle"):
    text(root / "meta.json", {"classes": [{"title": "cat"}, {"title": "dog"}]})
    for split, of in splits.items():
        data = root / folder.format(split=split)
        images(data / "img", of)
        for image, objects in of.items():
            found = []
            for label, x1, y1, x2, y2 in objects:
                item = {"classTitle": label, "geometryType": shape}
                if shape == "bitmap":
                    mask = cv2.imencode(".png", np.zeros((y2 - y1, x2 - x1), np.uint8))[1].tobytes()
                    data_text = base64.b64encode(zlib.compress(mask)).decode()
                    item["bitmap"] = {"origin": [x1, y1], "data": data_text}
                else:  # whole numbers are the first and last pixel
                    item["points"] = {"exterior": [[x1, y1], [x2 - 1, y2 - 1]], "interior": []}
                found.append(item)
            size = {"height": HEIGHT, "width": WIDTH}
            text(data / "ann" / f"{image}.json", {"description": "", "tags": [], "size": size, "objects": found})
    return root


# --- table ---------------------------------------------------------------------------------------------------------

SUB = partial(renamed, name=lambda image: f"day 1/{image}")
ODD = partial(renamed, name=lambda image: f"Фото {image}")
DOTA_SPLITS = {"train": TRAIN, "val": VAL}


def unlabelled(splits, name="object"):
    return {s: {i: [(name, *o[1:]) for o in objects] for i, objects in of.items()} for s, of in splits.items()}


# name: (reader, writer, truth); a writer returns the path to open, and its truth where the table gives none
CASES = {
    "cvat task": ("cvat", partial(cvat, splits=ONE), ONE),
    "cvat folder": ("cvat", lambda root: cvat(root, ONE).parent, ONE),
    "cvat images beside, no sizes": ("cvat", partial(cvat, splits=ONE, folder="", sizes=False), ONE),
    "cvat subsets": ("cvat", partial(cvat, splits={"train": TRAIN, "validation": VAL}, subsets=True), TWO),
    "cvat sub folders": ("cvat", partial(cvat, splits=SUB(ONE)), ONE),
    "cvat paths of Windows": ("cvat", partial(cvat, splits=ONE, written="C:\\job\\{}".format), ONE),
    "cvat shapes": ("cvat", cvat_shapes, None),
    "cvat ellipse and cuboid": ("cvat", cvat_ellipse_and_cuboid, None),
    "cvat video": ("cvat", cvat_video, None),
    "labelme beside": ("labelme", partial(labelme, splits=ONE, json_in="", images_in=""), ONE),
    "labelme splits": ("labelme", partial(labelme, splits=TWO), TWO),
    "labelme folder of labels": (
        "labelme",
        partial(labelme, splits=ONE, json_in="labels", images_in="images", written="..\\images\\{image}"),
        ONE,
    ),
    "labelme folder of labels alone": (
        "labelme",
        lambda root: labelme(root, ONE, "labels", "images", "../images/{image}") / "labels",
        ONE,
    ),
    "labelme of another machine": (
        "labelme",
        partial(labelme, splits=ODD(ONE), json_in="", images_in="", written="/home/x/{image}", sizes=False),
        ODD(ONE),
    ),
    "labelme polygons": ("labelme", partial(labelme, splits=ONE, json_in="", images_in="", shape="polygon"), ONE),
    "labelme shapes": ("labelme", labelme_shapes, None),
    "via export": ("via", partial(via, splits=ONE), ONE),
    "via project, images in a folder": ("via", partial(via, splits=ONE, folder="img", project=True), ONE),
    "via version 1": ("via", partial(via, splits=ONE, version=1, key="species"), ONE),
    "via without classes": ("via", partial(via, splits=ONE, key=""), unlabelled(ONE)),
    "via csv": ("via", partial(via_csv, splits=ONE), ONE),
    "via csv of version 1": ("via", partial(via_csv, splits=ONE, first="#filename"), ONE),
    "via shapes": ("via", via_shapes, None),
    "label studio": ("label_studio", partial(label_studio, splits=ONE), ONE),
    "label studio min": ("label_studio", partial(label_studio, splits=ONE, least=True), ONE),
    "label studio uploads": (
        "label_studio",
        partial(label_studio, splits=ONE, written="/data/upload/4/0a1b2c3d-{image}", folder=""),
        ONE,
    ),
    "label studio local files": (
        "label_studio",
        partial(label_studio, splits=SUB(ONE), written="/data/local-files/?d=images/{image}"),
        ONE,
    ),
    "label studio shapes": ("label_studio", label_studio_shapes, None),
    "createml of Roboflow": ("createml", partial(createml, splits={"train": TRAIN, "valid": VAL}), TWO),
    "createml of Apple": (
        "createml",
        lambda root: createml(root, ONE, "annotations.json", ("imagefilename", "annotation")) / "annotations.json",
        ONE,
    ),
    "createml shares": ("createml", partial(createml, splits=ONE, file="annotations.json", scale=0), ONE),
    "kitti": ("kitti", kitti_regions, None),
    "kitti lists": ("kitti", kitti_lists, None),
    "kitti of CVAT": (
        "kitti",
        partial(lines_of, splits=TWO, images_in="{split}/image_2", labels_in="{split}/label_2", line=kitti_line),
        TWO,
    ),
    "visdrone split": ("visdrone", visdrone_regions, None),
    "visdrone folders": (
        "visdrone",
        partial(
            lines_of, splits={"train": DRONES["train"], "val": {"v.jpg": [("car", 0, 0, 9, 9)]}},
            images_in="VisDrone2019-DET-{split}/images", labels_in="VisDrone2019-DET-{split}/annotations",
            line=visdrone_line,
        ),
        {"train": DRONES["train"], "val": {"v.jpg": [("car", 0, 0, 9, 9)]}},
    ),
    "dota": ("dota", dota_difficult, None),
    "dota splits": (
        "dota",
        partial(lines_of, splits=TWO, images_in="{split}/images", labels_in="{split}/labelTxt-v1.5", line=dota_line),
        TWO,
    ),
    "dota same names in both splits": (
        "dota",
        partial(
            lines_of, splits={"train": TRAIN, "val": TRAIN}, images_in="{split}/images",
            labels_in="{split}/labelTxt", line=dota_line,
        ),
        {"train": TRAIN, "val": TRAIN},
    ),
    "supervisely project": ("supervisely", partial(supervisely, splits=TWO), TWO),
    "supervisely data set": ("supervisely", partial(supervisely, splits=ONE, folder="ds0", shape="polygon"), ONE),
    "supervisely masks": ("supervisely", partial(supervisely, splits=ONE, shape="bitmap"), ONE),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_export_is_read_as_its_program_meant_it(case, tmp_path, assert_export):
    reader, write, truth = CASES[case]
    written = write(tmp_path / "my set")
    path, truth = (written, truth) if truth is not None else written
    assert_export(path, truth, reader, (HEIGHT, WIDTH))
