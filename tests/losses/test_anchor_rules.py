"""The anchor loss against Darknet's rules written as scalar loops in float64, over random small cases."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from detector.losses.anchor_loss import AnchorLoss
from detector.models.anchor_levels import AnchorLevel, AnchorTraining
from detector.structures.boxes import cxcywh_to_xyxy
from detector.structures.types import Targets

Array = npt.NDArray[np.float64]
Box = tuple[float, float, float, float]  # centre and size relative to the canvas
CROWD_SHARE = 0.5


# ---- Darknet's rules, one cell at a time


def sides(box: Box) -> tuple[float, float, float, float]:
    x, y, w, h = box
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def overlap_by_hand(a: Box, b: Box, kind: str) -> float:
    al, at, ar, ab = sides(a)
    bl, bt, br, bb = sides(b)
    shared = max(min(ar, br) - max(al, bl), 0) * max(min(ab, bb) - max(at, bt), 0)
    union = a[2] * a[3] + b[2] * b[3] - shared
    iou = shared / union if shared and union else 0.0
    hull_w, hull_h = max(ar, br) - min(al, bl), max(ab, bb) - min(at, bt)
    if kind == "giou" and hull_w * hull_h:
        return iou - (hull_w * hull_h - union) / (hull_w * hull_h)
    if kind in ("iou", "giou"):
        return iou
    diagonal = hull_w**2 + hull_h**2
    share = ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / diagonal if diagonal else 0.0
    if kind == "diou":
        return iou - share**0.6
    v = 4 / math.pi**2 * (math.atan(b[2] / b[3]) - math.atan(a[2] / a[3])) ** 2
    return iou - share - v * v / (1 - iou + v + 1e-6)


def gradient_by_hand(p: Box, q: Box, kind: str) -> list[float]:
    (l, t, r, b), (l2, t2, r2, b2) = sides(p), sides(q)  # noqa: E741 (the specification's letters)
    iw, ih = min(r, r2) - max(l, l2), min(b, b2) - max(t, t2)
    shared = iw * ih
    union = p[2] * p[3] + q[2] * q[3] - shared
    cw, ch = max(r, r2) - min(l, l2), max(b, b2) - min(t, t2)
    area = {"t": -p[2], "b": p[2], "l": -p[3], "r": p[3]}
    inner = {"t": -iw * (t > t2), "b": iw * (b < b2), "l": -ih * (l > l2), "r": ih * (r < r2)}
    hull = {"t": -cw * (t < t2), "b": cw * (b > b2), "l": -ch * (l < l2), "r": ch * (r > r2)}
    apart = iw <= 0 or ih <= 0
    e = {}
    for k in "tblr":
        outer = area[k] - inner[k]
        e[k] = (union * inner[k] - shared * outer) / union**2 if union > 0 else 0.0
        if kind == "giou":
            beyond = (cw * ch * outer - union * hull[k]) / (cw * ch) ** 2
            e[k] = beyond if apart else e[k] + beyond
    g = [e["l"] + e["r"], e["t"] + e["b"], e["r"] - e["l"], e["b"] - e["t"]]
    if kind in ("iou", "giou"):
        return g
    d, s = cw**2 + ch**2, (p[0] - q[0]) ** 2 + (p[1] - q[1]) ** 2
    a = [
        (2 * (q[0] - p[0]) * d - 2 * cw * ((r > r2) - (l < l2)) * s) / d**2,
        (2 * (q[1] - p[1]) * d - 2 * ch * ((b > b2) - (t < t2)) * s) / d**2,
        2 * cw * 0.5 * ((r > r2) + (l < l2)) * s / d**2,
        2 * ch * 0.5 * ((b > b2) + (t < t2)) * s / d**2,
    ]
    if kind == "ciou":
        angle = math.atan(q[2] / q[3]) - math.atan(p[2] / p[3])
        v = 4 * angle**2 / math.pi**2
        alpha = v / (1 - shared / union + v + 1e-6)
        a[2] += alpha * 8 / math.pi**2 * angle * p[3]
        a[3] -= alpha * 8 / math.pi**2 * angle * p[2]
    return a if apart else [x + y for x, y in zip(g, a, strict=True)]


class Rules:
    """Darknet's `[yolo]` layer in training, for one level, as scalar loops."""

    def __init__(self, out: Array, level: AnchorLevel) -> None:
        self.out, self.level, self.training = out, level, level.training
        self.num_images, self.num_slots, _, self.rows, self.columns = out.shape
        self.net_h, self.net_w = self.rows * level.stride_hw[0], self.columns * level.stride_hw[1]
        self.delta = np.zeros_like(out)
        self.distances: list[float] = []

    def multiplier(self, label: int) -> float:
        counters = self.training.counters_per_class
        if counters is None:
            return 1.0
        return min(max(counters) / max(1, counters[label]), self.training.max_delta or math.inf)

    def box_at(self, b: int, n: int, j: int, i: int) -> Box:
        x, y, w, h = self.out[b, n, :4, j, i].tolist()
        anchor_w, anchor_h = self.level.anchors_wh[self.level.mask[n]]
        w, h = (4 * w * w, 4 * h * h) if self.level.new_coords else (math.exp(w), math.exp(h))
        return (i + x) / self.columns, (j + y) / self.rows, w * anchor_w / self.net_w, h * anchor_h / self.net_h

    def teach_class(self, b: int, n: int, j: int, i: int, label: int) -> None:
        p, d = self.out[b, n, 5:, j, i], self.delta[b, n, 5:, j, i]
        eps, m = self.training.label_smooth_eps, self.multiplier(label)
        if d[label] != 0:
            d[label] = ((1 - eps / 2) - p[label]) * m
            return
        if self.training.focal_loss:
            pt = p[label]
            g = -(1 - pt) * (2 * pt * math.log(pt) + pt - 1)
            for c in range(len(p)):
                d[c] = ((c == label) - p[c]) * 0.5 * g
            return
        for c in range(len(p)):
            d[c] = (c == label) * (1 - eps) + eps / 2 - p[c]
        if self.training.counters_per_class is not None:
            d[label] *= m * self.training.cls_normalizer

    def teach_box(self, b: int, n: int, j: int, i: int, truth: Box, m: float) -> None:
        x, y, w, h = self.out[b, n, :4, j, i]
        d, scale = self.delta[b, n, :4, j, i], self.training.iou_normalizer * m
        if self.training.iou_loss == "mse":
            anchor_w, anchor_h = self.level.anchors_wh[self.level.mask[n]]
            rw, rh = truth[2] * self.net_w / anchor_w, truth[3] * self.net_h / anchor_h
            tw, th = (math.sqrt(rw / 4), math.sqrt(rh / 4)) if self.level.new_coords else (math.log(rw), math.log(rh))
            wanted = (truth[0] * self.columns - i, truth[1] * self.rows - j, tw, th)
            for k, (t, o) in enumerate(zip(wanted, (x, y, w, h), strict=True)):
                d[k] += (2 - truth[2] * truth[3]) * scale * (t - o)
            return
        px, py, pw, ph = self.box_at(b, n, j, i)
        g = gradient_by_hand((px, py, pw or 1.0, ph or 1.0), truth, self.training.iou_loss)
        if not self.level.new_coords:
            g[2], g[3] = g[2] * math.exp(w), g[3] * math.exp(h)
        bound = self.training.max_delta or math.inf
        for k in range(4):
            value = scale * g[k]
            d[k] += max(-bound, min(bound, value if math.isfinite(value) else 0.0))

    def run(self, truths: list[list[tuple[Box, int]]], crowds: list[list[Box]]) -> None:
        for b in range(self.num_images):
            self._free_cells(b, truths[b], crowds[b])
            for truth, label in truths[b]:
                self._object(b, truth, label)
            if self.training.iou_thresh < 1:
                self._share(b)

    def _free_cells(self, b: int, truths: list[tuple[Box, int]], crowds: list[Box]) -> None:
        t, on = self.training, self.training.obj_normalizer
        for n, j, i in np.ndindex(self.num_slots, self.rows, self.columns):
            box, obj = self.box_at(b, n, j, i), self.out[b, n, 4, j, i]
            overlaps = [overlap_by_hand(box, truth, "iou") for truth, _ in truths] or [0.0]
            best = max(overlaps)
            match = best if (self.out[b, n, 5:, j, i] > 0.25).any() else 0.0
            d = on * (0 - obj)
            if match > t.ignore_thresh:
                d = max(d, on * (match - obj)) if t.objectness_smooth else 0.0
            x1, y1, x2, y2 = sides(box)
            if union_inside((x1, y1, x2, y2), crowds) > CROWD_SHARE * box[2] * box[3] and d < 0:
                d = 0.0
            self.delta[b, n, 4, j, i] = d
            if best > t.truth_thresh:
                truth, label = truths[overlaps.index(best)]
                target = best**2 if t.objectness_smooth else 1.0
                self.delta[b, n, 4, j, i] = on * (target - obj)
                self.teach_class(b, n, j, i, label)
                if t.objectness_smooth:
                    p = self.out[b, n, 5 + label, j, i]
                    self.delta[b, n, 5 + label, j, i] = self.multiplier(label) * (target - p)
                self.teach_box(b, n, j, i, truth, self.multiplier(label))

    def _object(self, b: int, truth: Box, label: int) -> None:
        t, m = self.training, self.multiplier(label)
        i, j = min(int(truth[0] * self.columns), self.columns - 1), min(int(truth[1] * self.rows), self.rows - 1)
        shapes: list[Box] = [(0, 0, w / self.net_w, h / self.net_h) for w, h in self.level.anchors_wh]
        wanted: Box = (0, 0, truth[2], truth[3])
        ious = [overlap_by_hand(shape, wanted, "iou") for shape in shapes]
        best = ious.index(max(ious))
        chosen = [best]
        if t.iou_thresh < 1:
            scores = [overlap_by_hand(shape, wanted, t.iou_thresh_kind) for shape in shapes]
            chosen += [n for n, score in enumerate(scores) if n != best and score > t.iou_thresh]
        for anchor in chosen:
            if anchor not in self.level.mask:
                continue
            n = self.level.mask.index(anchor)
            kind = "giou" if t.iou_loss == "giou" else "iou"
            self.distances.append(1 - overlap_by_hand(self.box_at(b, n, j, i), truth, kind))
            self.teach_box(b, n, j, i, truth, m)
            if not t.objectness_smooth or self.delta[b, n, 4, j, i] == 0:
                self.delta[b, n, 4, j, i] = m * t.obj_normalizer * (1 - self.out[b, n, 4, j, i])
            self.teach_class(b, n, j, i, label)

    def _share(self, b: int) -> None:
        for n, j, i in np.ndindex(self.num_slots, self.rows, self.columns):
            if self.delta[b, n, 4, j, i] != 0:
                self.delta[b, n, :4, j, i] /= max(int((self.delta[b, n, 5:, j, i] > 0).sum()), 1)

    def cost(self) -> list[float]:
        """Return the box, objectness and class part that Darknet reports."""
        square = (self.delta**2).sum(axis=(0, 1, 3, 4))
        box, obj, cls = square[:4].sum(), square[4], square[5:].sum()
        if self.training.iou_loss == "mse":
            return [box, obj, cls]
        mean = sum(self.distances) / len(self.distances) if self.distances else 0.0
        on = self.training.obj_normalizer
        return [self.training.iou_normalizer * mean, on * obj, on * cls]


