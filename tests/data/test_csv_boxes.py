from __future__ import annotations

import cv2
import numpy as np
import pytest

from detector.data.csv_boxes import read_csv
from detector.errors import DatasetError


@pytest.fixture
def read(tmp_path):
    """Reads a table beside three images, 40 x 30."""
    for name in ("a.jpg", "b.jpg", "c.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((30, 40, 3), np.uint8))

    def reading(text, encoding="utf-8"):
        (tmp_path / "boxes.csv").write_bytes(text.encode(encoding))
        return read_csv(tmp_path / "boxes.csv", tmp_path)

    return reading


EXPECTED = {"a.jpg": [("cat", [5, 6, 10, 12]), ("dog", [0, 0, 40, 30])], "b.jpg": [("dog", [1, 2, 3, 4])]}
CORNERS = (
    "filename,width,height,class,xmin,ymin,xmax,ymax\n"
    "a.jpg,40,30,cat,5,6,15,18\na.jpg,40,30,dog,0,0,40,30\nb.jpg,40,30,dog,1,2,4,6\n"
)


def boxes_of(splits, split="train"):
    annotations, _ = splits[split]
    return {
        name: [
            (annotations.class_names[label], box.tolist())
            for label, box in zip(
                annotations.labels_of(index),
                annotations.boxes_xywh[annotations.offsets[index] : annotations.offsets[index + 1]],
                strict=True,
            )
        ]
        for index, name in enumerate(annotations.file_names)
    }


@pytest.mark.parametrize(
    "text",
    [
        CORNERS,
        CORNERS.replace(",", ";"),
        CORNERS.replace(",", "\t"),
        "\ufeff" + CORNERS.replace("\n", "\r\n") + "\r\n\r\n",
        "image_id,x,y,w,h,label\na,5,6,10,12,cat\na,0,0,40,30,dog\nb,1,2,3,4,dog\n",
        "Image Name,BBox_X,BBox_Y,BBox_Width,BBox_Height,Label Name\n"
        "a.jpg,5,6,10,12,cat\na.jpg,0,0,40,30,dog\nB.JPG,1,2,3,4,dog\n",
        "file,x,y,width,height,class\na.jpg,5,6,10,12,cat\na.jpg,0,0,40,30,dog\nb.jpg,1,2,3,4,dog\n",
        "a.jpg,5,6,15,18,cat\na.jpg,0,0,40,30,dog\nb.jpg,1,2,4,6,dog\n",
        'filename,class,x1,y1,x2,y2\n"a.jpg","cat",5,6,15,18\n"/home/x/a.jpg",dog,0,0,40,30\nC:\\x\\b.jpg,dog,1,2,4,6\n',
        "ImageID,LabelName,XMin,XMax,YMin,YMax\na,cat,0.125,0.375,0.2,0.6\na,dog,0,1,0,1\n"
        "b,dog,0.025,0.1,0.06666666666666667,0.2\n",
    ],
)
def test_the_usual_tables_are_read_the_same(read, text):
    splits, _ = read(text)
    found = boxes_of(splits)
    assert found.keys() == EXPECTED.keys()
    for name, boxes in EXPECTED.items():
        assert [label for label, _ in found[name]] == [label for label, _ in boxes]
        np.testing.assert_allclose([box for _, box in found[name]], [box for _, box in boxes], atol=1e-9)


def test_interpretations_of_a_table_are_noted(read):
    left_out = "1 image without annotations left out, first: c.png"
    assert read(CORNERS)[1] == [left_out]
    assert read(CORNERS.replace("class", "class,notes", 1).replace(",cat", ",cat,x").replace(",dog", ",dog,y"))[1] == [
        "columns that are not read: notes",
        left_out,
    ]
    assert "no line of names" in read("a.jpg,5,6,15,18,cat\n")[1][0]
    assert "taken as shares of the image" in read("image,label,x1,y1,x2,y2\na.jpg,cat,0.1,0.1,0.5,0.5\n")[1][0]


def test_boxes_of_whole_numbers_up_to_one_are_pixels(read):
    splits, notes = read("image,label,x1,y1,x2,y2\na.jpg,cat,0,0,1,1\n")
    assert boxes_of(splits) == {"a.jpg": [("cat", [0, 0, 1, 1])]}
    assert notes == ["2 images without annotations left out, first: b.jpg"]


def test_images_without_objects_are_kept(read):
    splits, _ = read(CORNERS + "c.png,,,,,,,\n")
    assert boxes_of(splits)["c.png"] == []
    splits, _ = read("a.jpg,5,6,15,18,cat\nc.png,,,,,\n")
    assert boxes_of(splits)["c.png"] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,cx,cy,w,h,label\na.jpg,10,12,10,12,cat\na.jpg,20,15,40,30,dog\nb.jpg,2.5,4,3,4,dog\n", ""),
        ("path,x_center,y_center,width,height,label\na,.25,.4,.25,.4,cat\na,.5,.5,1,1,dog\nb,.0625,.133333333333,"
         ".075,.133333333333,dog\n", "taken as shares of the image"),
        ('image_id,width,height,bbox,class\na,40,30,"[5.0, 6, 10, 12]",cat\na,40,30,"[0, 0, 40, 30]",dog\n'
         'b,40,30,"[1, 2, 3, 4]",dog\nc,40,30,,\n', "taken as x, y, width, height"),
        ('image_id,width,height,bbox,class\na,40,30,"5,6,15,18",cat\na,40,30,"0,0,40,30",dog\nb,40,30,"(1 2 4 6)",'
         "dog\n", "taken as x, y, width, height"),
        ("image_name,BoxesString,class\na.jpg,5 6 15 18,cat\na.jpg,0 0 40 30,dog\nb.jpg,1 2 4 6,dog\nc.png,no_box,\n",
         "taken as x1, y1, x2, y2"),
    ],
    ids=["centre", "shares", "list", "corners that look like sizes", "boxes of wheat"],
)  # fmt: skip
def test_other_forms_of_boxes_are_read(read, text, words):
    splits, notes = read(text)
    assert words in "; ".join(notes)
    found = boxes_of(splits)
    if "no_box" in text or "c,40,30,," in text:
        assert found.pop("c.png") == []
    if "5,6,15,18" in text:  # both readings are possible: nothing ends outside its image
        assert found["a.jpg"][0] == ("cat", [5, 6, 15, 18])
        return
    assert found.keys() == EXPECTED.keys()
    for name, boxes in EXPECTED.items():
        assert [label for label, _ in found[name]] == [label for label, _ in boxes]
        np.testing.assert_allclose([box for _, box in found[name]], [box for _, box in boxes], atol=1e-6)


