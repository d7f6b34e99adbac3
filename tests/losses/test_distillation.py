"""The loss of distillation against a reference in float64, and its mean over the parts of a step."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from detector.config.registry import build
from detector.errors import ConfigError
from detector.losses.distillation import DistillationLoss, soft_entropy
from detector.losses.loss import LossParts
from detector.losses.task_aligned import TaskAlignedLoss, complete_iou_loss
from detector.losses.task_aligned_assignment import Alignment, PaddedObjects, assign_task_aligned
from detector.models.heads import DenseHead
from detector.models.yolo import Yolo
from detector.structures.types import Targets, TaughtObjects
from detector.tasks.detection_model import build_model, load_detection

NUM_CLASSES, STRIDES, IMAGE_HW = 3, (8, 16, 32), (64, 96)
SMALL = ["model.width=0.125", "model.depth=0.1", "model.max_channels=64"]
IS_TAUGHT = (True, True, False)
RawMaps = tuple[Tensor, ...]


@pytest.fixture(scope="module")
def student() -> Yolo:
    model = build_model(load_detection("mish-n", SMALL), NUM_CLASSES)
    assert isinstance(model, Yolo)
    return model


def raw_maps_of(model: Yolo, seed: int, num_images: int = 2) -> RawMaps:
    draw = torch.Generator().manual_seed(seed)
    head = model.detection_head()
    assert isinstance(head, DenseHead)
    channels = model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))[0].shape[1]
    return tuple(
        torch.randn(num_images, channels, IMAGE_HW[0] // s, IMAGE_HW[1] // s, generator=draw).requires_grad_()
        for s in STRIDES
    )


OBJECTS = Targets(
    torch.tensor([[4.0, 4.0, 40.0, 40.0], [30.0, 10.0, 90.0, 60.0]]),
    torch.tensor([0, 2]),
    torch.tensor([0, 0]),
    torch.tensor([False, False]),
    2,
)


def taught_of(rows: list[list[tuple[list[float], list[float]]]]) -> TaughtObjects:
    """Detections of images, each a list of box and scores."""
    most = max(map(len, rows))
    boxes, scores = torch.zeros(len(rows), most, 4), torch.zeros(len(rows), most, NUM_CLASSES)
    for image, row in enumerate(rows):
        for place, (box, of_classes) in enumerate(row):
            boxes[image, place], scores[image, place] = torch.tensor(box), torch.tensor(of_classes)
    return TaughtObjects(boxes, scores)


TAUGHT = taught_of(
    [
        [([5.0, 6.0, 41.0, 38.0], [0.9, 0.2, 0.0])],
        [([8.0, 8.0, 60.0, 50.0], [0.1, 0.6, 0.0]), ([50.0, 20.0, 80.0, 60.0], [0.3, 0.0, 0.0])],
    ]
)


def loss_of(model: Yolo, weight: float = 1.0) -> DistillationLoss:
    return DistillationLoss(build(TaskAlignedLoss.Config(), model), model, IS_TAUGHT, weight)


def reference(model: Yolo, raw_maps: RawMaps, targets: Targets, taught: TaughtObjects) -> tuple[float, float, float]:
    """Return the sums of boxes and classes and the count of the teacher in float64, cell by cell."""
    head = model.detection_head()
    assert isinstance(head, DenseHead)
    dense = head.dense(raw_maps)
    scores, xyxy = dense.class_logits.sigmoid().detach(), dense.canvas_xyxy().detach()
    largest, labels = taught.scores.max(dim=2)
    objects = PaddedObjects(taught.canvas_xyxy, labels, largest > 0)
    found = assign_task_aligned(scores, xyxy, dense.points_xy, dense.strides, objects, Alignment(10, 0.5, 6.0))
    taken = {
        (image, cell): (index, quality)
        for image, cell, index, quality in zip(
            found.image_index.tolist(),
            found.cell_index.tolist(),
            found.object_index.tolist(),
            found.quality.double().tolist(),
            strict=True,
        )
    }
    box_sum = cls_sum = count = 0.0
    for image in range(len(scores)):
        own = [
            box for box, i in zip(targets.canvas_xyxy.tolist(), targets.image_index.tolist(), strict=True) if i == image
        ]
        for cell, (x, y) in enumerate(dense.points_xy.tolist()):
            index, quality = taken.get((image, cell), (-1, 0.0))
            if index < 0 and any(left <= x <= right and top <= y <= bottom for left, top, right, bottom in own):
                continue
            for label in range(NUM_CLASSES):
                if not IS_TAUGHT[label]:
                    continue
                logit = float(dense.class_logits[image, cell, label])
                p, t = 1 / (1 + math.exp(-logit)), 0.0
                if index >= 0:
                    t = quality * float(taught.scores[image, index, label])
                cls_sum += abs(t - p) * -(t * math.log(p) + (1 - t) * math.log(1 - p))
            if index >= 0:
                weight = quality * float(largest[image, index])
                pair = xyxy[image, cell].double()[None], taught.canvas_xyxy[image, index].double()[None]
                box_sum += weight * float(complete_iou_loss(*pair))
                count += weight
    return 7.5 * box_sum, 0.5 * cls_sum, count


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_parts_equal_the_float64_reference(student: Yolo, weight: float) -> None:
    raw_maps = tuple(raw_map.detach() for raw_map in raw_maps_of(student, 0))
    parts = loss_of(student, weight)(raw_maps, replace(OBJECTS, taught=TAUGHT))
    own = build(TaskAlignedLoss.Config(), student)(raw_maps, OBJECTS)
    box, classes, count = reference(student, raw_maps, OBJECTS, TAUGHT)
    whole = float(own.count) + weight * count
    assert float(parts.count) == pytest.approx(whole, rel=1e-5)
    assert float(parts["teacher_box"]) == pytest.approx(weight * box / max(whole, 1), rel=1e-4)
    assert float(parts["teacher_cls"]) == pytest.approx(weight * classes / max(whole, 1), rel=1e-4)
    for name, part in own.items():
        expected = float(part) * max(float(own.count), 1) / max(whole, 1)
        assert float(parts[name]) == pytest.approx(expected, rel=1e-5)


def test_entropy_has_its_least_value_at_the_target_and_stays_finite_at_the_ends() -> None:
    target = torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=torch.float64)
    p = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    least = [float(p[soft_entropy(p, t.expand_as(p)).argmin()]) for t in target]
    assert least == pytest.approx([0.001, 0.2, 0.7, 0.999], abs=1e-9)
    ends = torch.tensor([0.0, 1.0, 0.0, 1.0], requires_grad=True)
    entropy = soft_entropy(ends, torch.tensor([0.0, 1.0, 1.0, 0.0]))
    entropy.sum().backward()
    assert entropy.isfinite().all()
    assert ends.grad is not None
    assert ends.grad.isfinite().all()
    assert entropy[:2].tolist() == [0.0, 0.0]
    assert soft_entropy(torch.tensor([math.nan]), torch.tensor([0.5])).isnan().all()


def test_images_without_annotations_are_learnt_from_the_teacher_alone(student: Yolo) -> None:
    raw_maps = [m.detach().clone().requires_grad_() for m in raw_maps_of(student, 1)]
    whole = torch.tensor([[0.0, 0.0, 96.0, 64.0]]).repeat(2, 1)  # as `with_unlabelled` marks such images
    labels, image = torch.tensor([0, 0]), torch.tensor([0, 1])
    targets = Targets(whole, labels, image, torch.tensor([True, True]), 2, taught=TAUGHT)
    loss = loss_of(student)
    first = float(loss(tuple(raw_maps), targets).total())
    optimizer = torch.optim.Adam(raw_maps, lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        torch.autograd.backward(loss(tuple(raw_maps), targets).total_of_batch())
        optimizer.step()
    xyxy, scores = student.decode(tuple(raw_maps))
    best = int(scores[0, :, 0].argmax())
    assert float(loss(tuple(raw_maps), targets).total()) < first / 10
    assert scores[0, best, :2].tolist() == pytest.approx([0.9, 0.2], abs=0.1)
    assert xyxy[0, best].tolist() == pytest.approx([5.0, 6.0, 41.0, 38.0], abs=1.5)


def nothing(num_images: int) -> Targets:
    empty = torch.zeros(0, dtype=torch.long)
    return Targets(torch.zeros(0, 4), empty, empty, empty.bool(), num_images)


def test_unknown_classes_get_no_signal_and_a_missed_object_is_no_background(student: Yolo) -> None:
    raw_maps = raw_maps_of(student, 2)
    head = student.detection_head()
    assert isinstance(head, DenseHead)
    one = Targets(
        torch.tensor([[8.0, 8.0, 40.0, 40.0]]), torch.tensor([0]), torch.tensor([1]), torch.tensor([False]), 2
    )
    loss = loss_of(student)
    (parts, count) = loss._sums(raw_maps, one, taught_of([[], []]))
    parts["teacher_cls"].backward()
    assert float(count) == 0
    assert float(parts["teacher_box"]) == 0
    gradient = torch.cat([m.grad.flatten(2).transpose(1, 2) for m in raw_maps if m.grad is not None], dim=1)
    of_classes = gradient[..., -NUM_CLASSES:]
    assert (of_classes[..., 2] == 0).all()  # the class that the teacher does not have
    points = head.dense(raw_maps).points_xy
    inside = ((points >= 8) & (points <= 40)).all(dim=1)
    assert (of_classes[1, inside] == 0).all()
    assert (of_classes[1, ~inside][:, :2] > 0).all()  # background, so that its score falls
    assert (of_classes[0, :, :2] > 0).all()


def slices(targets: Targets, taught: TaughtObjects, images: list[int]) -> Targets:
    keep = torch.isin(targets.image_index, torch.tensor(images))
    part = TaughtObjects(taught.canvas_xyxy[images], taught.scores[images])
    return Targets(
        targets.canvas_xyxy[keep],
        targets.labels[keep],
        torch.searchsorted(torch.tensor(images), targets.image_index[keep]),
        targets.ignore[keep],
        len(images),
        taught=part,
    )


def test_parts_of_a_step_with_and_without_detections_add_up_to_one_batch(student: Yolo) -> None:
    """Images with objects and detections, with either alone, and with none, in one batch and one by one."""
    taught = taught_of(
        [[([5.0, 6.0, 41.0, 38.0], [0.9, 0.2, 0.0])], [], [([8.0, 8.0, 60.0, 50.0], [0.1, 0.6, 0.0])], []]
    )
    table = OBJECTS.canvas_xyxy
    targets = Targets(table, OBJECTS.labels, torch.tensor([0, 1]), OBJECTS.ignore, 4)
    raw_maps, loss = raw_maps_of(student, 3, num_images=4), loss_of(student, 0.7)
    whole = loss(raw_maps, slices(targets, taught, [0, 1, 2, 3]))
    for images in ([[0], [1], [2], [3]], [[0, 1], [2, 3]], [[3], [0, 1, 2]]):
        parts = [loss(tuple(m[i] for m in raw_maps), slices(targets, taught, i)) for i in images]
        count = torch.stack([part.count for part in parts]).sum()
        joined = torch.stack([part.total_of_batch() for part in parts]).sum() / count.clamp(min=1)
        assert float(count) == pytest.approx(float(whole.count), rel=1e-5)
        assert float(joined) == pytest.approx(float(whole.total()), rel=1e-5)


def test_batch_without_objects_and_detections_is_finite(student: Yolo) -> None:
    parts = loss_of(student)(raw_maps_of(student, 4), replace(nothing(2), taught=taught_of([[], []])))
    assert isinstance(parts, LossParts)
    assert float(parts.count) == 0
    assert torch.isfinite(parts.total())


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("anchor", r"train\.teacher: expected a model with the loss task_aligned or simota"),
        ("dual", r"train\.teacher: expected a model that is trained by one branch, got the head dual"),
    ],
)
def test_heads_that_a_teacher_cannot_train_are_refused(head: str, message: str) -> None:
    config = load_detection("mish-n", [*SMALL, f"model.head={head}"])
    model = build_model(config, NUM_CLASSES)
    with pytest.raises(ConfigError, match=message):
        DistillationLoss(build(config.loss, model), model, IS_TAUGHT, 1.0)
