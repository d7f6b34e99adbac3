"""Example of a head: one file in `detector/models/`, or a file given with `--import`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.config.registry import register
from detector.models.blocks import Scale
from detector.models.class_rows import ClassRows
from detector.models.heads import Head, HeadConfig


@register("toy")
class CellHead(Head):
    """Anchor-free head of one 1x1 convolution per map; each cell predicts one box around its centre."""

    @dataclass(frozen=True)
    class Config(HeadConfig):
        """Settings of the head.

        Attributes:
            prior: score of every class in every cell before training.
        """

        prior: float = 0.1

        def __post_init__(self) -> None:
            if not 0 < self.prior < 1:
                raise ValueError(f"the toy head: expected 0 < prior < 1, got {self.prior}")

        def default_loss(self) -> dict[str, object]:
            """Return the loss `toy`, so that an experiment with this head need not name it."""
            return {"name": "toy"}

        def default_selection(self) -> dict[str, object]:
            """Return a selection with a stricter overlap than usual."""
            return {"iou": 0.5}

    def __init__(
        self, config: Config, scale: Scale, in_channels: tuple[int, ...], strides: tuple[int, ...], num_classes: int
    ) -> None:
        super().__init__()
        self.strides = strides
        self.layers = nn.ModuleList()
        for channels in in_channels:
            layer = nn.Conv2d(channels, 4 + num_classes, 1)
            assert layer.bias is not None
            nn.init.constant_(layer.bias[4:], torch.logit(torch.tensor(config.prior)).item())
            self.layers.append(layer)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return one raw map (B, 4 + classes, H, W) for each map: distances left, top, right, bottom, then logits."""
        return tuple(layer(x) for x, layer in zip(maps, self.layers, strict=True))

    def decode(self, raw_maps: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return boxes float32 (B, A, 4) in canvas pixels and scores float32 (B, A, classes) in 0..1."""
        boxes, scores = [], []
        for raw, stride in zip(raw_maps, self.strides, strict=True):
            height, width = raw.shape[-2:]
            y = (torch.arange(height, dtype=torch.float32, device=raw.device) + 0.5) * stride
            x = (torch.arange(width, dtype=torch.float32, device=raw.device) + 0.5) * stride
            points = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=2).flatten(0, 1)
            cells = raw.float().flatten(2).transpose(1, 2)
            distances = F.softplus(cells[..., :4]) * stride
            boxes.append(torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1))
            scores.append(cells[..., 4:].sigmoid())
        return torch.cat(boxes, dim=1), torch.cat(scores, dim=1)

    def class_rows(self) -> dict[str, ClassRows]:
        """Return the tensors of the head: in each, four rows of the box come before those of the classes."""
        return {name: ClassRows(num_before=4) for name in self.state_dict()}
