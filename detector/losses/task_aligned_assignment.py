"""Task-aligned assignment of objects to cells (Feng et al. 2021, "TOOD", section 3.2), over a whole batch at once."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detector.structures import transfer
from detector.structures.boxes import area_xyxy, covered_areas

# Pairs of an object and a cell that are compared at once, which bounds the memory: 16 images of 1280 x 1280 px, one of
# them with 2,000 objects, have a thousand million pairs if every image is padded to the fullest.
_MAX_COMPARED = 2**21
# Rounds in which objects without a cell get one on a GPU, which does not stop by itself; the CPU makes all rounds.
_MAX_ROUNDS = 8


@dataclass(frozen=True)
class PaddedObjects:
    """Objects of a batch, one padded row per image, as from `Targets.padded`.

    Attributes:
        canvas_xyxy: float32 (B, M, 4), in canvas pixels.
        labels: int64 (B, M).
        valid: bool (B, M), false on padding.
    """

    canvas_xyxy: Tensor
    labels: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Alignment:
    """Settings of the alignment of a cell with an object, score^alpha * IoU^beta (TOOD, equation 3).

    Attributes:
        num_candidates: cells an object may take.
        alpha: exponent of the score.
        beta: exponent of the overlap.
        enlarge_small: whether objects take cells as if they were at least as large as the second stride.
        one_to_one: whether an object keeps its best cell only.
    """

    num_candidates: int
    alpha: float
    beta: float
    enlarge_small: bool = False
    one_to_one: bool = False


@dataclass(frozen=True)
class Assignment:
    """Cells assigned to objects, flat over the batch; on a GPU with entries that do not count among them.

    Attributes:
        image_index: int64 (P,), the image of each positive cell.
        cell_index: int64 (P,), the cell within the image, 0 .. A - 1.
        object_index: int64 (P,), the column of its object in the padded targets.
        quality: float32 (P,), above 0 and at most 1, the target of the cell's class score: its alignment relative to
            the best cell of the object, times the best overlap of the object with any of its cells.
        counts: bool (P,), whether the entry counts; true of all on the CPU.
    """

    image_index: Tensor
    cell_index: Tensor
    object_index: Tensor
    quality: Tensor
    counts: Tensor


def pairwise_iou(first_xyxy: Tensor, second_xyxy: Tensor) -> Tensor:
    """Return the intersection over union of boxes in the same row: (..., 4) and (..., 4) broadcast to (...)."""
    low = torch.maximum(first_xyxy[..., :2], second_xyxy[..., :2])
    high = torch.minimum(first_xyxy[..., 2:], second_xyxy[..., 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    union = area_xyxy(first_xyxy) + area_xyxy(second_xyxy) - intersection
    iou: Tensor = intersection / union.clamp(min=1e-9)
    return iou


def cells_in_boxes(points_xy: Tensor, strides: Tensor, canvas_xyxy: Tensor, enlarge_small: bool = False) -> Tensor:
    """Return which cell centres lie in which boxes: bool (..., A) for points (A, 2) and boxes (..., 4).

    A box narrower or lower than a cell is widened about its centre to the finest stride, so that every object contains
    a cell centre. With `enlarge_small` it is widened to the second stride: it then contains four centres of the finest
    level and one of the next, as with the centre sampling of Tian et al. 2020 ("FCOS: a simple and strong anchor-free
    object detector"), which takes cells near the centre of an object however small its box is.
    """
    centre = (canvas_xyxy[..., :2] + canvas_xyxy[..., 2:]) / 2
    least = strides.min()
    if enlarge_small:
        least = strides.where(strides > least, strides.max()).min()  # of a single level its own stride
    half = ((canvas_xyxy[..., 2:] - canvas_xyxy[..., :2]) / 2).clamp(min=least / 2)
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
    objects: PaddedObjects,
    alignment: Alignment,
) -> Assignment:
    """Give each object the cells whose score and box suit it best.

    Each object takes its `num_candidates` best cells among those whose centre it contains. A cell that several objects
    take goes to the one that its box overlaps most. An object that loses all its cells, a small one on a large one,
    gets its best cell back whose winner keeps another; without it, the object would never be trained on.

    One to one, it keeps the best of the cells that are its own by then. That is the top one of Wang et al. 2024
    ("YOLOv10", section 3.1), except that objects whose best cell is the same do not share it and none is left out.

    Args:
        scores: float32 (B, A, classes), 0..1.
        canvas_xyxy: float32 (B, A, 4), the predicted boxes.
        points_xy: float32 (A, 2), cell centres in canvas pixels.
        strides: float32 (A,), canvas pixels per cell.
        objects: the objects of the batch.
        alignment: settings of the alignment and the number of cells of an object.
    """
    num_images, num_objects = objects.valid.shape
    image, target = transfer.entries(objects.valid)
    num_rows = max(1, _MAX_COMPARED // len(points_xy))
    parts = [
        _candidates(scores, canvas_xyxy, points_xy, strides, objects, alignment, rows)
        for rows in zip(torch.split(image, num_rows), torch.split(target, num_rows), strict=True)
    ]
    image, target, cell, overlap, aligned = (torch.cat(values) for values in zip(*parts, strict=True))
    pairs = _Pairs(image, target, cell, overlap, aligned, num_objects, len(points_xy))
    wins = _winners(pairs, num_images)
    return _with_quality(pairs[_best(wins, pairs, num_images) if alignment.one_to_one else wins], num_images)


def _candidates(
    scores: Tensor,
    canvas_xyxy: Tensor,
    points_xy: Tensor,
    strides: Tensor,
    objects: PaddedObjects,
    alignment: Alignment,
    chosen: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the best cells of some objects, `chosen` by image (R,) and column (R,), as the tensors of `_Pairs`.

    On a GPU there are as many for every object; those that do not count have overlap and alignment -1.
    """
    image, target = chosen
    object_xyxy, labels = objects.canvas_xyxy[image, target], objects.labels[image, target]
    inside = cells_in_boxes(points_xy, strides, object_xyxy, alignment.enlarge_small)
    if transfer.runs_ahead(inside):
        overlap = pairwise_iou(canvas_xyxy[image], object_xyxy[:, None])
        aligned = scores[image, :, labels].pow(alignment.alpha) * overlap.pow(alignment.beta)
        aligned = aligned.where(inside & objects.valid[image, target][:, None], -1.0)
        best, cell = aligned.topk(min(alignment.num_candidates, len(points_xy)), dim=-1)
        overlap = overlap.gather(1, cell).where(best >= 0, -1.0)
        pairs = (image[:, None].expand_as(cell), target[:, None].expand_as(cell), cell, overlap, best)
        return tuple(values.flatten() for values in pairs)  # type: ignore[return-value]  # five of them
    row, cell = inside.nonzero(as_tuple=True)
    overlap = pairwise_iou(canvas_xyxy[image[row], cell], object_xyxy[row])
    aligned = scores[image[row], cell, labels[row]].pow(alignment.alpha) * overlap.pow(alignment.beta)
    dense = scores.new_full(inside.shape, -1.0)
    dense[row, cell] = aligned
    best, best_cell = dense.topk(min(alignment.num_candidates, len(points_xy)), dim=-1)
    taken = best >= 0  # cells outside the object have -1
    keep = torch.zeros_like(inside).scatter_(1, best_cell, taken)[row, cell]
    return image[row[keep]], target[row[keep]], cell[keep], overlap[keep], aligned[keep]


@dataclass(frozen=True)
class _Pairs:
    """Pairs of an object and a cell of its image.

    Attributes:
        image: int64 (P,), the image.
        target: int64 (P,), the object in the image.
        cell: int64 (P,), the cell in the image.
        overlap: float32 (P,), of the predicted box of the cell with the object; on a GPU -1 where the pair is none.
        alignment: float32 (P,), on a GPU -1 where the pair is none.
        num_objects: objects of an image, padding included.
        num_cells: cells of an image.
    """

    image: Tensor
    target: Tensor
    cell: Tensor
    overlap: Tensor
    alignment: Tensor
    num_objects: int
    num_cells: int

    def __getitem__(self, chosen: Tensor) -> _Pairs:
        if transfer.runs_ahead(chosen):
            overlap, alignment = (values.where(chosen, 0.0) for values in (self.overlap, self.alignment))
            return replace(self, overlap=overlap, alignment=alignment)
        return replace(
            self,
            image=self.image[chosen],
            target=self.target[chosen],
            cell=self.cell[chosen],
            overlap=self.overlap[chosen],
            alignment=self.alignment[chosen],
        )

    @property
    def row(self) -> Tensor:
        """Number of the object in the batch: int64 (P,)."""
        return self.image * self.num_objects + self.target

    @property
    def place(self) -> Tensor:
        """Number of the cell in the batch: int64 (P,)."""
        return self.image * self.num_cells + self.cell


def _winners(pairs: _Pairs, num_images: int) -> Tensor:
    """Return the pairs that match: one object for each cell, bool (P,)."""
    place, shape = pairs.place, (num_images, pairs.num_cells)
    best_overlap = pairs.overlap.new_full(shape, -1.0)
    best_overlap.view(-1).scatter_reduce_(0, place, pairs.overlap, "amax")
    wins = (pairs.overlap == best_overlap[pairs.image, pairs.cell]) & (pairs.alignment >= 0)
    # Two objects may tie to the last bit (duplicates in the annotation file); the first of them keeps the cell.
    first = torch.full(shape, pairs.num_objects, device=place.device)
    first.view(-1).scatter_reduce_(0, place, pairs.target.where(wins, pairs.num_objects), "amin")
    owner = first.clamp_(max=pairs.num_objects - 1)[pairs.image, pairs.cell]  # nobody owns a cell without a pair
    return _with_lost_objects(wins & (pairs.target == owner), pairs, owner, num_images)


def _best(wins: Tensor, pairs: _Pairs, num_images: int) -> Tensor:
    """Return the best pair of each object among those that match, the first of equally good cells, bool (P,)."""
    row, size = pairs.row, num_images * pairs.num_objects
    alignment = pairs.alignment.where(wins, -1.0)
    peak = alignment.new_full((size,), -1.0).scatter_reduce_(0, row, alignment, "amax")
    best = wins & (alignment == peak[row])
    return best & (pairs.place == _lowest(pairs.place, row, best, size))


def _with_quality(pairs: _Pairs, num_images: int) -> Assignment:
    """Return the assignment of the pairs that match, each with the class score that its cell should give."""
    row, size = pairs.row, num_images * pairs.num_objects
    peak_alignment = pairs.alignment.new_zeros(size).scatter_reduce_(0, row, pairs.alignment, "amax")
    peak_overlap = pairs.overlap.new_zeros(size).scatter_reduce_(0, row, pairs.overlap, "amax")
    # The floor only guards against 0 / 0: the sixth power of a small overlap is tiny, and an object whose boxes are all
    # still far off has to be trained on nevertheless.
    tiny = torch.finfo(pairs.alignment.dtype).tiny
    quality = pairs.alignment / peak_alignment[row].clamp(min=tiny) * peak_overlap[row]
    # A cell of weight 0 has no effect, but a predicted box without area would make 0 * NaN of its CIoU.
    weighs = quality > 0
    if transfer.runs_ahead(weighs):
        return Assignment(pairs.image, pairs.cell, pairs.target, quality, weighs)
    return Assignment(pairs.image[weighs], pairs.cell[weighs], pairs.target[weighs], quality[weighs], weighs[weighs])


def _with_lost_objects(wins: Tensor, pairs: _Pairs, owner: Tensor, num_images: int) -> Tensor:
    """Return the pairs that match once objects without a cell have got their best one back, bool (P,).

    Every object asks for its best cell whose owner has another one. An owner gives one cell, to the first object that
    asks, before its cells are counted again, so that it keeps its last cell.

    Args:
        wins: bool (P,), the pairs that match so far.
        pairs: the pairs.
        owner: int64 (P,), the object in the image that owns the cell of the pair.
        num_images: images in the batch.
    """
    row, owner_row, place, alignment = pairs.row, pairs.image * pairs.num_objects + owner, pairs.place, pairs.alignment
    size, num_places = num_images * pairs.num_objects, num_images * pairs.num_cells
    # A round gives a cell to one of the objects of an image that have none; another object owns it.
    last = min(_MAX_ROUNDS, pairs.num_objects - 1) if transfer.runs_ahead(wins) else None
    for number in itertools.count():
        num_won = torch.zeros(size, device=row.device).index_add_(0, row, wins.float())
        asks = (num_won[row] == 0) & (num_won[owner_row] > 1) & (alignment > 0)
        if not asks.any() if last is None else number >= last:
            break
        peak = alignment.new_full((size,), -1.0).scatter_reduce_(0, row, alignment.where(asks, -1.0), "amax")
        asks &= alignment == peak[row]
        asks &= place == _lowest(place, row, asks, size)  # the first of cells that are equally good
        asks &= row == _lowest(row, owner_row, asks, size)
        taker = torch.full((num_places,), -1, device=place.device)
        taker.scatter_reduce_(0, place, row.where(asks, -1), "amax")
        is_given = taker[place] >= 0
        wins = (wins & ~is_given) | asks
        owner_row = torch.where(is_given, taker[place], owner_row)
    return wins


def _lowest(values: Tensor, keys: Tensor, chosen: Tensor, num_keys: int) -> Tensor:
    """Return the lowest chosen value with the key of each entry, int64 (P,), or more than any value without one."""
    most = torch.iinfo(torch.int64).max
    lowest = torch.full((num_keys,), most, device=keys.device)
    return lowest.scatter_reduce_(0, keys, values.where(chosen, most), "amin")[keys]


def cells_in_crowds(points_xy: Tensor, strides: Tensor, crowd_xyxy: Tensor, valid: Tensor) -> Tensor:
    """Return the cells with more than half of their square inside the union of the crowd regions: bool (B, A)."""
    half = strides[:, None] / 2
    cells_xyxy = torch.cat([points_xy - half, points_xy + half], dim=1)
    if transfer.runs_ahead(valid):  # padding has no area
        return covered_areas(cells_xyxy, crowd_xyxy) > 0.5 * strides.square()
    inside = torch.zeros(len(valid), len(points_xy), dtype=torch.bool, device=points_xy.device)
    for image in valid.any(dim=1).nonzero().flatten().tolist():
        inside[image] = covered_areas(cells_xyxy, crowd_xyxy[image, valid[image]]) > 0.5 * strides.square()
    return inside
