"""Boxes of annotation files that cannot be used, or that seem to be in another format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from detector.data.problems import Findings
from detector.structures.boxes import xywh_to_xyxy

# COCO files hold coordinates of two decimals, so a corner, which is the sum of two, may be off by this many pixels.
ROUNDING_PX = 0.01
# From these shares of the boxes on, the file is assumed to hold another box format.
_XYXY_SHARE, _NORMALISED_SHARE = 0.2, 0.5


def without_rows(
    keep: npt.NDArray[np.bool_],
    is_wrong: npt.NDArray[np.bool_],
    kind: str,
    place_of: Callable[[int], str],
    findings: Findings,
) -> npt.NDArray[np.bool_]:
    """Return `keep`, bool (A,), without the wrong rows, and count these as skipped."""
    findings.count(kind, "skipped", np.flatnonzero(keep & is_wrong), place_of)
    return keep & ~is_wrong


def other_format(
    boxes_xywh: npt.NDArray[np.float64],
    image_hw: npt.NDArray[np.int64],
    place_of: Callable[[int], str],
    findings: Findings,
) -> str:
    """Return a hint at the format that the boxes seem to have, or an empty text; count them as accepted.

    Args:
        boxes_xywh: float64 (A, 4), as written.
        image_hw: int64 (A, 2), the size of the image of each box; 0, 0 where it is unknown.
        place_of: returns the place of a row for a message.
        findings: counts such boxes.
    """
    limit = np.where(image_hw > 0, image_hw, np.inf)[:, ::-1] + ROUNDING_PX
    start, size = boxes_xywh[:, :2], boxes_xywh[:, 2:]
    with np.errstate(over="ignore", invalid="ignore"):
        overflows = (start + size > limit).any(axis=1)
        are_corners = overflows & (size > start).all(axis=1) & (size <= limit).all(axis=1)
        are_shares = ((boxes_xywh >= 0) & (boxes_xywh <= 1)).all(axis=1) & (size > 0).all(axis=1)
    if overflows.sum() > _XYXY_SHARE * len(boxes_xywh) and 2 * are_corners.sum() > overflows.sum():
        kind, rows = "box that looks like xyxy, expected xywh", np.flatnonzero(are_corners)
    elif are_shares.sum() > _NORMALISED_SHARE * len(boxes_xywh):
        kind, rows = "box that looks normalised to 0..1, expected pixels", np.flatnonzero(are_shares)
    else:
        return ""
    findings.count(kind, "accepted", rows, place_of)
    return f"{len(rows)} x {kind}"


def usable_boxes(
    boxes_xywh: npt.NDArray[np.float64],
    image_hw: npt.NDArray[np.int64],
    place_of: Callable[[int], str],
    findings: Findings,
) -> npt.NDArray[np.bool_]:
    """Return a mask of the boxes that can be used: bool (A,).

    Args:
        boxes_xywh: float64 (A, 4), as written.
        image_hw: int64 (A, 2), the size of the image of each box; 0, 0 where it is unknown.
        place_of: returns the place of a row for a message.
        findings: counts the boxes that cannot be used.
    """
    limit = np.where(image_hw > 0, image_hw, np.inf)[:, [1, 0, 1, 0]]
    width, height = boxes_xywh[:, 2], boxes_xywh[:, 3]
    with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinity are detected below
        corners = xywh_to_xyxy(boxes_xywh)
        is_finite = np.isfinite(corners.astype(np.float32))
        visible = np.clip(corners, 0, limit).astype(np.float32)  # the box that training uses
    keep: npt.NDArray[np.bool_] = np.ones(len(boxes_xywh), dtype=np.bool_)
    wrong: tuple[tuple[str, Any], ...] = (
        ("box with a number that is not finite", ~is_finite.all(axis=1)),
        ("box of negative width or height", (width < 0) | (height < 0)),
        ("box of zero width or height", (width == 0) | (height == 0)),
        ("box wholly outside the image", (corners[:, 2:] <= 0).any(axis=1) | (corners >= limit)[:, :2].any(axis=1)),
        ("box too thin to have an area in single precision", (visible[:, 2:] <= visible[:, :2]).any(axis=1)),
    )
    for kind, is_wrong in wrong:
        keep = without_rows(keep, is_wrong, kind, place_of, findings)
    is_partly_outside = (corners < -ROUNDING_PX).any(axis=1) | (corners > limit + ROUNDING_PX).any(axis=1)
    findings.count("box partly outside the image", "accepted", np.flatnonzero(keep & is_partly_outside), place_of)
    return keep
