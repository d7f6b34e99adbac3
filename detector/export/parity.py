"""How far an export is from the model it came from, measured on images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from detector.export.export_config import PrecisionName
from detector.export.export_runtime import ExportRuntime
from detector.models.contracts import DetectionModel
from detector.structures.selection import SelectConfig, select, select_rows


@dataclass(frozen=True)
class Tolerance:
    """How far an export may be off.

    Attributes:
        raw: largest difference of a raw map, as a share of its largest value.
        box_px: largest difference of a coordinate, in canvas pixels.
        score: largest difference of a score.
        unmatched: share of detections that only one of the two has: where scores or overlaps lie at a threshold.
    """

    raw: float
    box_px: float
    score: float
    unmatched: float


# float16 has 11 bits, and errors add up over some 70 layers; 8 bits are judged by AP.
TOLERANCES: dict[PrecisionName, Tolerance | None] = {
    "fp32": Tolerance(1e-4, 0.5, 1e-3, 0.01),
    "fp16": Tolerance(5e-2, 4.0, 5e-2, 0.1),
    "int8": None,
}


@dataclass(frozen=True)
class Difference:
    """What was measured.

    Attributes:
        num_images: images compared.
        raw: largest difference of a raw map, as a share of the map's largest value.
        num_matched: detections that both have: of the same cell and class, after suppression.
        num_unmatched: detections that one has and the other has not.
        box_px: largest difference of a coordinate of the matched detections, in canvas pixels.
        score: largest difference of any score of any cell.
        num_selected: detections that a suppression within the file gave, or None without one.
    """

    num_images: int
    raw: float
    num_matched: int
    num_unmatched: int
    box_px: float
    score: float
    num_selected: int | None = None

    def __str__(self) -> str:
        selected = "" if self.num_selected is None else f"; {self.num_selected} selected within, all the same"
        return (
            f"{self.num_images} images: raw maps within {self.raw:.1e}; {self.num_matched} boxes matched, "
            f"{self.num_unmatched} not, within {self.box_px:.1e} px; scores within {self.score:.1e}{selected}"
        )

    def beyond(self, tolerance: Tolerance) -> list[str]:
        """What is further off than allowed, in words; NaN is."""
        bounds = (
            ("raw maps", self.raw, tolerance.raw),
            ("boxes", self.box_px, tolerance.box_px),
            ("scores", self.score, tolerance.score),
        )
        found = [f"{what} by {value:.1e} (at most {most:g})" for what, value, most in bounds if not value <= most]
        if self.num_unmatched > max(1, tolerance.unmatched * (self.num_matched + self.num_unmatched)):
            found.append(f"{self.num_unmatched} of {self.num_matched + self.num_unmatched} detections differ")
        return found


def measure_difference(
    model: DetectionModel, runtime: ExportRuntime, canvases: Iterable[npt.NDArray[Any]], config: SelectConfig
) -> Difference:
    """The difference of an export without suppression, with raw maps, from its model.

    Args:
        model: the model, in evaluation mode, on the CPU.
        runtime: the export.
        canvases: (H, W, C) each.
        config: which boxes to compare.
    """
    raw = box_px = score = 0.0
    num_images = num_matched = num_unmatched = 0
    for canvas in canvases:
        num_images += 1
        with torch.inference_mode():
            wanted_maps = model(torch.from_numpy(canvas[None]).permute(0, 3, 1, 2))
            boxes, scores = (t[0] for t in model.decode(wanted_maps))
        outputs = [torch.from_numpy(output).float() for output in runtime.outputs(canvas[None])]
        for wanted, found in zip(wanted_maps, outputs[2:], strict=True):
            raw = _largest(raw, (found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))
        found_boxes, found_scores = outputs[0][0], outputs[1][0]
        score = _largest(score, (found_scores - scores).abs().max())
        both, either = _compared((boxes, scores), (found_boxes, found_scores), config)
        num_matched += len(both)
        num_unmatched += len(either) - len(both)
        rows = torch.tensor(sorted({row for row, _ in both}), dtype=torch.int64)
        if len(rows):
            box_px = _largest(box_px, (found_boxes[rows] - boxes[rows]).abs().max())
    return Difference(num_images, raw, num_matched, num_unmatched, box_px, score)


def count_equal_selections(
    dense: ExportRuntime, selecting: ExportRuntime, batches: Sequence[npt.NDArray[Any]], config: SelectConfig
) -> tuple[int, int]:
    """Detections of a file with suppression that equal those of `select` on the same file without, and how many it has.

    Equal are those of the same label and place in the order, with scores within 1e-6 and boxes within 1e-3 pixels: the
    two may be optimised differently.
    """
    num_equal = num_all = 0
    for batch in batches:
        all_boxes, all_scores = dense.boxes(batch)
        found_boxes, found_scores = selecting.boxes(batch)
        for boxes, scores, other_boxes, other_scores in zip(
            all_boxes, all_scores, found_boxes, found_scores, strict=True
        ):
            wanted, found = select(boxes, scores, config), select(other_boxes, other_scores, config)
            num_all += max(len(wanted[1]), len(found[1]))
            if len(wanted[1]) == len(found[1]):
                same = wanted[2] == found[2]
                same &= (wanted[1] - found[1]).abs() <= 1e-6
                same &= (wanted[0] - found[0]).abs().amax(dim=1) <= 1e-3
                num_equal += int(same.sum())
    return num_equal, num_all


def _compared(
    wanted: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor], config: SelectConfig
) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """Cells and labels that both select, and that either does."""
    chosen = [
        set(zip(*(t.tolist() for t in select_rows(boxes, scores, config)), strict=True))
        for boxes, scores in (wanted, found)
    ]
    return chosen[0] & chosen[1], chosen[0] | chosen[1]


def _largest(before: float, value: Tensor) -> float:
    """The larger of two, or NaN where one is: `max` drops it."""
    return float(torch.maximum(torch.tensor(before), value.float().cpu()))
