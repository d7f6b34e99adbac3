"""An exported file as a `Runtime`: the same path through the predictor as a torch model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detector.export.metadata import Description
from detector.structures.selection import SelectConfig

Arrays: TypeAlias = "Sequence[npt.NDArray[Any]]"
Run: TypeAlias = "Callable[[npt.NDArray[Any]], Arrays]"  # canvases (B, H, W, C) -> outputs in the order of the file

NOT_SELECTED = -1.0  # the score of a class that a suppression within the file did not select; no threshold passes it


class ExportRuntime:
    """A file ready to run on the CPU.

    Attributes:
        description: what the file says of itself.
        num_classes: classes it tells apart.
        selection: what the file has selected already, or None where it gives all boxes.
        precision: of the network: fp32, fp16 or int8.
        notes: what is worth saying of it, a sentence each.
    """

    def __init__(self, description: Description, run: Run) -> None:
        self.description, self._run = description, run
        self.num_classes = description.num_classes
        self.selection: SelectConfig | None = description.nms
        self.precision: str = description.precision
        self.notes: tuple[str, ...] = ()

    def check_image_hw(self, image_hw: tuple[int, int]) -> None:
        """Raises a `ValueError` where a canvas size is none that the file takes."""
        self.description.check_image_hw(image_hw)

    def outputs(self, canvases: npt.NDArray[Any]) -> Arrays:
        """What the file gives for canvases (B, H, W, C): boxes, scores, then raw maps if it has them.

        Raises:
            ValueError: the canvases are of another type.
        """
        if canvases.dtype != self.description.dtype:
            raise ValueError(f"the export wants canvases of {self.description.dtype}, found {canvases.dtype}")
        return self._run(canvases)

    def boxes(self, canvases: npt.NDArray[Any]) -> tuple[Tensor, Tensor]:
        """All boxes of a batch, as `Runtime` says.

        Of a file that suppresses by itself they are those it selected, (B, K, 4) with K the most it gives, each with a
        score for one class and `NOT_SELECTED` for the others; rows beyond those selected have it for all.
        """
        outputs = self.outputs(canvases)
        # Copied: some runtimes hand out their own memory, which the next call overwrites.
        canvas_xyxy = torch.from_numpy(np.array(outputs[0], np.float32))
        scores = torch.from_numpy(np.array(outputs[1], np.float32))
        if self.selection is None:
            return canvas_xyxy, scores
        labels = torch.from_numpy(np.array(outputs[2], np.int64))
        dense = scores.new_full((*scores.shape, self.num_classes), NOT_SELECTED)
        return canvas_xyxy, dense.scatter_(2, labels[..., None], scores[..., None])
