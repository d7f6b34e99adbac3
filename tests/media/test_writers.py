from __future__ import annotations

import csv
import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.data.csv_boxes import read_csv
from detector.data.problems import Findings
from detector.data.txt_labels import ListedImage, TextLabels, read_txt_labels
from detector.errors import ConfigError, MediaError
from detector.evaluation.results_file import read_results
from detector.evaluation.scoring_arrays import GroundTruth
from detector.inference.predictor import Prediction
from detector.media.drawing import draw_detections
from detector.media.images import read_image, write_image
from detector.media.sources import FrameOrigin, ImageSource, VideoSource
from detector.media.video import read_header
from detector.media.writers import (
    FORMATS,
    CocoWriter,
    CropWriter,
    CsvWriter,
    JsonLinesWriter,
    JsonWriter,
    MotWriter,
    PictureWriter,
    TxtWriter,
    record_of,
)
from detector.structures.types import Detection, Detections

NAMES, IDS = ("Zürich", "猫/犬", 'a, "b"\n'), (7, 3, 90)
HW = (60, 80)
BOXES = [[10.25, 5.5, 40.125, 50.0625], [0.0, 0.0, 80.0, 60.0], [79.5, 59.25, 80.0, 60.0]]


def found_on(name: str, boxes: list[list[float]] = BOXES, image_id: int | None = None) -> Prediction:
    rows, columns = np.mgrid[: HW[0], : HW[1]]
    image = np.stack([rows * 4, columns * 3, rows + columns], axis=2).astype(np.uint8)  # JPEG keeps what is smooth
    num = len(boxes)
    detections = Detections(
        torch.tensor(boxes).reshape(-1, 4),
        torch.linspace(0.9, 0.5, num),
        torch.arange(num) % 3,
        HW,
        NAMES,
        IDS,
    )
    return Prediction(ImageSource(name, Path(name), image_id), detections, None, image, ())


UNREAD = Prediction(ImageSource("gone.jpg", Path("gone.jpg")), None, "gone.jpg cannot be read: no such file")


def write_all(writer, *found: Prediction) -> None:
    for number, one in enumerate(found):
        writer.add(one, f"image{number}")
    writer.close()


# --- records ----------------------------------------------------------------------------------------------


def test_record_has_every_detection_in_order_or_an_error() -> None:
    record = record_of(found_on("a/b.jpg"))
    assert list(record) == ["source", "height", "width", "detections"]
    assert (record["source"], record["height"], record["width"]) == ("a/b.jpg", 60, 80)
    corners = [10.25, 5.5, 40.12, 50.06]
    assert record["detections"][0] == {
        "name": "Zürich",
        "label": 0,
        "category_id": 7,
        "score": 0.9,
        **dict(zip(("x1", "y1", "x2", "y2"), corners, strict=True)),
        "class": "Zürich",  # the names of version 0.1
        "box_xyxy": corners,
    }
    assert record_of(UNREAD) == {"source": "gone.jpg", "error": UNREAD.error, "detections": []}


def test_record_of_a_frame_has_its_number_and_time() -> None:
    one = found_on("video.mp4")
    frame = FrameOrigin(VideoSource("video.mp4", Path("video.mp4")), 12, 0.4800000001, 25.0)
    source = ImageSource("video.mp4", frame=frame)
    record = record_of(Prediction(source, one.detections, None, one.image, ("odd",)))
    assert list(record)[:4] == ["source", "frame", "time_s", "warnings"]
    assert (record["frame"], record["time_s"], record["warnings"]) == (12, 0.48, ["odd"])


