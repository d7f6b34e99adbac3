from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detector.cli.main import run
from detector.data.coco import CocoAnnotations
from detector.tasks.detection_model import load_detection, read_split


@pytest.fixture
def source(tiny_shapes: Path, tmp_path: Path) -> Path:
    path = tmp_path / "source" / "shapes.yaml"
    path.parent.mkdir()
    lines = [
        f"{split}: {{annotations: {tiny_shapes}/annotations/{split}.json, images: {tiny_shapes}/images/{split}}}\n"
        for split in ("train", "val")
    ]
    path.write_text("name: coco\n" + "".join(lines))
    return path


def split_of(description: Path | str, name: str = "train") -> CocoAnnotations:
    return read_split(load_detection("base", [f"data={json.dumps(str(description))}"]), name)


def called(*words: object) -> int:
    return run(["dataset", *map(str, words)])


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("action", ["to-yolo", "to-darknet"])
def test_round_trip_through_text_labels_keeps_the_boxes(source, tiny_shapes, tmp_path, capsys, action):
    before = tree(tiny_shapes)
    assert called(action, source, "--to", tmp_path / "text") == 0
    captured = capsys.readouterr()
    text = Path(captured.out.strip())
    assert "text labels cannot hold visible_share" in captured.err
    assert "the category ids 3, 7, 11, 20, 42, ... become 0, 1, 2" in captured.err
    assert called("to-coco", text, "--to", tmp_path / "coco") == 0
    for split in ("train", "val"):
        one, two = split_of(source, split), split_of(tmp_path / "coco" / "data.yaml", split)
        assert one.class_names == two.class_names
        np.testing.assert_array_equal(one.offsets, two.offsets)
        np.testing.assert_array_equal(one.labels, two.labels)
        np.testing.assert_allclose(one.boxes_xywh, two.boxes_xywh, rtol=0, atol=1e-12)
        for index in range(len(one)):
            assert one.path(index).read_bytes() == two.path(index).read_bytes()
    assert tree(tiny_shapes) == before


def test_fields_that_text_labels_cannot_hold_are_counted(tiny_shapes, tmp_path, capsys):
    content = json.loads((tiny_shapes / "annotations/val.json").read_text())
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1]["segmentation"] = [[1, 1, 2, 2, 3, 1]]
    (tmp_path / "val.json").write_text(json.dumps(content))
    words = ("to-yolo", tmp_path / "val.json", tiny_shapes / "images/val", "--to", tmp_path / "yolo", "--link")
    assert called(*words) == 0
    said = capsys.readouterr().err
    assert "1 crowd regions are left out" in said
    assert "cannot hold segmentation, visible_share" in said
    assert all(path.is_symlink() for path in (tmp_path / "yolo/images/train").iterdir())


def test_fields_that_shards_cannot_hold_are_named(tiny_shapes, tmp_path, capsys):
    annotations = json.loads((tiny_shapes / "annotations/val.json").read_text())
    annotations["annotations"][0]["segmentation"] = [[1, 1, 9, 1, 9, 9]]
    (tmp_path / "val.json").write_text(json.dumps(annotations))
    data = f"data={{name: coco, train: {{annotations: {tmp_path}/val.json, images: {tiny_shapes}/images/val}}}}"
    assert run(["dataset", "to-shards", data, "--out", str(tmp_path / "shards")]) == 0
    assert "train: shards cannot hold segmentation, visible_share, which is left out" in capsys.readouterr().err


def test_conversion_from_coco_to_coco_keeps_everything(source, tiny_shapes, tmp_path, capsys):
    assert called("to-coco", source, "--to", tmp_path / "again") == 0
    for split in ("train", "val"):
        one = json.loads((tiny_shapes / f"annotations/{split}.json").read_text())
        two = json.loads((tmp_path / f"again/annotations/instances_{split}.json").read_text())
        assert two == one


