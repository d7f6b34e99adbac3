from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.data.pascal_voc import parse_xml, read_voc
from detector.errors import DatasetError

OBJECT = (
    "<object><name>{name}</name><pose>Left</pose><truncated>1</truncated><difficult>{difficult}</difficult>"
    "<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
)
BOMB = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a0 "lol">'
    + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
    + "]><annotation><filename>&a11;</filename></annotation>"
)


class Voc:
    """A data set in the layout of VOC: three images, 40 x 30."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / folder).mkdir(parents=True)
        self.add("000001", [("dog", 0, 1, 1, 40, 30), ("cat", 1, 11, 6, 20, 10)])
        self.add("000002", [("dog", 0, 5, 5, 5, 5)])
        self.add("000003", [])

    def add(self, stem, objects, size="<size><width>40</width><height>30</height><depth>3</depth></size>", name=None):
        cv2.imwrite(str(self.root / f"JPEGImages/{stem}.jpg"), np.zeros((30, 40, 3), np.uint8))
        lines = [OBJECT.format(name=n, difficult=d, x1=x1, y1=y1, x2=x2, y2=y2) for n, d, x1, y1, x2, y2 in objects]
        text = f"<annotation><filename>{name or f'{stem}.jpg'}</filename>{size}{''.join(lines)}</annotation>"
        (self.root / f"Annotations/{stem}.xml").write_text(text, encoding="utf-8")

    def list(self, split, *stems):
        (self.root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{stem}  1\n" for stem in stems))


@pytest.fixture
def voc(tmp_path: Path) -> Voc:
    return Voc(tmp_path / "VOC2012")


def test_pixels_counted_from_one_become_edges(voc):
    splits, notes = read_voc(voc.root)
    annotations, extras = splits["train"]
    assert annotations.class_names == ("cat", "dog")
    assert list(annotations.file_names) == ["000001.jpg", "000002.jpg", "000003.jpg"]
    assert annotations.boxes_xywh.tolist() == [[0, 0, 40, 30], [10, 5, 10, 5], [4, 4, 1, 1]]
    assert annotations.labels.tolist() == [1, 0, 1]
    assert annotations.is_crowd.tolist() == [False, True, False]
    assert annotations.image_hw.tolist() == [[30, 40]] * 3
    assert dict(extras.rows[1]) == {"truncated": 1, "difficult": 1, "pose": "Left"}
    assert dict(extras.rows[0]) == {"truncated": 1, "pose": "Left"}
    assert [p.kind for p in annotations.problems] == ["image without annotations"]
    assert len(notes) == 2
    assert "1 difficult objects become crowd regions" in notes[1]


def test_difficult_objects_are_treated_by_the_option(voc):
    kept, notes = read_voc(voc.root, difficult="keep")
    assert kept["train"][0].is_crowd.tolist() == [False] * 3
    assert "become ordinary objects" in notes[1]
    dropped, notes = read_voc(voc.root, difficult="drop")
    assert dropped["train"][0].num_boxes == 2
    assert "are left out" in notes[1]


def test_pixels_counted_from_zero_are_recognised(voc):
    voc.add("000002", [("dog", 0, 5, 5, 9, 9)])
    voc.add("000003", [("dog", 0, 0, 4, 12, 20)])
    splits, notes = read_voc(voc.root)
    assert splits["train"][0].boxes_xywh[-1].tolist() == [0, 4, 12, 16]
    assert "some coordinates are 0" in notes[0]


def test_splits_are_read_from_the_lists(voc):
    voc.list("train", "000001", "000001")
    voc.list("val", "000002", "999999")
    splits, notes = read_voc(voc.root)
    assert {name: list(a.file_names) for name, (a, _) in splits.items()} == {
        "train": ["000001.jpg"],
        "val": ["000002.jpg"],
    }
    assert splits["val"][0].class_names == ("cat", "dog")  # those of all splits
    assert any("1 images have no annotation file and are left out, first: 999999" in note for note in notes)
    assert any("1 annotation files are in no split and are left out, first: 000003.xml" in note for note in notes)


def test_a_folder_of_xml_files_beside_images_is_read(voc, tmp_path):
    for path in [*(voc.root / "Annotations").iterdir(), *(voc.root / "JPEGImages").iterdir()]:
        (tmp_path / "flat").mkdir(exist_ok=True)
        path.rename(tmp_path / "flat" / path.name)
    splits, _ = read_voc(tmp_path / "flat")
    assert splits["train"][0].num_boxes == 3


@pytest.mark.parametrize(
    "name", ["C:\\data\\photos\\000003.jpg", "/home/x/000003.jpg", "000003", "000003.png", "../000003.jpg", ""]
)
def test_images_are_found_by_their_name_whatever_folder_is_written(voc, name):
    voc.add("000003", [("dog", 0, 4, 4, 12, 20)], name=name or " ")
    splits, _ = read_voc(voc.root)
    assert splits["train"][0].file_names[2] == "000003.jpg"


def test_sizes_are_compared_with_the_files(voc):
    voc.add("000003", [("dog", 0, 4, 4, 12, 20)], size="<size><width>30</width><height>40</height></size>")
    (problem,) = (p for p in read_voc(voc.root)[0]["train"][0].problems if p.outcome == "accepted")
    assert "exchanged" in problem.kind
    voc.add("000003", [("dog", 0, 4, 4, 12, 20)], size="<size><width>31</width><height>40</height></size>")
    with pytest.raises(DatasetError, match="would lose 1 of 3 images"):
        read_voc(voc.root)
    voc.add("000003", [("dog", 0, 4, 4, 12, 20)], size="<size><width>0</width><height>?</height></size>")
    assert read_voc(voc.root)[0]["train"][0].num_boxes == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not XML: no element found"),
        ("<annotation><object></annotation>", "is not XML: mismatched tag: line 1, column 22"),
        ("<svg/>", "expected a root element <annotation>, got <svg>"),
        ("<annotation><object/></annotation>", "object 1: has no <name>"),
        ("<annotation><object><name>a</name></object></annotation>", "object 1: has no <bndbox>"),
        (
            "<annotation><object><name>a</name><bndbox><xmin>1_0</xmin></bndbox></object></annotation>",
            "<xmin>: expected a number, got '1_0'",
        ),
        (BOMB, "declares a document type"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "declares a document type"),
        (
            '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
            "declares a document type",
        ),
        ("<annotation>" + "<a>" * 50 + "</a>" * 50 + "</annotation>", "nests elements deeper than 32"),
        ("<annotation>" + "<a>" * 200_000, "nests elements deeper than 32"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "is not XML"),
        ("<annotation>\x00</annotation>", "is not XML"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name(voc, text, words):
    (voc.root / "Annotations/000002.xml").write_text(text)
    started_s = time.process_time()
    with pytest.raises(DatasetError) as caught:
        read_voc(voc.root)
    assert words in str(caught.value)
    assert "000002.xml" in str(caught.value)
    assert time.process_time() - started_s < 2


def test_a_document_type_in_another_encoding_is_refused_too(tmp_path):
    path = tmp_path / "a.xml"
    path.write_bytes(BOMB.replace('version="1.0"', 'version="1.0" encoding="utf-16"').encode("utf-16"))
    with pytest.raises(DatasetError, match="declares a document type"):
        parse_xml(path)


def test_all_wrong_files_are_named_at_once(voc):
    for stem in ("000001", "000003"):
        (voc.root / f"Annotations/{stem}.xml").write_text("<a/>")
    with pytest.raises(DatasetError, match=r"000001\.xml.*; .*000003\.xml"):
        read_voc(voc.root)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"expected annotation files \*\.xml"):
        read_voc(tmp_path)


@pytest.mark.parametrize(
    ("written", "images", "words"),
    [
        ({}, ["000001", "000002", "000003"], None),
        # The second file is a copy of the first and still names its image.
        (
            {"000002": "000001.jpg"},
            ["000001", "000002", "000003"],
            "1 annotation files name another image than that of",
        ),
        (
            {"000001": "000002.jpg", "000002": "000001.jpg"},
            ["000001", "000002", "000003"],
            "2 annotation files name ano",
        ),
        (
            {"copy": "000001.jpg"},
            ["000001", "000002", "000003"],
            "copy.xml names 000001.jpg, which 000001.xml describes",
        ),
        (
            {"a": "000009.jpg", "b": "000009.jpg"},
            ["000009", "000001", "000002", "000003"],
            "b.xml names 000009.jpg, which",
        ),
    ],
)
def test_no_image_is_lost_where_two_files_name_it(voc, written, images, words):
    for stem, name in written.items():
        is_new = stem not in images
        voc.add(stem, [("dog", 0, 5, 5, 5, 5)], name=name)
        if is_new:
            (voc.root / f"JPEGImages/{stem}.jpg").rename(voc.root / f"JPEGImages/{name}")
    splits, notes = read_voc(voc.root)
    annotations, _ = splits["train"]
    assert sorted(annotations.file_names) == sorted(f"{stem}.jpg" for stem in images)
    told = [note for note in notes if "annotation files" in note]
    assert len(told) == (words is not None)
    assert words is None or words in told[0]
    for stem in set(written) & set(images):  # an image has the boxes of the file of its own name
        index = list(annotations.file_names).index(f"{stem}.jpg")
        assert annotations.source_xyxy(index).tolist() == [[4, 4, 5, 5]]


@pytest.mark.parametrize(
    ("xmls", "pictures"),
    [
        ("Annotations", "JPEGImages"),
        ("annotations", "images"),
        ("ANNOTATIONS", "Images"),
        ("annots", "images"),
        ("xmls", "img"),
        ("annotations", ""),
    ],
)
def test_folders_of_common_layouts_are_found(voc, xmls, pictures):
    (voc.root / "Annotations").rename(voc.root / "moved")
    (voc.root / "moved").rename(voc.root / xmls)
    (voc.root / "JPEGImages").rename(voc.root / (pictures or "images_are_beside"))
    if not pictures:
        for path in (voc.root / "images_are_beside").iterdir():
            path.rename(voc.root / xmls / path.name)
    annotations, _ = read_voc(voc.root)[0]["train"]
    assert annotations.num_boxes == 3
    assert annotations.path(0).is_file()


SOURCE = "<source><database>{}</database></source>"


@pytest.mark.parametrize(
    ("database", "box", "options", "left", "words"),
    [
        ("", (5, 6, 20, 10), {}, 4, "nothing tells that pixels count from 0"),
        ("The VOC2007 Database", (5, 6, 20, 10), {}, 4, "nothing tells that pixels count from 0"),
        ("Unknown", (5, 6, 20, 10), {}, 5, "<database> is 'Unknown', as LabelImg, CVAT and Roboflow write it"),
        ("roboflow.com", (5, 6, 20, 10), {}, 5, "<database> is 'roboflow.com'"),
        ("", (0, 6, 20, 10), {}, 0, "some coordinates are 0"),
        ("", (5.5, 6, 20, 10), {}, 5.5, "some coordinates have decimals"),
        ("Unknown", (5, 6, 20, 10), {"first_pixel": 1}, 4, "as asked: pixels count from 1"),
        ("The VOC2007 Database", (5, 6, 20, 10), {"first_pixel": 0}, 5, "as asked: coordinates are taken as edges"),
    ],
)
def test_first_pixel_is_decided_by_evidence_and_announced(tmp_path, database, box, options, left, words):
    voc = Voc(tmp_path / "set")
    for path in (voc.root / "Annotations").iterdir():
        path.unlink()
    size = "<size><width>40</width><height>30</height></size>" + (SOURCE.format(database) if database else "")
    voc.add("000001", [("dog", 0, *box)], size=size)
    splits, notes = read_voc(voc.root, **options)
    annotations, _ = splits["train"]
    top = 6 - (left == 4)
    assert annotations.boxes_xywh.tolist() == [[left, top, 20 - left, 10 - top]]
    assert words in notes[0]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("folder", ["labels", "Annotations"])
def test_text_labels_of_the_same_boxes_tell_the_first_pixel(voc, first, folder):
    (voc.root / folder).mkdir(exist_ok=True)
    voc.add("000002", [("dog", 0, 5, 5, 9, 9)])
    boxes = {"000001": [(1, 1, 40, 30), (11, 6, 20, 10)], "000002": [(5, 5, 9, 9)]}
    for stem, of in boxes.items():
        edges = [(x1 - first, y1 - first, x2, y2) for x1, y1, x2, y2 in of]
        rows = [((a + c) / 80, (b + d) / 60, (c - a) / 40, (d - b) / 30) for a, b, c, d in edges]
        lines = [f"0 {x:.6f} {y:.6f} {w:.6f} {h:.6f}" for x, y, w, h in rows]
        (voc.root / folder / f"{stem}.txt").write_text("\n".join(lines))
    _, notes = read_voc(voc.root)
    assert notes[0].startswith(f"text labels of the same boxes begin {first} px before xmin: ")
    assert ("taken as edges" in notes[0]) == (first == 0)
    (voc.root / folder / "000002.txt").write_text("0 0.5 0.5 0.1 0.1")  # other boxes tell nothing
    assert "nothing tells" in read_voc(voc.root)[1][0]