def activated_by_hand(raw: Array, level: AnchorLevel) -> Array:
    out = raw.reshape(len(raw), len(level.mask), level.num_entries, *raw.shape[2:]).copy()
    if not level.new_coords:
        for k in (0, 1, *range(4, level.num_entries)):
            out[:, :, k] = 1 / (1 + np.exp(-out[:, :, k]))
    out[:, :, :2] = out[:, :, :2] * level.scale_x_y - (level.scale_x_y - 1) / 2
    return out


# ---- random cases

Case = tuple[AnchorLevel, Array, list[list[tuple[Box, int]]], list[list[Box]]]


def union_inside(box: Box, regions: list[Box]) -> float:
    """Return the area of a box that lies under regions, a region under earlier ones counting once."""
    if not regions:
        return 0.0
    (x1, y1, x2, y2), (cx1, cy1, cx2, cy2) = box, regions[0]
    low_x, low_y, high_x, high_y = max(x1, cx1), max(y1, cy1), min(x2, cx2), min(y2, cy2)
    if high_x <= low_x or high_y <= low_y:
        return union_inside(box, regions[1:])
    common: Box = (low_x, low_y, high_x, high_y)
    area = (high_x - low_x) * (high_y - low_y)
    return area + union_inside(box, regions[1:]) - union_inside(common, regions[1:])