def test_split_is_divided_reproducibly_into_separate_splits(source, tmp_path, capsys):
    assert called("split", source, "--to", tmp_path / "new", "--shares", "train=0.5,test=0.5", "--seed", 4) == 0
    assert "train: 6 images" in capsys.readouterr().err
    train, test, val = (split_of(tmp_path / "new/data.yaml", name) for name in ("train", "test", "val"))
    assert (len(train), len(test), len(val)) == (6, 6, 6)
    assert not set(train.file_names) & set(test.file_names)
    assert train.category_ids == split_of(source).category_ids
    assert called("split", source, "--to", tmp_path / "same", "--shares", "train=0.5,test=0.5", "--seed", 4) == 0
    assert tree(tmp_path / "same") == tree(tmp_path / "new")


def test_images_of_a_group_stay_together(source, tmp_path, capsys):
    words = ("split", source, "--to", tmp_path / "new", "--shares", "train=0.5,test=0.5", "--group", r"(\d)\.jpg$")
    assert called(*words) == 0
    endings = [{name[-5] for name in split_of(tmp_path / "new/data.yaml", s).file_names} for s in ("train", "test")]
    assert not endings[0] & endings[1]


def test_subsets_are_merged_and_duplicates_are_rejected(source, tmp_path, capsys):
    assert called("subset", source, "--num", 3, "--to", tmp_path / "three") == 0
    rest = [n for n in split_of(source).file_names if n not in split_of(tmp_path / "three/data.yaml").file_names]
    assert len(rest) == 9
    assert called("to-yolo", source, "--to", tmp_path / "yolo") == 0
    assert called("merge", tmp_path / "three/data.yaml", tmp_path / "yolo/data.yaml", "--to", tmp_path / "merged") == 0
    merged = split_of(tmp_path / "merged/data.yaml")
    assert len(merged) == 15
    assert merged.class_names == split_of(source).class_names
    assert called("merge", source, tmp_path / "three/data.yaml", "--to", tmp_path / "twice") == 3
    assert "is in two of the data sets" in capsys.readouterr().err
    assert not (tmp_path / "twice").exists()


def test_subset_and_remap_select_and_rename_classes(source, tmp_path, capsys):
    assert called("subset", source, "--classes", "circle, star", "--to", tmp_path / "two") == 0
    assert split_of(tmp_path / "two/data.yaml").class_names == ("circle", "star")
    (tmp_path / "map.yaml").write_text("circle: round\nsquare: angular\ntriangle: angular\ncross:\n")
    words = ("remap", source, "--map", tmp_path / "map.yaml", "star=angular", "--to", tmp_path / "mapped")
    assert called(*words) == 0
    mapped = split_of(tmp_path / "mapped/data.yaml")
    assert mapped.class_names == ("round", "angular", "crescent")
    assert mapped.category_ids == (3, 7, 90)
    assert "of removed classes left out" in capsys.readouterr().err


