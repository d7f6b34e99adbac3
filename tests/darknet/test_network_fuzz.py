"""Networks changed at random: each runs or is refused with an error message."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from detector.darknet.darknet_model_file import num_classes_of
from detector.darknet.network import CfgText, DarknetNet, experiment_defaults
from detector.errors import DarknetError

SECTIONS = (
    "[sam]\nfrom=-2\nactivation=logistic",
    "[scale_channels]\nfrom=-2",
    "[avgpool]",
    "[dropout]\nprobability=.3",
    "[reorg]\nstride=2",
    "[reorg3d]\nstride=2",
    "[local_avgpool]\nsize=3\nstride=1",
    "[shortcut]\nfrom=-2,-3\nweights_type=per_channel\nweights_normalization=softmax",
    "[Gaussian_yolo]\nclasses=3\nnum=2\nanchors=3,4,5,6",
    "[region]\nanchors=1,2,3,4\nnum=2\nclasses=3\nsoftmax=1",
    "[contrastive]",
)
KEYS = (
    *("antialiasing=1", "share_index=-2", "groups=3", "dilation=2", "stride_x=2", "padding=3", "activation=stair"),
    *("counters_per_class=1,2,3", "label_smooth_eps=2", "max_delta=-1", "iou_normalizer=-3", "scale_x_y=0"),
    *("anchors=0,0, 3,3, 4,4, 5,5, 6,6", "beta_nms=-1", "width=33", "height=96", "stopbackward=5", "onlyforward=1"),
)
VALUES = (
    *("0", "1", "2", "3", "-1", "-2", "-3", "4", "7", "8", ".5", "1e9", "-0.1", "16", "24", "33", "64", "1000000"),
    *("1,2", "-1,-2", "-1,-4", "leaky", "swish", "3,4,5", "10,10,20,20,30,30,40,40,50,50"),
)


def mutated(text: str, source: random.Random) -> str:
    lines = text.split("\n")
    for _ in range(source.randint(1, 4)):
        place, kind = source.randrange(len(lines)), source.random()
        if kind < 0.35:
            lines.insert(place, source.choice(SECTIONS + KEYS))
        elif kind < 0.45:
            del lines[place]
        elif kind < 0.55:
            lines[place] = source.choice(lines)
        elif kind < 0.9:
            lines[place] = lines[place].split("=")[0] + "=" + source.choice(VALUES)
        else:
            lines[place:place] = lines[place : place + 9]
    return "\n".join(lines)


def run(text: CfgText) -> None:
    """Do all that happens to a network before it is trained, on the meta device."""
    cfg = text.parsed()
    experiment_defaults(cfg)
    for num_classes in (num_classes_of(cfg), 5):
        net = DarknetNet(DarknetNet.Config(text), num_classes, cfg.net.channels).eval()
        net.reasons_against_training()
        if net.max_stride <= 512 and cfg.net.channels <= 64:
            sides = (net.max_stride, 2 * net.max_stride)
            boxes, scores = net.decode(net(torch.zeros(1, cfg.net.channels, *sides, dtype=torch.uint8)))
            assert boxes.shape[1] == scores.shape[1] > 0
            assert scores.shape[2] == num_classes


@pytest.mark.parametrize(
    "count", [pytest.param(200, id="some"), pytest.param(20_000, id="many", marks=pytest.mark.nightly)]
)
def test_network_changed_at_random_runs_or_is_refused(count: int, tiny_cfg: Path) -> None:
    source, text = random.Random(count), tiny_cfg.read_text("utf-8")
    num_parsed = num_run = num_refused = located = 0
    with torch.device("meta"):
        for _ in range(count):
            changed = CfgText("fuzz.cfg", mutated(text, source))
            try:
                changed.parsed()
                num_parsed += 1
                run(changed)
                num_run += 1
            except DarknetError as refusal:
                located += str(refusal).startswith("fuzz.cfg:")
                num_refused += 1
    assert located == num_refused == count - num_run
    assert num_parsed > 0.2 * count
    assert num_run > 0.1 * count
