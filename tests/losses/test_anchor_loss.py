"""The anchor loss: Darknet's numbers, the scale of its gradient, and models that it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detector.errors import ConfigError
from detector.losses import anchor_deltas
from detector.losses.anchor_loss import AnchorLoss
from detector.losses.task_aligned import TaskAlignedLoss
from detector.models.anchor_levels import AnchorLevel, AnchorTraining, activate
from detector.structures.boxes import cxcywh_to_xyxy
from detector.structures.types import Targets
from detector.training.optimizers import SGD, build_optimizer

ANCHORS = ((10.0, 14.0), (23.0, 27.0), (37.0, 58.0))
GOLDEN = (
    "ciou", "diou_thr", "giou", "ignore_low_nosmooth", "iou_unknown_kind_iou", "label_smooth", "mse_default",
    "mse_iou_thresh", "newcoords_ignore_low", "newcoords_mse", "thr_kind_ciou", "thr_kind_diou", "thr_kind_giou",
    "truth_thresh_3",
)  # fmt: skip


def loss_of(*levels: AnchorLevel) -> AnchorLoss:
    return AnchorLoss(AnchorLoss.Config(), SimpleNamespace(anchor_levels=levels))  # type: ignore[arg-type]  # no model


def level_of(**settings: Any) -> AnchorLevel:
    training = AnchorTraining(**settings.pop("training", {}))
    return AnchorLevel(
        **{"num_classes": 2, "anchors_wh": ANCHORS, "mask": (0, 1, 2), "stride_hw": (8.0, 8.0), **settings},
        training=training,
    )


def targets_of(*rows: tuple[int, tuple[float, ...], int], num_images: int = 2, ignore: bool = False) -> Targets:
    """Return targets from rows of image, box and label."""
    return Targets(
        torch.tensor([box for _, box, _ in rows], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([label for _, _, label in rows], dtype=torch.int64),
        torch.tensor([image for image, _, _ in rows], dtype=torch.int64),
        torch.full((len(rows),), ignore, dtype=torch.bool),
        num_images,
    )


TWO_OBJECTS = targets_of((0, (4, 6, 30, 40), 1), (1, (20, 10, 44, 30), 0))


def total_of(parts: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).sum()


def gradient_of(loss: AnchorLoss, raw: Tensor, targets: Targets, scale: float = 1.0) -> Tensor:
    leaf = raw.clone().requires_grad_()
    (total_of(loss((leaf,), targets)) * scale).backward()
    assert leaf.grad is not None
    return leaf.grad


# ---- Darknet's own numbers


def keys_of(section: str) -> dict[str, str]:
    return dict(line.split("=") for line in section.split() if "=" in line)


def read_golden(path: Path) -> tuple[Tensor, AnchorLevel, Targets, Any]:
    """Return raw map, level, targets and numbers of a file: a 1 x 1 convolution of stride 8 below one `[yolo]`."""
    with np.load(path) as file:
        numbers = dict(file)
    convolution, yolo = (keys_of(part) for part in str(numbers["cfg"]).split("[convolutional]")[1].split("[yolo]"))
    values = torch.from_numpy(np.frombuffer(numbers["weights"].tobytes(), "<f4", offset=20).copy())
    biases, weights = values[:27], values[27:].reshape(27, 3, 1, 1)
    raw = torch.conv2d(torch.from_numpy(numbers["input"]), weights, biases, stride=8)
    raw = raw.sigmoid() if convolution["activation"] == "logistic" else raw
    sides = [float(side) for side in yolo["anchors"].split(",")]
    training: dict[str, Any] = {key: yolo[key] for key in ("iou_loss", "iou_thresh_kind") if key in yolo}
    numeric = ("iou_normalizer", "obj_normalizer", "cls_normalizer", "ignore_thresh", "truth_thresh", "iou_thresh")
    for key in (*numeric, "label_smooth_eps", "max_delta"):
        if key in yolo:
            training[key] = float(yolo[key])
    training["objectness_smooth"] = yolo.get("objectness_smooth") == "1"
    level = AnchorLevel(
        4,
        tuple(zip(sides[::2], sides[1::2], strict=True)),
        tuple(int(index) for index in yolo["mask"].split(",")),
        (8.0, 8.0),
        scale_x_y=float(yolo.get("scale_x_y", "1")),
        new_coords=yolo.get("new_coords") == "1",
        training=AnchorTraining(**training),
    )
    rows = [
        (image, tuple(cxcywh_to_xyxy(row[:4]) * np.array([96, 64, 96, 64], np.float32)), int(row[4]))
        for image, objects in enumerate(numbers["truth"])
        for row in objects
        if row[0] != 0
    ]
    return raw, level, targets_of(*rows), numbers


@pytest.mark.parametrize("name", GOLDEN)
def test_output_deltas_and_cost_equal_darknets(darknet_numbers: Path, name: str) -> None:
    raw, level, targets, numbers = read_golden(darknet_numbers / f"yololoss_{name}.npz")
    assert np.abs(activate(raw, level).numpy() - numbers["yolo_out"]).max() < 1e-6
    loss = loss_of(level)
    deltas = -gradient_of(loss, raw, targets).reshape(numbers["delta"].shape) * len(raw)
    assert np.abs(deltas.numpy() - numbers["delta"]).max() <= 3e-6
    assert total_of(loss((raw,), targets)).item() * len(raw) == pytest.approx(numbers["cost"].item(), rel=1e-6)


def test_every_file_of_darknets_numbers_is_tested(darknet_numbers: Path) -> None:
    assert {path.stem.removeprefix("yololoss_") for path in darknet_numbers.glob("yololoss_*.npz")} == set(GOLDEN)


def test_two_training_steps_of_a_convolution_equal_darknets(darknet_numbers: Path) -> None:
    """The convolution below the head, on the inputs that Darknet's CPU build gave it: deltas, cost, weights, biases.

    What that build does to the batch norm below is no example: it never trains its biases.
    """
    with np.load(darknet_numbers / "trainstep_cpu.npz") as file:
        numbers = {name: torch.from_numpy(file[name]) for name in file.files if name != "cfg"}
    values = torch.from_numpy(np.frombuffer(numbers["weights"].numpy().tobytes(), "<f4", offset=20 + 4 * 124).copy())
    convolution = torch.nn.Conv2d(4, 21, 1)
    assert convolution.bias is not None
    convolution.load_state_dict({"bias": values[:21], "weight": values[21:].reshape(21, 4, 1, 1)})
    # learning_rate=0.01, momentum=0.9, decay=0.0005
    optimizer = build_optimizer(SGD.Config(lr=0.01, momentum=0.9, weight_decay=0.0005, nesterov=False), convolution)
    level = AnchorLevel(2, ((4, 5), (9, 8), (20, 18)), (0, 1, 2), (8.0, 8.0))
    rows = [
        (image, tuple(cxcywh_to_xyxy(row[:4]) * np.float32(32)), int(row[4]))
        for image, objects in enumerate(numbers["truth"].numpy())
        for row in objects
        if row[0] != 0
    ]
    targets, loss = targets_of(*rows, num_images=4), loss_of(level)
    for iteration in ("iter1", "iter2"):
        raw = convolution(numbers[f"out_layer0_{iteration}"].reshape(4, 4, 4, 4))
        raw.retain_grad()
        parts = loss((raw,), targets)
        assert total_of(parts).item() * 4 == pytest.approx(numbers[f"cost_layer2_{iteration}"].item(), rel=1e-6)
        total_of(parts).backward()
        assert (raw.grad.flatten() * 4 + numbers[f"ydelta_layer2_{iteration}"]).abs().max() <= 3e-6
        optimizer.step()
        optimizer.zero_grad()
        assert (convolution.weight.detach().flatten() - numbers[f"w_layer1_{iteration}"]).abs().max() < 3e-7
        assert (convolution.bias.detach() - numbers[f"b_layer1_{iteration}"]).abs().max() < 3e-7


# ---- the scale of the gradient


def test_the_gradient_of_a_batch_in_parts_equals_that_of_the_whole_batch() -> None:
    """The trainer averages over the batches of a step, so Darknet's B is the number of images of the step."""
    level = level_of(training={"iou_loss": "ciou"})
    loss = loss_of(level)
    raw = torch.randn(2, level.num_channels, 6, 6, generator=torch.Generator().manual_seed(1))
    whole = gradient_of(loss, raw, TWO_OBJECTS)
    first, second = targets_of((0, (4, 6, 30, 40), 1), num_images=1), targets_of((0, (20, 10, 44, 30), 0), num_images=1)
    halves = [gradient_of(loss, raw[i : i + 1], part, 0.5) for i, part in enumerate((first, second))]
    assert torch.allclose(torch.cat(halves), whole, atol=1e-7)