def test_voc_and_csv_are_converted_to_coco(tmp_path, capsys):
    folder = tmp_path / "voc"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), np.zeros((30, 40, 3), np.uint8))
    (folder / "a.xml").write_text(
        "<annotation><filename>a.png</filename><object><name>dog</name><difficult>0</difficult><bndbox><xmin>5</xmin>"
        "<ymin>6</ymin><xmax>20</xmax><ymax>16</ymax></bndbox></object></annotation>"
    )
    assert called("to-coco", folder, "--to", tmp_path / "one") == 0
    assert "pixels count from 1" in capsys.readouterr().err
    (tmp_path / "boxes.csv").write_text("image,label,x1,y1,x2,y2\na,dog,4,5,20,16\n")
    assert called("to-coco", tmp_path / "boxes.csv", folder, "--to", tmp_path / "two") == 0
    one, two = split_of(tmp_path / "one/data.yaml"), split_of(tmp_path / "two/data.yaml")
    assert one.boxes_xywh.tolist() == two.boxes_xywh.tolist() == [[4, 5, 16, 11]]
    assert one.class_names == two.class_names == ("dog",)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            (),
            2,
            "one of to-coco, to-yolo, to-darknet, to-shards, index, split, merge, subset, remap; got none",
        ),
        (("to-voc", "SOURCE"), 2, "got to-voc"),
        (("split", "SOURCE"), 2, "expected a folder for the result, got none; give --out FOLDER"),
        (("split", "SOURCE", "--to", "OUT", "--shares", "train=1,dev=0"), 2, "--shares: expected train, val and test"),
        (("split", "SOURCE", "--to", "OUT", "--shares", "train=x"), 2, "--shares: expected train, val and test"),
        (("split", "SOURCE", "--to", "OUT"), 2, "already has a split val"),
        (("split", "SOURCE", "--to", "OUT", "--from-split", "test"), 3, "expected a split of train, val, got 'test'"),
        (("split", "SOURCE", "--to", "OUT", "--shares", "train=0.5,test=0.5", "--group", "("), 2, "--group: expected"),
        (("split", "SOURCE", "--to", "OUT", "--shares", "train=0.5,test=0.5", "--group", "x"), 2, "does not match"),
        (("merge", "SOURCE", "--to", "OUT"), 2, "expected two data sets or more"),
        (("subset", "SOURCE", "--to", "OUT"), 2, "give --classes A,B or --num N"),
        (
            ("subset", "SOURCE", "--to", "OUT", "--classes", "circel"),
            3,
            "has no class 'circel'; did you mean 'circle'?",
        ),
        (("remap", "SOURCE", "--to", "OUT"), 2, "expected a mapping, got none"),
        (("to-coco", "a.csv", "b", "c", "--to", "OUT"), 2, "expected one data set, got a.csv, b, c; give a data set"),
        (("to-coco", "none.csv", "--to", "OUT"), 2, "there is no file 'none.csv'; check the path"),
        (("to-coco", "SOURCE", "--to", "INSIDE"), 2, "which holds images of the source; name a folder elsewhere"),
        (("to-coco", "SOURCE", "--to", "FULL"), 3, "is not empty; name a new folder"),
    ],
)
def test_error_is_one_line_and_nothing_is_written(source, tiny_shapes, tmp_path, capsys, words, code, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    places = {"SOURCE": source, "OUT": tmp_path / "out", "FULL": tmp_path / "full"}
    places["INSIDE"] = tiny_shapes / "images" / "train" / "new"
    before = tree(tiny_shapes)
    assert called(*(places.get(word, word) for word in words)) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert not (tmp_path / "out").exists()
    assert not places["INSIDE"].exists()
    assert tree(tmp_path / "full").keys() == {"mine.txt"}
    assert tree(tiny_shapes) == before


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A data set of ten train, three valid and two test images; two look like a third, one of them to the byte."""
    rng, root = np.random.default_rng(0), tmp_path / "published"
    third: Any = None
    for split, count in (("train", 10), ("valid", 3), ("test", 2)):
        for folder in ("images", "labels"):
            (root / split / folder).mkdir(parents=True)
        for number in range(count):
            pixels = cv2.resize(rng.integers(0, 255, (6, 8, 3), np.uint8), (64, 48), interpolation=cv2.INTER_CUBIC)
            if split == "train" and number in (3, 4):
                pixels = np.maximum(third, np.uint8(3 * (number - 3)))
            third = pixels if number == 2 else third
            cv2.imwrite(str(root / f"{split}/images/{split}{number}.png"), pixels)
            (root / f"{split}/labels/{split}{number}.txt").write_text(f"{number % 2} 0.5 0.5 0.25 0.25\n")
    (root / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnames: [cat, dog]\n"
    )
    return root


def test_splits_are_divided_again_and_the_test_split_stays(published, tmp_path, capsys):
    assert called("split", published, "--again", "--shares", "train=0.6,val=0.4", "--to", tmp_path / "new") == 0
    made = {name: split_of(tmp_path / "new/data.yaml", name) for name in ("train", "val", "test")}
    assert {name: len(split) for name, split in made.items()} == {"train": 8, "val": 5, "test": 2}
    assert sorted(Path(name).name for name in made["test"].file_names) == ["test0.png", "test1.png"]
    shares = "train=0.6,val=0.2,test=0.2"
    assert called("split", published, "--again", "--shares", shares, "--to", tmp_path / "all") == 0
    assert sum(len(split_of(tmp_path / "all/data.yaml", name)) for name in ("train", "val", "test")) == 15
    assert called("split", published, "--to", tmp_path / "refused") == 2
    assert "already has a split val; give --again to divide them together" in capsys.readouterr().err


def test_images_that_look_the_same_stay_in_one_split(published, tmp_path, capsys):
    words = ("split", published, "--again", "--shares", "train=0.5,val=0.5")
    for seed in range(3):
        out = tmp_path / f"seed{seed}"
        assert called(*words, "--group", "duplicates", "--seed", seed, "--to", out) == 0
        names = {Path(name).stem for name in split_of(out / "data.yaml").file_names}
        assert len(names & {"train2", "train3", "train4"}) in (0, 3)
        assert "13 images, 11 of them different" in capsys.readouterr().err


def test_copies_on_both_sides_are_reported(published, tmp_path, capsys):
    (published / "valid/images/valid0.png").write_bytes((published / "test/images/test0.png").read_bytes())
    assert called("split", published, "--again", "--to", tmp_path / "new") == 0
    said = capsys.readouterr().err
    assert "copies of images of" in said or "1 copy of images of" in said
    assert "--group duplicates keeps copies in one split" in said


def test_a_split_that_would_share_images_with_another_is_refused(published, tmp_path, capsys):
    (published / "data.yaml").write_text(
        "train: train/images\nval: train/images\ntest: train/images\nnames: [cat, dog]\n"
    )
    shares = ("--shares", "train=0.5,val=0.5")
    assert called("split", published, "--again", *shares, "--to", tmp_path / "leak") == 3
    said = capsys.readouterr().err
    assert "would share" in said
    assert "results on test say nothing" in said
    assert not (tmp_path / "leak").exists()
    (published / "data.yaml").write_text("train: train/images\nval: train/images\nnames: [cat, dog]\n")
    assert called("split", published, "--again", *shares, "--to", tmp_path / "apart") == 0
    assert "10 images of val also in another split, used once" in capsys.readouterr().err
    names = [set(split_of(tmp_path / "apart/data.yaml", name).file_names) for name in ("train", "val")]
    assert len(names[0] | names[1]) == 10
    assert not names[0] & names[1]


def test_merged_files_keep_the_splits_that_their_names_say(tiny_shapes, tmp_path, capsys):
    files = [tiny_shapes / f"annotations/{name}.json" for name in ("train", "val")]
    assert called("merge", *files, "--to", tmp_path / "both") == 0
    assert "val.json: its images are the split val, as its name says" in capsys.readouterr().err
    parts = [split_of(tmp_path / "both/data.yaml", name) for name in ("train", "val")]
    assert [len(part) for part in parts] == [len(json.loads(file.read_text())["images"]) for file in files]


def test_merged_splits_of_the_same_name_are_reported(published, source, tmp_path, capsys):
    assert called("merge", published, source, "--to", tmp_path / "both") == 0
    assert "train: the splits of 2 data sets are joined, 10 + " in capsys.readouterr().err
    assert called("merge", published, published / "train", "--to", tmp_path / "twice") == 3
    assert "is in two of the data sets" in capsys.readouterr().err


@pytest.fixture
def held_by_all(tmp_path: Path) -> Path:
    """Two splits with what COCO files, text labels and Darknet's lists can hold, in folders and with odd names."""
    root = tmp_path / "held"
    names = {"train": ["a.png", "é 1.png", "deep/er/c.png"], "val": ["deep/a.png", "b'c.png"]}
    for split, files in names.items():
        rows, images = list[dict[str, object]](), list[dict[str, object]]()
        for number, name in enumerate(files):
            (root / split / name).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / split / name), np.full((48, 64, 3), 20 * number, np.uint8))
            images.append({"id": number, "file_name": name, "width": 64, "height": 48})
            boxes = [(5.1, 6.0 + number, 10.7, 12.0), (0.0, 0.0, 64.0, 48.0)][: number + 1 if number < 2 else 0]
            rows += [
                {"id": len(rows) + at + 1, "image_id": number, "category_id": at, "bbox": box, "area": box[2] * box[3],
                 "iscrowd": 0} for at, box in enumerate(boxes)
            ]  # fmt: skip
        categories = [{"id": number, "name": name} for number, name in enumerate(("cat", "dog: a", "never used"))]
        content = {"images": images, "categories": categories, "annotations": rows}
        (root / f"instances_{split}.json").write_text(json.dumps(content))
    lines = [f"{split}: {{annotations: instances_{split}.json, images: {split}}}\n" for split in names]
    (root / "data.yaml").write_text("name: coco\n" + "".join(lines))
    return root / "data.yaml"