def test_names_of_a_box_are_the_same_in_python_json_csv_and_pandas(tmp_path: Path) -> None:
    found = found_on("a.jpg")
    assert found.detections is not None
    fields = [field.name for field in dataclasses.fields(Detection)]
    (box, *_) = found.detections.boxes
    record = record_of(found)["detections"][0]
    assert list(record)[: len(fields)] == fields
    writer = CsvWriter(tmp_path)
    write_all(writer, found)
    with writer.path.open(encoding="utf-8", newline="") as file:
        row = next(csv.DictReader(file))
    assert list(row)[3 : 3 + len(fields)] == fields
    for name in fields:
        value = getattr(box, name)
        assert str(record[name]) == row[name]
        assert record[name] == (pytest.approx(value, abs=0.0051) if isinstance(value, float) else value)
    old = [row["class"], *(row[side] for side in ("xmin", "ymin", "xmax", "ymax"))]  # names of version 0.1
    assert old == [row["name"], *(row[side] for side in ("x1", "y1", "x2", "y2"))]
    table = pytest.importorskip("pandas") and found.detections.to_pandas()
    assert set(table.columns) == set(fields)


# --- formats ---------------------------------------------------------------------------------------------------------


def test_json_and_json_lines_have_the_same_records(tmp_path: Path) -> None:
    found = found_on("a.jpg"), UNREAD, found_on("ü猫.jpg", [])
    for writer in (JsonWriter(tmp_path), JsonLinesWriter(tmp_path)):
        write_all(writer, *found)
    wanted = [record_of(one) for one in found]
    assert json.loads((tmp_path / "predictions.json").read_text("utf-8")) == wanted
    lines = (tmp_path / "predictions.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == wanted


@pytest.mark.parametrize("name", ["jsonl", "csv"])
def test_files_of_lines_are_complete_after_each_image(name: str, tmp_path: Path) -> None:
    writer = FORMATS[name](tmp_path, NAMES, IDS)
    for number in range(1, 4):
        writer.add(found_on("a.jpg", BOXES[:1]), "a")
        text = writer.path.read_bytes().decode("utf-8")
        assert text.endswith("\n")
        assert text.count("\n") == number + (3 - 2 if name == "csv" else 0)  # and the line of names


def test_failed_write_keeps_the_old_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "predictions.json").write_text("old")
    writer = JsonWriter(tmp_path)
    writer.add(found_on("a.jpg"), "a")
    assert (tmp_path / "predictions.json").read_text() == "old"

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        MediaError, match=r"predictions.json cannot be written: No space left on device; check the disk"
    ):
        writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.json"]
    assert (tmp_path / "predictions.json").read_text() == "old"


def test_coco_results_are_read_back_exactly_without_unlisted_categories(tmp_path: Path) -> None:
    writer = CocoWriter(tmp_path, (7, 90))
    write_all(writer, found_on("a.jpg", image_id=5), UNREAD, found_on("no id.jpg"))
    truth = GroundTruth(
        image_ids=(5,),
        category_ids=(7, 90),
        class_names=("x", "y"),
        image_hw=np.array([HW]),
        image_ranks=np.zeros(0, np.int64),
        category_ranks=np.zeros(0, np.int64),
        boxes_xywh=np.zeros((0, 4)),
        areas=np.zeros(0),
        is_crowd=np.zeros(0, np.bool_),
    )
    results, problems = read_results(writer.path, truth)
    assert problems == ()
    x1, y1, x2, y2 = np.array(BOXES).T
    wanted = np.stack([x1, y1, x2 - x1, y2 - y1], axis=1)[[0, 2]]
    np.testing.assert_array_equal(results.boxes_xywh, wanted)
    np.testing.assert_array_equal(results.scores, torch.linspace(0.9, 0.5, 3).double().numpy()[[0, 2]])


def test_csv_is_read_back_by_the_csv_reader(tmp_path: Path) -> None:
    found = found_on(str(tmp_path / "a b.jpg")), UNREAD, found_on(str(tmp_path / "empty ü.jpg"), [])
    for one in (found[0], found[2]):
        assert one.image is not None
        write_image(Path(one.source.name), one.image)
    writer = CsvWriter(tmp_path)
    write_all(writer, *found)
    with writer.path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [*NAMES, ""]
    assert rows[0]["score"] == "0.9"
    assert rows[-1]["image"].endswith("empty ü.jpg")
    splits, notes = read_csv(writer.path, tmp_path)
    annotations, _ = splits["train"]
    assert len(annotations) == 2
    assert annotations.num_boxes == 3
    assert any("category_id, score" in note for note in notes)


