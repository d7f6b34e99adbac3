"""Views of images: their regions and canvases, and the merging of their detections."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import Any, Literal

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from detector.errors import ConfigError
from detector.inference.predictor import Predictor
from detector.inference.views import View, Views, ViewsConfig
from detector.media.sources import ImageSource
from detector.structures.canvas import InputConfig
from detector.structures.letterbox import Letterbox
from detector.structures.selection import SelectConfig

STRIDE = 32
SELECT = SelectConfig(confidence=0.3, iou=0.7)


class Finder:
    """Runtime that detects bright rectangles on a canvas, exact to the pixel, with score 0.9."""

    num_classes: int = 2
    notes: tuple[str, ...] = ()
    precision: str = "fp32"
    selection: SelectConfig | None = None

    def __init__(self, batch_size: int = 4, most: int = 400) -> None:
        self.batch_size, self.most = batch_size, most
        self.canvases: list[tuple[int, ...]] = []

    def check_image_hw(self, image_hw: tuple[int, int]) -> None:
        if image_hw[0] % STRIDE or image_hw[1] % STRIDE:
            raise ValueError(f"sides are multiples of {STRIDE}, found {image_hw}")

    def boxes(self, canvases: np.ndarray) -> tuple[Tensor, Tensor]:
        assert len(canvases) == self.batch_size
        self.canvases.append(canvases.shape[1:3])
        boxes = torch.zeros(len(canvases), self.most, 4)
        scores = torch.zeros(len(canvases), self.most, 2)
        for row, canvas in enumerate(canvases):
            for label, plane in enumerate((canvas[..., 0], canvas[..., 1])):
                _, _, found, _ = cv2.connectedComponentsWithStats((plane > 127).astype(np.uint8))
                for number, (x, y, w, h, _) in enumerate(found[1:]):
                    place = number + label * self.most // 2
                    boxes[row, place] = torch.tensor([x, y, x + w, y + h], dtype=torch.float32)
                    scores[row, place, label] = 0.9
        return boxes, scores


def predictor(config: ViewsConfig, size: int = 64, batch_size: int = 4) -> Predictor:
    return Predictor(Finder(batch_size), InputConfig(size), ("a", "b"), (1, 2), batch_size=batch_size, views=config)


def views(config: ViewsConfig, size: int | tuple[int, int] = 64) -> Views:
    return Views(config, InputConfig(size), Finder().check_image_hw)


def picture(image_hw: tuple[int, int], objects: list[tuple[int, int, int, int, int]]) -> np.ndarray:
    """Return a dark image with a bright rectangle for each object, given by its corners and label."""
    image = np.zeros((*image_hw, 3), np.uint8)
    for x1, y1, x2, y2, label in objects:
        image[y1:y2, x1:x2, label] = 255
    return image


def found_by(made: Predictor, image: np.ndarray, select: SelectConfig = SELECT) -> list[tuple[int, ...]]:
    (found,) = made.detect([image], select)
    rows = zip(found.source_xyxy.round().int().tolist(), found.labels.tolist(), strict=True)
    return sorted((*box, label) for box, label in rows)


# --- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"tile": 31}, "tile: expected at least 32 pixels, got 31"),
        ({"overlap": 0.95}, "overlap: expected a value within 0..0.9, got 0.95"),
        ({"overlap": -0.1}, "overlap"),
        ({"scales": ()}, "scales: expected numbers"),
        ({"scales": (0.0,)}, "scales: expected numbers within 0.1..10"),
        ({"scales": (1.0, 1.0)}, "each scale once"),
        ({"iou": 1.5}, "iou: expected a value within 0..1, got 1.5"),
    ],
)
def test_impossible_configuration_is_refused(settings: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ViewsConfig(**settings)


def test_scaled_canvases_suit_the_network() -> None:
    looks = views(ViewsConfig(scales=(1.0, 0.6, 1.05, 2.0)), (96, 160)).of((100, 100))
    # 57.6 and 96 px for 0.6; 1.05 is no other canvas than 1.
    assert [look.letterbox.canvas_hw for look in looks] == [(96, 160), (64, 96), (192, 320)]

    def only_one(image_hw: tuple[int, int]) -> None:
        if image_hw != (320, 320):
            raise ValueError("fixed")

    with pytest.raises(ConfigError, match=r"views.scales: the network takes no canvas near 640 px for scale 2"):
        Views(ViewsConfig(scales=(1.0, 2.0)), InputConfig(320), only_one)


def test_text_names_every_view() -> None:
    config = ViewsConfig(tile=640, flip=True, scales=(1.0, 1.5), merge="fusion")
    assert config.text == (
        "tiles of 640 px overlapping by 0.2 and the whole; mirrored too; scales 1, 1.5; merged by fusion above IoU 0.55"
    )
    assert ViewsConfig().is_plain
    assert not any(ViewsConfig(**other).is_plain for other in ({"tile": 64}, {"flip": True}, {"scales": (2.0,)}))


# --- regions ---------------------------------------------------------------------------------------------------------


def test_tiles_cover_the_image_with_at_least_the_requested_overlap() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width, tile = (int(rng.integers(low, 400)) for low in (1, 1, 32))
        overlap = float(rng.uniform(0, 0.9))
        looks = views(ViewsConfig(tile=tile, overlap=overlap, whole=False)).of((height, width))
        covered = np.zeros((height, width), bool)
        for look in looks:
            x1, y1, x2, y2 = look.region_xyxy
            assert (x2 - x1, y2 - y1) == (min(tile, width), min(tile, height))
            covered[y1:y2, x1:x2] = True
        assert covered.all()
        for axis in (0, 1):
            starts = sorted({look.region_xyxy[axis] for look in looks})
            assert all(b - a <= tile - min(overlap * tile, tile - 1) + 1e-9 for a, b in itertools.pairwise(starts))
            if len(starts) > 1:  # one tile fewer would not do
                step = tile - min(int(np.ceil(overlap * tile)), tile - 1)
                assert tile + (len(starts) - 2) * step < (width, height)[axis]
        assert len({look.region_xyxy for look in looks}) == len(looks)


def test_image_no_larger_than_a_tile_has_one_view() -> None:
    made = views(ViewsConfig(tile=200))
    assert [look.region_xyxy for look in made.of((200, 150))] == [(0, 0, 150, 200)]
    assert len(made.of((201, 150))) == 3  # two tiles and the whole
    assert len(views(ViewsConfig(tile=200, flip=True, scales=(1.0, 2.0))).of((201, 150))) == 12


@pytest.mark.parametrize("arithmetic", ["opencv", "darknet"])
@pytest.mark.parametrize("is_flipped", [False, True])
@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
def test_boxes_are_mapped_back_to_their_source_pixels(fit: str, is_flipped: bool, arithmetic: str) -> None:
    region, source = (37, 11, 117, 71), (53, 19, 73, 39)  # 80 x 60 onto 160 x 160: twice, or stretched
    image = picture((90, 150), [(*source, 0)])
    letterbox = Letterbox.fit((60, 80), (160, 160), fit, arithmetic=arithmetic)
    look = View(region, letterbox, is_flipped)
    rows, columns = np.nonzero(look.canvas(image)[..., 0] > (127 if arithmetic == "opencv" else 0.51))
    drawn = torch.tensor([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], dtype=torch.float64)
    back = look.boxes_to_source(drawn)
    np.testing.assert_allclose(back.numpy(), [source], atol=1.0)  # a source pixel: edges are softened
    # And exactly: the map, written out in float64.
    (scale_y, scale_x), (top, left) = letterbox.scale_hw, letterbox.offset_top_left
    boxes = np.random.default_rng(0).uniform(20, 140, (50, 2, 2))
    boxes = np.sort(boxes, axis=1).reshape(50, 4)
    unflipped = np.stack([160 - boxes[:, 2], boxes[:, 1], 160 - boxes[:, 0], boxes[:, 3]], 1) if is_flipped else boxes
    wanted = (unflipped - [left, top, left, top]) / [scale_x, scale_y, scale_x, scale_y]
    wanted = np.add(wanted.clip(0, [80, 60, 80, 60]), [37, 11, 37, 11])
    np.testing.assert_allclose(look.boxes_to_source(torch.from_numpy(boxes)).numpy(), wanted, rtol=1e-14)
    single = look.boxes_to_source(torch.from_numpy(boxes).float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), wanted, atol=2e-5)


# --- cut boxes -------------------------------------------------------------------------------------------------------


def test_cut_box_that_the_next_tile_has_whole_is_dropped() -> None:
    left, right, *_ = views(ViewsConfig(tile=64, overlap=0.25, whole=False)).of((64, 112))
    assert (left.region_xyxy, right.region_xyxy) == ((0, 0, 64, 64), (48, 0, 112, 64))
    assert left.clear_xyxy == (0, 0, 63, 64)
    boxes = torch.tensor(
        [
            [52.0, 10, 64, 20],  # ends at the edge, begins within the right tile
            [48.5, 10, 64, 20],  # begins where the right tile does: cut there, too
            [40.0, 10, 64, 20],  # larger than what the two share
            [52.0, 10, 62, 20],  # ends before the edge
            [0.0, 0, 20, 64],  # ends at edges of the image
        ]
    )
    is_cut, is_seen_whole = left.cut(boxes)
    assert is_cut.tolist() == [True, True, True, False, False]
    assert is_seen_whole.tolist() == [True, False, False, False, False]
    mirrored = torch.stack([112 - boxes[:, 2], boxes[:, 1], 112 - boxes[:, 0], boxes[:, 3]], dim=1)
    assert [t.tolist() for t in right.cut(mirrored)] == [is_cut.tolist(), is_seen_whole.tolist()]
    upper, lower = views(ViewsConfig(tile=64, overlap=0.25, whole=False)).of((112, 64))
    for look, moved in ((upper, boxes), (lower, mirrored)):
        assert [t.tolist() for t in look.cut(moved[:, [1, 0, 3, 2]])] == [is_cut.tolist(), is_seen_whole.tolist()]


@pytest.mark.parametrize("merge", ["nms", "fusion"])
@pytest.mark.parametrize("settings", [{}, {"flip": True}, {"scales": (1.0, 2.0)}, {"flip": True, "scales": (0.5, 1)}])
@pytest.mark.parametrize("whole", [False, True])
def test_object_smaller_than_the_overlap_is_detected_once_anywhere(
    whole: bool, settings: dict[str, Any], merge: Literal["nms", "fusion"]
) -> None:
    rng = np.random.default_rng(1)
    made = predictor(ViewsConfig(tile=64, overlap=0.5, whole=whole, merge=merge, **settings))
    num_objects = 0
    for _ in range(6):
        height, width = int(rng.integers(65, 260)), int(rng.integers(65, 260))
        objects = []
        for y, x in itertools.product(range(0, height - 40, 40), range(0, width - 40, 40)):  # one in a cell, apart
            (w, h), (dx, dy) = rng.integers(8, 28, 2) // 2 * 2, rng.integers(0, 6, 2) // 2 * 2
            objects.append((x + int(dx), y + int(dy), x + int(dx + w), y + int(dy + h), int(rng.integers(0, 2))))
        found = found_by(made, picture((height, width), objects))
        if not whole:
            assert len(found) == len(objects)
        near = [min(np.abs(np.subtract(o[:4], f[:4])).max() for f in found if f[4] == o[4]) for o in objects]
        assert max(near) <= 2
        num_objects += len(objects)
    assert num_objects > 50


def test_object_larger_than_the_overlap_is_one_box_with_a_view_of_the_whole() -> None:
    objects = [(20, 30, 180, 170, 0), (90, 80, 110, 100, 1)]
    image = picture((200, 200), objects)
    found = found_by(predictor(ViewsConfig(tile=64)), image)
    assert len(found) == 2
    assert np.abs(np.subtract(found, objects)).max() <= 4
    # Without, its parts are all there is, and none of them is lost.
    parts = [part for part in found_by(predictor(ViewsConfig(tile=64, whole=False)), image) if part[4] == 0]
    assert len(parts) > 4
    assert min(p[0] for p in parts) == 20
    assert max(p[3] for p in parts) == 170


def test_repeated_boxes_of_several_views_are_merged_for_a_model_without_suppression() -> None:
    image = picture((64, 64), [(10, 20, 40, 60, 0)])
    select = SelectConfig(confidence=0.3, nms="none")
    assert len(found_by(predictor(ViewsConfig(flip=True)), image, select)) == 1


# --- the predictor ---------------------------------------------------------------------------------------------------


def test_one_plain_view_equals_prediction_without_views() -> None:
    image = picture((100, 75), [(10, 10, 40, 70, 0), (35, 20, 73, 90, 1)])
    (plain,) = predictor(ViewsConfig()).detect([image], SELECT)
    (tiled,) = predictor(ViewsConfig(tile=100, iou=0.0, merge="fusion")).detect([image], SELECT)
    assert len(plain) == 2
    for name in ("source_xyxy", "scores", "labels"):
        assert torch.equal(getattr(plain, name), getattr(tiled, name))


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_detections_in_several_views_do_not_depend_on_the_other_images(batch_size: int) -> None:
    rng = np.random.default_rng(3)
    config = ViewsConfig(tile=64, flip=True, scales=(1.0, 0.5))
    images = []
    for _ in range(7):
        height, width = rng.integers(20, 300, 2)
        images.append(picture((int(height), int(width)), [(3, 4, 15, 16, 0), (int(width) - 12, 2, int(width), 14, 1)]))
    made = predictor(config, batch_size=batch_size)
    alone = [found_by(made, image) for image in images]
    assert all(alone)
    records = list(made.stream([ImageSource(str(i), pixels=p) for i, p in enumerate(images)], SELECT))
    assert [record.source.name for record in records] == [str(i) for i in range(7)]
    for record, wanted in zip(records, alone, strict=True):
        assert record.detections is not None
        assert sorted(record.detections.source_xyxy.round().int().tolist()) == sorted(list(w[:4]) for w in wanted)


def test_limits_of_number_and_score_apply_to_the_whole_image() -> None:
    objects = [(x, y, x + 10, y + 10, 0) for x, y in itertools.product(range(4, 240, 20), repeat=2)]
    image = picture((250, 250), objects)
    for merge in ("nms", "fusion"):
        made = predictor(ViewsConfig(tile=64, whole=False, merge=merge))
        (found,) = made.detect([image], SelectConfig(confidence=0.3, max_detections=30))
        assert len(found) == 30
        assert (found.scores.diff() <= 0).all()
    fused = predictor(ViewsConfig(tile=64, merge="fusion"))  # what tiles alone see: half the score, or less
    assert len(fused.detect([image], SelectConfig(confidence=0.0))[0]) > 100
    for select in (SelectConfig(confidence=0.5), SelectConfig(class_confidence=(0.5, 0.1))):
        (found,) = fused.detect([image], select)
        assert len(found) == 0 or found.scores.min() >= 0.5


def test_raw_boxes_of_several_views_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected one plain view of each image, got views: tiles of 64"):
        predictor(ViewsConfig(tile=64)).raw_boxes([picture((10, 10), [])])


def test_memory_of_a_100_megapixel_image_stays_near_its_own_size() -> None:
    image = np.zeros((10_000, 10_000, 3), np.uint8)
    image[5000:5400, 7000:7400, 0] = 255
    made = predictor(ViewsConfig(tile=1280), batch_size=8)
    tracemalloc.start()
    found = found_by(made, image)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.abs(np.subtract(found, [(7000, 5000, 7400, 5400, 0)])).max() <= 160  # a canvas pixel of the whole
    assert peak_bytes < 30e6
