"""An exported file as a `Runtime`: the same path through the predictor as a torch model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detector.export.metadata import Description
from detector.structures.selection import SelectConfig

Array: TypeAlias = "npt.NDArray[np.generic]"
Run: TypeAlias = "Callable[[Array], Sequence[Array]]"  # canvases (B, H, W, C) -> outputs in the order of the file

NOT_SELECTED = -1.0  # score of a class that a suppression within the file did not select; no threshold passes it


class ExportRuntime:
    """An exported file ready to run on the CPU.

    Attributes:
        description: the metadata of the file.
        num_classes: number of classes.
        selection: the selection that is part of the file, or None where it returns all boxes.
        precision: number format of the network: fp32, fp16 or int8.
        notes: remarks for the user, a sentence each.
    """

    def __init__(self, description: Description, run: Run) -> None:
        self.description, self._run = description, run
        self.num_classes = description.num_classes
        self.selection: SelectConfig | None = description.nms
        self.precision: str = description.precision
        self.notes: tuple[str, ...] = ()

    def check_image_hw(self, image_hw: tuple[int, int]) -> None:
        """Reject a canvas size that the file does not take.

        Raises:
            ValueError: the size is another.
        """
        self.description.check_image_hw(image_hw)

    def outputs(self, canvases: Array) -> Sequence[Array]:
        """Return the outputs of the file for canvases (B, H, W, C): boxes, scores, then raw maps if it has them.

        Raises:
            ValueError: the canvases are of another type.
        """
        if canvases.dtype != self.description.dtype:
            raise ValueError(f"the export: expected canvases of {self.description.dtype}, got {canvases.dtype}")
        return self._run(canvases)

    def boxes(self, canvases: Array) -> tuple[Tensor, Tensor]:
        """Return all boxes of a batch, as `Runtime` says.

        A file with a suppression of its own returns the selected boxes (B, K, 4) alone, where K is the most that it
        selects. Each has its score in the column of its class and `NOT_SELECTED` in the others; rows after the last
        selected box have `NOT_SELECTED` in all columns.
        """
        outputs = self.outputs(canvases)
        # Copied: some runtimes return views of their own memory, which the next call overwrites.
        canvas_xyxy = torch.from_numpy(np.array(outputs[0], np.float32))
        scores = torch.from_numpy(np.array(outputs[1], np.float32))
        if self.selection is None:
            return canvas_xyxy, scores
        labels = torch.from_numpy(np.array(outputs[2], np.int64))
        dense = scores.new_full((*scores.shape, self.num_classes), NOT_SELECTED)
        return canvas_xyxy, dense.scatter_(2, labels[..., None], scores[..., None])