def random_case(seed: int, crowded: bool = False) -> Case:
    """Return a level with random settings, raw values and objects, several of them in one cell."""
    rng = np.random.default_rng(seed)

    def one_of(*choices: Any) -> Any:
        return choices[rng.integers(len(choices))]

    num_classes, rows, columns = int(rng.integers(1, 5)), int(rng.integers(1, 5)), int(rng.integers(1, 6))
    stride_hw = (8.0, float(one_of(8, 16)))
    anchors = tuple((float(w), float(h)) for w, h in rng.uniform(4, 40, (6, 2)))
    anchors = (*anchors[:5], anchors[0])  # a repeated pair: the first of equal anchors wins
    training = AnchorTraining(
        iou_loss=one_of("mse", "iou", "giou", "diou", "ciou"),
        iou_normalizer=one_of(0.07, 0.75),
        obj_normalizer=one_of(0.4, 1.0),
        cls_normalizer=one_of(0.5, 1.0),
        ignore_thresh=one_of(0.05, 0.3, 0.7),
        truth_thresh=one_of(1.0, 1.0, 0.3),
        iou_thresh=one_of(1.0, 0.1, 0.213),
        iou_thresh_kind=one_of("iou", "giou", "diou", "ciou"),
        objectness_smooth=bool(one_of(False, True)),
        label_smooth_eps=one_of(0.0, 0.1),
        focal_loss=bool(one_of(False, False, True)),
        counters_per_class=one_of(None, tuple(float(c) for c in rng.integers(0, 50, num_classes))),
        max_delta=one_of(None, 2.0),
    )
    mask = tuple(int(m) for m in rng.permutation(6)[: int(rng.integers(1, 5))])
    level = AnchorLevel(
        num_classes,
        anchors,
        mask,
        stride_hw,
        scale_x_y=one_of(1.0, 1.1, 2.0),
        new_coords=bool(one_of(False, True)),
        training=training,
    )
    raw = rng.normal(-0.5, 1.2, (2, level.num_channels, rows, columns)).astype(np.float32).astype(np.float64)
    if level.new_coords:
        raw = 1 / (1 + np.exp(-raw))
    size = (columns * stride_hw[1], rows * stride_hw[0])

    def random_object() -> tuple[Box, int]:
        x, y = rng.uniform(0.02, 0.98, 2)
        w, h = rng.uniform(3, 45, 2) / size
        return (float(x), float(y), float(w), float(h)), int(rng.integers(num_classes))

    truths = []
    for _ in range(2):
        objects = [random_object() for _ in range(int(rng.integers(0, 6)))]
        for box, label in objects[:3]:  # others at the same place, of the same and of another class
            objects.append(((box[0], box[1], box[2] * 1.01, box[3]), label))
            objects.append(((box[0], box[1], box[2], box[3] * 0.98), int(rng.integers(num_classes))))
        truths.append(objects)
    crowds: list[list[Box]] = [[], []]
    if crowded:
        crowds = [[(0.0, 0.0, 0.6, 0.7)], [(0.3, 0.2, 1.0, 1.0), (0.0, 0.0, 0.35, 1.0)]]
    return level, raw, truths, crowds


