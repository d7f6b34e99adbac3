"""Models made ready for inference: without the parts of training, batch norm folded into convolutions."""

from __future__ import annotations

from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from detector.models.blocks import ConvNormAct
from detector.models.heads import Head

Model = TypeVar("Model", bound=nn.Module)


def without_training_parts(model: Model) -> Model:
    """Drop the parts of heads that only training needs; return the model itself, whose boxes stay the same.

    It can no longer be trained, saved or loaded, so give a copy.
    """
    for module in list(model.modules()):
        if isinstance(module, Head):
            module.drop_training_parts()
    return model


def fold(model: Model) -> Model:
    """Fold every batch norm of a `ConvNormAct` into its convolution; return the model itself, in evaluation mode.

    The parts that only training needs are dropped. Its boxes stay the same up to rounding. It can no longer be trained,
    saved or loaded, so fold a copy.
    """
    without_training_parts(model).eval()
    for block in model.modules():
        if isinstance(block, ConvNormAct) and type(block.norm) is nn.BatchNorm2d:
            conv, norm, mean, variance = block.conv, block.norm, block.norm.running_mean, block.norm.running_var
            assert mean is not None  # the norms of `ConvNormAct` keep statistics
            assert variance is not None
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias
            )
            block.norm = None
    return model