WRITTEN = ("to-coco", "to-yolo", "to-darknet")


@pytest.mark.parametrize("first", WRITTEN)
@pytest.mark.parametrize("second", WRITTEN)
def test_round_trips_keep_what_all_formats_hold(first, second, held_by_all, tmp_path, capsys):
    source = held_by_all
    for number, action in enumerate((first, second, first)):
        assert called(action, source, "--to", tmp_path / f"trip{number}") == 0
        source = Path(capsys.readouterr().out.strip())
    for split in ("train", "val"):
        one, two = split_of(held_by_all, split), split_of(source, split)
        assert two.class_names == one.class_names
        assert two.category_ids == one.category_ids
        files = {two.path(index).read_bytes(): index for index in range(len(two))}
        assert len(files) == len(two) == len(one)
        for index, name in enumerate(one.file_names):
            other = files[one.path(index).read_bytes()]
            assert Path(two.file_names[other]).name == Path(name).name
            assert two.image_hw[other].tolist() == one.image_hw[index].tolist()
            assert two.labels_of(other).tolist() == one.labels_of(index).tolist()
            mine, theirs = one.source_xyxy(index), two.source_xyxy(other)
            np.testing.assert_allclose(theirs, mine, rtol=0, atol=1e-5)
    if {first, second} == {"to-coco"}:
        files = (tmp_path / "trip2/annotations/instances_train.json", held_by_all.parent / "instances_train.json")
        kept, given = (json.loads(file.read_text())["annotations"] for file in files)
        assert kept == given