def test_gradients_of_levels_are_summed_while_reported_parts_are_averaged() -> None:
    level = level_of()
    raw = torch.randn(2, level.num_channels, 6, 6, generator=torch.Generator().manual_seed(2))
    alone = loss_of(level)((raw,), TWO_OBJECTS)
    leaf = raw.clone().requires_grad_()
    pair = loss_of(level, level)((leaf, leaf), TWO_OBJECTS)
    assert {name: value.item() for name, value in pair.items()} == pytest.approx(
        {name: value.item() for name, value in alone.items()}
    )
    total_of(pair).backward()
    assert leaf.grad is not None
    assert torch.allclose(leaf.grad, 2 * gradient_of(loss_of(level), raw, TWO_OBJECTS), atol=1e-7)


def test_each_part_has_the_gradient_of_its_own_entries() -> None:
    level = level_of(training={"iou_loss": "giou"})
    raw = torch.randn(2, level.num_channels, 6, 6, generator=torch.Generator().manual_seed(3))
    whole = gradient_of(loss_of(level), raw, TWO_OBJECTS).reshape(2, 3, 7, 6, 6)
    for name, entries in (("box", slice(0, 4)), ("obj", slice(4, 5)), ("cls", slice(5, 7))):
        leaf = raw.clone().requires_grad_()
        loss_of(level)((leaf,), TWO_OBJECTS)[name].backward()
        assert leaf.grad is not None
        found = leaf.grad.reshape(2, 3, 7, 6, 6)
        assert torch.equal(found[:, :, entries], whole[:, :, entries])
        assert found.abs().sum() == found[:, :, entries].abs().sum() > 0


