"""First commands on something that is no data set, or not the expected one: each answer is one short line to go on."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detector.cli.main import run

JPEG = cv2.imencode(".jpg", np.zeros((48, 64, 3), np.uint8))[1].tobytes()
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 20], "area": 600, "iscrowd": 0}],
    "categories": [{"id": 1, "name": "cat"}],
}
LABEL = "0 0.5 0.5 0.25 0.25\n"


def put(name: str, content: str | bytes | dict | list = b"") -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, (str, bytes)):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def putter(*files: tuple[str, Any]) -> Callable[[], None]:
    def write() -> None:
        for name, content in files:
            put(name, content)

    return write


def zipped(name: str, *members: tuple[str, bytes]) -> Callable[[], None]:
    def write() -> None:
        with zipfile.ZipFile(name, "w") as archive:
            for member, content in members:
                archive.writestr(member, content)

    return write


def linked_tar() -> None:
    with tarfile.open("set.tar", "w") as archive:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info, io.BytesIO())


def annexed() -> None:
    put("annex/labels/a.txt", LABEL)
    Path("annex/images").mkdir()
    Path("annex/images/a.jpg").symlink_to("../.git/annex/objects/a.jpg")


IMAGES = [(f"{folder}/{name}.jpg", JPEG) for folder in ("cats", "dogs") for name in "ab"]
XML = "<annotation><filename>a.jpg</filename><object><name>cat</name></object></annotation>"
# What there is, the data set that is given, and what the answer says.
WRONG: list[tuple[str, Callable[[], None], str, str]] = [
    ("missing file", putter(), "set.zip", "there is no file 'set.zip'; check the path"),
    ("missing name", putter(), "mine", "there is no file or folder 'mine', and no dataset of that name; check"),
    ("misspelt folder", putter(("datasets/a.txt", "")), "datsets", "; did you mean 'datasets'?"),
    ("other case", putter(("Data/a.txt", "")), "data/", "there is no file or folder 'data/'; did you mean 'Data'?"),
    ("misspelt file", putter(("set/data.yaml", "")), "set/dta.yaml", "did you mean 'set/data.yaml'?"),
    ("missing parent", putter(("set/a.txt", "")), "set/train/x.json", "because 'set' has no 'train'; check the path"),
    (
        "empty folder",
        lambda: Path("set").mkdir(),
        "set",
        "set: the folder is empty, expected a data set; give a folder",
    ),
    ("no images", putter(("set/readme.txt", "hello")), "set", "got no image, but 1 .txt (readme.txt is text)"),
    ("images only", putter(("set/a.jpg", JPEG)), "set", "got 1 image without annotations that can be read; add the"),
    ("zip of images", zipped("a.zip", ("a.jpg", JPEG)), "a.zip", "a.zip: expected images and annotations, got 1 image"),
    ("damaged zip", putter(("a.zip", b"PK\3\4junk")), "a.zip", "a.zip cannot be unpacked, it is damaged or no archive"),
    (
        "web page",
        putter(("a.zip", "<!doctype html>404")),
        "a.zip",
        "a.zip: expected an archive, got a web page; download it again",
    ),
    ("evil zip", zipped("a.zip", ("../../a.jpg", JPEG)), "a.zip", "'../../a.jpg' in it leads out of the folder"),
    ("link in tar", linked_tar, "set.tar", "'a.jpg' in it is a link or a device"),
    ("empty file", putter(("a.json", "")), "a.json", "a.json: the file is empty, expected a data set"),
    ("PDF", putter(("a.pdf", b"%PDF-1.7")), "a.pdf", "expected a data set, got a PDF; give a folder, zip or file"),
    ("results", putter(("r.json", [{"image_id": 1, "score": 1}])), "r.json", "got a list of results; give it to detec"),
    ("other JSON", putter(("x.json", {"foo": 1})), "x.json", "got JSON of an unknown format (keys foo); expected COCO"),
    (
        "cut JSON",
        putter(("a.jpg", JPEG), ("x.json", json.dumps(COCO)[:-9])),
        "x.json",
        "x.json is not JSON, line 1, column 2",
    ),
    ("UTF-16", putter(("x.json", "{}".encode("utf-16"))), "x.json", "got text in UTF-16; save it as UTF-8"),
    ("table", putter(("x.csv", "a,b\n1,2\n")), "x.csv", "got a table with the columns a,b; name the columns of image"),
    ("TFRecord", putter(("x.tfrecord", b"\1\0\0")), "x.tfrecord", "got a TFRecord; export it as COCO or YOLO"),
    ("TFRecords", putter(("set/x.tfrecord", b"\1\0")), "set", "(x.tfrecord is a TFRecord); export it as COCO or YOLO"),
    ("pickle", putter(("x.pkl", b"\x80\4")), "x.pkl", "got a pickle, which can hold code and is not opened; export"),
    ("image", putter(("a.jpg", JPEG)), "a.jpg", "got an image; give its folder, with annotations; to detect"),
    ("video", putter(("a.mp4", b"\0\0\0\x18ftyp")), "a.mp4", "got a video; label its frames first; to detect objects"),
    ("model", putter(("a.pt", b"PK")), "a.pt", "got a model file; give it as the model, and the data set as data"),
    ("LFS file", putter(("a.json", POINTER)), "a.json", "a.json is a Git LFS pointer, not the file itself; fetch"),
    ("LFS images", putter(("set/a.jpg", POINTER), ("set/a.txt", LABEL)), "set", "a.jpg is a Git LFS pointer"),
    ("annex", annexed, "annex", "images/a.jpg is a link to a file that does not exist; fetch the files (git annex get"),
    ("stale paths", putter(("s/data.yaml", "train: /home/x/y\nnames: [a]\n")), "s", "y, which is not in "),
    (
        "classes",
        putter(*IMAGES),
        ".",
        "got folders of classes: 4 images, 2 classes; it has classes of whole images, use",
    ),
    ("RAR", putter(("a.rar", b"Rar!\x1a\7\1\0")), "a.rar", "got a RAR archive; unpack it and give the folder"),
    ("far images", putter(("s/x.json", COCO)), "s/x.json", "its images (a.jpg, ...) are not in images, ../images, ."),
    ("XML", putter(("a.xml", XML)), "a.xml", "got one XML file; give the folder that holds it and the images"),
    ("orphans", putter(("s/images/a.jpg", JPEG), ("s/labels/b.txt", LABEL)), "s", "none of its 1 images has a label"),
    (
        "no names",
        putter(("s/data.yaml", "train: images\nnc:\n"), ("s/images/a.jpg", JPEG)),
        "s",
        "s/data.yaml:2: nc: expected the number of classes, got",
    ),
    (
        "notebook",
        putter(("a.ipynb", {"cells": []})),
        "a.ipynb",
        "got a notebook; give a folder, zip or file with images",
    ),
    ("gzip", putter(("a.json.gz", b"\x1f\x8b\x08")), "a.json.gz", "got a gzip file; unpack it and give the file in it"),
]


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def answer(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the only line of the answer to a command that fails."""
    code = run(words)
    captured = capsys.readouterr()
    assert code in (2, 3), captured.err
    *before, last = captured.err.splitlines()
    assert captured.out == ""
    assert all(line.startswith(("a.zip: unp", "set.tar: unp", "s: ", "x.json: ")) for line in before), captured.err
    assert len(last.replace(str(Path.cwd()), "")) <= 220, len(last)
    return last


@pytest.mark.parametrize(("there", "given", "says"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_answer_to_a_wrong_data_set_says_what_it_is(
    there: Callable[[], None], given: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    there()
    found = answer(["train", "mish-n", f"data={given}"], capsys)
    assert says in found
    assert "Traceback" not in found


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("photos/a.txt", "", "a folder"),
        ("photos.zip", "", "a data set"),
        ("photos.yaml", "train: images\nnc: 1\n", "the description of a data set"),
    ],
)
def test_data_in_place_of_a_configuration_leads_to_the_whole_command(
    name: str, content: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put(name, content)
    word = name.partition("/")[0]
    expected = f"{word}: expected a configuration, got {what}; give detector train mish-n data={word}"
    assert answer(["train", word], capsys) == f"detector train: {expected}"
