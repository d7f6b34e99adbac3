"""SimOTA: dynamic assignment of objects to cells (Ge et al. 2021, "YOLOX", section 2.3), over a whole batch at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detector.losses.task_aligned_assignment import Assignment, PaddedObjects, pairwise_iou
from detector.models.yolox import CellPredictions
from detector.structures import transfer

_IOU_WEIGHT = 3.0  # of the overlap in the cost
_FAR_COST = 1e6  # added where the cell is no candidate of the object
_IOU_EPSILON = 1e-8
_LEAST_LOG = -100.0  # bound on the logarithms of a binary cross-entropy, as in torch


@dataclass(frozen=True)
class Candidates:
    """Settings of the candidates.

    Attributes:
        radius: largest distance of a candidate's centre from the object's centre on each axis, in strides.
        num_overlaps: overlaps whose sum is the number of cells of an object.
    """

    radius: float
    num_overlaps: int


@torch.no_grad()
def assign_simota(cells: CellPredictions, objects: PaddedObjects, settings: Candidates) -> Assignment:
    """Give each object its cheapest cells, as many as its largest overlaps sum up to.

    The cells that an object may take are the candidates of any object in its image; those that are not its own cost
    more. A cell that several objects take goes to the object that it costs least.

    Args:
        cells: the predictions of all cells.
        objects: the objects of the batch.
        settings: settings of the candidates.

    Returns:
        The cells taken; `quality` is the overlap of the cell's box with its object, 0..1.
    """
    is_near = _near_centre(cells, objects, settings.radius)
    index, is_used = _padded_union(is_near.any(dim=1))
    num_images, num_columns = index.shape
    if not num_columns or not objects.valid.shape[1]:  # no objects, or none near any cell
        nothing = index.new_zeros(0)
        return Assignment(nothing, nothing, nothing, cells.strides.new_zeros(0), nothing.bool())
    image = torch.arange(num_images, device=index.device)[:, None]
    overlap = pairwise_iou(objects.canvas_xyxy[:, :, None], cells.canvas_xyxy()[image, index][:, None])
    overlap = overlap.masked_fill(~(is_used[:, None] & objects.valid[..., None]), 0.0)
    cost = _class_cost(cells, objects, image, index) - _IOU_WEIGHT * (overlap + _IOU_EPSILON).log()
    own = is_near.gather(2, index[:, None].expand(-1, is_near.shape[1], -1))
    cost += _FAR_COST * ~own
    cost = cost.masked_fill(~(is_used[:, None] & objects.valid[..., None]), torch.inf)

    most = min(settings.num_overlaps, num_columns)
    num_taken = overlap.topk(most, dim=-1).values.sum(-1).int().clamp(min=1)
    cheapest, column = cost.topk(most, dim=-1, largest=False)
    rank = torch.arange(most, device=index.device)
    taken = (rank < num_taken[..., None]) & cheapest.isfinite()
    chosen = torch.zeros_like(cost, dtype=torch.bool).scatter_(2, column, taken)
    num_owners = chosen.sum(dim=1)
    owner = torch.where(num_owners > 1, cost.argmin(dim=1), chosen.int().argmax(dim=1))
    if transfer.runs_ahead(index):
        num = min(num_owners.numel(), taken.numel())
        place, counts = transfer.padded_places(num_owners.flatten() > 0, num)
        image_index, column_index = transfer.unravelled(place, index.shape)
    else:
        image_index, column_index = (num_owners > 0).nonzero(as_tuple=True)
        counts = torch.ones_like(image_index, dtype=torch.bool)
    object_index = owner[image_index, column_index]
    quality = overlap[image_index, object_index, column_index]
    return Assignment(image_index, index[image_index, column_index], object_index, quality, counts)


def _near_centre(cells: CellPredictions, objects: PaddedObjects, radius: float) -> Tensor:
    """Return which cells are candidates of which objects: bool (B, M, A)."""
    centre = (objects.canvas_xyxy[..., :2] + objects.canvas_xyxy[..., 2:]) / 2
    points = (cells.corners_xy + 0.5) * cells.strides[:, None]
    reach = radius * cells.strides
    is_near = ((points[:, 0] - centre[..., :1]).abs() < reach) & ((points[:, 1] - centre[..., 1:]).abs() < reach)
    return is_near & objects.valid[..., None]


def _padded_union(is_any: Tensor) -> tuple[Tensor, Tensor]:
    """Return the true columns of each row of bool (B, A), padded with 0: int64 (B, P), and what is no padding.

    On a GPU they are all columns, those that are false as padding.
    """
    if transfer.runs_ahead(is_any):
        return torch.arange(is_any.shape[1], device=is_any.device).expand_as(is_any), is_any
    row, column = is_any.nonzero(as_tuple=True)
    counts = is_any.sum(dim=1)
    num_columns = int(counts.max()) if len(row) else 0
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    index = column.new_zeros((len(is_any), num_columns))
    index[row, place] = column
    return index, torch.arange(num_columns, device=row.device) < counts[:, None]


def _class_cost(cells: CellPredictions, objects: PaddedObjects, image: Tensor, index: Tensor) -> Tensor:
    """Return the binary cross-entropy of each cell's classes to each object's class, summed over classes: (B, M, P)."""
    objectness = cells.objectness_logits[image, index].sigmoid()
    root = (cells.class_logits[image, index].sigmoid() * objectness[..., None]).sqrt()
    no = torch.log1p(-root).clamp(min=_LEAST_LOG)
    yes_less_no = root.log().clamp(min=_LEAST_LOG) - no
    labels = objects.labels[..., None].expand(-1, -1, index.shape[1])
    return -no.sum(-1)[:, None] - yes_less_no.transpose(1, 2).gather(1, labels)
