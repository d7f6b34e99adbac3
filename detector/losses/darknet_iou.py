"""Overlaps of boxes and their gradients as Darknet computes them.

Boxes are (..., 4), centre and size relative to the canvas. The gradients are those that Darknet's networks were trained
with, not the derivatives of the overlaps: width and height count double, and the centre's part of the hull term has the
opposite sign. Autograd on the published formulas (Rezatofighi et al. 2019; Zheng et al. 2020) gives other values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from detector.models.anchor_levels import Overlap

_DIOU_EXPONENT = 0.6  # Darknet's own; the paper (Zheng et al. 2020, equation 7) has 1


def _edges(cxcywh: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return left, top, right and bottom."""
    x, y, w, h = cxcywh.unbind(-1)
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def overlap_of(first: Tensor, second: Tensor, kind: Overlap) -> Tensor:
    """Return the overlap of boxes (..., 4) and (..., 4), broadcast to (...).

    It is the intersection over union, minus for `giou` the share of the hull that neither box covers, for `diou`
    (d^2 / c^2)^0.6, where d is the distance of the centres and c the diagonal of the hull, and for `ciou` d^2 / c^2 and
    the aspect term.
    """
    left, top, right, bottom = _edges(first)
    other_left, other_top, other_right, other_bottom = _edges(second)
    width = (torch.minimum(right, other_right) - torch.maximum(left, other_left)).clamp_(min=0)
    height = (torch.minimum(bottom, other_bottom) - torch.maximum(top, other_top)).clamp_(min=0)
    intersection = width * height
    union = first[..., 2] * first[..., 3] + second[..., 2] * second[..., 3] - intersection
    iou = torch.where((intersection > 0) & (union > 0), intersection / union, 0.0)
    if kind == "iou":
        return iou
    hull_width = torch.maximum(right, other_right) - torch.minimum(left, other_left)
    hull_height = torch.maximum(bottom, other_bottom) - torch.minimum(top, other_top)
    if kind == "giou":
        hull = hull_width * hull_height
        return torch.where(hull > 0, iou - (hull - union) / hull, iou)
    diagonal = hull_width.square() + hull_height.square()
    distance = (first[..., 0] - second[..., 0]).square() + (first[..., 1] - second[..., 1]).square()
    share = torch.where(diagonal > 0, distance / diagonal, 0.0)
    if kind == "diou":
        return iou - share.pow(_DIOU_EXPONENT)
    aspect = 4 / math.pi**2 * _aspect_difference(first, second).square()
    return iou - share - aspect.square() / (1 - iou + aspect + 1e-6)


def _aspect_difference(predicted: Tensor, truth: Tensor) -> Tensor:
    return torch.atan(truth[..., 2] / truth[..., 3]) - torch.atan(predicted[..., 2] / predicted[..., 3])


@dataclass(frozen=True)
class _BoxPairs:
    """Predicted boxes and their objects, with the quantities that the gradients share.

    Attributes:
        predicted: (P, 4), centre and size.
        truth: (P, 4), centre and size of the ground truth.
        edges: left, top, right and bottom of the predicted boxes, (P,) each.
        other_edges: the same of the objects.
        shared_wh: width and height of the intersection, (P,) each, negative if the boxes are apart.
        hull_wh: width and height of the hull, the box around both, (P,) each.
        intersection: product of `shared_wh`, (P,): positive also if both are negative.
        union: sum of the areas less the intersection, (P,).
    """

    predicted: Tensor
    truth: Tensor
    edges: tuple[Tensor, Tensor, Tensor, Tensor]
    other_edges: tuple[Tensor, Tensor, Tensor, Tensor]
    shared_wh: tuple[Tensor, Tensor]
    hull_wh: tuple[Tensor, Tensor]
    intersection: Tensor
    union: Tensor

    @classmethod
    def of(cls, predicted: Tensor, truth: Tensor) -> _BoxPairs:
        """Return the pairs of boxes (P, 4) and (P, 4)."""
        left, top, right, bottom = edges = _edges(predicted)
        other_left, other_top, other_right, other_bottom = other_edges = _edges(truth)
        shared_w = torch.minimum(right, other_right) - torch.maximum(left, other_left)
        shared_h = torch.minimum(bottom, other_bottom) - torch.maximum(top, other_top)
        hull_w = torch.maximum(right, other_right) - torch.minimum(left, other_left)
        hull_h = torch.maximum(bottom, other_bottom) - torch.minimum(top, other_top)
        intersection = shared_w * shared_h
        union = predicted[..., 2] * predicted[..., 3] + truth[..., 2] * truth[..., 3] - intersection
        sides = (shared_w, shared_h), (hull_w, hull_h)
        return cls(predicted, truth, edges, other_edges, *sides, intersection, union)

    @property
    def apart(self) -> Tensor:
        """Mask of the pairs without a common area, bool (P, 1)."""
        return ((self.shared_wh[0] <= 0) | (self.shared_wh[1] <= 0))[..., None]


