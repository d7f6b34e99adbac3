from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from detector.config.nodes import presets_dir
from detector.config.registry import Kind, build, find, find_config_class, names
from detector.errors import ConfigError
from detector.losses.loss import LossConfig
from detector.losses.task_aligned import TaskAlignedLoss
from detector.models.activations import ActivationConfig, Mish
from detector.models.attention import SqueezeExcite
from detector.models.backbones import BackboneConfig, CSPDarknet
from detector.models.blocks import SPP, ConvNormAct, CSPStage, Scale
from detector.models.contracts import DetectionModel, ModelConfig
from detector.models.heads import DecoupledHead, DensePredictions, HeadConfig
from detector.models.necks import NeckConfig
from detector.models.yolo import Yolo
from detector.models.yolox import Yolox
from detector.structures.canvas import InputConfig
from detector.structures.types import Targets
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import ModelSize, build_model, load_detection, measure_presets
from detector.tasks.task import load_experiment

SIZES = [(32, 32), (64, 96), (160, 32)]
PARTS = [
    (kind, name)
    for kind in (ModelConfig, BackboneConfig, NeckConfig, HeadConfig, ActivationConfig)
    for name in names(kind)
]
FIELDS: dict[Kind, str] = {
    BackboneConfig: "backbone",
    NeckConfig: "neck",
    HeadConfig: "head",
    ActivationConfig: "activation",
}
PRESETS = sorted(
    path.stem for path in presets_dir().glob("*.yaml") if isinstance(load_experiment(path.stem), DetectionConfig)
)


def config_with(kind: Kind, name: str) -> ModelConfig:
    """Return the default model with one part replaced, or a registered model with its default settings."""
    part = find_config_class(kind, name)()
    if isinstance(part, ModelConfig):
        return part
    changed: dict[str, Any] = {FIELDS[kind]: part}
    return replace(Yolo.Config(), **changed)


def make(config: ModelConfig | None = None, num_classes: int = 3, channels: int = 3) -> DetectionModel:
    torch.manual_seed(0)
    model: DetectionModel = build(config or Yolo.Config(), num_classes, channels)
    return model


def images(image_hw: tuple[int, int], num: int = 1, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (num, channels, *image_hw), dtype=torch.uint8, generator=torch.manual_seed(1))


