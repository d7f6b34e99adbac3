from __future__ import annotations

import ast
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import complete_box_iou_loss

import detector.losses
from detector.losses import task_aligned
from detector.losses.task_aligned import TaskAlignedLoss, distribution_focal_loss
from detector.losses.task_aligned_assignment import Alignment, Assignment, PaddedObjects, assign_task_aligned
from detector.models.dual_head import DualHead
from detector.models.heads import DecoupledHead
from detector.models.yolo import Yolo
from detector.structures.types import Targets

NUM_CLASSES, BINS, IMAGE_HW, STRIDES = 3, 8, (64, 96), (8, 16, 32)
CELLS = [
    ((column + 0.5) * stride, (row + 0.5) * stride, stride)
    for stride in STRIDES
    for row in range(IMAGE_HW[0] // stride)
    for column in range(IMAGE_HW[1] // stride)
]
CONFIG = TaskAlignedLoss.Config()

RawMaps = tuple[Tensor, ...]


@pytest.fixture(scope="module")
def model() -> Yolo:
    return Yolo(replace(Yolo.Config(), head=DecoupledHead.Config(bins=BINS)), NUM_CLASSES)


@pytest.fixture
def loss(model: Yolo) -> TaskAlignedLoss:
    return TaskAlignedLoss(CONFIG, model)


def random_maps(seed: int, num_images: int = 3) -> RawMaps:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(num_images, 4 * BINS + NUM_CLASSES, IMAGE_HW[0] // s, IMAGE_HW[1] // s) for s in STRIDES]
    return tuple((torch.randn(shape, generator=generator) * 1.5).requires_grad_() for shape in shapes)


def targets_of(rows: list[tuple[int, list[float], int, bool]], num_images: int = 3) -> Targets:
    """Return targets from (image, box, label, crowd) in any order of images."""
    rows = sorted(rows, key=lambda row: row[0])
    return Targets(
        torch.tensor([row[1] for row in rows], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([row[2] for row in rows], dtype=torch.int64),
        torch.tensor([row[0] for row in rows], dtype=torch.int64),
        torch.tensor([row[3] for row in rows], dtype=torch.bool),
        num_images,
    )


ROWS: list[tuple[int, list[float], int, bool]] = [
    (0, [4.0, 6, 60, 50], 1, False),
    (0, [30.0, 20, 90, 62], 0, False),
    (0, [30.0, 20, 90, 62], 0, False),  # a duplicate
    (0, [70.5, 3.25, 73, 5], 2, False),  # smaller than a cell
    (0, [0.0, 0, 40, 64], 0, True),
    (2, [-5.0, 10, 20, 80], 2, False),  # partly outside the canvas
    (2, [50.0, 10, 90, 40], 1, True),
    (2, [60.0, 12, 80, 35], 1, False),  # an object inside a crowd
]


def total(parts: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).sum()


def gradients(loss: TaskAlignedLoss, raw: RawMaps, targets: Targets) -> Tensor:
    """Return the gradient of the total, flat over cells: (B, A, 4 * bins + classes)."""
    found = torch.autograd.grad(total(loss(raw, targets)), raw)
    return torch.cat([g.flatten(2) for g in found], dim=2).transpose(1, 2)


# ---- the reference: loops over Python floats, on the assignment, which test_task_aligned_assignment.py tests itself


def flat_of(raw: RawMaps) -> list[list[list[float]]]:
    """Return the values by [image][cell][channel] in float64."""
    return [
        [
            level[i, :, y, x].double().tolist()
            for level in raw
            for y in range(level.shape[2])
            for x in range(level.shape[3])
        ]
        for i in range(len(raw[0]))
    ]


def log_softmax(values: list[float]) -> list[float]:
    top = max(values)
    norm = top + math.log(sum(math.exp(v - top) for v in values))
    return [v - norm for v in values]


def box_of(values: list[float], cell: int) -> list[float]:
    x, y, stride = CELLS[cell]
    mean = [
        sum(i * math.exp(p) for i, p in enumerate(log_softmax(values[BINS * side : BINS * side + BINS])))
        for side in range(4)
    ]
    return [x - mean[0] * stride, y - mean[1] * stride, x + mean[2] * stride, y + mean[3] * stride]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def complete_iou_loss(a: list[float], b: list[float], alpha: float | None = None) -> tuple[float, float]:
    """Return 1 - CIoU (Zheng et al. 2020, equation 10) and its alpha, a constant in the derivative."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0.0) * max(height, 0.0)
    iou = intersection / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection)
    diagonal = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2
    distance = ((a[0] + a[2] - b[0] - b[2]) / 2) ** 2 + ((a[1] + a[3] - b[1] - b[3]) / 2) ** 2
    angle = math.atan((b[2] - b[0]) / (b[3] - b[1])) - math.atan((a[2] - a[0]) / (a[3] - a[1]))
    v = 4 / math.pi**2 * angle**2
    alpha = v / (1 - iou + v) if alpha is None else alpha
    return 1 - iou + distance / diagonal + alpha * v, alpha


def focal(values: list[float], distance: float) -> float:
    distance = min(max(distance, 0.0), BINS - 1 - 0.01)
    lower = math.floor(distance)
    log_probability = log_softmax(values)
    return -(log_probability[lower] * (lower + 1 - distance) + log_probability[lower + 1] * (distance - lower))


def reference_assignment(flat: list[list[list[float]]], targets: Targets, *, one_to_one: bool = False) -> Assignment:
    target_xyxy, labels, valid = targets.padded(ignore=False)
    return assign_task_aligned(
        torch.tensor([[[sigmoid(v) for v in cell[4 * BINS :]] for cell in image] for image in flat]).double(),
        torch.tensor([[box_of(v, c) for c, v in enumerate(image)] for image in flat], dtype=torch.float64),
        torch.tensor([cell[:2] for cell in CELLS], dtype=torch.float64),
        torch.tensor([cell[2] for cell in CELLS], dtype=torch.float64),
        PaddedObjects(target_xyxy.double(), labels, valid),
        Alignment(CONFIG.num_candidates, CONFIG.alpha, CONFIG.beta, one_to_one=one_to_one),
    )


def reference_parts(
    flat: list[list[list[float]]], targets: Targets, positive: Assignment, alphas: dict[int, float]
) -> dict[str, float]:
    """Return the parts; `alphas` is filled on the first call and used on the next ones."""
    quality_of: dict[tuple[int, int, int], float] = {}
    normaliser = max(sum(positive.quality.tolist()), 1.0)
    box = distribution = entropy = 0.0
    target_xyxy, labels, _ = targets.padded(ignore=False)
    columns = [t.tolist() for t in (positive.image_index, positive.cell_index, positive.object_index, positive.quality)]
    for number, (image, cell, column, quality) in enumerate(zip(*columns, strict=True)):
        wanted = target_xyxy[image, column].double().tolist()
        quality_of[image, cell, int(labels[image, column])] = quality
        part, alphas[number] = complete_iou_loss(box_of(flat[image][cell], cell), wanted, alphas.get(number))
        box += quality * part
        x, y, stride = CELLS[cell]
        for side, distance in enumerate((x - wanted[0], y - wanted[1], wanted[2] - x, wanted[3] - y)):
            logits = flat[image][cell][BINS * side : BINS * side + BINS]
            distribution += quality * focal(logits, distance / stride) / 4
    taken = {(image, cell) for image, cell, _ in quality_of}
    of_crowd = targets.ignore
    crowds = list(zip(targets.image_index[of_crowd].tolist(), targets.canvas_xyxy[of_crowd].tolist(), strict=True))
    for image, cells in enumerate(flat):
        for cell, values in enumerate(cells):
            x, y, stride = CELLS[cell]
            covered = any(
                max(min(b[2], x + stride / 2) - max(b[0], x - stride / 2), 0)
                * max(min(b[3], y + stride / 2) - max(b[1], y - stride / 2), 0)
                > 0.5 * stride**2
                for i, b in crowds
                if i == image
            )
            if covered and (image, cell) not in taken:
                continue
            for label, logit in enumerate(values[4 * BINS :]):
                share = quality_of.get((image, cell, label), 0.0)
                entropy -= share * math.log(sigmoid(logit)) + (1 - share) * math.log(sigmoid(-logit))
    return {
        "box": CONFIG.box * box / normaliser,
        "cls": CONFIG.classes * entropy / normaliser,
        "dfl": CONFIG.distribution * distribution / normaliser,
    }


def reference(raw: RawMaps, targets: Targets) -> dict[str, float]:
    flat = flat_of(raw)
    return reference_parts(flat, targets, reference_assignment(flat, targets), {})


# ---- values


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_equals_a_float64_loop_to_1e_5(seed: int, loss: TaskAlignedLoss) -> None:
    raw, targets = random_maps(seed), targets_of(ROWS)
    found = loss(raw, targets)
    wanted = reference(raw, targets)
    assert set(found) == set(wanted)
    for name, value in found.items():
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(wanted[name], rel=1e-5)


@pytest.mark.parametrize("predicts", ["one_to_one", "one_to_many"])
@pytest.mark.parametrize("rows", [ROWS, [], [row for row in ROWS if row[0] == 2]], ids=["all", "none", "one-image"])
def test_the_loss_of_two_branches_equals_a_float64_loop(rows: list[Any], predicts: str) -> None:
    """Parts of the one-to-one branch have cells of their own and the divisor of the other one."""
    head = DualHead.Config(bins=BINS, predicts=predicts)  # type: ignore[arg-type]  # checked by the parametrisation
    config = replace(CONFIG, one_to_one=3.0)
    loss = TaskAlignedLoss(config, Yolo(replace(Yolo.Config(), head=head), NUM_CLASSES))
    many, one, targets = random_maps(3), random_maps(4), targets_of(rows)
    found = loss((*one, *many) if predicts == "one_to_one" else (*many, *one), targets)
    usual, flat = reference(many, targets), flat_of(one)
    positive = reference_assignment(flat, targets, one_to_one=True)
    own = reference_parts(flat, targets, positive, {})
    share = max(sum(positive.quality.tolist()), 1.0) / max(found.count.item(), 1.0)
    assert found.count.item() == pytest.approx(sum(reference_assignment(flat_of(many), targets).quality.tolist()))
    wanted = usual | {f"one_{name}": 3 * value * share for name, value in own.items()}
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert value.item() == pytest.approx(wanted[name], rel=1e-5), name


@pytest.mark.parametrize("only", ["box", "classes", "distribution"])
def test_each_weight_scales_its_own_part(only: str, model: Yolo) -> None:
    raw, targets = random_maps(1), targets_of(ROWS)
    usual = TaskAlignedLoss(CONFIG, model)(raw, targets)
    doubled = TaskAlignedLoss(replace(CONFIG, **{only: 2 * getattr(CONFIG, only)}), model)(raw, targets)
    key = {"box": "box", "classes": "cls", "distribution": "dfl"}[only]
    for name, value in usual.items():
        assert doubled[name].item() == pytest.approx(value.item() * (2 if name == key else 1), rel=1e-6)


def test_the_order_of_the_targets_does_not_matter(loss: TaskAlignedLoss) -> None:
    raw = random_maps(2)
    first, second = loss(raw, targets_of(ROWS)), loss(raw, targets_of(ROWS[::-1]))
    for name, value in first.items():
        assert second[name].item() == pytest.approx(value.item(), rel=1e-6)


def test_the_order_of_the_images_does_not_matter(loss: TaskAlignedLoss) -> None:
    raw = random_maps(2)
    first = loss(raw, targets_of(ROWS))
    turned = loss(tuple(m.flip(0) for m in raw), targets_of([(2 - row[0], *row[1:]) for row in ROWS]))
    for name, value in first.items():
        assert turned[name].item() == pytest.approx(value.item(), rel=1e-6)


def test_the_loss_of_a_batch_is_the_mean_of_its_images_weighted_by_quality(loss: TaskAlignedLoss) -> None:
    """The images of a batch are padded to the largest number of objects; the padding has no effect."""
    raw, targets = random_maps(3), targets_of(ROWS)
    sums: dict[str, float] = dict.fromkeys(("box", "cls", "dfl"), 0.0)
    total_quality = 0.0
    for image in range(3):
        alone = tuple(m[image : image + 1] for m in raw)
        own = targets_of([(0, *row[1:]) for row in ROWS if row[0] == image], num_images=1)
        quality = float(reference_assignment(flat_of(alone), own).quality.sum())
        total_quality += quality
        for name, value in loss(alone, own).items():
            sums[name] += value.item() * max(quality, 1.0)
    for name, value in loss(raw, targets).items():
        assert value.item() == pytest.approx(sums[name] / total_quality, rel=1e-5)


# ---- gradients


def test_the_gradient_equals_finite_differences_of_the_float64_loop(loss: TaskAlignedLoss) -> None:
    raw, targets = random_maps(5), targets_of(ROWS)
    found = gradients(loss, raw, targets)
    flat = flat_of(raw)
    positive = reference_assignment(flat, targets)
    alphas: dict[int, float] = {}
    reference_parts(flat, targets, positive, alphas)
    generator = torch.Generator().manual_seed(0)
    step = 1e-5
    best = positive.quality.argsort(descending=True)[:12].tolist()
    places = [(int(positive.image_index[i]), int(positive.cell_index[i])) for i in best]
    places += [(i, c) for i in range(3) for c in torch.randint(0, len(CELLS), (4,), generator=generator).tolist()]
    for image, cell in places:
        for channel in torch.randint(0, 4 * BINS + NUM_CLASSES, (5,), generator=generator).tolist():
            kept, values = flat[image][cell][channel], []
            for moved in (kept + step, kept - step):
                flat[image][cell][channel] = moved
                values.append(sum(reference_parts(flat, targets, positive, alphas).values()))
            flat[image][cell][channel] = kept
            numerical = (values[0] - values[1]) / (2 * step)
            assert found[image, cell, channel].item() == pytest.approx(numerical, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("rows", [[], [row for row in ROWS if row[3]]])
def test_a_batch_without_objects_has_gradients_for_classes_only(rows: list[Any], loss: TaskAlignedLoss) -> None:
    raw, targets = random_maps(0), targets_of(rows)
    parts = loss(raw, targets)
    assert all(value.isfinite() for value in parts.values())
    assert parts["box"].item() == parts["dfl"].item() == 0
    assert parts["cls"].item() == pytest.approx(reference(raw, targets)["cls"], rel=1e-5)
    found = gradients(loss, raw, targets)
    assert not found[..., : 4 * BINS].any()
    if rows:
        assert (found[1, :, 4 * BINS :] > 0).all()  # the image without a crowd
    else:
        assert (found[..., 4 * BINS :] > 0).all()


def test_a_cell_mostly_inside_a_crowd_gets_no_class_gradient(loss: TaskAlignedLoss) -> None:
    crowd = [0.0, 0, 40, 64]
    raw = random_maps(0)
    found = gradients(loss, raw, targets_of([(0, crowd, 0, True)]))[..., 4 * BINS :]
    covered = [min(x + s / 2, 40) - (x - s / 2) > s / 2 for x, _, s in CELLS]
    assert 0 < sum(covered) < len(CELLS)
    for cell, is_covered in enumerate(covered):
        assert found[0, cell].any().item() is not is_covered
    assert found[1:].all()


def test_a_cell_of_an_object_inside_a_crowd_has_a_gradient(loss: TaskAlignedLoss) -> None:
    raw = random_maps(0)
    rows = [(0, [0.0, 0, 96, 64], 0, True), (0, [20.0, 10, 70, 50], 1, False)]
    found = gradients(loss, raw, targets_of(rows))[0]
    positive = reference_assignment(flat_of(raw), targets_of(rows))
    taken = set(positive.cell_index[positive.quality > 1e-6].tolist())
    assert len(taken) >= 5
    for cell in range(len(CELLS)):
        assert found[cell, 4 * BINS :].any().item() == (cell in taken)
    assert found[sorted(taken), : 4 * BINS].any(dim=1).all()


def test_a_crowd_smaller_than_half_a_cell_changes_nothing(loss: TaskAlignedLoss) -> None:
    raw = random_maps(4)
    without, added = targets_of(ROWS), targets_of([*ROWS, (1, [10.0, 10, 14, 15], 0, True)])
    assert {k: v.item() for k, v in loss(raw, without).items()} == {k: v.item() for k, v in loss(raw, added).items()}


@pytest.mark.parametrize("flat_side", [(0, 1, 2, 3), (1, 3), (0, 2)])
def test_predicted_boxes_without_area_leave_loss_and_gradient_finite(
    flat_side: tuple[int, ...], loss: TaskAlignedLoss
) -> None:
    raw = random_maps(0)
    with torch.no_grad():
        for level in raw:
            for side in flat_side:
                level[:, BINS * side : BINS * side + BINS] = -500.0
                level[:, BINS * side] = 500.0  # a distance of exactly 0
    assert all(value.isfinite() for value in loss(raw, targets_of(ROWS)).values())
    assert gradients(loss, raw, targets_of(ROWS)).isfinite().all()


# ---- precision


def test_under_bf16_autocast_the_loss_is_computed_in_float32(loss: TaskAlignedLoss) -> None:
    raw = tuple(m.detach().bfloat16() for m in random_maps(6))
    targets = targets_of(ROWS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(raw, targets)
    wanted = loss(tuple(m.float() for m in raw), targets)
    assert {name: value.dtype for name, value in found.items()} == dict.fromkeys(wanted, torch.float32)
    assert {k: v.item() for k, v in found.items()} == {k: v.item() for k, v in wanted.items()}


# ---- distribution focal loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_complete_iou_loss_has_the_bits_of_torchvision(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    corners, sizes = (torch.rand(2, 500, 2, generator=draw, dtype=dtype) * scale for scale in (90.0, 60.0))
    predicted, boxes = torch.cat([corners, corners + 0.1 + sizes], dim=-1)
    predicted[:20] = boxes[:20]
    weights = torch.linspace(0, 1, 500, dtype=dtype)
    ours = task_aligned.complete_iou_loss(predicted.requires_grad_(), boxes)
    theirs = complete_box_iou_loss(predicted, boxes)
    assert ours.min() < 1e-5 < 1 < ours.max()
    assert torch.equal(ours, theirs)
    gradients = [torch.autograd.grad((loss * weights).sum(), predicted)[0] for loss in (ours, theirs)]
    assert torch.equal(*gradients)


def test_distribution_focal_loss_equals_a_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(50, 4, BINS, generator=generator) * 3
    distances = torch.rand(50, 4, generator=generator) * (BINS + 3) - 1.5  # some below, some above the range
    distances[0] = torch.tensor([0.0, 3.0, BINS - 1, BINS - 2])
    found = distribution_focal_loss(logits, distances)
    assert found.shape == (50, 4)
    for row in range(50):
        for side in range(4):
            wanted = focal(logits[row, side].double().tolist(), distances[row, side].item())
            assert found[row, side].item() == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def test_distribution_focal_loss_passes_gradcheck() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 2, BINS, dtype=torch.float64, generator=generator).requires_grad_()
    distances = torch.rand(2, 2, dtype=torch.float64, generator=generator) * BINS
    assert torch.autograd.gradcheck(lambda x: distribution_focal_loss(x, distances), (logits,))


# ---- settings and speed


@pytest.mark.parametrize("settings", [{"box": -1.0}, {"alpha": -0.1}, {"num_candidates": 0}])
def test_invalid_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="weights and exponents >= 0 and num_candidates >= 1"):
        TaskAlignedLoss.Config(**settings)


def test_losses_do_not_loop_in_python_over_images_or_objects() -> None:
    folder = Path(detector.losses.__file__).parent
    files = sorted(folder.glob("*.py"))
    assert len(files) >= 3
    loops = [
        f"{path.name}: {ast.unparse(node.target if isinstance(node, ast.For) else node)}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.For, ast.AsyncFor, ast.While))
    ]
    assert sorted(loop.splitlines()[0] for loop in loops) == [
        "anchor_deltas.py: (cells, images)",  # parts of a bounded size
        "anchor_deltas.py: image",  # images with crowd regions
        "anchor_deltas.py: rank",  # the objects of one cell, which Darknet handles one after another
        "distillation.py: (images, indices)",  # parts of a bounded size
        "distillation.py: raw_map",  # levels
        "task_aligned_assignment.py: image",  # images with crowd regions
        "task_aligned_assignment.py: number",  # objects that lost all their cells, of one owner
    ]