def overlap_gradient(predicted: Tensor, truth: Tensor, kind: Overlap) -> Tensor:
    """Return the change that Darknet adds to x, y, w, h of a predicted box to increase its overlap with the object.

    Args:
        predicted: float (P, 4), centre and size relative to the canvas.
        truth: the same for the ground truth.
        kind: the overlap.

    Returns:
        (P, 4), per x, y, w, h; not finite for degenerate boxes.
    """
    pairs = _BoxPairs.of(predicted, truth)
    gradient = _area_gradient(pairs, with_hull=kind == "giou")
    if kind in ("iou", "giou"):
        return gradient
    pull = _distance_gradient(pairs)
    if kind == "ciou":
        angle = _aspect_difference(predicted, truth)
        aspect = 4 * angle.square() / math.pi**2
        weight = aspect / (1 - pairs.intersection / pairs.union + aspect + 1e-6) * (8 / math.pi**2) * angle
        zero = torch.zeros_like(weight)
        pull = pull + torch.stack([zero, zero, weight * predicted[..., 3], -weight * predicted[..., 2]], dim=-1)
    return torch.where(pairs.apart, pull, gradient + pull)


def _area_gradient(pairs: _BoxPairs, *, with_hull: bool) -> Tensor:
    """Return the gradient (P, 4) of the intersection over union, or of GIoU, per x, y, w, h."""
    (left, top, right, bottom), (other_left, other_top, other_right, other_bottom) = pairs.edges, pairs.other_edges
    w, h = pairs.predicted[..., 2], pairs.predicted[..., 3]
    shared_w, shared_h = pairs.shared_wh
    # Derivatives along the edges left, top, right, bottom.
    d_area = torch.stack([-h, -w, h, w], dim=-1)
    d_intersection = torch.stack(
        [
            torch.where(left > other_left, -shared_h, 0.0),
            torch.where(top > other_top, -shared_w, 0.0),
            torch.where(right < other_right, shared_h, 0.0),
            torch.where(bottom < other_bottom, shared_w, 0.0),
        ],
        dim=-1,
    )
    d_union = d_area - d_intersection
    u, i = pairs.union[..., None], pairs.intersection[..., None]
    edges = torch.where(u > 0, (u * d_intersection - i * d_union) / u.square(), 0.0)
    if with_hull:
        hull_w, hull_h = pairs.hull_wh
        d_hull = torch.stack(
            [
                torch.where(left < other_left, -hull_h, 0.0),
                torch.where(top < other_top, -hull_w, 0.0),
                torch.where(right > other_right, hull_h, 0.0),
                torch.where(bottom > other_bottom, hull_w, 0.0),
            ],
            dim=-1,
        )
        c = (hull_w * hull_h)[..., None]
        outside = torch.where(c > 0, (c * d_union - u * d_hull) / c.square(), 0.0)
        edges = torch.where(pairs.apart, outside, edges + outside)
    d_left, d_top, d_right, d_bottom = edges.unbind(-1)
    return torch.stack([d_left + d_right, d_top + d_bottom, d_right - d_left, d_bottom - d_top], dim=-1)


def _distance_gradient(pairs: _BoxPairs) -> Tensor:
    """Return the gradient (P, 4) of -d^2 / c^2, per x, y, w, h: it pulls the centres together."""
    (left, top, right, bottom), (other_left, other_top, other_right, other_bottom) = pairs.edges, pairs.other_edges
    hull_w, hull_h = pairs.hull_wh
    diagonal = hull_w.square() + hull_h.square()
    offset_x = pairs.truth[..., 0] - pairs.predicted[..., 0]
    offset_y = pairs.truth[..., 1] - pairs.predicted[..., 1]
    distance = offset_x.square() + offset_y.square()
    dtype = hull_w.dtype
    beyond_left, beyond_right = (left < other_left).to(dtype), (right > other_right).to(dtype)
    beyond_top, beyond_bottom = (top < other_top).to(dtype), (bottom > other_bottom).to(dtype)
    pulls = [
        2 * offset_x * diagonal - 2 * hull_w * (beyond_right - beyond_left) * distance,
        2 * offset_y * diagonal - 2 * hull_h * (beyond_bottom - beyond_top) * distance,
        hull_w * (beyond_right + beyond_left) * distance,
        hull_h * (beyond_bottom + beyond_top) * distance,
    ]
    return torch.stack(pulls, dim=-1) / diagonal.square()[..., None]