def taught_by_loss(case: Case) -> tuple[Array, dict[str, float]]:
    """Return the deltas in the gradient and the reported parts."""
    level, raw, truths, crowds = case
    net_h, net_w = raw.shape[2] * level.stride_hw[0], raw.shape[3] * level.stride_hw[1]
    size = np.array([net_w, net_h, net_w, net_h])
    rows = []
    for image, (objects, regions) in enumerate(zip(truths, crowds, strict=True)):
        rows += [(image, cxcywh_to_xyxy(np.array(box)) * size, label, False) for box, label in objects]
        rows += [(image, np.array(region) * size, 0, True) for region in regions]
    boxes = np.array([box for _, box, _, _ in rows], np.float32).reshape(-1, 4)
    targets = Targets(
        torch.from_numpy(boxes),
        torch.tensor([label for _, _, label, _ in rows], dtype=torch.int64),
        torch.tensor([image for image, _, _, _ in rows], dtype=torch.int64),
        torch.tensor([crowd for _, _, _, crowd in rows], dtype=torch.bool),
        len(raw),
    )
    raw_map = torch.from_numpy(raw).float().requires_grad_()
    loss = AnchorLoss(AnchorLoss.Config(), SimpleNamespace(anchor_levels=(level,)))  # type: ignore[arg-type]  # the loss only uses the levels of a model
    parts = loss((raw_map,), targets)
    torch.stack(list(parts.values())).sum().backward()
    assert raw_map.grad is not None
    deltas = -raw_map.grad.double().numpy() * len(raw)
    return deltas, {name: float(value.detach()) * len(raw) for name, value in parts.items()}


