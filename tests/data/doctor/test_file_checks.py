from __future__ import annotations

import cv2
import numpy as np
import pytest

from detector.data.doctor.file_checks import content_groups

# The APP1 segment of a JPEG with only an orientation, 6.
EXIF = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0" + bytes(4)
ORIENTATION_6 = b"\xff\xe1" + (len(EXIF) + 2).to_bytes(2, "big") + EXIF


def only(report, code):
    (finding,) = report.findings
    assert finding.code == code
    return finding


def test_image_that_cannot_be_decoded_is_reported(folder):
    path = folder.path("train", "train1.png")
    path.write_bytes(path.read_bytes()[:-2000])
    finding = only(folder.report(), "image-unreadable")
    assert finding.severity == "warning"
    assert "train1.png cannot be decoded" in finding.examples[0]
    assert folder.codes(decode=False) == []  # its header is complete


def test_file_that_is_not_an_image_is_reported_without_decoding(folder):
    folder.path("train", "train1.png").write_text("<html>not found</html>")
    finding = only(folder.report(decode=False), "image-unreadable")
    assert "not an image (HTML)" in finding.examples[0]


def test_split_without_a_readable_image_is_an_error(folder):
    for entry in folder.images["val"]:
        folder.path("val", entry["file_name"]).write_bytes(b"")
    assert only(folder.report(), "image-unreadable").severity == "error"


def test_image_size_that_differs_from_the_annotations_is_reported(folder, paint):
    cv2.imwrite(str(folder.path("val", "val1.png")), paint("val1.png", 300, 240))
    finding = only(folder.report(), "image-size")
    assert finding.examples == ("val val1.png: 300 x 240 in the file, 320 x 240 in the annotations",)
    assert len(finding.offenders) == 1


def test_exchanged_width_and_height_are_reported(folder):
    image = folder.images["train"][2]
    image["width"], image["height"] = image["height"], image["width"]
    for box in folder.boxes["train"]:
        if box["image_id"] == image["id"]:
            box["bbox"][0] /= 2
    assert folder.codes() == ["image-exchanged"]


def test_rotated_images_are_a_note(folder, paint):
    ok, encoded = cv2.imencode(".jpg", paint("turned", 240, 320))
    assert ok
    folder.add("train", "turned.jpg", paint("turned"))
    folder.path("train", "turned.jpg").write_bytes(b"\xff\xd8" + ORIENTATION_6 + encoded.tobytes()[2:])
    finding = only(folder.report(), "image-orientation")
    assert (finding.severity, finding.examples) == ("note", ("train turned.jpg: orientation 6",))


def test_mix_of_channels_and_bit_depths_is_a_note(folder, paint):
    cv2.imwrite(str(folder.path("train", "train0.png")), paint("train0.png")[..., 0])
    cv2.imwrite(str(folder.path("train", "train1.png")), paint("train1.png").astype(np.uint16) * 256)
    finding = only(folder.report(), "image-mix")
    assert finding.title == "images of several kinds: 7 colour, 1 grey or palette, 1 colour, 16 bits"
    assert finding.severity == "note"


def test_jpeg_without_end_marker_but_with_all_pixels_is_a_note(folder, paint):
    ok, encoded = cv2.imencode(".jpg", paint("a"))
    assert ok
    folder.add("train", "a.jpg", paint("a"))
    folder.path("train", "a.jpg").write_bytes(encoded.tobytes()[:-2])
    assert "JPEG without end marker" in only(folder.report(), "image-odd").examples[0]


def test_copy_in_another_split_is_a_leak(folder):
    folder.add("val", "copy.png")
    folder.path("val", "copy.png").write_bytes(folder.path("train", "train4.png").read_bytes())
    for decode in (True, False):
        finding = only(folder.report(decode=decode), "leak-exact")
        assert finding.examples == ("val copy.png = train train4.png",)
        assert dict(finding.counts) == {"val": 1}
        assert [o.split for o in finding.offenders] == ["train", "val"]


def test_copy_in_the_same_split_is_a_duplicate_with_or_without_the_same_boxes(folder):
    identifier = folder.add("train", "copy.png")
    folder.path("train", "copy.png").write_bytes(folder.path("train", "train4.png").read_bytes())
    assert only(folder.report(), "image-duplicate-labels").examples == ("train copy.png = train train4.png",)
    theirs = [box["bbox"] for box in folder.boxes["train"] if box["image_id"] == 5]
    ours = [box for box in folder.boxes["train"] if box["image_id"] == identifier]
    for box, bbox in zip(ours, theirs, strict=True):
        box["bbox"] = bbox
    assert only(folder.report(), "image-duplicate").severity == "warning"


def test_resized_recompressed_copy_is_a_near_duplicate(folder, paint):
    small = cv2.resize(paint("train3.png"), (208, 156), interpolation=cv2.INTER_AREA)
    for split, code, severity in (("train", "image-near-duplicate", "note"), ("val", "leak-near", "warning")):
        folder.images[split].append({"id": 50, "file_name": "small.jpg", "width": 208, "height": 156})
        cv2.imwrite(str(folder.path(split, "small.jpg")), small, [cv2.IMWRITE_JPEG_QUALITY, 60])
        finding = only(folder.report(), code)
        assert finding.severity == severity
        assert finding.examples == (f"{split} small.jpg = train train3.png",)
        assert folder.codes(decode=False) == []
        folder.images[split].pop()
        folder.path(split, "small.jpg").unlink()


def test_flat_images_are_not_near_duplicates(folder):
    for grey in (10, 90, 200):
        folder.add("train", f"flat{grey}.png", np.full((240, 320, 3), grey, np.uint8))
    assert folder.codes() == []


def test_files_with_the_same_content_are_grouped(tmp_path):
    contents = [b"aa", b"bb", b"aa", b"", b"ccc", b"", b"bb", b"aa"]
    paths = [tmp_path / str(number) for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    assert content_groups([*paths, tmp_path / "missing"]) == [[0, 2, 7], [1, 6]]


@pytest.mark.parametrize("num_threads", [1, 8])
def test_order_of_findings_does_not_depend_on_threads(folder, monkeypatch, num_threads):
    monkeypatch.setattr("os.cpu_count", lambda: num_threads)
    for name in ("train5.png", "train1.png", "train3.png"):
        folder.path("train", name).write_bytes(name.encode())
    examples = only(folder.report(), "image-unreadable").examples
    assert [f"train{i}.png" in e for i, e in zip((1, 3, 5), examples, strict=True)] == [True] * 3
