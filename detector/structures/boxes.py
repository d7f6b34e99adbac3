"""Box formats by name. Boxes inside the package are `xyxy`; other formats exist only where data enters or leaves it.

Coordinates are continuous pixels: the image of width `w` spans [0, w], pixel column `i` spans [i, i + 1]. The functions
take NumPy arrays and torch tensors alike (any shape ending in 4) and never modify their argument.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

Boxes = TypeVar("Boxes", bound=Any)  # an array or a tensor; the result has the type of the argument


def _like(boxes: Boxes, columns: list[Any]) -> Boxes:
    """Stack columns as boxes of the type of `boxes`."""
    stack: Any = np.stack
    if not isinstance(boxes, np.ndarray):
        import torch  # the caller, who holds a tensor, has imported it already

        stack = torch.stack
    stacked: Boxes = stack(columns, -1)
    return stacked


def xywh_to_xyxy(boxes_xywh: Boxes) -> Boxes:
    """Convert corner and size (COCO's format) to two corners."""
    x, y, w, h = (boxes_xywh[..., i] for i in range(4))
    return _like(boxes_xywh, [x, y, x + w, y + h])


def xyxy_to_xywh(boxes_xyxy: Boxes) -> Boxes:
    """Convert two corners to corner and size (COCO's format)."""
    x1, y1, x2, y2 = (boxes_xyxy[..., i] for i in range(4))
    return _like(boxes_xyxy, [x1, y1, x2 - x1, y2 - y1])


def cxcywh_to_xyxy(boxes_cxcywh: Boxes) -> Boxes:
    """Convert centre and size to two corners."""
    cx, cy, w, h = (boxes_cxcywh[..., i] for i in range(4))
    return _like(boxes_cxcywh, [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])


def xyxy_to_cxcywh(boxes_xyxy: Boxes) -> Boxes:
    """Convert two corners to centre and size."""
    x1, y1, x2, y2 = (boxes_xyxy[..., i] for i in range(4))
    return _like(boxes_xyxy, [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])


def clip_xyxy(boxes_xyxy: Boxes, image_hw: tuple[int, int]) -> Boxes:
    """Clip boxes to an image of height and width `image_hw`."""
    height, width = image_hw
    if isinstance(boxes_xyxy, np.ndarray):
        limits = np.array([width, height, width, height], boxes_xyxy.dtype)
        clipped: Boxes = np.minimum(np.maximum(boxes_xyxy, 0), limits)
        return clipped
    x1, y1, x2, y2 = (boxes_xyxy[..., i] for i in range(4))
    return _like(boxes_xyxy, [x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)])


def area_xyxy(boxes_xyxy: Boxes) -> Boxes:
    """Return the areas in square pixels, shape (...,); a negative width or height is multiplied as it is."""
    areas: Boxes = (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])
    return areas


def covered_areas(boxes_xyxy: Boxes, regions_xyxy: Boxes) -> Boxes:
    """Return the area of each box (N, 4) that lies under the union of regions (C, 4), shape (N,); for tensors.

    On a GPU the regions may be those of several images, (B, C, 4), for areas (B, N). The sides of the regions cut the
    plane into rectangles, each of which is wholly under a region or under none.
    """
    import torch  # the caller, who holds a tensor, has imported it already

    from detector.structures.transfer import runs_ahead

    lengths, covers = [], []
    for axis in (0, 1):
        sides = regions_xyxy[..., axis::2].flatten(-2)
        # Equal sides cut off nothing, and only the GPU knows how many of its own are equal.
        cuts = sides.sort(dim=-1).values if runs_ahead(sides) else sides.unique()
        first, last = cuts[..., None, :-1], cuts[..., None, 1:]
        low = torch.maximum(boxes_xyxy[..., axis, None], first)
        lengths.append((torch.minimum(boxes_xyxy[..., axis + 2, None], last) - low).clamp(min=0))
        covers.append(((regions_xyxy[..., axis, None] <= first) & (last <= regions_xyxy[..., axis + 2, None])).float())
    is_covered = (covers[0].mT @ covers[1] > 0).to(boxes_xyxy.dtype)
    areas: Boxes = ((lengths[0] @ is_covered) * lengths[1]).sum(dim=-1)
    return areas
