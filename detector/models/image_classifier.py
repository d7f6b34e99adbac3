"""Image classifier on a backbone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from detector.config.registry import build, register
from detector.models.activations import ActivationConfig, Mish
from detector.models.backbones import BackboneConfig, CSPDarknet
from detector.models.blocks import Scale
from detector.models.class_rows import ClassRows
from detector.models.contracts import ClassifierConfig, TrainableModel, unfolded


@register("classifier")
class ImageClassifier(TrainableModel):
    """Classifier of a backbone, the mean over all places of its last map, and a linear layer.

    The backbone's tensors have the same names as in a detector and, with equal `depth`, `width` and `max_channels`, the
    same shapes, so that a detector can start from the weights of a classifier (`train.weights`).
    """

    @dataclass(frozen=True)
    class Config(ClassifierConfig):
        """Size and parts.

        Attributes:
            depth: factor on the number of blocks of the backbone.
            width: factor on the number of channels.
            max_channels: bound on a layer's channels before `width` is applied.
            activation: the non-linearity of the whole network.
            backbone: the backbone.
            dropout: share of the means that are set to 0 in training (Srivastava et al. 2014).
        """

        depth: float = 1.0
        width: float = 1.0
        max_channels: int = 1024
        activation: ActivationConfig = Mish.Config()  # noqa: RUF009 (frozen: shared safely)
        backbone: BackboneConfig = CSPDarknet.Config()  # noqa: RUF009 (frozen: shared safely)
        dropout: float = 0.0

        def __post_init__(self) -> None:
            if self.depth <= 0 or self.width <= 0 or self.max_channels < 8 or not 0 <= self.dropout < 1:
                raise ValueError(
                    "a classifier: expected depth > 0, width > 0, max_channels >= 8 and 0 <= dropout < 1, got "
                    f"{(self.depth, self.width, self.max_channels, self.dropout)}"
                )

    def __init__(self, config: Config, num_classes: int, image_channels: int = 3) -> None:
        super().__init__()
        if num_classes < 1 or image_channels < 1:
            raise ValueError(
                f"ImageClassifier: expected at least 1 class and 1 channel, got {num_classes} and {image_channels}"
            )
        scale = Scale(config.depth, config.width, config.max_channels, config.activation)
        self.backbone = build(config.backbone, scale, image_channels)
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(self.backbone.out_channels[-1], num_classes)
        self.num_classes, self.image_channels = num_classes, image_channels
        self.max_stride = max(self.backbone.strides)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) of images (B, C, H, W)."""
        self.check_image_hw((images.shape[-2], images.shape[-1]))
        last: Tensor = self.backbone(self.in_unit_range(images))[-1]
        logits: Tensor = self.linear(self.dropout(last.mean(dim=(2, 3))))
        return logits

    def parts_in_order(self) -> list[nn.Module]:
        """Return the parts of the backbone (stem, stages, pooling) and the linear layer."""
        return [*unfolded(self.backbone), self.linear]

    def class_rows(self) -> dict[str, ClassRows]:
        """Return the class rows of the linear layer."""
        return {"linear.weight": ClassRows(), "linear.bias": ClassRows()}
