from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import detector.darknet.layers
from detector.config.registry import build, find_config_class
from detector.darknet.cfg_file import dump_cfg, parse_cfg
from detector.darknet.layer_shapes import infer_shapes
from detector.darknet.network import CfgText, DarknetNet
from detector.darknet.network_builder import build_layers, inputs_of, stored_names
from detector.darknet.weights_file import WeightsHeader
from detector.errors import DarknetError
from detector.models.contracts import ModelConfig

NET = "[net]\nwidth=64\nheight=64\nchannels=3\n"
CONV = "[convolutional]\nbatch_normalize=1\nfilters={}\nsize=3\nstride={}\npad=1\nactivation=leaky\n"
HEAD = (
    "[convolutional]\nfilters=14\nsize=1\nstride=1\nactivation=linear\n"
    "[yolo]\nclasses=2\nnum=2\nanchors=8,8, 16,16\nmask=0,1\n"
)


def net_of(text: str, num_classes: int = 2, channels: int = 3) -> DarknetNet:
    torch.manual_seed(0)
    return DarknetNet(DarknetNet.Config(CfgText("test.cfg", text)), num_classes, channels)


@pytest.mark.parametrize("name", ["9" * 5000 + ".cfg", "~nobody.here/x.cfg", "a\0b.cfg"])
def test_impossible_file_name_is_refused(name: str) -> None:
    with pytest.raises(DarknetError, match=r"no such \.cfg"):
        CfgText.of_file(name)


@pytest.fixture
def tiny(tiny_cfg: Path) -> DarknetNet:
    return net_of(tiny_cfg.read_text("utf-8"), num_classes=3)


