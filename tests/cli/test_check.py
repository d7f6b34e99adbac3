from __future__ import annotations

import json
from pathlib import Path

import pytest

from detector.cli.main import run


@pytest.fixture
def description(tiny_shapes: Path, tmp_path: Path) -> Path:
    """Write a description of the drawn data set."""
    path = tmp_path / "data.yaml"
    lines = [
        f"{split}: {{annotations: {tiny_shapes}/annotations/{split}.json, images: {tiny_shapes}/images/{split}}}\n"
        for split in ("train", "val")
    ]
    path.write_text("name: coco\n" + "".join(lines))
    return path


@pytest.fixture
def leaking(description: Path, tiny_shapes: Path) -> Path:
    text = description.read_text().replace("/val.json", "/train.json").replace("/images/val", "/images/train")
    description.write_text(text)
    return description


def test_report_is_printed(description, capsys):
    assert run(["check", str(description), "-q"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[:3] for line in out.splitlines()[1:3]] == [["train", "12", "1"], ["val", "6", "0"]]
    assert "suggestions" in out
    assert out.splitlines()[-1].startswith(f"{description}: ")


def test_stdout_holds_only_the_json(description, capsys):
    assert run(["check", "--json", "--quick", str(description), "--split", "val"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert [split["name"] for split in plain["splits"]] == ["val"]
    assert plain["checked"] == "annotations, 6 image files, headers only"


def test_warnings_fail_only_under_strict(leaking, capsys):
    assert run(["check", str(leaking)]) == 0
    assert "[leak-exact]" in capsys.readouterr().out
    assert run(["check", str(leaking), "--strict"]) == 3


def test_error_gives_exit_code_3(description, capsys):
    description.write_text(description.read_text().replace("/val.json", "/none.json"))
    assert run(["check", str(description)]) == 3
    assert "error: val is refused [split-refused]" in capsys.readouterr().out


def test_pages_and_pictures_are_written(leaking, tmp_path, capsys):
    page, folder = tmp_path / "new" / "page.html", tmp_path / "report"
    assert run(["check", str(leaking), "--html", str(page), "--output", str(folder), "--quick"]) == 0
    assert page.read_text("utf-8").startswith("<!doctype html>")
    assert page.read_bytes() == (folder / "report.html").read_bytes()
    assert json.loads((folder / "report.json").read_text("utf-8"))["schema_version"] == 1
    assert (folder / "report.txt").read_text("utf-8") == capsys.readouterr().out
    assert (folder / "leak-exact-1.jpg").stat().st_size > 1000


def test_coco_file_and_its_images_are_a_data_set(tiny_shapes, capsys):
    annotations, images = tiny_shapes / "annotations" / "val.json", tiny_shapes / "images" / "val"
    assert run(["check", str(annotations), str(images), "--json"]) == 0
    given = json.loads(capsys.readouterr().out)
    assert run(["check", str(annotations), "--json"]) == 0  # the images are found beside it
    assert json.loads(capsys.readouterr().out) == given
    assert given["splits"][0]["num_images"] == 6


def test_configured_augmentation_is_checked(tiny_shapes, tmp_path, capsys):
    content = json.loads((tiny_shapes / "annotations" / "val.json").read_text())
    content["categories"][0]["name"], content["categories"][1]["name"] = "left", "right"
    (tmp_path / "val.json").write_text(json.dumps(content))
    words = ["check", str(tmp_path / "val.json"), str(tiny_shapes / "images" / "val"), "--json"]
    found = {}
    for override in ("augment.flip_horizontal=0.5", "augment.flip_horizontal=0"):
        assert run([*words, override]) == 0
        found[override] = [f["code"] for f in json.loads(capsys.readouterr().out)["findings"]]
    assert ["class-mirrored" in codes for codes in found.values()] == [True, False]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "expected one data set, got none"),
        (["a.yaml", "b.yaml"], 2, "expected one data set, got a.yaml, b.yaml"),
        (["none.yaml"], 2, "there is no file 'none.yaml'; check the path"),
        (["none.json"], 2, "there is no file 'none.json'; check the path"),
        (["shapes", "input.sise=3"], 2, "unknown key 'input.sise'; did you mean 'size'?"),
    ],
)
def test_error_is_one_line(words, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["check", *words]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)


def test_missing_images_are_an_error_with_the_folders_tried(tiny_shapes, tmp_path, capsys):
    path = tmp_path / "a" / "val.json"
    path.parent.mkdir()
    path.write_bytes((tiny_shapes / "annotations" / "val.json").read_bytes())
    assert run(["check", str(path)]) == 3
    assert "its images (000001.jpg, ...) are not in images, ../images, ., .., val" in capsys.readouterr().err


def test_report_that_cannot_be_written_is_an_error(description, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(["check", str(description), "--quick", "--html", str(tmp_path / "file" / "page.html")]) == 1
    assert "the report cannot be written" in capsys.readouterr().err
