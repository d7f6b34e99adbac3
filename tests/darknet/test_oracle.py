"""Our networks against outputs of OpenCV's own reader of Darknet files (`tools/darknet_oracle.py`)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "golden"
QUICK = ("yolov3-tiny", "yolov4-tiny", "yolov7-tiny")


@pytest.fixture(scope="module")
def oracle() -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / "darknet_oracle.py"
    specification = importlib.util.spec_from_file_location("darknet_oracle", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look up their module
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.stem, marks=() if path.stem in QUICK else pytest.mark.nightly)
        for path in sorted(GOLDEN.glob("*.npz"))
    ],
)
def test_network_gives_the_outputs_of_opencv(name: str, oracle: ModuleType) -> None:
    numbers = np.load(GOLDEN / f"{name}.npz", allow_pickle=False)
    net = oracle.realistic_network(name, oracle.synthetic_photo())
    for fit in oracle.FITS:
        blob = oracle.canvas_of(oracle.synthetic_photo(), oracle.SMALL_HW, fit)
        raw, boxes_cxcywh, scores = oracle.ours_on(net, blob)
        for index, values in enumerate(raw):
            theirs = numbers[f"{fit}_raw_{index}"]
            ours = values.ravel()[oracle.sampled(values.size)]
            assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
        kept = oracle.kept_by_us(boxes_cxcywh, scores, float(numbers[f"{fit}_confidence"]))
        theirs = numbers[f"{fit}_kept"].astype(np.float64)
        assert len(kept) == len(theirs) > 50
        least_overlap, largest_difference = oracle.same_boxes(kept, theirs)
        assert least_overlap > 0.99
        assert largest_difference <= 1e-3


def test_every_shipped_network_has_golden_numbers(oracle: ModuleType) -> None:
    shipped = {path.stem for path in (Path(__file__).parents[2] / "cfg" / "darknet").glob("*.cfg")}
    assert shipped == set(oracle.SHIPPED) == {path.stem for path in GOLDEN.glob("*.npz")}
    assert sum(path.stat().st_size for path in GOLDEN.iterdir()) < 200_000


def test_weights_of_another_seed_do_not_match_the_golden_numbers(oracle: ModuleType) -> None:
    numbers = np.load(GOLDEN / "yolov4-tiny.npz", allow_pickle=False)
    blob = oracle.canvas_of(oracle.synthetic_photo(), oracle.SMALL_HW, "stretch")
    raw, _, _ = oracle.ours_on(oracle.realistic_network("yolov4-tiny", oracle.synthetic_photo(), seed=1), blob)
    theirs = numbers["stretch_raw_0"]
    assert np.abs(raw[0].ravel()[oracle.sampled(raw[0].size)] - theirs).max() > 0.1 * np.abs(theirs).max()
