from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.config import registry
from detector.data.dataset import DatasetConfig
from detector.data.doctor.orphan_checks import check_orphans

PNG = cv2.imencode(".png", np.zeros((48, 64, 3), np.uint8))[1].tobytes()
XML = (
    "<annotation><filename>{}.png</filename><object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin>"
    "<xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
)


def found(root: Path) -> list[tuple[str, str, int, tuple[str, ...]]]:
    name, keys = registry.claim_of(root, DatasetConfig)
    dataset = registry.build(registry.find_config_class(DatasetConfig, name)(**{k: Path(v) for k, v in keys.items()}))
    splits = {name: dataset.split(name) for name in dataset.split_names()}
    return [
        (each.code, each.severity, each.counts["all"], tuple(Path(example).name for example in each.examples))
        for each in check_orphans(splits)
    ]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for stem in "abcd":
        (tmp_path / "images" / f"{stem}.png").write_bytes(PNG)
    return tmp_path


def test_text_labels_without_an_image_are_a_note_and_most_of_them_a_warning(pictures: Path) -> None:
    (pictures / "labels").mkdir()
    for stem in "abc":
        (pictures / "labels" / f"{stem}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (pictures / "labels" / "classes.txt").write_text("cat\n")
    assert found(pictures) == []
    (pictures / "labels" / "x.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    assert found(pictures) == [("label-without-image", "note", 1, ("x.txt",))]
    for stem in "rstuvw":
        (pictures / "labels" / f"{stem}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    assert [each[:3] for each in found(pictures)] == [("label-without-image", "warning", 7)]


def test_images_that_no_split_lists_and_images_of_other_types_are_named(pictures: Path) -> None:
    (pictures / "Annotations").mkdir()
    for stem in "ab":
        (pictures / "Annotations" / f"{stem}.xml").write_text(XML.format(stem))
    (pictures / "images" / "e.heic").write_bytes(b"ftypheic")
    assert found(pictures) == [
        ("image-unlisted", "note", 2, ("c.png", "d.png")),
        ("image-type-unread", "warning", 1, ("e.heic",)),
    ]
