"""Settings that suit a data set: input size, tiles and levels from its objects, anchors, repeat factors."""

from __future__ import annotations

import math

import numpy as np

from detector.data.anchor_kmeans import find_anchors
from detector.data.coco import CocoAnnotations
from detector.data.doctor.box_checks import BoxTable
from detector.data.doctor.findings import Suggestion
from detector.data.problems import shown
from detector.data.repeat_factors import repeat_factors
from detector.errors import DatasetError

INPUT_SIZES = (320, 416, 512, 640, 768, 896, 1024, 1280, 1536)
MIN_OBJECT_PX = 8  # on the canvas; a cell of the finest common grid
COVERED_SHARE = 0.95
_SMALL_CELLS = 2  # side of a small object in cells of a level
_MANY_SMALL = 0.25  # share of the objects from which a level of its own is worth its time
_MOST_ENLARGED = 1.5  # largest factor, because further enlargement adds no detail
NUM_ANCHORS = 9
_MAX_MEASURED = 5_000  # boxes for k-means; more boxes change the anchors by less than a pixel
# LVIS repeats classes in fewer than a thousandth of its 100,000 images (A. Gupta et al., CVPR 2019, section 4.2), which
# is 100 images. The threshold of a smaller data set is also 100 images, but at most a tenth of all images.
LVIS_THRESHOLD, _RARE_IMAGES, _GREATEST_THRESHOLD = 0.001, 100, 0.1


def suggest(
    annotations: CocoAnnotations, table: BoxTable, split: str, canvas_hw: tuple[int, int]
) -> tuple[Suggestion, ...]:
    """Return the suggestions for a split; none if it has no objects."""
    if not len(table):
        return ()
    return (
        _input_size(table, canvas_hw),
        *_tiles(table, canvas_hw),
        *_levels(table, canvas_hw),
        *_anchors(table, canvas_hw),
        *_repeat_factors(annotations, split),
    )


def _input_size(table: BoxTable, canvas_hw: tuple[int, int]) -> Suggestion:
    """Suggest the smallest common size at which nearly all objects are large enough, up to the size of the images."""
    longer = table.image_wh.max(axis=1)
    relative = np.sqrt(table.clipped_wh.prod(axis=1)) / longer  # of a square canvas that the image is fitted into

    def covered(size: int) -> float:
        return float((relative * size >= MIN_OBJECT_PX).mean())

    source_side = float(np.median(longer))
    useful = [size for size in INPUT_SIZES if size <= source_side * _MOST_ENLARGED] or [INPUT_SIZES[0]]
    size = next((size for size in useful if covered(size) >= COVERED_SHARE), useful[-1])
    reason = f"{covered(size):.1%} of the objects are then {MIN_OBJECT_PX} px or larger"
    if size != max(canvas_hw):
        reason += f" ({covered(max(canvas_hw)):.1%} at {max(canvas_hw)})"
    if covered(size) < COVERED_SHARE:
        reason += (
            f"; a larger size would only enlarge the images, of {source_side:.0f} px: use tiles of larger originals"
        )
    elif size < max(canvas_hw):
        reason += "; a larger size takes more time but may be more accurate"
    shares = {str(candidate): round(covered(candidate), 4) for candidate in INPUT_SIZES}
    return Suggestion("input.size", str(size), reason, {"size": size, "share_large_enough": shares})


def _tiles(table: BoxTable, canvas_hw: tuple[int, int]) -> list[Suggestion]:
    """Suggest tiles where the canvas reduces images so much that many objects become too small on it."""
    tile = min(canvas_hw)
    scale = table.canvas_wh.max(axis=1) / np.maximum(table.clipped_wh.max(axis=1), 1e-9)
    sides, whole_sides = np.sqrt(table.canvas_wh.prod(axis=1)), np.sqrt(table.clipped_wh.prod(axis=1))
    too_small = float((sides < MIN_OBJECT_PX).mean())
    in_tiles = float((whole_sides < MIN_OBJECT_PX).mean())
    is_larger = float(np.median(scale)) <= 1 / _MOST_ENLARGED
    if too_small <= 1 - COVERED_SHARE or not is_larger or in_tiles > too_small / 2:
        return []
    reason = (
        f"{too_small:.1%} of the objects are smaller than {MIN_OBJECT_PX} px on the canvas, {in_tiles:.1%} in tiles of "
        f"the images as they are: train with augment.tile={tile} and views.tile={tile}"
    )
    return [Suggestion("tiles", str(tile), reason, {"tile": tile, "share_too_small": round(too_small, 4)})]


