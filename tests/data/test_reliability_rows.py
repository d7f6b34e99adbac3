"""Reaction of the COCO reader to every kind of odd file, row by row: E refused, S skipped, W warned, OK read.

A row is a sound data set of forty images with one thing changed. Whatever is not OK says so, with its place.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as runs

from detector.data.coco import CocoAnnotations
from detector.errors import DatasetError

NUM_IMAGES = 40  # enough for one fault to stay below the share that may be skipped
HEIGHT, WIDTH = 60, 80


Change = Callable[[dict[str, Any]], Any]


def put(section: str, **values: Any) -> Change:
    return lambda document: document[section][3].update(values)


def drop(section: str, *keys: str) -> Change:
    return lambda document: [document[section][3].pop(key) for key in keys]


def every(section: str, change: Callable[[dict[str, Any]], Any]) -> Change:
    return lambda document: [change(entry) for entry in document[section]]


def text(old: str, new: str) -> Change:
    """A change of the file's text, which no dictionary can hold."""

    def change(document: dict[str, Any]) -> str:
        whole = json.dumps(document, ensure_ascii=False)
        assert old in whole
        return whole.replace(old, new, 1)

    return change


def whole(content: str | bytes) -> Change:
    return lambda document: content


def coded(document: dict[str, Any], **how: Any) -> str:
    return json.dumps(document, **how)


def to_corners(entry: dict[str, Any]) -> None:
    x, y, width, height = entry["bbox"]
    entry["bbox"] = [x, y, x + width, y + height]


def to_shares(entry: dict[str, Any]) -> None:
    x, y, width, height = entry["bbox"]
    entry["bbox"] = [x / WIDTH, y / HEIGHT, width / WIDTH, height / HEIGHT]


PLACE = "annotation 4 of 003.png"
NO_BOX = f"1 x annotation without four numbers for a box, skipped ({PLACE})"
NOT_FINITE = f"1 x box with a number that is not finite, skipped ({PLACE})"
WRITTEN_ODDLY = "identifier written as text or with a decimal point, accepted (%s[3])"
LOST = "1 x image without annotations, noted (003.png)"
RUNS = runs.encode(np.asfortranarray(np.pad(np.ones((20, 30), np.uint8), ((6, 34), (5, 45)))))
TEXT_RUNS = {"size": [HEIGHT, WIDTH], "counts": RUNS["counts"].decode()}
LIST_RUNS = {"size": [HEIGHT, WIDTH], "counts": [5 * 60 + 6, 20, *[40, 20] * 29, 34 + 45 * 60]}
NO_SIZE = "1 x image without width and height, read from its file, accepted (003.png)"
OUTSIDE = "of images[3] leads out of the folder of images (data.allow_outside=true permits it)"

