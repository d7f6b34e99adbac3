"""Views of one image, such as overlapping tiles, mirrored and scaled ones, and the merging of their detections."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detector.errors import ConfigError
from detector.inference.box_fusion import fuse
from detector.structures.boxes import area_xyxy
from detector.structures.canvas import LEAST_TILE_PX, InputConfig
from detector.structures.letterbox import Image, Letterbox
from detector.structures.selection import SelectConfig, select_labelled

Merge = Literal["nms", "fusion"]
Found = tuple[Tensor, Tensor, Tensor]  # source_xyxy float32 (N, 4), scores float32 (N,), labels int64 (N,)

# A box that ends nearer to an edge of its tile than this share of the tile's side counts as ending there.
_TOUCHES = 1 / 64
# A box cut off by its tile is dropped if a whole box with at least this share of its score covers this share of it.
# Akyon et al. 2022 ("Slicing aided hyper inference", section 3.2) match by intersection over the smaller area, too.
_COVERED, _SCORE_SHARE = 0.7, 0.5
_SEARCHED_PX = 64  # largest distance of a canvas side that the network takes from the scaled side


@dataclass(frozen=True)
class ViewsConfig:
    """Views of each image (test-time augmentation); one plain view by default.

    Attributes:
        tile: side in source pixels of the squares that an image is cut into, each fitted into a canvas of its own; None
            for the whole image only. An image no larger than a tile has one view.
        overlap: least share of its side that a tile has in common with the next one, 0..0.9; an object larger than that
            may be whole in no tile.
        whole: whether an image in tiles also has a view of the whole.
        flip: whether each view is repeated mirrored left to right.
        scales: sizes of the canvas relative to `input.size`, one view each; the nearest size that the network takes.
        merge: `nms` keeps the best of the boxes of an object, `fusion` averages them (Solovyev et al. 2021).
        iou: overlap above which boxes of several views are the same object, 0..1; 0.55 as in that paper.
    """

    tile: int | None = None
    overlap: float = 0.2
    whole: bool = True
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    merge: Merge = "nms"
    iou: float = 0.55

    def __post_init__(self) -> None:
        if self.tile is not None and self.tile < LEAST_TILE_PX:
            raise ValueError(f"views.tile: expected at least {LEAST_TILE_PX} pixels, got {self.tile}")
        if not 0 <= self.overlap <= 0.9:
            raise ValueError(f"views.overlap: expected a value within 0..0.9, got {self.overlap}")
        if not self.scales or not all(0.1 <= scale <= 10 for scale in self.scales):
            raise ValueError(f"views.scales: expected numbers within 0.1..10, got {list(self.scales)}")
        if len(set(self.scales)) < len(self.scales):
            raise ValueError(f"views.scales: expected each scale once, got {list(self.scales)}")
        if not 0 <= self.iou <= 1:
            raise ValueError(f"views.iou: expected a value within 0..1, got {self.iou}")

    @property
    def is_plain(self) -> bool:
        """True if every image has one view: the whole, as it is."""
        return self.tile is None and not self.flip and self.scales == (1.0,)

    @property
    def text(self) -> str:
        """The views and the merging of boxes in words."""
        whole = " and the whole" if self.whole else ""
        looks = [f"tiles of {self.tile} px overlapping by {self.overlap:g}{whole}" if self.tile else "the whole"]
        looks += ["mirrored too"] if self.flip else []
        looks += [f"scales {', '.join(f'{scale:g}' for scale in self.scales)}"] if self.scales != (1.0,) else []
        return f"{'; '.join(looks)}; merged by {self.merge} above IoU {self.iou:g}"


@dataclass(frozen=True)
class View:
    """View of a source image: a region of it, perhaps mirrored, on a canvas.

    Attributes:
        region_xyxy: the region, whole pixels of the source.
        letterbox: the map from the region to the canvas.
        is_flipped: true if the canvas is mirrored left to right.
        reach_xyxy: borders of the neighbouring tiles within this one: the end of the left and of the upper tile, the
            start of the right and of the lower tile, pixels of the source; infinite if there is no such tile.
    """

    region_xyxy: tuple[int, int, int, int]
    letterbox: Letterbox
    is_flipped: bool = False
    reach_xyxy: tuple[float, float, float, float] = (-math.inf, -math.inf, math.inf, math.inf)

    @property
    def _rim_xy(self) -> tuple[float, float]:
        height, width = self.letterbox.source_hw
        return width * _TOUCHES, height * _TOUCHES

    @property
    def clear_xyxy(self) -> tuple[float, float, float, float]:
        """The part of the region in which boxes are whole: all but a rim along edges with a neighbouring tile."""
        x1, y1, x2, y2 = self.region_xyxy
        left, top, right, bottom = (math.isfinite(reach) for reach in self.reach_xyxy)
        rim_x, rim_y = self._rim_xy
        return x1 + left * rim_x, y1 + top * rim_y, x2 - right * rim_x, y2 - bottom * rim_y

    def canvas(self, image: Image) -> npt.NDArray[np.uint8] | npt.NDArray[np.float32]:
        """Return the region of a whole image, uint8 (H, W, C), on the canvas, as `Letterbox.apply` gives it."""
        x1, y1, x2, y2 = self.region_xyxy
        canvas = self.letterbox.apply(image[y1:y2, x1:x2])
        return canvas[:, ::-1] if self.is_flipped else canvas

    def boxes_to_source(self, canvas_xyxy: Tensor) -> Tensor:
        """Return boxes (N, 4) on the canvas in pixels of the source, clipped to the region."""
        if self.is_flipped:
            canvas_xyxy = canvas_xyxy[..., [2, 1, 0, 3]]
            canvas_xyxy[..., 0::2] = self.letterbox.canvas_hw[1] - canvas_xyxy[..., 0::2]
        boxes = self.letterbox.boxes_to_source(canvas_xyxy)
        height, width = self.letterbox.source_hw
        boxes[..., 0::2].clamp_(0, width)
        boxes[..., 1::2].clamp_(0, height)
        x1, y1, _, _ = self.region_xyxy
        if x1 or y1:
            boxes[..., 0::2] += x1
            boxes[..., 1::2] += y1
        return boxes

    def cut(self, source_xyxy: Tensor) -> tuple[Tensor, Tensor]:
        """Return masks of the boxes (N, 4) that the tile cuts off and of those among them that the next tile has whole.

        A box that ends at an edge and lies in the strip shared with the next tile belongs to an object that is in the
        next tile, too, where its box is better.

        Returns:
            bool (N,) each.
        """
        (x1, y1, x2, y2), (left, top, right, bottom) = source_xyxy.unbind(1), self.clear_xyxy
        rim_x, rim_y = self._rim_xy
        ends = torch.stack([x1 < left, y1 < top, x2 > right, y2 > bottom], dim=1)
        end_left, end_top, start_right, start_bottom = self.reach_xyxy
        is_shared = torch.stack(
            [x2 + rim_x <= end_left, y2 + rim_y <= end_top, x1 - rim_x >= start_right, y1 - rim_y >= start_bottom],
            dim=1,
        )
        return ends.any(dim=1), (ends & is_shared).any(dim=1)


class Views:
    """Views of images of any size.

    Attributes:
        config: the configuration of the views.
    """

    def __init__(
        self,
        config: ViewsConfig,
        canvas: InputConfig,
        check_image_hw: Callable[[tuple[int, int]], None],
    ) -> None:
        """Choose the canvases.

        Args:
            config: the configuration of the views.
            canvas: the canvas at scale 1.
            check_image_hw: raises a `ValueError` if the network does not take a size.

        Raises:
            ConfigError: the network takes no canvas near a scale.
        """
        self.config, self._canvas = config, canvas
        # Two similar scales may have the same canvas.
        self._canvases = tuple(
            dict.fromkeys(_scaled(canvas.canvas_hw, scale, check_image_hw) for scale in config.scales)
        )

    def of(self, image_hw: tuple[int, int]) -> list[View]:
        """Return the views of an image of height and width `image_hw`."""
        return [
            View(region, self._canvas.letterbox_of(_hw(region), canvas_hw), flip, reach)
            for region, reach in self._regions(image_hw)
            for canvas_hw in self._canvases
            for flip in ((False, True) if self.config.flip else (False,))
        ]

    def _regions(
        self, image_hw: tuple[int, int]
    ) -> list[tuple[tuple[int, int, int, int], tuple[float, float, float, float]]]:
        (height, width), tile = image_hw, self.config.tile
        whole = (0, 0, width, height), (-math.inf, -math.inf, math.inf, math.inf)
        if tile is None or max(image_hw) <= tile:
            return [whole]
        shared_px = min(math.ceil(self.config.overlap * tile), tile - 1)
        rows, columns = _spans(height, tile, shared_px), _spans(width, tile, shared_px)
        tiles = [
            ((x1, y1, x2, y2), (left, top, right, bottom))
            for (y1, y2, top, bottom), (x1, x2, left, right) in itertools.product(rows, columns)
        ]
        return [*tiles, whole] if self.config.whole else tiles

    def selection(self, config: SelectConfig, num_views: int) -> SelectConfig:
        """Return the selection for one view; for fusion it keeps one box per object, as in the paper."""
        if num_views == 1 or self.config.merge == "nms":
            return config
        return replace(config, iou=min(config.iou, self.config.iou))

    def merged(
        self, views: Sequence[View], found: Sequence[Found], config: SelectConfig, image_hw: tuple[int, int]
    ) -> Found:
        """Merge the detections of each view into those of the image, highest score first.

        Args:
            views: the views.
            found: the selected detections of each view, in pixels of the source.
            config: the selection; its overlap is replaced by that of the views.
            image_hw: height and width of the image.
        """
        if len(views) == 1:
            return found[0]
        whole: list[Found] = []
        cut: list[Found] = []
        for view, (boxes, scores, labels) in zip(views, found, strict=True):
            is_cut, is_seen_whole = view.cut(boxes)
            for kept, mask in ((whole, ~is_cut), (cut, is_cut & ~is_seen_whole)):
                kept.append((boxes[mask], scores[mask], labels[mask]))
        sure, doubtful = _joined(whole), _joined(cut)
        is_free = ~_is_covered(doubtful, sure, config.class_agnostic)
        boxes, scores, labels = _joined([sure, (doubtful[0][is_free], doubtful[1][is_free], doubtful[2][is_free])])
        # Boxes of several views repeat an object even where the model itself does not.
        merging = replace(config, iou=self.config.iou, nms="plain" if config.nms == "none" else config.nms)
        if self.config.merge == "fusion":
            # The view of the whole does not count: objects that are small on a large image cannot be seen in it.
            seeing = [view for view in views if any(map(math.isfinite, view.reach_xyxy))] or views
            regions = np.array([view.clear_xyxy for view in seeing], np.float64)
            boxes, scores, labels = fuse(boxes, scores, labels, regions, self.config.iou, config.class_agnostic)
            of_class = config.class_confidence
            is_sure = scores >= (config.confidence if of_class is None else scores.new_tensor(of_class)[labels])
            boxes, scores, labels = boxes[is_sure], scores[is_sure], labels[is_sure]
            merging = replace(
                config, iou=1.0, nms="plain"
            )  # nothing is suppressed: boxes are only sorted and limited in number
        rows = select_labelled(boxes, scores, labels, merging, image_hw)
        return boxes[rows], scores[rows], labels[rows]


def _hw(region_xyxy: tuple[int, int, int, int]) -> tuple[int, int]:
    return region_xyxy[3] - region_xyxy[1], region_xyxy[2] - region_xyxy[0]


def _spans(length: int, tile: int, shared_px: int) -> list[tuple[int, int, float, float]]:
    """Return evenly spread tiles along one axis: start, end, end of the previous tile, start of the next one."""
    if length <= tile:
        return [(0, length, -math.inf, math.inf)]
    num = math.ceil((length - shared_px) / (tile - shared_px))
    starts = [round(i * (length - tile) / (num - 1)) for i in range(num)]
    ends = [start + tile for start in starts]
    return list(zip(starts, ends, [-math.inf, *ends[:-1]], [*starts[1:], math.inf], strict=True))


def _scaled(
    canvas_hw: tuple[int, int], scale: float, check_image_hw: Callable[[tuple[int, int]], None]
) -> tuple[int, int]:
    """Return the canvas of a scale: the nearest height, then the nearest width that the network takes."""
    if scale == 1:
        return canvas_hw
    height = _nearest(canvas_hw[0] * scale, scale, lambda side: check_image_hw((side, canvas_hw[1])))
    width = _nearest(canvas_hw[1] * scale, scale, lambda side: check_image_hw((height, side)))
    return height, width


def _nearest(target_px: float, scale: float, check: Callable[[int], None]) -> int:
    near = sorted(
        range(max(1, round(target_px) - _SEARCHED_PX), round(target_px) + _SEARCHED_PX),
        key=lambda s: abs(s - target_px),
    )
    for side in near:
        try:
            check(side)
        except ValueError:
            continue
        return side
    raise ConfigError(
        f"views.scales: the network takes no canvas near {target_px:.0f} px for scale {scale:g}; leave it out"
    )


def _joined(found: Sequence[Found]) -> Found:
    boxes, scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    return boxes, scores, labels


def _is_covered(cut: Found, whole: Found, class_agnostic: bool) -> Tensor:
    """Return a mask, bool (N,), of the boxes cut off by their tile that are part of a whole box."""
    is_covered = torch.zeros(len(cut[0]), dtype=torch.bool)
    for row, (box, score, label) in enumerate(zip(*cut, strict=True)):  # few boxes end at an edge
        boxes, scores, labels = whole
        sides = torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])
        is_larger = sides.clamp(min=0).prod(dim=1) >= _COVERED * area_xyxy(box)
        is_like = (scores >= _SCORE_SHARE * score) & ((labels == label) | class_agnostic)
        is_covered[row] = (is_larger & is_like).any()
    return is_covered
