"""The main model family: backbone, neck and head."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from detector.config.registry import build, name_of, register
from detector.errors import ConfigError
from detector.models.activations import ActivationConfig, Mish
from detector.models.backbones import Backbone, BackboneConfig, CSPDarknet
from detector.models.blocks import Scale
from detector.models.class_rows import ClassRows
from detector.models.contracts import DetectionModel, ModelConfig, unfolded
from detector.models.heads import DecoupledHead, Head, HeadConfig
from detector.models.necks import PAN, NeckConfig


@register("yolo")
class Yolo(DetectionModel):
    """Detection model of a backbone, a neck and a head; with the default parts the family `mish-n` .. `mish-x`."""

    @dataclass(frozen=True)
    class Config(ModelConfig):
        """Size and parts of the model.

        Attributes:
            depth: factor on the number of bottlenecks.
            width: factor on the number of channels.
            max_channels: bound on a layer's channels before `width` is applied.
            activation: the non-linearity of the whole network.
            backbone: the backbone.
            neck: the neck.
            head: the head.
            levels: strides of the maps that objects are detected on, such as `[4, 8, 16, 32]` for small objects, or
                nothing for those of the backbone. They follow each other out of 4, 8, 16, 32 and 64; a YOLOX network
                takes 4 in front of 8, 16 and 32.
        """

        depth: float = 0.33
        width: float = 0.25
        max_channels: int = 1024
        activation: ActivationConfig = Mish.Config()  # noqa: RUF009 (frozen: shared safely)
        backbone: BackboneConfig = CSPDarknet.Config()  # noqa: RUF009 (frozen: shared safely)
        neck: NeckConfig = PAN.Config()  # noqa: RUF009 (frozen: shared safely)
        head: HeadConfig = DecoupledHead.Config()  # noqa: RUF009 (frozen: shared safely)
        levels: tuple[int, ...] | None = None

        def __post_init__(self) -> None:
            if self.depth <= 0 or self.width <= 0 or self.max_channels < 8:
                raise ValueError(
                    "a yolo model: expected depth > 0, width > 0 and max_channels >= 8, got "
                    f"{(self.depth, self.width, self.max_channels)}"
                )

        def experiment_defaults(self) -> dict[str, object]:
            """Return the loss and the selection that suit the head."""
            return self.head.experiment_defaults()

        def for_canvas(self, longest_px: float) -> Yolo.Config:
            """Return the config with the settings of the head that are left to the canvas."""
            with torch.device("meta"):
                stride = max(_backbone_of(self, 3).strides)
            whole_px = math.ceil(longest_px / stride - 1e-3) * stride  # sides of a canvas are multiples of the stride
            return replace(self, head=self.head.for_canvas(whole_px, stride))

        def with_choices_of(self, chosen: ModelConfig) -> Yolo.Config:
            """Return the config with the settings of the head that are left to the canvas as another one has them."""
            if not isinstance(chosen, Yolo.Config):
                return self
            return replace(self, head=self.head.with_choices_of(chosen.head))

    def __init__(self, config: Config, num_classes: int, image_channels: int = 3) -> None:
        super().__init__()
        if num_classes < 1 or image_channels < 1:
            raise ValueError(f"Yolo: expected at least 1 class and 1 channel, got {num_classes} and {image_channels}")
        scale = _scale_of(config)
        self.backbone = _backbone_of(config, image_channels)
        self.neck = build(config.neck, scale, self.backbone.out_channels)
        self.head = build(config.head, scale, self.neck.out_channels, self.backbone.strides, num_classes)
        self.num_classes, self.image_channels = num_classes, image_channels
        self.max_stride = max(self.backbone.strides)
        self.anchor_levels, self.longest_side_px = self.head.anchor_levels, self.head.longest_side_px

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return raw maps (B, channels of the head, H / stride, W / stride), one for each stride of the backbone."""
        self.check_image_hw((images.shape[-2], images.shape[-1]))
        raw_maps: tuple[Tensor, ...] = self.head(self.neck(self.backbone(self.as_input(images))))
        return raw_maps

    def as_input(self, images: Tensor) -> Tensor:
        """Return images as the backbone takes them: in 0..1 and the dtype of the weights."""
        return self.in_unit_range(images)

    def parts_in_order(self) -> list[nn.Module]:
        """Return the parts of the backbone (stem, stages, pooling), the neck and the head."""
        return [*unfolded(self.backbone), self.neck, self.head]

    def class_rows(self) -> dict[str, ClassRows]:
        """Return the class rows of the head."""
        return {f"head.{name}": rows for name, rows in self.head.class_rows().items()}

    def copied_from(self) -> dict[str, str]:
        """Return the tensors of the head that copy others."""
        return {f"head.{name}": f"head.{other}" for name, other in self.head.copied_from().items()}

    def decode(self, raw_maps: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return boxes float32 (B, A, 4) in canvas pixels and scores float32 (B, A, classes) in 0..1."""
        return self.head.decode(raw_maps)

    def detection_head(self) -> Head:
        """Return the head."""
        return self.head


def _scale_of(config: Yolo.Config) -> Scale:
    return Scale(config.depth, config.width, config.max_channels, config.activation, config.levels)


def _backbone_of(config: Yolo.Config, image_channels: int) -> Backbone:
    """Build the backbone of a model.

    Raises:
        ConfigError: its maps do not have the strides that the model asks for.
    """
    backbone = build(config.backbone, _scale_of(config), image_channels)
    if config.levels is not None and backbone.strides != config.levels:
        raise ConfigError(
            f"model.levels: expected the strides {list(backbone.strides)} of the backbone {name_of(config.backbone)}, "
            f"which has no others, got {list(config.levels)}; leave model.levels out"
        )
    return backbone
