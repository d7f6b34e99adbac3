"""Prediction over a folder of odd files: one record each, skipped or warned of, and every output inside its folder."""

from __future__ import annotations

import io
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detector.cli.main import run
from detector.media.images import read_image, write_image

Y, X = np.mgrid[0:48, 0:64]
PICTURE = np.stack([X * 3, Y * 4, X + Y], axis=-1).astype(np.uint8)


def encode(form: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(PICTURE).save(out, form, **options)
    return out.getvalue()


JPEG = encode("JPEG", quality=95)
OTHER = [Image.fromarray(255 - PICTURE)]
# (name, content, outcome, words)
FILES: list[tuple[str, bytes, str, str]] = [
    ("good.jpg", JPEG, "OK", ""),
    ("png named.jpg", encode("PNG"), "OK", ""),
    ("späce #1 100%.png", encode("PNG"), "OK", ""),
    ("图片.png", encode("PNG"), "OK", ""),
    ("\udcff no UTF-8.png", encode("PNG"), "OK", ""),
    ("empty.jpg", b"", "S", "it is empty (0 bytes)"),
    ("page.jpg", b"<!doctype html><html></html>", "S", "not an image (HTML)"),
    ("half.jpg", JPEG[: len(JPEG) // 2], "S", "truncated"),
    ("no end.jpg", JPEG[:-2], "W", "is a JPEG without end marker"),
    ("frames.gif", encode("GIF", save_all=True, append_images=OTHER), "W", "has more than one frame"),
    ("pages.tif", encode("TIFF", save_all=True, append_images=OTHER), "W", "has more than one page"),
    ("bomb.bmp", encode("BMP")[:18] + struct.pack("<ii", 60000, 60000) + encode("BMP")[26:], "S", "pixels > limit of"),
    ("dot.bmp", encode("BMP")[:18] + struct.pack("<ii", 1, 1) + encode("BMP")[26:], "OK", ""),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content, *_ in FILES:
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "in/deep").mkdir()
    (tmp_path / "in/deep/good.jpg").write_bytes(JPEG)  # same name as another image
    (tmp_path / "in/link.jpg").symlink_to("gone.jpg")
    return tmp_path / "in"


def test_every_file_has_one_record_with_its_outcome_and_message(
    folder: Path, trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["predict", str(trained.weights), str(folder), "--save-dir", str(out)]) == 0
    records = {
        Path(r["source"]).relative_to(folder).as_posix(): r for r in json.loads((out / "predictions.json").read_text())
    }
    told = capsys.readouterr().err
    assert set(records) == {name for name, *_ in FILES} | {"deep/good.jpg", "link.jpg"}
    assert "there is no such file" in records["link.jpg"]["error"]
    for name, _, outcome, words in FILES:
        record = records[name]
        found = "S" if "error" in record else "W" if "warnings" in record else "OK"
        said = record.get("error") or " ".join(record.get("warnings", ()))
        assert (found, words in said) == (outcome, True), (name, said)
        assert said == "" or f"{'skipped' if found == 'S' else 'warning'}: {said}" in told
    pictures = {path.name for path in out.iterdir()} - {"predictions.json"}
    read = [name for name, _, outcome, _ in FILES if outcome != "S"]
    assert pictures == {f"{Path(name).stem}.jpg" for name in read} | {"good_2.jpg"}
    assert all(read_image(out / name).ndim == 3 for name in pictures)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_warning_fails_under_strict(folder: Path, trained: Any, tmp_path: Path) -> None:
    words = ["predict", str(trained.weights), "--save-dir", str(tmp_path / "out"), "--quiet"]
    # The frames of an animation count where it is named alone; beside other images its first frame does.
    for names, code in ((["good.jpg"], 0), (["no end.jpg"], 5), (["frames.gif"], 0), (["good.jpg", "frames.gif"], 5)):
        paths = [str(folder / name) for name in names]
        assert run([*words, *paths, "--strict"]) == code
        assert run([*words, *paths]) == 0


@pytest.fixture
def exchanged(trained: Any, tmp_path: Path) -> list[str]:
    """Return the override of a split with one image rotated and one larger than its annotation file says."""
    images = Path(shutil.copytree(trained.images, tmp_path / "images"))
    document = json.loads(trained.annotations.read_text())
    for entry, (width, height) in zip(document["images"], ((64, 32), (80, 80)), strict=False):
        write_image(images / entry["file_name"], np.zeros((height, width, 3), np.uint8))
    first = document["images"][0]
    first.update(width=32, height=64)
    document["annotations"] = [entry for entry in document["annotations"] if entry["image_id"] != first["id"]]
    (tmp_path / "x.json").write_text(json.dumps(document))
    split = f"{{annotations: {tmp_path}/x.json, images: {images}}}"
    return [f"data={{name: coco, train: {split}, val: {split}}}"]


def test_evaluation_warns_of_exchanged_sizes_and_skips_wrong_sizes(
    exchanged: list[str], trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(trained.weights), *exchanged, "--save-dir", str(tmp_path / "out")]
    assert run(words) == 0
    told = capsys.readouterr().err
    assert "has 64 x 32 pixels, but its annotation file says 32 x 64: width and height are assumed to be" in told
    assert "has 80 x 80 pixels, but its annotation file says 64 x 64; its boxes are not rescaled" in told
    assert run([*words, "--strict"]) == 5


def test_training_warns_of_exchanged_sizes_and_skips_wrong_sizes(
    exchanged: list[str], tiny_words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in tiny_words if not word.startswith("data=")] + exchanged
    # One of six images is more than the share that may be skipped.
    assert run(["train", *words, "train.iterations=4", "train.evaluations=1"]) == 3
    told = capsys.readouterr().err
    assert "warning: " in told
    assert "width and height are assumed to be exchanged" in told
    assert "1 of 6 training images cannot be read" in told
    assert "says 64 x 64; its boxes are not rescaled" in told