def randomised(net: DarknetNet, seed: int = 1) -> DarknetNet:
    """Set the batch norms to random values, so that they are not the identity."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)  # type: ignore[union-attr]
            for tensor in (module.bias.data, module.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))  # type: ignore[union-attr]
    return net


def images(num: int = 2, image_hw: tuple[int, int] = (64, 96)) -> Tensor:
    return torch.randint(0, 256, (num, 3, *image_hw), dtype=torch.uint8, generator=torch.manual_seed(2))


# ---- the forward pass


def test_network_equals_its_layers_connected_by_hand(tiny: DarknetNet) -> None:
    net = randomised(tiny).double().eval()
    state = net.state_dict()

    def conv(index: int, x: Tensor, stride: int, act: Callable[[Tensor], Tensor]) -> Tensor:
        at = f"layers.{index}."
        weight = state[at + "conv.weight"]
        x = F.conv2d(x, weight, state.get(at + "conv.bias"), stride, weight.shape[2] // 2)
        if at + "norm.weight" in state:
            mean, variance = state[at + "norm.running_mean"], state[at + "norm.running_var"]
            x = F.batch_norm(x, mean, variance, state[at + "norm.weight"], state[at + "norm.bias"], eps=1e-5)
        return act(x)

    def leaky(x: Tensor) -> Tensor:
        return F.leaky_relu(x, 0.1)

    with torch.no_grad():
        x = images().double() / 255
        first = conv(1, conv(0, x, 2, leaky), 2, F.mish)
        added = first + conv(2, first, 1, F.mish)
        pooled = F.max_pool2d(added, 2)
        deep = conv(6, pooled[:, 8:], 2, leaky)
        coarse = conv(7, deep, 1, lambda x: x)
        up = F.interpolate(conv(10, deep, 1, leaky), scale_factor=2.0)
        fine = conv(13, torch.cat([up, pooled], dim=1), 1, lambda x: x)
        found = net(images())
    assert [tuple(m.shape) for m in found] == [(2, 24, 4, 6), (2, 16, 8, 12)]
    for ours, wanted in zip(found, (coarse, fine), strict=True):
        assert (ours - wanted).abs().max() <= 1e-12


def test_output_of_a_layer_is_freed_after_its_last_reader(tiny: DarknetNet) -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal most
        if not any(ref() is output for ref in alive):
            alive.append(weakref.ref(output))
        most = max(most, sum(ref() is not None for ref in alive))

    for layer in tiny.layers:
        layer.register_forward_hook(watch)
    with torch.no_grad():
        raw = tiny.eval()(images())
    # Besides the latest output: the two inputs of a shortcut, or a raw map, the pooled map and the maps made from them.
    assert most <= 4
    assert {id(ref()) for ref in alive if ref() is not None} == {id(m) for m in raw}


def test_float_images_are_used_as_they_are_and_bytes_are_divided_by_255(tiny: DarknetNet) -> None:
    tiny.eval()
    with torch.no_grad():
        ours, theirs = tiny(images()), tiny(images().float() / 255)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_boxes_and_scores_are_decoded_from_the_anchor_levels(tiny: DarknetNet) -> None:
    with torch.no_grad():
        boxes, scores = tiny.eval().decode(tiny(images()))
    assert boxes.shape == (2, 4 * 6 * 3 + 8 * 12 * 2, 4)
    assert scores.shape == (*boxes.shape[:2], 3)
    assert [level.stride_hw for level in tiny.anchor_levels] == [(16.0, 16.0), (8.0, 8.0)]
    assert [level.mask for level in tiny.anchor_levels] == [(2, 3, 4), (0, 1)]


@pytest.mark.parametrize(
    ("text", "stride"),
    [
        (CONV.format(4, 2) + HEAD, 2),
        (CONV.format(4, 1) + HEAD, 1),
        ("[convolutional]\nsize=3\nstride=2\nstride_x=4\npad=1\nfilters=4\n" + HEAD, 4),
        (CONV.format(4, 2) * 3 + "[upsample]\nstride=4\n" + HEAD, 8),
        (CONV.format(8, 2) + "[reorg3d]\nstride=2\n" + HEAD, 4),
        (CONV.format(8, 1) + "[reorg]\nstride=2\n" + HEAD, 2),
    ],
)
def test_max_stride_includes_layers_before_the_heads(text: str, stride: int) -> None:
    net = net_of(NET + text).eval()
    assert net.max_stride == stride
    with torch.no_grad():
        net(images(1, (2 * stride, 3 * stride)))
    if stride > 1:
        with pytest.raises(ValueError, match=f"multiple of {stride}, got"):
            net(images(1, (2 * stride + 1, stride)))


def test_cells_that_do_not_divide_the_canvas_are_refused_with_the_line() -> None:
    with pytest.raises(DarknetError, match=r"test\.cfg:17: \[yolo\] has 11 x 11 cells, which do not divide the input"):
        net_of(NET.replace("64", "42") + CONV.format(4, 4) + HEAD)


def test_network_without_a_head_is_refused() -> None:
    with pytest.raises(DarknetError, match=r"expected a \[yolo\], \[Gaussian_yolo\] or \[region\] section, got none"):
        net_of(NET + CONV.format(4, 1))


# ---- training


def test_images_seen_in_training_are_counted(tiny: DarknetNet) -> None:
    tiny.eval()(images(3))
    assert int(tiny.seen) == 0
    tiny.train()(images(3))
    tiny(images(2))
    assert int(tiny.seen) == 5
    assert "seen" in tiny.state_dict()


def gradients(net: DarknetNet) -> list[bool]:
    """Tell for each convolution whether a training step gives it a gradient."""
    net.zero_grad()
    net.train()
    sum(m.square().sum() for m in net(images())).backward()  # type: ignore[union-attr]
    return [p.grad is not None and bool(p.grad.any()) for n, p in net.named_parameters() if n.endswith("conv.weight")]


def test_stopbackward_freezes_earlier_layers_for_good_or_until_an_iteration() -> None:
    parts = [CONV.format(4, 2), CONV.format(4, 1), CONV.format(4, 1)]
    assert gradients(net_of(NET + "".join(parts) + HEAD)) == [True] * 4
    frozen = net_of(NET + parts[0] + parts[1] + "stopbackward=1\n" + parts[2] + HEAD)
    assert gradients(frozen) == gradients(frozen) == [False, False, True, True]
    for_a_time = net_of(NET + "batch=2\n" + parts[0] + parts[1] + "stopbackward=3\n" + parts[2] + HEAD)
    # Two images a step: the first step begins iteration 1, the third iteration 3.
    assert [gradients(for_a_time)[0] for _ in range(4)] == [False, False, True, True]


def test_onlyforward_passes_no_gradient_on() -> None:
    net = net_of(NET + CONV.format(4, 2) + "[route]\nlayers=-1\nonlyforward=1\n" + CONV.format(4, 1) + HEAD)
    assert gradients(net) == [False, True, True]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (NET + CONV.format(4, 1) + "dont_update=10\n" + HEAD, r"test\.cfg:5: \[convolutional\] dont_update=10 is not"),
        (NET + CONV.format(4, 1) + "cbn=1\n" + HEAD, r"test\.cfg:5: \[convolutional\] cbn=1 is not"),
        (NET + "contrastive=1\n" + CONV.format(4, 1) + HEAD, r"test\.cfg:1: \[net\] contrastive=1 is not"),
        (NET + CONV.format(4, 1).replace("leaky", "gelu") + HEAD, r"activation=gelu has no reliable gradient"),
        (NET + CONV.format(18, 1) + "[Gaussian_yolo]\nclasses=9\nnum=1\nanchors=8,8\n", r"\[Gaussian_yolo\] has no"),
        (NET + CONV.format(14, 1) + "[region]\nclasses=9\nnum=1\nanchors=1,1\n", r"\[region\] has no loss here"),
    ],
)  # fmt: skip
def test_reasons_against_training_have_file_and_line(text: str, reason: str) -> None:
    classes = 9 if "classes=9" in text else 2
    net = net_of(text, classes).eval()
    net(images())
    found = net.reasons_against_training()
    assert len(found) == 1
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(found[0])


def test_plain_network_can_be_trained(tiny: DarknetNet) -> None:
    assert tiny.reasons_against_training() == []


def test_dropout_overwrites_the_output_that_later_layers_read() -> None:
    net = net_of(
        NET + CONV.format(4, 1) + "[dropout]\nprobability=1\n" + CONV.format(4, 1) + "[shortcut]\nfrom=0\n" + HEAD
    )
    net.layers[2].register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    seen: list[Tensor] = []
    net.layers[3].register_forward_hook(lambda module, inputs, output: seen.append(output))
    net.train()(images())
    net.eval()(images())
    assert not seen[0].any()
    assert seen[1].any()


# ---- .weights


def test_weights_read_and_written_are_the_same_bytes(tiny: DarknetNet, tiny_cfg: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.weights", tmp_path / "second.weights"
    randomised(tiny).seen.fill_(12345)
    tiny.save_weights(first)
    other = net_of(tiny_cfg.read_text("utf-8"), 3)
    assert other.load_weights(first) == ()
    assert int(other.seen) == 12345
    assert {k: v for k, v in other.state_dict().items() if not torch.equal(v, tiny.state_dict()[k])} == {}
    other.save_weights(second)
    assert first.read_bytes() == second.read_bytes()
    other.save_weights(second, WeightsHeader(0, 1, 0, 7))
    assert second.read_bytes()[16:] == first.read_bytes()[20:]


def test_order_in_the_file_is_bias_scale_mean_variance_kernel(tmp_path: Path) -> None:
    net = net_of(NET + CONV.format(2, 1) + HEAD)
    state = net.state_dict()
    for value, name in enumerate(("bias", "weight", "running_mean", "running_var"), start=1):
        state[f"layers.0.norm.{name}"].fill_(value)
    net.save_weights(tmp_path / "net.weights")
    values = np.frombuffer((tmp_path / "net.weights").read_bytes()[20:], "<f4")
    assert values[:8].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    assert np.array_equal(values[8:62], state["layers.0.conv.weight"].numpy().ravel())
    assert np.array_equal(values[62:76], state["layers.1.conv.bias"].numpy())


def test_partial_file_keeps_the_other_tensors_and_names_them(tiny: DarknetNet, tiny_cfg: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.conv.6"
    randomised(tiny).save_weights(path)
    ends = 4 * sum(shape.num_parameters for shape in infer_shapes(tiny.cfg)[:6])
    path.write_bytes(path.read_bytes()[: 20 + ends])
    other = net_of(tiny_cfg.read_text("utf-8"), 3)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(DarknetError, match="bytes too short"):
        other.load_weights(path)
    missing = other.load_weights(path, partial=True)
    assert {name.split(".")[1] for name in missing} == {"6", "7", "10", "13"}
    for name, tensor in other.state_dict().items():
        if name in missing:
            assert torch.equal(tensor, before[name]), name
        elif "num_batches" not in name and name != "seen":
            assert torch.equal(tensor, tiny.state_dict()[name]), name


def test_refused_weights_of_another_network_change_nothing(tiny: DarknetNet, tmp_path: Path) -> None:
    net_of(NET + CONV.format(4, 1) + HEAD).save_weights(tmp_path / "other.weights")
    before = {key: value.clone() for key, value in tiny.state_dict().items()}
    with pytest.raises(DarknetError, match="belongs to another network"):
        tiny.load_weights(tmp_path / "other.weights", partial=True)
    assert all(torch.equal(value, before[key]) for key, value in tiny.state_dict().items())


def test_shared_convolutions_are_stored_once(tmp_path: Path) -> None:
    text = NET + CONV.format(4, 1) + CONV.format(4, 1) + CONV.format(4, 1) + "share_index=1\n" + HEAD
    net, other = randomised(net_of(text)).eval(), net_of(text).eval()
    net.save_weights(tmp_path / "net.weights")
    other.load_weights(tmp_path / "net.weights")
    assert torch.equal(other.get_parameter("layers.2.conv.weight"), net.get_parameter("layers.1.conv.weight"))
    with torch.no_grad():
        assert torch.equal(net(images())[0], other(images())[0])
        folded = net.folded()
        assert torch.allclose(folded(images())[0], net(images())[0], rtol=1e-4, atol=1e-4)
    alone = net_of(text.replace("share_index=1\n", ""))
    assert len(list(alone.parameters())) - len(list(net.parameters())) == 3


def test_folded_network_gives_the_same_outputs_without_batch_norm(tiny: DarknetNet, tmp_path: Path) -> None:
    net = randomised(tiny).eval()
    folded = net.folded()
    text = dump_cfg(folded.cfg)
    assert "batch_normalize" not in text
    assert "batch_normalize=1" in dump_cfg(net.cfg)
    folded.save_weights(tmp_path / "folded.weights")
    read = net_of(text, 3).eval()
    read.load_weights(tmp_path / "folded.weights")
    with torch.no_grad():
        for a, b in zip(net(images()), read(images()), strict=True):
            assert (a - b).abs().max() <= 2e-6 * a.abs().max()
    assert any(isinstance(m, nn.BatchNorm2d) for m in net.modules())  # the model itself is not changed


# ---- the registry


def test_default_network_is_the_shipped_yolov4_tiny() -> None:
    with torch.device("meta"):
        net = build(find_config_class(ModelConfig, "darknet")(), 80)
    assert isinstance(net, DarknetNet)
    assert net.cfg.path == "yolov4-tiny.cfg"
    assert (
        sum(p.numel() for p in net.parameters()) + sum(b.numel() for n, b in net.named_buffers() if "running" in n)
        == 6_062_814
    )


@pytest.mark.parametrize("counts", [(0, 3), (3, 0)])
def test_model_without_classes_or_channels_is_refused(counts: tuple[int, int], tiny_cfg: Path) -> None:
    with pytest.raises(ValueError, match="at least 1 class and 1 channel"):
        net_of(tiny_cfg.read_text("utf-8"), *counts)


def test_errors_and_warnings_have_the_name_of_the_file() -> None:
    with pytest.raises(DarknetError, match=r"test\.cfg:5: \[crnn\] cannot be honoured: recurrent"):
        net_of(NET + "[crnn]\n" + HEAD)
    with pytest.raises(DarknetError, match=r"test\.cfg:7: \[convolutional\] xnor='1' cannot be honoured: binary"):
        net_of(NET + "[convolutional]\nfilters=4\nxnor=1\n" + HEAD)
    with pytest.raises(DarknetError, match=r"test\.cfg:5: \[connected\] cannot be honoured"):
        net_of(NET + "[connected]\noutput=4\n" + HEAD)
    noted = net_of(NET + CONV.format(4, 1) + "colour=3\n" + HEAD).notes
    assert len(noted) == 1
    assert noted[0].startswith("test.cfg:12: [convolutional] 'colour' is an unknown key")


# ---- Darknet's own numbers


def run_golden(numbers: dict[str, np.ndarray], name: str) -> dict[int, float]:
    """Return the largest difference to Darknet's output of each layer."""
    cfg = parse_cfg(str(numbers["cfg"]), name)
    shapes = infer_shapes(cfg)
    layers = build_layers(cfg, shapes).eval()
    values = torch.from_numpy(np.frombuffer(numbers["weights"].tobytes()[20:], "<f4").copy())
    offset = 0
    for layer, shape in zip(layers, shapes, strict=True):
        state = layer.state_dict()
        for array, size in shape.arrays.items():
            tensor = state[stored_names(layer)[array]]
            tensor.copy_(values[offset : offset + tensor.numel()].reshape(size))
            offset += tensor.numel()
    assert offset == len(values)
    outputs, differences = {-1: torch.from_numpy(numbers["input"])[None]}, {}
    with torch.no_grad():
        for index, layer in enumerate(layers):
            outputs[index] = layer(*(outputs[source] for source in inputs_of(cfg, index)))
            wanted = numbers[f"out{index}"]
            assert tuple(outputs[index].shape[1:]) == wanted.shape
            differences[index] = float(np.abs(outputs[index][0].numpy() - wanted).max())
    return differences


def test_every_layer_equals_that_of_darknets_own_build(darknet_numbers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = sorted(darknet_numbers.glob("layer_*.npz"))
    assert len(cases) > 40
    for case in cases:
        # Darknet's unfused CPU code rectifies the weights of a shortcut at 0, all its other code at 0.001.
        is_unfused = "relu_fuse0" in case.name
        with monkeypatch.context() as patch, np.load(case, allow_pickle=False) as numbers:
            if is_unfused:
                patch.setattr(detector.darknet.layers, "_SMALLEST_WEIGHT", 0.0)
            assert max(run_golden(dict(numbers), case.name).values()) <= 4e-6, case.name