def num_cells(image_hw: tuple[int, int]) -> int:
    return sum((image_hw[0] // s) * (image_hw[1] // s) for s in (8, 16, 32))


@pytest.fixture(scope="module")
def yolo() -> Yolo:
    model = make().eval()
    assert isinstance(model, Yolo)
    return model


# ---- every registered part


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_every_part_works_in_a_model_that_keeps_the_contract(kind: type, name: str) -> None:
    model = make(config_with(kind, name))
    found: dict[bool, Any] = {}
    for training in (True, False):
        model.train(training)
        with torch.no_grad():
            found[training] = model(images((64, 96), num=2))
    assert type(found[True]) is type(found[False]) is tuple
    assert [m.shape for m in found[True]] == [m.shape for m in found[False]]
    for raw in found[False]:
        assert raw.dtype == torch.float32
        assert len(raw) == 2
        assert raw.isfinite().all()
    boxes, scores = model.decode(found[False])
    assert boxes.shape == (2, scores.shape[1], 4)
    assert scores.shape[2] == model.num_classes == 3
    assert boxes.dtype == scores.dtype == torch.float32
    assert (boxes[..., 2:] >= boxes[..., :2]).all()
    assert scores.min() >= 0
    assert scores.max() <= 1


@pytest.mark.parametrize("name", names(ModelConfig))
@pytest.mark.parametrize("image_hw", SIZES)
def test_every_size_that_is_a_multiple_of_the_stride_is_accepted(name: str, image_hw: tuple[int, int]) -> None:
    model = make(config_with(ModelConfig, name)).eval()
    with torch.no_grad():
        raw = model(images(image_hw))
    boxes, scores = model.decode(raw)
    assert boxes.shape[1] == scores.shape[1] > 0
    if isinstance(model, Yolo):
        assert [tuple(m.shape[2:]) for m in raw] == [(image_hw[0] // s, image_hw[1] // s) for s in (8, 16, 32)]
        assert boxes.shape[1] == num_cells(image_hw)


@pytest.mark.parametrize("name", names(ModelConfig))
@pytest.mark.parametrize("image_hw", [(33, 64), (64, 48), (16, 64), (0, 64)])
def test_a_size_that_is_not_a_multiple_of_the_stride_is_refused(name: str, image_hw: tuple[int, int]) -> None:
    model = make(config_with(ModelConfig, name)).eval()
    with pytest.raises(ValueError, match=rf"multiple of {model.max_stride}, got \({image_hw[0]}, {image_hw[1]}\)"):
        model(images(image_hw))


@pytest.mark.parametrize("name", names(ModelConfig))
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("num_classes", [1, 200])
def test_any_number_of_channels_and_classes_is_accepted(name: str, channels: int, num_classes: int) -> None:
    model = make(config_with(ModelConfig, name), num_classes, channels).eval()
    with torch.no_grad():
        boxes, scores = model.decode(model(images((32, 64), channels=channels)))
    assert scores.shape[2] == num_classes
    assert boxes.isfinite().all()


@pytest.mark.parametrize("counts", [(0, 3), (3, 0), (-1, 3)])
def test_a_model_without_classes_or_channels_is_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1 class and 1 channel"):
        Yolo(Yolo.Config(), *counts)


@pytest.mark.parametrize("name", names(ModelConfig))
def test_evaluation_is_deterministic_and_independent_of_the_other_images_of_the_batch(name: str) -> None:
    model = make(config_with(ModelConfig, name)).eval()
    batch = images((64, 64), num=3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        first, second, alone = model(batch), model(batch), model(batch[1:2])
    for a, b, c in zip(first, second, alone, strict=True):
        assert torch.equal(a, b)
        assert torch.allclose(a[1:2], c, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", [n for n in names(ModelConfig) if n != "yolox"])  # which takes BGR in 0..255
def test_pixels_are_divided_by_255_exactly_once(name: str) -> None:
    model = make(config_with(ModelConfig, name)).eval()
    seen: list[Tensor] = []
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch = images((32, 32))
    with torch.no_grad():
        model(batch)
    assert torch.allclose(seen[0].double(), batch.double() / 255, rtol=1e-6, atol=0)


# ---- the activation


@pytest.mark.parametrize("name", names(ActivationConfig))
def test_one_key_sets_the_activation_of_every_block(name: str) -> None:
    model = make(config_with(ActivationConfig, name))
    blocks = [m for m in model.modules() if isinstance(m, ConvNormAct)]
    assert len(blocks) > 50
    assert {type(m.activation) for m in blocks} == {find(ActivationConfig, name)}
    others = {find(ActivationConfig, n) for n in names(ActivationConfig) if n != name}
    assert not [m for m in model.modules() if type(m) in others]


# ---- blocks


def test_spatial_pyramid_pooling_has_windows_of_5_9_and_13() -> None:
    spp = SPP(8, 8, find_config_class(ActivationConfig, "linear")()).eval()
    x = torch.randn(1, 8, 17, 15)
    seen: list[Tensor] = []
    spp.merge.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        spp(x)
        reduced = spp.reduce(x)
    pooled = [nn.functional.max_pool2d(reduced, k, stride=1, padding=k // 2) for k in (5, 9, 13)]
    assert torch.equal(seen[0], torch.cat([reduced, *pooled], dim=1))


def test_a_stage_merges_the_output_of_every_bottleneck() -> None:
    stage = CSPStage(16, 24, 3, find_config_class(ActivationConfig, "mish")()).eval()
    assert stage.merge.conv.in_channels == (2 + 3) * 16  # 24 / 2, rounded to a multiple of 8 in half-even steps
    assert stage(torch.randn(2, 16, 5, 7)).shape == (2, 24, 5, 7)


@pytest.mark.parametrize("base", [16, 64, 100, 512, 1024, 2048])
@pytest.mark.parametrize("width", [0.01, 0.25, 0.5, 1.0, 1.3])
def test_channels_are_multiples_of_8_close_to_the_scaled_number(base: int, width: float) -> None:
    channels = Scale(width=width, max_channels=1024).channels(base)
    assert channels % 8 == 0
    assert channels >= 8
    assert channels == 8 or abs(channels - min(base, 1024) * width) <= 4


@pytest.mark.parametrize(("depth", "repeats"), [(0.01, [1, 1]), (0.33, [1, 2]), (0.67, [2, 4]), (1.0, [3, 6])])
def test_depth_scales_the_number_of_bottlenecks_to_at_least_one(depth: float, repeats: list[int]) -> None:
    assert [Scale(depth=depth).repeats(n) for n in (3, 6)] == repeats


# ---- the head


@pytest.mark.parametrize("num_classes", [1, 80, 200])
@pytest.mark.parametrize("objects_per_image", [5.0, 50.0])
def test_every_class_starts_at_its_prior_probability(num_classes: int, objects_per_image: float) -> None:
    config = replace(Yolo.Config(), head=DecoupledHead.Config(objects_per_image=objects_per_image))
    model = make(config, num_classes).eval()
    with torch.no_grad():
        raw = model(images((64, 64)))
    for level, stride in zip(raw, (8, 16, 32), strict=True):
        prior = objects_per_image / num_classes / (640 / stride) ** 2
        mean = level[:, 64:].double().sigmoid().mean().item()
        assert mean == pytest.approx(prior, rel=0.05)


def test_the_prior_of_a_crowded_image_is_at_most_one_half() -> None:
    model = make(replace(Yolo.Config(), head=DecoupledHead.Config(objects_per_image=1e6)), 1)
    assert isinstance(model, Yolo)
    assert isinstance(model.head, DecoupledHead)
    last = [list(branch.children())[-1] for branch in model.head.class_branches]
    biases = [module.bias for module in last if isinstance(module, nn.Conv2d)]
    assert [None if bias is None else bias.item() for bias in biases] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("settings", [{"bins": 1}, {"objects_per_image": 0.0}, {"objects_per_image": -1.0}])
def test_a_head_without_bins_or_objects_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="bins >= 2 and objects_per_image > 0"):
        DecoupledHead.Config(**settings)


def softmax(values: list[float]) -> list[float]:
    exponentials = [math.exp(v - max(values)) for v in values]
    return [e / sum(exponentials) for e in exponentials]


def test_decoding_equals_a_loop_over_levels_rows_and_columns(yolo: Yolo) -> None:
    torch.manual_seed(2)
    raw = tuple(torch.randn(2, 4 * 16 + 3, 64 // s, 96 // s) * 3 for s in (8, 16, 32))
    boxes, scores = yolo.decode(raw)
    assert boxes.shape == (2, num_cells((64, 96)), 4)
    for image in range(2):
        cell = 0
        for level, stride in zip(raw, (8, 16, 32), strict=True):
            for row in range(level.shape[2]):
                for column in range(level.shape[3]):
                    values = level[image, :, row, column].double().tolist()
                    left, top, right, bottom = (
                        sum(p * i for i, p in enumerate(softmax(values[16 * side : 16 * side + 16]))) * stride
                        for side in range(4)
                    )
                    x, y = (column + 0.5) * stride, (row + 0.5) * stride
                    wanted = [x - left, y - top, x + right, y + bottom]
                    assert boxes[image, cell].tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-3)
                    probability = [1 / (1 + math.exp(-v)) for v in values[64:]]
                    assert scores[image, cell].tolist() == pytest.approx(probability, rel=1e-5, abs=1e-7)
                    cell += 1
        assert cell == boxes.shape[1]


def test_a_box_is_the_mean_of_its_distance_distributions() -> None:
    logits = torch.full((1, 1, 4, 16), -1e4)
    logits[0, 0, 0, 3] = 0.0  # all on 3
    logits[0, 0, 1, [2, 4]] = 0.0  # half on 2, half on 4
    logits[0, 0, 2, :] = 0.0  # even: 7.5
    logits[0, 0, 3, 0], logits[0, 0, 3, 15] = 0.0, math.log(3)  # a quarter on 0, the rest on 15
    dense = DensePredictions(logits, torch.zeros(1, 1, 1), torch.tensor([[100.0, 200.0]]), torch.tensor([8.0]))
    wanted = [100 - 3 * 8, 200 - 3 * 8, 100 + 7.5 * 8, 200 + 11.25 * 8]
    assert dense.canvas_xyxy()[0, 0].tolist() == pytest.approx(wanted)


def test_decoding_is_float32_under_autocast(yolo: Yolo) -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        raw = yolo(images((64, 64)))
        assert raw[0].dtype == torch.bfloat16
        boxes, scores = yolo.decode(raw)
    assert boxes.dtype == scores.dtype == torch.float32
    exact = yolo.decode(tuple(m.float() for m in raw))
    assert torch.allclose(scores, exact[1], rtol=1e-6, atol=0)
    assert torch.allclose(boxes, exact[0], rtol=0, atol=1e-3)


# ---- gradients


# simota gives an object few cells, so that some levels get no box; tests/losses/test_simota.py compares its gradients.
@pytest.mark.parametrize("name", [n for n in names(LossConfig) if n != "simota"])
def test_every_parameter_gets_a_gradient_from_the_loss(name: str) -> None:
    model = make(find_config_class(ModelConfig, "darknet")() if name == "anchor" else None).train()
    config = find_config_class(LossConfig, name)()
    if isinstance(config, TaskAlignedLoss.Config):
        config = replace(config, num_candidates=1000)  # so that an object reaches every level
    loss = build(config, model)
    boxes = torch.tensor([[4.0, 8, 60, 90], [20, 20, 50, 44]])
    targets = Targets(boxes, torch.tensor([0, 2]), torch.tensor([0, 1]), torch.zeros(2, dtype=torch.bool), 2)
    parts = loss(model(images((64, 96), num=2)), targets)
    torch.stack(list(parts.values())).sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# ---- presets


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_a_model(preset: str) -> None:
    config = load_detection(preset)
    with torch.device("meta"):
        model = build_model(config, 80).eval()
        raw = model(torch.zeros(2, config.input.channels, 64, 96, dtype=torch.uint8))
        boxes, scores = model.decode(raw)
    assert boxes.shape[:2] == scores.shape[:2]
    assert scores.shape[2] == 80
    if isinstance(model, Yolo):
        boxes_per_cell = len(model.anchor_levels[0].mask) if model.anchor_levels else 1
        assert boxes.shape[:2] == (2, num_cells((64, 96)) * boxes_per_cell)


# Millions of parameters and GFLOPs (two per multiply-add) at 640 x 640 and 80 classes: the range of the sizes of other
# published families.
BOUNDS = {
    "mish-n": ((2.0, 3.2), (5.0, 8.0)),
    "mish-s": ((7.0, 11.5), (15.0, 29.0)),
    "mish-m": ((15.0, 26.0), (40.0, 80.0)),
    "mish-l": ((20.0, 45.0), (80.0, 170.0)),
    "mish-x": ((43.0, 70.0), (150.0, 260.0)),
}


@pytest.fixture(scope="module")
def sizes() -> dict[str, ModelSize]:
    return {size.preset: size for size in measure_presets(640, 80)}


@pytest.mark.parametrize("preset", BOUNDS)
def test_every_size_of_the_family_is_within_its_bounds(preset: str, sizes: dict[str, ModelSize]) -> None:
    (fewest, most), (cheapest, dearest) = BOUNDS[preset]
    assert fewest <= sizes[preset].num_parameters / 1e6 <= most
    assert cheapest <= sizes[preset].gflops <= dearest


@pytest.mark.parametrize("preset", ["mish-n", "yolox-nano"])
def test_gflops_are_those_that_torch_counts(preset: str, sizes: dict[str, ModelSize]) -> None:
    with torch.device("meta"):
        model = build_model(load_detection(preset), 80).eval()
        image = torch.zeros(1, 3, 640, 640, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        model(image)
    assert counter.get_total_flops() / 1e9 == pytest.approx(sizes[preset].gflops, rel=1e-9)
    assert sum(p.numel() for p in model.parameters()) == sizes[preset].num_parameters


def test_the_family_grows_from_n_to_x(sizes: dict[str, ModelSize]) -> None:
    measured = [sizes[preset] for preset in BOUNDS]
    assert [m.num_parameters for m in measured] == sorted(m.num_parameters for m in measured)
    assert [m.gflops for m in measured] == sorted(m.gflops for m in measured)


# ---- bins of the distances that follow the canvas


@pytest.mark.parametrize(
    ("size", "multi_scale", "bins"),
    [
        (32, 0.0, 16),
        (640, 0.0, 16),
        (640, 0.25, 16),
        (896, 0.0, 16),
        (960, 0.0, 17),
        (640, 0.5, 17),
        (1280, 0.0, 22),
        (1280, 0.25, 27),
        (1536, 0.0, 26),
        ((384, 1920), 0.0, 32),
    ],
)
def test_bins_follow_the_largest_canvas_and_express_an_object_that_fills_it(
    size: int | tuple[int, int], multi_scale: float, bins: int
) -> None:
    given = DetectionConfig(input=InputConfig(size=size, multi_scale=multi_scale))
    config = given.for_canvas()
    assert isinstance(config.model, Yolo.Config)
    settings = config.model.head
    assert isinstance(settings, DecoupledHead.Config)
    assert settings.bins == bins
    assert config.for_canvas() == config
    strides = (8, 16, 32)
    with torch.device("meta"):
        head = DecoupledHead(settings, Scale(1, 1, 64, Mish.Config()), (16, 16, 16), strides, 2)
    height, width = (int(side * (1 + multi_scale)) // 32 for side in config.input.canvas_hw)
    assert head.longest_side_px >= max(height, width) * 32
    # The best box of a cell next to the middle of the canvas, from the distribution at the nearest bins.
    points = (torch.tensor([height // 2, width // 2]) + 0.5) * 32
    distances = torch.stack([points[1], points[0], width * 32 - points[1], height * 32 - points[0]]) / 32
    kept = distances.clamp(max=head.bins - 1.01) * 32
    iou = float((kept[0] + kept[2]) * (kept[1] + kept[3]) / (height * width * 32 * 32))
    assert iou == pytest.approx(1.0)


def test_bins_that_are_given_stay_and_those_left_open_are_taken_from_a_run() -> None:
    fixed = DecoupledHead.Config(bins=12)
    assert fixed.for_canvas(4000, 32) is fixed
    assert fixed.with_choices_of(DecoupledHead.Config(bins=20)) is fixed
    assert DecoupledHead.Config().with_choices_of(DecoupledHead.Config(bins=20)).bins == 20
    plain = DecoupledHead.Config()
    assert plain.for_canvas(640, 32) == DecoupledHead.Config(bins=16)


def test_more_bins_change_only_the_last_convolution_of_the_boxes() -> None:
    with torch.device("meta"):
        small, large = (
            build_model(DetectionConfig(input=InputConfig(size=size)).for_canvas(), 3) for size in (640, 1280)
        )
    shapes = ({name: tuple(t.shape) for name, t in m.state_dict().items()} for m in (small, large))
    first, second = shapes
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {f"head.box_branches.{level}.2.{kind}" for level in range(3) for kind in ("weight", "bias")}


# ---- levels


def of_levels(levels: tuple[int, ...] | None, **settings: Any) -> DetectionModel:
    return make(Yolo.Config(levels=levels, width=0.125, **settings))


def test_default_levels_have_the_same_weights_as_none() -> None:
    named, unnamed = of_levels((8, 16, 32)).state_dict(), of_levels(None).state_dict()
    assert named.keys() == unnamed.keys()
    assert all(torch.equal(named[key], unnamed[key]) for key in named)


@pytest.mark.parametrize("levels", [(4, 8, 16, 32), (4, 8, 16), (8, 16, 32, 64), (8,)])
def test_chosen_levels_reach_maps_boxes_and_loss(levels: tuple[int, ...]) -> None:
    model = of_levels(levels)
    assert model.max_stride == levels[-1]
    raw = model(images((64, 128)))
    assert [tuple(m.shape[2:]) for m in raw] == [(64 // s, 128 // s) for s in levels]
    boxes, _ = model.decode(raw)
    assert boxes.shape[1] == sum((64 // s) * (128 // s) for s in levels)
    target = Targets(
        torch.tensor([[9.0, 9.0, 14.0, 15.0]]), torch.tensor([1]), torch.tensor([0]), torch.tensor([False]), 1
    )
    parts = build(TaskAlignedLoss.Config(enlarge_small=True), model)(raw, target)
    torch.stack(list(parts.values())).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_yolox_takes_an_additional_fine_level() -> None:
    model = make(Yolox.Config(levels=(4, 8, 16, 32), width=0.125))
    assert [tuple(m.shape[2:]) for m in model(images((64, 64)))] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    with pytest.raises(ConfigError, match=r"expected \[8, 16, 32\] or \[4, 8, 16, 32\], got \[4, 8, 16\]"):
        make(Yolox.Config(levels=(4, 8, 16)))


@pytest.mark.parametrize("levels", [(), (32, 16), (4, 16), (2, 4), (8, 16, 32, 64, 128)])
def test_levels_that_do_not_follow_each_other_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"model.levels: csp_darknet: expected strides that follow each other"):
        of_levels(levels)


def test_levels_that_a_backbone_does_not_have_are_refused() -> None:
    backbone = find_config_class(BackboneConfig, "plain")()
    with pytest.raises(ConfigError, match=r"model.levels: expected the strides \[8, 16, 32\] of the backbone plain"):
        of_levels((4, 8, 16, 32), backbone=backbone)
    attention = CSPDarknet.Config(attention=SqueezeExcite.Config())
    with pytest.raises(ConfigError, match=r"attention_strides: expected strides of up to 16, .*got \[32\]"):
        of_levels((4, 8, 16), backbone=attention)


@pytest.mark.parametrize(("levels", "bins"), [((4, 8, 16), 22), ((4, 8, 16, 32), 16)])
def test_the_coarsest_level_expresses_an_object_of_the_size_of_the_canvas(levels: tuple[int, ...], bins: int) -> None:
    config = Yolo.Config(levels=levels).for_canvas(640)
    assert isinstance(config.head, DecoupledHead.Config)
    assert (config.head.bins or 16) == bins
    assert make(config).longest_side_px >= 640