# (row, change, outcome, words)
ROWS: list[tuple[str, Change, str, str]] = [
    ("1 missing file", put("images", file_name="gone.png"), "S", "1 x image file missing, skipped (gone.png)"),
    ("23 folder", put("images", file_name="."), "E", "file_name '.' names a folder, expected an image"),
    ("25 fraction", put("images", width=79.4), "W", "size that is not a whole number, read from its file, accepted"),
    ("25 other fraction", put("images", width=78.5), "S", "1 x image of another size than its file, skipped (003.png)"),
    ("27 truncated", lambda document: coded(document, indent=1)[:-700], "E", "instances.json is not JSON, line "),
    ("27 empty", whole(""), "E", "is empty, line 1, column 1"),
    ("27 space", whole(" \n\t"), "E", "is empty, line 1, column 1"),
    ("27 HTML", whole("<html>"), "E", "is not JSON, line 1, column 1"),
    ("27 CSV", whole("id,name\n1,car"), "E", "is not JSON, line 1, column 1"),
    ("27 trailing text", lambda document: coded(document) + " x", "E", "Extra data"),
    ("27 two documents", lambda document: coded(document) + "\n{}", "E", "is not JSON, line 2, column 1: Extra data"),
    ("27 NUL", lambda document: coded(document) + "\0", "E", "Extra data"),
    ("27 a comma too many", text('"categories": [', '"categories": [,'), "E", "Expecting value"),
    ("27 single quotes", text('"images"', "'images'"), "E", "Expecting property name enclosed in double quotes"),
    ("27 gzip", whole(b"\x1f\x8b\x08" + bytes(30)), "E", "is compressed (gzip); unpack it"),
    ("27 zip", whole(b"PK\x03\x04" + bytes(30)), "E", "is compressed (zip); unpack it"),
    ("27 UTF-16", lambda document: coded(document).encode("utf-16"), "E", "UTF-16 or UTF-32, not in UTF-8; save it"),
    ("27 Latin-1", lambda document: coded(document).replace("car", "cär").encode("latin-1"), "E", "in UTF-8, at byte"),
    ("28 mark", lambda document: b"\xef\xbb\xbf" + coded(document).encode(), "OK", ""),
    ("29 list", whole("[1, 2]"), "E", "an object with the keys images, categories, annotations, got a list (of res"),
    ("29 list of results", lambda document: coded(document["annotations"]), "E", "got a list (of results?)"),
    ("29 {}", whole("{}"), "E", "3 errors: the key 'images' is missing (a COCO file has the keys images, categories,"),
    ("29 null", whole("null"), "E", "categories, annotations, got None"),
    ("29 text", whole('"images"'), "E", "got 'images'"),
    ("30 no images", lambda document: document.pop("images"), "E", "the key 'images' is missing"),
    ("30 empty images", lambda document: document.update(images=[]), "E", "the list 'images' is empty"),
    ("30 no categories", lambda document: document.pop("categories"), "E", "the key 'categories' is missing"),
    (
        "30 odd categories",
        lambda document: document.update(categories={"3": "car"}),
        "E",
        "'categories' must be a list",
    ),
    ("30 odd image", lambda document: document["images"].append([5]), "E", "images[40] must be an object, got [5]"),
    ("31 no annotations", lambda document: document.pop("annotations"), "E", "the key 'annotations' is missing"),
    ("31 null", lambda document: document.update(annotations=None), "E", "'annotations' must be a list, got None"),
    ("31 odd annotation", lambda document: document["annotations"].append(7), "E", "annotations[40] must be an object"),
    ("32 background", lambda document: document["annotations"].pop(3), "OK", LOST),
    ("33 3, 7, 90", lambda document: None, "OK", ""),
    ("33 from 0", lambda document: document["categories"].append({"id": 0, "name": "bus"}), "OK", ""),
    ("33 negative", lambda document: document["categories"].append({"id": -1, "name": "bus"}), "OK", ""),
    (
        "34 id",
        lambda document: document["categories"].append({"id": 3, "name": "x"}),
        "E",
        "category id 3 is used twice",
    ),
    (
        "34 name",
        lambda document: document["categories"].append({"id": 4, "name": "car"}),
        "W",
        "1 x category name used t",
    ),
    ("35 no name", lambda document: document["categories"].append({"id": 4}), "W", "(category 4, now class_4)"),
    ("35 blank", lambda document: document["categories"].append({"id": 4, "name": " "}), "W", "now class_4"),
    ("35 number", lambda document: document["categories"].append({"id": 4, "name": 5}), "W", "now class_4"),
    ("35 half a character", text('"car"', '"\\ud800"'), "W", "(category 3, now class_3)"),
    ("36 Unicode", lambda document: document["categories"][1].update(name="自動車 ü 🚗"), "OK", ""),
    ("37 image id twice", put("images", id=100), "E", "image id 100 is used twice (000.png and 003.png)"),
    ("37 as text", put("images", id="100"), "E", "image id 100 is used twice"),
    ("37 one file twice", put("images", file_name="002.png"), "W", "1 x image file listed twice, accepted (002.png)"),
    ("38 annotation id twice", put("annotations", id=1), "W", "1 x annotation id used twice, accepted (annotation 1)"),
    ("39 id 0", put("annotations", id=0), "OK", ""),
    ("40 no id", drop("annotations", "id"), "OK", ""),
    ("40 null", put("annotations", id=None), "OK", ""),
    ("41 text", put("images", id="103"), "W", WRITTEN_ODDLY % "id of images"),
    ("41 decimal point", put("annotations", image_id=103.0), "W", WRITTEN_ODDLY % "image_id of annotations"),
    ("41 text category", put("annotations", category_id="3"), "W", WRITTEN_ODDLY % "category_id of annotations"),
    ("41 10.5", put("images", id=10.5), "E", "id of images[3] must be a whole number, got 10.5"),
    ("41 true", put("images", id=True), "E", "id of images[3] must be a whole number, got True"),
    ("41 true category", put("annotations", category_id=True), "E", "category_id of annotations[3] must be a whole"),
    (
        "41 letters",
        put("annotations", image_id="a"),
        "E",
        "image_id of annotations[3] must be a whole number, got 'a'",
    ),
    (
        "41 list",
        put("annotations", image_id=[103]),
        "E",
        "image_id of annotations[3] must be a whole number, got [103]",
    ),
    ("41 NaN", put("images", id=float("nan")), "E", "must be a whole number, got nan"),
    ("41 1e300", put("images", id=1e300), "E", "must be a whole number, got 1e+300"),
    ("41 null", put("images", id=None), "E", "id of images[3] must be a whole number, got None"),
    ("41 missing", drop("annotations", "image_id"), "E", "image_id of annotations[3] is missing"),
    ("41 odd own id", put("annotations", id="x"), "E", "id of annotations[3] must be a whole number, got 'x'"),
    ("42 annotation", put("annotations", id=2**64), "OK", ""),
    ("42 image", lambda d: [put("images", id=2**70)(d), put("annotations", image_id=2**70)(d)], "OK", ""),
    (
        "42 category",
        lambda d: [d["categories"][1].update(id=2**70), every("annotations", _to_large)(d)],
        "OK",
        "",
    ),
    (
        "43 image",
        put("annotations", image_id=9),
        "S",
        "1 x annotation of an unlisted image, skipped (annotation 4 of im",
    ),
    ("43 category", put("annotations", category_id=8), "E", f"'categories' does not list: 8 (by {PLACE})"),
    ("44 no width", put("annotations", bbox=[5, 6, 0, 9]), "S", f"box of zero width or height, skipped ({PLACE})"),
    ("45 negative", put("annotations", bbox=[5, 6, 9, -9]), "S", f"box of negative width or height, skipped ({PLACE})"),
    ("46 NaN", put("annotations", bbox=[float("nan"), 6, 9, 9]), "S", NOT_FINITE),
    ("46 infinite", put("annotations", bbox=[5, 6, float("inf"), 9]), "S", NOT_FINITE),
    ("46 1e999", text("5.25", "1e999"), "S", "1 x box with a number that is not finite, skipped (annotation 1 of 000"),
    ("46 many digits", put("annotations", bbox=[5, 6, 9, 10**400]), "S", NOT_FINITE),
    ("47 three", put("annotations", bbox=[5, 6, 9]), "S", NO_BOX),
    ("47 five", put("annotations", bbox=[5, 6, 9, 9, 9]), "S", NO_BOX),
    ("47 none", put("annotations", bbox=[]), "S", NO_BOX),
    ("47 null", put("annotations", bbox=None), "S", NO_BOX),
    ("47 texts", put("annotations", bbox=["5", "6", "9", "9"]), "S", NO_BOX),
    ("47 text", put("annotations", bbox="5 6 9 9"), "S", NO_BOX),
    ("47 object", put("annotations", bbox={"x": 5, "y": 6, "w": 9, "h": 9}), "S", NO_BOX),
    ("47 nested", put("annotations", bbox=[[5, 6, 9, 9]]), "S", NO_BOX),
    ("47 truth", put("annotations", bbox=[5, 6, 9, True]), "S", NO_BOX),
    (
        "48 partly outside",
        put("annotations", bbox=[70, 6, 30, 20]),
        "W",
        f"box partly outside the image, accepted ({PLACE})",
    ),
    (
        "49 wholly outside",
        put("annotations", bbox=[80, 6, 9, 9]),
        "S",
        f"box wholly outside the image, skipped ({PLACE})",
    ),
    ("50 xyxy", every("annotations", to_corners), "W", "20 x box that looks like xyxy, expected xywh, accepted"),
    ("51 normalised", every("annotations", to_shares), "W", "40 x box that looks normalised to 0..1, expected pixels"),
    ("52 crowd", put("annotations", iscrowd=1), "OK", ""),
    ("52 true", put("annotations", iscrowd=True), "OK", ""),
    ("52 text", put("annotations", iscrowd="1"), "E", "iscrowd of annotations[3] must be 0 or 1, got '1'"),
    ("52 2", put("annotations", iscrowd=2), "E", "iscrowd of annotations[3] must be 0 or 1, got 2"),
    ("53 ignore", put("annotations", ignore=1), "W", f"1 x ignore flag, which has no effect, accepted ({PLACE})"),
    ("54 no iscrowd", drop("annotations", "iscrowd"), "OK", ""),
    ("55 no area", drop("annotations", "area"), "W", f"width x height is taken, accepted ({PLACE})"),
    ("55 NaN", put("annotations", area=float("nan")), "W", "annotation without area, width x height is taken"),
    ("55 text", put("annotations", area="9"), "W", "annotation without area, width x height is taken"),
    ("55 negative", put("annotations", area=-9), "W", "annotation without area, width x height is taken"),
    (
        "56 polygons",
        put("annotations", bbox=None, segmentation=[[5, 6, 35, 6, 35, 26]]),
        "W",
        "the box around its polygons",
    ),
    (
        "56 text runs",
        put("annotations", bbox=[], segmentation=TEXT_RUNS),
        "W",
        "the box around its run lengths is taken",
    ),
    (
        "56 list runs",
        put("annotations", bbox=[], segmentation=LIST_RUNS),
        "W",
        "the box around its run lengths is taken",
    ),
    ("56 odd runs", put("annotations", bbox=[], segmentation=TEXT_RUNS | {"counts": "?"}), "S", NO_BOX),
    ("56 empty mask", put("annotations", bbox=[], segmentation=LIST_RUNS | {"counts": [4800]}), "S", NO_BOX),
    ("56 two corners", put("annotations", bbox=[], segmentation=[[1, 2, 3, 4]]), "S", NO_BOX),
    ("57 up", put("images", file_name="../003.png"), "E", f"file_name '../003.png' {OUTSIDE}"),
    ("57 up inside", put("images", file_name="a/../../003.png"), "E", OUTSIDE),
    ("57 absolute", put("images", file_name="/etc/passwd"), "E", OUTSIDE),
    ("57 drive", put("images", file_name="C:\\x.png"), "E", OUTSIDE),
    ("57 backslashes", put("images", file_name="..\\x.png"), "E", OUTSIDE),
    ("57 share", put("images", file_name="\\\\host\\x.png"), "E", OUTSIDE),
    (
        "57 address",
        put("images", file_name="http://x/y.png"),
        "S",
        "given as a URL, which is not downloaded, skipped",
    ),
    ("57 lines", put("images", file_name="a\nb\u202e.png"), "S", r"image file missing, skipped (a\nb\u202e.png)"),
    ("58 no width", drop("images", "width"), "W", NO_SIZE),
    ("58 0", put("images", height=0), "W", NO_SIZE),
    ("58 text", put("images", width="80"), "W", NO_SIZE),
    ("58 NaN", put("images", width=float("nan")), "W", NO_SIZE),
    ("59 no name", drop("images", "file_name"), "E", "file_name of images[3] (id 103) is missing or not a text"),
    ("59 empty", put("images", file_name=""), "E", "file_name of images[3] (id 103) is missing"),
    ("59 number", put("images", file_name=7), "E", "file_name of images[3] (id 103) is missing or not a text"),
    ("60 deep", lambda d: coded(d)[:-1] + ', "info": ' + "[" * 100_000 + "]" * 100_000 + "}", "E", "nested too deep"),
    ("60 deep objects", whole('{"images": ' * 100_000), "E", "nested too deep"),
    ("60 deep box", text("[5.25,", "[" * 100_000 + "5,"), "E", "nested too deep"),
    ("60 digits", text("[5.25,", "[" + "9" * 5000 + ","), "E", "is no COCO file"),
    (
        "61 annotation",
        text('{"id": 4,', '{"id": 99, "id": 4,'),
        "W",
        "the last is taken, accepted (id in annotations[3])",
    ),
    (
        "61 section",
        text('{"images"', '{"images": [], "images"'),
        "W",
        "the last is taken, accepted (images in the file)",
    ),
]


