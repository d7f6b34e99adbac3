"""Darknet's deltas of the cells of one anchor level, a `[yolo]` layer.

A delta is the change of an output that lowers the loss, summed over cells and images. The rules are sequential: free
cells first, then the objects of an image in their order; if objects share a cell, the later ones see the deltas of the
earlier ones. Everything here runs over all cells at once; only the objects of the same cell are handled one after
another. A cell here is one anchor at one place of the grid; cells are flat over (B, anchors, H, W).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from detector.losses.darknet_iou import overlap_gradient, overlap_of
from detector.models.anchor_levels import AnchorLevel, Overlap, activate_entries, boxes_cxcywh
from detector.structures import transfer
from detector.structures.boxes import covered_areas, cxcywh_to_xyxy

_LIKELY_CLASS = 0.25  # a free cell is compared with objects only if one of its classes has a higher probability
_CROWD_SHARE = 0.5  # a predicted box counts as inside crowd regions if more than this share of its area is
_MAX_COMPARED = 2**21  # pairs of a cell and an object whose overlap is taken at once, which bounds the memory


@dataclass(frozen=True)
class RelativeObjects:
    """Objects of a batch relative to the canvas, one padded row per image.

    Attributes:
        cxcywh: float32 (B, M, 4), centre and size divided by the size of the canvas.
        labels: int64 (B, M).
        valid: bool (B, M), false on padding.
        crowd_xyxy: float32 (B, C, 4), crowd regions, relative.
        crowd_valid: bool (B, C).
        host: the same objects on the CPU, where these are on a GPU.
    """

    cxcywh: Tensor
    labels: Tensor
    valid: Tensor
    crowd_xyxy: Tensor
    crowd_valid: Tensor
    host: RelativeObjects | None = None


@dataclass(frozen=True)
class Deltas:
    """Deltas of a level, and the distance of its assigned boxes from their objects.

    Attributes:
        objectness: float32 (N,), for every cell, N = B * anchors * H * W.
        cell: int64 (U,), the cells that also have box and class deltas, ascending.
        box: float32 (U, 4), x, y, w, h.
        classes: float32 (U, classes).
        distance: float32 (), mean of 1 - IoU (giou: 1 - GIoU) over the assigned boxes, 0 without any.
    """

    objectness: Tensor
    cell: Tensor
    box: Tensor
    classes: Tensor
    distance: Tensor


@dataclass(frozen=True)
class _Predictions:
    """Predictions of a level.

    Attributes:
        level: the meaning of the map and the training settings.
        raw: float32 (B, anchors, entries, H, W).
        cxcywh: float32 (N, 4), boxes relative to the canvas.
        objectness: float32 (N,).
        class_weights: float32 (classes,), the weight of each class by its rarity, or None for equal weights.
    """

    level: AnchorLevel
    raw: Tensor
    cxcywh: Tensor
    objectness: Tensor
    class_weights: Tensor | None

    @classmethod
    def of(cls, raw_map: Tensor, level: AnchorLevel) -> _Predictions:
        """Return the predictions in a raw map: boxes and objectness of all cells; classes are activated on demand."""
        num_images, _, height, width = raw_map.shape
        raw = raw_map.float().reshape(num_images, len(level.mask), level.num_entries, height, width)
        dense = activate_entries(raw[:, :, :5], level)
        boxes = boxes_cxcywh(dense[:, :, 0:2], dense[:, :, 2:4], level).movedim(2, 4).reshape(-1, 4)
        canvas_h, canvas_w = level.canvas_hw((height, width))
        relative = boxes / transfer.constant([canvas_w, canvas_h, canvas_w, canvas_h], boxes.device)
        return cls(level, raw, relative, dense[:, :, 4].flatten(), _class_weights(level, raw.device))

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Rows and columns of the level."""
        return self.raw.shape[3], self.raw.shape[4]

    def has_likely_class(self) -> Tensor:
        """Return which cells have a likely class: bool (N,)."""
        likeliest = self.raw[:, :, 5:].amax(dim=2)
        probability = likeliest if self.level.new_coords else likeliest.sigmoid()
        return (probability > _LIKELY_CLASS).flatten()

    def entries(self, cell: Tensor) -> Tensor:
        """Return the activated entries (P, 5 + classes) of cells (P,)."""
        image, slot, row, column = self.place(cell)
        return activate_entries(self.raw[image, slot, :, row, column][:, None], self.level)[:, 0]

    def place(self, cell: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return image, anchor, row and column of cells (P,)."""
        num_images, num_anchors, _, rows, columns = self.raw.shape
        image, slot, row, column = transfer.unravelled(cell, (num_images, num_anchors, rows, columns))
        return image, slot, row, column

    def weight(self, label: Tensor) -> Tensor:
        """Return the weight (P,) of labels (P,)."""
        if self.class_weights is None:
            return torch.ones_like(label, dtype=torch.float32)
        return self.class_weights[label]


def _class_weights(level: AnchorLevel, device: torch.device) -> Tensor | None:
    training = level.training
    if training.counters_per_class is None:
        return None
    counters = torch.tensor(training.counters_per_class, dtype=torch.float32)
    weights = counters.max() / counters.clamp(min=1)
    return transfer.sent(weights if training.max_delta is None else weights.clamp(max=training.max_delta), device)


@dataclass(frozen=True)
class _Matches:
    """Matches of a cell (P,) and an object: image (P,), column in the padded row (P,) and overlap of both (P,)."""

    cell: Tensor
    image: Tensor
    index: Tensor
    overlap: Tensor

    def __getitem__(self, chosen: Tensor | slice) -> _Matches:
        return _Matches(self.cell[chosen], self.image[chosen], self.index[chosen], self.overlap[chosen])


@torch.no_grad()
def deltas_of_level(raw_map: Tensor, level: AnchorLevel, objects: RelativeObjects) -> Deltas:
    """Return the deltas of one level of kind `yolo`.

    Args:
        raw_map: (B, level.num_channels, H, W).
        level: the meaning of the map and the training settings.
        objects: the objects of the batch.
    """
    predictions = _Predictions.of(raw_map, level)
    objectness, near = _free_cell_deltas(predictions, objects)
    on_host = _assigned(predictions, objects.host or objects)
    taken = on_host.cell if not len(near.cell) else torch.cat([near.cell.to(on_host.cell.device), on_host.cell])
    taken = taken.unique()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assigned, cell = transfer.sent_record(on_host, raw_map.device), transfer.sent(taken, raw_map.device)
    entries = predictions.entries(cell)
    box, classes = torch.zeros_like(entries[:, :4]), torch.zeros_like(entries[:, 5:])
    deltas = Deltas(objectness, cell, box, classes, objectness.new_zeros(()))
    if len(near.cell):
        _add_near_cells(deltas, entries, predictions, objects, near)
    if not len(assigned.cell):
        return deltas
    _add_assigned_cells(deltas, entries, predictions, objects, assigned, torch.searchsorted(taken, on_host.cell))
    if level.training.iou_thresh < 1:
        num_positive = (classes > 0).sum(dim=1).clamp_(min=1)
        box /= torch.where(objectness[cell] != 0, num_positive, 1)[:, None]
    kind: Overlap = "giou" if level.training.iou_loss == "giou" else "iou"
    wanted = objects.cxcywh[assigned.image, assigned.index]
    distance = (1 - overlap_of(predictions.cxcywh[assigned.cell], wanted, kind)).mean()
    return Deltas(objectness, cell, box, classes, distance)


# --- free cells ------------------------------------------------------------------------------------------------------


def _free_cell_deltas(predictions: _Predictions, objects: RelativeObjects) -> tuple[Tensor, _Matches]:
    """Return the deltas of objectness for background: all cells except those on an object or in a crowd region.

    Returns:
        The deltas of objectness (N,), and the matches of cells that overlap an object by more than `truth_thresh`.
    """
    training = predictions.level.training
    objectness = predictions.objectness
    deltas = training.obj_normalizer * (0 - objectness)
    near = _overlapping(predictions, objects)
    is_known = near.overlap > training.ignore_thresh
    if training.truth_thresh < 1:
        is_known &= predictions.has_likely_class()[near.cell]
    known = near
    if not transfer.runs_ahead(is_known):
        known, is_known = near[is_known], is_known[is_known]
    before = deltas[known.cell]
    after = torch.zeros_like(before)
    if training.objectness_smooth:
        after = torch.maximum(before, training.obj_normalizer * (known.overlap - objectness[known.cell]))
    deltas[known.cell] = torch.where(is_known, after, before)
    if (objects.host or objects).crowd_valid.any():
        deltas.masked_fill_(_in_crowds(predictions, objects) & (deltas < 0), 0.0)
    if transfer.runs_ahead(deltas) and training.truth_thresh >= 1:
        return deltas, near[:0]
    return deltas, near[near.overlap > training.truth_thresh]  # on a GPU, the CPU waits


def _overlapping(predictions: _Predictions, objects: RelativeObjects) -> _Matches:
    """Return the first of the objects that overlap a cell most, for every cell that is compared with objects.

    On a GPU the other cells are returned too, with overlap -1.
    """
    num_images = len(predictions.raw)
    compares = predictions.has_likely_class()
    if predictions.level.training.truth_thresh < 1:  # then every cell does
        compares = torch.ones_like(compares)
    has_objects = objects.valid.any(dim=1).repeat_interleave(len(compares) // num_images)
    compares &= has_objects
    (cell,) = transfer.entries(compares)
    image = cell // (len(compares) // num_images)
    if not (len(cell) and objects.valid.shape[1]):
        cell, image = cell[:0], image[:0]
        return _Matches(cell, image, image, predictions.cxcywh.new_zeros(0))
    parts = []
    num_rows = max(1, _MAX_COMPARED // objects.valid.shape[1])
    for cells, images in zip(torch.split(cell, num_rows), torch.split(image, num_rows), strict=True):
        overlap = overlap_of(predictions.cxcywh[cells, None], objects.cxcywh[images], "iou")
        parts.append(overlap.masked_fill_(~objects.valid[images], 0.0).max(dim=1))
    best, index = (torch.cat(values) for values in zip(*parts, strict=True))
    return _Matches(cell, image, index, best.where(compares[cell], -1.0))


def _in_crowds(predictions: _Predictions, objects: RelativeObjects) -> Tensor:
    """Return which predicted boxes lie mostly in the union of the crowd regions of their image: bool (N,)."""
    boxes = cxcywh_to_xyxy(predictions.cxcywh).view(len(predictions.raw), -1, 4)
    areas = predictions.cxcywh[:, 2:].prod(dim=1).view(boxes.shape[:2])
    inside = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    num_regions = (objects.host or objects).crowd_valid.sum(dim=1)
    for image in num_regions.nonzero().flatten().tolist():
        covered = covered_areas(boxes[image], objects.crowd_xyxy[image, : int(num_regions[image])])
        inside[image] = covered > _CROWD_SHARE * areas[image]
    return inside.flatten()


def _add_near_cells(
    deltas: Deltas, entries: Tensor, predictions: _Predictions, objects: RelativeObjects, near: _Matches
) -> None:
    """Add the deltas of cells that overlap an object by more than `truth_thresh` to `deltas`."""
    training = predictions.level.training
    row = torch.searchsorted(deltas.cell, near.cell)
    label = objects.labels[near.image, near.index]
    target = near.overlap.square() if training.objectness_smooth else torch.ones_like(near.overlap)
    deltas.objectness[near.cell] = training.obj_normalizer * (target - entries[row, 4])
    _write_classes(deltas.classes, entries, predictions, row, label)
    if training.objectness_smooth:
        deltas.classes[row, label] = predictions.weight(label) * (target - entries[row, 5 + label])
    deltas.box[row] += _box_deltas(entries[row], predictions, objects, near)


# --- objects ---------------------------------------------------------------------------------------------------------


def _assigned(predictions: _Predictions, objects: RelativeObjects) -> _Matches:
    """Return the matches of every object with the anchors at its place that suit its shape, by image, then object."""
    level, (rows, columns) = predictions.level, predictions.grid_hw
    canvas_h, canvas_w = level.canvas_hw((rows, columns))
    device = objects.cxcywh.device
    anchors = torch.tensor(level.anchors_wh, dtype=torch.float32, device=device)
    anchors = anchors / anchors.new_tensor([canvas_w, canvas_h])
    # Only shapes count here, so every box is moved to the origin.
    shapes = torch.cat([torch.zeros_like(anchors), anchors], dim=1)
    wanted = torch.cat([torch.zeros_like(objects.cxcywh[..., :2]), objects.cxcywh[..., 2:]], dim=2)[:, :, None]
    best = overlap_of(shapes, wanted, "iou").argmax(dim=2)  # the first of equal anchors
    suits = torch.zeros((*best.shape, len(anchors)), dtype=torch.bool, device=device)
    if level.training.iou_thresh < 1:
        suits = overlap_of(shapes, wanted, level.training.iou_thresh_kind) > level.training.iou_thresh
    suits = suits.scatter(2, best[..., None], True) & objects.valid[..., None]
    slots = [level.mask.index(n) if n in level.mask else -1 for n in range(len(anchors))]
    slot_of_anchor = torch.tensor(slots, device=device)
    image, index, anchor = (suits & (slot_of_anchor >= 0)).nonzero(as_tuple=True)
    x, y = objects.cxcywh[image, index, 0], objects.cxcywh[image, index, 1]
    # A centre on the right or lower border belongs to the last cell.
    column = (x * columns).long().clamp_(0, columns - 1)
    row = (y * rows).long().clamp_(0, rows - 1)
    cell = ((image * len(level.mask) + slot_of_anchor[anchor]) * rows + row) * columns + column
    return _Matches(cell, image, index, torch.ones_like(x))


def _add_assigned_cells(
    deltas: Deltas, entries: Tensor, predictions: _Predictions, objects: RelativeObjects, matches: _Matches, row: Tensor
) -> None:
    """Add the deltas of the cells of every object to `deltas`, in `row` (P,), which is on the CPU.

    Objects that share a cell follow one another.
    """
    training, turn = predictions.level.training, _turns(row)
    row = transfer.sent(row, entries.device)
    label = objects.labels[matches.image, matches.index]
    box = _box_deltas(entries[row], predictions, objects, matches)
    objectness = predictions.weight(label) * training.obj_normalizer * (1 - entries[row, 4])
    for rank in range(int(turn.max()) + 1):  # the objects of a cell, rarely more than two
        now = transfer.sent((turn == rank).nonzero().squeeze(1), row.device)
        at, cell = row[now], matches.cell[now]
        deltas.box[at] += box[now]
        before = deltas.objectness[cell]
        keeps = (before != 0) if training.objectness_smooth else torch.zeros_like(before, dtype=torch.bool)
        deltas.objectness[cell] = torch.where(keeps, before, objectness[now])
        _write_classes(deltas.classes, entries, predictions, at, label[now])


def _turns(row: Tensor) -> Tensor:
    """Return the number of earlier entries with the same row: int64 (P,)."""
    ordered, order = row.sort(stable=True)
    position = torch.arange(len(row), device=row.device)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    start = torch.where(is_first, position, 0).cummax(dim=0).values
    return torch.empty_like(row).scatter_(0, order, position - start)


def _write_classes(deltas: Tensor, entries: Tensor, predictions: _Predictions, row: Tensor, label: Tensor) -> None:
    """Write class deltas (U, classes) in rows (P,), without repeats, for labels (P,).

    The first object of a cell writes every class; if the class of a later one is already written, it rewrites only that
    class.
    """
    training = predictions.level.training
    eps, weight = training.label_smooth_eps, predictions.weight(label)
    own = torch.arange(len(row), device=row.device)
    probability = entries[row, 5:]
    hit = probability[own, label]
    wanted = torch.zeros_like(probability)
    wanted[own, label] = 1.0
    if training.focal_loss:  # the derivative of Lin et al. 2017, equation 5, with gamma 2, as Darknet scales it
        certain = hit + 1e-15
        focus = -(1 - certain) * (2 * certain * certain.log() + certain - 1)
        whole = (wanted - probability) * (0.5 * focus)[:, None]
    else:
        whole = wanted * (1 - eps) + 0.5 * eps - probability
        if predictions.class_weights is not None:
            whole[own, label] *= weight * training.cls_normalizer
    before = deltas[row]
    written = before[own, label] != 0
    before[own, label] = weight * (1 - 0.5 * eps - hit)
    deltas[row] = torch.where(written[:, None], before, whole)


def _box_deltas(entries: Tensor, predictions: _Predictions, objects: RelativeObjects, matches: _Matches) -> Tensor:
    """Return the deltas (P, 4) of x, y, w, h of cells with entries (P, 5 + classes)."""
    level, training, (rows, columns) = predictions.level, predictions.level.training, predictions.grid_hw
    wanted = objects.cxcywh[matches.image, matches.index]
    scale = training.iou_normalizer * predictions.weight(objects.labels[matches.image, matches.index])
    if training.iou_loss == "mse":
        _, slot, row, column = predictions.place(matches.cell)
        canvas_h, canvas_w = level.canvas_hw((rows, columns))
        grid_wh = transfer.constant([columns, rows], wanted.device)
        offset = wanted[:, :2] * grid_wh - torch.stack([column, row], dim=1)
        anchors = level.own_anchors_wh(wanted.device)[slot]
        ratio = wanted[:, 2:] * transfer.constant([canvas_w, canvas_h], wanted.device) / anchors
        size = (ratio / 4).sqrt() if level.new_coords else ratio.log()
        small = 2 - wanted[:, 2] * wanted[:, 3]  # small objects weigh more
        return (small * scale)[:, None] * (torch.cat([offset, size], dim=1) - entries[:, :4])
    predicted = predictions.cxcywh[matches.cell]
    predicted[:, 2:] = torch.where(
        predicted[:, 2:] == 0, 1.0, predicted[:, 2:]
    )  # Darknet's guard against division by 0
    delta = overlap_gradient(predicted, wanted, training.iou_loss)
    if not level.new_coords:
        delta[:, 2:] *= entries[:, 2:4].exp()
    delta = (delta * scale[:, None]).nan_to_num_(0.0, 0.0, 0.0)
    bound = math.inf if training.max_delta is None else training.max_delta
    return delta.clamp_(-bound, bound)