def test_lists_of_corners_are_told_by_boxes_that_would_leave_their_image(read):
    text = 'image_id,width,height,bbox,class\na,40,30,"25,16,35,28",cat\na,40,30,"0,0,40,30",dog\n'
    splits, notes = read(text)
    assert boxes_of(splits)["a.jpg"] == [("cat", [25, 16, 10, 12]), ("dog", [0, 0, 40, 30])]
    assert "four numbers in one column are taken as x1, y1, x2, y2" in notes


def test_a_table_without_classes_has_one_class(read):
    splits, notes = read("image,xmin,ymin,xmax,ymax\na.jpg,5,6,15,18\n")
    assert boxes_of(splits) == {"a.jpg": [("object", [5, 6, 10, 12])]}
    assert "no column of classes: all boxes are of the class 'object'" in notes


def test_open_images_has_groups_and_names_of_classes(read, tmp_path):
    (tmp_path / "class-descriptions-boxable.csv").write_text("/m/011k07,Tortoise\n/m/01g317,Person\n")
    columns = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf"
    splits, _ = read(f"{columns}\na,xclick,/m/011k07,1,0,1,0,1,1,-1,0\nb,xclick,/m/01g317,1,0.5,1,0,0.5,0,0,1\n")
    annotations, extras = splits["train"]
    assert boxes_of(splits) == {"a.jpg": [("Tortoise", [0, 0, 40, 30])], "b.jpg": [("Person", [20, 0, 20, 15])]}
    assert annotations.is_crowd.tolist() == [False, True]
    assert [dict(row) for row in extras.rows] == [{"occluded": 1}, {}]