def _to_large(entry: dict[str, Any]) -> None:
    if entry["category_id"] == 3:
        entry["category_id"] = 2**70


def outcome(read_changed: Any, change: Change) -> tuple[str, str, CocoAnnotations | None]:
    try:
        coco = read_changed(change)
    except DatasetError as error:
        return "E", str(error), None
    outcomes = {problem.outcome for problem in coco.problems}
    found = "S" if "skipped" in outcomes else "W" if "accepted" in outcomes else "OK"
    return found, "; ".join(str(problem) for problem in coco.problems), coco


def test_every_row_has_a_known_outcome() -> None:
    assert len({name for name, *_ in ROWS}) == len(ROWS)
    assert {int(name.split()[0]) for name, *_ in ROWS} == {1, 23, 25, *range(27, 62)}
    assert all(words for name, _, wanted, words in ROWS if wanted != "OK")


@pytest.mark.parametrize(("change", "wanted", "words"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_every_row_has_its_outcome_and_its_message(
    change: Change, wanted: str, words: str, tmp_path: Path, read_changed: Any
) -> None:
    found, said, coco = outcome(read_changed, change)
    assert (found, words in said) == (wanted, True), said
    assert said.isprintable()
    assert ("instances.json" in said) == (wanted == "E")
    assert [path.name for path in tmp_path.iterdir()] == ["instances.json"]  # nothing is written
    if coco is not None:
        num_lost = 1 if wanted == "S" or "without annotations" in said else 0
        assert coco.num_boxes == NUM_IMAGES - num_lost
        assert NUM_IMAGES - num_lost <= len(coco) <= NUM_IMAGES
        assert np.isfinite(coco.boxes_xywh).all()
        assert coco.image_hw.tolist() == [[HEIGHT, WIDTH]] * len(coco)
        truth = coco.ground_truth()
        assert [entry["id"] for entry in truth["annotations"]] == list(range(1, coco.num_boxes + 1))
        assert {entry["image_id"] for entry in truth["annotations"]} <= set(coco.image_ids.tolist())
        json.dumps(truth, allow_nan=False)
