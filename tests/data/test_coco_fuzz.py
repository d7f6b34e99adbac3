"""Mutated COCO files give consistent annotations or a `DatasetError`, quickly and in bounded memory."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.data.coco import CocoAnnotations, read_coco
from detector.errors import DatasetError
from detector.media.images import write_image

resource = pytest.importorskip("resource")  # Windows has none

NUM_IMAGES = 12
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 1.5, 3.0, 1e300, -0.0, 2**63, -(2**64), 10**400, float("nan"), float("inf"),
    "", "x", "7", " 3 ", "3.0", "../x", "/etc", "a\nb", "\0", "\ud800", "é图🚗", "http://x", [], {}, [1], [None] * 4,
    [5, 6, 7, 8], [1e308] * 4, [[1, 2, 3, 4, 5, 6]], {"size": [60, 80], "counts": [0, 4800]},
    {"size": [60, 80], "counts": "0Pm4"}, {"id": 3}, [[[[]]]],
]  # fmt: skip
KEYS = [
    "id",
    "image_id",
    "category_id",
    "bbox",
    "area",
    "iscrowd",
    "ignore",
    "segmentation",
    "name",
    "file_name",
    "width",
]
TOKENS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b'"',
    b"\\",
    b"0",
    b"e9",
    b"-",
    b".",
    b"null",
    b" ",
    b"\n",
    b"\0",
    b"\xff",
]
TOKENS += [b"1e999", b"NaN", b'"id": 1, ', b"\\ud800", b"[" * 5000, b"9" * 5000, b"\xef\xbb\xbf", b"true", b"//"]


def sound() -> dict[str, Any]:
    return {
        "info": {"year": 2017},
        "images": [{"id": 5 + i, "file_name": f"{i}.png", "height": 60, "width": 80} for i in range(NUM_IMAGES)],
        "annotations": [
            {"id": 1 + i, "image_id": 5 + i % NUM_IMAGES, "category_id": (3, 7)[i % 2], "bbox": [5.25, 6, 10, 20]}
            | {"area": 200, "iscrowd": 0, "segmentation": [[5, 6, 15, 6, 15, 26]]}
            for i in range(2 * NUM_IMAGES)
        ],
        "categories": [{"id": 7, "name": "car"}, {"id": 3, "name": "bus"}],
    }


def changed(document: dict[str, Any], random: np.random.Generator) -> None:
    """One change to a document that stays one."""

    def pick(choices: Any) -> Any:
        return copy.deepcopy(choices[int(random.integers(len(choices)))])

    section = pick(["images", "annotations", "annotations", "categories"])
    kind = random.integers(10)
    if not isinstance(document.get(section), list) or not document[section] or kind == 0:
        document[section] = pick([*VALUES, [pick(VALUES)]])
        return
    entries = document[section]
    at = int(random.integers(len(entries)))
    entry = entries[at]
    if kind == 1 or not isinstance(entry, dict):
        entries[at] = pick([*VALUES, entries[0]])
    elif kind == 2:
        entries.append(dict(entry))
    elif kind == 3:
        entry.pop(pick(list(entry) or [""]), None)
    elif kind == 4 and isinstance(entry.get("bbox"), list) and entry["bbox"]:
        entry["bbox"][int(random.integers(len(entry["bbox"])))] = pick(VALUES)
    elif kind == 5 and isinstance(entry.get("bbox"), list):
        entry["bbox"] = [float(v) for v in random.normal(20, 60, int(random.integers(3, 6)))]
    else:
        entry[pick(KEYS)] = pick(VALUES)


def damaged(text: bytes, random: np.random.Generator) -> bytes:
    """A few bytes of a file changed."""
    data = bytearray(text)
    for _ in range(int(random.integers(1, 4))):
        at = int(random.integers(len(data) + 1))
        if random.random() < 0.6:
            data[at : at + int(random.integers(2))] = TOKENS[int(random.integers(len(TOKENS)))]
        elif random.random() < 0.9:
            del data[at : at + int(random.integers(1, 40))]
        else:
            del data[at:]
    return bytes(data)


def check(coco: CocoAnnotations) -> None:
    assert len(coco) == len(coco.image_ids) == len(coco.image_hw) == len(coco.offsets) - 1 > 0
    assert coco.offsets[-1] == coco.num_boxes == len(coco.areas) == len(coco.boxes_xywh) == len(coco.is_crowd)
    assert len(set(coco.image_ids.tolist())) == len(coco)
    assert np.isfinite(coco.boxes_xywh).all()
    assert np.isfinite(coco.areas).all()
    assert ((coco.labels >= 0) & (coco.labels < len(coco.class_names))).all()
    for index in range(len(coco)):
        source_xyxy = coco.source_xyxy(index)
        assert (source_xyxy[:, 2:] > source_xyxy[:, :2]).all()
        assert coco.path(index).name
    json.dumps(coco.ground_truth(), allow_nan=False).encode()
    assert all(str(problem).isprintable() for problem in coco.problems)


@pytest.mark.parametrize("num_files", [2000, pytest.param(100_000, marks=pytest.mark.nightly)])
def test_mutated_annotation_files_are_read_or_refused(num_files: int, tmp_path: Path) -> None:
    random = np.random.default_rng(num_files)
    images, path = tmp_path / "images", tmp_path / "x.json"
    images.mkdir()
    for i in range(NUM_IMAGES):
        write_image(images / f"{i}.png", np.zeros((60, 80, 3), np.uint8))
    num_parsed = num_read = 0
    slowest_s, before_kb = 0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(num_files):
        document = sound()
        for _ in range(int(random.integers(0 if number % 3 == 0 else 1, 4))):
            changed(document, random)
        content = json.dumps(document, indent=None if number % 2 else 1).encode()
        if number % 3 == 0:
            content = damaged(content, random)
        path.write_bytes(content)
        start_s, coco, said = time.process_time(), None, ""
        try:
            coco = read_coco(path, images, ignore_unknown=number % 2 == 0)
        except DatasetError as error:
            said = str(error)
        slowest_s = max(slowest_s, time.process_time() - start_s)
        num_parsed += "is not JSON" not in said and "is no COCO file" not in said
        if coco is None:
            assert str(path) in said, content
            assert said.isprintable(), content
        else:
            num_read += 1
            check(coco)
    assert num_parsed > 0.2 * num_files
    assert num_read > 0.05 * num_files
    assert slowest_s < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 2**18
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "x.json"]
    assert len(list(images.iterdir())) == NUM_IMAGES
