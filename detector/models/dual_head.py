"""The head `dual`: two branches that are trained together, of which one predicts without suppression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from detector.config.registry import register
from detector.models.blocks import Scale
from detector.models.class_rows import ClassRows
from detector.models.heads import DecoupledHead, DensePredictions

_ONE_TO_ONE = "one_to_one"  # prefix of its tensors; those of the other branch have the names of the decoupled head


@register("dual")
class DualHead(DecoupledHead):
    """Two decoupled heads on the same maps: one-to-many, which teaches the network, and one-to-one, which predicts.

    An object trains up to `num_candidates` cells of the one-to-many branch and one cell of the one-to-one branch, both
    by the same alignment, so that the best cell of one is that of the other. The one-to-one branch thus gives an object
    one box, and its boxes need no suppression. Backbone and neck learn from the one-to-many branch alone. Folding drops
    the branch that does not predict.

    Source: Wang et al. 2024, "YOLOv10: Real-Time End-to-End Object Detection", section 3.1.
    """

    @dataclass(frozen=True)
    class Config(DecoupledHead.Config):
        """Settings of the head.

        Attributes:
            predicts: the branch that predicts: `one_to_one`, without suppression, or `one_to_many`, which needs
                `evaluate.nms` and `predict.nms` of another kind than `none`; both are trained in either case.
        """

        predicts: Literal["one_to_one", "one_to_many"] = "one_to_one"

        def default_selection(self) -> dict[str, object]:
            """Return a selection without suppression for the one-to-one branch."""
            return {"nms": "none"} if self.predicts == "one_to_one" else {}

    def __init__(
        self, config: Config, scale: Scale, in_channels: tuple[int, ...], strides: tuple[int, ...], num_classes: int
    ) -> None:
        super().__init__(config, scale, in_channels, strides, num_classes)
        self.one_to_one: DecoupledHead | None = DecoupledHead(config, scale, in_channels, strides, num_classes)
        self.one_to_one.load_state_dict(self.state_dict(), strict=False)  # both begin alike
        self.predicts, self._has_both = config.predicts, True

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return one raw map (B, 4 * bins + classes, H, W) for each map and branch, those that predict first."""
        if not self._has_both:
            alone: tuple[Tensor, ...] = super().forward(maps) if self.one_to_one is None else self.one_to_one(maps)
            return alone
        assert self.one_to_one is not None  # for the type checker: folding removes it
        many = super().forward(maps)
        one: tuple[Tensor, ...] = self.one_to_one(tuple(x.detach() for x in maps))
        return (*one, *many) if self.predicts == "one_to_one" else (*many, *one)

    def drop_training_parts(self) -> None:
        """Drop the branch that does not predict."""
        self._has_both = False
        if self.predicts == "one_to_one":
            self.box_branches = self.class_branches = nn.ModuleList()
        else:
            self.one_to_one = None

    def class_rows(self) -> dict[str, ClassRows]:
        """Return the tensors of the last convolution of each class branch."""
        own = super().class_rows()
        return {**own, **{f"{_ONE_TO_ONE}.{name}": rows for name, rows in own.items()}}

    def copied_from(self) -> dict[str, str]:
        """Return the tensors of the one-to-one branch with those of the other one."""
        prefix = f"{_ONE_TO_ONE}."
        return {name: name.removeprefix(prefix) for name in self.state_dict() if name.startswith(prefix)}

    def dense(self, raw_maps: tuple[Tensor, ...]) -> DensePredictions:
        """Return the raw maps of the one-to-many branch flat, in float32 even under autocast."""
        return super().dense(self._maps_of("one_to_many", raw_maps))

    def dense_one_to_one(self, raw_maps: tuple[Tensor, ...]) -> DensePredictions:
        """Return the raw maps of the one-to-one branch flat, in float32 even under autocast."""
        return super().dense(self._maps_of("one_to_one", raw_maps))

    def _maps_of(self, branch: str, raw_maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        num = len(self.strides)
        return raw_maps[:num] if branch == self.predicts else raw_maps[num:]

    def decode(self, raw_maps: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return boxes float32 (B, A, 4) and scores float32 (B, A, classes) in 0..1 of the branch that predicts."""
        dense = super().dense(self._maps_of(self.predicts, raw_maps))
        return dense.canvas_xyxy(), dense.class_logits.sigmoid()
