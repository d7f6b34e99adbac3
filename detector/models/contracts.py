"""The contracts of whole models and their kinds: any trainable model, detection models, classifiers."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass

from torch import Tensor, nn

from detector.config.registry import PartConfig
from detector.models.anchor_levels import AnchorLevel
from detector.models.class_rows import ClassRows
from detector.models.heads import Head


class TrainableModel(nn.Module, abc.ABC):
    """The contract of every model, of any task: images in, raw outputs of the same type in every mode out.

    Decoding the outputs and the loss on them are not part of the forward pass.

    Attributes:
        num_classes: number of classes.
        image_channels: channels of the images it takes.
        max_stride: both sides of an image must be divisible by it.
        notes: remarks on its description, a sentence each.
        may_skip_parameters: whether a training step may leave parameters without a gradient.
        longest_side_px: longest side of an object that the outputs can express, canvas pixels.
    """

    num_classes: int
    image_channels: int
    max_stride: int
    notes: tuple[str, ...] = ()
    may_skip_parameters: bool = False
    longest_side_px: float = math.inf

    @abc.abstractmethod
    def forward(self, images: Tensor) -> object:
        """Return the raw outputs of images (B, C, H, W): uint8, or float32 in 0..1 from Darknet's arithmetic."""

    def in_unit_range(self, images: Tensor) -> Tensor:
        """Return images in 0..1 and the dtype of the weights: most models begin with this division by 255."""
        unit = images.to(next(self.parameters()).dtype)
        return unit if images.is_floating_point() else unit / 255

    def class_rows(self) -> dict[str, ClassRows]:
        """Return the tensors of the state dict with rows of classes, which a model of other classes can take over."""
        return {}

    def copied_from(self) -> dict[str, str]:
        """Return tensors of the state dict with those that they copy where weights to start from lack them."""
        return {}

    def parts_in_order(self) -> list[nn.Module]:
        """Return the parts from the stem to the head, for learning rates by depth: by default `unfolded(self)`."""
        return unfolded(self)

    def reasons_against_training(self) -> list[str]:
        """Return the reasons why the model can be run but not trained, a sentence each; empty if it can be trained."""
        return []

    def check_image_hw(self, image_hw: tuple[int, int]) -> None:
        """Reject a canvas size that does not suit the strides.

        Raises:
            ValueError: a side is not a multiple of `max_stride`.
        """
        if any(side < self.max_stride or side % self.max_stride for side in image_hw):
            raise ValueError(
                f"{type(self).__name__}: expected images with both sides a multiple of {self.max_stride}, "
                f"got {image_hw}"
            )


@dataclass(frozen=True)
class ClassifierConfig(PartConfig[TrainableModel]):
    """The kind `classifier`. A classifier is built from its config, the number of classes and of image channels."""

    folders = ("models",)


class DetectionModel(TrainableModel):
    """The contract of detection models, for training, evaluation, prediction and export.

    `model(images)` returns raw maps, of the same type in every mode; `decode` turns them into boxes and scores.

    Attributes:
        anchor_levels: the meaning of each raw map where the head is anchor-based, else empty.
    """

    anchor_levels: tuple[AnchorLevel, ...] = ()

    @abc.abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the raw maps of images (B, C, H, W): uint8, or float32 in 0..1 from Darknet's arithmetic."""

    @abc.abstractmethod
    def decode(self, raw_maps: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return boxes float32 (B, A, 4) in canvas pixels and scores float32 (B, A, classes) in 0..1."""

    def detection_head(self) -> Head | None:
        """Return the head, for losses that read raw maps through it; None if the model has no such part."""
        return None


@dataclass(frozen=True)
class ModelConfig(PartConfig[DetectionModel]):
    """The kind `model`. A model is built from its config, the number of classes and the number of image channels."""

    folders = ("models", "darknet")

    def experiment_defaults(self) -> dict[str, object]:
        """Return plain settings of other sections of an experiment that hold for this model unless others are given."""
        return {}

    def for_canvas(self, longest_px: float) -> ModelConfig:
        """Return the config with the settings that are left to the canvas chosen for it; by default there are none.

        Args:
            longest_px: longest side of the canvases of training, pixels.
        """
        return self

    def with_choices_of(self, chosen: ModelConfig) -> ModelConfig:
        """Return the config with the settings that are left to the canvas as another config has them."""
        return self


def unfolded(module: nn.Module) -> list[nn.Module]:
    """Return the children of a module, with the members of a list of modules in place of the list."""
    return [part for child in module.children() for part in (child if isinstance(child, nn.ModuleList) else [child])]
