"""Darknet's own `detector map`, reproduced with our network, image arithmetic, suppression and label reader."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.data.coco import CocoAnnotations
from detector.data.darknet_lists import DarknetDataset
from detector.media.images import read_image
from detector.structures.boxes import area_xyxy
from detector.structures.letterbox import Letterbox
from detector.structures.selection import SelectConfig, select
from detector.tasks.detection_model import load_model


@pytest.fixture
def darknet_map(data_folder: Path) -> Path:
    """Twelve images with labels, weights, and what Darknet's CPU build measured in nine settings."""
    folder = data_folder.parent / "darknet-golden" / "map"
    if not folder.is_dir():
        pytest.skip("no folder darknet-golden/map beside DETECTOR_TEST_DATA")
    return folder


def overlap(box: np.ndarray, truths: np.ndarray) -> np.ndarray:
    top_left, bottom_right = np.maximum(box[:2], truths[:, :2]), np.minimum(box[2:], truths[:, 2:])
    shared = (bottom_right - top_left).clip(0).prod(axis=1)
    return shared / (area_xyxy(box) + area_xyxy(truths) - shared)


def average_precision(is_true: list[bool], num_truths: int, points: int) -> float:
    """Darknet's AP of detections by descending score: all ranks (points 0), or at 11 or 101 recalls."""
    hits = np.cumsum(is_true)
    recall, precision = hits / max(num_truths, 1), hits / (np.arange(len(hits)) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if points == 0:
        return float((np.diff(np.concatenate([[0], recall])) * envelope).sum())
    wanted = np.arange(points) / (points - 1)
    return float(np.mean([precision[recall >= r].max(initial=0) for r in wanted]))


def darknets_aps(found: list[tuple[float, int, int, np.ndarray]], truth: CocoAnnotations, run: dict) -> list[float]:
    """AP of each class: a detection belongs to the truth it overlaps most, whether or not that one is taken."""
    aps = []
    for label in range(len(truth.class_names)):
        taken: set[tuple[int, int]] = set()
        is_true = []
        for _, image, _, box in sorted((d for d in found if d[2] == label), key=lambda d: -d[0]):
            rows = np.flatnonzero(truth.labels_of(image) == label)
            # The boxes as written, not clipped to the image, because Darknet does not clip them either.
            xywh = truth.boxes_xywh[truth.offsets[image] : truth.offsets[image + 1]][rows]
            overlaps = overlap(box, np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1))
            best = int(overlaps.argmax()) if len(rows) else -1
            matched = best >= 0 and overlaps[best] > run["iou_thresh"]
            is_true.append(matched and (image, best) not in taken)
            if matched:
                taken.add((image, best))
        aps.append(average_precision(is_true, int((truth.labels == label).sum()), run["points"]))
    return aps


@pytest.mark.parametrize("number", range(9))
def test_average_precisions_equal_those_that_darknet_printed(darknet_map, tmp_path, number):
    run = json.loads((darknet_map / "expected.json").read_text())[number]
    images = sorted(darknet_map.glob("im*.png"))
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in images))
    (tmp_path / "x.data").write_text(f"classes=3\nvalid=list.txt\nnames={darknet_map / 'n.names'}\n")
    (tmp_path / "m.cfg").write_text(run["cfg"])
    truth = DarknetDataset(DarknetDataset.Config(tmp_path / "x.data")).split("val")
    assert truth.num_boxes == run["truths"]

    loaded = load_model(darknet_map / "m.weights", cfg=str(tmp_path / "m.cfg"), names=darknet_map / "n.names")
    assert loaded.file.class_names == truth.class_names
    config = loaded.config
    assert (config.input.arithmetic, config.input.canvas_hw) == ("darknet", (64, 64))
    assert config.input.fit == ("letterbox" if run["letter_box"] else "stretch")
    lowest = float(np.nextafter(np.float32(0.005), np.float32(1)))  # Darknet keeps scores above 0.005
    keep = SelectConfig(lowest, 0.45, 10**6, nms=config.evaluate.nms, nms_beta=config.evaluate.nms_beta)
    model, found = loaded.model.eval(), []
    for index in range(len(truth)):
        image = read_image(truth.path(index))
        fitted = Letterbox.fit(image.shape[:2], config.input.canvas_hw, config.input.fit, arithmetic="darknet")
        canvas = torch.from_numpy(fitted.apply(image)).permute(2, 0, 1)[None]
        with torch.no_grad():
            boxes, scores = model.decode(model(canvas))
        kept = select(boxes[0], scores[0], keep, fitted.resized_hw)
        source_xyxy = fitted.boxes_to_source(kept[0]).double().numpy()
        found += [(float(s), index, int(c), b) for b, s, c in zip(source_xyxy, kept[1], kept[2], strict=True)]
    assert len(found) == run["detections"]
    aps = darknets_aps(found, truth, run)
    assert [round(100 * ap, 2) for ap in aps] == run["AP_percent"]
    # As many digits as Darknet prints; but the grey of a letterbox gives boxes of several images the same score to the
    # last bit, whose order Darknet's sort leaves open: shuffling them moves the mean by up to 2e-6.
    assert float(np.mean(aps)) == pytest.approx(run["mAP"], abs=3e-6 if run["letter_box"] else 1e-6)