def assert_taught_as(case: Case) -> Rules:
    level, raw, truths, crowds = case
    rules = Rules(activated_by_hand(raw, level), level)
    rules.run(truths, crowds)
    deltas, parts = taught_by_loss(case)
    wanted = rules.delta.reshape(deltas.shape)
    scale = np.maximum(1, np.abs(wanted))
    assert float((np.abs(deltas - wanted) / scale).max()) < 1e-5, level
    assert list(parts) == ["box", "obj", "cls"]
    assert list(parts.values()) == pytest.approx(rules.cost(), rel=1e-5, abs=1e-6)
    return rules


@pytest.mark.parametrize("block", range(4))
def test_deltas_follow_the_rules_for_random_settings(block: int) -> None:
    for seed in range(100 * block, 100 * block + 100):
        assert_taught_as(random_case(seed))


def test_random_cases_reach_every_rule() -> None:
    seen: dict[str, int] = dict.fromkeys(("near", "crowd", "shared cell", "no object", "positive kept"), 0)
    for seed in range(60):
        case = random_case(seed, crowded=True)
        rules = assert_taught_as(case)
        without = Rules(rules.out, rules.level)
        without.run(case[2], [[], []])
        seen["crowd"] += int(not np.array_equal(without.delta, rules.delta))
        seen["no object"] += int(not all(case[2]))
        seen["near"] += int(rules.training.truth_thresh < 1 and (rules.delta[:, :, 4] > 0).any())
        seen["shared cell"] += int(len(rules.distances) > (rules.delta[:, :, :4] != 0).any(axis=2).sum())
        kept = rules.training.objectness_smooth and len(rules.distances) > 0 and (rules.delta[:, :, 4] < 0).any()
        seen["positive kept"] += int(kept)
    assert all(count >= 3 for count in seen.values()), seen


CHANGES: dict[str, Callable[[AnchorTraining], Any]] = {
    "iou_normalizer": lambda t: t.iou_normalizer * 2,
    "obj_normalizer": lambda t: t.obj_normalizer * 2,
    "ignore_thresh": lambda t: 0.95,
    "truth_thresh": lambda t: 0.2 if t.truth_thresh == 1 else 1.0,
    "iou_thresh": lambda t: 0.05 if t.iou_thresh == 1 else 1.0,
    "objectness_smooth": lambda t: not t.objectness_smooth,
    "label_smooth_eps": lambda t: t.label_smooth_eps + 0.2,
    "focal_loss": lambda t: not t.focal_loss,
    "max_truths": lambda t: 1,
}


@pytest.mark.parametrize("field", CHANGES)
def test_every_setting_changes_the_result_of_some_case(field: str) -> None:
    for seed in range(40):
        level, raw, truths, crowds = random_case(seed)
        before, _ = taught_by_loss((level, raw, truths, crowds))
        settings = {**vars(level.training), field: CHANGES[field](level.training)}
        changed = AnchorLevel(**{**vars(level), "training": AnchorTraining(**settings)})
        after, _ = taught_by_loss((changed, raw, truths, crowds))
        if not np.array_equal(before, after):
            return
    pytest.fail(f"{field} changes nothing in forty cases")
