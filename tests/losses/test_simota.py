from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import detector.losses
from detector.config.registry import build
from detector.errors import ConfigError
from detector.losses.simota import SimOTALoss
from detector.losses.simota_assignment import Candidates, assign_simota
from detector.losses.task_aligned_assignment import PaddedObjects
from detector.models.yolo import Yolo
from detector.models.yolox import Yolox
from detector.models.yolox_checkpoint import config_of_size, load_yolox_file, original_name
from detector.structures.types import Targets

NUM_CLASSES, IMAGE_HW, STRIDES = 3, (64, 96), (8, 16, 32)
CONFIG = SimOTALoss.Config()
# box, obj and cls of `random_maps(0)` on `CROWDED` by the reference below
STORED = (4.578669, 34.274967, 2.209934)
RawMaps = tuple[Tensor, ...]


@pytest.fixture(scope="module")
def model() -> Yolox:
    return Yolox(config_of_size("nano"), NUM_CLASSES)


def random_maps(seed: int, num_images: int = 2) -> RawMaps:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        (torch.randn(num_images, 5 + NUM_CLASSES, IMAGE_HW[0] // s, IMAGE_HW[1] // s, generator=generator) * 0.7)
        for s in STRIDES
    )


def targets_of(*objects: tuple[int, int, float, float, float, float], num_images: int = 2) -> Targets:
    """Targets of rows image, label, x1, y1, x2, y2."""
    table = torch.tensor(objects, dtype=torch.float64).reshape(-1, 6)
    ignore = torch.zeros(len(table), dtype=torch.bool)
    return Targets(table[:, 2:].float(), table[:, 1].long(), table[:, 0].long(), ignore, num_images)


CROWDED = targets_of(
    (0, 0, 4, 4, 30, 34), (0, 1, 6, 5, 32, 30), (0, 2, 40, 8, 90, 60), (0, 0, 20, 20, 26, 28),
    (1, 2, 0, 0, 95, 63), (1, 1, 50, 30, 58, 41),
)  # fmt: skip


# --- a float64 reference with loops --------------------------------------------------------------------------------


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def entropy(logit: float, target: float) -> float:
    return -target * math.log(sigmoid(logit)) - (1 - target) * math.log(1 - sigmoid(logit))


def iou(a: list[float], b: list[float]) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(w, 0) * max(h, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def cells_of(raw_maps: RawMaps, image: int) -> list[dict[str, Any]]:
    cells = []
    for raw, stride in zip(raw_maps, STRIDES, strict=True):
        for row in range(raw.shape[2]):
            for column in range(raw.shape[3]):
                v = raw[image, :, row, column].double().tolist()
                x, y = (column + v[0]) * stride, (row + v[1]) * stride
                w, h = math.exp(v[2]) * stride, math.exp(v[3]) * stride
                cells.append(
                    {
                        "point": ((column + 0.5) * stride, (row + 0.5) * stride), "corner": (column, row),
                        "stride": stride, "raw": v[:4], "objectness": v[4], "classes": v[5:],
                        "box": [x - w / 2, y - h / 2, x + w / 2, y + h / 2],
                    }
                )  # fmt: skip
    return cells


def matched(cells: list[dict[str, Any]], objects: list[tuple[int, list[float]]]) -> dict[int, tuple[int, float]]:
    """The object and overlap of each cell that takes part, by its number."""

    def is_near(cell: dict[str, Any], box: list[float]) -> bool:
        centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        return all(abs(p - c) < 1.5 * cell["stride"] for p, c in zip(cell["point"], centre, strict=True))

    usable = [i for i, cell in enumerate(cells) if any(is_near(cell, box) for _, box in objects)]
    costs: list[dict[int, float]] = []
    overlaps: list[dict[int, float]] = []
    for label, box in objects:
        costs.append({})
        overlaps.append({})
        for i in usable:
            cell = cells[i]
            overlaps[-1][i] = iou(cell["box"], box)
            cost = -3 * math.log(overlaps[-1][i] + 1e-8) + (0 if is_near(cell, box) else 1e6)
            for c, logit in enumerate(cell["classes"]):
                p = math.sqrt(sigmoid(logit) * sigmoid(cell["objectness"]))
                cost += -math.log(p) if c == label else -math.log(1 - p)
            costs[-1][i] = cost
    takers: dict[int, list[int]] = {}
    for j in range(len(objects)):
        k = max(1, int(sum(sorted(overlaps[j].values(), reverse=True)[:10])))
        for i in sorted(costs[j], key=costs[j].__getitem__)[:k]:
            takers.setdefault(i, []).append(j)
    owners = {
        i: js[0] if len(js) == 1 else min(range(len(objects)), key=lambda j: costs[j][i]) for i, js in takers.items()
    }
    return {i: (j, overlaps[j][i]) for i, j in owners.items()}


def reference(raw_maps: RawMaps, targets: Targets) -> tuple[dict[str, float], int]:
    sums, count = dict.fromkeys(("box", "obj", "cls", "l1"), 0.0), 0
    for image in range(targets.num_images):
        rows = (targets.image_index == image).nonzero().squeeze(1)
        objects = [(int(targets.labels[r]), targets.canvas_xyxy[r].double().tolist()) for r in rows]
        cells = cells_of(raw_maps, image)
        found = matched(cells, objects)
        count += len(found)
        for i, cell in enumerate(cells):
            sums["obj"] += entropy(cell["objectness"], float(i in found))
        for i, (j, overlap) in found.items():
            cell, (label, box) = cells[i], objects[j]
            sums["box"] += 5 * (1 - overlap**2)
            sums["cls"] += sum(entropy(z, overlap if c == label else 0.0) for c, z in enumerate(cell["classes"]))
            s, (column, row) = cell["stride"], cell["corner"]
            wanted = [(box[0] + box[2]) / 2 / s - column, (box[1] + box[3]) / 2 / s - row]
            wanted += [math.log((box[2] - box[0]) / s), math.log((box[3] - box[1]) / s)]
            sums["l1"] += sum(abs(a - b) for a, b in zip(cell["raw"], wanted, strict=True))
    return {name: value / max(count, 1) for name, value in sums.items()}, count


@pytest.mark.parametrize("seed", range(5))
def test_parts_and_count_equal_a_reference_with_loops(model, seed):
    loss, raw_maps = SimOTALoss(CONFIG, model), random_maps(seed)
    loss.set_progress(1.0)
    parts = loss(raw_maps, CROWDED)
    wanted, count = reference(raw_maps, CROWDED)
    assert int(parts.count) == count
    assert {name: float(value) for name, value in parts.items()} == pytest.approx(wanted, rel=1e-5)


def test_parts_of_stored_maps_are_the_stored_numbers(model):
    """Numbers of the reference above, so that a change of both is noticed."""
    parts = SimOTALoss(CONFIG, model)(random_maps(0), CROWDED)
    wanted = {"box": STORED[0], "obj": STORED[1], "cls": STORED[2], "l1": 0.0}
    assert {name: float(value) for name, value in parts.items()} == pytest.approx(wanted, rel=1e-5)


def test_l1_counts_in_the_last_part_of_the_run_only(model):
    loss, raw_maps = SimOTALoss(CONFIG, model), random_maps(1)
    seen = []
    for progress in (0.0, 0.9499, 0.95, 1.0, 0.5):
        loss.set_progress(progress)
        seen.append(float(loss(raw_maps, CROWDED)["l1"]))
    assert [value > 0 for value in seen] == [False, False, True, True, False]


@pytest.mark.parametrize(
    "targets", [targets_of(), targets_of((0, 0, -90, -90, -60, -60))], ids=["no objects", "an object far outside"]
)
def test_batch_without_taken_cells_trains_objectness_only(model, targets):
    raw_maps = tuple(m.requires_grad_() for m in random_maps(2))
    parts = SimOTALoss(CONFIG, model)(raw_maps, targets)
    assert float(parts.count) == 0
    values = {name: float(value.detach()) for name, value in parts.items()}
    assert values["box"] == values["cls"] == 0
    assert values["obj"] > 0
    gradients = torch.autograd.grad(sum(parts.values()), raw_maps)
    assert all(torch.isfinite(g).all() for g in gradients)


def test_objects_of_an_image_do_not_depend_on_the_other_images(model):
    loss, raw_maps = SimOTALoss(CONFIG, model), random_maps(3)
    alone = [
        loss(
            tuple(m[i : i + 1] for m in raw_maps),
            targets_of(*((0, *row) for row in rows_of(CROWDED, i)), num_images=1),
        )
        for i in range(2)
    ]
    both = loss(raw_maps, CROWDED)
    total = sum(float(parts["box"] * parts.count) for parts in alone)
    assert total == pytest.approx(float(both["box"] * both.count), rel=1e-5)
    assert int(both.count) == sum(int(parts.count) for parts in alone)


def rows_of(targets: Targets, image: int) -> list[tuple[int, float, float, float, float]]:
    keep = targets.image_index == image
    rows = zip(targets.labels[keep].tolist(), targets.canvas_xyxy[keep].tolist(), strict=True)
    return [(label, *box) for label, box in rows]


def test_crowd_region_is_not_background(model):
    loss, raw_maps = SimOTALoss(CONFIG, model), random_maps(4)
    ignore = torch.tensor([False, True])
    boxes = torch.tensor([[4.0, 4, 30, 34], [0, 0, 96, 64]])
    with_crowd = Targets(boxes, torch.tensor([0, 0]), torch.tensor([0, 0]), ignore, 1)
    without = Targets(boxes[:1], torch.tensor([0]), torch.tensor([0]), ignore[:1], 1)
    maps = tuple(m[:1] for m in raw_maps)
    assert float(loss(maps, with_crowd)["obj"]) < 0.5 * float(loss(maps, without)["obj"])
    assert float(loss(maps, with_crowd)["box"]) == float(loss(maps, without)["box"])


def test_quality_is_the_overlap_of_the_cell_with_its_object(model):
    raw_maps = random_maps(0)
    found = assign_simota(model.head.cells(raw_maps), PaddedObjects(*CROWDED.padded(ignore=False)), Candidates(1.5, 10))
    for image in range(2):
        cells = cells_of(raw_maps, image)
        objects = [(label, list(box)) for label, *box in rows_of(CROWDED, image)]
        wanted = matched(cells, objects)
        mine = found.image_index == image
        assert dict(zip(found.cell_index[mine].tolist(), found.object_index[mine].tolist(), strict=True)) == {
            i: j for i, (j, _) in wanted.items()
        }
        assert found.quality[mine].tolist() == pytest.approx(
            [wanted[i][1] for i in found.cell_index[mine].tolist()], rel=1e-4
        )


def test_other_head_is_refused():
    with pytest.raises(ConfigError, match="expected a model with the head yolox"):
        SimOTALoss(CONFIG, Yolo(Yolo.Config(), NUM_CLASSES))


@pytest.mark.parametrize("wrong", [{"box": -1.0}, {"l1_share": 1.5}, {"radius": 0.0}, {"num_overlaps": 0}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="simota loss"):
        SimOTALoss.Config(**wrong)


def test_no_loop_over_images_or_objects():
    folder = Path(detector.losses.__file__).parent
    for name in ("simota.py", "simota_assignment.py"):
        tree = ast.parse((folder / name).read_text("utf-8"))
        assert not [n for n in ast.walk(tree) if isinstance(n, (ast.For, ast.While, ast.comprehension))], name


@pytest.mark.parametrize("has_l1", [0, 1])
def test_parts_and_gradients_equal_those_of_the_original_code(yolox_numbers, data_folder, has_l1):
    stored = np.load(yolox_numbers / f"loss_nano_l1_{has_l1}.npz")
    file = load_yolox_file(data_folder / "yolox" / "yolox_nano.pth")
    model = Yolox(config_of_size("nano"), 80).eval()
    model.load_state_dict(file.state)
    table = torch.from_numpy(stored["targets_class_cxcywh"])
    image, row = (table[..., 3] > 0).nonzero(as_tuple=True)
    objects = table[image, row]
    corners = torch.cat([objects[:, 1:3] - objects[:, 3:] / 2, objects[:, 1:3] + objects[:, 3:] / 2], dim=1)
    targets = Targets(corners, objects[:, 0].long(), image, torch.zeros(len(image), dtype=torch.bool), 4)
    loss = build(CONFIG, model)
    loss.set_progress(float(has_l1))
    parts = loss(model(torch.from_numpy(stored["images"]).flip(1)), targets)
    names = {"box": "iou_loss", "obj": "conf_loss", "cls": "cls_loss", "l1": "l1_loss"}
    assert {n: float(v) for n, v in parts.items()} == pytest.approx(
        {n: float(stored[key]) for n, key in names.items()}, rel=1e-5
    )
    sum(parts.values()).backward()
    norms = {original_name(n): float(p.grad.norm()) for n, p in model.named_parameters()}
    wanted = dict(zip(stored["grad_norm_names"].tolist(), stored["grad_norms"], strict=True))
    assert norms == pytest.approx(wanted, rel=1e-4)
