"""Text labels: every kind of line, file and image has an outcome that is counted with its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.data.coco import CocoAnnotations
from detector.data.problems import Findings
from detector.data.txt_labels import (
    ListedImage,
    TextLabels,
    checked_names,
    read_class_names,
    read_image_list,
    read_txt_labels,
)
from detector.errors import DatasetError

NAMES = ("car", "train", "toothbrush")
HEIGHT, WIDTH = 40, 80
NUM_IMAGES = 30  # enough for one fault to stay below the share that is refused
GOOD_LINE = "1 0.5 0.25 0.25 0.5"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images 00.png, 01.png, ... of 40 x 80, each with one object."""
    for number in range(NUM_IMAGES):
        cv2.imwrite(str(tmp_path / f"{number:02d}.png"), np.full((HEIGHT, WIDTH, 3), number, np.uint8))
        (tmp_path / f"{number:02d}.txt").write_text(f"{GOOD_LINE}\n")
    return tmp_path


def read(folder: Path, **options: bool) -> CocoAnnotations:
    images = [ListedImage(path, str(path)) for path in sorted(folder.glob("*.png"))]
    source = folder / "x.data"
    labels = TextLabels(lambda path: path.with_suffix(".txt"), NAMES, **options)
    return read_txt_labels(source, folder, images, labels, Findings(str(source)))


def found(annotations: CocoAnnotations) -> dict[str, tuple[str, int, tuple[str, ...]]]:
    return {p.kind: (p.outcome, p.count, p.examples) for p in annotations.problems}


