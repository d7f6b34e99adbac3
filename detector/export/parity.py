"""Differences between an export and the model it came from, measured on images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detector.export.export_runtime import Array, ExportRuntime
from detector.export.export_target import ExportPrecision
from detector.io.nouns import plural
from detector.models.contracts import DetectionModel
from detector.structures.selection import SelectConfig, select, select_rows


@dataclass(frozen=True)
class Tolerance:
    """Largest differences that an export may have.

    Attributes:
        raw: largest difference of a raw map, as a share of its largest value.
        box_px: largest difference of a coordinate, in canvas pixels.
        score: largest difference of a score.
        unmatched: share of detections that only one of the two has, because a score or an overlap is at a threshold.
    """

    raw: float
    box_px: float
    score: float
    unmatched: float


# float16 has 11 significant bits, and errors add up over some 70 layers; int8 is judged by its AP.
TOLERANCES: dict[ExportPrecision, Tolerance | None] = {
    "fp32": Tolerance(1e-4, 0.5, 1e-3, 0.01),
    "fp16": Tolerance(5e-2, 4.0, 5e-2, 0.1),
    "int8": None,
}


@dataclass(frozen=True)
class Difference:
    """Differences between an export and its model.

    Attributes:
        num_images: number of images compared.
        raw: largest difference of a raw map, as a share of the map's largest value.
        num_matched: detections of the same cell and class that both have after suppression.
        num_unmatched: detections that only one of the two has.
        box_px: largest difference of a coordinate of the matched detections, in canvas pixels.
        score: largest difference of any score of any cell.
        num_selected: detections that the suppression within the file selected, or None without one.
    """

    num_images: int
    raw: float
    num_matched: int
    num_unmatched: int
    box_px: float
    score: float
    num_selected: int | None = None

    def __str__(self) -> str:
        selected = "" if self.num_selected is None else f"; {self.num_selected} selected within the file, all equal"
        return (
            f"{plural(self.num_images, 'image')}: raw maps within {self.raw:.1e}; "
            f"{plural(self.num_matched, 'box', 'boxes')} matched, "
            f"{self.num_unmatched} not, within {self.box_px:.1e} px; scores within {self.score:.1e}{selected}"
        )

    def beyond(self, tolerance: Tolerance) -> list[str]:
        """Return a phrase for each difference beyond the tolerance; NaN is beyond."""
        bounds = (
            ("raw maps", self.raw, tolerance.raw),
            ("boxes", self.box_px, tolerance.box_px),
            ("scores", self.score, tolerance.score),
        )
        beyond = [f"{what} by {value:.1e} (at most {most:g})" for what, value, most in bounds if not value <= most]
        if self.num_unmatched > max(1, tolerance.unmatched * (self.num_matched + self.num_unmatched)):
            beyond.append(f"{self.num_unmatched} of {self.num_matched + self.num_unmatched} detections differ")
        return beyond


def measure_difference(
    model: DetectionModel, runtime: ExportRuntime, canvases: Iterable[Array], config: SelectConfig
) -> Difference:
    """Measure the differences between an export with raw maps and without suppression, and its model.

    Args:
        model: the model, in evaluation mode, on the CPU.
        runtime: the export.
        canvases: canvases (H, W, C).
        config: the selection of the boxes to compare.
    """
    raw = box_px = score = 0.0
    num_images = num_matched = num_unmatched = 0
    for canvas in canvases:
        num_images += 1
        with torch.inference_mode():
            expected_maps = model(torch.from_numpy(canvas[None]).permute(0, 3, 1, 2))
            boxes, scores = (t[0] for t in model.decode(expected_maps))
        outputs = [torch.from_numpy(output).float() for output in runtime.outputs(canvas[None])]
        for expected, output in zip(expected_maps, outputs[2:], strict=True):
            raw = _largest(raw, (output - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
        export_boxes, export_scores = outputs[0][0], outputs[1][0]
        score = _largest(score, (export_scores - scores).abs().max())
        both, either = _compared((boxes, scores), (export_boxes, export_scores), config)
        num_matched += len(both)
        num_unmatched += len(either) - len(both)
        rows = torch.tensor(sorted({row for row, _ in both}), dtype=torch.int64)
        if len(rows):
            box_px = _largest(box_px, (export_boxes[rows] - boxes[rows]).abs().max())
    return Difference(num_images, raw, num_matched, num_unmatched, box_px, score)


def count_equal_selections(
    dense: ExportRuntime, selecting: ExportRuntime, batches: Sequence[Array], config: SelectConfig
) -> tuple[int, int]:
    """Compare the detections of a file with suppression with those of `select` on the same network without.

    Two detections are equal if they have the same label and the same place in the order, scores within 1e-6 and boxes
    within 1e-3 pixels: a runtime may optimise the two files differently.

    Returns:
        The number of equal detections, and the number of all detections.
    """
    num_equal = num_all = 0
    for batch in batches:
        all_boxes, all_scores = dense.boxes(batch)
        selected_boxes, selected_scores = selecting.boxes(batch)
        for boxes, scores, other_boxes, other_scores in zip(
            all_boxes, all_scores, selected_boxes, selected_scores, strict=True
        ):
            one, other = select(boxes, scores, config), select(other_boxes, other_scores, config)
            num_all += max(len(one[1]), len(other[1]))
            if len(one[1]) == len(other[1]):
                same = one[2] == other[2]
                same &= (one[1] - other[1]).abs() <= 1e-6
                same &= (one[0] - other[0]).abs().amax(dim=1) <= 1e-3
                num_equal += int(same.sum())
    return num_equal, num_all


def _compared(
    expected: tuple[Tensor, Tensor], exported: tuple[Tensor, Tensor], config: SelectConfig
) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """Return cells and labels that both select, and those that at least one selects."""
    chosen = [
        set(zip(*(t.tolist() for t in select_rows(boxes, scores, config)), strict=True))
        for boxes, scores in (expected, exported)
    ]
    return chosen[0] & chosen[1], chosen[0] | chosen[1]


def _largest(before: float, value: Tensor) -> float:
    """Return the maximum of two values, or NaN if one is NaN, which `max` would drop."""
    return float(torch.maximum(torch.tensor(before), value.float().cpu()))
