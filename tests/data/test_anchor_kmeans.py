"""Anchors by k-means: the distance in float64, known clusters, real boxes, and the output of the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from detector.cli.main import run
from detector.data.anchor_kmeans import canvas_sizes, centred_iou, find_anchors, measure_anchors
from detector.data.coco import read_coco
from detector.errors import DatasetError
from detector.media.images import write_image

# Six kinds of boxes, as far apart as anchors are.
CENTRES = np.array([[12, 16], [36, 30], [28, 75], [110, 60], [142, 190], [300, 350]])


def scalar_iou(ours: tuple[float, float], theirs: tuple[float, float]) -> float:
    shared = min(ours[0], theirs[0]) * min(ours[1], theirs[1])
    return shared / (ours[0] * ours[1] + theirs[0] * theirs[1] - shared)


def scattered(num: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return CENTRES[rng.integers(len(CENTRES), size=num)] * rng.uniform(0.9, 1.1, (num, 2))


def test_the_overlap_is_that_of_float64_arithmetic():
    rng = np.random.default_rng(1)
    ours, theirs = rng.uniform(1, 400, (50, 2)), rng.uniform(1, 400, (7, 2))
    wanted = [[scalar_iou(tuple(a), tuple(b)) for b in theirs.tolist()] for a in ours.tolist()]
    np.testing.assert_allclose(centred_iou(ours, theirs), wanted, rtol=0, atol=1e-14)
    assert centred_iou(theirs, theirs).diagonal() == pytest.approx(1)


def test_the_figures_are_those_of_float64_arithmetic():
    sizes = scattered(400)
    wh = np.array([[10, 20], [60, 60], [200, 100]])
    best = [max(scalar_iou(tuple(size), tuple(anchor)) for anchor in wh.tolist()) for size in sizes.tolist()]
    measured = measure_anchors(wh, sizes)
    assert measured.average_iou == pytest.approx(sum(best) / len(best), abs=1e-12)
    assert measured.recall == sum(iou > 0.5 for iou in best) / len(best)
    assert measured.num_boxes == 400


@pytest.mark.parametrize("seed", range(4))
def test_known_clusters_are_found_in_order_of_area(seed):
    anchors = find_anchors(scattered(600), len(CENTRES), seed=seed)
    assert np.abs(anchors.wh / CENTRES - 1).max() < 0.05
    assert anchors.average_iou > 0.88
    assert anchors.recall == 1


def test_each_metric_gives_the_best_anchors_by_its_own_distance():
    sizes = np.random.default_rng(5).lognormal(4, 0.8, (800, 2))
    by_iou, by_pixels = find_anchors(sizes, 5), find_anchors(sizes, 5, "euclidean")

    def mean_pixels(wh: np.ndarray) -> float:
        return float(np.linalg.norm(sizes[:, None] - wh[None], axis=2).min(axis=1).mean())

    assert by_iou.average_iou > by_pixels.average_iou + 0.01
    assert mean_pixels(by_pixels.wh) < mean_pixels(by_iou.wh) - 1


def test_an_anchor_for_every_box_covers_it_and_the_seed_decides():
    sizes = CENTRES.astype(np.float64)
    np.testing.assert_array_equal(find_anchors(sizes, 6).wh, CENTRES)
    many = np.random.default_rng(2).uniform(5, 400, (500, 2))
    np.testing.assert_array_equal(find_anchors(many, 9, seed=4).wh, find_anchors(many, 9, seed=4).wh)
    assert find_anchors(many, 12).average_iou > find_anchors(many, 3).average_iou
    assert find_anchors(np.full((5, 2), 0.2), 1).wh.tolist() == [[1, 1]]  # an anchor of no pixels has no area


def test_clusters_beat_released_anchors_on_boxes_of_another_shape():
    small = np.random.default_rng(3).lognormal(3, 0.4, (2000, 2))
    released = np.array([10, 13, 16, 30, 33, 23, 30, 61, 62, 45, 59, 119, 116, 90, 156, 198, 373, 326]).reshape(-1, 2)
    assert find_anchors(small, 9).average_iou > measure_anchors(released, small).average_iou + 0.05


def test_no_cluster_is_left_empty_where_boxes_repeat():
    sizes = np.repeat(np.array([[10.0, 10], [10.0000001, 10], [300, 300]]), [50, 1, 1], axis=0)
    assert find_anchors(sizes, 3).wh.tolist() == [[10, 10], [10, 10], [300, 300]]


def test_too_few_boxes_and_invalid_arguments_are_refused():
    with pytest.raises(DatasetError, match="expected at least 9 boxes of different size, got 6"):
        find_anchors(np.repeat(CENTRES, 10, axis=0).astype(np.float64), 9)
    with pytest.raises(DatasetError, match="got 0; use fewer anchors"):
        find_anchors(np.zeros((0, 2)), 1)
    with pytest.raises(ValueError, match=r"expected a metric of .* got 'giou' and 3"):
        find_anchors(scattered(20), 3, "giou")
    with pytest.raises(ValueError, match="at least 1 anchor"):
        find_anchors(scattered(20), 0)


# --- data sets -----------------------------------------------------------------------------------------------------


def coco(folder: Path, annotations: list[dict[str, object]]) -> Path:
    path = folder / "a.json"
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 200, "height": 100} for i in range(2)]
    rows = [{"id": i, "category_id": 1, "area": 1, "iscrowd": 0, **row} for i, row in enumerate(annotations, start=1)]
    document = {"images": images, "categories": [{"id": 1, "name": "a"}], "annotations": rows}
    path.write_text(json.dumps(document))
    return path


def test_sizes_are_measured_on_the_canvas(tmp_path):
    path = coco(
        tmp_path,
        [
            {"image_id": 0, "bbox": [10, 10, 50, 20]},
            {"image_id": 1, "bbox": [180, 0, 40, 100]},  # reaches out of the image: 20 x 100 are seen
            {"image_id": 1, "bbox": [0, 0, 100, 100], "iscrowd": 1},
        ],
    )
    annotations = read_coco(path, None)
    np.testing.assert_allclose(canvas_sizes(annotations, (400, 400), "letterbox", "opencv"), [[100, 40], [40, 200]])
    np.testing.assert_allclose(canvas_sizes(annotations, (400, 400), "stretch", "opencv"), [[100, 80], [40, 400]])
    darknet = canvas_sizes(annotations, (33, 33), "letterbox", "darknet")
    np.testing.assert_allclose(darknet[1], [20 * 33 / 200, 100 * 16 / 100])  # 16.5 rows, cut to 16
    assert canvas_sizes(read_coco(coco(tmp_path, []), None), (40, 40), "letterbox", "opencv").shape == (0, 2)


def test_the_command_prints_the_format_of_a_cfg(tiny_shapes, capsys):
    train = f"{{annotations: {tiny_shapes}/annotations/train.json, images: {tiny_shapes}/images/train}}"
    words = ["anchors", "coco", f"data.train={train}", "--num", "3", "--size", "64", "-q"]
    assert run(words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "num = 3"
    assert printed[1].startswith("anchors = ")
    assert len(printed[1].split(", ")) == 3
    assert "boxes have an anchor of IoU above 0.5" in printed[2]
    assert run([*words, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert ", ".join(f"{w},{h}" for w, h in plain["anchors"]) == printed[1].removeprefix("anchors = ")
    assert 0.5 < plain["average_iou"] <= 1
    assert run([*words, "--size", "64", "128", "--metric", "euclidean", "input.fit=stretch"]) == 0
    assert "anchors = " in capsys.readouterr().out


def wide_boxes(folder: Path) -> Path:
    """Boxes of three shapes in images of 200 x 100 pixels, and a YAML file that names them."""
    boxes = [[5, 5, 40, 10], [10, 10, 20, 40], [30, 20, 90, 60]]
    path = coco(folder, [{"image_id": 0, "bbox": box} for box in boxes])
    for number in range(2):
        write_image(folder / f"{number}.jpg", np.zeros((100, 200, 3), np.uint8))
    description = folder / "set.yaml"
    description.write_text(f"name: coco\ntrain: {{annotations: {path}, images: {folder}}}\n")
    return description


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--cfg", "{cfg}", "--num", "3"], {"stretch": [[6, 26], [13, 6], [29, 38]]}),
        (["--cfg", "{boxed}", "--num", "3"], {"letterbox": [[6, 13], [13, 3], [29, 19]]}),
        (["input.fit=stretch", "--num", "3", "--size", "64"], {"stretch": [[6, 26], [13, 6], [29, 38]]}),
        (["--num", "3", "--size", "64"], {"letterbox": [[6, 13], [13, 3], [29, 19]], "stretch": [[6, 26], [13, 6]]}),
    ],
)
def test_anchors_follow_the_network_or_are_given_for_both_fits(words, wanted, tmp_path, capsys):
    network = "[net]\nwidth=64\nheight=64\nchannels=3\n{}[convolutional]\nfilters=18\nsize=1\nstride=32\nactivation="
    network += "linear\n[yolo]\nmask=0,1,2\nanchors=1,1, 2,2, 3,3\nclasses=1\nnum=3\n"
    for name, key in (("cfg", ""), ("boxed", "letter_box=1\n")):
        (tmp_path / f"{name}.cfg").write_text(network.format(key))
    words = [word.format(cfg=tmp_path / "cfg.cfg", boxed=tmp_path / "boxed.cfg") for word in words]
    assert run(["anchors", str(wide_boxes(tmp_path)), *words, "-q", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    first = plain["fit"]
    found = {first: plain, **{fit: plain[fit] for fit in ("stretch",) if fit in plain}}
    assert set(found) == set(wanted)
    for fit, pairs in wanted.items():
        assert sorted(found[fit]["anchors"])[: len(pairs)] == sorted(pairs)
        # The claimed overlap is the one that a network with this fit has.
        sizes = canvas_sizes(read_coco(tmp_path / "a.json", None), (64, 64), fit, "opencv")
        real = measure_anchors(np.array(found[fit]["anchors"]), sizes)
        assert found[fit]["average_iou"] == pytest.approx(real.average_iou, abs=1e-12)
    assert run(["anchors", str(wide_boxes(tmp_path)), *words, "-q"]) == 0
    comments = [line for line in capsys.readouterr().out.splitlines() if line.startswith("#")]
    assert [("stretch images" in line, "letterbox images" in line) for line in comments] == [
        (fit == "stretch", fit == "letterbox") for fit in wanted
    ]


@pytest.mark.parametrize("words", [[], ["a", "b"], ["coco", "--num", "0"], ["coco", "--size", "1", "2", "3"]])
def test_a_wrong_command_is_one_sentence(words, capsys):
    assert run(["anchors", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("detector anchors: ")
    assert error.count("\n") == 1


def test_blood_cells_get_sensible_anchors(data_folder):
    root = data_folder / "bccd"
    annotations = read_coco(root / "annotations" / "instances_train.json", root / "images")
    sizes = canvas_sizes(annotations, (416, 416), "letterbox", "opencv")
    anchors = find_anchors(sizes, 9)
    assert anchors.average_iou > 0.82
    assert anchors.recall > 0.99
    assert (anchors.wh >= 10).all()
    assert (anchors.wh <= 416).all()