def refused(folder: Path, **options: bool) -> str:
    with pytest.raises(DatasetError) as caught:
        read(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_objects_are_converted_to_pixels_of_the_image(folder):
    (folder / "00.txt").write_text("2 0.5 0.5 1 1\r\n\n  0\t0.125 0.25 0.0625 5e-1  \n")
    annotations = read(folder)
    assert len(annotations) == NUM_IMAGES
    assert (annotations.class_names, annotations.category_ids) == (NAMES, (0, 1, 2))
    assert annotations.problems == ()
    assert annotations.labels[:3].tolist() == [2, 0, 1]
    wanted = [[0, 0, 80, 40], [10 - 2.5, 10 - 10, 5, 20], [40 - 10, 10 - 10, 20, 20]]
    np.testing.assert_allclose(annotations.boxes_xywh[:3], wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(annotations.areas[:3], [3200, 100, 400], rtol=0, atol=1e-9)
    assert annotations.offsets[:3].tolist() == [0, 2, 3]
    assert not annotations.is_crowd.any()
    assert annotations.image_hw.tolist() == [[HEIGHT, WIDTH]] * NUM_IMAGES
    assert tuple(annotations.file_names[:2]) == ("00.png", "01.png")
    assert annotations.path(1) == folder / "01.png"
    assert annotations.image_ids.tolist() == list(range(NUM_IMAGES))


def test_pixels_agree_with_float64_arithmetic_one_number_at_a_time(folder):
    rng = np.random.default_rng(0)
    wanted = []
    for number in range(NUM_IMAGES):
        shares = [(rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7), *rng.uniform(0.01, 0.5, 2)) for _ in range(4)]
        (folder / f"{number:02d}.txt").write_text("".join(f"0 {' '.join(map(repr, map(float, s)))}\n" for s in shares))
        wanted += [((x - w / 2) * WIDTH, (y - h / 2) * HEIGHT, w * WIDTH, h * HEIGHT) for x, y, w, h in shares]
    np.testing.assert_allclose(read(folder).boxes_xywh, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("line", "kind", "outcome"),
    [
        ("1 0.5 0.5 0.5", "line without a class and four numbers", "skipped"),
        ("1 0.5 0.5 0.5 0.5 17", "line without a class and four numbers", "skipped"),
        ("1 0.5 0.5 0.5 0.5 0.1 0.1 0.9 0.9", "line without a class and four numbers", "skipped"),
        ("person 0.5 0.5 0.5 0.5", "line without a class and four numbers", "skipped"),
        ("1 0,5 0,5 0,5 0,5", "line without a class and four numbers", "skipped"),
        ("1,0.5,0.5,0.5,0.5", "line without a class and four numbers", "skipped"),
        ("1 0_5 0.5 0.5 0.5", "line without a class and four numbers", "skipped"),
        ("# a comment", "line without a class and four numbers", "skipped"),
        ("1 nan 0.5 0.5 0.5", "box with a number that is not finite", "skipped"),
        ("1 0.5 0.5 inf 0.5", "box with a number that is not finite", "skipped"),
        ("1 0.5 0.5 1e999 0.5", "box with a number that is not finite", "skipped"),
        ("1 0.5 0.5 0 0.5", "box of zero width or height", "skipped"),
        ("1 0.5 0.5 0.5 -0.5", "box of negative width or height", "skipped"),
        ("1 1.6 0.5 0.5 0.5", "box wholly outside the image", "skipped"),
        ("1 -0.3 0.5 0.5 0.5", "box wholly outside the image", "skipped"),
        ("1 41 22 10 12", "box in pixels, expected shares of the image", "skipped"),
        ("1 0.9 0.5 0.5 0.5", "box partly outside the image", "accepted"),
        ("1.0 0.5 0.5 0.5 0.5", "class written with a decimal point", "accepted"),
        (GOOD_LINE, "object listed twice", "skipped"),
        ("1 .5 0.250 0.25 5e-1", "object listed twice", "skipped"),
    ],
)
def test_an_odd_line_is_counted_with_its_place(folder, line, kind, outcome):
    (folder / "07.txt").write_text(f"{GOOD_LINE}\n\n{line}\n")
    annotations = read(folder)
    counted = {name: what for name, what in found(annotations).items() if what[0] == outcome}
    assert list(counted) == [kind]
    assert counted[kind][1:] == (1, (f"{folder / '07.txt'}:3",))
    assert annotations.num_boxes == NUM_IMAGES + (outcome == "accepted")


@pytest.mark.parametrize("word", ["3", "-1", "1.5", "nan", "99999999999999999999999", "inf"])
def test_a_class_without_a_name_is_refused_with_its_place(folder, word):
    (folder / "07.txt").write_text(f"{GOOD_LINE}\n{word} 0.5 0.5 0.5 0.5\n")
    (folder / "09.txt").write_text(f"{word} 0.5 0.5 0.5 0.5\n")
    message = refused(folder)
    assert "x.data cannot be used, 2 errors" in message
    assert f"{folder / '07.txt'}:2: expected a class of 0..2, got {word}" in message
    assert f"{folder / '09.txt'}:1: expected a class of 0..2" in message


def test_classes_without_a_name_can_be_left_out_and_do_not_count_as_loss(folder):
    for number in range(20):
        (folder / f"{number:02d}.txt").write_text(f"{GOOD_LINE}\n9 0.5 0.5 0.5 0.5\n")
    annotations = read(folder, ignore_unknown=True)
    assert found(annotations)["object of a class without name"][:2] == ("skipped", 20)
    assert annotations.num_boxes == NUM_IMAGES


def test_a_missing_label_file_and_an_empty_one_are_background_and_counted_apart(folder):
    (folder / "03.txt").unlink()
    (folder / "04.txt").write_text("")
    (folder / "05.txt").write_text("\n  \n")
    annotations = read(folder)
    assert len(annotations) == NUM_IMAGES
    assert annotations.num_boxes == NUM_IMAGES - 3
    assert found(annotations) == {
        "image without a label file": ("accepted", 1, (str(folder / "03.png"),)),
        "image without objects": ("noted", 2, (str(folder / "04.png"), str(folder / "05.png"))),
    }
    assert annotations.source_xyxy(3).shape == (0, 4)


def test_a_data_set_without_any_label_file_is_refused(folder):
    for path in folder.glob("*.txt"):
        path.unlink()
    message = refused(folder)
    assert f"none of its {NUM_IMAGES} images has a label file" in message
    assert f"expected {folder / '00.txt'} for {folder / '00.png'}" in message


def test_a_label_file_that_cannot_be_read_is_refused(folder):
    (folder / "03.txt").write_bytes(b"\xff\xfe0\x00")
    (folder / "04.txt").unlink()
    (folder / "04.txt").mkdir()
    message = refused(folder)
    assert "2 errors" in message
    assert f"{folder / '03.txt'} is not UTF-8 text at byte 0" in message
    assert f"{folder / '04.txt'} cannot be read" in message


def test_a_byte_order_mark_is_not_part_of_the_first_class(folder):
    (folder / "03.txt").write_bytes(b"\xef\xbb\xbf2 0.5 0.5 0.5 0.5")
    assert read(folder).labels[3] == 2


def test_images_that_are_missing_or_unreadable_are_counted_and_left_out(folder):
    (folder / "03.png").write_text("<html>not found</html>")
    (folder / "04.png").write_bytes(b"")
    annotations = read(folder)
    kind, (outcome, count, examples) = next(iter(found(annotations).items()))
    assert (kind, outcome, count) == ("image that cannot be read", "skipped", 2)
    assert str(folder / "03.png") in examples[0]
    assert len(annotations) == NUM_IMAGES - 2
    assert annotations.image_ids.tolist() == [0, 1, 2, *range(5, NUM_IMAGES)]
    images = [ListedImage(p, f"list.txt:{i}") for i, p in enumerate([*sorted(folder.glob("*.png")), folder / "zz.png"])]
    labels = TextLabels(lambda path: path.with_suffix(".txt"), NAMES)
    listed = read_txt_labels(folder, folder, images, labels, Findings("x"))
    assert found(listed)["image file missing"] == ("skipped", 1, (f"list.txt:{NUM_IMAGES}",))


def test_more_than_a_tenth_lost_is_refused(folder):
    for number in range(4):
        (folder / f"{number:02d}.txt").write_text("1 0.5 0.5 0.5\n")
    assert f"would lose 4 of {NUM_IMAGES} boxes" in refused(folder)
    for number in range(4):
        (folder / f"{number:02d}.txt").write_text("1 41 22 10 12\n")
    assert "4 x box in pixels, expected shares of the image" in refused(folder)
    for number in range(4):
        (folder / f"{number:02d}.png").write_bytes(b"")
    assert f"would lose 4 of {NUM_IMAGES} images" in refused(folder)


def test_a_turned_photo_has_its_upright_size(folder):
    _, encoded = cv2.imencode(".jpg", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    entry = b"\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00"  # EXIF orientation 6: turn by a quarter
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + b"\0\0\0\0"
    jpeg = encoded.tobytes()
    turned = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]
    (folder / "03.png").write_bytes(turned)
    annotations = read(folder)
    assert annotations.image_hw[3].tolist() == [WIDTH, HEIGHT]
    np.testing.assert_allclose(annotations.boxes_xywh[3], [15, 0, 10, 40])


def test_polygons_become_the_boxes_around_them_where_the_format_has_them(folder):
    (folder / "03.txt").write_text("2 0.25 0.5 0.5 0.25 0.75 0.75\n0 0.1 0.1 0.2 nan 0.3 0.3\n")
    annotations = read(folder, polygons=True)
    assert found(annotations)["polygon, the box around it is taken"][:2] == ("accepted", 2)
    assert found(annotations)["box with a number that is not finite"][:2] == ("skipped", 1)
    np.testing.assert_allclose(annotations.boxes_xywh[3], [20, 10, 40, 20])
    assert found(read(folder))["line without a class and four numbers"][1] == 2


def test_an_image_listed_twice_counts_once(folder):
    path = folder / "03.png"
    images = [ListedImage(path, "list.txt:1"), ListedImage(path, "list.txt:2")]
    labels = TextLabels(lambda path: path.with_suffix(".txt"), NAMES)
    listed = read_txt_labels(folder, folder, images, labels, Findings("x"))
    assert (len(listed), found(listed)["image listed twice"]) == (1, ("skipped", 1, ("list.txt:2",)))


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["000000000139", "000000000042"], [139, 42]),  # COCO's own
        (["a", "7"], [1, 2]),
        (["07", "7"], [1, 2]),  # the same number twice
        (["1234567890123456789012", "1"], [1, 2]),  # more than 64 bits
        (["٣", "1"], [1, 2]),  # a digit, but none of a file number
    ],
)
def test_image_ids_are_the_numbers_of_the_files_where_they_can_be(tmp_path, names, ids):
    images = []
    for name in names:
        cv2.imwrite(str(tmp_path / "x.png"), np.zeros((8, 8, 3), np.uint8))
        (tmp_path / "x.png").rename(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(GOOD_LINE)
        images.append(ListedImage(tmp_path / f"{name}.png", name))
    elsewhere = tmp_path / "elsewhere"
    made = read_txt_labels(
        tmp_path, elsewhere, images, TextLabels(lambda path: path.with_suffix(".txt"), NAMES), Findings("x")
    )
    assert made.image_ids.tolist() == ids
    assert tuple(made.file_names) == tuple(str(image.path) for image in images)  # not below the root: written out


# --- names and lists -----------------------------------------------------------------------------------------------


def test_class_names_are_read_one_per_line(tmp_path):
    path = tmp_path / "x.names"
    path.write_bytes(b"\xef\xbb\xbftraffic light\r\n\r\n car \r\n\n\n")
    findings = Findings("x")
    assert read_class_names(path, findings) == ("traffic light", "class_1", "car")
    assert [p.kind for p in findings.problems] == ["class without name"]
    assert checked_names(["a", "a"], "x", findings) == ("a", "a")
    assert [p.kind for p in findings.problems] == ["class without name", "class name used twice"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "names no class"), (b"\n \n", "names no class"), (b"\xff", "not UTF-8 text"), (None, "cannot be read")],
)
@pytest.mark.parametrize("reader", [lambda p: read_class_names(p, Findings("x")), lambda p: read_image_list(p, [p])])
def test_an_unusable_list_is_refused_with_its_name(
    tmp_path: Path, reader: Callable[[Path], object], content: bytes | None, words: str
) -> None:
    path = tmp_path / "x.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        DatasetError, match=words.replace("names no class", "(names no class|lists no image)")
    ) as caught:
        reader(path)
    assert str(path) in str(caught.value)