def test_a_foreign_format_keeps_its_other_content_in_coco_files(tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((48, 64, 3), np.uint8))
    box = '<box label="cat" xtl="1.25" ytl="2" xbr="9" ybr="8" occluded="1"><attribute name="age">3</attribute></box>'
    (tmp_path / "annotations.xml").write_text(f'<annotations><image id="0" name="a.png">{box}</image></annotations>')
    out = tmp_path / "out"
    assert called("to-coco", tmp_path / "annotations.xml", "--to", out / "one") == 2  # in the folder of the images
    assert "holds images of the source" in capsys.readouterr().err
    (tmp_path / "images").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "images/a.png")
    assert called("to-coco", tmp_path / "annotations.xml", "--to", out / "one") == 0
    assert called("to-coco", out / "one/data.yaml", "--to", out / "two") == 0
    (row,) = json.loads((out / "two/annotations/instances_train.json").read_text())["annotations"]
    assert (row["bbox"], row["occluded"], row["attributes"]) == ([1.25, 2, 7.75, 6], 1, {"age": "3"})


def test_help_of_an_action_has_its_own_options_only(capsys):
    with pytest.raises(SystemExit):
        run(["dataset", "split", "--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: detector dataset split DATA --out FOLDER")
    assert "--shares" in text
    assert not {"--difficult", "--map", "--link", "--keep-empty"} & set(text.split())
    with pytest.raises(SystemExit):
        run(["dataset", "--help"])
    assert {"--shares", "--difficult", "--map", "--link"} <= set(capsys.readouterr().out.split())


def test_splits_that_list_different_classes_are_numbered_together(tmp_path, capsys):
    for split, name in (("train", "dog"), ("val", "cat")):
        (tmp_path / "set" / split).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "set" / split / "a.png"), np.full((48, 64, 3), len(split), np.uint8))
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 20, 20]}],
            "categories": [{"id": 1, "name": name}],
        }
        (tmp_path / "set" / split / "instances.json").write_text(json.dumps(content))
    assert run(["dataset", "to-yolo", str(tmp_path / "set"), "--out", str(tmp_path / "out")]) == 0
    assert "the splits list different classes, so that each gets all 2 of them" in capsys.readouterr().err
    labels = [(tmp_path / "out" / "labels" / split / "a.txt").read_text().split()[0] for split in ("train", "val")]
    assert labels == ["0", "1"]
