from __future__ import annotations

import re

import cv2
import numpy as np
import pytest
import torch

from detector.errors import ConfigError, DetectorError
from detector.media.activation_charts import draw_curves
from detector.models.activations.activation_curves import Curve


def curves(num: int) -> dict[str, Curve]:
    x = torch.linspace(-5, 5, 501, dtype=torch.float64)
    steps = (x > 0).double()
    return {f"f{i}": Curve(x, (i + 1) / num * x * steps, (i + 1) / num * steps, 0 * x) for i in range(num)}


@pytest.mark.parametrize("num", [1, 7, 8, 18])
def test_few_curves_share_panels_and_many_get_one_each(tmp_path, num):
    draw_curves(curves(num), tmp_path / "picture.png")
    picture = cv2.imread(str(tmp_path / "picture.png"))
    height, width = picture.shape[:2]
    assert width == 1300
    assert height == {1: 440, 7: 440, 8: 470, 18: 685}[num]
    assert np.unique(picture.reshape(-1, 3), axis=0).shape[0] > 20
    assert (picture == 255).all(axis=2).mean() > 0.7


def test_no_line_is_drawn_across_a_jump(tmp_path):
    x = torch.linspace(-5, 5, 501, dtype=torch.float64)
    step = Curve(x, 0 * x, 1.2 * (x > 0).double() - 0.1, 0 * x)
    draw_curves({"step": step}, tmp_path / "picture.svg")
    # The first curve has the first colour; its line has a gap where a new path begins.
    lines = re.findall(r'<path d="([^"]*)"[^>]*stroke: #d55e00', (tmp_path / "picture.svg").read_text("utf-8"))
    assert [line.count("M") for line in lines[:3]] == [1, 2, 1]


def test_other_formats_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"picture\.jpg: expected a file name that ends in \.png, \.svg, \.pdf"):
        draw_curves(curves(1), tmp_path / "picture.jpg")
    draw_curves(curves(1), tmp_path / "picture.PDF")
    assert (tmp_path / "picture.PDF").read_bytes().startswith(b"%PDF")


def test_unwritable_path_is_an_error(tmp_path):
    with pytest.raises(DetectorError, match=r"none.picture\.png: the picture cannot be written, No such file"):
        draw_curves(curves(1), tmp_path / "none/picture.png")