def test_a_list_of_images_starts_where_its_images_are(tmp_path):
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / "b" / "deep" / "2.png").write_bytes(b"")
    path = tmp_path / "list.txt"
    path.write_text("deep/1.png\r\n\ndeep\\2.png\n/absolute/3.png\n")
    images = read_image_list(path, [tmp_path / "a", tmp_path / "b"])
    assert [i.path for i in images] == [tmp_path / "b/deep/1.png", tmp_path / "b/deep/2.png", Path("/absolute/3.png")]
    assert [i.place for i in images] == [f"{path}:1", f"{path}:3", f"{path}:4"]
    path.write_text("nowhere.png")
    assert read_image_list(path, [tmp_path / "a", tmp_path / "b"])[0].path == tmp_path / "a" / "nowhere.png"


def test_listed_names_that_are_invalid_are_counted(folder):
    names = [*(f"{number:02d}.png" for number in range(NUM_IMAGES)), "/", "..", "\0.png", "~nobody/x.png"]
    (folder / "list.txt").write_text("\n".join(names))
    images = read_image_list(folder / "list.txt", [folder])
    with pytest.raises(DatasetError, match=f"would lose 4 of {NUM_IMAGES + 4} images"):
        read_txt_labels(folder, folder, images, TextLabels(lambda path: path.with_suffix(".txt"), NAMES), Findings("x"))
    fewer = [image for image in images if image.path.name != ".."][: NUM_IMAGES + 2]
    made = read_txt_labels(
        folder, folder, fewer, TextLabels(lambda path: path.with_suffix(".txt"), NAMES), Findings("x")
    )
    assert len(made) == NUM_IMAGES
