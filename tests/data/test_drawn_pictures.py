from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.path import Path as PolygonPath

from detector.data import drawn_pictures as module
from detector.data.drawn_folder import DrawnImage, split_generator
from detector.data.pictures_dataset import PicturesDataset
from detector.errors import DatasetError

SIZE, NUM_PICTURES = 128, 60
# Of labels, boxes and flags of the first twenty pictures of version 1.
DIGEST = "0bcb799a1010854c16149620b86e5560615d6cb2c26ce47b23ee6621f31c2950"
Pairs = list[tuple[module.Picture, DrawnImage]]


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    indices = range(NUM_PICTURES)
    return [(module.draw_picture(0, "val", i, SIZE), module.draw_labelled(0, "val", i, SIZE)) for i in indices]


def _polygon_area(points_xy: npt.NDArray[np.float64]) -> float:
    x, y = points_xy.T
    return float(abs(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2)


def test_a_picture_does_not_depend_on_what_was_drawn_before_it(pairs: Pairs) -> None:
    for index in (5, 2, 0):
        picture, drawn = module.draw_picture(0, "val", index, SIZE), pairs[index][1]
        assert (picture.image == pairs[index][0].image).all()
        assert (picture.image == drawn.image).all()
        assert (picture.image.shape, picture.image.dtype) == ((SIZE, SIZE, 3), np.uint8)
        assert drawn.boxes_xywh.shape == (len(drawn.labels), 4)


def test_the_stock_of_textures_and_fractals_is_drawn_alike_in_every_process() -> None:
    before = module._stock()[0].copy(), module._fractals()[3][1].copy()
    module._stock.cache_clear()
    module._fractals.cache_clear()
    assert (module._stock()[0] == before[0]).all()
    assert (module._fractals()[3][1] == before[1]).all()


def test_seed_split_and_index_each_change_the_picture() -> None:
    of_picture = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    images = [module.draw_picture(seed, split_name, index, 64).image for seed, split_name, index in of_picture]
    assert min((images[i] != images[j]).mean() for i in range(4) for j in range(i)) > 0.9


def test_version_1_still_draws_what_it_drew(pairs: Pairs) -> None:
    """Whoever changes the drawing raises GENERATOR_VERSION and renews the digest."""
    digest = hashlib.sha256()
    for _, drawn in pairs[:20]:
        digest.update(f"{drawn.labels.tolist()} {drawn.boxes_xywh.tolist()} {drawn.is_crowd.tolist()};".encode())
    assert (module.GENERATOR_VERSION, digest.hexdigest()) == (1, DIGEST)


def test_boxes_and_flags_follow_from_the_masks_by_the_stated_rule(pairs: Pairs) -> None:
    num_left_out = num_ignored = num_labelled = 0
    for picture, drawn in pairs:
        expected = []
        for position, painted in enumerate(picture.objects):
            rows, columns = np.nonzero(picture.owner == position)
            share = len(rows) / painted.num_pixels
            if share < 0.1:
                num_left_out += 1
                continue
            x, y = int(columns.min()), int(rows.min())
            width, height = int(columns.max()) + 1 - x, int(rows.max()) + 1 - y
            is_ignored = share < 0.4 or max(width, height) < 6
            num_ignored, num_labelled = num_ignored + is_ignored, num_labelled + (not is_ignored)
            expected.append(([x, y, width, height], painted.label, share, is_ignored))
        columns_drawn = (drawn.boxes_xywh, drawn.labels, drawn.visible_share, drawn.is_crowd)
        assert [tuple(row) for row in zip(*(c.tolist() for c in columns_drawn), strict=True)] == expected
    assert num_labelled > 20 * num_ignored > 20
    assert num_left_out > 0


def test_boxes_lie_inside_the_picture(pairs: Pairs) -> None:
    for _, drawn in pairs:
        assert (drawn.boxes_xywh[:, 2:] > 0).all()
        assert (drawn.boxes_xywh[:, :2] >= 0).all()
        assert (drawn.boxes_xywh[:, :2] + drawn.boxes_xywh[:, 2:] <= SIZE).all()
        assert (drawn.visible_share <= 1).all()


def test_pixels_change_where_the_mask_says_so_and_nowhere_else(pairs: Pairs) -> None:
    inside, outside = [], []
    for index, (picture, _) in enumerate(pairs):
        ground = np.clip(module._ground(split_generator(0, "val", index), SIZE), 0, 255)
        difference = np.abs(picture.image - ground).mean(axis=2)
        is_painted = picture.owner >= 0
        is_far = cv2.dilate(is_painted.view(np.uint8), np.ones((11, 11), np.uint8)) == 0  # past rims and blur
        inside.append(difference[is_painted])
        outside.append(difference[is_far])
    assert np.quantile(np.concatenate(outside), 0.99) < 25 < np.median(np.concatenate(inside))


def test_sizes_span_small_to_large_and_classes_are_balanced() -> None:
    drawn = [module.draw_labelled(3, "train", index, SIZE) for index in range(200)]
    sides = np.concatenate([d.boxes_xywh[:, 2:].max(axis=1, initial=0) for d in drawn])
    assert (sides < 14).mean() > 0.2
    assert (sides > 40).mean() > 0.1
    assert sides.max() <= 0.8 * SIZE + 3
    counts = np.bincount(np.concatenate([d.labels for d in drawn]), minlength=len(module.CLASS_NAMES))
    assert len(module.CLASS_NAMES) == len(set(module.CLASS_NAMES)) == 48
    assert counts.min() > 0
    numbers = np.array([len(d.labels) for d in drawn])
    assert 0 < (numbers == 0).mean() < 0.15
    assert numbers.max() >= 15


@pytest.mark.parametrize("name", module.CONTOUR_NAMES)
def test_contours_are_painted_where_the_polygon_is(name: str) -> None:
    """The reference is the even-odd test of Matplotlib at 8 x 8 points of each pixel, in float64."""
    points = module.contour(name, 0.35) * 20 + 27.3
    coverage = module._filled(points, (56, 56))
    fine = (np.arange(56 * 8) + 0.5) / 8
    grid = np.stack(np.meshgrid(fine, fine), axis=-1).reshape(-1, 2)
    inside = PolygonPath(points).contains_points(grid).reshape(56, 8, 56, 8).mean(axis=(1, 3))
    # OpenCV paints also the subpixels that the outline touches.
    assert np.abs(coverage - inside).mean() < 0.04
    assert (coverage[inside == 1] == 1).all()
    assert coverage[inside == 0].mean() < 0.02


def test_contours_have_their_radius_and_number_of_lobes() -> None:
    assert _polygon_area(module.contour("ellipse", 0.3)) == pytest.approx(np.pi, rel=2e-3)
    for corners, name in ((3, "triangle"), (4, "rectangle"), (5, "pentagon")):
        area = corners / 2 * np.sin(2 * np.pi / corners)  # of circumradius 1
        assert _polygon_area(module.contour(name, 0.3, 720)) == pytest.approx(area, rel=2e-3)
    for lobes in module.LOBES:
        radius = np.linalg.norm(module.contour(f"smooth-{lobes}", 0.3, 720), axis=1)
        assert (radius.min(), radius.max()) == pytest.approx((0.7, 1.3), abs=1e-3)
        assert int(((radius > np.roll(radius, 1)) & (radius >= np.roll(radius, -1))).sum()) == lobes


def test_an_attractor_is_mapped_into_itself() -> None:
    """Three maps that halve the distance to the corners of a triangle give Sierpinski's triangle."""
    maps = np.stack([np.array([[0.5, 0, x], [0, 0.5, y]]) for x, y in ((0, 0), (0.5, 0), (0, 0.5))])
    x, y = module._attractor(maps, np.random.default_rng(0)).T
    assert len(x) > 7000
    assert (x + y <= 1.04).all()
    in_middle = (x < 0.46) & (y < 0.46) & (x + y > 0.54)  # the hole
    assert not in_middle.any()


def _config(root: Path, num_train: int = 12, num_val: int = 2, seed: int = 5) -> PicturesDataset.Config:
    return PicturesDataset.Config(root=root, num_train=num_train, num_val=num_val, image_size=64, seed=seed)


def test_the_reader_draws_once_and_gives_what_was_drawn(tmp_path: Path) -> None:
    data = PicturesDataset(_config(tmp_path / "pictures"))
    train = data.split("train")
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}
    assert (len(train), len(data.split("val")), len(times)) == (12, 2, 14)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")} == times
    assert train.class_names == module.CLASS_NAMES
    for index in range(12):
        drawn = module.draw_labelled(5, "train", index, 64)
        rows = slice(int(train.offsets[index]), int(train.offsets[index + 1]))
        assert train.boxes_xywh[rows].tolist() == drawn.boxes_xywh.tolist()
        assert train.labels_of(index).tolist() == drawn.labels.tolist()
        assert train.is_crowd_of(index).tolist() == drawn.is_crowd.tolist()


def test_a_folder_of_other_pictures_is_refused_and_kept(tmp_path: Path) -> None:
    PicturesDataset(_config(tmp_path / "pictures")).split("val")
    with pytest.raises(DatasetError, match=r"pictures: expected no folder.*choose another folder.*'seed': 5"):
        PicturesDataset(_config(tmp_path / "pictures", seed=6)).split("val")
    record = json.loads((tmp_path / "pictures" / "pictures.json").read_text(encoding="utf-8"))
    assert record["parameters"]["seed"] == 5


def test_wrong_split_and_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="train and val, got 'test'"):
        PicturesDataset(_config(tmp_path / "pictures")).split("test")
    with pytest.raises(DatasetError, match="expected num_train of at least 1, got 0"):
        PicturesDataset(_config(tmp_path / "pictures", num_train=0)).split("train")