def test_csv_has_columns_for_frames_on_request(tmp_path: Path) -> None:
    frame = FrameOrigin(VideoSource("v.mp4"), 3, 0.12, 25.0)
    one = found_on("a.jpg")
    writer = CsvWriter(tmp_path, has_frames=True)
    write_all(writer, Prediction(ImageSource("v.mp4", frame=frame), one.detections, None, one.image), one)
    with writer.path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["frame"], row["time_s"]) for row in rows] == [("3", "0.12")] * 3 + [("", "")] * 3


def on_frame(video: VideoSource, index: int, track_ids: list[int]) -> Prediction:
    one = found_on("v.mp4", BOXES[: len(track_ids)])
    source = ImageSource(video.name, frame=FrameOrigin(video, index, index / 25, 25.0))
    return Prediction(source, one.detections, None, one.image, (), np.array(track_ids, np.int64))


def test_tracks_are_in_records_and_csv(tmp_path: Path) -> None:
    followed = on_frame(VideoSource("v.mp4"), 4, [7, 2])
    assert [found["track_id"] for found in record_of(followed)["detections"]] == [7, 2]
    assert "track_id" not in record_of(found_on("a.jpg"))["detections"][0]
    writer = CsvWriter(tmp_path, has_frames=True, has_tracks=True)
    write_all(writer, followed, on_frame(VideoSource("v.mp4"), 5, []))
    rows = list(csv.DictReader(writer.path.open(encoding="utf-8", newline="")))
    assert [row["track_id"] for row in rows] == ["7", "2", ""]


