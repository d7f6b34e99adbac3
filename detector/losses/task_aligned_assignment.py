"""Task-aligned assignment of objects to cells (Feng et al. 2021, "TOOD", section 3.2), over a whole batch at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detector.structures.boxes import area_xyxy


@dataclass(frozen=True)
class Assignment:
    """The cells that hold objects, flat over the batch.

    Attributes:
        image_index: int64 (P,), the image of each positive cell.
        cell_index: int64 (P,), the cell within the image, 0 .. A - 1.
        object_index: int64 (P,), the column of its object in the padded targets.
        quality: float32 (P,), above 0 and at most 1, the class score the cell should give: its alignment relative to
            the best cell of the object, times the best overlap that the object has with any of its cells.
    """

    image_index: Tensor
    cell_index: Tensor
    object_index: Tensor
    quality: Tensor


def pairwise_iou(first_xyxy: Tensor, second_xyxy: Tensor) -> Tensor:
    """Intersection over union of boxes in the same row: (..., 4) and (..., 4) broadcast to (...)."""
    low = torch.maximum(first_xyxy[..., :2], second_xyxy[..., :2])
    high = torch.minimum(first_xyxy[..., 2:], second_xyxy[..., 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    union = area_xyxy(first_xyxy) + area_xyxy(second_xyxy) - intersection
    iou: Tensor = intersection / union.clamp(min=1e-9)
    return iou


def cells_in_boxes(points_xy: Tensor, strides: Tensor, canvas_xyxy: Tensor) -> Tensor:
    """Which cell centres lie in which boxes: bool (B, M, A) for points (A, 2) and boxes (B, M, 4).

    A box narrower or lower than a cell is widened about its centre to the finest stride, so that every object has a
    cell to be found at.
    """
    centre = (canvas_xyxy[..., :2] + canvas_xyxy[..., 2:]) / 2
    half = ((canvas_xyxy[..., 2:] - canvas_xyxy[..., :2]) / 2).clamp(min=float(strides.min()) / 2)
    x, y = points_xy.unbind(1)
    inside_x = (x - centre[..., :1]).abs() <= half[..., :1]
    inside_y = (y - centre[..., 1:]).abs() <= half[..., 1:]
    return inside_x & inside_y


@torch.no_grad()
def assign_task_aligned(
    scores: Tensor,
    canvas_xyxy: Tensor,
    points_xy: Tensor,
    strides: Tensor,
    target_xyxy: Tensor,
    target_labels: Tensor,
    valid: Tensor,
    *,
    num_candidates: int,
    alpha: float,
    beta: float,
) -> Assignment:
    """Gives each object the cells whose score and box suit it best.

    The alignment of a cell with an object is score^alpha * IoU^beta (TOOD, equation 3). Each object takes its
    `num_candidates` best cells among those whose centre it contains; a cell wanted by several goes to the one its box
    overlaps most. An object that loses all its cells, a small one on a large one, gets its best one back where the
    winner keeps another: without it, it would never be taught, however long training lasts.

    Args:
        scores: float32 (B, A, classes), 0..1.
        canvas_xyxy: float32 (B, A, 4), the predicted boxes.
        points_xy: float32 (A, 2), cell centres in canvas pixels.
        strides: float32 (A,), canvas pixels per cell.
        target_xyxy: float32 (B, M, 4), objects in canvas pixels, padded.
        target_labels: int64 (B, M).
        valid: bool (B, M), false on padding.
        num_candidates: cells an object may take.
        alpha: exponent of the score.
        beta: exponent of the overlap.
    """
    num_images, num_objects = valid.shape
    num_cells = len(points_xy)
    inside = cells_in_boxes(points_xy, strides, target_xyxy) & valid[..., None]
    image, target, cell = inside.nonzero(as_tuple=True)  # the pairs that can match, far fewer than B * M * A
    overlap = pairwise_iou(canvas_xyxy[image, cell], target_xyxy[image, target])
    score = scores[image, cell, target_labels[image, target]]
    alignment = score.pow(alpha) * overlap.pow(beta)

    dense = scores.new_full((num_images, num_objects, num_cells), -1.0)
    dense[image, target, cell] = alignment
    best, chosen_cell = dense.topk(min(num_candidates, num_cells), dim=-1)
    taken = best >= 0  # cells outside the object stand at -1
    is_candidate = torch.zeros_like(inside).scatter_(2, chosen_cell, taken)[image, target, cell]
    image, target, cell = image[is_candidate], target[is_candidate], cell[is_candidate]
    overlap, alignment = overlap[is_candidate], alignment[is_candidate]

    best_overlap = overlap.new_full((num_images, num_cells), -1.0)
    best_overlap.view(-1).scatter_reduce_(0, image * num_cells + cell, overlap, "amax")
    wins = overlap == best_overlap[image, cell]
    # Two objects may tie to the last bit (duplicates in the annotation file); the first of them keeps the cell.
    first = torch.full((num_images, num_cells), num_objects, device=target.device)
    first.view(-1).scatter_reduce_(0, (image * num_cells + cell)[wins], target[wins], "amin")
    wins &= target == first[image, cell]
    wins = _with_the_lost(wins, image * num_objects, target, first[image, cell], image * num_cells + cell, alignment)
    image, target, cell = image[wins], target[wins], cell[wins]
    overlap, alignment = overlap[wins], alignment[wins]

    row = image * num_objects + target
    peak_alignment = alignment.new_zeros(num_images * num_objects).scatter_reduce_(0, row, alignment, "amax")
    peak_overlap = overlap.new_zeros(num_images * num_objects).scatter_reduce_(0, row, overlap, "amax")
    # The floor only guards against 0 / 0: the sixth power of a small overlap is tiny, and an object whose boxes are all
    # still far off must be taught all the same.
    quality = alignment / peak_alignment[row].clamp(min=torch.finfo(alignment.dtype).tiny) * peak_overlap[row]
    # A cell that weighs nothing teaches nothing, and a predicted box without area would make 0 * NaN of its CIoU.
    weighs = quality > 0
    return Assignment(image[weighs], cell[weighs], target[weighs], quality[weighs])


def _with_the_lost(
    wins: Tensor, base: Tensor, target: Tensor, owner: Tensor, place: Tensor, alignment: Tensor
) -> Tensor:
    """Which pairs of object and cell match when objects without a cell have got their best one back.

    Args:
        wins: bool (P,), which pairs match so far.
        base: int64 (P,), number of the first object of the pair's image.
        target: int64 (P,), the object of the pair in its image.
        owner: int64 (P,), the object that has the cell of the pair.
        place: int64 (P,), number of the cell in the batch.
        alignment: float32 (P,).
    """
    row, owner_row = base + target, base + owner
    size = int(row.max()) + 1 if len(row) else 0
    num_won = torch.zeros(size, device=row.device).index_add_(0, row, wins.float())
    asks = (num_won[row] == 0) & (num_won[owner_row] > 1)
    if not asks.any():
        return wins
    peak = alignment.new_full((size,), -1.0).scatter_reduce_(0, row[asks], alignment[asks], "amax")
    asks &= alignment == peak[row]
    asks &= place == _lowest(place, row, asks)  # the first of cells that are equally good
    asks &= row == _lowest(row, place, asks)  # the first of those who ask for a cell
    given = torch.zeros(int(place.max()) + 1, dtype=torch.bool, device=place.device)
    given[place[asks]] = True
    return (wins & ~given[place]) | asks


def _lowest(values: Tensor, keys: Tensor, chosen: Tensor) -> Tensor:
    """For each entry, the lowest chosen value under its key: int64 (P,), more than any value where there is none."""
    lowest = torch.full((int(keys.max()) + 1,), int(values.max()) + 1, device=keys.device)
    return lowest.scatter_reduce_(0, keys[chosen], values[chosen], "amin")[keys]


def cells_in_crowds(points_xy: Tensor, strides: Tensor, crowd_xyxy: Tensor, valid: Tensor) -> Tensor:
    """Cells that lie mostly inside a crowd region: bool (B, A), true where more than half of the cell's square does."""
    half = strides[:, None] / 2
    cells_xyxy = torch.cat([points_xy - half, points_xy + half], dim=1)
    low = torch.maximum(cells_xyxy[:, :2], crowd_xyxy[:, :, None, :2])
    high = torch.minimum(cells_xyxy[:, 2:], crowd_xyxy[:, :, None, 2:])
    share = (high - low).clamp(min=0).prod(-1) / strides.square()
    return ((share > 0.5) & valid[..., None]).any(dim=1)
