"""The networks that their authors released: built, run, trained for a step, and their weights written and read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from detector.darknet.cfg_file import dump_cfg, parse_cfg, read_cfg
from detector.darknet.darknet_model_file import num_classes_of
from detector.darknet.layer_shapes import infer_shapes
from detector.darknet.network import CfgText, DarknetNet
from detector.errors import DarknetError
from detector.losses.anchor_loss import AnchorLoss
from detector.structures.types import Targets

# Stored values, running statistics included, as Darknet itself counts them.
PARAMETERS = {
    "cd53paspp-gamma": 64_429_405,
    "csresnext50-panet-spp": 57_030_845,
    "yolov3": 62_001_757,
    "yolov3-openimages": 64_807_342,
    "yolov3-tiny": 8_858_734,
    "yolov3-tiny_3l": 9_009_967,
    "yolov3-tiny_obj": 8_858_734,
    "yolov3-voc": 61_678_657,
    "yolov3.coco-giou-12": 62_001_757,
    "yolov3_5l": 62_399_771,
    "yolov4": 64_429_405,
    "yolov4-csp": 52_986_205,
    "yolov4-csp-s-mish": 8_291_165,
    "yolov4-csp-swish": 52_986_205,
    "yolov4-csp-x-swish": 99_847_037,
    "yolov4-custom": 64_429_405,
    "yolov4-p5": 70_917_468,
    "yolov4-p6": 127_717_040,
    "yolov4-tiny": 6_062_814,
    "yolov4-tiny-3l": 6_334_045,
    "yolov4-tiny-custom": 6_062_814,
    "yolov4-tiny_contrastive": 7_390_429,
    "yolov4x-mish": 99_847_037,
    "yolov7": 36_974_557,
    "yolov7-tiny": 6_241_885,
}
SHIPPED = (
    *("yolov3", "yolov3-tiny", "yolov4", "yolov4-tiny", "yolov4-csp", "yolov4x-mish", "yolov4-p5", "yolov4-p6"),
    *("yolov7-tiny", "yolov7"),
)
# Large networks take gigabytes of memory and minutes on a small machine.
QUICK = ("yolov3-tiny", "yolov4-tiny", "yolov7-tiny")


def build(name: str | Path) -> DarknetNet:
    torch.manual_seed(0)
    text = CfgText.of_file(str(name))
    return DarknetNet(DarknetNet.Config(text), num_classes_of(text.parsed()))


def num_stored(net: DarknetNet) -> int:
    statistics = sum(b.numel() for name, b in net.named_buffers() if name.endswith(("running_mean", "running_var")))
    return sum(p.numel() for p in net.parameters()) + statistics


def check_built(net: DarknetNet, name: str) -> None:
    """Check the number of parameters and the shapes of the raw maps, on the meta device."""
    assert num_stored(net) == PARAMETERS[name]
    assert sum(shape.num_parameters for shape in infer_shapes(net.cfg)) == PARAMETERS[name]
    side = 2 * net.max_stride
    raw = net.eval()(torch.zeros(1, 3, side, side, dtype=torch.uint8, device="meta"))
    assert [m.shape[1] for m in raw] == [level.num_channels for level in net.anchor_levels]
    assert [side / m.shape[2] for m in raw] == [level.stride_hw[0] for level in net.anchor_levels]


def check_weights(net: DarknetNet, name: str, folder: Path) -> None:
    first, second = folder / "first.weights", folder / "second.weights"
    net.save_weights(first)
    assert first.stat().st_size == 20 + 4 * PARAMETERS[name]
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.zero_()
    assert net.load_weights(first) == ()
    net.save_weights(second)
    assert first.read_bytes() == second.read_bytes()


def check_training_step(net: DarknetNet) -> None:
    side = 2 * net.max_stride
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.manual_seed(0))
    boxes = torch.tensor([[4.0, 4, 40, 50], [10, 12, 60, 30]])
    targets = Targets(boxes, torch.tensor([0, 1]), torch.tensor([0, 1]), torch.zeros(2, dtype=torch.bool), 2)
    parts: dict[str, Tensor] = AnchorLoss(AnchorLoss.Config(), net)(net.train()(images), targets)
    total = torch.stack(list(parts.values())).sum()
    total.backward()  # type: ignore[no-untyped-call]  # not typed by torch
    assert total.isfinite()
    num_frozen = net.num_frozen()
    for parameter_name, parameter in net.named_parameters():
        frozen = int(parameter_name.split(".")[1]) < num_frozen
        assert (parameter.grad is None) == frozen, parameter_name
        assert frozen or bool(parameter.grad.isfinite().all()), parameter_name  # type: ignore[union-attr]


def marked(names: tuple[str, ...]) -> list[object]:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.nightly) for name in names]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_network_has_its_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        check_built(build(name), name)


@pytest.mark.parametrize("name", marked(SHIPPED))
def test_shipped_network_trains_and_keeps_its_weights(name: str, tmp_path: Path) -> None:
    net = build(name)
    check_training_step(net)
    check_weights(net, name, tmp_path)


@pytest.mark.parametrize("name", PARAMETERS)
def test_released_network_has_its_number_of_parameters(name: str, released_cfgs: Path) -> None:
    with torch.device("meta"):
        check_built(build(released_cfgs / f"{name}.cfg"), name)


@pytest.mark.parametrize("name", PARAMETERS)
def test_released_network_is_read_completely_and_written_back(name: str, released_cfgs: Path) -> None:
    cfg = read_cfg(released_cfgs / f"{name}.cfg")
    assert parse_cfg(dump_cfg(cfg), name) == cfg
    assert len(infer_shapes(cfg)) == len(cfg.layers)
    expected = ["'batch'", "'subdiv"] if name == "yolov3-openimages" else []
    assert [warning.split("] ")[1][:7] for warning in cfg.warnings] == expected


@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name in PARAMETERS if name != "yolov4-tiny_contrastive"])
def test_released_network_trains_and_keeps_its_weights(name: str, released_cfgs: Path, tmp_path: Path) -> None:
    net = build(released_cfgs / f"{name}.cfg")
    check_training_step(net)
    check_weights(net, name, tmp_path)


def test_contrastive_network_runs_and_refuses_training(released_cfgs: Path, tmp_path: Path) -> None:
    net = build(released_cfgs / "yolov4-tiny_contrastive.cfg").eval()
    with torch.no_grad():
        boxes, scores = net.decode(net(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)))
    assert boxes.shape[1] == scores.shape[1] == 8 * 8 * 9
    assert net.reasons_against_training() == [
        "yolov4-tiny_contrastive.cfg:1: [net] contrastive=1 is not supported in training",
        "yolov4-tiny_contrastive.cfg:447: [contrastive] is a loss on embeddings, which is not supported in training",
    ]
    check_weights(net, "yolov4-tiny_contrastive", tmp_path)


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("yolov3-tiny_xnor", (":38: [convolutional] xnor='1' cannot be honoured: binary networks",)),
        ("yolov3-tiny_occlusion_track", (":112: [crnn] cannot be honoured: recurrent", ":18: [net] track='1' cannot")),
    ],
)
def test_unsupported_network_is_refused_with_file_line_section_and_reason(
    name: str, reasons: tuple[str, ...], released_cfgs: Path
) -> None:
    with pytest.raises(DarknetError) as refusal:
        build(released_cfgs / f"{name}.cfg")
    for reason in reasons:
        assert f"{name}.cfg{reason}" in str(refusal.value)
    for line in str(refusal.value).splitlines():
        assert line.startswith(f"{name}.cfg:")
        assert " cannot be honoured: " in line


def test_every_released_network_is_covered(released_cfgs: Path) -> None:
    refused = {"yolov3-tiny_xnor", "yolov3-tiny_occlusion_track"}
    assert {path.stem for path in released_cfgs.glob("*.cfg")} == {*PARAMETERS, *refused}
