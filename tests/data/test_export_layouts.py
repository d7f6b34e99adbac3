"""Miniature data sets in formats that several programs write in layouts of their own, each with its truth."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.data.small_exports import HEIGHT, ONE, TRAIN, TWO, VAL, WIDTH, images, text

CLASSES = ["cat", "dog"]
VALID = {"train": TRAIN, "valid": VAL}


def without_empty(splits):
    return {split: {image: objects for image, objects in of.items() if objects} for split, of in splits.items()}


def voc(root: Path, splits, xml_in, images_in, offset=0, size=True, written="{image}", database="Unknown"):
    for split, of in splits.items():
        images(root / images_in.format(split=split), of)
        for image, objects in of.items():
            sides = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>" if size else ""
            body = "".join(
                f"<object><name>{label}</name><bndbox><xmin>{x1 + offset}</xmin><ymin>{y1 + offset}</ymin>"
                f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
                for label, x1, y1, x2, y2 in objects
            )
            name = f"<filename>{written.format(image=image)}</filename><source><database>{database}</database></source>"
            text(
                root / xml_in.format(split=split) / f"{Path(image).stem}.xml",
                f"<annotation>{name}{sides}{body}</annotation>",
            )
    return root


def table(root: Path, splits, columns, row: Callable[..., str], file="boxes.csv", folder="", empty=""):
    for split, of in splits.items():
        path = root / file.format(split=split)
        images(path.parent / folder, of)
        lines = [columns] if columns and not path.exists() else []
        for image, objects in of.items():
            lines += [row(image, split, *item) for item in objects] or ([empty.format(image=image)] if empty else [])
        with path.open("a", encoding="utf-8") as opened:
            opened.write("".join(f"{line}\n" for line in lines))
    return root / file if "{" not in file else root


def yolo_line(label, x1, y1, x2, y2, polygon=False):
    if polygon:
        points = (x1, y1, x2, y1, x2, y2, x1, y2)
        return f"{CLASSES.index(label)} " + " ".join(
            str(p / (HEIGHT if i % 2 else WIDTH)) for i, p in enumerate(points)
        )
    centre = ((x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT)
    return f"{CLASSES.index(label)} {centre[0]} {centre[1]} {(x2 - x1) / WIDTH} {(y2 - y1) / HEIGHT}"


def yolo(root: Path, splits, images_in, labels_in, files, line=yolo_line, opens="", suffix=".png"):
    """Write images and text labels; `files` are other files, in which {root} is the folder."""
    for split, of in splits.items():
        named = {Path(image).with_suffix(suffix).name: objects for image, objects in of.items()}
        images(root / images_in.format(split=split), named)
        for image, objects in named.items():
            label = root / labels_in.format(split=split) / f"{Path(image).stem}.txt"
            text(label, "".join(f"{line(*item)}\n" for item in objects))
    for name, content in files.items():
        text(root / name, content.format(root=root))
    return root / opens if opens else root


def coco(root: Path, splits, file, images_in, first_id=1, names="{image}", opens=""):
    for split, of in splits.items():
        images(root / images_in.format(split=split), of)
        listed, rows = list[dict[str, object]](), list[dict[str, object]]()
        for number, (image, objects) in enumerate(of.items(), start=1):
            listed.append({"id": number, "file_name": names.format(image=image), "width": WIDTH, "height": HEIGHT})
            for label, x1, y1, x2, y2 in objects:
                box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
                row = {"id": len(rows) + 1, "image_id": number, "category_id": CLASSES.index(label) + first_id}
                rows.append({**row, **box})
        categories = [{"id": number + first_id, "name": name} for number, name in enumerate(CLASSES)]
        text(root / file.format(split=split), {"images": listed, "categories": categories, "annotations": rows})
    return root / opens if opens else root


CORNERS = partial(
    table, columns="filename,width,height,class,xmin,ymin,xmax,ymax",
    row=lambda image, split, label, *box: f"{image},{WIDTH},{HEIGHT},{label},{','.join(map(str, box))}",
)  # fmt: skip


YAML = "names: [cat, dog]\nnc: 2\n"
LISTS = {
    "obj.data": "classes = 2\ntrain = {root}/train.txt\nvalid = {root}/val.txt\nnames = {root}/obj.names\n",
    "obj.names": "cat\ndog\n",
    "train.txt": "".join(f"{{root}}/train/{image}\n" for image in TRAIN),
    "val.txt": "".join(f"{{root}}/val/{image}\n" for image in VAL),
}
DARKNET = partial(yolo, splits=TWO, images_in="{split}", labels_in="{split}", files=LISTS)

# name: (reader, writer, truth)
CASES = {
    "yolo of Roboflow": (
        "yolo",
        partial(
            yolo, splits=VALID, images_in="{split}/images", labels_in="{split}/labels",
            files={"data.yaml": f"train: ../train/images\nval: ../valid/images\ntest: ../test/images\n{YAML}"},
        ),
        TWO,
    ),
    "yolo data.yaml": (
        "yolo",
        partial(
            yolo, splits=TWO, images_in="images/{split}", labels_in="labels/{split}", opens="data.yaml",
            files={"data.yaml": f"path: /home/x/set\ntrain: images/train\nval: images/val\n{YAML}"},
        ),
        TWO,
    ),
    "yolo polygons": (
        "yolo",
        partial(
            yolo, splits=ONE, images_in="images/{split}", labels_in="labels/{split}", opens="data.yaml",
            files={"data.yaml": f"train: images/train\nval:\n{YAML}"}, line=partial(yolo_line, polygon=True),
        ),
        ONE,
    ),
    "yolo of LabelImg": (
        "yolo", partial(yolo, splits=ONE, images_in="", labels_in="", files={"classes.txt": "cat\ndog"}), ONE
    ),
    "yolo of Label Studio": (
        "yolo",
        partial(
            yolo, splits=ONE, images_in="images", labels_in="labels",
            files={"classes.txt": "cat\ndog\n", "notes.json": "{{\"categories\": []}}"},
        ),
        ONE,
    ),
    "yolo split folders without yaml": (
        "yolo",
        partial(
            yolo, splits=VALID, images_in="images/{split}", labels_in="labels/{split}",
            files={"obj.names": "cat\ndog\n"},
        ),
        TWO,
    ),
    "darknet": ("darknet", partial(DARKNET, opens="obj.data"), TWO),
    "darknet folder": ("darknet", DARKNET, TWO),
    "coco of Roboflow": (
        "coco", partial(coco, splits=VALID, file="{split}/_annotations.coco.json", images_in="{split}", first_id=0), TWO
    ),
    "coco of CVAT": (
        "coco", partial(coco, splits=ONE, file="annotations/instances_default.json", images_in="images/default"), ONE
    ),
    "coco of its authors": (
        "coco",
        partial(coco, splits=TWO, file="annotations/instances_{split}2017.json", images_in="{split}2017", first_id=17),
        TWO,
    ),
    "coco of Label Studio": (
        "coco", partial(coco, splits=ONE, file="result.json", images_in="images", names="images/{image}"), ONE
    ),
    "coco file": (
        "coco", partial(coco, splits=ONE, file="labels.json", images_in="images", opens="labels.json"), ONE
    ),
    "coco paths of Windows": (
        "coco", partial(coco, splits=ONE, file="labels.json", images_in="images", names="images\\{image}"), ONE
    ),
    "voc of PASCAL": (
        "voc",
        partial(
            voc, splits=ONE, xml_in="Annotations", images_in="JPEGImages", offset=1, database="The VOC2007 Database"
        ),
        ONE,
    ),
    "voc of LabelImg": ("voc", partial(voc, splits=ONE, xml_in="", images_in=""), ONE),
    "voc annots": ("voc", partial(voc, splits=ONE, xml_in="annots", images_in="images", size=False), ONE),
    "voc of another machine": (
        "voc",
        partial(voc, splits=ONE, xml_in="ANNOTATIONS", images_in="imgs", written="C:\\x\\{image}"),
        ONE,
    ),
    "csv corners": ("csv", partial(CORNERS, splits=ONE, empty="{image},,,,,,,"), ONE),
    "csv of Roboflow": (
        "csv",
        partial(CORNERS, splits={"train": TRAIN, "valid": VAL}, file="{split}/_annotations.csv"),
        without_empty(TWO),
    ),
    "voc of Roboflow": (
        "voc", partial(voc, splits=VALID, xml_in="{split}", images_in="{split}", database="roboflow.ai"), TWO
    ),
    "voc with decimals": ("voc", partial(voc, splits=ONE, xml_in="xmls", images_in="images", offset=0.0), ONE),
    "csv of Kaggle": (
        "csv",
        partial(
            table, splits=ONE, columns="image_id,width,height,bbox,label", file="train.csv", folder="train",
            row=lambda image, split, label, x1, y1, x2, y2: (
                f'{Path(image).stem},{WIDTH},{HEIGHT},"[{x1}, {y1}, {x2 - x1}, {y2 - y1}]",{label}'
            ),
        ),
        without_empty(ONE),
    ),
    "csv of Open Images": (
        "csv",
        partial(
            table, splits={"train": TRAIN, "validation": VAL}, file="{split}-annotations-bbox.csv",
            columns="ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf",
            row=lambda image, split, label, x1, y1, x2, y2: (
                f"{Path(image).stem},xclick,{label},1,{x1 / WIDTH},{x2 / WIDTH},{y1 / HEIGHT},{y2 / HEIGHT},0,0,0"
            ),
        ),
        without_empty(TWO),
    ),
    "csv with semicolons and a column of splits": (
        "csv",
        partial(
            table, splits=TWO, columns="set;path;label;x1;y1;x2;y2",
            row=lambda image, split, label, *box: f"{split};D:\\pictures\\{image};{label};{';'.join(map(str, box))}",
        ),
        without_empty(TWO),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_layout_is_read_as_its_program_meant_it(case, tmp_path, assert_export):
    reader, write, truth = CASES[case]
    path = write(tmp_path / "my set")
    assert_export(path, truth, reader, (HEIGHT, WIDTH))
