"""Shipped networks: equal, layer by layer, to those that their authors released."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from detector.config.nodes import presets_dir
from detector.darknet.cfg_file import dump_cfg, read_cfg
from detector.darknet.layer_shapes import num_parameters
from detector.darknet.weights_file import num_weight_bytes

# Layers, parameters and weights file length as Darknet counts them; digest of the sections of the released network.
SHIPPED = {
    "yolov3": (107, 62_001_757, "872d984dc1bb35ab"),
    "yolov3-tiny": (24, 8_858_734, "263ac85d84520bc8"),
    "yolov4": (162, 64_429_405, "6f07ed1f4d73e58d"),
    "yolov4-tiny": (38, 6_062_814, "e49bfb48a9658c96"),
    "yolov4-csp": (175, 52_986_205, "040c1d03726c3555"),
    "yolov4x-mish": (203, 99_847_037, "8bfd803b116dbb8f"),
    "yolov4-p5": (244, 70_917_468, "1fd7b02a7d0c3171"),
    "yolov4-p6": (305, 127_717_040, "dce4526ec062aca6"),
    "yolov7-tiny": (99, 6_241_885, "aca1725e4c767ee8"),
    "yolov7": (143, 36_974_557, "e12cdcf9ad6be59c"),
}
# Files name.conv.N of the first N layers: the lengths that the authors published.
PARTIAL = [
    ("yolov4", 137, 170_038_676),
    ("yolov4-tiny", 29, 19_789_716),
    ("yolov3", 74, 162_482_580),  # darknet53.conv.74
    ("yolov3-tiny", 11, 6_303_188),
    ("yolov4-csp", 142, 146_548_116),
    ("yolov4x-mish", 166, 277_307_668),
    ("yolov4-p5", 232, 256_427_412),
    ("yolov4-p6", 289, 463_340_948),
]
PARTIAL_NOT_SHIPPED = [
    ("yolov4-csp-swish", 164, 185_312_660),
    ("yolov4-csp-x-swish", 192, 358_357_268),
    ("csresnext50-panet-spp", 112, 140_311_316),
]
FULL = {"yolov4": 257_717_640, "yolov3": 248_007_048, "yolov3-tiny": 35_434_956, "yolov4-tiny": 24_251_276}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def without_comments(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#")).lstrip("\n")


def test_exactly_these_networks_are_shipped():
    assert {path.stem for path in (presets_dir() / "darknet").glob("*")} == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_network_has_the_layers_parameters_and_bytes_of_the_released_one(name):
    num_layers, parameters, sections_digest = SHIPPED[name]
    cfg = read_cfg(name)
    assert cfg.warnings == ()
    assert len(cfg.layers) == num_layers
    assert num_parameters(cfg) == parameters
    assert num_weight_bytes(cfg) == 4 * parameters + 20 == FULL.get(name, 4 * parameters + 20)
    assert digest(dump_cfg(cfg)) == sections_digest


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_file_is_a_comment_and_the_output_of_our_writer(name):
    text = (presets_dir() / "darknet" / f"{name}.cfg").read_text("ascii")
    cfg = read_cfg(name)
    assert text.startswith("# YOLOv")
    assert max(len(line) for line in text.splitlines() if line.startswith("#")) <= 120
    assert without_comments(text) == dump_cfg(cfg)
    assert f"{len(cfg.layers)} layers, {num_parameters(cfg):,} parameters" in text


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_network_equals_its_release_layer_by_layer(name, released_cfgs: Path):
    shipped, released = read_cfg(name), read_cfg(released_cfgs / f"{name}.cfg")
    assert shipped.net == released.net
    for index, (ours, theirs) in enumerate(zip(shipped.layers, released.layers, strict=True)):
        assert ours == theirs, index


@pytest.mark.parametrize(("name", "num_layers", "num_bytes"), PARTIAL)
def test_partial_file_has_the_published_length(name, num_layers, num_bytes):
    assert num_weight_bytes(read_cfg(name), num_layers) == num_bytes


@pytest.mark.parametrize(("name", "num_layers", "num_bytes"), PARTIAL_NOT_SHIPPED)
def test_partial_file_of_another_release_has_the_published_length(name, num_layers, num_bytes, released_cfgs: Path):
    assert num_weight_bytes(read_cfg(released_cfgs / f"{name}.cfg"), num_layers) == num_bytes
