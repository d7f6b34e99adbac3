"""The network that is exported: canvases in, boxes and scores out, in operators that every runtime has."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.models.activations import Mish
from detector.models.contracts import DetectionModel
from detector.models.folding import fold
from detector.ops.mish import sigmoid_form

MishForm = Literal["mish", "softplus", "sigmoid"]
INPUT, BOXES, SCORES, LABELS, NUM_DETECTIONS = "images", "boxes", "scores", "labels", "num_detections"
_Module = TypeVar("_Module", bound=nn.Module)


def _softplus_form(x: Tensor) -> Tensor:
    return x * torch.tanh(F.softplus(x))


# The sigmoid form computes in float32; its casts have no effect in a float32 network and are not written there.
MISH_FORMS: dict[MishForm, Callable[[Tensor], Tensor]] = {
    "mish": F.mish,
    "softplus": _softplus_form,
    "sigmoid": sigmoid_form,
}


class WrittenMish(nn.Module):
    """Mish in torch's own operators, so that no kernel of this package gets into a file."""

    def __init__(self, form: MishForm) -> None:
        super().__init__()
        self.form: MishForm = form

    def forward(self, x: Tensor) -> Tensor:
        """Return Mish of each element, for any shape."""
        return MISH_FORMS[self.form](x)


class DetectionGraph(nn.Module):
    """Copy of a model in the form that is exported: folded, on the CPU, without gradients, with decoding.

    Attributes:
        model: the copy.
        with_raw_maps: whether the raw maps are outputs too.
        num_raw_maps: number of raw maps.
    """

    def __init__(self, model: DetectionModel, mish_form: MishForm, *, is_half: bool) -> None:
        """Copy a model; its network computes in float16 with `is_half`, else in float32. Decoding is float32."""
        super().__init__()
        self.model = _with_written_mish(fold(copy.deepcopy(model).cpu()), mish_form).float().requires_grad_(False)
        if is_half:
            self.model = self.model.half()
        self.eval()
        self.with_raw_maps, side = True, self.model.max_stride
        with torch.inference_mode():
            self.num_raw_maps = len(self.model(self.canvases((side, side), 1).permute(0, 3, 1, 2)))

    @property
    def output_names(self) -> list[str]:
        """The names of the outputs of `forward`."""
        raw_maps = [f"raw_{index}" for index in range(self.num_raw_maps)] if self.with_raw_maps else []
        return [BOXES, SCORES, *raw_maps]

    def canvases(self, canvas_hw: tuple[int, int], num: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        """Return blank canvases (num, H, W, C) to trace with."""
        return torch.zeros(num, *canvas_hw, self.model.image_channels, dtype=dtype)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return boxes (B, A, 4), scores (B, A, classes) and raw maps (B, C, H, W) of canvases (B, H, W, C).

        Canvases are uint8, or float32 in 0..1 as Darknet's arithmetic makes them. All outputs are float32, except the
        raw maps of a float16 network.
        """
        raw_maps: tuple[Tensor, ...] = self.model(images.permute(0, 3, 1, 2))
        boxes, scores = self.model.decode(raw_maps)
        return (boxes, scores, *raw_maps) if self.with_raw_maps else (boxes, scores)


def _with_written_mish(model: _Module, form: MishForm) -> _Module:
    """Return the model itself after replacing every Mish in it."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, Mish):
                setattr(module, name, WrittenMish(form))
    return model
