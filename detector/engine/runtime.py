"""What computes the boxes of a batch of canvases: a torch model, or an exported file in a runtime of its own."""

from __future__ import annotations

import copy
from typing import Any, Protocol

import numpy.typing as npt
import torch
from torch import Tensor

from detector.models.folding import fold
from detector.models.yolo import DetectionModel
from detector.postprocess import SelectConfig


class Runtime(Protocol):
    """A detection network ready to run, wherever it came from.

    Attributes:
        num_classes: classes it tells apart.
        notes: what is worth saying of it, a sentence each.
        selection: what it has selected of its boxes already, as an exported file may, or None where it gives all.
    """

    num_classes: int
    notes: tuple[str, ...]
    selection: SelectConfig | None

    def check_image_hw(self, image_hw: tuple[int, int]) -> None:
        """Raises a `ValueError` where a canvas size does not suit the network."""

    def boxes(self, canvases: npt.NDArray[Any]) -> tuple[Tensor, Tensor]:
        """All boxes of a batch, before any is selected.

        Args:
            canvases: (B, H, W, C), contiguous: uint8, or float32 in 0..1 as Darknet's arithmetic makes them.

        Returns:
            Boxes float32 (B, A, 4) in canvas pixels, not clipped, and scores float32 (B, A, classes) in 0..1.
        """


class TorchRuntime:
    """A torch model, folded, in channels_last.

    Attributes:
        model: the copy of the model that runs.
        device: where it runs.
        num_classes: classes it tells apart.
        notes: what is worth saying of how it was described, a sentence each.
    """

    selection: SelectConfig | None = None

    def __init__(self, model: DetectionModel, device: torch.device) -> None:
        """Takes a copy of the model to the device, its batch norms folded; arithmetic is float32."""
        folded = fold(copy.deepcopy(model))
        self.model = folded.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub gap
        self.device, self.num_classes, self.notes = device, model.num_classes, model.notes

    def check_image_hw(self, image_hw: tuple[int, int]) -> None:
        """Raises a `ValueError` where a canvas size does not suit the model's strides."""
        self.model.check_image_hw(image_hw)

    @torch.inference_mode()
    def boxes(self, canvases: npt.NDArray[Any]) -> tuple[Tensor, Tensor]:
        """All boxes of a batch, as `Runtime` says, on the device."""
        # (B, H, W, C) memory seen as (B, C, H, W) is channels_last already.
        images = torch.from_numpy(canvases).permute(0, 3, 1, 2).to(self.device)
        canvas_xyxy, scores = self.model.decode(self.model(images))
        return canvas_xyxy, scores
