from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detector.cli.main import run
from detector.data.coco import read_coco
from detector.evaluation.coco_metrics import score_results
from detector.media.images import read_image


@pytest.fixture
def images(tiny_shapes: Path, tmp_path: Path) -> Path:
    """Copy six valid images to a folder that a test may change."""
    return Path(shutil.copytree(tiny_shapes / "images/val", tmp_path / "images"))


def predict(trained: Any, folder: Path, *words: str) -> tuple[int, list[dict[str, Any]]]:
    """Return exit code and records, which are empty if no file was written."""
    code = run(["predict", str(trained.weights), *words, "--save-dir", str(folder), "--quiet"])
    path = folder / "predictions.json"
    return code, json.loads(path.read_text()) if path.exists() else []


# --- predict ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["none.jpg", "no/such/folder", "*.none"])
def test_single_missing_source_ends_with_exit_code_3(
    name: str, trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, records = predict(trained, tmp_path / "out", str(tmp_path / name))
    assert (code, records) == (3, [])
    assert str(tmp_path / name) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_single_unreadable_source_ends_with_exit_code_3_and_a_record(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"<html></html>")
    code, records = predict(trained, tmp_path / "out", str(tmp_path / "a.jpg"))
    assert code == 3
    assert "not an image (HTML)" in records[0]["error"]
    assert "none of 1 image could be read" in capsys.readouterr().err


@pytest.mark.parametrize(("strict", "code"), [((), 0), (("--strict",), 5)])
def test_missing_source_among_others_has_a_record_with_the_error(
    strict: tuple[str, ...], code: int, trained: Any, images: Path, tmp_path: Path
) -> None:
    words = [str(images / "000002.jpg"), str(tmp_path / "none.jpg"), str(images / "000001.jpg")]
    found, records = predict(trained, tmp_path / "out", *words, *strict)
    assert found == code
    assert [record["source"] for record in records] == words
    assert ["error" in record for record in records] == [False, True, False]
    assert "none.jpg cannot be read: there is no such file" in records[1]["error"]
    assert records[1]["detections"] == []
    assert sorted(path.name for path in (tmp_path / "out").glob("*.jpg")) == ["000001.jpg", "000002.jpg"]


def test_several_missing_sources_end_with_exit_code_3(trained: Any, tmp_path: Path) -> None:
    words = [str(tmp_path / name) for name in ("a.jpg", "b.jpg")]
    code, records = predict(trained, tmp_path / "out", *words)
    assert code == 3
    assert [record["source"] for record in records] == words


def test_images_with_the_same_name_get_separate_pictures(trained: Any, images: Path, tmp_path: Path) -> None:
    for folder, source in (("one", "000001.jpg"), ("two", "000002.jpg"), ("two/deep", "000003.jpg")):
        (tmp_path / "many" / folder).mkdir(parents=True)
        shutil.copy(images / source, tmp_path / "many" / folder / "picture é.jpg")
    shutil.copy(images / "000004.jpg", tmp_path / "many/one/picture é_2.png")
    code, records = predict(trained, tmp_path / "out", str(tmp_path / "many"), "--confidence", "1")
    assert (code, len(records)) == (0, 4)
    written = {path.name for path in (tmp_path / "out").glob("*.jpg")}
    assert written == {"picture é.jpg", "picture é_2.jpg", "picture é_3.jpg", "picture é_4.jpg"}
    pictures = [read_image(tmp_path / "out" / name) for name in sorted(written)]
    assert all((a != b).any() for i, a in enumerate(pictures) for b in pictures[:i])


def test_source_in_the_folder_of_results_is_not_overwritten(trained: Any, images: Path) -> None:
    before = {path.name: path.read_bytes() for path in images.iterdir()}
    code, records = predict(trained, images, str(images))
    assert (code, len(records)) == (0, 6)
    assert {name: (images / name).read_bytes() for name in before} == before
    assert len(list(images.glob("*_2.jpg"))) == 6


def test_missing_annotated_images_are_reported_and_fail_under_strict(
    trained: Any, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(trained.annotations.read_text())
    for number in range(10, 20):  # enough images that one missing image is below the limit
        shutil.copy(images / "000001.jpg", images / f"{number}.jpg")
        content["images"].append({"id": number, "file_name": f"{number}.jpg", "width": 64, "height": 64})
    content["images"].append({"id": 99, "file_name": "gone.jpg", "width": 64, "height": 64})
    (tmp_path / "truth.json").write_text(json.dumps(content))
    listed = ["--annotations", str(tmp_path / "truth.json"), "--format", "coco", "--save-dir", str(tmp_path / "out")]
    words = ["predict", str(trained.weights), str(images), *listed]
    assert run(words) == 0
    assert "1 x image file missing, skipped (gone.jpg)" in capsys.readouterr().err
    assert run([*words, "--strict"]) == 5
    data = f"data.val={{annotations: {tmp_path}/truth.json, images: {images}}}"
    measure = ["evaluate", str(trained.weights), data, "--save-dir", str(tmp_path / "out")]
    assert run(measure) == 0
    assert "1 x image file missing, skipped (gone.jpg)" in capsys.readouterr().err
    assert run([*measure, "--strict"]) == 5


# --- evaluate and train ----------------------------------------------------------------------------------------------


def test_damaged_image_in_evaluation_is_counted_and_listed(
    trained: Any, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"data.val={{annotations: {trained.annotations}, images: {images}}}"
    words = ["evaluate", str(trained.weights), data, "--save-dir", str(tmp_path / "out"), "--json"]
    assert run(words) == 0
    intact = json.loads(capsys.readouterr().out)
    records = json.loads((tmp_path / "out" / "results.json").read_text())
    truth = read_coco(trained.annotations, images)
    ap_without = {
        image: score_results(truth.ground_truth(), [r for r in records if r["image_id"] != image]).ap
        for image in truth.image_ids.tolist()
    }
    missed = min(ap_without, key=ap_without.__getitem__)  # the image with the largest effect on AP
    damaged = images / truth.file_names[truth.image_ids.tolist().index(missed)]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    assert run(words) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert (intact["num_skipped"], found["num_skipped"]) == (0, 1)
    assert "skipped: " in captured.err
    assert f"{damaged.name} cannot be decoded" in captured.err
    assert found["num_objects"] == intact["num_objects"]  # its objects count as missed
    assert found["AP"] == ap_without[missed] < intact["AP"]
    assert run([*words, "--strict"]) == 5


def copy_of(tiny_shapes: Path, folder: Path) -> str:
    """Copy the data set; return the override that names it."""
    shutil.copytree(tiny_shapes, folder)
    return (
        f"data={{name: coco, train: {{annotations: {folder}/annotations/train.json, images: {folder}/images/train}}, "
        f"val: {{annotations: {folder}/annotations/val.json, images: {folder}/images/val}}}}"
    )


def test_damaged_image_in_training_is_counted_and_listed(
    tiny_words: list[str], tiny_shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = copy_of(tiny_shapes, tmp_path / "data")
    (tmp_path / "data/images/train/000005.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    words = ["train", *tiny_words, data, "train.iterations=2", "train.evaluations=0"]
    assert run([*words, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["num_skipped"] == 1
    assert captured.err.count("000005.jpg cannot be decoded") == 1
    assert run([*words, "--strict"]) == 5


def test_training_rejects_a_data_set_with_many_damaged_images(
    tiny_words: list[str], tiny_shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = copy_of(tiny_shapes, tmp_path / "data")
    for number in (2, 5):  # 2 of 12 are more than a tenth
        (tmp_path / f"data/images/train/{number:06d}.jpg").write_bytes(b"")
    assert run(["train", *tiny_words, data, "train.iterations=2"]) == 3
    complaint = capsys.readouterr().err
    assert "2 of 12 training images cannot be read, at most 10% may be skipped" in complaint
    assert "Traceback" not in complaint


def test_data_set_is_not_written_to(tiny_words: list[str], tiny_shapes: Path, tmp_path: Path) -> None:
    data = copy_of(tiny_shapes, tmp_path / "data")
    (tmp_path / "data/images/train/000005.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    before = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert run(["train", *tiny_words, data, "train.iterations=1"]) == 0
    best = str(tmp_path / "runs/train/weights/best.safetensors")
    assert run(["evaluate", best]) == 0
    assert run(["predict", best, str(tmp_path / "data/images")]) == 0
    after = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert after == before


def test_grey_image_is_accepted_under_strict(trained: Any, images: Path, tmp_path: Path) -> None:
    Image.open(images / "000001.jpg").convert("L").save(images / "grey.png")
    code, records = predict(trained, tmp_path / "out", str(images), "--strict")
    assert (code, len(records)) == (0, 7)


def test_missing_training_image_fails_under_strict(
    tiny_words: list[str], tiny_shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = copy_of(tiny_shapes, tmp_path / "data")
    (tmp_path / "data/images/train/000002.jpg").unlink()
    words = ["train", *tiny_words, data, "train.iterations=2", "train.evaluations=0"]
    assert run([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_skipped"] >= 1
    assert run([*words, "--strict"]) == 5