def test_under_autocast_the_gradient_has_the_type_of_the_map_and_the_loss_is_float32() -> None:
    level = level_of(training={"iou_loss": "ciou"})
    raw = torch.randn(2, level.num_channels, 6, 6, generator=torch.Generator().manual_seed(4)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gradient = gradient_of(loss_of(level), raw, TWO_OBJECTS)
        parts = loss_of(level)((raw,), TWO_OBJECTS)
    assert gradient.dtype == torch.bfloat16
    assert all(value.dtype == torch.float32 for value in parts.values())
    wanted = gradient_of(loss_of(level), raw.float(), TWO_OBJECTS)
    assert torch.equal(gradient, wanted.bfloat16())


def test_the_memory_format_of_the_map_does_not_change_the_gradient() -> None:
    level = level_of()
    raw = torch.randn(2, level.num_channels, 5, 6, generator=torch.Generator().manual_seed(5))
    gradient = gradient_of(loss_of(level), raw.to(memory_format=torch.channels_last), TWO_OBJECTS)
    # With AVX2, torch's vectorised and scalar sigmoid differ in the last bit; the memory format selects one of them.
    torch.testing.assert_close(gradient, gradient_of(loss_of(level), raw, TWO_OBJECTS), rtol=2**-22, atol=0)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


# ---- special cases


def test_an_image_without_objects_has_gradients_for_background_only() -> None:
    level = level_of(training={"iou_loss": "ciou"})
    raw = torch.randn(2, level.num_channels, 6, 6, generator=torch.Generator().manual_seed(6))
    gradient = gradient_of(loss_of(level), raw, targets_of()).reshape(2, 3, 7, 6, 6) * 2
    assert torch.allclose(gradient[:, :, 4], raw.reshape(2, 3, 7, 6, 6)[:, :, 4].sigmoid())
    assert gradient[:, :, [0, 1, 2, 3, 5, 6]].abs().sum() == 0
    parts = loss_of(level)((raw,), targets_of())
    assert (parts["box"].item(), parts["cls"].item()) == (0.0, 0.0)


def test_an_object_on_the_far_border_belongs_to_the_last_cell_and_one_without_area_to_none() -> None:
    level = level_of()
    raw = torch.zeros(1, level.num_channels, 4, 4)
    corner = targets_of((0, (32.0, 31.5, 32.5, 32.5), 1), num_images=1)  # its centre lies beyond the canvas
    taught = gradient_of(loss_of(level), raw, corner).reshape(3, 7, 4, 4)[:, 5:].abs().sum(dim=(0, 1))
    assert taught.nonzero().tolist() == [[3, 3]]
    flat = targets_of((0, (5.0, 5.0, 5.0, 9.0), 1), num_images=1)
    assert gradient_of(loss_of(level), raw, flat).reshape(3, 7, 4, 4)[:, [0, 1, 2, 3, 5, 6]].abs().sum() == 0


def test_a_cell_in_a_crowd_region_is_not_background_but_objects_there_are_assigned() -> None:
    level = level_of(training={"ignore_thresh": 0.99})
    raw = torch.zeros(1, level.num_channels, 4, 4)
    both = Targets(
        torch.tensor([[0.0, 0, 20, 32], [6.0, 6, 16, 20]]),
        torch.tensor([0, 1]),
        torch.tensor([0, 0]),
        torch.tensor([True, False]),
        1,
    )
    objectness = -gradient_of(loss_of(level), raw, both).reshape(3, 7, 4, 4)[0, 4]  # boxes of 10 x 14 about the cells
    assert objectness[:, 0].tolist() == [0.0] * 4
    assert objectness[1, 1].item() == pytest.approx(0.5)
    assert objectness[:, 2:].flatten().tolist() == [-0.5] * 8
    without = gradient_of(loss_of(level), raw, targets_of((0, (6, 6, 16, 20), 1), num_images=1)).reshape(3, 7, 4, 4)
    assert (without[0, 4, :, 0] > 0).all()


@pytest.mark.parametrize(("second", "is_background"), [((13.0, 0, 32, 32), False), ((14.0, 0, 32, 32), True)])
def test_box_half_inside_each_of_two_crowd_regions_is_not_background(
    second: tuple[float, float, float, float], is_background: bool
) -> None:
    level = level_of(training={"ignore_thresh": 0.99})
    raw = torch.zeros(1, level.num_channels, 4, 4)  # boxes of 10 x 14 about the cells: 7 to 17 in the second column
    boxes = torch.tensor([[0.0, 0, 9, 32], second])
    crowds = Targets(boxes, torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([True, True]), 1)
    objectness = -gradient_of(loss_of(level), raw, crowds).reshape(3, 7, 4, 4)[0, 4]
    assert objectness[1, 1].item() == (-0.5 if is_background else 0.0)


@pytest.mark.parametrize("compared", [1, 40, 10**9])
def test_deltas_are_independent_of_the_pairs_compared_at_once(compared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    level = level_of(training={"ignore_thresh": 0.3, "truth_thresh": 0.6})
    raw = torch.randn(2, level.num_channels, 6, 6, generator=torch.Generator().manual_seed(2))
    wanted = gradient_of(loss_of(level), raw, TWO_OBJECTS)
    monkeypatch.setattr(anchor_deltas, "_MAX_COMPARED", compared)
    assert torch.equal(gradient_of(loss_of(level), raw, TWO_OBJECTS), wanted)


@pytest.mark.parametrize("iou_loss", ["mse", "iou", "giou", "diou", "ciou"])
@pytest.mark.parametrize("value", [-200.0, 60.0, 200.0])
def test_extreme_predictions_give_finite_gradients(iou_loss: str, value: float) -> None:
    level = level_of(training={"iou_loss": iou_loss, "focal_loss": True})
    raw = torch.full((2, level.num_channels, 6, 6), value)
    assert gradient_of(loss_of(level), raw, TWO_OBJECTS).isfinite().all()


def test_a_map_that_is_not_finite_gives_a_loss_that_is_not_finite() -> None:
    level = level_of(training={"iou_loss": "ciou"})
    raw = torch.full((2, level.num_channels, 6, 6), math.nan)
    assert not math.isfinite(total_of(loss_of(level)((raw,), TWO_OBJECTS)).item())


# ---- refusals


def test_a_model_without_an_anchor_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="anchor: expected a model with an anchor head, got one without"):
        AnchorLoss(AnchorLoss.Config(), SimpleNamespace(anchor_levels=()))  # type: ignore[arg-type]  # no model


def test_a_model_without_an_anchor_free_head_is_refused_by_the_other_loss() -> None:
    with pytest.raises(ConfigError, match="task_aligned: expected a model with an anchor-free head, got one without"):
        TaskAlignedLoss(TaskAlignedLoss.Config(), SimpleNamespace(detection_head=lambda: None))  # type: ignore[arg-type]  # no model


@pytest.mark.parametrize(("kind", "section"), [("gaussian", r"\[Gaussian_yolo\]"), ("region", r"\[region\]")])
def test_heads_that_cannot_be_trained_are_refused(kind: str, section: str) -> None:
    with pytest.raises(ConfigError, match=rf"expected heads of \[yolo\] sections, got {section}"):
        loss_of(level_of(), level_of(kind=kind))