def test_tables_of_a_folder_are_its_splits(read, tmp_path):
    read(CORNERS)
    (tmp_path / "boxes.csv").rename(tmp_path / "train_labels.csv")
    (tmp_path / "test_labels.csv").write_text("filename,class,xmin,ymin,xmax,ymax\nc.png,bird,1,2,3,4\n")
    (tmp_path / "sample_submission.csv").write_text("id,target\n1,0\n")
    splits, notes = read_csv(tmp_path)
    assert boxes_of(splits, "test") == {"c.png": [("bird", [1, 2, 2, 2])]}
    assert len(splits["train"][0]) == 2
    assert splits["train"][0].class_names == ("bird", "cat", "dog")
    assert "1 tables are not read, first: " in notes[0]


def test_splits_are_read_from_their_column(read):
    text = "set,path,label,x1,y1,x2,y2\nTRAIN,a.jpg,cat,1,1,5,5\nVALIDATION,b.jpg,dog,1,1,5,5\ntest,c.png,cat,1,1,5,5\n"
    splits, _ = read(text)
    assert sorted(splits) == ["test", "train", "val"]
    assert splits["val"][0].class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "boxes.csv is empty"),
        ("a,b,c\n1,2,3\n", "boxes.csv:1: expected columns for image; class; xmin, ymin, xmax, ymax (or x, y, w, h)"),
        (CORNERS + "a.jpg,40,30,cat,5,6,15,x\n", "boxes.csv:5: expected four numbers, got 5, 6, 15, x"),
        (CORNERS + "a.jpg,40,30,cat,5,6\n", "boxes.csv:5: expected four numbers"),
        (CORNERS + "a.jpg,40,30,,5,6,15,18\n", "boxes.csv:5: the class is missing"),
        (CORNERS + ",40,30,cat,5,6,15,18\n", "boxes.csv:5: the name of the image is missing"),
        (CORNERS + ",,,,,,,x\na.jpg,,,cat,1_0,1,1,1\n", "2 errors: "),
        (CORNERS + '"a.jpg,40,30,cat,5,6,15,18\n', "is not a table, unexpected end of data"),
        ("split,path,label,x1,y1,x2,y2\nholdout,a.jpg,cat,1,1,5,5\n", "the split holdout is unknown"),
        ("filename,class,x1,y1,x2,y2\n", "holds no line with a box"),
        ("filename,class,x1,y1,x2,y2\na.jpg,,,,,\n", "holds no object"),
        ("filename,class,x1,y1,x2,y2\na.jpg,cat,9,9,5,5\n", "box of negative width or height"),
        ("filename,class,x1,y1,x2,y2\nnone.jpg,cat,1,1,5,5\n", "would lose 1 of 1 images"),
        ("filename,width,height,class,x1,y1,x2,y2\na.jpg,80,60,cat,1,1,5,5\n", "image of another size than its file"),
        ("filename,class,x1,y1,x2,y2\na.jpg,cat,nan,1,5,inf\n", "box with a number that is not finite"),
    ],
)
def test_a_wrong_table_is_refused_with_file_and_line(read, text, words):
    with pytest.raises(DatasetError) as caught:
        read(text)
    assert words in str(caught.value)


def test_bytes_that_are_not_text_are_refused(read):
    with pytest.raises(DatasetError, match="not UTF-8 text at byte"):
        read(CORNERS.replace("cat", "käse"), "latin-1")


def test_a_name_that_leads_outside_is_looked_for_inside(read):
    splits, _ = read("filename,class,x1,y1,x2,y2\n../../a.jpg,cat,1,1,5,5\n")
    assert list(splits["train"][0].file_names) == ["a.jpg"]