def test_each_video_has_a_file_in_the_format_of_motchallenge(tmp_path: Path) -> None:
    writer = MotWriter(tmp_path)
    videos = [VideoSource("a/v.mp4"), VideoSource("b/V.mp4"), VideoSource("rtsp://host/x?y")]
    unread = Prediction(ImageSource("v.mp4", frame=FrameOrigin(videos[0], 1, None, 25.0)), None, "no")
    write_all(writer, on_frame(videos[0], 0, [7, 2]), unread, on_frame(videos[0], 2, [7]), UNREAD)
    write_all(writer, on_frame(videos[1], 0, []), on_frame(videos[2], 0, [1]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["V_2.mot.csv", "host_x_y.mot.csv", "v.mot.csv"]
    assert (tmp_path / "V_2.mot.csv").read_text() == ""
    assert (tmp_path / "v.mot.csv").read_text().splitlines() == [
        "1,7,11.25,6.50,29.88,44.56,0.90000,-1,-1,-1",
        "1,2,1.00,1.00,80.00,60.00,0.50000,-1,-1,-1",
        "3,7,11.25,6.50,29.88,44.56,0.90000,-1,-1,-1",
    ]


def test_labels_are_read_back_by_the_label_reader(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "images").mkdir()
    found = found_on("a.jpg"), UNREAD, found_on("b.jpg", [])
    writer = TxtWriter(tmp_path / "out", NAMES)
    write_all(writer, *found)
    assert sorted(path.name for path in writer.path.iterdir()) == ["image0.txt", "image2.txt"]
    assert (writer.path / "image2.txt").read_bytes() == b""
    assert (tmp_path / "out/classes.txt").read_text("utf-8").splitlines() == ["Zürich", "猫/犬", 'a, "b"']
    image = tmp_path / "images/image0.png"
    assert found[0].image is not None
    write_image(image, found[0].image)
    listed, findings = [ListedImage(image, str(image))], Findings("labels")
    labels = TextLabels(lambda image: writer.path / f"{image.stem}.txt", NAMES)
    annotations = read_txt_labels(tmp_path, tmp_path, listed, labels, findings)
    assert findings.problems == ()
    assert annotations.labels.tolist() == [0, 1, 2]
    x1, y1, x2, y2 = np.array(BOXES).T
    wanted = np.stack([x1, y1, x2 - x1, y2 - y1], axis=1)
    np.testing.assert_allclose(annotations.boxes_xywh, wanted, atol=1e-6)  # 8 digits of 80 pixels


def test_crops_are_the_pixels_of_each_box_in_the_folder_of_its_class(tmp_path: Path) -> None:
    writer = CropWriter(tmp_path, (*NAMES, "..", "ZÜRICH", ""))
    found = found_on("a.jpg")
    write_all(writer, found, UNREAD)
    made = {
        path.relative_to(tmp_path / "crops").as_posix(): read_image(path).shape for path in writer.path.rglob("*.jpg")
    }
    assert made == {
        "Zürich/image0_1.jpg": (46, 31, 3),
        "猫_犬/image0_2.jpg": (60, 80, 3),
        "a, _b__/image0_3.jpg": (1, 1, 3),
    }
    assert writer._folders[3:] == ["_3", "ZÜRICH_4", "_5"]
    assert found.image is not None
    for name, part in (("猫_犬/image0_2.jpg", found.image), ("Zürich/image0_1.jpg", found.image[5:51, 10:41])):
        assert np.abs(read_image(writer.path / name).astype(int) - part).max() < 8


def test_picture_has_the_size_of_its_image(tmp_path: Path) -> None:
    writer = PictureWriter(tmp_path)
    for found in (found_on("a.jpg"), found_on("b.jpg", [])):
        assert found.image is not None
        assert found.detections is not None
        writer.write(found.source, draw_detections(found.image, found.detections))
    writer.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "b.jpg"]
    assert read_image(tmp_path / "a.jpg").shape == (*HW, 3)


def test_frames_are_added_to_the_video_of_their_source(tmp_path: Path) -> None:
    writer = PictureWriter(tmp_path, [tmp_path / "v.mp4"], codec="MJPG", stride=5)
    videos = [VideoSource("a/v.mp4"), VideoSource("b/v.mp4")]
    for video in videos:
        for index in (0, 5, 10):
            writer.write(on_frame(video, index, []).source, np.zeros((48, 64, 3), np.uint8))
    writer.close()
    assert writer.videos == [tmp_path / "v_2.avi", tmp_path / "v_3.avi"]  # v.mp4 is a source
    headers = [read_header(path) for path in writer.videos]
    assert [(h.num_frames, h.fps, h.image_hw) for h in headers] == [(3, 5, (48, 64))] * 2
    with pytest.raises(ConfigError, match="a codec of mp4v, avc1, MJPG, VP90"):
        PictureWriter(tmp_path, codec="h265")


def test_error_in_closing_one_video_still_closes_the_others(tmp_path: Path) -> None:
    closed = []

    class Writer:
        warnings = notes = ()

        def close(self) -> None:
            closed.append(self)
            raise MediaError(f"writer {len(closed)}")

    pictures = PictureWriter(tmp_path)
    for number in range(3):
        video = VideoSource(str(number), tmp_path)
        pictures._writers[number] = (video, Writer())  # type: ignore[assignment]  # stands in for one
    with pytest.raises(MediaError):
        pictures.close()
    assert len(closed) == 3


# --- existing files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "name"), [(TxtWriter, "labels"), (CropWriter, "crops")])
def test_folder_with_files_of_the_user_is_refused(make: type, name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    make(tmp_path, NAMES)  # an empty folder is accepted
    (tmp_path / name / "000001.txt").write_text("drawn by hand")
    with pytest.raises(MediaError, match=f"{name} holds files, which are not overwritten; choose another folder"):
        make(tmp_path, NAMES)
    assert (tmp_path / name / "000001.txt").read_text() == "drawn by hand"


def test_name_that_is_not_utf_8_is_written_escaped(tmp_path: Path) -> None:
    one = found_on("odd\udcff.jpg")
    for name in ("json", "jsonl", "csv"):
        writer = FORMATS[name](tmp_path, NAMES, IDS)
        write_all(writer, one)
        assert "odd" in writer.path.read_bytes().decode("utf-8")