def _levels(table: BoxTable, canvas_hw: tuple[int, int]) -> list[Suggestion]:
    """Suggest a finer level if many objects are small on the canvas, and fewer coarse ones if none is large."""
    sides = np.sqrt(table.canvas_wh.prod(axis=1))
    small = float((sides < _SMALL_CELLS * MIN_OBJECT_PX).mean())
    if small < _MANY_SMALL:
        return []
    # An object of a few cells is found on the level before, so the coarsest level serves those of many cells.
    has_large = bool((table.canvas_wh.max(axis=1) > _SMALL_CELLS * 32).mean() > 1 - COVERED_SHARE)
    levels = [4, 8, 16, 32] if has_large else [4, 8, 16]
    reason = (
        f"{small:.1%} of the objects are smaller than {_SMALL_CELLS * MIN_OBJECT_PX} px on the canvas of "
        f"{canvas_hw[1]} x {canvas_hw[0]}, where the finest default level has cells of {MIN_OBJECT_PX} px; a level of "
        f"4 px takes more time: model.levels={str(levels).replace(' ', '')}"
    )
    value = f"[{', '.join(map(str, levels))}]"
    return [Suggestion("model.levels", value, reason, {"levels": levels, "share_small": round(small, 4)})]


def _anchors(table: BoxTable, canvas_hw: tuple[int, int]) -> list[Suggestion]:
    sizes = table.canvas_wh[(table.canvas_wh > 0).all(axis=1)]
    if len(sizes) > _MAX_MEASURED:
        sizes = np.random.default_rng(0).choice(sizes, _MAX_MEASURED, replace=False)
    try:
        anchors = find_anchors(sizes, NUM_ANCHORS)
    except DatasetError:  # fewer different boxes than anchors
        return []
    pairs = anchors.wh.tolist()
    height, width = canvas_hw
    reason = (
        f"for Darknet networks at {width} x {height}: average IoU {anchors.average_iou:.3f}, {anchors.recall:.1%} of "
        "the objects have an anchor of IoU above 0.5"
    )
    details = {"wh": pairs, "average_iou": round(anchors.average_iou, 4), "recall": round(anchors.recall, 4)}
    return [Suggestion("anchors", ", ".join(f"{w},{h}" for w, h in pairs), reason, details)]


def _repeat_factors(annotations: CocoAnnotations, split: str) -> list[Suggestion]:
    threshold = min(max(LVIS_THRESHOLD, _RARE_IMAGES / len(annotations)), _GREATEST_THRESHOLD)
    of_class, of_image = repeat_factors(annotations, threshold)
    factors = zip(annotations.class_names, of_class.round(2).tolist(), strict=True)
    ranked = sorted(((shown(name), factor) for name, factor in factors if factor > 1), key=lambda item: -item[1])
    if not ranked:
        return []
    listed = ", ".join(f"{name} {factor:g}" for name, factor in ranked[:5])
    more = f" and {len(ranked) - 5} more" if len(ranked) > 5 else ""
    least = math.ceil(threshold * len(annotations))
    reason = (
        f"repeats images of classes in fewer than {least} of {len(annotations):,} images of {split}, so that rare "
        f"classes are seen more often (LVIS, t = {threshold:g}); an epoch has {of_image.mean():.2f} times its length"
    )
    details = {"threshold": threshold, "classes": dict(ranked), "epoch_factor": round(float(of_image.mean()), 4)}
    return [Suggestion("repeat factors", listed + more, reason, details)]
